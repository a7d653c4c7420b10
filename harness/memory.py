"""How much of a training step is held at once: micro-batches and recomputation from the memory."""

import math
import os

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from harness.graft import Model
from harness.inputs import Piece, Texts
from harness.trainer import Batch, Chunks, part

SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the device's memory
# what a step takes of memory for a byte that is kept: passing tensors, and holes between tensors,
# which the heap of a processor leaves more of (measured: 2.0 to 2.4)
TAKEN = {"cuda": 1.25, "cpu": 2.4}


def memory_of(device: torch.device) -> int:
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
    memory = int(memory / TAKEN.get(model.clip.device.type, 2.0))
    costs = _costs(model, images, texts)
    if sum(count * whole for count, whole, _ in costs.values()) <= memory:
        return Chunks()
    parts = {kind: memory // max(whole, 1) for kind, (_, whole, _) in costs.items()}
    tight = any(part < min(8, costs[kind][0]) for kind, part in parts.items())
    if tight:
        parts = {kind: memory // max(least, 1) for kind, (_, _, least) in costs.items()}
    sizes = {kind: max(1, min(part, costs[kind][0])) for kind, part in parts.items()}
    if all(sizes[kind] == count for kind, (count, _, _) in costs.items()):
        # each fits alone: two parts of one are enough, for then no two parts are held at once
        larger = max(costs, key=lambda kind: (costs[kind][0] > 1, costs[kind][0] * costs[kind][1]))
        sizes[larger] = math.ceil(sizes[larger] / 2)
    return Chunks(sizes["image"], sizes["text"], tight)


def _costs(model: Model, images: int, texts: Texts) -> dict[str, tuple[int, int, int]]:
    """By tower: a step's rows, and what `_bytes` says of one; of texts, the longest, and as many of
    them as have the tokens of all."""
    clip = model.clip
    pixels = torch.zeros(2, 3, clip.size, clip.size, dtype=clip.logit_scale.dtype)
    x = model.start(clip.image, pixels.to(clip.device))
    labels = torch.zeros(2, dtype=torch.long, device=clip.device)
    batch = Batch(model, x, texts, labels, ("memory",)).drawn()
    copies, shared = images if model.method.text_per_image else 1, batch.texts.shared
    groups = batch.texts.groups(copies)
    tokens = sum(shared + len(numbers) * (length - shared) for numbers, length, _ in groups)
    rows = math.ceil(copies * tokens / (batch.texts.ids.shape[1] - shared))
    return {"image": (images, *_bytes(batch, "image")), "text": (rows, *_bytes(batch, "text"))}


def _bytes(batch: Batch, kind: str) -> tuple[int, int]:
    """Of one row's activations for the backward pass: all that are kept, and, where each block
    recomputes its own, the tokens that enter the blocks and what one block keeps."""
    model = batch.model
    tower = model.clip.image if kind == "image" else model.clip.text
    cut = model.cut(tower)
    blocks = 0 if cut is None else len(tower.blocks) - max(cut, 0)
    whole = _kept(batch, kind, 2) - _kept(batch, kind, 1)  # without what does not depend on rows
    if not blocks:
        return whole, whole
    length = tower.length if kind == "image" else batch.texts.ids.shape[1]
    return whole, 4 * length * tower.width * blocks + whole // blocks


def _kept(batch: Batch, kind: str, count: int) -> int:
    """Bytes that autograd keeps for the backward pass of the first rows."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    model, numbers = batch.model, torch.arange(count, device=batch.labels.device)
    piece = Piece(numbers, batch.texts.ids.shape[1])
    model.checkpointing = False
    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        _features = part(batch, kind, piece)  # holds the graph, so that no address comes twice
    return sum(sizes.values())
