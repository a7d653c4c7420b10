"""What a step takes of memory is foreseen without weights: the engine's own step is counted."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from harness.bench.step import StepBenchmark, names
from harness.cli.commands import main
from harness.cli.memory_text import _about
from harness.dataset import Classes
from harness.errors import HarnessError
from harness.fitting import footprint as counting
from harness.fitting.footprint import Footprint, footprint, without_numbers
from harness.fitting.step import Chunks
from harness.runs.memory_plan import Device, Need, needs
from harness.towers import backbone as backbones
from harness.towers.openclip import Clip
from tests.conftest import PLUGINS, ROOT


def most_allocated(work):
    """Bytes of a step at most, as PyTorch's allocator counts them: what a process takes also
    depends on what else the machine does."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())]
    return max(itertools.accumulate(changes))


@pytest.fixture(scope="module")
def small():
    """Two towers of two blocks."""
    return backbones.reference((2, 2), 32, 32, Clip)


@pytest.fixture(scope="module")
def vit():
    return backbones.load("ViT-B-16:random")


@pytest.fixture(scope="module")
def fake(small):
    return without_numbers(small)


def of(clip, name, count=6, images=8, chunks=Chunks(), **fields):
    plugin = PLUGINS.plugins["methods"][name]
    classes = Classes("toy", tuple(f"thing {i}" for i in range(count)), "a {}.")
    return footprint(clip, plugin.cls(**{**plugin.fixed, **fields}), classes, images, chunks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coop", "maple", "lora", "full"])
def test_what_is_foreseen_of_vit_b_16_is_within_a_fifth_of_what_a_step_takes(name, vit):
    plugin = PLUGINS.plugins["methods"][name]
    method = replace(plugin.cls(**plugin.fixed), batch_size=4)
    bench = StepBenchmark(vit, method, 20, 10**15, scored=1)
    bench.engine()  # the optimiser's state is there then
    bench.optimiser.zero_grad(set_to_none=True)
    found = footprint(without_numbers(vit), method, bench.classes, 4, Chunks())
    assert found.peak - found.resident == pytest.approx(most_allocated(bench.engine), rel=0.2)


@pytest.mark.slow
def test_what_is_foreseen_of_a_card_is_within_a_twentieth_of_what_one_took():
    measured = json.loads((ROOT / "results" / "bench-h100-device.json").read_text())["device"]
    card = without_numbers(backbones.load("ViT-B-16-quickgelu:random", numbers=False), "cuda")
    for row in measured:
        if row["train"] is None:
            continue
        method = PLUGINS.plugins["methods"][row["method"]].cls()
        classes = Classes("bench", names(row["classes"]), "a photo of a {}.")
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            step = footprint(card, method, classes, row["train"]["images"], Chunks(**row["chunks"]))
        foreseen, took = step.peak - step.resident, row["train"]["bytes"]
        assert foreseen == pytest.approx(took, rel=1 / 20), (row["method"], row["classes"])


def test_the_state_of_adam_is_twice_the_parameters_and_of_sgd_once(fake, small):
    adam, sgd = of(fake, "taskres"), of(fake, "clip_adapter")
    assert adam.optimiser == 2 * adam.trained == 2 * 6 * small.embedding * 4
    assert sgd.optimiser == sgd.trained == sgd.gradients
    assert adam.weights == sum(each.nbytes for each in small.parameters()) + sum(
        each.nbytes for each in small.buffers()
    )


@pytest.mark.slow
def test_micro_batches_and_recomputation_take_less(fake):
    whole = of(fake, "lora", 12)
    parts = of(fake, "lora", 12, chunks=Chunks(2, 4))
    least = of(fake, "lora", 12, chunks=Chunks(2, 4, True))
    assert whole.activations > 2 * parts.activations > 2 * least.activations


@pytest.mark.slow
def test_of_many_micro_batches_two_are_enough(monkeypatch):
    clip = without_numbers(backbones.load("ViT-B-16:random", numbers=False))
    few = of(clip, "maple", 50, chunks=Chunks(4, 10))
    monkeypatch.setattr(counting, "PARTS", 100)
    every = of(clip, "maple", 50, chunks=Chunks(4, 10))
    assert few.peak - few.resident == pytest.approx(every.peak - every.resident, rel=0.01)


@pytest.mark.slow
def test_what_depends_on_values_is_taken_at_its_most(toy):
    """A mask of the classes that take part, and a loop that ends when nothing changes."""
    fake = without_numbers(toy)
    assert of(fake, "skip_tuning").activations > 0
    assert of(fake, "plot").activations > 0


@pytest.mark.slow
def test_in_bfloat16_activations_are_smaller_and_the_matrices_are_there_twice(fake):
    whole = of(fake, "lora")
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        lower = of(fake, "lora")
    assert lower.activations < 0.8 * whole.activations
    assert whole.weights < lower.weights < 1.5 * whole.weights


def test_what_is_trained_of_the_backbone_stays_whole_in_bfloat16(fake):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        lower = of(fake, "full")
    assert lower.trained == of(fake, "full").trained
    assert lower.optimiser == 2 * lower.trained


def test_the_largest_backbones_are_there_without_weights():
    clip = backbones.load("ViT-bigG-14:laion2b_s39b_b160k", numbers=False)
    assert clip.fingerprint == backbones.NOT_HERE
    assert sum(each.numel() for each in clip.parameters()) == 2_539_567_105
    with pytest.raises(HarnessError, match="other GELU"):
        backbones.load("ViT-B-32:openai", numbers=False)


def test_a_method_whose_step_needs_numbers_is_named_with_the_reason(make_run):
    (found,) = needs([make_run("clap")], Device("cpu", "fp32", 2**30))
    assert found.at_once is None
    assert "needs numbers" in found.why


def test_memory_belongs_to_a_plan_and_has_a_size(capsys):
    asked = ["run", "--methods", "coop", "--tasks", "base2new", "--memory"]
    assert main(asked) == 2
    assert "add --dry-run" in capsys.readouterr().err
    for size in ("much", "0", "9" * 400):
        assert main([*asked, size, "--dry-run"]) == 2
        assert f"{size[:40]!r} is no size of a card" in capsys.readouterr().err


def test_a_small_card_keeps_its_size_and_each_of_its_processes_has_a_part():
    half = 2**29
    step = Footprint(half // 2 + 1, 0, 0, 0, 0, 0, Chunks())
    need = Need("coop", "toy", 4, 8, step, step)
    alone = " ".join(_about(Device("cuda", "bf16", 2**28, half), [need]))
    assert "on a card of 0.5 GB" in alone
    assert "may take 0.25 GB" in alone
    assert "Too large" not in alone
    shared = _about(Device("cuda", "bf16", 2**27, half, processes=2), [need])
    assert shared[-1] == "Too large for the card, which 2 processes share: coop."


@pytest.mark.slow
def test_a_plan_for_a_card_that_is_not_here_prints_the_memory_of_each_method(capsys):
    said = ["run", "--methods", "coop,zero_shot", "--tasks", "base2new", "--datasets", "emoji_food",
            "--backbone", "ViT-B-16:random", "--dry-run", "--memory", "80GB"]  # fmt: skip
    assert main(said) == 0
    printed = capsys.readouterr().out
    assert "a card of 80 GB (bf16)" in printed
    assert "A step may take 64 GB" in printed
    assert "estimated time" not in printed
    assert "are not loaded for a plan of memory" in printed
    assert printed.count("\ncoop ") == 2
