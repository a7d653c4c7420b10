"""A fit as a folder of its own, which is written only if it says what the fit says."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness import registry
from harness.deploy import merging
from harness.deploy.calibration import prepared_of
from harness.deploy.card import Card
from harness.deploy.forms import FORMS, Read
from harness.deploy.merging import NoSuchForm
from harness.errors import HarnessError, one_line
from harness.files import reason, shown
from harness.fitting.fitted import FittedModel
from harness.images.pixels import normalise, resized
from harness.methods.peft import Peft
from harness.randomness import generator
from harness.records.store import MODE, UMASK

IMAGES = 64  # that are compared
DIFFERENCE = 1e-4  # of logits up to LARGE, at most; of larger ones in proportion
ROUNDING = 4  # times what the fit's own logits differ by in batches of other sizes
LARGE = 100.0  # CLIP's scale of a cosine; at 500 float32 itself has steps of 3e-5


@dataclass(frozen=True)
class Compared:
    """Images [N, 3, S, S] as the image tower takes them, and where they are from."""

    pixels: Tensor
    source: str


def compared(
    fitted: FittedModel, dataset: str | None, root: Path | None, plugins: registry.Registry
) -> Compared:
    """Training images of the fit, spread over its classes; random pixels if they are not here.

    Args:
        dataset: what it was fitted on, as `run` takes it; None: by the name in the fit.
    """
    clip = fitted.model.clip
    try:
        prepared = prepared_of(fitted, dataset, root, plugins)
        items, source = prepared.train.items, prepared.source(prepared.train)
        spread = [items[i * len(items) // IMAGES] for i in range(IMAGES)]
        chosen = list(dict.fromkeys(spread))
        pixels = torch.stack([resized(source.open(item), clip.pixels) for item in chosen])
        same = prepared.train.fingerprint == fitted.run["fingerprints"]["train"]
        said = f"{len(chosen)} {'training ' * same}images of {prepared.fit.dataset}"
        others = ", of which images, class names or templates are not those that it was fitted on"
        said += "" if same else others
    except HarnessError:
        if dataset is not None:  # asked for by name
            raise
        size = (IMAGES, *clip.pixels.shape)
        pixels = torch.randint(256, size, generator=generator("export"), dtype=torch.uint8)
        said = f"{IMAGES} images of random pixels, since those of the fit are not here"
    return Compared(normalise(pixels, clip.pixels.mean, clip.pixels.std), said)


def check_new(out: Path) -> None:
    """Raises HarnessError unless there is nothing at a path, or an empty folder."""
    try:
        empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
        there = out.is_symlink() or out.exists()
    except OSError as error:
        raise HarnessError(f"{shown(out)} cannot be made: {reason(error)}.") from error
    if there and not empty:
        raise HarnessError(f"{shown(out)} is there already. Give a new folder with --out.")


def export(fitted: FittedModel, form: str, out: Path, card: Card, images: Compared) -> float:
    """Writes a folder; returns by how much logits differ at most.

    Raises:
        HarnessError: the folder is there, the fit has no such form, or what was written says
            something else than the fit. Nothing is left then.
    """
    check_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise HarnessError(f"{shown(out)} cannot be made: {reason(error)}.") from error
    try:
        with contextlib.suppress(OSError):  # some disks know no modes
            folder.chmod(0o777 & ~UMASK)
        with _refusing(fitted, form):
            read = FORMS[form](fitted, folder, images.pixels)
            difference = _difference(fitted, read, images.pixels, form)
        _about(fitted, folder)
        said = f"{images.source}: logits differ by at most {difference:.1e}, and no label differs"
        (folder / "README.md").write_text(card.text(form, said), encoding="utf-8")
        for file in folder.iterdir():
            with contextlib.suppress(OSError):
                file.chmod(MODE)  # safetensors' are the owner's alone
        folder.replace(out)
    except OSError as error:
        raise HarnessError(f"{shown(out)} cannot be written: {reason(error)}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return difference


@contextlib.contextmanager
def _refusing(fitted: FittedModel, form: str) -> Iterator[None]:
    """Whatever fails meanwhile is a sentence, with the forms that the fit has."""
    try:
        yield
    except NoSuchForm as error:
        raise HarnessError(f"{error} Choose --form {_others(fitted, form)}.") from error
    except (HarnessError, OSError, MemoryError):
        raise
    except Exception as error:  # exporters, onnxruntime and safetensors raise all kinds
        raise HarnessError(
            f"the fit cannot be exported as {form}: {type(error).__name__}: {one_line(error)[:300]}"
        ) from error


def _others(fitted: FittedModel, form: str) -> str:
    """The forms that a fit has beside `form`, found by trying."""
    found = list[str]()
    for name, attempt in (
        ("merged", lambda: merging.merged(fitted.model)),
        ("classifier", lambda: merging.classifier(fitted)),
    ):
        with contextlib.suppress(NoSuchForm):
            attempt()
            found.append(name)
    if isinstance(fitted.model.method, Peft) and form != "peft":
        found.append("peft")
    return ", ".join([*found, "onnx"]) + " or pt2"


def _about(fitted: FittedModel, folder: Path) -> None:
    """Writes class names and preprocessing."""
    pixels = fitted.model.clip.pixels.as_json()
    for name, value in (("classes", fitted.class_names), ("preprocessing", pixels)):
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


@torch.no_grad()
def _difference(fitted: FittedModel, read: Read, pixels: Tensor, form: str) -> float:
    """The largest difference of logits, with batches of several sizes."""
    wanted = fitted.logits(pixels)
    parts = [part for part in pixels.tensor_split([1, 4]) if len(part)]
    made = torch.cat([read(part) for part in parts])
    if made.shape != wanted.shape or not made.isfinite().all():
        raise HarnessError(f"the fit cannot be exported as {form}: {list(made.shape)} logits for "
                           f"{list(wanted.shape)}, or some that are not finite.")  # fmt: skip
    difference = float((made - wanted).abs().max())
    other = int((made.argmax(-1) != wanted.argmax(-1)).sum())
    rounding = (torch.cat([fitted.logits(part) for part in parts]) - wanted).abs().max()
    largest = float(wanted.abs().max())
    most = max(DIFFERENCE * max(1.0, largest / LARGE), ROUNDING * float(rounding))
    if difference > most or other:
        raise HarnessError(
            f"the fit cannot be exported as {form}: of {len(pixels)} images {other} would get "
            f"another label, and logits differ by up to {difference:.1e}, more than "
            f"{most:.0e} or enough to matter. Nothing was written."
        )
    return difference
