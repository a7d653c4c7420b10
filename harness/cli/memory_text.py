"""What a training step would take of memory, as a table."""

from collections.abc import Sequence

from harness.fitting.footprint import Footprint
from harness.records.tables import MISSING, harmless, plain_table, wrapped
from harness.runs.memory_plan import Device, Need, device_of, needs
from harness.runs.prepared import PreparedRun


def memory_text(runs: Sequence[PreparedRun], card: float | None) -> str:
    """The table of a plan's methods, for this device or a card of so many GiB."""
    device = device_of(runs[0], card)
    found = list(needs(runs, device))
    rows: list[dict[str, object]] = []
    for need in found:
        row: dict[str, object] = {
            "method": need.method, "classes": need.classes, "images": need.images,
        }  # fmt: skip
        rows.append(row | _columns(need.at_once, need.chosen))
    if not rows:
        return "No method of the plan takes a training step."
    why = [f"Not counted, {each.method}: {each.why}." for each in found if each.why]
    lines = wrapped([harmless(each) for each in [*_about(device, found), *why]])
    return "\n".join(lines) + "\n\n" + plain_table(rows)


def _columns(at_once: Footprint | None, chosen: Footprint | None) -> dict[str, object]:
    if at_once is None or chosen is None:
        return {}
    chunks = chosen.chunks
    return {
        "weights": _gigabytes(at_once.weights),
        "trained": _gigabytes(at_once.trained + at_once.gradients + at_once.optimiser),
        "activations": _gigabytes(at_once.activations),
        "workspace": _gigabytes(at_once.workspace),
        "in all": _gigabytes(at_once.peak),
        "images at once": chunks.images or "all",
        "texts at once": chunks.texts or "all",
        "recomputed": "yes" if chunks.checkpointing else "no",
        "then in all": _gigabytes(chosen.peak),
    }


def _about(device: Device, found: Sequence[Need]) -> list[str]:
    name = "this machine"
    if device.whole is not None:
        name = f"a card of {device.whole / 2**30:.6g} GB"
    lines = [
        f"GB of a training step on {name} ({device.precision}), counted and not measured: frozen "
        "weights; what is trained, with gradients and the optimiser's state; activations that are "
        "kept for the backward pass; workspace: inputs and what passes between operations. Left "
        "out are what a kernel takes for itself, what the allocator loses between tensors, and "
        "what PyTorch and its libraries take.",
        f"A step may take {device.step / 2**30:.6g} GB beside the weights: on the right are the "
        "micro-batches that the engine would choose, and what the step then takes.",
    ]
    if device.whole is None:
        return lines
    most, many = device.whole // device.processes, device.processes > 1
    large = [each.method for each in found if each.chosen and each.chosen.peak > most]
    what = f"the card, which {device.processes} processes share" if many else "the card"
    return lines + ([f"Too large for {what}: {', '.join(large)}."] if large else [])


def _gigabytes(value: int) -> str:
    return f"{value / 2**30:.2f}" if value else MISSING
