"""A forecast learns from the finished runs of the same device."""

import dataclasses
from types import SimpleNamespace

import pytest

from harness.runs.executors import local
from harness.runs.provenance import provenance_of
from tests.conftest import execute


def test_pending_runs_take_as_long_as_finished_ones_did_here(make_run):
    runs = [make_run("adapter", seed=seed) for seed in (1, 2, 3)]
    record, _, _ = execute(runs[0])
    slow = {name: 50.0 for name in record.cost if name.endswith("_seconds")}
    cost = {**record.cost, **slow}
    done = {runs[0].key: dataclasses.replace(record, cost=cost)}
    each = local.each_seconds(runs)
    expected = sum(slow.values()) * sum(each[1:]) / each[0]
    assert local.estimated_seconds(runs[1:], runs, done) == pytest.approx(expected)
    other = {**provenance_of(runs[0].context.clip.device), "device": "another"}
    elsewhere = {runs[0].key: dataclasses.replace(done[runs[0].key], provenance=other)}
    assert local.estimated_seconds(runs[1:], runs, elsewhere) < expected / 10


def test_what_is_left_is_counted_in_seconds_and_not_in_runs(make_run, monkeypatch):
    monkeypatch.setattr(local.time, "monotonic", lambda: 100.0)
    runs = [make_run("zero_shot"), make_run("adapter"), make_run("dra")]
    pace, bar = local.Pace(runs, None), SimpleNamespace(disable=True, total=3)
    pace.seconds = dict(zip((run.key for run in runs), (1.0, 30.0, 60.0), strict=True))
    monkeypatch.setattr(local.time, "monotonic", lambda: 102.0)
    assert pace.left(bar, []) == " [0 of 3]"
    assert pace.left(bar, [runs[0].key]) == " [1 of 3, 3 min left]"
    assert pace.left(bar, [runs[0].key, "another's"]) == " [2 of 3, 3 min left]"
    assert pace.left(bar, [run.key for run in runs]) == ""
