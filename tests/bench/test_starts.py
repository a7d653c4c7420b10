"""What commands take that compute nothing: the least of several calls, and failures by name."""

import os

import pytest

from harness.bench import starts
from harness.errors import HarnessError


def test_the_least_of_the_calls_counts_and_what_is_kept_is_made_before(monkeypatch):
    calls, seconds = [], iter([(9.0, 9.0), (9.0, 9.0), *[(2.0, 3.0), (4.0, 1.0)] * 6])

    def taken(command, environment):
        calls.append((command[0], environment["HARNESS_CACHE"]))
        return next(seconds)

    monkeypatch.setattr(starts, "_taken", taken)
    content = starts.measured(2)
    assert [name for name, _ in calls[:2]] == ["run", "list"]
    assert len({cache for _, cache in calls}) == 1
    assert [(r["seconds"], r["processor_seconds"]) for r in content["rows"]] == [(2.0, 1.0)] * 6
    assert "| run, a second time |      2.00 |               1.00 |" in starts.table(content)


def test_a_command_that_fails_is_named_with_what_it_said():
    with pytest.raises(HarnessError, match=r"harness show zero_sot` failed: .*zero_shot"):
        starts._taken(["show", "zero_sot"], os.environ)
