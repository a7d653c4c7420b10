"""What a fit changed, as other values of the backbone's own weights or as a linear classifier.

Both are measured: whatever an edit or a head computes, if it is linear in what it reads, what it
makes of the unit vectors says all of it.
"""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.fitting.fitted import FittedModel
from harness.fitting.model import Model
from harness.method import CosineHead, HeadContext
from harness.randomness import generator
from harness.towers.edit import Edit, Rows, SiteContext

LINEAR = re.compile(r"(image|text)\.blocks\.(\d+)\.(q|k|v|o|fc1|fc2)")
CLOSE = 1e-5  # of the largest number: float32 rounds in sums of a thousand


class NoSuchForm(HarnessError):
    """A method's fits do not have the form that was asked for."""


@torch.no_grad()
def merged(model: Model) -> dict[int, Tensor]:
    """Other values of the backbone's parameters, by their `id`, with which it computes what the
    fit does.

    Raises:
        NoSuchForm: it cannot be merged, and why.
    """
    method, clip = model.method, model.clip
    if type(model.head).forward is not CosineHead.forward or method.text_per_image:
        what = "texts of its own for each image" if method.text_per_image else "a head of its own"
        raise NoSuchForm(
            f"{method.name} cannot be merged: it has {what}, and a checkpoint has CLIP's cosine "
            "alone."
        )
    known = clip.parameters_by_name() if model.unfrozen else {}
    changed = {id(known[name]): copy.detach().clone() for name, copy in model.unfrozen.items()}
    for site, edit in model.edits.items():
        at = LINEAR.fullmatch(site)
        if at is None:
            raise NoSuchForm(
                f"{method.name} cannot be merged: it edits {site}, and only the linear maps of a "
                "block (q, k, v, o, fc1, fc2) have weights that can take an edit up."
            )
        tower = clip.image if at[1] == "image" else clip.text
        _merge(tower.blocks[int(at[2])], at[3], edit, site, method.name, changed)
    return changed


def _merge(
    block: Any, point: str, edit: Edit, site: str, name: str, changed: dict[int, Tensor]
) -> None:
    """Writes what a linear map of a block becomes with an edit into `changed`."""
    attention = block.attn
    packed = point in ("q", "k", "v")
    op = getattr(attention, point) if point in "qkvo" else [*block.mlp][(0, 2)[point == "fc2"]]
    owner = attention if packed else op
    if owner.bias is None:
        raise NoSuchForm(f"{name} cannot be merged: the map at {site} has no bias.")
    for parameter in (owner.weight, owner.bias):
        changed.setdefault(id(parameter), parameter.detach().clone())
    weight, bias = changed[id(owner.weight)], changed[id(owner.bias)]
    if packed:
        place = "qkv".index(point)
        weight, bias = weight.chunk(3)[place], bias.chunk(3)[place]  # parts of the same memory
    found = _measured(edit, op, weight, bias, site, name)
    weight.copy_(found[0])
    bias.copy_(found[1])


def _measured(
    edit: Edit, op: nn.Module, weight: Tensor, bias: Tensor, site: str, name: str
) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a linear map and its edit together."""

    def call(x: Tensor) -> Tensor:
        rows = Rows(torch.arange(len(x), device=x.device), len(x), False, ())
        return edit(x, F.linear(x, weight, bias), SiteContext(site, op, rows, x.shape[1]))

    width = weight.shape[1]
    try:
        left = call(weight.new_zeros(1, 1, width))[0, 0]  # [out]
        map_ = (call(torch.eye(width).to(weight)[:, None]) - left)[:, 0].T  # [out, in]
        x = torch.randn((3, 4, width), generator=generator("merging")).to(weight)
        made, wanted = call(x), F.linear(x, map_, left)
    except (ValueError, RuntimeError) as error:
        raise NoSuchForm(f"{name} cannot be merged: its edit at {site}: {error}.") from error
    if (made - wanted).abs().max() > CLOSE * wanted.abs().max():
        raise NoSuchForm(
            f"{name} cannot be merged: its edit at {site} is not linear in what it reads."
        )
    return map_, left


@torch.no_grad()
def classifier(fitted: FittedModel) -> dict[str, Tensor]:
    """`weight` [C, E] and `bias` [C], so that logits are normalised image features of the plain
    backbone times the weight's transpose, plus the bias, which is left out where it is 0.

    Raises:
        NoSuchForm: the image tower or the classifier is not such, and why.
    """
    model, clip = fitted.model, fitted.model.clip
    name = model.method.name
    if model.cut(clip.image) is not None:
        raise NoSuchForm(
            f"{name} changes the image tower: a classifier on the plain backbone's features cannot "
            "stand for it."
        )
    if model.method.text_per_image or model.method.frozen_when_scored:
        raise NoSuchForm(
            f"{name} looks at each image beside its feature: a matrix of class features cannot "
            "stand for it."
        )
    prompts, text = fitted.encoded(model.classes)
    assert text is not None
    given = HeadContext(clip.logit_scale.exp(), prompts.references)

    def call(image: Tensor) -> Tensor:
        return model.output(image, text, given).logits

    eye = torch.eye(clip.embedding).to(text)
    plus, minus = call(eye), call(-eye)  # [E, C]
    weight, bias = (plus - minus).T / 2, (plus + minus).mean(0) / 2
    unit = _directions(fitted, text)
    wanted = F.linear(unit, weight, bias)
    for image in (unit, 3 * unit):
        if (call(image) - wanted).abs().max() > CLOSE * wanted.abs().max():
            raise NoSuchForm(
                f"{name} cannot be a matrix of class features: its head is no linear function of "
                "the normalised image feature."
            )
    made = {"weight": weight.contiguous()}
    return made if bias.abs().max() <= 1e-6 * weight.abs().max() else {**made, "bias": bias}


def _directions(fitted: FittedModel, text: Tensor) -> Tensor:
    """Unit vectors [N, E]: random ones, and those that a head could treat apart, which are class
    features and whatever it keeps, such as the features of the shots."""
    size = text.shape[-1]
    found = [torch.randn((64, size), generator=generator("classifier")).to(text)]
    for kept in (text, *fitted.model.trained["head"].state_dict().values()):
        if kept.ndim > 1 and kept.is_floating_point():
            rows = kept if kept.shape[-1] == size else kept.transpose(0, -1)
            if rows.shape[-1] == size:
                found.append(rows.reshape(-1, size)[:256].to(text))
    return F.normalize(torch.cat(found), dim=-1)
