"""What a fitted model says of images in files, folders and patterns."""

import glob
import itertools
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.decoding import HEIC
from harness.errors import HarnessError
from harness.files import is_hidden, shown
from harness.fitting.fitted import FittedModel
from harness.fitting.model import Model
from harness.images.own import natural
from harness.methods.zero_shot import ZeroShot
from harness.rgb import SUFFIXES

BATCH = 100  # images a forward pass, as in an evaluation
THREADS = 8


@dataclass(frozen=True)
class Batch:
    """Images that were read, their logits [B, C], and why others could not be.

    margins [B], if they were asked for: by how much the frozen backbone prefers its best class to
    its second best, a difference of probabilities.
    """

    paths: list[Path]
    logits: Tensor
    margins: Tensor | None
    unreadable: dict[Path, str]


def images_of(given: Sequence[str]) -> list[Path]:
    """The image files that are meant: files as they are, folders with all that is below them, and
    patterns such as 'photos/*.jpg'; each once.

    Raises:
        HarnessError: one that is not there, or that holds no images.
    """
    found = dict[Path, None]()
    for each in given:
        path = Path(each).expanduser()
        if path.is_dir():
            inside = sorted(_below(path), key=lambda file: natural(str(file)))
        elif path.exists():
            inside = [path]
        else:
            matching = glob.glob(str(path), recursive=True)  # noqa: PTH207 - may be absolute
            inside = [Path(p) for p in sorted(matching, key=natural) if Path(p).is_file()]
            if not inside:
                raise HarnessError(f"there is no image {shown(path)}.")
        if not inside:
            known = ", ".join(sorted(SUFFIXES)[:6])
            raise HarnessError(f"{shown(path)} holds no images (known: {known}, ...).")
        found |= dict.fromkeys(inside)
    return list(found)


def unreadable_here(given: Sequence[str]) -> int:
    """How many photographs below the given folders need an extra that is not installed."""
    folders = [path for each in given if (path := Path(each).expanduser()).is_dir()]
    return len({path.resolve() for each in folders for path in _below(each, HEIC - SUFFIXES)})


def _below(folder: Path, suffixes: Set[str] = SUFFIXES) -> Iterator[Path]:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        hidden = any(is_hidden(part) for part in inside.parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            yield path


def batches(
    fitted: FittedModel,
    paths: Sequence[Path],
    class_names: Sequence[str] | None = None,
    margins: bool = False,
) -> Iterator[Batch]:
    """All images in order. The next ones are read while the model looks at these."""
    classes = fitted.classes(class_names)
    count = len(classes.names)
    frozen = FittedModel(Model(fitted.model.clip, ZeroShot(), classes, 0), {}) if margins else None
    groups = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    with ThreadPoolExecutor(THREADS) as pool:

        def begun(group: Sequence[Path]) -> list[tuple[Path, Future[Tensor | str]]]:
            return [(path, pool.submit(_read, fitted, path)) for path in group]

        ahead = begun(groups[0]) if groups else []
        for after in itertools.chain(groups[1:], [()]):
            reading, ahead = ahead, begun(after)
            pixels, kept, unreadable = list[Tensor](), list[Path](), dict[Path, str]()
            for path, future in reading:
                value = future.result()
                if isinstance(value, str):
                    unreadable[path] = value
                else:
                    pixels.append(value)
                    kept.append(path)
            logits, gaps = torch.zeros(0, count), torch.zeros(0) if margins else None
            if pixels:
                logits = fitted.logits(torch.stack(pixels), class_names).float().cpu()
            if pixels and frozen is not None:
                gaps = margins_of(frozen.logits(torch.stack(pixels)).float().cpu())
            if not logits.isfinite().all():
                raise HarnessError("the logits are not finite: nothing can be predicted.")
            yield Batch(kept, logits, gaps, unreadable)


def margins_of(logits: Tensor) -> Tensor:
    """The highest probability minus the second highest [B] of logits [B, C]; of one class it is
    1."""
    best = logits.softmax(-1).topk(min(2, logits.shape[1])).values
    return best[:, 0] - (best[:, 1] if best.shape[1] > 1 else 0)


def _read(fitted: FittedModel, path: Path) -> Tensor | str:
    """What the image tower takes, or why it cannot be had."""
    try:
        return fitted.preprocess(path)
    except HarnessError as error:
        cause = error.__cause__ or error
        return " ".join(str(cause).split()) or type(cause).__name__
