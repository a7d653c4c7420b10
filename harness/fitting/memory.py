"""How much of a training step is held at once: micro-batches and recomputation from the memory."""

import math
import os
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from harness.fitting.model import Model
from harness.fitting.step import Batch, Chunks, tower_features
from harness.fitting.texts import MicroBatch, Texts

SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the device's memory
# what a step takes of memory for a byte that is kept: passing tensors, and holes between tensors,
# which the heap of a processor leaves more of (measured: 2.0 to 2.4)
TAKEN = {"cuda": 1.25, "cpu": 2.4}


def step_memory(device: torch.device) -> int:
    """Bytes that a step may take if the user says nothing: a share of the device's whole memory.

    The whole and not the free one, so that a machine makes the same micro-batches every time: they
    change the last bits of a gradient.
    """
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
    else:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(whole * SHARE.get(device.type, 0.5))


def choose(model: Model, images: int, texts: Texts, memory: int) -> Chunks:
    """The largest micro-batches of a step on so many images with which it takes no more than
    `memory`."""
    memory = int(memory / TAKEN.get(model.clip.kind, 2.0))
    costs = _costs(model, images, texts)
    if sum(cost.all for cost in costs.values()) <= memory:
        return Chunks()
    parts = {kind: memory // max(cost.row, 1) for kind, cost in costs.items()}
    tight = any(parts[kind] < min(8, cost.rows) for kind, cost in costs.items())
    if tight:
        parts = {kind: memory // max(cost.least, 1) for kind, cost in costs.items()}
    sizes = {kind: max(1, min(parts[kind], cost.rows)) for kind, cost in costs.items()}
    if all(sizes[kind] == cost.rows for kind, cost in costs.items()):
        # each fits alone: two parts of one are enough, for then no two parts are held at once
        larger = max(costs, key=lambda kind: (costs[kind].rows > 1, costs[kind].all))
        sizes[larger] = math.ceil(sizes[larger] / 2)
    return Chunks(sizes["image"], sizes["text"], tight)


class Cost(NamedTuple):
    """Bytes of a step's activations in one tower: of its rows, of `all` of them at once; of the
    longest row, and of it where each block recomputes its own."""

    rows: int
    all: int
    row: int
    least: int


def _costs(model: Model, images: int, texts: Texts) -> dict[str, Cost]:
    clip = model.clip
    pixels = torch.zeros(2, *clip.pixels.shape, dtype=clip.logit_scale.dtype)
    x = model.prefix(clip.image, pixels.to(clip.device))
    labels = torch.zeros(2, dtype=torch.long, device=clip.device)
    batch = Batch(model, x, texts, labels, ("memory", 0)).drawn()
    copies = images if model.method.text_per_image else 1
    row, least = _bytes(batch, "image", torch.arange(1), clip.image.length)
    found = {"image": Cost(images, images * row, row, least)}
    groups = [
        (copies * len(rows), *_bytes(batch, "text", rows, length))
        for rows, length, _ in batch.texts.groups(copies)
    ]
    whole = sum(rows * row for rows, row, _ in groups)
    row, least = max((row, least) for _, row, least in groups)
    found["text"] = Cost(copies * len(batch.texts.ids), whole, row, least)
    return found


def _bytes(batch: Batch, kind: str, rows: Tensor, length: int) -> tuple[int, int]:
    """Of the first row's activations for the backward pass: all that are kept, and, where each
    block recomputes its own, the tokens that enter the blocks and what one block keeps."""
    model = batch.model
    tower = model.clip.image if kind == "image" else model.clip.text
    cut = model.cut(tower)
    blocks = 0 if cut is None else len(tower.blocks) - max(cut, 0)
    one, two = (
        MicroBatch(rows[:1].repeat(count).to(batch.labels.device), length) for count in (1, 2)
    )
    whole = _kept(batch, kind, two) - _kept(batch, kind, one)  # less what no row changes
    if not blocks:
        return whole, whole
    return whole, 4 * length * tower.width * blocks + whole // blocks


def _kept(batch: Batch, kind: str, micro_batch: MicroBatch) -> int:
    """Bytes that autograd keeps for the backward pass of some rows."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sparse = tensor.is_sparse
        for part in (tensor._values(), tensor._indices()) if sparse else (tensor,):
            storage = part.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    batch.model.checkpointing = False
    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        _features = tower_features(
            batch, kind, micro_batch
        )  # holds the graph, so that no address comes twice
    return sum(sizes.values())
