"""Your own images as folder:PATH and csv:FILE: what is read, what is refused, and every task."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from harness import registry
from harness.cli.commands import main
from harness.config import Binding
from harness.dataset import Classes, Item
from harness.errors import HarnessError
from harness.images.cache import Disk
from harness.records.store import Store
from harness.records.summary import summarise
from harness.runs import engine
from harness.runs import plan as planning
from harness.splits import class_names
from tests.conftest import ROOT

TOY = str(ROOT / "tests" / "toy.py")
COLOURS = {"ash": "grey", "elm": "green", "fir": "blue", "oak": "red"}
PARTS = ("train", "val", "test")


def draw(path, colour="white", size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def grow(folder, count=10, classes=tuple(COLOURS)):
    """A folder a class, with `count` images in each."""
    for name in classes:
        for number in range(count):
            draw(folder / name / f"{number}.png", COLOURS.get(name, "white"))
    return folder


def grow_parts(folder, parts=PARTS, count=2, classes=tuple(COLOURS)):
    for part in parts:
        grow(folder / part, count, classes)
    return folder


def table(path, *lines):
    """A csv file of lines beside one image, i.png."""
    draw(path.parent / "i.png")
    path.write_text("\n".join(lines) + "\n")
    return path


def own(path, **fields):
    kind = "csv" if path.suffix == ".csv" else "folder"
    (plugin,) = registry.load().find("datasets", f"{kind}:{path}")
    return plugin.cls(**plugin.fixed, **fields)


def read(path, **fields):
    return own(path, **fields).read(None)


def refusal(path, **fields):
    with pytest.raises(HarnessError) as caught:
        read(path, **fields)
    return str(caught.value).replace(f"{path}", "DATA")


def counts(lists):
    return {part: dict(Counter(item.name for item in items)) for part, items in lists.items()}


def run(results, *arguments, methods="adapter", tasks="few_shot", shots="2"):
    quick = ["--set", "engine.max_steps=2", "--results", str(results), "--plugin", TOY]
    chosen = ["--methods", methods, "--tasks", tasks, "--shots", shots]
    return main(["run", *chosen, *quick, *map(str, arguments)])


def runs(results):
    return Store(results).records()


def planned(path, *bindings, shots=2, on_bad_image="error"):
    """The only run of adapter on few_shot, as it is planned."""
    request = planning.Request(
        methods="adapter",
        tasks="few_shot",
        datasets=f"folder:{path}",
        backbone="emoji-mini",
        shots=[shots],
        seeds=[1],
        bindings=[Binding("folder", name, value, f"--{name}") for name, value in bindings]
        + [Binding("engine", "on_bad_image", on_bad_image, "--on-bad-image")],
    )
    (only,) = planning.plan(request, registry.load())
    return only


# What is read


def test_class_folders_are_split_five_two_three_with_an_image_of_each_class_in_each_part(tmp_path):
    for name, count in {"ash": 10, "elm": 20, "fir": 3, "oak": 4}.items():
        grow(tmp_path, count, [name])
    assert counts(read(tmp_path)) == {
        "train": {"ash": 5, "elm": 10, "fir": 1, "oak": 2},
        "val": {"ash": 2, "elm": 4, "fir": 1, "oak": 1},
        "test": {"ash": 3, "elm": 6, "fir": 1, "oak": 1},
    }


def test_a_split_takes_each_image_once_and_is_the_same_every_time(tmp_path):
    grow(tmp_path / "a")
    first = read(tmp_path / "a")
    paths = [item.path for items in first.values() for item in items]
    assert sorted(paths) == sorted(f"{name}/{n}.png" for name in COLOURS for n in range(10))
    assert read(tmp_path / "a") == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read(tmp_path / "b") == first
    assert {item.path for item in first["train"]} != {
        f"{name}/{n}.png" for name in COLOURS for n in range(5)
    }


def test_how_a_class_is_split_does_not_depend_on_the_other_classes(tmp_path):
    grow(tmp_path)
    before = read(tmp_path)
    shutil.rmtree(tmp_path / "elm")
    after = read(tmp_path)
    for part in PARTS:
        kept = [item.path for item in before[part] if item.name != "elm"]
        assert [item.path for item in after[part]] == kept


def test_train_val_and_test_folders_are_used_as_they_are(tmp_path):
    grow_parts(tmp_path, count=1, classes=("oak", "ash"))
    draw(tmp_path / "train" / "oak" / "nested" / "deep.JPG")
    assert read(tmp_path) == {
        "train": [
            Item("train/ash/0.png", 0, "ash"),
            Item("train/oak/0.png", 1, "oak"),
            Item("train/oak/nested/deep.JPG", 1, "oak"),
        ],
        "val": [Item("val/ash/0.png", 0, "ash"), Item("val/oak/0.png", 1, "oak")],
        "test": [Item("test/ash/0.png", 0, "ash"), Item("test/oak/0.png", 1, "oak")],
    }


@pytest.mark.parametrize(
    "words", [("train", "val"), ("Training", "validation"), ("TRAIN", "valid")]
)
def test_with_train_and_val_alone_val_is_scored(words, tmp_path):
    grow_parts(tmp_path, words, 1, ("ash", "oak"))
    train, val = words
    assert read(tmp_path) == {
        "train": [Item(f"{train}/ash/0.png", 0, "ash"), Item(f"{train}/oak/0.png", 1, "oak")],
        "val": [],
        "test": [Item(f"{val}/ash/0.png", 0, "ash"), Item(f"{val}/oak/0.png", 1, "oak")],
    }


def test_hidden_files_and_those_that_are_no_images_are_passed_over(tmp_path):
    grow(tmp_path, 3, ("ash", "oak"))
    draw(tmp_path / ".thumbnails" / "0.png")
    draw(tmp_path / "ash" / ".cache" / "0.png")
    draw(tmp_path / "ash" / "._0.png")
    (tmp_path / "ash" / "notes.txt").write_text("not an image")
    (tmp_path / "readme.md").write_text("not a class")
    one = {"ash": 1, "oak": 1}
    assert counts(read(tmp_path)) == {"train": one, "val": one, "test": one}


def test_a_csv_with_a_split_column_is_used_as_it_is(tmp_path):
    rows = ("a/0.png,oak,train", "b/1.png,ash,train", "b/2.png,ash,test", "a/3.png,oak,Test")
    assert read(table(tmp_path / "list.csv", "path,label,split", *rows)) == {
        "train": [Item("b/1.png", 0, "ash"), Item("a/0.png", 1, "oak")],
        "val": [],
        "test": [Item("b/2.png", 0, "ash"), Item("a/3.png", 1, "oak")],
    }


def test_a_csv_without_a_split_column_is_split_as_the_same_class_folders_are(tmp_path):
    grow(tmp_path)
    rows = [f"{name}/{n}.png,{name}" for name in COLOURS for n in range(10)]
    listed = table(tmp_path / "list.csv", "path,label", *reversed(rows))
    assert read(listed) == read(tmp_path)


def test_a_csv_as_spreadsheets_write_it_is_read(tmp_path):
    path = tmp_path / "list.csv"
    text = '\ufeffPath,Label,Split\r\ni.png, ash ,train\r\n,,\r\n\r\ni.png,"oak, red",train\r\n'
    path.write_bytes((text + 'i.png,ash,test\r\ni.png,"oak, red",test\r\n').encode())
    both = {"ash": 1, "oak, red": 1}
    assert counts(read(path)) == {"train": both, "val": {}, "test": both}


def test_labels_that_look_like_numbers_or_nothing_stay_strings(tmp_path):
    labels = ("1", "1.0", "01", "NA", "None", "nan", "true")
    rows = [f"i.png,{label},{part}" for label in labels for part in ("train", "test")]
    lists = read(table(tmp_path / "list.csv", "path,label,split", *rows))
    assert class_names(lists["train"]) == class_names(lists["test"]) == sorted(labels)


def test_a_csv_of_a_thousand_classes_is_planned(tmp_path, capsys):
    rows = (f"{part}{n}.png,class {n},{part}" for n in range(1_000) for part in PARTS)
    path = table(tmp_path / "many.csv", "path,label,split", *rows)
    assert run(tmp_path / "new", "--datasets", f"csv:{path}", "--dry-run", shots="1") == 0
    assert "to run: 1 of 1" in capsys.readouterr().out
    lists = read(path)
    assert {part: len(items) for part, items in lists.items()} == dict.fromkeys(PARTS, 1_000)
    assert len(class_names(lists["test"])) == 1_000


# Lists that cannot be used


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            ["path,label", "i.png,a", "i.png"],
            "DATA, line 3: a path and a label are expected, not 'i.png'.",
        ),
        (
            ["path,label,split", "i.png,a,train", "i.png,,test"],
            "DATA, line 3: a path and a label are expected, not 'i.png,,test'.",
        ),
        (
            ["path,label,split", "i.png,a"],
            "DATA: the split of i.png must be train, val or test, not ''.",
        ),
        (
            ["path,label,split", "i.png,a,dev"],
            "DATA: the split of i.png must be train, val or test, not 'dev'.",
        ),
        (
            ["file,class", "i.png,a"],
            "DATA must begin with a line that names the columns path and label, and perhaps "
            "split and group, once each, not 'file,class'.",
        ),
        (
            ["path,label,split,Label", "i.png,a,train,b"],
            "DATA must begin with a line that names the columns path and label, and perhaps "
            "split and group, once each, not 'path,label,split,Label'.",
        ),
        (
            [],
            "DATA must begin with a line that names the columns path and label, and perhaps "
            "split and group, once each, not ''.",
        ),
        (
            ["path,label,split", "i.png,a,test"],
            "DATA has no train images: give some, or no split at all.",
        ),
        (
            ["path,label", *["i.png,a"] * 3],
            "DATA lists 'i.png' more than once. List each image once, with one class.",
        ),
        (["path,label", "a\0b.png,a"], "DATA: the path 'a\\x00b.png' has a NUL character."),
        (["path,label"], "DATA lists no images."),
        (
            ["path,label,split", "i.png,_,train", "j.png,_,test"],
            "DATA: the class '_' has no name that a prompt could hold. Give it one, in a "
            "--class-names file.",
        ),
        (
            ["path,label,split", "i.png,a,train", "i.png,a,test", "i.png,b,test"],
            "DATA: test has the class 'b', and train has not.",
        ),
        (
            ["path,label,split", "i.png,a,train", "i.png,b,train", "i.png,a,test"],
            "DATA: the class 'b' has no test images.",
        ),
        (
            ["path,label", *[f"{n}.png,a" for n in range(3)], "3.png,b", "4.png,b"],
            "DATA: the class 'b' has 2 images, too few to split into train, val and test. Add "
            "images, or give the split yourself.",
        ),
        *(
            (["path,label", f"{path},a"], f"DATA: the path {path!r} leaves the dataset's folder.")
            for path in ("../i.png", "a/../../i.png", "/etc/passwd")
        ),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_with_the_reason(lines, says, tmp_path):
    assert refusal(table(tmp_path / "list.csv", *lines)) == says


def test_a_csv_that_cannot_be_read_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "list.csv"
    assert refusal(path) == "DATA: No such file or directory."
    path.write_bytes("path,label\ni.png,é\n".encode("latin-1"))
    assert "DATA: 'utf-8' codec can't decode" in refusal(path)


def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(tmp_path):
    assert refusal(tmp_path / "gone") == "DATA cannot be read: No such file or directory."
    empty = tmp_path / "empty"
    draw(empty / "0.png")
    assert refusal(empty) == "DATA has no folders; one a class is expected."
    grow(empty, 3, ["ash"])
    (empty / "oak").mkdir()
    says = "DATA: the class folder DATA/oak has no images. Fill or remove it."
    assert refusal(empty) == says
    (empty / "oak" / "notes.txt").write_text("not an image")
    beside = " that can be read, but 1 .txt"
    assert refusal(empty) == says.replace("no images", f"no images{beside}")


def test_a_class_that_is_too_small_to_split_is_named(tmp_path):
    grow(tmp_path, 3, ["ash"])
    grow(tmp_path, 2, ["oak"])
    assert refusal(tmp_path) == (
        "DATA: the class 'oak' has 2 images, too few to split into train, val and test. Add "
        "images, or give the split yourself."
    )


def test_train_alone_is_refused(tmp_path):
    grow_parts(tmp_path, ["train"])
    assert refusal(tmp_path) == "DATA has train, but neither test nor val."


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("val", "DATA: val has the class 'yew', and train has not."),
        ("test", "DATA: test has the class 'yew', and train has not."),
        ("train", "DATA: the class 'yew' has no test images."),
    ],
)
def test_a_class_that_a_part_lacks_is_named(part, says, tmp_path):
    grow_parts(tmp_path)
    draw(tmp_path / part / "yew" / "0.png")
    assert refusal(tmp_path) == says


def test_classes_that_would_share_a_name_are_all_named(tmp_path):
    grow(tmp_path, 3, ("Red_fox", "hare", "red  fox"))
    assert refusal(tmp_path) == (
        "DATA: the classes 'Red_fox', 'red  fox' would share the name 'Red_fox'. Give each its "
        "own, in a --class-names file."
    )
    names = tmp_path / "names.csv"
    names.write_text("Red_fox,fox\n")
    lists = read(tmp_path, class_names=str(names))
    assert class_names(lists["train"]) == ["fox", "hare", "red  fox"]


# Names and prompts


def test_class_names_and_the_template_make_the_prompts(tmp_path):
    home, names = grow(tmp_path / "trees"), tmp_path / "names.csv"
    names.write_text("oak,Quercus_robur\nash,Fraxinus\n")
    usual = planned(home)
    assert usual.train.classes == Classes(
        "folder:trees", ("ash", "elm", "fir", "oak"), "a photo of a {}.", own=True
    )
    given = planned(home, ("class_names", str(names)), ("template", "a leaf of {}."))
    assert given.train.classes == Classes(
        "folder:trees", ("Fraxinus", "elm", "fir", "Quercus_robur"), "a leaf of {}.", own=True
    )
    assert [item.path for item in given.train.items] == [item.path for item in usual.train.items]


def test_other_names_or_another_template_are_another_run(tmp_path):
    home, names = grow(tmp_path / "trees"), tmp_path / "names.csv"
    names.write_text("oak,Quercus robur\n")
    options = ([], [("class_names", str(names))], [("template", "{}")])
    assert len({planned(home, *given).key for given in options}) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("oka,Quercus\n", "error: NAMES renames 'oka', which is no class of DATA.\n"),
        (
            "oak,Quercus\nash\n",
            "error: NAMES, line 2: 2 values are expected, separated by commas, not 'ash'.\n",
        ),
        (
            "oak,Ash\n",
            "error: DATA: the classes 'ash', 'oak' would share the name 'ash'. Give each its own, "
            "in a --class-names file.\n",
        ),
        (None, "error: DATA needs NAMES: No such file or directory.\n"),
    ],
)
def test_class_names_that_cannot_be_used_are_an_error(text, says, tmp_path, capsys):
    home, names = grow(tmp_path / "trees"), tmp_path / "names.csv"
    if text is not None:
        names.write_text(text)
    assert run(tmp_path / "new", "--datasets", f"folder:{home}", "--class-names", names) == 2
    printed = capsys.readouterr().err
    assert printed.replace(str(names), "NAMES").replace(str(home), "DATA") == says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--template", "a photo of a tree."],
            "template 'a photo of a tree.' has no {} for the class name.",
        ),
        (
            ["--template", "a {}", "--template", "a {}"],
            "template 'a {}' is given twice.",
        ),
        (
            ["--template", "a\n{}"],
            "template 'a\\n{}' has several lines: give each as a template.",
        ),
        (["--datasets", "folder"], "folder needs a path: write folder:PATH."),
        (["--datasets", "csv"], "csv needs a path: write csv:PATH."),
        *(
            (
                ["--datasets", text],
                f"{text!r} is no dataset. Allowed: csv:PATH, folder:PATH, hf:PATH, "
                "torchvision:PATH, wds:PATH.",
            )
            for text in ("nosuch:a", "toy:a", "folder:")
        ),
        (
            ["--datasets", "toy", "--template", "a {}."],
            "--template sets folder.template, which nothing here reads: no method, task or dataset "
            "of this command has it, or what has it fixes its value.",
        ),
    ],
)
def test_a_request_that_cannot_be_met_says_what_to_write(arguments, says, tmp_path, capsys):
    assert run(tmp_path / "new", *arguments) == 2
    assert capsys.readouterr().err == f"error: {says}\n"
    assert not (tmp_path / "new").exists()


def test_a_wildcard_selects_no_dataset_that_lacks_its_path():
    known = registry.load()
    everything = {plugin.name for plugin in known.find("datasets", "*")}
    assert set(known.plugins["datasets"]) - everything == {
        "csv",
        "folder",
        "hf",
        "torchvision",
        "wds",
    }
    with pytest.raises(HarnessError, match=r"unknown dataset 'folde\?'"):
        known.find("datasets", "folde?")


def test_two_folders_of_one_name_are_a_collision_that_names_both(tmp_path, capsys):
    one, two = grow(tmp_path / "a" / "trees"), grow(tmp_path / "b" / "trees")
    assert run(tmp_path / "new", "--datasets", f"folder:{one},folder:{two}") == 2
    assert capsys.readouterr().err == (
        f"error: {one} and {two} would both be called folder:trees. Rename one.\n"
    )


def test_a_path_given_in_two_ways_is_one_dataset(tmp_path, monkeypatch):
    grow(tmp_path / "trees")
    monkeypatch.chdir(tmp_path)
    ways = f"folder:trees,folder:{tmp_path}/trees,folder:./a/../trees/"
    found = registry.load().find("datasets", ways)
    assert [(plugin.name, plugin.fixed) for plugin in found] == [
        ("folder:trees", {"path": f"{tmp_path}/trees"})
    ]


# Links


def test_a_link_to_a_file_outside_the_folder_is_refused(tmp_path):
    home, outside = grow(tmp_path / "trees"), draw(tmp_path / "secret.png")
    (home / "oak" / "link.png").symlink_to(outside)
    assert refusal(home) == (
        f"DATA/oak/link.png is a link that leaves {home}. Put the images into the folder, or give "
        "the folder that holds them."
    ).replace(str(home), "DATA")


def test_a_class_folder_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    home = grow(tmp_path / "trees")
    grow(tmp_path / "elsewhere", 3, ["yew"])
    (home / "yew").symlink_to(tmp_path / "elsewhere" / "yew")
    assert "DATA/yew/0.png is a link that leaves DATA." in refusal(home)


def test_a_csv_path_through_a_link_out_of_the_folder_is_refused(tmp_path):
    grow(tmp_path / "elsewhere", 3, ["yew"])
    path = table(tmp_path / "lists" / "list.csv", "path,label", *["link/0.png,yew"] * 3)
    (path.parent / "link").symlink_to(tmp_path / "elsewhere" / "yew")
    assert "lists/link/0.png is a link that leaves" in refusal(path)


def test_links_inside_the_folder_and_to_it_are_followed(tmp_path):
    home = grow(tmp_path / "trees", 3, ["ash"])
    grow(home / ".store", 3, ["yew"])
    (home / "yew").symlink_to(Path(".store") / "yew")
    (tmp_path / "link").symlink_to(home)
    one = {"ash": 1, "yew": 1}
    assert counts(read(home)) == {"train": one, "val": one, "test": one}
    assert read(tmp_path / "link") == read(home)


def test_links_to_a_folder_above_them_do_not_loop(tmp_path):
    home = grow(tmp_path / "trees", 3, ("ash", "oak"))
    before = read(home)
    (home / "ash" / "root").symlink_to(home)
    (home / "oak" / "deep").mkdir()
    (home / "oak" / "deep" / "itself").symlink_to(home / "oak")
    assert read(home) == before


# Images


@pytest.mark.parametrize(
    ("mode", "colour", "file", "expected"),
    [
        ("L", 77, "x.png", (77, 77, 77)),
        ("1", 1, "x.png", (255, 255, 255)),
        ("LA", (77, 255), "x.png", (77, 77, 77)),
        ("P", 3, "x.png", (90, 100, 110)),
        ("RGBA", (10, 20, 30, 255), "x.png", (10, 20, 30)),
        ("CMYK", (255, 0, 0, 0), "x.tif", (0, 255, 255)),
        ("I;16", 257 * 200, "x.png", (200, 200, 200)),
        ("I;16", 65535, "x.tif", (255, 255, 255)),
        ("I;16", 300, "x.png", (1, 1, 1)),
    ],
)
def test_an_image_of_any_mode_is_opened_as_rgb(mode, colour, file, expected, tmp_path):
    image = Image.new(mode, (12, 10), colour)
    if mode == "P":
        image.putpalette([10 * i for i in range(12)])
    image.save(tmp_path / file)
    opened = own(tmp_path).open(Item(file, 0, "x"), None)
    assert (opened.mode, opened.size) == ("RGB", (12, 10))
    assert opened.getcolors() == [(120, expected)]


def test_a_photograph_that_was_taken_sideways_is_turned_upright(tmp_path):
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: the file's left column is the picture's top row
    image.save(tmp_path / "x.jpg", exif=exif)
    opened = own(tmp_path).open(Item("x.jpg", 0, "x"), None)
    assert opened.size == (20, 40)
    (red, _, a), (b, _, blue) = (opened.getpixel((10, y)) for y in (4, 36))
    assert min(red, blue) > 200
    assert max(a, b) < 60


def test_content_stays_where_the_folder_moves_and_changes_with_an_images_bytes(tmp_path):
    home = grow(tmp_path / "a" / "trees", 3)
    shutil.copytree(home, tmp_path / "b" / "leaves")
    before = own(home).content(None)
    assert own(tmp_path / "b" / "leaves").content(None) == before
    one, other = home / "oak" / "0.png", home / "ash" / "0.png"
    times = one.stat()
    content = one.read_bytes()
    one.write_bytes(content[:-20] + bytes(reversed(content[-20:])))  # the same size
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = own(home).content(None)
    assert changed != before
    one.write_bytes(content)
    assert own(home).content(None) == before
    one.rename(home / "x")
    other.rename(one)
    (home / "x").rename(other)
    assert own(home).content(None) not in (before, changed)


def test_a_run_on_a_folder_that_was_moved_is_done_already(tmp_path, capsys):
    grow(tmp_path / "a" / "trees")
    run(tmp_path / "runs", "--datasets", f"folder:{tmp_path}/a/trees")
    shutil.move(tmp_path / "a", tmp_path / "b")
    capsys.readouterr()
    run(tmp_path / "runs", "--datasets", f"folder:{tmp_path}/b/trees")
    assert "to run: 0 of 1" in capsys.readouterr().out
    draw(tmp_path / "b" / "trees" / "oak" / "0.png", size=(120, 100))
    run(tmp_path / "runs", "--datasets", f"folder:{tmp_path}/b/trees", "--dry-run")
    assert "to run: 1 of 1" in capsys.readouterr().out


def test_a_class_with_fewer_images_than_shots_gives_all_and_the_plan_says_so(tmp_path, capsys):
    home = grow_parts(tmp_path / "trees", count=4)
    for name in ("ash", "oak"):
        (home / "train" / name / "0.png").unlink()
    drawn = planned(home, shots=4).train.items
    assert Counter(item.name for item in drawn) == {"ash": 3, "elm": 4, "fir": 4, "oak": 3}
    run(tmp_path / "new", "--datasets", f"folder:{home}", "--dry-run", shots="4")
    assert (
        "few images, folder:trees: 2 classes have fewer than 4 training images, such as 'ash' with "
        "3: all are used."
    ) in capsys.readouterr().out.replace("\n", " ")


def truncate(path):
    path.write_bytes(path.read_bytes()[:40])


@pytest.fixture
def fits(monkeypatch):
    """A list that grows by one with every fit that is begun."""
    begun, usual = [], engine.fit

    def counted(*arguments, **named):
        begun.append(1)
        return usual(*arguments, **named)

    monkeypatch.setattr(engine, "fit", counted)
    return begun


@pytest.mark.parametrize("bad", ["train/elm/1.png", "test/oak/0.png"])
def test_a_truncated_image_stops_the_command_before_the_first_fit(bad, fits, tmp_path, capsys):
    home = grow_parts(tmp_path / "trees")
    truncate(home / bad)
    assert run(tmp_path / "runs", "--datasets", f"folder:{home}") == 2
    printed = capsys.readouterr().err
    assert f"{home}/{bad} cannot be read as an image" in printed
    assert "--on-bad-image skip" in printed
    assert runs(tmp_path / "runs") == []
    assert fits == []


@pytest.mark.parametrize("limit", ["1", "0"])
def test_truncated_images_that_are_skipped_are_recorded_and_left_out(limit, fits, tmp_path, capsys):
    home = grow_parts(tmp_path / "trees")
    truncate(home / "train" / "elm" / "1.png")
    truncate(home / "test" / "oak" / "0.png")
    options = ("--datasets", f"folder:{home}", "--on-bad-image", "skip", "--cache-limit", limit)
    assert run(tmp_path / "runs", *options) == 0
    (record,) = runs(tmp_path / "runs")
    assert record.run["skipped"] == {"train": ["train/elm/1.png"], "test": ["test/oak/0.png"]}
    assert record.scores["test"]["total"] == 7
    assert record.cost["evaluated_images"] == 7
    assert len(fits) == 1
    printed = capsys.readouterr().out.replace("\n", " ")
    for part, path in (("train", "train/elm/1.png"), ("test", "test/oak/0.png")):
        assert (
            f"skipped, folder:trees, {part}: 1 image that cannot be read, such as {path}."
        ) in printed


def test_a_class_without_a_test_image_that_can_be_read_is_named(fits, tmp_path, capsys):
    home = grow_parts(tmp_path / "trees")
    for path in (home / "test" / "oak").iterdir():
        truncate(path)
    options = ("--datasets", f"folder:{home}", "--on-bad-image", "skip")
    assert run(tmp_path / "runs", *options) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "not scored, folder:trees, test: no image of the class 'oak' can be read." in printed


def test_another_image_of_the_class_takes_the_place_of_one_that_is_skipped(tmp_path):
    home = grow_parts(tmp_path / "trees", count=4)
    usual = planned(home, shots=2)
    drawn = [item.path for item in usual.train.items if item.name == "elm"]
    truncate(home / drawn[0])
    run = planned(home, shots=2, on_bad_image="skip")
    mine = [item.path for item in run.train.items if item.name == "elm"]
    assert len({*mine}) == 2
    assert drawn[0] not in mine
    assert drawn[1] in mine
    assert run.train.skipped == (drawn[0],)
    others = [item.path for item in usual.train.items if item.name != "elm"]
    assert [item.path for item in run.train.items if item.name != "elm"] == others


def test_an_image_that_takes_a_place_is_not_trained_on_and_chosen_on(tmp_path):
    home = grow_parts(tmp_path / "trees", count=10)
    shutil.rmtree(home / "val", ignore_errors=True)  # val is drawn from what train leaves
    usual = planned(home, shots=2)
    for part in ("training", "validation"):
        drawn = usual.context.split(usual.run, "folder:trees", "all", part)
        truncate(home / next(item.path for item in drawn.items if item.name == "elm"))
    run = planned(home, shots=2, on_bad_image="skip")
    trained, chosen_on = (
        {item.path for item in run.context.split(run.run, "folder:trees", "all", part).items}
        for part in ("training", "validation")
    )
    assert len(trained) == len(chosen_on) == 2 * len(run.train.classes.names)
    assert not trained & chosen_on


def test_skipping_changes_nothing_where_every_image_can_be_read(tmp_path, capsys):
    home = grow_parts(tmp_path / "trees")
    run(tmp_path / "runs", "--datasets", f"folder:{home}")
    capsys.readouterr()
    run(tmp_path / "runs", "--datasets", f"folder:{home}", "--on-bad-image", "skip")
    assert "to run: 0 of 1" in capsys.readouterr().out
    (record,) = runs(tmp_path / "runs")
    assert "skipped" not in record.run


def test_an_image_that_was_repaired_is_no_longer_skipped(tmp_path):
    home = grow_parts(tmp_path / "trees")
    truncate(home / "test" / "oak" / "0.png")
    options = ("--datasets", f"folder:{home}", "--on-bad-image", "skip")
    run(tmp_path / "runs", *options)
    draw(home / "test" / "oak" / "0.png", "red")
    run(tmp_path / "runs", *options)
    totals = {
        json.dumps(record.run.get("skipped")): record.scores["test"]["total"]
        for record in runs(tmp_path / "runs")
    }
    assert totals == {'{"test": ["test/oak/0.png"]}': 7, "null": 8}


def test_a_file_that_is_rewritten_is_not_taken_from_the_cache(tmp_path):
    home, disk = grow_parts(tmp_path / "trees", count=1), Disk(tmp_path / "cache", 2**30)
    only = planned(home, shots=1)
    only.context.cache.disk = disk
    place = [item.path for item in only.train.items].index("train/oak/0.png")
    only.source(only.train).opened(only.train)
    stamp = (home / "train" / "oak" / "0.png").stat().st_mtime_ns
    draw(home / "train" / "oak" / "0.png", "yellow")
    os.utime(home / "train" / "oak" / "0.png", ns=(stamp + 1, stamp + 1))
    again = planned(home, shots=1)
    again.context.cache.disk = disk
    image = again.source(again.train).opened(again.train)[place]
    assert image.getpixel((0, 0)) == (255, 255, 0)


# Tasks


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """Both methods and two tasks on a folder and a csv; the folder is also the source."""
    folder = tmp_path_factory.mktemp("own")
    trees = grow(folder / "trees")
    grow_parts(folder / "lists")
    rows = [
        f"{part}/{name}/{number}.png,{name},{part}"
        for part in PARTS
        for name in ("ash", "elm", "fir", "oak")
        for number in range(2)
    ]
    leaves = table(folder / "lists" / "leaves.csv", "path,label,split", *rows)
    options = ("--datasets", f"folder:{trees},csv:{leaves}")
    source = ("--set", f"cross_dataset.source=folder:{trees}")
    every = "few_shot,cross_dataset"
    assert run(folder / "runs", *options, *source, methods="zero_shot,adapter", tasks=every) == 0
    return folder / "runs"


def test_a_folder_and_a_csv_take_part_in_a_task_beside_each_other(everywhere):
    totals = {
        (r.run["method"], r.run["task"], r.run["dataset"]): {
            name: score["total"] for name, score in r.scores.items()
        }
        for r in runs(everywhere)
        if r.status == "done"
    }
    expected = {
        ("few_shot", "folder:trees"): {"test": 12},
        ("few_shot", "csv:leaves"): {"test": 8},
        ("cross_dataset", "folder:trees"): {"test": 12},
        ("cross_dataset", "csv:leaves"): {"test": 8},
    }
    assert totals == {
        (method, *key): value
        for method in ("zero_shot", "adapter")
        for key, value in expected.items()
    }


def test_a_folder_that_is_the_source_is_fitted_once_and_left_out_of_the_average(everywhere):
    records = runs(everywhere)
    mine = [r for r in records if r.run["task"] == "cross_dataset" and r.run["method"] == "adapter"]
    assert {r.run["task_fields"]["source"] for r in mine} == {"folder:trees"}
    assert len({r.fit for r in mine}) == 1
    assert sorted(bool(r.cost.get("fit_shared")) for r in mine) == [False, True]
    rows = summarise(records).set_index(["task", "label", "dataset"])
    for method in ("zero_shot", "adapter"):
        average, target = (
            rows.loc["cross_dataset", method, name]["test"] for name in ("average", "csv:leaves")
        )
        assert average == target
    averaged = rows.loc["cross_dataset", "adapter"]["averaged"].drop("average").to_dict()
    assert averaged == {"csv:leaves": True, "folder:trees": False}


def test_a_folder_is_the_target_of_a_source_that_is_built_in(tmp_path):
    home = grow(tmp_path / "trees")
    source = ("--set", "cross_dataset.source=toy")
    assert run(tmp_path / "r", "--datasets", f"folder:{home}", *source, tasks="cross_dataset") == 0
    (record,) = runs(tmp_path / "r")
    assert record.scores["test"]["total"] == 12
    weights = Store(tmp_path / "r").weights(record.fit)
    assert weights.exists()
    assert torch.is_tensor(next(iter(_tensors(weights).values())))


def _tensors(path):
    from safetensors.torch import load_file

    return load_file(str(path))


@pytest.mark.parametrize(
    ("classes", "task", "says"),
    [
        (1, "few_shot", "a single class, 'ash': every answer would be right. At least 2"),
        (2, "base2new", "a single class among its base classes, 'ash'"),
        (3, "base2new", "a single class among its new classes, 'fir'"),
    ],
)
def test_a_question_with_one_answer_is_refused(classes, task, says, tmp_path, capsys):
    home = grow(tmp_path / "trees", 3, list(COLOURS)[:classes])
    assert run(tmp_path / "new", "--datasets", f"folder:{home}", tasks=task) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
