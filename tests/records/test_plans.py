"""Another terminal sees what a command does: what is done, running and left, and for how long."""

import json
import subprocess
import sys

import pytest

from harness.cli.commands import main
from harness.records import plans
from harness.records.plans import Plan, Planned
from harness.records.store import Store
from tests.conftest import ROOT
from tests.records.test_store import record


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs").open()


def planned(count=4):
    return [Planned(f"k{n}", f"f{n}", f"run {n}", 10.0) for n in range(count)]


def made(store, key, status="done", moment="2026-01-01T00:00:10+00:00"):
    from dataclasses import replace

    kept = replace(record(key), status=status, provenance={"time": moment})
    kept = kept if status == "done" else replace(kept, scores={}, error="Error: no")
    store.write(kept, {})
    return kept


def at(seconds):
    from datetime import datetime

    return datetime.fromisoformat("2026-01-01T00:00:00+00:00").timestamp() + seconds


def test_the_pace_is_that_of_what_was_finished(store):
    plan = Plan("run", "host", 1, at(0), 2, planned())
    assert plans.progress(plan, [], at(5)).seconds == 20  # of the forecast, in two processes
    records = [made(store, "k0"), made(store, "k1")]
    found = plans.progress(plan, records, at(40))  # two of four took 40 seconds
    assert (found.done, found.failed, found.left) == (2, 0, 2)
    assert found.seconds == pytest.approx(40)


def test_what_was_done_before_gives_no_pace_and_what_failed_is_counted(store):
    plan = Plan("run", "host", 1, at(5), 1, planned())
    before = made(store, "k0", moment="2025-12-31T00:00:00+00:00")
    failed = made(store, "k1", status="failed")
    found = plans.progress(plan, [before, failed], at(15))
    assert (found.done, found.failed, found.left) == (1, 1, 2)
    assert found.seconds == pytest.approx(20)


def test_a_plan_is_seen_while_its_command_lives_and_leaves_nothing(store):
    with plans.announced(store, "run it", 2, planned()):
        (plan,) = plans.live_plans(store)
        assert plan.runs == planned()
        assert Store(store.folder).records() == []
    assert plans.live_plans(store) == []
    assert not [*(store.folder / ".plans").iterdir()]


def test_a_run_is_seen_while_its_process_holds_the_claim(store):
    with store.claim("f1") as claimed, plans.at_work(store, "f1", "run 1"):
        assert claimed
        assert [each.name for each in plans.running(store)] == ["run 1"]
    assert plans.running(store) == []


def test_what_a_killed_command_leaves_is_not_shown(store):
    code = (
        "import os, sys; from pathlib import Path; from harness.records import plans; "
        "from harness.records.store import Store; store = Store(Path(sys.argv[1])); "
        "a = plans.announced(store, 'run', 1, []); a.__enter__(); "
        "b = store.claim('f'); b.__enter__(); c = plans.at_work(store, 'f', 'x'); c.__enter__(); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.folder)], cwd=ROOT, timeout=60)
    assert [*(store.folder / ".plans").glob("*.json")]
    assert plans.live_plans(store) == []
    assert plans.running(store) == []


def test_status_says_all_of_it(store, capsys):
    made(store, "k0")
    made(store, "k1", status="failed")
    with plans.announced(store, "python -m harness run --methods dra", 1, planned()):
        assert main(["status", "--results", str(store.folder)]) == 0
        shown = capsys.readouterr().out
        assert "1 done, 1 failed" in shown
        assert "run --methods dra" in shown
        assert "1 of 4 done" in shown
        assert main(["status", "--json", "--results", str(store.folder)]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found["commands"][0]["left"] == 3
    with pytest.raises(KeyboardInterrupt), plans.announced(store, "run it", 1, planned()):
        raise KeyboardInterrupt
    main(["status", "--results", str(store.folder)])
    shown = capsys.readouterr().out
    assert "run it" in shown
    assert "stopped: 1 of 4 done, 0 failed, 3 left. The same command goes on." in shown
    with plans.announced(store, "run it", 1, planned()):
        assert plans.stopped_plans(store) == []
    main(["status", "--results", str(store.folder)])
    assert "No command is running here." in capsys.readouterr().out


def test_records_from_before_are_not_done_where_all_is_run_again(store):
    plan = Plan("run --force", "host", 1, at(5), 1, planned(), force=True)
    before = made(store, "k0", moment="2025-12-31T00:00:00+00:00")
    found = plans.progress(plan, [before, made(store, "k1")], at(15))
    assert (found.done, found.left) == (1, 3)


def test_a_command_that_was_stopped_has_no_end(store, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), plans.announced(store, "run it", 1, planned()):
        raise KeyboardInterrupt
    folders = ["--results", str(store.folder), str(Store(tmp_path / "other").open().folder)]
    main(["status", *folders])
    assert capsys.readouterr().out.endswith("In all 2 folders: no records, 4 left.\n")
    main(["status", "--json", *folders])
    assert json.loads(capsys.readouterr().out)[0]["stopped"][0]["seconds_left"] is None


def test_status_adds_up_several_folders_as_of_shards(store, tmp_path, capsys):
    other = Store(tmp_path / "other").open()
    made(store, "k0")
    made(other, "k1")
    with plans.announced(store, "one", 1, planned()), plans.announced(other, "two", 1, planned()):
        main(["status", "--results", str(store.folder), str(other.folder)])
    shown = capsys.readouterr().out
    assert "In all 2 folders: 2 done, 6 left; the last command ends in about" in shown
