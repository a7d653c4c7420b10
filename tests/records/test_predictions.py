"""What a run said of every image is kept, small, and read only if it is what the record counts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.fitting.evaluate import Scores
from harness.records import predictions
from harness.records.store import PREDICTIONS, SPLIT, Store
from tests.conftest import execute


@pytest.fixture
def record(tmp_path, make_run):
    """A run of the toy's, written and read again."""
    from harness.runs.executors.local import as_kept

    run = make_run("zero_shot")
    store = Store(tmp_path / "runs").open()
    made, tensors, _ = execute(run)
    store.write(made, tensors)
    for split in run.evaluated.values():
        dataset = run.run.data[split.classes.dataset]
        store.write_split(split.fingerprint, as_kept(split, dataset))
    (read,) = store.records()
    return read


def test_the_five_best_begin_with_the_class_and_the_first_of_equal_logits_wins():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0, -1.0, -2.0], [2.0, 1.0, 0.0, 0.0, 0.0, 5.0]])
    scores = Scores.of(logits, torch.tensor([3, 5]))
    assert scores.predictions.tolist() == [1, 5]
    assert scores.best.tolist() == [[1, 2, 3, 0, 4], [5, 0, 1, 2, 3]]
    expected = logits.softmax(-1)
    assert torch.allclose(scores.probabilities, expected.gather(1, scores.best))
    assert torch.allclose(scores.true, torch.stack([expected[0, 3], expected[1, 5]]).log())


def test_fewer_than_five_classes_have_as_many_probabilities():
    scores = Scores.of(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    assert scores.best.tolist() == [[1, 0]]
    assert float(scores.probabilities.sum()) == pytest.approx(1.0)


def test_an_image_takes_less_than_fifty_bytes():
    number = 1000
    scores = Scores.of(torch.randn(number, 20), torch.zeros(number, dtype=torch.long))
    size = sum(part.numel() * part.element_size() for part in scores.kept().values())
    assert size / number == 38


def test_what_a_run_said_comes_back_with_its_images(record):
    for name, score in record.scores.items():
        found = predictions.read(record, name)
        assert found.split is not None
        assert int((found.classes == found.labels).sum()) == score["correct"]
        assert np.array_equal(found.best[:, 0], found.classes)
        right = found.classes == found.labels
        top = found.probabilities[:, 0].astype(float)
        assert np.allclose(np.exp(found.true[right]), top[right], atol=1e-3)
        assert len(found.split.paths) == score["total"]


def test_the_class_alone_is_read_where_that_is_enough(record):
    found = predictions.read(record, "base", whole=False)
    assert found.best is None
    assert found.probabilities is None


def test_an_altered_score_is_not_that_of_the_predictions(record):
    scores = json.loads(json.dumps(record.scores))
    scores["base"]["correct"] += 1
    with pytest.raises(predictions.Missing, match=r"counts .* as right in base, its predictions"):
        predictions.read(replace(record, scores=scores), "base")


def test_predictions_of_another_run_are_not_taken(record):
    with pytest.raises(predictions.Missing, match="are those of another run"):
        predictions.read(replace(record, key="0123456789abcdef"), "base")


def test_what_is_missing_or_damaged_is_said(record):
    with pytest.raises(predictions.Missing, match="no predictions of other"):
        predictions.read(record, "other")
    print_of = record.run["fingerprints"]["evaluated"]["base"]
    kept = record.folder / "splits" / f"{print_of}{SPLIT}"
    predictions._split.cache_clear()
    for text in (
        "",
        "[]",
        '{"names": 1}',
        kept.read_text().replace('"labels": [0', '"labels": [99'),
    ):
        kept.write_text(text)
        predictions._split.cache_clear()
        with pytest.raises(predictions.Missing, match="cannot be read"):
            predictions.read(record, "base")
    kept.unlink()
    predictions._split.cache_clear()
    with pytest.raises(predictions.Missing, match="the list of images was not kept"):
        predictions.read(record, "base")
    side = record.file.with_suffix(PREDICTIONS)
    side.write_bytes(b"nothing")
    with pytest.raises(predictions.Missing, match="cannot be read"):
        predictions.read(record, "base")
    side.unlink()
    with pytest.raises(predictions.Missing, match="were not kept"):
        predictions.read(record, "base")


def test_predictions_of_older_versions_are_read(record):
    side = record.file.with_suffix(PREDICTIONS)
    new = load_file(side)
    labels = torch.from_numpy(predictions.read(record, "base").labels)
    old = {"base.predictions": new["base.class"], "base.labels": labels}
    save_file({name: part.to(torch.int16) for name, part in old.items()}, side)
    for kept in (record.folder / "splits").iterdir():
        kept.unlink()
    predictions._split.cache_clear()
    found = predictions.read(record, "base")
    assert found.split is None
    assert found.best is None
    assert np.array_equal(found.classes, new["base.class"].numpy())


def test_a_list_of_images_is_no_record(record):
    assert len(Store(record.folder).records()) == 1
