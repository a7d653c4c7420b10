"""Lists of the real datasets that are refused, and what their contents and ids are."""

import hashlib
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.dataset import Classes, Item
from harness.errors import HarnessError
from harness.splits import class_names, read_lists, select
from tests.tasks.test_layouts import SPLIT_FILES, dataset, imagenet, split_file


def parts_of(**changes):
    """Rows of three classes, a, b and c, with one image each in each part."""
    rows = {
        part: [[f"{part}/{name}.jpg", label, name] for label, name in enumerate("abc")]
        for part in ("train", "val", "test")
    }
    return rows | {part: change(rows[part]) for part, change in changes.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": lambda rows: [[p, 2 - i, n] for p, i, n in rows]},
         "dtd: label 2 is the class 'c' in train and 'a' in test."),
        ({"val": lambda rows: [*rows[:2], ["val/d.jpg", 2, "d"]]},
         "dtd: label 2 is the class 'c' in train and 'd' in val."),
        ({"test": lambda rows: rows[:2]}, "dtd: train has the class 'c', and test has not."),
        ({"val": lambda rows: rows[1:]}, "dtd: train has the class 'a', and val has not."),
        ({"test": lambda rows: [*rows, ["test/d.jpg", 3, "d"]]},
         "dtd: test has the class 'd', and train has not."),
        *(
            ({part: lambda rows, label=label: [["x.jpg", label, "a"], *rows[1:]]},
             f"dtd: in {part} of split_zhou_DescribableTextures.json, the class 'a' has the label "
             f"{label!r} for 'x.jpg'.")
            for part, label in (("train", True), ("val", 0.0), ("test", "0"), ("test", None))
        ),
        ({"train": lambda rows: [["x.jpg", 0, None], *rows[1:]]}, "the class None has the label 0"),
        ({"test": lambda rows: [["train/a.jpg", 0, "a"], *rows[1:]]},
         "dtd: 1 images are listed in train and in test: 'train/a.jpg'."),
        ({"val": lambda rows: [["val/b.jpg", 0, "a"], *rows]},
         "dtd: 'val/b.jpg' is listed as 'a' in val and as 'b' in val."),
    ],
)  # fmt: skip
def test_parts_of_a_split_file_that_disagree_are_refused(change, says, tmp_path):
    read = split_file(tmp_path, "dtd", **parts_of(**change))
    with pytest.raises(HarnessError, match=re.escape(says)):
        read_lists("dtd", read, tmp_path)


def test_parts_of_a_split_file_that_agree_are_read(tmp_path):
    lists = read_lists("dtd", split_file(tmp_path, "dtd", **parts_of()), tmp_path)
    assert class_names(lists["test"]) == ["a", "b", "c"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(
    st.tuples(st.sampled_from(["a.jpg", "b.jpg", "", "..", "\0", "\ud800"]) | JSON,
              st.integers(-1, 2) | JSON, st.sampled_from("ab") | JSON),
    max_size=4,
)  # fmt: skip
FILES = st.fixed_dictionaries(dict.fromkeys(("train", "val", "test"), ROWS | JSON)) | JSON


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=FILES.map(json.dumps) | st.text() | st.just("[" * 100_000))
def test_any_text_is_a_split_file_or_is_refused(text, tmp_path):
    read = split_file(tmp_path, "dtd")
    (tmp_path / SPLIT_FILES["dtd"][1]).write_text(text, encoding="utf-8")
    try:
        lists = read_lists("dtd", read, tmp_path)
        for part in lists.values():
            select(part, "all", Classes("dtd", tuple(class_names(part)), "{}")).fingerprint  # noqa: B018
    except HarnessError:
        return
    assert set(lists) == {"train", "val", "test"}


@pytest.mark.parametrize("slow", [5e-5, -1.0])
def test_sizes_are_hashed_in_the_order_of_the_paths_however_the_lists_are_ordered(
    tmp_path, monkeypatch, slow
):
    """Also with 1,001 files more, on a disk that answers slowly."""
    monkeypatch.setattr("harness.dataset.SLOW", slow)
    read = split_file(tmp_path, "dtd")
    for number, name in enumerate("bac"):
        path = tmp_path / read.folder / read.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * number)
    ordered = {"train": [Item("a", 0, "x"), Item("b", 0, "x")], "test": [Item("d", 0, "x")]}
    mixed = {"train": [ordered["test"][0], ordered["train"][1]], "test": ordered["train"][:1] * 2}
    more = [Item(f"e{number:04}", 0, "x") for number in range(1001)]
    lines = ["a\t1", "b\t0", "d\tNone", *(f"{item.path}\tNone" for item in more)]
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    for lists in (ordered, mixed):
        assert read.content_of({**lists, "val": more}, tmp_path)[-16:] == expected


def test_the_content_of_a_published_dataset_changes_with_the_size_of_an_image(tmp_path):
    read = split_file(tmp_path, "dtd")
    folder, _, real, _ = SPLIT_FILES["dtd"]
    before = read.content(tmp_path)
    assert read.content(tmp_path) == before
    with (tmp_path / folder / real).open("ab") as file:
        file.write(b"x")
    changed = read.content(tmp_path)
    (tmp_path / folder / real).unlink()
    assert len({before, changed, read.content(tmp_path)}) == 3


@pytest.mark.parametrize("name", [".DS_Store", "._x_0.JPEG", "Thumbs.db", "desktop.ini", "@eaDir"])
def test_hidden_files_and_folders_of_a_layout_are_passed_over(name, tmp_path):
    below = "imagenetv2-matched-frequency-format-val"
    imagenet(tmp_path, "imagenetv2", below, ("0", "1", "2"))
    before = dataset("imagenetv2").read(tmp_path)
    (tmp_path / "imagenetv2" / below / "0" / name).write_text("x")
    (tmp_path / "imagenetv2" / below / f".{name}").mkdir()
    assert dataset("imagenetv2").read(tmp_path) == before


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("n01440764 tench\nn01443537 goldfish\n",
         "has the folders n01484850, which are no line of classnames.txt."),
        ("n01440764 tench\nn01443537 goldfish\nn01484850 shark\nn01491361 tiger\n",
         "lacks the class folders n01491361."),
        ("n01440764 tench\nn01443537 goldfish\nn01491361 tiger\n",
         "lacks the class folders n01491361 and has n01484850 instead."),
        ("n01440764 tench\nn01440764 trout\n", "line 2, 'n01440764 trout', has an id for the"),
        ("n01440764 tench\nn01443537\n", "line 2, 'n01443537', is no id and a name."),
        ("tench n01440764\n", "line 1, 'tench n01440764', is no id and a name."),
        ("n01443537 goldfish\nn01440764 tench\n", "the ids must be in order"),
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish, carp\n", "several names for a class"),
    ],
)  # fmt: skip
def test_classnames_that_do_not_fit_the_folders_are_refused(lines, says, tmp_path):
    for below in ("images/train", "images/val"):
        imagenet(tmp_path, below=below, classes=("n01440764", "n01443537", "n01484850"))
    (tmp_path / "imagenet" / "classnames.txt").write_text(lines)
    with pytest.raises(HarnessError, match=re.escape(says)):
        dataset("imagenet").read(tmp_path)


def test_classnames_with_a_byte_order_mark_and_tabs_are_read(tmp_path):
    imagenet(tmp_path, "imagenet-sketch", "images", ("n01440764", "n01443537"))
    text = "\ufeffn01440764\ttench\r\nn01443537 \t gold fish\r\n"
    (tmp_path / "imagenet-sketch" / "classnames.txt").write_text(text, encoding="utf-8")
    lists = dataset("imagenet_sketch").read(tmp_path)
    assert class_names(lists["test"]) == ["tench", "gold fish"]
    assert dataset("imagenet_sketch").ids(tmp_path) == ("n01440764", "n01443537")


def test_ids_are_those_of_the_classes_that_are_scored(tmp_path):
    imagenet(tmp_path, "imagenet-rendition", "imagenet-r", ("n01484850", "n01440764"))
    assert dataset("imagenet_r").ids(tmp_path) == ("n01440764", "n01484850")
    imagenet(tmp_path, "imagenetv2", "imagenetv2-matched-frequency-format-val", ("0", "1", "2"))
    assert dataset("imagenetv2").ids(tmp_path) == ("n01440764", "n01443537", "n01484850")
