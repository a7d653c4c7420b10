"""What a run got wrong is counted as a reader would count it, and shown without harm."""

from collections import Counter

import numpy as np
import pytest

from harness.leaderboards.mistake_tables import _images, _names
from harness.leaderboards.mistakes import Mistake, Mistakes, OfClass, Pair
from harness.records.predictions import KeptSplit, Predicted
from tests.leaderboards.test_metrics import predicted

NAMES = ("cat", "dog", "cow", "owl")
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
CLASSES = np.array([1, 1, 2, 0, 0, 0, 2, 2], np.int32)


def made(confidences=None, names=NAMES, units=None, true=None) -> Mistakes:
    paths = tuple(f"{i}.png" for i in range(len(LABELS)))
    split = KeptSplit("toy", "{}", tuple(names), paths, LABELS, units) if names else None
    sure = None if confidences is None else np.array(confidences, np.float16)[:, None]
    true = None if true is None else np.log(np.array(true, np.float32))
    best = None if sure is None else CLASSES[:, None]
    return Mistakes("test", Predicted(CLASSES, LABELS, best, sure, true, split))


def test_classes_are_counted_the_worst_first_and_those_without_images_last():
    assert made().classes() == [
        OfClass(1, "dog", 2, 0, 0.0, 0, 2),
        OfClass(0, "cat", 4, 1, 0.25, 1, 2),
        OfClass(2, "cow", 2, 2, 1.0, None, 0),
        OfClass(3, "owl", 0, 0, None, None, 0),
    ]


def test_pairs_are_ordered_by_count_then_share_then_class():
    assert made().pairs() == [Pair(1, 0, 2, 1.0), Pair(0, 1, 2, 0.5), Pair(0, 2, 1, 0.25)]


def test_counts_are_those_of_a_slow_count():
    found = Mistakes("test", predicted(7, 500))
    labels, classes = found.found.labels.tolist(), found.found.classes.tolist()
    wrong = Counter(pair for pair in zip(labels, classes, strict=True) if pair[0] != pair[1])
    assert {(p.true, p.predicted): p.count for p in found.pairs()} == wrong
    assert sum(p.count for p in found.pairs()) == found.images - found.right
    for each in found.classes():
        assert each.images == labels.count(each.label)
        assert each.times == max(n for (true, _), n in wrong.items() if true == each.label)
        assert wrong[each.label, each.taken_for] == each.times
    assert [each.accuracy for each in found.classes()] == sorted(
        each.accuracy for each in found.classes()
    )


def test_mistakes_are_ordered_by_confidence_then_by_the_true_class_then_by_the_list():
    found = made([0.5, 0.9, 0.5, 1, 0.5, 0.5, 1, 1], true=[0.3, 0.1, 0.2, 1, 0.2, 0.4, 1, 1])
    assert [each.number for each in found.mistakes()] == [1, 2, 4, 0, 5]
    (first,) = found.mistakes(1)
    assert first == Mistake(1, "1.png", 0, 1, float(np.float16(0.9)), pytest.approx(0.1))
    assert found.mistakes(0) == []


def test_without_probabilities_mistakes_are_in_the_order_of_the_list():
    found = made()
    assert [(each.path, each.confidence) for each in found.mistakes(2)] == [
        ("0.png", None),
        ("1.png", None),
    ]
    assert found.missing == ["no confidence: older versions kept no probabilities"]


def test_without_the_list_of_images_there_are_labels_and_places():
    found = made(names=None)
    assert found.units is None
    assert [each.label for each in found.classes()] == [1, 0, 2]
    assert found.mistakes(1)[0].path is None
    assert "number 0" in _images(found, _names(found), 1)[0]
    assert len(found.missing) == 2


def test_units_are_counted():
    assert made().units == 8
    assert made(units=np.array([5, 5, 5, 5, 1, 1, 0, 0])).units == 3


def test_two_classes_with_one_name_are_told_apart():
    name = _names(made(names=("crane", "dog", "crane", "owl")))
    assert [name(0), name(1), name(2)] == ["crane (class 0)", "dog", "crane (class 2)"]
