"""What commands take that compute nothing: the least of several calls counts."""

from harness.bench import starts
from harness.bench.process import Ended


def test_the_least_of_the_calls_counts_and_what_is_kept_is_made_before(monkeypatch):
    calls, seconds = [], iter([(9.0, 9.0), (9.0, 9.0), *[(2.0, 3.0), (4.0, 1.0)] * 6])

    def called(*command, HARNESS_CACHE):
        calls.append((command[2], HARNESS_CACHE))
        return Ended("", *next(seconds), 0)

    monkeypatch.setattr(starts, "called", called)
    content = starts.measured(2)
    assert [name for name, _ in calls[:2]] == ["run", "list"]
    assert len({cache for _, cache in calls}) == 1
    assert [(r["seconds"], r["processor_seconds"]) for r in content["rows"]] == [(2.0, 1.0)] * 6
    assert "| run, a second time |      2.00 |               1.00 |" in starts.table(content)
