"""Which folders are splits, which lists are refused, and what is left out of them."""

import os
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import registry
from harness.errors import HarnessError
from harness.images.own import natural
from harness.splits import class_names, read_lists
from tests.images.test_own import (
    COLOURS,
    counts,
    draw,
    grow,
    grow_parts,
    own,
    planned,
    read,
    refusal,
    run,
    runs,
    table,
)

# Folders that are splits


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", "dev", "Testing"),
        ("TRAIN", "VALID", "TEST"),
        ("training", "Validation", "eval"),
        ("Train", "val", "Evaluation"),
    ],
)
def test_the_usual_names_of_splits_are_known_in_any_case(train, val, test, tmp_path):
    grow_parts(tmp_path, (train, val, test))
    two = dict.fromkeys(COLOURS, 2)
    lists = read(tmp_path)
    assert counts(lists) == {"train": two, "val": two, "test": two}
    for part, folder in zip(("train", "val", "test"), (train, val, test), strict=True):
        assert all(item.path.startswith(f"{folder}/") for item in lists[part])


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (("train", "test", "extra"), "DATA holds test, train beside extra. If they are splits"),
        (("train", "bus", "car"), "DATA holds train beside bus, car. If they are splits"),
        (("train", "Train", "test"), "DATA has two folders for train: Train and train. Keep one."),
        (("train", "val", "valid"), "DATA has two folders for val: val and valid. Keep one."),
        (("train", "test", "eval"), "DATA has two folders for test: eval and test. Keep one."),
        (("val", "test"), "DATA has test, val, but no train."),
        (
            ("data/train", "data/test"),
            "DATA: data holds test, train, as a split does: give folder:",
        ),
        (("a/Training", "a/Testing", "b/Training", "b/Testing"), "put the folders of the splits"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(folders, says, tmp_path):
    grow_parts(tmp_path, folders)
    assert says in refusal(tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [("seg_train", "seg_test"), ("train2017", "val2017"), ("TRAIN (1)", "TEST (1)"),
     ("imagenet_train", "imagenet_val"), ("asl_alphabet_train", "asl_alphabet_test")],
)  # fmt: skip
def test_splits_whose_names_say_more_are_known_side_by_side(train, test, tmp_path):
    grow_parts(tmp_path, (train, test))
    two = dict.fromkeys(COLOURS, 2)
    assert counts(read(tmp_path)) == {"train": two, "val": {}, "test": two}


def test_a_third_folder_beside_such_splits_is_no_class(tmp_path):
    grow_parts(tmp_path, ("seg_train", "seg_test", "seg_pred"))
    assert "DATA holds seg_test, seg_train beside seg_pred. If they are" in refusal(tmp_path)


def test_classes_whose_names_hold_the_words_of_splits_are_classes(tmp_path):
    grow(tmp_path, 3, ("bullet train", "test tube"))
    assert counts(read(tmp_path))["train"] == {"bullet train": 1, "test tube": 1}


def test_a_class_folder_may_hold_folders_of_other_names(tmp_path):
    for name in ("ash", "oak"):
        for number in range(3):
            draw(tmp_path / name / f"day {number}" / "0.png")
    assert counts(read(tmp_path))["train"] == {"ash": 1, "oak": 1}


# Files that are left out


def left_out(path):
    return own(path).left_out(None)


def test_files_of_an_unread_suffix_are_counted_by_it(tmp_path):
    grow(tmp_path, 3, ("ash", "oak"))
    for name in ("0.PSD", "1.psd", "2.pdf", "3.mpg", "4.eps", "5.h5", "noname", "Thumbs.db", ".x"):
        (tmp_path / "ash" / name).write_text("x")
    draw(tmp_path / "0.png")
    assert counts(read(tmp_path))["train"] == {"ash": 1, "oak": 1}
    assert left_out(tmp_path) == {
        ".eps": 1, ".h5": 1, ".mpg": 1, ".pdf": 1, ".png in no class folder": 1, ".psd": 2,
        "without suffix": 1,
    }  # fmt: skip


def test_images_beside_the_class_folders_of_a_split_are_counted(tmp_path):
    grow_parts(tmp_path, ("train", "test"))
    draw(tmp_path / "train" / "0.png")
    assert left_out(tmp_path) == {".png in no class folder": 1}


def test_what_is_left_out_is_in_the_plan_in_verify_and_in_the_record(tmp_path, capsys):
    home = grow(tmp_path / "trees", 3, ("ash", "oak"))
    (key,) = {planned(home).key}
    for number in range(5):
        (home / "ash" / f"{number}.psd").write_text("x")
    assert planned(home).key == key
    says = "left out, folder:trees: 5 .psd; not read as images."
    assert run(tmp_path / "runs", "--datasets", f"folder:{home}", shots="1") == 0
    assert says in capsys.readouterr().out
    (record,) = runs(tmp_path / "runs")
    assert record.provenance["left_out"] == {"folder:trees": {".psd": 5}}
    from harness.cli.commands import main

    main(["data", "verify", f"folder:{home}"])
    assert says in capsys.readouterr().out


# Classes


def test_numbered_classes_are_in_natural_order_and_the_plan_says_which_halves(tmp_path, capsys):
    home = grow(tmp_path / "n", 3, ("1", "2", "10", "11"))
    assert class_names(read(home)["test"]) == ["1", "2", "10", "11"]
    run(tmp_path / "new", "--datasets", f"folder:{home}", "--dry-run", tasks="base2new", shots="1")
    printed = capsys.readouterr().out.replace("\n", " ")
    assert (
        "halves, folder:n, in natural order: base '1' to '2' (2), new '10' to '11' (2)." in printed
    )


def test_natural_order_counts_whatever_stands_around_the_number():
    names = ["a10b", "a2b", "b", "a02", "a", "", "10", "9", "9" * 5000, "x1y10", "x1y9"]
    ordered = ["", "9", "10", "9" * 5000, "a", "a02", "a2b", "a10b", "b", "x1y9", "x1y10"]
    assert sorted(names, key=natural) == ordered


def test_two_spellings_of_one_letter_are_one_class(tmp_path):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("café", "thé"):
            draw(tmp_path / part / unicodedata.normalize(form, name) / "0.png")
    lists = read(tmp_path)
    assert class_names(lists["train"]) == class_names(lists["test"]) == ["café", "thé"]


def test_a_class_folder_whose_name_is_not_utf_8_is_refused(tmp_path):
    grow(tmp_path, 3, ("ash", "oak"))
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")  # noqa: PTH102 - of bytes
    assert "the folder name '\\udcff' is not UTF-8. Rename it." in refusal(tmp_path)


def test_a_comma_in_a_path_is_kept_where_there_is_such_a_path(tmp_path):
    one, two = grow(tmp_path / "a,b", 3), grow(tmp_path / "c", 3)
    known = registry.load()
    found = known.find("datasets", f"folder:{one},emoji_food,folder:{two}")
    assert [p.name for p in found] == ["folder:a,b", "emoji_food", "folder:c"]
    assert [p.name for p in known.find("datasets", "folder:a,b,emoji_food")] == [
        "folder:a,b",
        "emoji_food",
    ]


def test_the_embedded_backbone_is_said_to_know_no_photographs(tmp_path, capsys):
    home = grow(tmp_path / "trees")
    run(tmp_path / "new", "--datasets", f"folder:{home}", "--dry-run")
    assert (
        "emoji-mini was trained on emoji and icons and knows no photographs"
        in capsys.readouterr().out
    )
    run(tmp_path / "new", "--datasets", "toy", "--dry-run")
    assert "photographs" not in capsys.readouterr().out


# csv


def rows(tmp_path, *lines):
    path = tmp_path / "list.csv"
    for part in ("train", "test"):
        draw(tmp_path / part / "a.png")
        draw(tmp_path / part / "b.png", "red")
    path.write_text("\n".join(lines) + "\n")
    return path


PLAIN = [f"{part}/{name}.png,{name},{part}" for part in ("train", "test") for name in "ab"]


@pytest.mark.parametrize(
    ("header", "write"),
    [
        ("split,label,path", "{2},{1},{0}"),
        ("path,source,label,width,split", "{0},web,{1},40,{2}"),
        ("path,label,split", "{home}/{0},{1},{2}"),
        ("path,label,split", "{windows},{1},{2}"),
        ("Path, Label ,SPLIT,", "{0},{1},{2},"),
    ],
    ids=["order", "further columns", "absolute", "backslashes", "spaces"],
)
def test_a_csv_may_be_written_in_other_ways(header, write, tmp_path):
    expected = read(rows(tmp_path, "path,label,split", *PLAIN))
    lines = []
    for line in PLAIN:
        path, label, part = line.split(",")
        windows = path.replace("/", "\\")
        lines.append(write.format(path, label, part, home=tmp_path, windows=windows))
    assert read(rows(tmp_path, header, *lines)) == expected


def test_a_value_more_than_there_are_columns_is_refused(tmp_path):
    path = rows(tmp_path, "path,label", "a.png,crane, bird", "b.png,crane, machine")
    assert "line 2: 3 values for 2 columns" in refusal(path)


def test_columns_that_are_not_read_are_named(tmp_path):
    lines = [f"{line},1" for line in PLAIN]
    path = rows(tmp_path, "path,label,split,fold", *lines)
    assert f"not read, of {path}: the columns 'fold'." in own(path).notes()
    path = rows(tmp_path, "path,label,split", *PLAIN)
    assert not any("not read" in each for each in own(path).notes())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train/a.png,a,test", "1 images are listed in train and in test: 'train/a.png'."),
        ("train/./a.png,a,test", "1 images are listed in train and in test: 'train/./a.png'."),
        ("train/a.png,a,val", "1 images are listed in train and in val"),
        ("train/a.png,b,train", "'train/a.png' is listed as 'a' in train and as 'b' in train."),
        ("train//a.png,b,test", "'train//a.png' is listed as 'a' in train and as 'b' in test."),
    ],
)
def test_an_image_that_is_listed_twice_stops_run_and_verify(line, says, tmp_path, capsys):
    from harness.cli.commands import main

    path = rows(tmp_path, "path,label,split", *PLAIN, line)
    assert run(tmp_path / "new", "--datasets", f"csv:{path}") == 2
    first = capsys.readouterr().err
    assert main(["data", "verify", f"csv:{path}"]) == 2
    assert first == capsys.readouterr().err
    assert says in " ".join(first.split())


@pytest.mark.parametrize("text", ["oak,Quercus,x\n", "oak\n", "oak,\n", "oak,a\noak,b\n"])
def test_class_names_of_another_shape_are_refused(text, tmp_path):
    home, names = grow(tmp_path / "trees"), tmp_path / "names.csv"
    names.write_text(text)
    says = refusal(home, class_names=str(names))
    assert "2 values are expected" in says or "renames 'oak' twice" in says


def test_a_pipe_in_place_of_a_list_is_refused(tmp_path):
    os.mkfifo(tmp_path / "list.csv")
    assert refusal(tmp_path / "list.csv") == "DATA: it is no regular file."


ANY = st.text(st.characters(codec=None), max_size=60)
CELLS = st.sampled_from(["path", "label", "split", "train", "test", "val", "a.png", "b.png", "..",
                         "/x", "\\", "\0", '"', "\ufeff", "\ud800", ""]) | ANY  # fmt: skip
TABLES = st.lists(st.lists(CELLS, max_size=5).map(",".join), max_size=9).map("\n".join)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(text=TABLES | ANY | TABLES.map(lambda rest: f"path,label,split\n{rest}"))
def test_any_text_is_a_list_or_is_refused(text, tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        lists = read_lists("csv:list", own(path), None)
    except HarnessError:
        return
    assert set(lists) == {"train", "val", "test"}


@QUICK
@given(text=TABLES | ANY)
def test_any_text_renames_classes_or_is_refused(text, tmp_path):
    home, names = table(tmp_path / "list.csv", "path,label,split", *PLAIN), tmp_path / "names.csv"
    names.write_bytes(text.encode(errors="surrogatepass"))
    try:
        lists = read(home, class_names=str(names))
    except HarnessError:
        return
    assert len(class_names(lists["train"])) == 2


@pytest.mark.parametrize("end", ["_set", "-data", " images", "set"])
def test_split_folders_may_say_that_they_are_sets(end, tmp_path):
    for part in ("training", "test"):
        grow(tmp_path / f"{part}{end}", 2)
    lists = own(tmp_path).read(None)
    assert {part: len(items) for part, items in lists.items()} == {"train": 8, "val": 0, "test": 8}


def test_class_names_that_differ_in_what_nobody_sees_are_refused(tmp_path):
    grow(tmp_path, 4, ("oak", "oak\u200b", "elm"))
    with pytest.raises(HarnessError, match="would share the name"):
        own(tmp_path).read(None)
