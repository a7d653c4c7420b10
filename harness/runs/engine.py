"""execute(run) -> Record: the straight line from a run to its record."""

import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from harness.certainty.paired import sign_test
from harness.errors import HarnessError
from harness.fitting.evaluate import Scores, evaluate, zero_shot
from harness.fitting.inputs import Images
from harness.fitting.memory import choose, step_memory
from harness.fitting.model import Model, whole_float32
from harness.fitting.recorded import recordable
from harness.fitting.step import Chunks
from harness.fitting.texts import Texts, texts
from harness.fitting.trainer import FitReport, fit
from harness.images.cache import Cache
from harness.measure import peak, start_peak
from harness.records.store import Record
from harness.runs.context import Context
from harness.runs.efficiency import measured
from harness.runs.executors.cards import on_one_device
from harness.runs.prepared import PreparedRun
from harness.runs.provenance import provenance_of
from harness.runs.run import Run
from harness.splits import Split
from harness.task import Measurement
from harness.towers.openclip import cast_once, compiled


def execute(
    asked: Run, context: Context, weights: Path | None = None
) -> tuple[Record, dict[str, Tensor], Model | None]:
    """Fits, evaluates and describes a run: its record, its per-image predictions, the fitted model.

    If there is a file at `weights`, it holds the fit of another run with the same `fit_key`. A
    failure becomes a record with its traceback; Ctrl-C passes through.
    """
    run = context.prepare(asked)
    if run.refusal:
        return _record(run, "not applicable", error=run.refusal), {}, None
    with _precision(run):
        try:
            if isinstance(run.task.value, Measurement):
                return _record(run, "done", cost=_measured(run)), {}, None
            start_peak(run.context.clip.device)
            clock = Clock(run.context.cache)
            model, shared = _stored(run, weights) or (run.model(), {})
            with _frozen(run):
                _read(run, fits=not shared and bool(model.trained.state_dict()))
                clock.lap("read")
                report = None if shared else _fit(run, model)
                clock.lap("train")
                scores = {
                    name: _scored(name, model, _images(run, model, split))
                    for name, split in run.evaluated.items()
                }
                frozen = {
                    e.name: zero_shot(_images(run, model, run.evaluated[e.name])).accuracy
                    for e in run.task.value.evaluations(run.dataset)
                    if e.change
                }
                clock.lap("evaluate")
                fit = run.fit_key if model.trained.state_dict() else None
                losses = report.losses if report else shared.get("epoch_losses", [])
                checks = _checks(run, model, losses, scores) if fit else []
            if report and not report.moved:
                checks.append("no trained parameter moved")
        except Exception:
            return _record(run, "failed", error=traceback.format_exc()), {}, None
    record = _record(
        run,
        "done",
        scores={
            name: {"accuracy": s.accuracy, "correct": s.correct, "total": len(s.labels)}
            | ({"zero_shot": frozen[name]} if name in frozen else {})
            for name, s in scores.items()
        },
        cost=_cost(run, model, report, scores) | clock.seconds | shared,
        checks=checks,
        fit=fit,
    )
    return record, _predictions(scores), model


def _scored(name: str, model: Model, images: Images) -> Scores:
    try:
        return evaluate(model, images)
    except HarnessError as error:
        raise HarnessError(f"evaluation {name!r}: {error}") from error


def _stored(run: PreparedRun, weights: Path | None) -> tuple[Model, dict[str, Any]] | None:
    """The model with the weights of an earlier fit, and what that fit cost, if there is one."""
    if weights is None or not weights.exists():
        return None
    model = run.model()
    try:
        with safetensors.safe_open(str(weights), "pt") as file:
            about = file.metadata()
        if about["fit"] != run.fit_key:  # of another fit, under this one's name
            return None
        cost = json.loads(about["cost"])
        model.load(weights)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, HarnessError):
        return None  # a damaged file: the fit is done again and replaces it
    parts = ("train_images", "epochs", "steps", "epoch_losses", "train_seconds",
             "train_frozen_seconds")  # fmt: skip
    return model, {name: cost[name] for name in parts if name in cost} | {"fit_shared": True}


def _fit(run: PreparedRun, model: Model) -> FitReport | None:
    """Nothing is fitted where the method inserts nothing."""
    if not model.trained.state_dict():
        return None
    images = _images(run, model, run.train)
    val = _images(run, model, run.val) if run.val else None
    prompts = texts(model, run.train.classes, training=True, cache=run.context.cache)
    chunks = _chunks(run, model, prompts)
    return fit(
        model,
        images,
        prompts,
        run.schedule,
        run.seed,
        val=val,
        chunks=chunks,
        graphs=run.settings.graphs,
        label=str(run),
    )


def _chunks(run: PreparedRun, model: Model, prompts: Texts) -> Chunks:
    """What the user says of micro-batches, or what the memory allows."""
    engine, method = run.settings, run.method.value
    given = Chunks(engine.image_chunk, engine.text_chunk, engine.checkpointing)
    if given != Chunks():
        return given
    rows = min(method.batch_size or len(run.train.items), len(run.train.items))
    device = run.context.clip.device
    share = step_memory(device) // on_one_device(engine, device)
    memory = int(engine.memory * 2**30) or share
    return choose(model, rows, prompts, memory)


def _measured(run: PreparedRun) -> dict[str, Any]:
    """What the method costs: nothing is fitted and kept."""
    model = run.model()
    images = _images(run, model, run.train)
    val = _images(run, model, run.val) if run.val else None
    with _frozen(run):
        return measured(run, images, val, partial(_chunks, run, model))


def _read(run: PreparedRun, fits: bool) -> None:
    """Opens every image before anything is trained: one that cannot be read fails the run now.

    Without a disk cache the images that are scored would be decoded twice; they are left for later.
    """
    context = run.context
    if fits:
        run.source(run.train).opened(run.train)
    if context.cache.disk is not None and context.cache.disk.limit > 0:
        for split in run.evaluated.values():
            for _ in run.source(split).test(split, context.clip.pixels):
                pass


def _images(run: PreparedRun, model: Model, split: Split) -> Images:
    augmentation = run.augmentation(model.method)
    return Images(model, run.source(split), split, run.context.cache, augmentation)


def _checks(
    run: PreparedRun, model: Model, losses: list[float], scores: dict[str, Scores]
) -> list[str]:
    """Sentences about a fit that looks wrong; none about one that does not."""
    found = []
    if losses and round(losses[-1], 4) > round(losses[0], 4):
        found.append(f"the loss rose from {losses[0]:.4f} to {losses[-1]:.4f}")
    name = next((n for n, s in run.evaluated.items() if s.classes == run.train.classes), None)
    if name is not None:
        split = run.evaluated[name]
        frozen, fitted = zero_shot(_images(run, model, split)), scores[name]
        units = split.units(run.run.data[split.classes.dataset])
        gains = [0] * (max(units) + 1)
        before, now = (each.predictions == each.labels for each in (frozen, fitted))
        for unit, gain in zip(units, (now.int() - before.int()).tolist(), strict=True):
            gains[unit] += gain
        better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        p = sign_test(better, worse)
        if fitted.correct < frozen.correct and worse > better and p < 0.05:
            what = "images" if len(gains) == len(units) else "units"  # less is what chance gives
            found.append(
                f"below zero-shot on its own classes: {fitted.accuracy:.4f} < "
                f"{frozen.accuracy:.4f}; it is worse on {worse} {what} and better on {better} of "
                f"{len(gains)} (exact sign test, p = {p:.1g})"
            )
    return found


def _cost(
    run: PreparedRun, model: Model, report: FitReport | None, scores: dict[str, Scores]
) -> dict[str, Any]:
    cost: dict[str, Any] = {
        "trainable_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stored_bytes": model.stored_bytes(),
        "evaluated_images": sum(len(s.labels) for s in scores.values()),
        "peak_memory_bytes": peak(run.context.clip.device),
    }
    if report:
        cost |= {
            "train_images": report.images,
            "epochs": len(report.losses),
            "steps": report.steps,
            "epoch_losses": report.losses,
        }
        if report.chunks != Chunks():
            cost["micro_batches"] = asdict(report.chunks) | {"made_smaller": report.shrunk}
    return cost


class Clock:
    """Seconds of a run's parts, apart from the frozen activations that other runs share."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.seconds = cache, dict[str, float]()
        self.started, self.frozen = time.perf_counter(), cache.seconds

    def lap(self, part: str) -> None:
        """Books the time since the last lap as `<part>_seconds` and `<part>_frozen_seconds`."""
        now, frozen = time.perf_counter(), self.cache.seconds
        self.seconds[f"{part}_frozen_seconds"] = frozen - self.frozen
        self.seconds[f"{part}_seconds"] = now - self.started - (frozen - self.frozen)
        self.started, self.frozen = now, frozen


def _predictions(scores: dict[str, Scores]) -> dict[str, Tensor]:
    """Side-file tensors: see records/predictions.py."""
    return {f"{n}.{what}": part for n, s in scores.items() for what, part in s.kept().items()}


def _record(run: PreparedRun, status: str, **content: Any) -> Record:
    provenance = provenance_of(run.context.clip.device, run.run.method.value.requires)
    left_out = run.context.left_out(run.run)
    provenance |= {"left_out": left_out} if left_out else {}
    return Record(key=run.key, status=status, run=run.identity, provenance=provenance, **content)


@contextlib.contextmanager
def _precision(run: PreparedRun) -> Any:
    device = run.context.clip.device.type
    bf16 = run.settings.precision == "bf16"
    # no cache of cast weights: it would outlive the optimiser's steps and freeze the first ones
    autocast = torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False)
    with recordable(run.context.clip.device), whole_float32(), autocast:
        yield


@contextlib.contextmanager
def _frozen(run: PreparedRun) -> Iterator[None]:
    """The frozen matrices in the precision of the run, their blocks compiled if it asks for that;
    a model is built before, of whole ones."""
    engine, clip = run.settings, run.context.clip
    with contextlib.ExitStack() as ways:
        if engine.precision == "bf16":
            ways.enter_context(cast_once(clip, torch.bfloat16))
        if engine.compile:
            ways.enter_context(compiled(clip))
        yield
