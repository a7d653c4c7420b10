"""Few-shot lists in files: what is written is what is drawn, and what does not fit is refused."""

import json
from pathlib import Path

import pytest

from harness.cli.commands import main
from harness.dataset import Item
from harness.errors import HarnessError
from harness.images import list_files, lists
from harness.leaderboards import leaderboard
from harness.records.store import Store
from harness.splits import few_shot
from tests.conftest import PLUGINS, ROOT

TOY = str(ROOT / "tests" / "toy.py")
DATASET = PLUGINS.plugins["datasets"]["toy"].cls()
READ = DATASET.read(None)


def write(folder, shots=(2,), seeds=(1,)):
    list_files.write("toy", DATASET, None, shots, seeds, folder)
    return folder


def published(path, before="./data/toy/images/", **changed):
    """A file as cross_modal_adaptation publishes them; `changed` are fields of its first image."""
    train, val = few_shot(READ["train"], READ["val"], 2, 1)
    parts = {}
    for part, items in (("train", train), ("val", val)):
        rows = [{"impath": before + i.path, "label": i.label, "classname": i.name} for i in items]
        parts[part] = {"data": rows, "indices": []}
    parts["train"]["data"][0] |= changed
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(parts))
    return path.parent


def items(folder, shots=2, seed=1):
    return list_files.read(folder).of("toy", shots, seed).items("toy", DATASET, READ, shots)


def refusal(folder, shots=2):
    with pytest.raises(HarnessError) as caught:
        items(folder, shots)
    return str(caught.value)


def edited(folder, number, **fields):
    """The folder with other values in a line of its list."""
    (file,) = folder.glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[number] |= fields
    file.write_text("\n".join(map(json.dumps, rows)))
    return folder


def run(results, *arguments):
    quick = ["--tasks", "few_shot", "--datasets", "toy", "--plugin", TOY, "--shots", "2"]
    quick += ["--methods", "adapter", "--set", "engine.max_steps=2", "--results", str(results)]
    return main(["run", *quick, *map(str, arguments)])


@pytest.mark.parametrize("seed", [1, 2])
def test_a_list_that_is_written_gives_the_images_that_are_drawn_in_their_order(tmp_path, seed):
    assert items(write(tmp_path, seeds=(1, 2)), seed=seed) == few_shot(
        READ["train"], READ["val"], 2, seed
    )


@pytest.mark.parametrize("name", ["toy-shot_2-seed_1.json", "toy/shot_2-seed_1.json"])
def test_published_index_files_are_read_by_name_or_by_folder(tmp_path, name):
    published(tmp_path / name)
    assert items(tmp_path) == few_shot(READ["train"], READ["val"], 2, 1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"impath": "./data/toy/images/red/99"}, "'./data/toy/images/red/99' is no image of it"),
        ({"impath": "./data/toy/other/red/1"}, "'./data/toy/other/red/1' begin differently"),
        ({"impath": "./data/toy/images/red/30"}, "'./data/toy/images/red/30' is a test image"),
        ({"label": 3}, r"is 'red' (label 3) in the list and 'red' (label 0) in the dataset"),
        ({"classname": "blue"}, "is 'blue' (label 0) in the list and 'red' (label 0)"),
    ],
)
def test_a_list_that_does_not_fit_the_dataset_is_refused(tmp_path, changed, said):
    assert said in refusal(published(tmp_path / "toy-shot_2-seed_1.json", **changed))


def test_a_list_with_an_image_twice_is_refused(tmp_path):
    (first, *_), _ = few_shot(READ["train"], READ["val"], 2, 1)
    assert "is listed twice" in refusal(edited(write(tmp_path), 1, path=first.path))


def test_a_list_with_more_images_a_class_than_its_shots_is_refused(tmp_path):
    (file,) = write(tmp_path).glob("*.jsonl")
    file.rename(tmp_path / "toy-shot_1-seed_1.jsonl")
    assert "the class 'red' has 2 images instead of 1" in refusal(tmp_path, shots=1)


def test_a_list_without_an_image_of_a_class_is_refused(tmp_path):
    (file,) = write(tmp_path).glob("*.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if '"cyan"' not in line))
    assert "the class 'cyan' has no training image" in refusal(tmp_path)


def test_an_image_with_another_content_than_was_listed_is_refused(tmp_path):
    assert "is another image than the one that was listed" in refusal(
        edited(write(tmp_path), 3, fingerprint="0" * 16)
    )


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"path": 1}', '{"path": "a", "label": "0", "class": "b", "split": "train"}',
     '{"path": "a", "label": 0, "class": "b", "split": "test"}', "\0", ""],
)  # fmt: skip
def test_a_file_that_is_no_list_is_named(tmp_path, text):
    (tmp_path / "toy-shot_2-seed_1.jsonl").write_text(text)
    assert "toy-shot_2-seed_1.jsonl" in refusal(tmp_path)


def test_two_lists_of_one_run_are_refused(tmp_path):
    published(write(tmp_path) / "toy" / "shot_2-seed_1.json")
    assert "are both lists of toy with 2 shots and seed 1" in refusal(tmp_path)


def test_a_list_of_other_images_is_not_replaced(tmp_path):
    folder = write(tmp_path)
    assert write(folder)  # the same again
    edited(folder, 0, path="red/9")
    with pytest.raises(HarnessError, match="lists other images than are drawn now"):
        write(folder)


def test_a_run_that_no_list_is_for_is_refused_with_what_there_is(tmp_path, capsys):
    assert run(tmp_path / "r", "--lists", write(tmp_path / "l"), "--seeds", "1,2") == 2
    said = capsys.readouterr().err
    assert "no list of toy with 2 shots and seed 2" in said
    assert "toy-shot_2-seed_1" in said


def test_a_run_on_a_written_list_gives_the_numbers_of_the_drawn_one_under_another_key(tmp_path):
    folder = write(tmp_path / "paper")
    assert run(tmp_path / "r") == run(tmp_path / "r", "--lists", folder) == 0
    drawn, given = sorted(Store(tmp_path / "r").records(), key=lambda each: "list" in each.run)
    assert "list" not in drawn.run
    assert given.run["list"] == lists.fingerprint(*items(folder))
    assert given.run["fingerprints"] == drawn.run["fingerprints"]
    assert given.scores == drawn.scores
    assert given.key != drawn.key


def test_drawn_lists_and_given_ones_are_never_in_one_table(tmp_path):
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    (file,) = other.glob("*.jsonl")
    lines = file.read_text().splitlines()
    other_list = lines[2:] + lines[:2]  # another order: other steps
    file.write_text("\n".join(other_list))
    for arguments in ([], ["--lists", one], ["--lists", other]):
        assert run(tmp_path / "r", *arguments) == 0
    text = leaderboard.render(Store(tmp_path / "r").records())
    assert text.count("| adapter") == 3
    assert "few-shot lists given in 'one'" in text
    assert "few-shot lists given in 'other'" in text


def test_a_copied_folder_of_lists_is_the_same_run(tmp_path, capsys):
    run(tmp_path / "r", "--lists", write(tmp_path / "one"))
    run(tmp_path / "r", "--lists", write(tmp_path / "copy"))
    assert "to run: 0 of 1" in capsys.readouterr().out


def test_the_command_writes_a_file_for_each_dataset_shots_and_seed(tmp_path, capsys):
    command = ["data", "lists", "--datasets", "toy", "--plugin", TOY, "--out", str(tmp_path)]
    assert main([*command, "--shots", "1,2", "--seeds", "1-2"]) == 0
    assert "4 lists" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"toy-shot_{shots}-seed_{seed}.jsonl" for shots in (1, 2) for seed in (1, 2)
    ]
    line = json.loads((tmp_path / "toy-shot_1-seed_1.jsonl").read_text().splitlines()[0])
    assert sorted(line) == ["class", "fingerprint", "label", "path", "split"]


def test_two_classes_of_one_name_have_their_shots_each():
    path = "image-{}-{}.png"
    labels = {0: "missile", 1: "missile", 2: "disc"}
    train = [Item(path.format(label, n), label, labels[label]) for label in labels for n in (0, 1)]
    listed = [lists.ListedImage("train", i.path, i.label, i.name) for i in train]
    found = lists.FewShotList(Path("x"), tuple(listed)).items("toy", DATASET, {"train": train}, 2)
    assert found[0] == train
