"""Tasks that fit on one dataset and evaluate on others, and the fit that they share."""

import pytest

from harness.records.summary import summarise
from tests.cli.test_commands import run, runs
from tests.conftest import PLUGINS

TRANSFER = ("--tasks", "cross_dataset,domain_generalization", "--set", "cross_dataset.source=toy",
            "--set", "domain_generalization.source=toy",
            "--datasets", "toy,emoji_activities")  # fmt: skip


@pytest.fixture(scope="module")
def transferred(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    assert run(folder, *TRANSFER) == 0
    return folder


def test_runs_of_both_tasks_on_all_datasets_share_one_fit(transferred):
    records = runs(transferred)
    assert len(records) == 4
    assert len({record.fit for record in records}) == 1
    assert len(list(transferred.rglob("*.weights.safetensors"))) == 1
    assert sum("fit_shared" not in record.cost for record in records) == 1
    assert len({record.cost["train_seconds"] for record in records}) == 1


def test_a_shared_fit_scores_what_one_of_its_own_does(transferred, tmp_path):
    assert run(tmp_path, *TRANSFER[:-1], "emoji_activities") == 0
    expected = {(r.run["task"], r.run["dataset"]): r.scores for r in runs(transferred)}
    for record in runs(tmp_path):
        assert record.scores == expected[record.run["task"], record.run["dataset"]]


def test_the_source_has_a_row_but_is_no_part_of_the_average(transferred):
    table = summarise(runs(transferred)).set_index(["task", "dataset"])["test"]
    for task in ("cross_dataset", "domain_generalization"):
        assert table[task, "average"] == table[task, "emoji_activities"]
        assert table[task, "average"] != table[task, "toy"]


def test_scoring_val_and_then_test_fits_once(tmp_path):
    run(tmp_path, "--set", "engine.split=val")
    run(tmp_path)
    first, second = sorted(runs(tmp_path), key=lambda r: "fit_shared" in r.cost)
    assert first.fit == second.fit
    assert "fit_shared" not in first.cost
    assert second.cost["fit_shared"]


def test_a_damaged_weights_file_is_fitted_again(tmp_path):
    run(tmp_path, "--set", "engine.split=val")
    (weights,) = tmp_path.rglob("*.weights.safetensors")
    weights.write_bytes(b"damaged")
    run(tmp_path)
    assert not any("fit_shared" in record.cost for record in runs(tmp_path))
    assert weights.stat().st_size > 100


@pytest.mark.parametrize("name", ["cross_dataset", "domain_generalization"])
@pytest.mark.parametrize("source", ["imagenet", "emoji"])
def test_the_usual_targets_exist(name, source):
    task = PLUGINS.plugins["tasks"][name].cls(source=source)
    assert task.datasets()[0] == source
    assert len(task.datasets()) > 4
    assert set(task.datasets()) <= set(PLUGINS.plugins["datasets"])
