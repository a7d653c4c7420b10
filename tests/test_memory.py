"""Micro-batches follow from the memory, and shrink when it runs out; the result does not change."""

import pytest
import torch

from harness import trainer
from harness.dataset import Classes
from harness.engine import execute
from harness.graft import Model
from harness.memory import Chunks, choose, halved
from tests.conftest import PLUGINS

CLASSES = Classes("toy", ("red", "green"), "{}")


def model(clip, name: str) -> Model:
    return Model(clip, PLUGINS.plugins["methods"][name].cls(), CLASSES, seed=1)


def test_a_step_that_fits_is_done_at_once(mini):
    assert choose(model(mini, "mma"), 16, 50, 10, 2**30) == Chunks()


def test_less_memory_gives_smaller_micro_batches_and_then_recomputation(mini):
    mma = model(mini, "mma")
    chosen = [choose(mma, 64, 1000, 16, memory) for memory in (2**27, 2**26, 2**25, 2**20)]
    texts = [chunks.texts for chunks in chosen]
    assert texts[:3] == sorted(texts[:3], reverse=True)
    assert texts[0] > texts[2] > 0
    assert [chunks.checkpointing for chunks in chosen] == [False, False, False, True]


def test_the_chosen_micro_batches_are_as_large_as_the_memory_allows(mini):
    mma, memory = model(mini, "mma"), 2**26
    row = 4 * 16 * mini.text.width * 24 * 8  # tokens, width, kept by a block, blocks from the fifth
    assert choose(mma, 1, 10_000, 16, memory).texts == memory // row


def test_a_tower_that_is_never_changed_takes_no_memory(mini):
    assert choose(model(mini, "clip_adapter"), 10**6, 10**6, 16, 1) == Chunks()


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
    whole, failed = trainer.gradients, []

    def short(batch, loss=None):
        if len(failed) < 2:
            failed.append(batch.chunks)
            whole(batch, loss)  # what it leaves behind must not count
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch, loss)

    monkeypatch.setattr(trainer, "gradients", short)
    record, _, again = execute(make_run(name, warmup_epochs=0))
    assert plain.cost.get("micro_batches") is None
    assert record.cost["micro_batches"]["made_smaller"] == 2
    for a, b in zip(again.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_memory_that_is_never_enough_is_a_failed_run(make_run, monkeypatch):
    def full(batch, loss=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "gradients", full)
    record, _, _ = execute(make_run("adapter"))
    assert record.status == "failed"
    assert "out of memory" in record.reason


def test_the_memory_setting_is_what_a_step_is_cut_to(make_run):
    record, _, _ = execute(make_run("adapter", memory=0.01))
    assert record.cost["micro_batches"]["images"] >= 1
    assert record.cost["micro_batches"]["made_smaller"] == 0
