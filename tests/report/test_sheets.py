"""Contact sheets: which images, how many, and how large they become."""

import pytest

from harness.records.store import Store
from harness.report import content, page, sheets
from tests.records import worlds

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    worlds.write(folder, {"coop": 0.5, "lora": 0.8}, images=40)
    return Store(folder).records()


def test_each_class_has_three_images_that_lie_apart(records):
    asked = list[tuple[str, tuple[str, ...]]]()
    found = sheets.sheets(records, lambda name, paths: asked.append((name, (*paths,))) or "data:x")
    assert [(each["dataset"], each["of"]) for each in found] == [("toy_a", 4), ("toy_b", 4)]
    assert [each["name"] for each in found[0]["classes"]] == [f"class {k}" for k in range(4)]
    assert asked[1] == ("toy_a", ("1/1.png", "1/13.png", "1/25.png"))
    assert len(asked) == 8  # each class once, however many runs scored it


def test_a_sheet_ends_where_its_room_does(records):
    picture = "x" * (sheets.MOST // 3)
    found = sheets.sheets(records, lambda *_: picture)
    assert [len(each["classes"]) for each in found] == [3, 3]
    text = page.page(content.report(records) | {"sheets": found})
    assert "3 of 4 classes: the others" in text


def test_images_that_may_not_be_shown_are_said_to_be_missing(records):
    found = sheets.sheets(records, lambda *_: None)
    text = page.page(content.report(records) | {"sheets": found})
    assert text.count("No images: they may not be shown without") == 2


def test_names_of_classes_are_texts(records):
    found = [{"dataset": HOSTILE, "of": 1, "classes": [{"name": HOSTILE, "picture": "data:x"}]}]
    text = page.page(content.report(records) | {"sheets": found})
    assert HOSTILE not in text
    assert "alert(1)" in text
