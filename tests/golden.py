"""Golden values: what short fits of every method come to, in float64, on the toy backbone.

    python -m tests.golden [NAME ...]

makes tests/golden.json again, or the values of some methods. Do so after a change that is meant to
change numbers, and say in the commit which numbers and why; a method's own change moves only its
own values.
"""

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from harness.config import Engine
from harness.fitting.texts import text_features, texts
from harness.method import HeadContext, method_code
from harness.runs.run import ENGINE, Configured
from harness.towers.openclip import Clip
from tests import toy_backbone
from tests.conftest import METHODS, PLUGINS, execute, prepared
from tests.methods.test_contract import fitting

FILE = Path(__file__).with_suffix(".json")
STEPS = 4
# whole images: releases of Pillow differ in the last bits of a crop that is made smaller
# lfa's mapping is determined on the span of the class texts alone: with more dimensions than
# classes the rest is what LAPACK makes of rounding, another on every processor
EMBEDDING = {"lfa": 4}


def measure(name: str, device: str = "cpu", **settings: Any) -> dict[str, Any]:
    """Losses of a fit on the toy dataset, sums of its trained tensors, and logits of two random
    images on the classes that were fitted and on others, if the method can serve others."""
    torch.set_default_dtype(torch.float64)  # so that initial values are drawn in it
    try:
        return _measure(name, device, settings)
    finally:
        torch.set_default_dtype(torch.float32)


@functools.cache
def _backbone(embedding: int, device: str) -> Clip:
    """The toy in float64, which is the default precision while this is called."""
    return toy_backbone.load(embedding).double().to(device)


def _measure(name: str, device: str, engine: dict[str, Any]) -> dict[str, Any]:
    plugin = PLUGINS.plugins["methods"][name]
    clip = _backbone(EMBEDDING.get(name, 36), device)
    settings = Engine(max_steps=STEPS, precision="fp32", crop_scale=(1.0, 1.0), **engine)
    short = {"batch_size": 4, "warmup_epochs": 0, "shots": 2}
    settings_of = plugin.fixed | fitting(name) | _those_of(plugin.cls, short)
    method = Configured(name, plugin.cls(**settings_of))
    task = "few_shot" if plugin.cls.only_fitted_classes else "base2new"
    run = prepared(clip, method, task, 2, 1, settings, tested=2)
    record, _, model = execute(run)
    assert record.status == "done", record.error
    assert model is not None
    draws = torch.Generator().manual_seed(2)
    pixels = (torch.rand((2, 3, 48, 48), generator=draws) * 4 - 2).to(device)
    with torch.no_grad():
        features = model.clip.image(pixels)
        image = model.rest(model.clip.image, model.prefix(model.clip.image, pixels), pixels,
                             _rows(pixels))  # fmt: skip
    logits = {}
    for evaluation, split in run.evaluated.items():
        prompts = texts(model, split.classes, training=False)
        own = image if method.value.text_per_image else None
        given = HeadContext(
            model.clip.logit_scale.exp(), prompts.references,
            features if method.value.frozen_when_scored else None,
            split.classes.names == model.classes.names,
        )  # fmt: skip
        text = text_features(model, prompts, own)
        logits[evaluation] = model.output(image, text, given).logits.tolist()
    return {
        "losses": record.cost.get("epoch_losses", []),
        "trained": _summary(model.trained.state_dict()),
        "logits": logits,
    }


def _summary(state: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Two numbers for all tensors of one name whatever their block: each tensor's entries weighted
    by their places, and their squares, both weighted by the tensor's place among its like."""
    sums: dict[str, list[float]] = {}
    places: dict[str, int] = {}
    for name, tensor in sorted(state.items()):
        value = tensor.double().flatten()
        like = re.sub(r"\d+", "*", name)
        place = places[like] = places.get(like, 0) + 1
        weighted = float(value @ torch.linspace(-1, 2, len(value)).to(value))
        total = sums.setdefault(like, [0.0, 0.0])
        total[0] += place * weighted
        total[1] += place * float(value @ value)
    return sums


def _rows(images: torch.Tensor) -> Any:
    from harness.towers.edit import Rows

    return Rows(torch.arange(len(images), device=images.device), len(images), False, ())


def _those_of(cls: type, settings: dict[str, Any]) -> dict[str, Any]:
    fields = getattr(cls, "__dataclass_fields__", {})
    return {name: value for name, value in settings.items() if name in fields}


def main(chosen: list[str]) -> None:
    kept = json.loads(FILE.read_text(encoding="utf-8"))["methods"] if chosen else {}
    for name in chosen or METHODS:
        code = method_code(PLUGINS.plugins["methods"][name].cls)
        kept[name] = {"code": code, **measure(name)}
    values = {"engine": ENGINE, "methods": {name: kept[name] for name in METHODS if name in kept}}
    FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
