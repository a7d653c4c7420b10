"""Hugging Face datasets on disk as hf:PATH: what is read, what is refused, and every task."""

import importlib.util

import pytest
from PIL import Image

from harness import registry
from harness.cli.commands import main
from harness.errors import HarnessError
from harness.images import arrow, library
from tests.images.test_wds import NAMES, picture


def hf(folder, **fields):
    (plugin,) = registry.load().find("datasets", f"hf:{folder}")
    return plugin.cls(**plugin.fixed, **fields)


def test_without_the_package_a_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "datasets" else real(n))
    command = ["run", "--methods", "adapter", "--tasks", "few_shot", "--datasets", "hf:x/y"]
    assert main(command) == 2
    assert "pip install 'vlm-peft-harness[datasets]'" in capsys.readouterr().err


needed = pytest.mark.datasets


def rows(count, start=0, **extra):
    return [
        {"image": {"bytes": picture(label, number), "path": None}, "label": label, **extra}
        for label in range(len(NAMES))
        for number in range(start, start + count)
    ]


def table(some, names=NAMES, **features):
    import datasets

    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    types = datasets.Features(image=datasets.Image(), label=label, **features)
    return datasets.Dataset.from_list(some, features=types)


def saved(folder, **parts):
    """A dataset of save_to_disk; `parts` replace the usual ones, or remove them where None."""
    import datasets

    usual = {"train": rows(4), "validation": rows(2, 4), "test": rows(3, 6)}
    given = {name: some for name, some in (usual | parts).items() if some is not None}
    tables = {n: some if hasattr(some, "features") else table(some) for n, some in given.items()}
    datasets.DatasetDict(tables).save_to_disk(str(folder))
    return folder


def refusal(folder, **fields):
    with pytest.raises(HarnessError) as caught:
        hf(folder, **fields).read(None)
    return str(caught.value)


def sizes(lists):
    return [len(lists[part]) for part in ("train", "val", "test")]


@needed
def test_a_saved_dataset_keeps_its_splits_and_the_order_of_its_classes(tmp_path):
    lists = hf(saved(tmp_path / "d")).read(None)
    assert sizes(lists) == [16, 8, 12]
    assert {item.label: item.name for item in lists["train"]} == dict(enumerate(NAMES))
    assert lists["val"][0].path == "validation/00000000"


@needed
def test_parquet_files_are_the_same_dataset(tmp_path):
    for split, some in {"train": rows(4), "validation": rows(2, 4), "test": rows(3, 6)}.items():
        table(some).to_parquet(str(tmp_path / "pq" / f"{split}-00000-of-00001.parquet"))
    one, other = hf(tmp_path / "pq"), hf(saved(tmp_path / "d"))
    assert one.read(None) == other.read(None)
    item = one.read(None)["test"][-1]
    assert one.open(item, None).tobytes() == other.open(item, None).tobytes()


@needed
@pytest.mark.parametrize("name", ["data/{}-00000-of-00001", "data/{}/0000", "a/b/{}"])
def test_parquet_files_inside_a_folder_keep_their_splits(tmp_path, name):
    for split, some in {"train": rows(4), "test": rows(3, 6)}.items():
        path = tmp_path / f"{name.format(split)}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table(some).to_parquet(str(path))
    assert sizes(hf(tmp_path).read(None)) == [16, 0, 12]


@needed
def test_numbered_parquet_files_inside_a_folder_are_one_split(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        path = tmp_path / "data" / f"000{number}.parquet"
        table(rows(5, 5 * number)).to_parquet(str(path))
    assert sizes(hf(tmp_path).read(None)) == [20, 8, 12]


@needed
def test_images_of_a_class_without_a_name_are_not_dropped_unseen(tmp_path):
    train = table(rows(4), ("zebra", "", "bee", "cow"))
    test = table(rows(3, 6), ("zebra", "", "bee", "cow"))
    said = refusal(saved(tmp_path / "d", train=train, validation=None, test=test))
    assert "images of the split 'train' have a class of 'label' without a name" in said


@needed
def test_a_single_split_is_split_once_and_the_rule_is_the_one_of_folders(tmp_path):
    folder = saved(tmp_path / "d", train=rows(10), validation=None, test=None)
    assert sizes(hf(folder).read(None)) == [20, 8, 12]
    assert hf(folder).read(None) == hf(folder, splits="train=train").read(None)


@needed
def test_splits_of_other_names_are_asked_for_and_mapped(tmp_path):
    folder = saved(tmp_path / "d", test=None, heldout=rows(3, 6), extra=rows(1, 20))
    assert "has no split 'other'" in refusal(folder, splits="train=train,test=other")
    dataset = hf(folder, splits="train=train,val=validation,test=heldout")
    assert sizes(dataset.read(None)) == [16, 8, 12]
    assert any("the splits extra" in note for note in dataset.notes())


@needed
def test_a_file_of_a_numbered_set_that_is_missing_is_refused(tmp_path):
    (tmp_path / "pq").mkdir()
    table(rows(4)).to_parquet(str(tmp_path / "pq" / "train-00000-of-00002.parquet"))
    assert "has 1 of 2 files of 'train': the one numbered 1 is missing" in refusal(tmp_path / "pq")


@needed
def test_columns_are_found_by_type_or_asked_for(tmp_path):
    import datasets

    two = table(rows(4, fine=1), fine=datasets.ClassLabel(names=["x", "y"]))
    folder = saved(tmp_path / "d", train=two, validation=None, test=None)
    assert "several columns of labels (label, fine). Say which with --label-column" in refusal(
        folder
    )
    assert sizes(hf(folder, label_column="label").read(None)) == [8, 4, 4]
    assert "has no column 'nope'" in refusal(folder, label_column="nope")


@needed
def test_names_come_from_the_values_of_a_column_of_text(tmp_path):
    some = [row | {"label": NAMES[row["label"]]} for row in rows(4)]
    folder = saved(tmp_path / "d", train=table(some, None), validation=None, test=None)
    lists = hf(folder).read(None)
    assert [i.name for i in lists["test"]] == sorted(i.name for i in lists["test"])


@needed
@pytest.mark.parametrize("label", [-1, None])
def test_a_split_without_labels_is_refused(tmp_path, label):
    folder = saved(tmp_path / "d", test=[row | {"label": label} for row in rows(3, 6)])
    assert "12 of 12 rows of the split 'test' have no label" in refusal(folder)


@needed
def test_negative_numbers_of_a_plain_column_are_no_labels(tmp_path):
    import datasets

    types = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    some = [row | {"label": row["label"] - 1} for row in rows(4)]
    made = datasets.Dataset.from_list(some, features=types)
    folder = saved(tmp_path / "d", train=made, validation=None, test=None)
    assert "4 of 16 rows of the split 'train' have no label" in refusal(folder)


@needed
def test_a_column_that_does_not_hold_one_image_a_row_is_refused(tmp_path):
    import datasets

    several = datasets.Sequence(datasets.Image())
    types = datasets.Features(image=several, label=datasets.ClassLabel(names=list(NAMES)))
    some = [row | {"image": [row["image"]] * 2} for row in rows(4)]
    made = datasets.Dataset.from_list(some, features=types)
    folder = saved(tmp_path / "d", train=made, validation=None, test=None)
    said = refusal(folder, image_column="image")
    assert "the column 'image' does not hold one image a row" in said


@needed
def test_a_split_without_rows_is_named(tmp_path):
    empty = table(rows(1)).select([])
    assert "test has no rows" in refusal(saved(tmp_path / "d", test=empty))
    for name, some in {"train": table(rows(4)), "test": empty}.items():
        some.to_parquet(str(tmp_path / "p" / f"{name}.parquet"))
    assert "test has no rows" in refusal(tmp_path / "p")


@needed
def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    assert f"{tmp_path / 'train.parquet'} cannot be read" in refusal(tmp_path)


@needed
def test_splits_that_number_the_classes_otherwise_are_refused(tmp_path):
    other = table(rows(3, 6), NAMES[::-1])
    folder = tmp_path / "d"
    for name, some in {"train": table(rows(4)), "test": other}.items():
        some.to_parquet(str(folder / f"{name}.parquet"))
    assert "name the classes differently" in refusal(folder)


@needed
def test_a_method_is_fitted_on_it_and_a_second_call_has_nothing_to_do(tmp_path, capsys):
    folder = saved(tmp_path / "d")
    command = ["run", "--datasets", f"hf:{folder}", "--shots", "2", "--tasks", "few_shot"]
    command += ["--methods", "adapter", "--set", "engine.max_steps=2"]
    command += ["--results", str(tmp_path / "r")]
    assert main(command) == main(command) == 0
    assert "Everything is done already" in capsys.readouterr().out


@needed
def test_a_damaged_image_and_a_row_without_one_are_named(tmp_path):
    some = rows(3, 6)
    some[0]["image"]["bytes"], some[1]["image"] = b"no image", None
    saved(tmp_path / "d", test=some)
    (plugin,) = registry.load().find("datasets", f"hf:{tmp_path / 'd'}")
    problems = library.verify(plugin, None).problems
    assert any("test/00000000 cannot be read as an image" in each for each in problems)
    assert any("row 1 of test has no image" in each for each in problems)


@needed
def test_a_row_that_refers_to_another_file_is_refused(tmp_path):
    import datasets

    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    some = rows(3, 6)
    some[0]["image"] = {"bytes": None, "path": str(tmp_path / "secret.png")}
    features = datasets.Features(image={"bytes": datasets.Value("binary"),
                                        "path": datasets.Value("string")},
                                 label=datasets.ClassLabel(names=list(NAMES)))  # fmt: skip
    for name, each in {"train": rows(4), "test": some}.items():
        made = datasets.Dataset.from_list(each, features=features)
        made.to_parquet(str(tmp_path / "d" / f"{name}.parquet"))
    dataset = hf(tmp_path / "d")
    with pytest.raises(HarnessError, match="outside of the dataset"):
        dataset.open(dataset.read(None)["test"][0], None)


@needed
def test_a_folder_with_a_script_alone_is_refused_and_not_run(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.py").write_text("raise SystemExit(5)")
    assert "Its d.py is not run" in refusal(tmp_path / "d")


@needed
@pytest.mark.parametrize(
    "path", ["/nowhere/at/all", "nowhere/at/all", "nowhere.parquet", "a b/c", "../d"]
)
def test_a_path_that_is_not_there_is_said(path):
    with pytest.raises(HarnessError, match="there is no file or folder"):
        hf(path)


@needed
def test_a_name_of_the_hub_without_a_network_is_one_sentence(monkeypatch, caplog, capfd):
    import datasets
    import huggingface_hub

    for module, value in ((huggingface_hub.constants, False), (datasets.config, False)):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", value)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    arrow._hub_is_reached.cache_clear()
    with pytest.raises(HarnessError) as caught:
        hf("owner/name@v1").read(None)
    assert str(caught.value) == (
        "hf:owner/name is not on this disk, and the Hugging Face Hub cannot be reached."
    )
    assert (caplog.text, capfd.readouterr().err) == ("", "")


@needed
def test_the_resolved_revision_of_the_hub_is_part_of_the_content(monkeypatch):
    import datasets

    class Builder:
        def __init__(self, revision):
            self.hash, self.config = revision * 40, type("Config", (), {"name": "default"})

        def download_and_prepare(self):
            pass

        def as_dataset(self):
            return {"train": table(rows(4))}

    monkeypatch.setattr(arrow, "_hub_is_reached", lambda: True)
    contents = []
    for revision in "ab":
        monkeypatch.setattr(
            datasets, "load_dataset_builder", lambda *a, r=revision, **o: Builder(r)
        )
        dataset = hf(f"owner/name@{revision}")
        assert sizes(dataset.read(None)) == [8, 4, 4]
        contents.append(dataset.content(None))
    assert contents == ["a" * 40 + " default", "b" * 40 + " default"]
