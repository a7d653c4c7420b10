"""What a command prints: into closed pipes and full disks, from records, and about names."""

import errno
import io
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import output
from harness.cli.commands import main
from harness.records.store import Store
from harness.runs.efficiency import forecast
from tests.conftest import ROOT
from tests.leaderboards.test_aggregation import written
from tests.leaderboards.test_leaderboard import grid, record

TOY = str(ROOT / "tests" / "toy.py")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Records of two methods on two datasets; one lacks a run, one looks wrong."""
    store = Store(tmp_path / "results").open()
    for each in [*grid(), *grid(method="mma")[:3]]:
        written(store, each)
    written(store, replace(record("coop", dataset="toy_a", overrides={"lr": 0.1}), checks=["bad"]))
    return store.folder


def leaderboard(folder, *options):
    return main(["leaderboard", "--results", str(folder), *options])


def test_a_closed_pipe_does_not_end_the_work(tmp_path):
    run = shlex.join([
        sys.executable, "-m", "harness", "run", "--methods", "zero_shot", "--tasks", "base2new",
        "--datasets", "toy", "--plugin", TOY, "--shots", "4", "--seeds", "1-3",
        "--results", str(tmp_path / "r"),
    ])  # fmt: skip
    command = ["bash", "-c", f"{run} | head -1; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(Store(tmp_path / "r").done()) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_a_sentence_and_exit_code_1(folder):
    command = [sys.executable, "-m", "harness", "leaderboard", "--results", str(folder)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device.\n"


def test_what_waits_for_the_end_of_the_process_is_called_before_it_leaves(tmp_path):
    """As of a tool that measures it, which was there before the command."""
    (tmp_path / "sitecustomize.py").write_text("import atexit\natexit.register(print, 'called')\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "harness", "list", "tasks"], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "called"), done.stderr


def test_what_a_plugin_still_has_to_write_is_written(tmp_path):
    kept = f"LOG = open({str(tmp_path / 'log')!r}, 'w')\nLOG.write('all of it')\n"
    waits = "import atexit\natexit.register(print, 'called')\n"
    (tmp_path / "mine.py").write_text(Path(TOY).read_text() + kept + waits)
    command = [sys.executable, "-m", "harness", "list", "tasks", "--plugin", tmp_path / "mine.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "called"), done.stderr
    assert (tmp_path / "log").read_text() == "all of it"


def test_a_program_that_calls_the_command_has_the_last_word():
    code = (
        "import runpy, sys\nsys.argv = ['harness', 'list', 'tasks']\n"
        "try: runpy.run_module('harness', run_name='__main__')\n"
        "except SystemExit as ended: sys.exit(5 if not ended.code else 6)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 5, done.stderr


def test_a_command_without_a_standard_output_says_nothing_of_it():
    command = shlex.join([sys.executable, "-m", "harness", "list", "tasks"])
    done = subprocess.run(f"{command} >&-", shell=True, cwd=ROOT, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_stream_writes_what_its_encoding_lacks_as_escapes():
    raw = io.BytesIO()
    stream = output.Stream(io.TextIOWrapper(raw, "ascii"))
    stream.write("70.00 ± 1.00\n")
    stream.flush()
    assert raw.getvalue() == b"70.00 \\xb1 1.00\n"


def test_a_stream_without_a_descriptor_goes_on_in_silence():
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    stream = output.Stream(Broken())
    assert stream.write("a") == 1
    assert stream.failure is not None
    stream.write("b")
    stream.flush()
    stream.stream.close()


def test_missing_runs_are_commands_and_only_those(folder, capsys):
    assert leaderboard(folder, "--missing") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    (mma,) = [shlex.split(line) for line in lines if "--methods mma" in line]
    given = dict(zip(mma[4::2], mma[5::2], strict=True))
    assert given["--methods"] == "mma"
    assert (given["--datasets"], given["--seeds"]) == ("toy_b", "2")
    assert (given["--tasks"], given["--shots"], given["--backbone"]) == (
        "base2new", "16", "emoji-mini",
    )  # fmt: skip
    assert given["--results"] == str(folder)
    assert all("coop.lr=0.1" in line for line in lines if "--methods coop" in line)
    assert leaderboard(folder, "--missing", "--methods", "dra") == 0
    assert capsys.readouterr().out == "Nothing is missing.\n"


def test_what_other_shards_may_have_made_is_said_beside_what_is_missing(folder, tmp_path, capsys):
    store = Store(tmp_path / "one").open()
    (first, *_) = grid(method="mma")
    command = "python -m harness run --methods mma --shard 2/3"
    written(store, replace(first, provenance=first.provenance | {"command": command}))
    written(store, record("mma", dataset="toy_b", seed=2))
    assert leaderboard(tmp_path / "one", "--missing") == 0
    assert capsys.readouterr().err == (
        "These records are of shard 2 of 3. Runs of other shards may be in other folders: give all "
        "of them to --results.\n"
    )
    assert leaderboard(folder, "--missing") == 0
    assert capsys.readouterr().err == ""


def test_the_command_of_a_missing_run_makes_it(tmp_path, capsys):
    toy = ["--tasks", "base2new", "--datasets", "toy", "--plugin", TOY, "--shots", "2"]
    results = ["--results", str(tmp_path)]
    toy += ["--set", "engine.max_steps=1", *results]
    main(["run", "--methods", "zero_shot", "--seeds", "1,2", *toy])
    main(["run", "--methods", "adapter", "--seeds", "1", "--set", "adapter.rank=2", *toy])
    capsys.readouterr()
    main(["leaderboard", "--missing", *results])
    (line,) = capsys.readouterr().out.splitlines()
    arguments = shlex.split(line)[3:]
    if "--plugin" not in arguments:  # the command of this test is pytest's
        arguments += ["--plugin", TOY]
    assert main(arguments) == 0
    capsys.readouterr()
    main(["leaderboard", "--missing", *results])
    assert capsys.readouterr().out == "Nothing is missing.\n"


def test_checks_name_settings_shots_and_seed(folder, capsys):
    assert leaderboard(folder, "--checks") == 0
    assert capsys.readouterr().out == "coop[lr=0.1] base2new toy_a, 16 shots, seed 1: bad\n"


@pytest.mark.parametrize("asked", ["--json", "--missing", "--checks"])
def test_what_is_no_table_takes_no_format_of_tables(asked, folder, capsys):
    assert leaderboard(folder, asked, "--format", "csv") == 2
    assert f"{asked} prints no table: leave out --format csv." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "unread"),
    [
        (["--checks", "--sort", "nope"], "--sort"), (["--json", "--pareto", "fit"], "--pareto"),
        (["--metrics", "--against", "coop"], "--against"), (["--missing", "--by-dataset"], "--by"),
        (["--format", "csv", "--against", "coop"], "--against"),
        (["--metrics", "--all-columns"], "--all-columns"), (["--json", "--by-dataset"], "--by"),
    ],
)  # fmt: skip
def test_an_option_that_would_change_nothing_is_refused(asked, unread, folder, capsys):
    assert leaderboard(folder, *asked) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {unread}")
    assert "is not for" in said


def test_a_copied_folder_changes_no_table(folder, tmp_path, capsys):
    leaderboard(folder)
    first = capsys.readouterr().out
    assert leaderboard(folder, str(folder), str(tmp_path)) == 0
    assert capsys.readouterr().out == first


def test_text_of_data_reaches_the_terminal_as_escapes(tmp_path, capsys):
    store = Store(tmp_path).open()
    name = "toy\x1b[31m\n\u202e"
    written(store, replace(record(dataset=name), checks=["bad\x1b]0;x\x07"]))
    for options in ([], ["--checks"], ["--missing"], ["--format", "csv"], ["--datasets", "none"]):
        leaderboard(tmp_path, *options)
        printed = "".join(capsys.readouterr())
        assert not {*"\x1b\x07\u202e"} & {*printed}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "adpter,lorra"], ["'adapter'", "'lora'"]),
        (["--methods", "adpter", "--tasks", "fewshot"], ["'adapter'", "'few_shot'"]),
        (["--datasets", "/tmp"], ["folder:/tmp"]),
        (["--datasets", "my/list.csv"], ["csv:my/list.csv"]),
    ],
)
def test_all_unknown_names_are_said_at_once_with_what_was_meant(capsys, arguments, says, tmp_path):
    base = ["run", "--methods", "coop", "--tasks", "few_shot", "--results", str(tmp_path / "r")]
    assert main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert all(each in error for each in says)


def test_show_prints_an_embedded_backbones_card(capsys):
    assert main(["show", "emoji-mini"]) == 0
    assert "no model for photographs" in capsys.readouterr().out


def test_the_plan_names_the_cap_beside_the_recipes_steps(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    base = ["run", "--methods", "adapter", "--tasks", "base2new", "--datasets", "toy", "--dry-run"]
    base += ["--plugin", TOY, "--results", str(tmp_path / "r")]
    assert main([*base, "--set", "engine.max_steps=3", "--set", "adapter.epochs=500"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 of 2,000 (engine.max_steps)" in printed


def test_long_estimates_are_in_days():
    from harness.records.tables import duration

    texts = [duration(seconds) for seconds in (89, 600, 7200, 5 * 86400)]
    assert texts == ["89 s", "10 min", "2.0 h", "5.0 days"]


def test_a_forecast_counts_views_that_a_closed_form_takes(make_run):
    plain, searched = (forecast([make_run(name)], 1e12) for name in ("zero_shot", "tip_adapter"))
    assert searched > plain + 1
