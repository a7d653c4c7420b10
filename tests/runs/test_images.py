"""Images that cannot be read are found once, before anything is fitted."""

import pytest
from PIL import Image

from harness.errors import HarnessError
from harness.images.source import ImageSource
from harness.records.store import Store
from tests.images.test_own import PARTS, draw, grow_parts, run, runs, truncate

BAD = ("train/ash/0.png", "train/oak/1.png", "test/elm/0.png")


@pytest.fixture
def trees(tmp_path):
    """Four classes of two images a part, three of which are damaged."""
    home = grow_parts(tmp_path / "trees")
    for path in BAD:
        truncate(home / path)
    return home


@pytest.mark.parametrize("limit", ["1", "0"])
def test_all_bad_images_of_all_runs_are_in_one_list(limit, trees, tmp_path, capsys):
    options = ("--datasets", f"folder:{trees}", "--cache-limit", limit)
    assert (
        run(tmp_path / "r", *options, methods="zero_shot,adapter", tasks="few_shot,base2new") == 2
    )
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert lines[0] == "error: 3 images cannot be read; nothing was run."
    assert lines[4] == (
        "Repair or remove them, or leave them out with --on-bad-image skip (in Python the setting "
        "engine.on_bad_image)."
    )
    assert sorted(line.split(" ")[1] for line in lines[1:4]) == sorted(f"{trees}/{p}" for p in BAD)
    assert len(lines) == 5
    assert runs(tmp_path / "r") == []


def test_a_dry_run_looks_if_it_is_asked_to(trees, tmp_path, capsys):
    options = ("--datasets", f"folder:{trees}", "--dry-run")
    assert run(tmp_path / "r", *options) == 0
    assert run(tmp_path / "r", *options, "--check-images") == 2
    assert "3 images cannot be read" in capsys.readouterr().err
    for path in BAD:
        draw(trees / path, "red")
    assert run(tmp_path / "r", *options, "--check-images") == 0
    assert "Every image can be read." in capsys.readouterr().out
    assert not (tmp_path / "r").exists()


def test_an_image_is_opened_once_for_all_methods_and_seeds(tmp_path, monkeypatch):
    home, opened, usual = grow_parts(tmp_path / "trees"), [], ImageSource.open

    def counted(source, item):
        opened.append(item.path)
        return usual(source, item)

    monkeypatch.setattr(ImageSource, "open", counted)
    monkeypatch.setattr(
        "harness.runs.executors.local.estimated_seconds", lambda *_: 0.0
    )  # opens some
    options = ("--datasets", f"folder:{home}", "--dry-run", "--check-images", "--seeds", "1-3")
    assert run(tmp_path / "r", *options, methods="zero_shot,adapter", tasks="few_shot") == 0
    assert len(opened) == 16
    assert run(tmp_path / "r", *options, methods="zero_shot,adapter", tasks="few_shot") == 0
    assert len(opened) == 16


@pytest.mark.parametrize("shots", ["1", "2"])
def test_skipping_that_leaves_a_class_nothing_to_train_on_is_refused(shots, tmp_path, capsys):
    home = grow_parts(tmp_path / "trees")
    for number in range(2):
        truncate(home / "train" / "elm" / f"{number}.png")
    options = ("--datasets", f"folder:{home}", "--on-bad-image", "skip")
    assert run(tmp_path / "r", *options, shots=shots) == 2
    assert (
        "error: folder:trees: none of the training images of the class 'elm' can be read, such as "
        "'train/elm/"
    ) in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_skipping_that_leaves_nothing_to_score_is_refused(tmp_path, capsys):
    home = grow_parts(tmp_path / "trees")
    for path in (home / "test").rglob("*.png"):
        truncate(path)
    options = ("--datasets", f"folder:{home}", "--on-bad-image", "skip")
    assert run(tmp_path / "r", *options) == 2
    assert "none of the test images" in capsys.readouterr().err


def test_a_picture_that_changes_is_another_run_though_size_and_age_stay(tmp_path, capsys):
    home = tmp_path / "trees"
    for part in PARTS:
        for name, colour in (("ash", "grey"), ("oak", "red")):
            for number in range(2):
                (home / part / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 9), colour).save(home / part / name / f"{number}.bmp")
    options = ("--datasets", f"folder:{home}")
    assert run(tmp_path / "r", *options, methods="zero_shot") == 0
    (home / "test" / "ash").rename(home / "test" / "x")
    (home / "test" / "oak").rename(home / "test" / "ash")
    (home / "test" / "x").rename(home / "test" / "oak")
    capsys.readouterr()
    assert run(tmp_path / "r", *options, methods="zero_shot") == 0
    assert "to run: 1 of 1" in capsys.readouterr().out
    assert sum(r.scores["test"]["correct"] for r in runs(tmp_path / "r")) == 4


def test_an_image_that_could_not_be_read_once_is_tried_again(tmp_path, monkeypatch):
    """As on a disk that fails for a while."""
    home, usual, failing = grow_parts(tmp_path / "trees"), ImageSource.open, [True]

    def shaky(source, item):
        if failing[0] and item.path.endswith("elm/1.png"):
            raise HarnessError(f"{item.path} cannot be read")
        return usual(source, item)

    monkeypatch.setattr(ImageSource, "open", shaky)
    options = ("--datasets", f"folder:{home}", "--on-bad-image", "skip", "--shots", "1")
    totals = []
    for folder, state in (("one", True), ("two", False)):
        failing[0] = state
        assert run(tmp_path / folder, *options, methods="zero_shot", tasks="few_shot") == 0
        (record,) = Store(tmp_path / folder).records()
        totals.append(record.scores["test"]["total"])
    assert totals == [7, 8]


def test_a_plugin_that_reads_files_of_unknown_content_is_told_so(tmp_path):
    from harness.runs.remarks import _unknown_content
    from tests.toy import Toy

    class Files(Toy):
        def stamp(self, item, root):
            return item.path

    class Known(Files):
        def content(self, root):
            return "known"

    assert _unknown_content(Files())
    assert not _unknown_content(Known())
    assert not _unknown_content(Toy())  # drawn: there are no files
