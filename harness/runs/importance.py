"""What DRA's modules of a fitted model make of the tokens of images and texts: importance, ranks.

Both are what training uses. A module takes the tokens as they reach it in evaluation, where no
token has a lower rank than another (Eq. 18).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from harness.decoding import open_rgb
from harness.errors import HarnessError
from harness.files import reason, shown
from harness.fitting.fitted import FittedModel
from harness.images.pixels import resized
from harness.literature.figures import Tokens
from harness.methods.dra import DynamicRank, token_scores
from harness.towers.edit import Rows, SiteContext
from harness.towers.pixels import Pixels
from harness.towers.tower import Tower

DRAWS = 200  # of the noise, for a mean rank


def read(path: Path) -> Image.Image:
    """The image of a file, turned as its EXIF data says.

    Raises:
        HarnessError: it cannot be read.
    """
    try:
        return open_rgb(path, "--images", turn=True)
    except HarnessError as error:
        said = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise HarnessError(
            f"--images: {shown(path)} cannot be read as an image: "
            f"{shown(reason(said))}. Repair it, or leave it out."
        ) from error


@torch.no_grad()
def of_images(
    fitted: FittedModel, images: Sequence[tuple[str, Image.Image]], block: int | None = None
) -> list[Tokens]:
    """The tokens of named images in the module of a block (from 1; None: the last).

    Raises:
        HarnessError: no module there, or tokens that are not a class token and a square of patches.
    """
    clip = fitted.model.clip
    pixels = torch.stack([fitted.preprocess(image) for _, image in images])
    found = _tokens(fitted, clip.image, pixels.to(clip.device, clip.logit_scale.dtype), block)
    count = len(found[0][0])
    if math.isqrt(count - 1) ** 2 != count - 1:
        raise HarnessError(
            f"{clip.name} makes {count} tokens of an image, which are not a class token and a "
            "square of patches: they cannot be drawn."
        )
    return [
        Tokens(name, *parts, picture=_seen(image, clip.pixels))
        for (name, image), parts in zip(images, found, strict=True)
    ]


@torch.no_grad()
def of_texts(fitted: FittedModel, texts: Sequence[str], block: int | None = None) -> list[Tokens]:
    """The tokens of texts, all positions of the tower, as in training.

    Raises:
        HarnessError: no module there, or a text that is too long.
    """
    clip = fitted.model.clip
    ids = clip.tokenize(texts)
    found = _tokens(fitted, clip.text, ids, block)
    return [
        Tokens(text, *parts, words=_words(fitted, row))
        for text, row, parts in zip(texts, ids, found, strict=True)
    ]


def _tokens(
    fitted: FittedModel, tower: Tower, inputs: Tensor, block: int | None
) -> list[tuple[list[float], list[int], list[float]]]:
    """Of each row: importance, ranks without noise, mean ranks with it, [N] each."""
    model, module = fitted.model, _module(fitted, tower, block)
    entered = list[tuple[Tensor, Tensor, SiteContext]]()
    handle = module.register_forward_hook(lambda _, given, left: entered.append(given))
    numbers = torch.arange(len(inputs), device=inputs.device)
    rows = Rows(numbers, len(inputs), False, (), inputs if tower.name == "text" else None)
    try:
        model.rest(tower, model.prefix(tower, inputs), inputs, rows)
    finally:
        handle.remove()
    ((x, _, at),) = entered
    inner = F.relu(module.down(x))  # Eq. 9
    importance = token_scores(module.tokens(inner), module.divisor)  # Eq. 10, [R, N]
    quiet = _with(module, noise="none", channel_noise="none")
    ranks = _ranks(quiet, inner, at)
    noisy = _with(module)
    drawn = torch.stack([_ranks(noisy, inner, _drawn(at, draw)) for draw in range(DRAWS)])
    means = drawn.double().mean(0)
    return list(zip(importance.tolist(), ranks.tolist(), means.tolist(), strict=True))


def _module(fitted: FittedModel, tower: Tower, block: int | None) -> DynamicRank:
    edits = fitted.model.edits_of(tower)
    modules = {int(site.split(".")[2]) + 1: edit for site, edit in edits.items()
               if isinstance(edit, DynamicRank)}  # fmt: skip
    if not modules:
        raise HarnessError(
            f"this fit of {fitted.model.method.name} has no dynamic rank in the {tower.name} tower."
            " Give a fit of dra that has, or leave its images or texts out."
        )
    number = max(modules) if block is None else block
    if number not in modules:
        raise HarnessError(
            f"--block {number}: the {tower.name} tower has modules with dynamic rank in the blocks "
            f"{', '.join(map(str, sorted(modules)))}."
        )
    return modules[number]


def _with(module: DynamicRank, **changed: str) -> DynamicRank:
    """The module with other noise; its weights are the same ones."""
    other = copy.copy(module)
    other.method = replace(module.method, gradient="none", **changed)  # type: ignore[arg-type]
    return other


def _drawn(at: SiteContext, draw: int) -> SiteContext:
    """The same rows in a training step with noise of its own."""
    return replace(at, rows=replace(at.rows, training=True, key=("figure", draw)))


def _ranks(module: DynamicRank, inner: Tensor, at: SiteContext) -> Tensor:
    """How many channels each token keeps [R, N], by the module's own mask (Eq. 14 and 15)."""
    return (module.mask(inner, at) > 0).sum(-1)


def _seen(image: Image.Image, pixels: Pixels) -> Image.Image:
    return TF.to_pil_image(resized(image.convert("RGB"), pixels))


def _words(fitted: FittedModel, ids: Tensor) -> list[str]:
    """The tokens of a text as words; none after its end."""
    end = int(fitted.model.clip.text.needed(ids[None])[0]) - 1
    decode = fitted.model.clip.tokenizer.decode
    words = [decode([number]).strip() for number in ids[1:end].tolist()]
    return ["<start>", *words, "<end>", *[""] * (len(ids) - end - 1)][: len(ids)]
