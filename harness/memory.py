"""How much of a training step is held at once: micro-batches and recomputation from the memory."""

import os
from dataclasses import dataclass

import torch

from harness.clip import Tower
from harness.graft import Model

SAVED = 24  # widths of a token that a block keeps for its backward pass, with QuickGELU
SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the device's memory


@dataclass(frozen=True)
class Chunks:
    """Micro-batch sizes: images and text rows at once; 0 takes all (of texts per image at most
    CHUNK_TEXTS). checkpointing: whether each block recomputes its activations."""

    images: int = 0
    texts: int = 0
    checkpointing: bool = False


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


def choose(model: Model, images: int, texts: int, length: int, memory: int) -> Chunks:
    """The largest micro-batches of `images` and `texts` rows whose activations fit in `memory`.

    Args:
        length: tokens of a text, after cropping.
    """
    costs = {
        "images": (images, _bytes(model, model.clip.image, model.clip.image.length)),
        "texts": (texts, _bytes(model, model.clip.text, length)),
    }
    if sum(rows * whole for rows, (whole, _) in costs.values()) <= memory:
        return Chunks()
    parts = {kind: memory // max(whole, 1) for kind, (_, (whole, _)) in costs.items()}
    tight = any(part < min(8, costs[kind][0]) for kind, part in parts.items())
    if tight:
        parts = {kind: memory // max(least, 1) for kind, (_, (_, least)) in costs.items()}
    sizes = {kind: max(1, min(part, costs[kind][0])) for kind, part in parts.items()}
    return Chunks(sizes["images"], sizes["texts"], tight)


def halved(chunks: Chunks, images: int, texts: int) -> Chunks | None:
    """Half as much at once; None if there is nothing left to halve."""
    now = (chunks.images or images, chunks.texts or texts)
    if max(now) == 1:
        return None if chunks.checkpointing else Chunks(1, 1, True)
    return Chunks(max(1, now[0] // 2), max(1, now[1] // 2), chunks.checkpointing)


def _bytes(model: Model, tower: Tower, length: int) -> tuple[int, int]:
    """Of one row's activations in the blocks after the cut: all kept, and recomputed by block."""
    cut = model.cut(tower)
    blocks = 0 if cut is None else len(tower.blocks) - max(cut, 0)
    if not blocks:
        return 0, 0
    token = 4 * length * tower.width
    return token * SAVED * blocks, token * (blocks + SAVED)
