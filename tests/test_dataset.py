"""Few-shot lists and base/new classes are CoOp's."""

import hashlib
import random
from dataclasses import replace

import pytest

from harness.dataset import Classes, Item
from harness.errors import HarnessError
from harness.splits import check_lists, class_names, few_shot, refilled, select


def items(labels: str, prefix: str = "") -> list[Item]:
    return [Item(f"{prefix}{i}", int(label), f"class{label}") for i, label in enumerate(labels)]


def dassl(train, val, shots, seed):
    """Dassl's sampling, transcribed with the global generator: train first, then val."""
    random.seed(seed)
    chosen = []
    for source, count in ((train, shots), (val, min(shots, 4))):
        tracker = {}
        for item in source:
            tracker.setdefault(item.label, []).append(item)
        dataset = []
        for group in tracker.values():
            dataset.extend(random.sample(group, count) if len(group) >= count else group)
        chosen.append(dataset)
    return tuple(chosen)


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_few_shot_lists_are_those_of_dassl(shots, seed):
    train, val = items("2201" * 9 + "1" * 5, "t"), items("0122" * 3, "v")
    assert few_shot(train, val, shots, seed) == dassl(train, val, shots, seed)


def test_a_class_with_fewer_images_than_shots_gives_all_of_them():
    train, _ = few_shot(items("000011"), [], 3, 1)
    assert [item.label for item in train] == [0, 0, 0, 1, 1]


def test_what_validates_shares_no_group_with_what_is_trained_on():
    frames = [Item(f"{n}", n % 2, f"class{n % 2}", f"video{n // 4}") for n in range(16)]
    for seed in range(5):
        train, val = few_shot(frames, [], 2, seed)
        assert not {item.group for item in train} & {item.group for item in val}


def test_what_takes_a_place_is_of_its_class_and_not_of_one_that_has_its_name():
    """ImageNet has two classes of one name in some lists."""
    missiles = [Item(f"{label}/{n}", label, "missile") for label in (0, 1) for n in range(3)]
    classes = Classes("toy", ("missile", "missile"), "{}")
    split = select([missiles[0], missiles[3]], "all", classes)
    spare = [missiles[1], missiles[2], missiles[4], missiles[5]]
    filled = refilled(split, [0, 1], spare, 1, lambda item: True)
    assert [item.path[0] for item in filled.items] == ["0", "1"]
    assert [item.label for item in filled.items] == [0, 1]


def test_base_is_the_larger_first_half_and_new_the_rest_relabelled():
    classes = Classes("toy", tuple(class_names(items("2110043"))), "{}")
    base, new = (select(items("2110043"), subset, classes) for subset in ("base", "new"))
    assert base.classes == Classes("toy", ("class0", "class1", "class2"), "{}")
    assert [(i.label, i.name) for i in new.items] == [(1, "class4"), (0, "class3")]
    assert base.positions == (0, 1, 2, 3, 4)
    assert new.positions == (5, 6)


def test_base_and_new_are_those_of_the_whole_class_list_whatever_a_split_holds():
    classes = Classes("toy", tuple(f"class{i}" for i in range(6)), "{}")
    few = items("0145")  # no image of classes 2 and 3
    assert select(few, "base", classes).classes.names == ("class0", "class1", "class2")
    assert [i.label for i in select(few, "new", classes).items] == [1, 2]


def test_a_subset_without_images_is_an_error():
    classes = Classes("toy", ("class0", "class1"), "{}")
    with pytest.raises(HarnessError, match="toy has no test images of its new classes"):
        select(items("00"), "new", classes)


def test_fingerprint_depends_on_paths_order_names_positions_and_content():
    classes = Classes("toy", ("class0", "class1"), "{}")
    lists = [items("0011"), items("0101"), items("0011", "x")]
    splits = [select(each, "all", classes) for each in lists]
    splits.append(select(items("0011"), "all", classes, content="other pixels"))
    splits.append(replace(splits[0], positions=(3, 2, 1, 0)))
    splits.append(select(items("0011"), "all", replace(classes, names=("class0", "b"))))
    assert len({split.fingerprint for split in splits}) == 6


def test_a_subset_of_one_class_is_an_error():
    classes = Classes("toy", ("class0", "class1", "class2"), "{}")
    with pytest.raises(HarnessError, match="a single class among its new classes, 'class2'"):
        select(items("012"), "new", classes)


def test_classes_are_matched_by_id_where_both_have_ids_and_else_by_name():
    names, ids = ("crane", "tench", "crane", "maillot"), ("n3", "n0", "n1", "n2")
    source = Classes("imagenet", names, "{}", ids)
    target = Classes("imagenet_r", ("crane (bird)", "tench"), "{}", ("n1", "n0"))
    assert source.numbers(target) == [2, 1]
    assert source.numbers(replace(target, ids=("n1", "n9"))) is None
    assert source.numbers(replace(target, ids=())) is None
    assert source.numbers(Classes("x", ("maillot", "tench"), "{}")) == [3, 1]
    assert source.numbers(Classes("x", ("crane",), "{}")) is None
    assert source.numbers(Classes("imagenetv2", names, "{}", ids)) == [0, 1, 2, 3]
    assert source.numbers(Classes("x", names, "{}", ids[::-1])) == [3, 2, 1, 0]


def test_a_subset_keeps_the_ids_of_its_classes():
    classes = Classes("toy", ("a", "b", "c", "d"), "{}", ("n0", "n1", "n2", "n3"))
    assert select(items("0123"), "new", classes).classes.ids == ("n2", "n3")


def test_ids_are_part_of_the_fingerprint_only_where_there_are_some():
    classes = Classes("toy", ("class0", "class1"), "{}")
    plain = select(items("01"), "all", classes)
    text = f"0\t0\tclass0\t0\n1\t1\tclass1\t1\n{classes!r}\n"
    assert "ids" not in text
    assert plain.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]
    known = select(items("01"), "all", replace(classes, ids=("n0", "n1")))
    assert known.fingerprint != plain.fingerprint


def test_images_of_one_class_may_be_listed_twice_in_a_part():
    check_lists("toy", {"train": [Item("a", 0, "x"), Item("a", 0, "x")], "test": []})


def test_underscores_in_class_names_read_as_spaces():
    assert Classes("toy", ("red_fox",), "").texts("a {}.", "{}") == [["a red fox.", "red fox"]]


def test_a_label_with_two_names_is_an_error():
    with pytest.raises(HarnessError, match="both"):
        class_names([Item("a", 0, "x"), Item("b", 0, "y")])


def test_a_gap_in_the_labels_is_an_error():
    with pytest.raises(HarnessError, match="missing"):
        class_names([Item("a", 0, "x"), Item("b", 2, "y")])


def test_of_several_templates_each_class_gets_a_text_of_each():
    classes = Classes("leaves", ("oak", "red_ash"), "a {}.\nthe {}, a leaf.")
    assert classes.texts(classes.template) == [
        ["a oak.", "the oak, a leaf."], ["a red ash.", "the red ash, a leaf."],
    ]  # fmt: skip
