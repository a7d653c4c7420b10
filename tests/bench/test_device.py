"""What a card is to be measured for, at small sizes on the processor and on a pretended card."""

import json

import pytest
import torch

from harness.bench import device, jobs, launches
from harness.bench.device import DeviceRow, Profile, Work
from harness.bench.process import Ended
from harness.bench.step import StepBenchmark
from harness.cli.commands import main
from harness.fitting.step import Chunks
from tests import toy_backbone
from tests.conftest import PLUGINS
from tests.fitting.pretended_card import card

CPU = torch.device("cpu")


def methods(*names, **fields):
    return {name: PLUGINS.plugins["methods"][name].cls(**fields) for name in names}


def test_bench_measures_a_processor_and_says_that_it_is_no_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(device.SIDE, "cpu", 64)
    out = tmp_path / "device.json"
    few = [
        "--parts",
        "device",
        "--methods",
        "clip_adapter,zero_shot",
        "--classes",
        "2",
        "--repeats",
        "1",
    ]
    assert main(["bench", *few, "--backbone", "emoji-mini", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "No card was measured" in printed
    assert "goal" not in printed
    assert max(map(len, printed.splitlines())) <= 120
    assert printed.strip() == out.with_suffix(".md").read_text().strip("`\n")
    found = json.loads(out.read_text())
    assert found["matrix_rate"] > 0
    trained, frozen = found["device"]
    assert trained["train"]["operations"] > trained["inference"]["operations"] > 0
    assert trained["train"]["profile"]["kernels"] > 50
    assert frozen["train"] is None
    assert frozen["inference"]["images"] == 4


@pytest.mark.parametrize("name", ["clip_adapter", pytest.param("dra", marks=pytest.mark.slow)])
def test_the_operations_of_a_card_are_those_of_the_processor(name, monkeypatch, toy):
    monkeypatch.setattr("harness.fitting.texts.PASS", {})  # else it groups texts otherwise
    monkeypatch.setattr(device, "profiled", lambda *_: Profile(1.0, 1))  # asks the driver
    monkeypatch.setattr(device, "CHUNK", 4)
    chosen = methods(name, batch_size=2)
    (expected,) = device.rows(toy, chosen, [2], 1)
    with card(monkeypatch):
        (found,) = device.rows(toy_backbone.load().to("cuda"), chosen, [2], 1)
    assert found.train.operations == expected.train.operations
    assert found.inference.operations == expected.inference.operations
    assert found.train.bytes == 2**30


def row(method="dra", classes=100, seconds=0.1):
    work = Work(seconds, 16, 4e12, 2**30, Profile(0.5, 900))
    return DeviceRow(method, classes, work, Chunks(), work, 0.01, 0.02)


def test_a_cards_shares_are_of_its_rate_and_stand_beside_what_was_hoped_for():
    text = device.table([row(), row(classes=1000), row("coop")], 1e14, "cuda")
    assert row().train.share(1e14) == pytest.approx(0.4)
    assert "100.00 TFLOP/s" in text
    assert text.count("inference at 40% of the rate (goal 40%)") == 2  # of 100 classes
    assert "dra: 160 images a second in training" in text
    assert "prints 138.7 and 642.9 on an RTX 4090" in text
    assert "No card" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_way_that_fails_says_why_and_the_others_are_measured(toy, monkeypatch):
    def broken(bed):
        raise RuntimeError("no compiler\nand a long trace")

    monkeypatch.setattr(launches, "_compiled", broken)
    monkeypatch.setattr(launches, "BATCHES", (2,))
    (found,) = launches.rows(toy, methods("coop", "zero_shot"), 1, 2)  # nothing trained: no step
    assert found.eager > 0
    assert (found.compiled, found.graph) == (None, None)
    assert found.why == "compiled: no compiler; graph: needs a card"
    assert "coop, 2 images, compiled: no compiler" in launches.table([found])


def test_what_is_worth_keeping_is_marked():
    found = launches.LaunchRow("coop", 4, 0.013, 0.0101, 0.0099)
    last = launches.table([found]).splitlines()[2]
    assert last.split() == ["coop", "4", "13.00", "1.29", "1.31", "*"]


def test_runs_side_by_side_are_counted_against_one_after_another(monkeypatch):
    commands, seconds = [], iter((100.0, 60.0, 50.0))

    def called(*command):
        commands.append(command)
        return Ended("", next(seconds), 0.0, 0)

    monkeypatch.setattr(jobs, "called", called)
    found = jobs.jobs(["coop", "dra"], ["--device", "cpu"])
    assert [command[-1] for command in commands] == ["1", "2", "4"]
    assert len({command[command.index("--cache-dir") + 1] for command in commands}) == 3
    lines = jobs.table(found).splitlines()
    assert lines[-1].split() == ["4", "50.0", "432", "2.00"]  # 6 runs


def test_the_parts_of_a_card_take_methods_that_train_nothing_and_others_do_not(capsys):
    few = ["--methods", "zero_shot", "--backbone", "emoji-mini", "--classes", "2"]
    assert main(["bench", *few, "--parts", "device,steps"]) == 2
    assert "--tasks efficiency" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at all of them
def test_compiled_blocks_take_a_step(mini):
    bed = StepBenchmark(mini, *methods("coop", batch_size=4).values(), 2, 2**40)
    launches._compiled(bed)()
    with pytest.raises(RuntimeError, match="card"):
        launches._graph(bed)
