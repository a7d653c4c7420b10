"""Copies of an image, whatever they are called and wherever links lead."""

import os
import shutil

from harness import registry
from harness.dataset import Item
from tests.images.test_own import draw, own, read, table


def folder(tmp_path):
    for part in ("train", "test"):
        for name in ("ash", "elm"):
            for number in range(3):
                draw(tmp_path / part / name / f"{part}{number}.png", size=(10, 3 + number),
                     colour=(number, len(part), len(name)))  # fmt: skip
                (tmp_path / part / name / f"{part}{number}.png").touch()
    return tmp_path


def unlike(tmp_path):
    """Every image another."""
    from PIL import Image

    for number, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        Image.new("RGB", (8, 8), (number, 7, 9)).save(path)
    return tmp_path


def test_no_copies_no_remark(tmp_path):
    assert own(unlike(folder(tmp_path))).notes() == []


def test_a_copy_in_test_is_said_also_through_links(tmp_path):
    home = unlike(folder(tmp_path))
    shutil.copy(home / "train/ash/train0.png", home / "test/ash/other.png")
    (copied,) = own(home).notes()
    assert "copies of 1 image of test are in train or val" in copied
    assert "test/ash/other.png = train/ash/train0.png" in copied
    os.link(home / "train/elm/train0.png", home / "test/elm/hard.png")
    (home / "test/elm/soft.png").symlink_to(home / "train/elm/train1.png")
    (linked,) = own(home).notes()
    assert "copies of 3 images of test" in linked


def test_copies_within_test_and_in_two_classes_are_said(tmp_path):
    home = unlike(folder(tmp_path))
    shutil.copy(home / "test/ash/test0.png", home / "test/ash/again.png")
    shutil.copy(home / "test/ash/test1.png", home / "test/elm/wrong.png")
    said = own(home).notes()
    assert any("copies of 1 image are in two classes, such as 'ash' and 'elm'" in s
               for s in said)  # fmt: skip
    assert any("of test have copies there" in s for s in said)


def test_copies_stay_together_where_the_split_is_made_here(tmp_path):
    home = tmp_path / "data"
    for name in ("ash", "elm"):
        for number in range(8):
            draw(home / name / f"{number}.png")
    unlike(home)
    for number in range(8):
        shutil.copy(home / f"ash/{number}.png", home / f"ash/{number}-copy.png")
    for items in read(home).values():
        paths = {item.path.replace("-copy", "") for item in items if item.name == "ash"}
        assert sum(item.name == "ash" for item in items) == 2 * len(paths)


def test_a_group_in_train_and_in_test_is_said(tmp_path):
    lines = [f"{part}{n}.png,{name},{part},g{n}" for part in ("train", "test")
             for name in "ab" for n in range(2)]  # fmt: skip
    path = table(tmp_path / "list.csv", "path,label,split,group", *lines)
    assert any("groups, " in s and "2 are in test and in train or val" in s
               for s in own(path).notes())  # fmt: skip


def test_a_dataset_that_opens_no_rgb_is_refused_by_name():
    import pytest
    from PIL import Image

    from harness.errors import HarnessError
    from harness.images.source import ImageSource
    from harness.tasks.datasets.emoji import Emoji

    class Grey(Emoji):
        def open(self, item, root):
            return Image.new("L", (4, 4))

    with pytest.raises(HarnessError, match=r"Grey.open gave an image of mode 'L' for 'x'"):
        ImageSource(Grey(), None).open(Item("x", 0, "x"))


def test_remarks_of_a_folder_name_it_once(tmp_path, toy):
    from harness.runs.context import Context
    from harness.runs.plan import Request, plan
    from harness.runs.remarks import remarks

    home = unlike(folder(tmp_path))
    request = Request(methods="zero_shot", tasks="few_shot,efficiency", backbone="toy", shots=[1],
                      datasets=f"folder:{home}", seeds=[1, 2])  # fmt: skip
    said = remarks(plan(request, registry.load(), context=Context(toy)))
    assert said
    assert len(said) == len({*said})


def test_copies_within_train_and_classes_that_are_no_names_are_said(tmp_path):
    home = unlike(folder(tmp_path))
    shutil.copy(home / "train/ash/train0.png", home / "train/ash/again.png")
    for part in ("train", "test"):
        (home / part / "elm").rename(home / part / "nan")
    said = own(home).notes()
    assert any("1 image of train or val have copies there" in s and "each counts" in s
               for s in said)  # fmt: skip
    assert any("'nan' is a class; if it stands for a label that is missing" in s for s in said)
    for part in ("train", "test"):
        for number, name in enumerate(("ash", "nan")):
            (home / part / name).rename(home / part / str(number))
    assert any("they are numbers, which say nothing" in s for s in own(home).notes())


def test_folders_that_may_be_the_classes_are_said(tmp_path):
    for part in ("train", "test"):
        for name in ("photos/ash", "photos/elm", "maps/ash", "maps/elm"):
            draw(tmp_path / part / name / f"{part}.png")
    (said,) = own(unlike(tmp_path)).notes()
    assert "such as maps/ash and maps/elm, and 'maps' is taken for a class" in said
    draw(tmp_path / "train/maps/whole.png", size=(9, 9))  # so the inner folders only sort it
    assert own(tmp_path).notes() == []
