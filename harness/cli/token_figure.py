"""The figure of a paper that draws tokens: from a fit that is given or made."""

import argparse
import contextlib
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image

import harness
from harness.cli.verbs import run
from harness.errors import HarnessError
from harness.fitting.fitted import FittedModel
from harness.literature.figures import tokens
from harness.records.store import Record, Store
from harness.records.tables import harmless, width
from harness.runs import importance

CAPTION = (
    "Importance: Eq. 10. Rank: the channels that a token keeps in the order of importance. In "
    f"training noise is added to that order (Eq. 11): the mean rank is over {importance.DRAWS} "
    "draws of it. Evaluation gives all channels to all tokens."
)
Named = list[tuple[str, Image.Image]]


def draw(request: argparse.Namespace, out: Path, name: str) -> int:
    """Makes the figure; the exit code.

    Args:
        request: the arguments of the run that makes the fit, with those of the figure.
        out: the folder; name: of the files.

    Raises:
        HarnessError: nothing to draw, or what cannot be read.
    """
    if request.fit is not None and not request.images and not request.texts:
        raise HarnessError("--fit alone does not say what to draw. Add --images or --texts.")
    given: Named = [(path.name, importance.read(path)) for path in request.images or ()]
    fitted = _fitted(request)
    if fitted is None:
        return 0
    model = fitted.model
    texts = request.texts or []
    if not given and not texts:
        given = _images_of(request)
        texts = [text for each in model.method.prompts(model.classes)[:2] for text in each]
    images = importance.of_images(fitted, given, request.block) if given else []
    words = importance.of_texts(fitted, texts, request.block) if texts else []
    block = f"block {request.block}" if request.block else "last block"
    what = f"{model.method.name} fitted on {model.classes.dataset}, {model.clip.name}, {block}"
    files = tokens(images, words, what).save(out, name)
    if request.json:
        print(json.dumps({
            "fit": what,
            "images": [_raw(each) for each in images], "texts": [_raw(each) for each in words],
            "files": [str(path) for path in files],
        }, indent=1, allow_nan=False))  # fmt: skip
        return 0
    print("\n" + textwrap.fill(harmless(f"{what}. {CAPTION}"), width()))
    for path in files:
        print(f"written: {harmless(path)}")
    return 0


def _fitted(request: argparse.Namespace) -> FittedModel | None:
    """The fit that is given, or that of the request's run, made now if it is not there; None of a
    dry run."""
    if request.fit is not None:
        if not request.fit.is_file():
            raise HarnessError(
                f"--fit {request.fit} is no file. Give a record (.json) or its file of weights in "
                "the folder `fits`."
            )
        return harness.load(request.fit, plugins=request.plugin, device=request.device)
    record = _made(request)
    if record is None:
        return None
    if record.fit and not Store(request.results).weights(record.fit).is_file():  # deleted since
        record = _made(argparse.Namespace(**vars(request) | {"force": True}))
        assert record is not None
    if record.status != "done":
        raise HarnessError(f"the fit has {record.status}, so that there is nothing to draw: "
                           f"{record.reason}")  # fmt: skip
    return harness.load(record, plugins=request.plugin, device=request.device)


def _made(request: argparse.Namespace) -> Record | None:
    """The record of the request's run, made now if it is not there; None of a dry run."""
    with contextlib.redirect_stdout(sys.stderr) if request.json else contextlib.nullcontext():
        records = run.carried_out(request)
    return records[0] if records else None


def _images_of(request: argparse.Namespace) -> Named:
    """The first test image of the first two base classes."""
    (made,) = run.planned(request)
    split = made.evaluated["base"]
    first = {item.label: item for item in reversed(split.items)}
    source = made.source(split)
    return [(first[label].name, source.open(first[label])) for label in sorted(first)[:2]]


def _raw(each: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(each).items() if name != "picture"}
