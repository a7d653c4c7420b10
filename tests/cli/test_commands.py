"""The command line as a user meets it, on the toy dataset and the embedded backbone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cli.arguments import parser
from harness.cli.commands import main
from harness.records.store import Store
from tests.conftest import ROOT

TOY = str(ROOT / "tests" / "toy.py")
QUICK = ["--datasets", "toy", "--plugin", TOY, "--shots", "4", "--set", "engine.max_steps=2"]


def run(results, *arguments, methods="adapter"):
    base = ["run", "--methods", methods, "--tasks", "base2new", "--results", str(results), *QUICK]
    return main([*base, *arguments])


def runs(results):
    return Store(results).records()


def test_a_run_leaves_a_record_predictions_weights_and_a_table(tmp_path, capsys):
    assert run(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "to run: 1 of 1" in printed
    assert "| adapter" in printed
    (record,) = runs(tmp_path)
    assert set(record.scores) == {"base", "new"}
    assert record.scores["base"]["total"] == 4 * 8
    assert record.cost["trainable_parameters"] > 0
    assert record.provenance["versions"]["torch"]
    assert sorted(p.suffixes[-2] for p in tmp_path.rglob("*.safetensors")) == [
        ".predictions",
        ".weights",
    ]


def test_a_second_call_runs_nothing_and_prints_the_same_table(tmp_path, capsys):
    run(tmp_path)
    first = capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}
    run(tmp_path)
    second = capsys.readouterr().out
    assert "to run: 0 of 1" in second
    assert (
        first[first.index("base2new, emoji-mini") :]
        == second[second.index("base2new, emoji-mini") :]
    )
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")} == before


def test_a_deleted_record_is_run_again_to_the_same_scores(tmp_path):
    run(tmp_path)
    (record,) = runs(tmp_path)
    for path in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.safetensors")]:
        path.unlink()
    run(tmp_path)
    (again,) = runs(tmp_path)
    assert (again.key, again.scores) == (record.key, record.scores)
    assert "fit_shared" not in again.cost


def test_force_runs_again(tmp_path):
    run(tmp_path)
    (first,) = (tmp_path / "base2new").rglob("*.json")
    stamp = first.stat().st_mtime_ns
    run(tmp_path, "--force")
    assert first.stat().st_mtime_ns > stamp


def test_dry_run_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "new"
    assert run(folder, "--dry-run", "--seeds", "1-3", methods="adapter,zero_shot") == 0
    printed = capsys.readouterr().out
    assert "to run: 6 of 6" in printed
    assert "estimated time" in printed
    assert not folder.exists()


def test_a_sweep_is_a_row_for_each_value(tmp_path, capsys):
    assert run(tmp_path, "--sweep", "adapter.rank=2,4") == 0
    printed = capsys.readouterr().out
    assert "adapter[rank=2]" in printed
    assert "adapter[rank=4]" in printed
    assert len(runs(tmp_path)) == 2


def test_of_one_setting_the_last_counts(tmp_path):
    run(tmp_path, "--set", "adapter.rank=4", "--set", "adapter.rank=2")
    assert [record.run["hyperparameters"]["rank"] for record in runs(tmp_path)] == [2]


def test_a_command_none_of_whose_methods_can_serve_its_task_fails(tmp_path, capsys):
    assert run(tmp_path, methods="linear_probe") == 1
    printed = capsys.readouterr()
    assert "not applicable" in printed.out
    assert "nothing was run" in printed.err


def test_another_setting_seed_or_split_is_another_run(tmp_path):
    keys = set()
    for extra in ([], ["--set", "adapter.lr=0.1"], ["--seeds", "2"], ["--set", "engine.split=val"]):
        run(tmp_path, *extra)
        keys |= {record.key for record in runs(tmp_path)}
    assert len(keys) == 4


def test_the_same_setting_in_other_words_is_the_same_run(tmp_path):
    run(tmp_path, "--set", "adapter.rank=32")
    run(tmp_path)
    assert len(runs(tmp_path)) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "adaptr"], "Did you mean 'adapter'"),
        (["--tasks", "base2old"], "Did you mean 'base2new'"),
        (["--datasets", "toys"], "Did you mean 'toy'"),
        (["--backbone", "RN50:random"], "its image tower gives features alone. Choose a backbone"),
        (["--seeds", "one"], "1,2,3"),
        (["--shots", "0"], "at least 1"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--set", "adapter.rnak=3"], "Did you mean 'rank'"),
        (["--set", "dra.rank=3"], "which nothing here reads"),
        (["--seeds", "3-1"], "backwards"),
        (["--set", "adapter.batch_size=-1"], "negative"),
        (["--set", "adapter.rank=0"], "rank must be at least 1"),
        (["--set", "adapter.scale=0.0"], "scale > 0"),
        (["--set", "adapter.lr=-1.0"], "negative"),
        (["--set", "engine.max_steps=0"], "at least 1"),
        (["--methods", "dra", "--set", "dra.ratios=(1.5,)"], "ratios"),
        (["--methods", "dra", "--set", "dra.ratios=()"], "ratios"),
        (["--methods", "dra-loggumbel", "--set", "dra.noise=none"], "which nothing here reads"),
        (["--set", "nothing.rank=3"], "unknown name"),
        (["--config", "nowhere.gin"], "does not exist"),
        (["--plugin", "nowhere.py"], "failed to import"),
        (["--set", "adapter.first_block=13"], "tower has 12"),
        (["--precision", "fp32", "--set", "engine.precision=bf16"], "precision is set twice"),
        (["--set", "adapter.rank=4", "--sweep", "adapter.rank=2,4"], "adapter.rank is set twice"),
        (["--sweep", "adapter.rank=2", "--sweep", "adapter.rank=4"], "adapter.rank is set twice"),
        (["--jobs", "1", "--jobs-per-gpu", "2"], "leave one out"),
        (["--check-images"], "--check-images is of a plan: add --dry-run."),
    ],
)
def test_a_bad_request_is_one_sentence_exit_code_2_and_nothing_written(
    tmp_path, capsys, arguments, says
):
    assert run(tmp_path / "r", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "r").exists()


def test_the_same_cell_asked_for_in_two_ways_is_one_row(tmp_path, capsys):
    run(tmp_path, "--sweep", "adapter.rank=8,32")
    run(tmp_path, "--seeds", "1-2")
    capsys.readouterr()
    main(["leaderboard", "--results", str(tmp_path)])
    table = capsys.readouterr().out
    ranks = [line.split("|")[2].strip() for line in table.splitlines() if "| adapter" in line]
    assert sorted(ranks) == ["32", "8"]
    assert "2/2" in table


def test_a_datasets_field_is_part_of_the_run(tmp_path, capsys):
    code = Path(TOY).read_text().replace("class Toy(Dataset):", "class Toy2(Dataset):")
    code = code.replace("    def read(", "    quality: int = 1\n\n    def read(")
    (tmp_path / "toy2.py").write_text(code)
    assert run(
        tmp_path / "r", "--plugin", str(tmp_path / "toy2.py"), "--datasets", "toy2",
        "--sweep", "toy2.quality=1,2",
    ) == 0  # fmt: skip
    assert "to run: 2 of 2" in capsys.readouterr().out
    assert len(runs(tmp_path / "r")) == 2


def test_a_task_may_evaluate_on_datasets_that_were_not_named(tmp_path, capsys):
    (tmp_path / "transfer.py").write_text(
        "from dataclasses import dataclass\n"
        "from harness.task import Evaluation, Fit, Task\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Transfer(Task):\n"
        '    """To another dataset."""\n'
        "    def fit(self, dataset):\n"
        '        return Fit(dataset, "base")\n'
        "    def evaluations(self, dataset):\n"
        '        return [Evaluation("target", "emoji_activities", "new")]\n'
    )
    plugin = ["--plugin", str(tmp_path / "transfer.py"), "--tasks", "transfer"]
    assert run(tmp_path / "r", *plugin) == 0
    assert "target" in capsys.readouterr().out


def test_a_results_path_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "r").write_text("")
    assert run(tmp_path / "r") == 2
    assert "--results" in capsys.readouterr().err


def test_a_failing_run_is_recorded_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    import harness.runs.engine as engine

    original = engine.fit

    def failing(model, *arguments, **options):
        if model.method.name == "coop":
            raise RuntimeError("out of luck")
        return original(model, *arguments, **options)

    monkeypatch.setattr(engine, "fit", failing)
    assert run(tmp_path, methods="coop,adapter") == 1
    captured = capsys.readouterr()
    assert "failed: coop" in captured.err
    assert "out of luck" in captured.err
    assert "0/1 incomplete, 1 failed" in captured.out
    statuses = {record.run["method"]: record.status for record in runs(tmp_path)}
    assert statuses == {"coop": "failed", "adapter": "done"}
    monkeypatch.undo()
    assert run(tmp_path, methods="coop,adapter") == 0
    assert all(record.status == "done" for record in runs(tmp_path))


def command(results, *arguments):
    return [
        sys.executable, "-m", "harness", "run", "--tasks", "base2new", "--results", str(results),
        *QUICK, *arguments,
    ]  # fmt: skip


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("ended", "jobs"), [(signal.SIGINT, "1"), (signal.SIGKILL, "2")])
def test_what_is_finished_is_kept_and_no_process_goes_on(ended, jobs, tmp_path):
    arguments = command(tmp_path, "--methods", "zero_shot,dra,mma", "--jobs", jobs)
    arguments += ["--set", "engine.max_steps=400000"]
    process = subprocess.Popen(
        [
            *arguments,
            "--set",
            "dra.epochs=400000",
            "--set",
            "mma.epochs=400000",
            "--set",
            "engine.max_epochs=400000",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # a shell's background job ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob(".locks/*.lock"))) < 1 + int(jobs) and time.monotonic() < deadline:
        time.sleep(0.1)  # until every process trains
    process.send_signal(ended)
    _, error = process.communicate(timeout=60)
    if ended == signal.SIGINT:
        assert process.returncode == 130
        assert "1 of 3 runs are finished" in error
        assert "same command" in error
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid)
    assert [record.run["method"] for record in runs(tmp_path)] == ["zero_shot"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_processes_share_the_work_and_run_nothing_twice(tmp_path):
    arguments = command(tmp_path, "--methods", "adapter,mma,coop", "--seeds", "1-2")
    processes = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(runs(tmp_path)) == 6
    printed = "".join(out + error for out, error in outputs)
    assert printed.count(": base ") - printed.count(", another process") == 6
    tables = [out[out.index("base2new, emoji-mini") :] for out, _ in outputs]
    assert tables[0] == tables[1]


def test_jobs_share_the_runs_and_change_no_prediction(tmp_path, capsys):
    from safetensors.torch import load_file

    def files(folder):
        found = sorted(folder.rglob("*.predictions.safetensors"))
        return {path.name: load_file(path) for path in found}

    alone = command(tmp_path / "1", "--methods", "adapter,coop", "--jobs", "1")
    assert main(alone[3:]) == 0
    assert "in 2 processes" not in capsys.readouterr().out
    shared = command(tmp_path / "2", "--methods", "adapter,coop", "--jobs", "2")
    done = subprocess.run(shared, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "in 2 processes" in done.stdout
    assert (done.stdout + done.stderr).count(": base ") == 2
    commands = {record.provenance["command"] for record in runs(tmp_path / "2")}
    assert len(commands) == 1  # also of what the other process made
    assert "--methods adapter,coop" in commands.pop()
    one, two = files(tmp_path / "1"), files(tmp_path / "2")
    assert len(one) == 2
    assert one.keys() == two.keys()
    for name, tensors in one.items():
        assert all(tensors[part].equal(two[name][part]) for part in tensors)


def test_leaderboard_reads_records_alone(tmp_path, capsys):
    run(tmp_path)
    capsys.readouterr()
    for form in ("markdown", "csv", "latex"):
        assert main(["leaderboard", "--results", str(tmp_path), "--format", form]) == 0
        assert "adapter" in capsys.readouterr().out
    assert main(["leaderboard", "--results", str(tmp_path), "--task", "few_shot"]) == 2
    assert main(["leaderboard", "--results", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("kind", ["methods", "tasks", "datasets", "backbones"])
def test_list_fits_a_terminal_and_names_everything(kind, capsys, plugins):
    assert main(["list", kind]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    named = {line.split()[0] for line in printed.splitlines() if line.strip()}
    every = {"emoji-mini"} if kind == "backbones" else {*plugins.plugins[kind]} - {"toy"}
    assert every <= named


def test_show_prints_equations_and_the_source_of_every_default(capsys):
    assert main(["show", "dra-t"]) == 0
    printed = capsys.readouterr().out
    assert "(Eq. 9)" in printed
    assert "'adapter'" in printed
    assert "DRA section 4.1.2" in printed
    assert main(["show", "drat"]) == 2


def test_help_texts_describe_every_option():
    parsers = next(a for a in parser()._actions if a.choices).choices
    assert {"run", "list", "show", "leaderboard", "data", "bench", "compare"} <= set(parsers)
    data = next(a for a in parsers.pop("data")._actions if a.choices).choices
    assert set(data) == {"status", "prepare", "verify", "lists", "cache"}
    for each in [*parsers.values(), *data.values()]:
        for action in each._actions:
            assert action.help, action.dest
            assert max(map(len, each.format_help().splitlines())) <= 100


def test_provenance_lets_a_stranger_run_it_again(tmp_path):
    run(tmp_path)
    (record,) = runs(tmp_path)
    assert {"time", "command", "commit", "dirty", "device", "threads", "versions"} <= set(
        record.provenance
    )
    assert os.uname().nodename not in json.dumps(dict(record.provenance))
    fingerprints = record.run["fingerprints"]
    assert set(fingerprints) == {"weights", "train", "evaluated"}
    assert record.run["hyperparameters"]["rank"] == 32


def test_a_changed_weight_file_is_a_different_run(tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from harness.towers.backbone import EMBEDDED

    folder = tmp_path / "copy"
    shutil.copytree(EMBEDDED / "emoji-mini", folder)
    results = tmp_path / "r"
    run(results, "--backbone", f"local-dir:{folder}")
    weights = folder / "open_clip_model.safetensors"
    tensors = load_file(weights)
    tensors["visual.proj"] = tensors["visual.proj"] + 0.01
    save_file(tensors, weights)
    run(results, "--backbone", f"local-dir:{folder}")
    keys = {record.key for record in runs(results)}
    assert len(keys) == 2


def test_no_run_is_begun_that_would_end_after_the_limit(tmp_path, capsys):
    asked = ["--methods", "adapter,zero_shot", "--jobs", "1", "--max-hours", "1e-9"]
    assert main(command(tmp_path, *asked)[3:]) == 3
    said = capsys.readouterr().err
    assert "--max-hours 1e-09: 0 of 2 runs are finished and kept" in said
    assert runs(tmp_path) == []
    assert main(command(tmp_path, *asked[:-1], "1")[3:]) == 0
    assert len(runs(tmp_path)) == 2
    assert main(command(tmp_path, *asked[:-1], "-1")[3:]) == 2
    assert "must be more than 0" in capsys.readouterr().err
