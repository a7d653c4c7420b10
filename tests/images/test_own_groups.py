"""Images of a group are not independent: a split keeps them together, intervals count groups."""

from harness.dataset import Item
from harness.registry import load
from harness.runs.executors.local import as_kept
from harness.splits import select
from harness.tasks.datasets.emoji import Emoji
from harness.tasks.datasets.ucf101 import UCF101
from tests.images.test_own import own, read, refusal, table


def grouped(classes="ab", groups=10, frames=3):
    return [
        f"{name}{group}-{frame}.png,{name},{name}{group}"
        for name in classes
        for group in range(groups)
        for frame in range(frames)
    ]


def test_a_group_is_in_one_part_of_a_split_that_is_made_here(tmp_path):
    lists = read(table(tmp_path / "list.csv", "path,label,group", *grouped()))
    parts = {part: {item.group for item in items} for part, items in lists.items()}
    assert {part: len(groups) for part, groups in parts.items()} == {
        "train": 10, "val": 4, "test": 6,
    }  # fmt: skip
    assert not parts["train"] & parts["test"]
    assert not parts["val"] & (parts["train"] | parts["test"])
    assert sum(map(len, lists.values())) == 60


def test_images_without_a_group_stand_alone(tmp_path):
    lines = [*grouped("a"), *(f"b{n}.png,b," for n in range(10))]
    lists = read(table(tmp_path / "list.csv", "path,label,group", *lines))
    assert sum(item.name == "b" for item in lists["test"]) == 3


def test_a_group_of_two_classes_is_refused_where_the_split_is_made_here(tmp_path):
    lines = [*grouped(), "x.png,b,a0"]
    assert refusal(table(tmp_path / "list.csv", "path,label,group", *lines)) == (
        "DATA: the group 'a0' has images of two classes, 'a' and 'b'. Give the split yourself, in "
        "a column of that name."
    )


def test_too_few_groups_are_refused(tmp_path):
    says = refusal(table(tmp_path / "list.csv", "path,label,group", *grouped(groups=2)))
    assert says.startswith("DATA: the class 'a' has 2 groups, too few to split")


def test_units_of_a_list_are_its_groups(tmp_path):
    path = table(tmp_path / "list.csv", "path,label,split,group", *(
        f"{name}{n}.png,{name},{part},{n // 2}" for name in "ab" for part in ("train", "test")
        for n in range(4)
    ))  # fmt: skip
    dataset = own(path)
    from harness.dataset import Classes

    classes = Classes("x", ("a", "b"), "{}")
    split = select(dataset.read(None)["test"], "all", classes)
    assert as_kept(split, dataset)["units"] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_units_of_the_datasets_that_have_them():
    assert Emoji().unit(Item("noto/cat/7", 0, "cat")) == "noto/cat"
    assert UCF101().unit(Item("Archery/v_Archery_g01_c02.jpg", 0, "x")) == "Archery/v_Archery_g01"
    folder = load([]).plugins["datasets"]["food101"].cls()
    assert folder.unit(Item("a/b.jpg", 0, "x")) == "a/b.jpg"
