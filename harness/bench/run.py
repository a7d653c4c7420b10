"""All that `bench` measures, printed and kept as it goes."""

import contextlib
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.bench import device as devices
from harness.bench import dra
from harness.bench import evaluation as scoring
from harness.bench import jobs as processes
from harness.bench import launches as launching
from harness.bench.matrix import MATRIX, matrix
from harness.bench.memory import MemoryRow, memory_rows, memory_table
from harness.bench.step import names
from harness.bench.steps import Row, steps, table
from harness.dataset import Classes
from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.recorded import recordable
from harness.measure import device_name
from harness.method import Method
from harness.towers import backbone as backbones
from harness.towers.openclip import Clip, cast_once

PARTS = ("steps", "memory", "matrix", "dra", "device", "launches", "evaluation", "jobs", "coverage",
         "sequential", "scale", "starts", "deploy", "records")  # fmt: skip
CARD = ("device", "launches", "evaluation", "jobs")  # what a card is measured for


@dataclass
class Card:
    """What the parts of a card have measured so far."""

    rate: float = math.nan
    device: list[devices.DeviceRow] = field(default_factory=list)
    launches: list[launching.LaunchRow] = field(default_factory=list)
    evaluation: list[scoring.EvaluationRow] = field(default_factory=list)
    jobs: dict[str, Any] | None = None

    def tables(self, device: str) -> list[str]:
        """Of what there is."""
        found = [devices.table(self.device, self.rate, device)] if self.device else []
        found += [launching.table(self.launches)] if self.launches else []
        found += [scoring.table(self.evaluation)] if self.evaluation else []
        return found + ([processes.table(self.jobs)] if self.jobs else [])

    def content(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "matrix_rate": self.rate if self.device else None,
            "device": [asdict(row) for row in self.device],
            "launches": [asdict(row) for row in self.launches],
            "evaluation": [asdict(row) for row in self.evaluation],
            "jobs": self.jobs,
        }


def report(
    rows: Sequence[Row],
    sizes: Sequence[MemoryRow],
    whole: Mapping[str, Any] | None,
    noise: Mapping[str, float] | None,
    about: Mapping[str, Any],
    card: "Card | None" = None,
) -> str:
    """All that was measured as text, with the device."""
    parts = [f"{about['backbone']}, {about['precision']}, {about['device']}, "
             f"{about['threads']} threads, torch {about['torch']}."]  # fmt: skip
    if rows:
        parts.append(table(rows))
    if sizes:
        parts.append(memory_table(sizes))
    if whole:
        speed = whole["naive_seconds"] / whole["engine_seconds"]
        parts.append(
            f"emoji-mini, {whole['dataset']}, {len(whole['methods'])} methods x "
            f"{len(whole['seeds'])} seeds from empty caches: {whole['engine_seconds']:.0f} s "
            f"against {whole['naive_seconds']:.0f} s of naive runs, {speed:.1f} times faster\n("
            + ", ".join(f"{n} {s:.0f} s" for n, s in whole["naive_seconds_a_seed"].items())
            + " a naive run)."
        )
    if noise:
        parts.append(dra.table(noise))
    if card:
        parts += card.tables(str(about["device_type"]))
    return "\n\n".join(parts)


def save(path: Path, content: Mapping[str, Any], text: str) -> None:
    """A JSON file, and the printed text beside it as .md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(f"```\n{text}\n```\n", encoding="utf-8")


def _check(clip: Clip, methods: Mapping[str, Method], untrained: bool = False) -> None:
    few = Classes("bench", names(2), "a photo of a {}.")
    for name, method in methods.items():
        trained = method.batch_size and Model(clip, method, few, seed=1).parameters()
        if type(method).texts_of_step is not Method.texts_of_step:
            raise HarnessError(
                f"bench counts operations class by class; {name} takes other texts in each step. "
                "Measure it with `run --tasks efficiency`."
            )
        if method.frozen_images or not (trained or untrained):
            raise HarnessError(
                f"bench times training steps on batches of images; {name} takes none, or needs "
                "their frozen features too. Measure it with `run --tasks efficiency`."
            )


def run(
    methods: Mapping[str, Method],
    counts: Sequence[int],
    backbone: str,
    device: str,
    repeats: int,
    parts: Sequence[str],
    memory: float,
    out: Path | None,
    plugins: Sequence[str] = (),
) -> str:
    """Measures what is asked for; returns the text, and keeps it in `out` as it goes.

    Raises:
        HarnessError: a method whose step on random images means nothing.
    """
    rows: list[Row] = []
    sizes: list[MemoryRow] = []
    whole: dict[str, Any] | None = None
    noise: dict[str, float] | None = None
    about = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "backbone": backbone, "device": device_name(torch.device(device)),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "precision": "bf16" if device.startswith("cuda") else "fp32", "repeats": repeats,
        "device_type": torch.device(device).type,
    }  # fmt: skip
    card = Card()

    def so_far() -> str:
        text = report(rows, sizes, whole, noise, about, card)
        if out:
            lists = {"steps": [asdict(r) for r in rows], "memory": [asdict(r) for r in sizes]}
            found = {"about": about, **lists, "matrix": whole, "dra": noise, **card.content()}
            save(out, found, text)
        return text

    if {"steps", "memory", "device", "launches", "evaluation"} & set(parts):
        clip = backbones.load(backbone, device)
        _check(clip, methods, untrained=set(parts) <= set(CARD))
        bf16 = about["precision"] == "bf16"
        with (
            recordable(clip.device),
            torch.autocast(clip.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False),
            cast_once(clip, torch.bfloat16) if bf16 else contextlib.nullcontext(),
        ):
            if "memory" in parts:
                for size in memory_rows(clip, methods, max(counts), int(memory * 2**30)):
                    sizes.append(size)
                    so_far()
            if "steps" in parts:
                for row in steps(clip, methods, counts, repeats):
                    rows.append(row)
                    so_far()
            if "device" in parts:
                dtype = torch.bfloat16 if bf16 else torch.float32
                card.rate = devices.matrix_rate(clip.device, dtype, repeats)
                for measured in devices.rows(clip, methods, counts, repeats):
                    card.device.append(measured)
                    so_far()
            if "launches" in parts:
                for step in launching.rows(clip, methods, repeats, min(counts)):
                    card.launches.append(step)
                    so_far()
            if "evaluation" in parts:
                for scored in scoring.rows(clip, methods, max(counts), repeats):
                    card.evaluation.append(scored)
                    so_far()
        del clip
    if "matrix" in parts:
        options = ["--device", device, *(f"--plugin={each}" for each in plugins)]
        whole = matrix(list(methods), *MATRIX, options)
    if "jobs" in parts:
        options = ["--device", device, *(f"--plugin={each}" for each in plugins)]
        card.jobs = processes.jobs(list(methods), options)
    if "dra" in parts:
        noise = dra.measured()
    return so_far()
