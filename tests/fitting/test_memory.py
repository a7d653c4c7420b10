"""Micro-batches follow from the memory, and shrink when it runs out; the result does not change."""

import platform
import subprocess
import sys

import pytest
import torch

from harness.dataset import Classes
from harness.fitting import memory, step
from harness.fitting.memory import choose
from harness.fitting.model import Model
from harness.fitting.step import Chunks, halved
from harness.fitting.texts import MicroBatch, texts
from harness.towers.edit import Edit
from tests.conftest import PLUGINS, execute

GB = 2**30


def chosen(clip, name: str, images: int, count: int, memory: float) -> Chunks:
    classes = Classes("toy", tuple(f"thing {i}" for i in range(count)), "{}")
    model = Model(clip, PLUGINS.plugins["methods"][name].cls(), classes, seed=1)
    return choose(model, images, texts(model, classes, training=True), int(memory))


def test_a_step_that_fits_is_done_at_once(mini):
    assert chosen(mini, "mma", 16, 50, GB) == Chunks()


def test_what_a_sparse_matrix_keeps_is_counted(mini, monkeypatch):
    class Sparse(Edit):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x, y, at):
            places = torch.tensor([[0, 1, 2], [0, 1, 2]])
            size = (y.shape[-1],) * 2
            made = torch.sparse_coo_tensor(places, self.weight, size, check_invariants=True)
            return y + torch.sparse.mm(made, y.flatten(0, -2).T).T.view_as(y)

    method = PLUGINS.plugins["methods"]["lora"].cls
    monkeypatch.setattr(method, "edits", lambda *given: {"image.blocks.11.fc2": Sparse()})
    model = Model(mini, method(), Classes("toy", ("one", "two"), "{}"), seed=1)
    prompts = texts(model, model.classes, training=True)
    cost = memory._costs(model, 4, prompts)["image"]
    assert cost.row >= 4 * mini.image.length * mini.image.width


def test_less_memory_gives_smaller_micro_batches_and_then_recomputation(mini):
    found = [chosen(mini, "mma", 64, 1000, memory) for memory in (2**27, 2**26, 2**25, 2**20)]
    sizes = [chunks.texts for chunks in found]
    assert sizes[:3] == sorted(sizes[:3], reverse=True)
    assert sizes[0] > sizes[2] > 0
    assert [chunks.checkpointing for chunks in found] == [False, False, False, True]


def test_the_chosen_micro_batches_are_as_large_as_the_memory_allows(mini):
    found = chosen(mini, "mma", 1, 2_000, 2**26)
    classes = Classes("toy", tuple(f"thing {i}" for i in range(2_000)), "{}")
    model = Model(mini, PLUGINS.plugins["methods"]["mma"].cls(), classes, seed=1)
    cost = memory._costs(model, 1, texts(model, classes, training=True))["text"]
    assert found.texts == int(2**26 / memory.TAKEN["cpu"]) // cost.row


@pytest.mark.parametrize("name", ["mma", "cocoop"])
def test_what_is_held_at_once_is_no_more_than_the_memory(name, mini):
    """Two parts of one batch are held together, of several each by itself."""
    classes = Classes("toy", tuple(f"thing {i}" for i in range(40)), "{}")
    model = Model(mini, PLUGINS.plugins["methods"][name].cls(), classes, seed=1)
    prompts = texts(model, classes, training=True)
    costs = memory._costs(model, 16, prompts)
    sizes = {kind: cost.all for kind, cost in costs.items()}
    for share in (1.01, 0.99, 0.7, 0.5, 0.3):
        allowed = sum(sizes.values()) * share
        found = choose(model, 16, prompts, int(allowed * memory.TAKEN["cpu"]))
        at_once = {"image": found.images, "text": found.texts}
        if found == Chunks():
            assert share > 1
            continue
        assert any(0 < at_once[kind] < cost.rows for kind, cost in costs.items())
        for kind, cost in costs.items():
            row = cost.least if found.checkpointing else cost.row
            assert at_once[kind] * row <= allowed


@pytest.mark.parametrize("name", ["coop", "mma", "dra", "lora", "cocoop", "prograd"])
def test_the_activations_of_the_micro_batches_are_what_was_foreseen(name, mini, monkeypatch):
    """Counted anew, of all rows of a group at once; the frozen weights do not depend on them."""
    monkeypatch.setattr("harness.fitting.texts.PASS", {})
    classes = Classes("toy", tuple(f"{'very ' * (i % 3)}thing" for i in range(30)), "{}")
    model = Model(mini, PLUGINS.plugins["methods"][name].cls(), classes, seed=1)
    prompts = texts(model, classes, training=True)
    x = model.prefix(mini.image, torch.zeros(1, *mini.pixels.shape))
    batch = step.Batch(model, x, prompts, torch.zeros(1, dtype=torch.long), ("toy", 0)).drawn()
    cost = memory._costs(model, 1, prompts)["text"]
    assert cost.row > 4 * mini.text.width * 11 * 20  # 20 numbers of a block for each of a token's
    held = []
    for rows, length, _ in prompts.groups():
        one, every = (
            memory._kept(batch, "text", MicroBatch(some, length)) for some in (rows[:1], rows)
        )
        held += [every - one, (every - one) / (len(rows) - 1)]
    assert cost.all == pytest.approx(sum(held), rel=0.01)
    assert cost.row == pytest.approx(max(held[1::2]), rel=0.01)


def test_a_tower_that_is_never_changed_takes_no_memory(mini):
    assert chosen(mini, "clip_adapter", 10**6, 1000, 2**20) == Chunks()


def test_halving_ends_with_recomputation_of_single_rows():
    chunks, seen = Chunks(), []
    while chunks is not None:
        seen.append(chunks)
        chunks = halved(chunks, 4, 3)
    assert seen == [
        Chunks(), Chunks(2, 1), Chunks(1, 1), Chunks(1, 1, checkpointing=True),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["adapter", "metaprompt", "cocoop"])
def test_a_step_that_runs_out_of_memory_is_done_again_in_parts(name, make_run, monkeypatch):
    plain, _, trained = execute(make_run(name, warmup_epochs=0))
    whole, failed = step.gradients, []

    def short(batch, loss=None):
        if len(failed) < 2:
            failed.append(batch.chunks)
            whole(batch, loss)  # what it leaves behind must not count
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch, loss)

    monkeypatch.setattr(step, "gradients", short)
    record, _, again = execute(make_run(name, warmup_epochs=0))
    assert plain.cost.get("micro_batches") is None
    assert record.cost["micro_batches"]["made_smaller"] == 2
    for a, b in zip(again.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_memory_that_is_never_enough_is_a_failed_run(make_run, monkeypatch):
    def full(batch, loss=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "gradients", full)
    record, _, _ = execute(make_run("adapter"))
    assert record.status == "failed"
    assert "out of memory" in record.reason


def test_the_memory_setting_is_what_a_step_is_cut_to(make_run):
    little, plenty = (execute(make_run("adapter", memory=m))[0].cost for m in (0.001, 1.0))
    assert 1 <= little["micro_batches"]["images"] < 16  # of a step's
    assert little["micro_batches"]["made_smaller"] == 0
    assert "micro_batches" not in plenty


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide themselves")
def test_the_memory_of_a_freed_tensor_serves_the_next_one():
    """In a process by itself: its pages are not asked of the kernel again."""
    program = """
import resource, torch
from harness.towers import backbone
backbone.load("emoji-mini")
def faults():
    torch.ones(2**26)  # 256 MB, 65,536 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
*_, before, after = [faults() for _ in range(5)]
print(after - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(done.stdout) < 1000
