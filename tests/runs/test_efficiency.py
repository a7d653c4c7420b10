"""What is measured of a method, the tables of it, and the benchmark's two ways of one step."""

import dataclasses
import json

import pytest
import torch

from harness import measure
from harness.bench import memory as memory_of_a_step
from harness.bench import step
from harness.bench import steps as bench
from harness.bench.naive import naively
from harness.cli.commands import main
from harness.errors import HarnessError
from harness.fitting.inputs import Images
from harness.fitting.step import Chunks
from harness.images.cache import Disk
from harness.leaderboards import costs
from harness.records.store import Store
from harness.runs import efficiency
from harness.towers import backbone as backbones
from tests.conftest import PLUGINS, TOY

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["emoji-mini", "ViT-B-32:random"])
def test_the_operations_of_a_block_are_those_of_the_formula(name):
    """q, k, v and o: 8 L D^2; the MLP of four widths: 16 L D^2; the attention's two products:
    4 L^2 D."""
    clip = backbones.load(name)
    for tower in (clip.image, clip.text):
        length, width = tower.length, tower.width
        x = torch.randn(2, length, width)
        counted = measure.operations(lambda tower=tower, x=x: tower.block(0, x))
        assert counted == 2 * (24 * length * width**2 + 4 * length**2 * width)


def test_bytes_are_those_of_the_largest_moment():
    def work():
        torch.zeros(25 * 2**20).sum()  # 100 MB, freed again
        torch.zeros(2**20).sum()

    assert 95 * 2**20 < measure.taken(work, CPU) < 120 * 2**20


def test_repetitions_take_turns_after_one_that_is_not_measured():
    done = []
    works = {name: lambda name=name: done.append(name) for name in "ab"}
    seconds = measure.timed(works, 3, CPU)
    assert "".join(done) == "abababab"
    assert len(measure.timed(works, 2, CPU, warm=True)) == 2
    assert len(done) == 12
    assert all(s.least <= s.median <= s.most for s in seconds.values())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    assert run(folder) == 0
    return folder


def run(folder, methods="coop,cocoop,zero_shot,tip_adapter,adapter", tasks="efficiency"):
    chosen = ["--methods", methods, "--tasks", tasks, "--shots", "2", "--results", str(folder)]
    quick = ["--set", "engine.max_steps=2", "--plugin", str(TOY)]
    if tasks == "efficiency":
        quick += ["--set", "efficiency.repeats=1", "--set", "efficiency.images=4"]
        quick += ["--datasets", "emoji_food"]
    else:
        quick += ["--datasets", "toy"]
    return main(["run", *chosen, *quick])


def test_a_record_of_costs_has_every_part(measured):
    records = {record.run["method"]: record for record in Store(measured).records()}
    assert {name for name, r in records.items() if "train" in r.cost} == {
        "coop",
        "cocoop",
        "adapter",
    }
    for record in records.values():
        assert record.status == "done"
        assert not record.scores
        inference = record.cost["inference"]
        assert inference["batch"] == 4
        assert inference["operations_an_image"] > 10**8
        assert all(inference[part]["median"] > 0 for part in ("data", "image", "texts", "head"))
    train = records["adapter"].cost["train"]
    assert train["batch"] == 16
    assert train["bytes"] > 2**20
    assert train["step"]["median"] > max(train[part]["median"] for part in ("image", "text")) * 0.5
    # texts for each image only where the method has them
    assert records["cocoop"].cost["inference"]["text_per_image"]
    assert costs.image_rate(records["cocoop"].cost) < costs.image_rate(records["coop"].cost)
    for name, own in (("cocoop", ["texts"]), ("coop", [])):
        inference = records[name].cost["inference"]
        seconds = sum(inference[part]["median"] for part in ("data", "image", "head", *own))
        assert costs.image_rate(records[name].cost) == pytest.approx(4 / seconds)


def test_costs_are_tables_by_device_and_nothing_is_measured_twice(measured, capsys):
    assert run(measured) == 0
    printed = capsys.readouterr().out
    assert "to run: 0 of 5" in printed
    assert printed.count("efficiency, emoji-mini, fp32") == 2
    assert "emoji_food (50 classes), 2 shots, settings of base2new: training." in printed
    assert "Top-1" not in printed
    assert max(map(len, printed.splitlines())) <= 120
    assert main(["leaderboard", "--results", str(measured), "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("method,params")
    assert main(["leaderboard", "--results", str(measured), "--format", "latex"]) == 0


def test_nothing_is_not_measured(tmp_path, capsys):
    few = ["--methods", "coop", "--tasks", "efficiency", "--results", str(tmp_path)]
    assert main(["run", *few, "--set", "efficiency.repeats=0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_pareto_marks_what_no_method_beats(measured, tmp_path, capsys):
    assert run(tmp_path / "r", "coop,zero_shot,adapter", "base2new") == 0
    capsys.readouterr()
    for cost in costs.COSTS:
        arguments = ["leaderboard", "--results", str(tmp_path / "r"), str(measured)]
        arguments += ["--task", "base2new"]
        assert main([*arguments, "--pareto", cost]) == 0
        lines = capsys.readouterr().out.splitlines()
        (header,) = (line for line in lines if "unbeaten" in line)
        marked = {line.split("|")[1].strip() for line in lines if "| " in line and " * |" in line}
        assert marked
        assert "zero_shot" in marked or cost == "inference"  # in every other way it costs nothing
        assert cost in header.split()
        assert costs.COSTS[cost][0] in "\n".join(lines)
    assert main([*arguments, "--pareto", "fit", "--format", "csv"]) == 2
    assert main(["leaderboard", "--results", str(tmp_path / "none"), "--pareto", "fit"]) == 2
    # costs of a fit with other shots, or with the recipe of another task, are not of this table
    assert run(tmp_path / "o", "coop", "few_shot") == 0
    arguments = ["leaderboard", "--results", str(tmp_path / "o"), str(measured)]
    assert main([*arguments, "--pareto", "fit"]) == 2
    assert "efficiency.like" in capsys.readouterr().err


def test_features_are_computed_for_a_measurement_whatever_is_kept(make_run, tmp_path):
    run = make_run("coop")
    source = dataclasses.replace(run.source(run.train), disk=Disk(tmp_path))
    model, calls = run.model(), []
    augmentation = run.augmentation(model.method)
    images = Images(model, source, run.train, run.context.cache, augmentation)
    alone = efficiency._alone(images).source
    for kind in ("features", "features", "others", "others"):

        def compute(kind=kind):
            calls.append(kind)
            return {"x": torch.zeros(1)}

        alone.kept(kind, run.train, run.train.items, compute)
    assert calls == ["features", "features", "others"]
    assert efficiency._alone(images).cache is not images.cache


def test_all_texts_of_a_method_are_counted(tmp_path):
    assert run(tmp_path, "tcp,coop") == 0
    coop, tcp = Store(tmp_path).records()
    counted = [each.cost["inference"]["operations_a_class"] for each in (coop, tcp)]
    assert 1.8 < counted[1] / counted[0] < 2.5  # its anchors' texts, too


def test_without_room_for_decoded_images_nothing_is_measured(tmp_path, capsys):
    few = ["--methods", "coop", "--tasks", "efficiency", "--results", str(tmp_path)]
    assert main(["run", *few, "--cache-limit", "0"]) == 1
    printed = capsys.readouterr()
    assert "--cache-limit" in printed.err
    assert "nothing was measured" in printed.out


def test_unbeaten_is_not_beaten_in_both():
    points = [(0.7, 10.0), (0.7, 5.0), (0.6, 5.0), (0.5, 1.0), (0.5, 1.0)]
    assert costs.unbeaten(points) == [False, True, False, True, True]


def test_costs_of_different_kinds_are_never_in_one_column(measured, capsys):
    records = list(Store(measured).records())
    first = records[0]
    for changed in (
        {"measured_on": ["another", 64]},
        {"settings": {**first.run["settings"], "precision": "bf16"}},
        {"task_fields": {**first.run["task_fields"], "images": 5}},
    ):
        other = dataclasses.replace(first, run={**first.run, **changed})
        assert len(costs.tables([*records, other], "markdown")) == 4
        with pytest.raises(HarnessError, match="different kinds"):
            costs.costs_by_method([*records, other], "fit")
    few = dataclasses.replace(first, run={**first.run, "shots": 1})
    assert len(costs.costs_by_method([*records, few], "fit")) == len(records) + 1
    with pytest.raises(HarnessError, match="--tasks efficiency"):
        costs.costs_by_method([], "fit")


def test_a_printed_count_that_differs_is_shown_beside_ours():
    text = costs._parameters({"trainable_parameters": 35_360, "printed_parameters": 354_000})
    assert text == "35,360 (printed: 354,000)"
    assert costs._parameters({"trainable_parameters": 2048, "printed_parameters": 2000}) == "2,048"


BENCHED = ("coop", "cocoop", "kgcoop", "maple", "mma", "adapter", "dra")


@pytest.mark.parametrize("name", BENCHED)
def test_both_ways_of_the_benchmark_take_the_same_step(name, exact):
    plugin = PLUGINS.plugins["methods"][name]

    def stepped(way):
        bed = step.StepBenchmark(exact, plugin.cls(**{**plugin.fixed, "batch_size": 2}), 9, 2**40)
        for group in bed.optimiser.param_groups:
            group["weight_decay"] = 0
        getattr(bed, way)()
        return [parameter.grad for parameter in bed.model.parameters()]

    engine, naive, cached = map(stepped, ("engine", "naive", "cached"))
    assert any(grad is not None and grad.abs().max() > 0 for grad in engine)
    for one, other, third in zip(engine, naive, cached, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(one, third, rtol=1e-9, atol=1e-12)


def test_the_classes_of_the_benchmark_are_imagenets():
    assert len(step.names(1000)) == 1000
    assert step.names(100)[:2] == ("tench", "brambling")
    assert step.names(2000)[1000:] == step.names(1000)


@pytest.mark.parametrize(
    "name", ["coop", "cocoop", pytest.param("mma", marks=pytest.mark.slow), "tip_adapter_f"]
)
def test_counted_operations_are_those_of_the_whole_step(name, toy, monkeypatch):
    """Counted of a few texts of each length, and of all."""
    monkeypatch.setattr("harness.fitting.texts.PASS", {})
    plugin = PLUGINS.plugins["methods"][name]
    bed = step.StepBenchmark(toy, plugin.cls(**{**plugin.fixed, "batch_size": 3}), 9, 2**40)
    assert (len(bed.prompts.groups(3)) > 1) == (name != "tip_adapter_f")
    assert (bed.prompts.shared > 1) == (name in ("coop", "cocoop"))
    assert bed.flops(bed.prompts, "whole") == pytest.approx(
        measure.operations(bed.engine), rel=1e-3
    )
    if name == "mma":  # what texts share is counted once for each part
        in_parts = measure.operations(lambda: bed.engine(Chunks(texts=5)))
        assert bed.flops(bed.prompts, "halves") == pytest.approx(in_parts, rel=1e-3)
    assert len(bed.whole.ids) == len(bed.prompts.ids)
    naive = measure.operations(bed.naive)
    with naively():
        assert bed.flops(bed.whole, "whole") == pytest.approx(naive, rel=1e-3)


def test_bench_prints_and_keeps_what_it_measured(tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    few = ["--methods", "coop", "--classes", "8", "--repeats", "1"]
    few += ["--parts", "steps,memory", "--memory", "0.01"]
    assert main(["bench", *few, "--backbone", "emoji-mini", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    (row,) = json.loads(out.read_text())["steps"]
    (size,) = json.loads(out.read_text())["memory"]
    assert size["chunks"]["texts"] <= 8
    assert row["engine"]["flops"] < row["naive"]["flops"]
    assert row["evaluated"] > 0
    assert printed.strip() == out.with_suffix(".md").read_text().strip("`\n")
    assert max(map(len, printed.splitlines())) <= 120
    assert main(["bench", "--methods", "coopp"]) == 2
    assert main(["bench", "--repeats", "0"]) == 2
    assert main(["bench", "--classes", "0"]) == 2
    for name in ("zero_shot", "metaprompt", "lfa", "proda"):
        few = ["--methods", name, "--parts", "steps", "--backbone", "emoji-mini"]
        assert main(["bench", *few]) == 2
        assert "--tasks efficiency" in capsys.readouterr().err
    assert main(["bench", "--parts", "step"]) == 2


def test_a_step_takes_no_more_memory_than_it_may(mini):
    plugin = PLUGINS.plugins["methods"]["coop"]
    methods = {"coop": plugin.cls(**plugin.fixed)}
    (free,) = memory_of_a_step.memory_rows(mini, methods, 300, 2**40)
    (tight,) = memory_of_a_step.memory_rows(mini, methods, 300, 80 * 2**20)
    assert free.chunks.texts == 0
    assert tight.chunks.texts > 0
    assert tight.bytes < 120 * 2**20 < free.bytes


@pytest.mark.slow
def test_what_does_not_fit_is_continued_from_fewer_classes(mini, monkeypatch):
    plugin = PLUGINS.plugins["methods"]["coop"]
    method = plugin.cls(**plugin.fixed)
    monkeypatch.setattr(bench, "FEW", (10, 20))
    monkeypatch.setattr(bench, "step_memory", lambda device: 9 * 10**7)  # enough for 20 classes
    fits, not_ = bench.steps(mini, {"coop": method}, [20, 40], 1)
    assert not fits.naive.extrapolated
    assert not_.naive.extrapolated
    assert "~" in bench.table([not_])
    assert not_.naive.flops > fits.naive.flops
