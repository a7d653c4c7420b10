"""What is read is a record in every field, or is refused with the place and the value."""

import copy
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.leaderboards.leaderboard import render
from harness.records.record import FORMAT, Record, parse
from harness.records.store import Store
from tests.conftest import ROOT

REFERENCE = ROOT / "results"
KINDS = {
    "reference": "reference/base2new/emoji_food/dra-16shots-seed1-*.json",
    "tuning": "tuning/base2new/*/*.json",
    "efficiency": "efficiency/efficiency/emoji_food/dra-16shots-seed1-*.json",
    "not applicable": "reference/base2new/emoji_food/tip_adapter-16shots-seed1-*.json",
}


def committed(kind: str) -> dict:
    return json.loads(next(iter(sorted(REFERENCE.glob(KINDS[kind])))).read_text())


def put(record: dict, place: str, value: object) -> dict:
    """The record with a value at a dotted place; `...` takes it away."""
    record = copy.deepcopy(record)
    *parents, last = place.split(".")
    there = record
    for name in parents:
        there = there[name]
    if value is ...:
        del there[last]
    else:
        there[last] = value
    return record


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_format_1_load(kind):
    loaded = committed(kind)
    record = parse(json.dumps(loaded))
    assert (record.key, record.run, record.scores) == (
        loaded["key"], loaded["run"], loaded["scores"],
    )  # fmt: skip


def test_every_committed_record_loads():
    paths = [
        path
        for folder in REFERENCE.iterdir()
        if folder.is_dir() and folder.name != "class-texts"
        for path in Store(folder).files()
    ]
    assert len(paths) > 1000
    for path in paths:
        parse(path.read_text())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("key", 3), ("key", ""), ("key", "../x"), ("status", "fine"), ("status", ["done"]),
        ("run", []), ("run", None), ("run.method", ...), ("run.method", 3), ("run.shots", 0),
        ("run.shots", "16"), ("run.shots", True), ("run.seed", 1.5), ("run.seed", -1),
        ("run.fingerprints", ...), ("run.fingerprints", None), ("run.fingerprints.weights", ...),
        ("run.overrides", []), ("run.settings", None), ("run.task_fields", []),
        ("run.hyperparameters", "rank"), ("run.given", "rank"), ("scores", None), ("scores", []),
        ("scores", {}), ("scores.base", 0.5), ("scores.base.accuracy", "0.5"),
        ("scores.base.accuracy", 7), ("scores.base.accuracy", math.nan),
        ("scores.base.accuracy", 0.123), ("scores.base.accuracy", True),
        ("scores.base.correct", 10**6), ("scores.base.correct", -1), ("scores.base.total", 0),
        ("scores.base.zero_shot", 2), ("cost", None), ("cost.train_seconds", "1 s"),
        ("cost.train_seconds", -1), ("cost.trainable_parameters", []), ("cost.steps", 10**40),
        ("cost.train_seconds", math.inf), ("checks", None), ("checks", [3]), ("provenance", []),
        ("provenance.time", "yesterday"), ("provenance.time", 5), ("error", 5),
        ("fit", "../../fit"), ("fit", 3), ("extra", 1), ("format", "1"), ("format", True),
        ("cost.epoch_losses", json.loads("[" * 30 + "]" * 30)),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_with_its_place(place, value):
    text = json.dumps(put(committed("reference"), place, value))
    with pytest.raises(ValueError, match=place.rpartition(".")[2]):
        parse(text)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("cost.inference", ...), ("cost.inference.batch", 0), ("cost.train.step.median", 0),
        ("cost.inference.data.most", "1"), ("cost.cuda", 1), ("cost.inference.bytes", ...),
        ("cost.stored_bytes", None),
        ("run.measured_on", "cpu"), ("run.settings.precision", ...),
    ],
)  # fmt: skip
def test_a_measurement_lacks_nothing_that_its_tables_show(place, value):
    text = json.dumps(put(committed("efficiency"), place, value))
    with pytest.raises(ValueError, match=place.rpartition(".")[2]):
        parse(text)


def test_a_newer_format_is_refused_by_name():
    text = json.dumps(committed("reference") | {"format": FORMAT + 1, "more": {}})
    with pytest.raises(ValueError, match=r"newer version \(format 2"):
        parse(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 1, "cost": ' + "[" * 5000 + "]" * 5000]
)
def test_deep_lists_are_refused(text):
    with pytest.raises(ValueError, match=r"deep|Expecting|delimiter"):
        parse(text)


def test_a_damaged_record_is_named_counts_as_not_done_and_is_written_again(tmp_path):
    store = Store(tmp_path).open()
    loaded = committed("reference")
    record = parse(json.dumps(loaded))
    path = store.write(record, {})
    path.write_text(json.dumps(put(loaded, "scores", None)))
    for read in (store.records, store.done):
        with pytest.warns(UserWarning, match=rf"{path.name} .*scores is None"):
            assert not read()
    store.write(record, {})
    assert store.done() == {record.key: record}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["run", "key"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value: object, place: str = "") -> list[str]:
    """Every dotted place in nested dicts."""
    if not isinstance(value, dict):
        return [place]
    inner = [each for name in value for each in places(value[name], f"{place}.{name}".strip("."))]
    return [each for each in [place, *inner] if each]


def holds(record: Record) -> bool:
    """Whether all that tables read is of its type."""
    run = record.run
    texts = [run[n] for n in ("method", "task", "dataset", "backbone")]
    texts += [record.key, record.status, run["fingerprints"]["weights"], *record.checks]
    dicts = [run["overrides"], run["settings"], record.scores, record.cost, record.provenance]
    counts = [run["shots"], run["seed"]]
    fractions = [score["accuracy"] for score in record.scores.values()]
    return (
        all(type(each) is str for each in texts)
        and all(type(each) is dict for each in dicts)
        and all(type(each) is int for each in counts)
        and all(type(each) in (int, float) and 0 <= each <= 1 for each in fractions)
        and all(0 <= s["correct"] <= s["total"] for s in record.scores.values())
    )


@given(JSON)
@settings(max_examples=30, deadline=None)
def test_any_json_is_refused_with_a_sentence(value):
    with pytest.raises(ValueError, match=r"."):
        parse(json.dumps(value))


@given(st.data(), st.sampled_from(sorted(KINDS)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_record_with_any_value_anywhere_is_refused_or_can_be_shown(data, kind):
    loaded = committed(kind)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(loaded)))
        loaded = put(loaded, place, data.draw(JSON | st.just(...)))
    try:
        record = parse(json.dumps(loaded))
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either way is right
        return
    assert holds(record)
    for form in ("markdown", "csv", "latex"):
        assert render([record], form)
