"""Equations of methods with tokens beside CLIP's own in later blocks against literal transcriptions
(float64, 1e-10)."""

import math

import pytest
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.method import HeadContext
from tests.methods.test_contract import FIT, OTHER, build, grafted, images, logits, shake
from tests.methods.test_equations import CLOSE
from tests.methods.test_equations_weights import (
    LABELS,
    agrees,
    cosines,
    cross_entropy,
    template,
    unit,
)

close = torch.testing.assert_close


def attention(block, x: Tensor, causal: bool = False) -> Tensor:
    """What the attention adds to the tokens [L, D] of one image or text."""
    attn, h, size = block.attn, block.ln1(x), x.shape[-1] // block.attn.heads
    q, k, v = (getattr(attn, part)(h).split(size, -1) for part in "qkv")
    mixed = []
    for q1, k1, v1 in zip(q, k, v, strict=True):
        scores = q1 @ k1.T / math.sqrt(size)
        if causal:
            seen = torch.arange(len(x))[:, None] >= torch.arange(len(x))
            scores = torch.where(seen, scores, -math.inf)
        mixed.append(scores.softmax(-1) @ v1)
    return torch.cat(mixed, -1) @ attn.o.weight.T + attn.o.bias


def block_by_hand(block, x: Tensor, causal: bool) -> Tensor:
    """One block on the tokens [L, D] of one image or text."""
    x = x + attention(block, x, causal)
    return x + block.mlp(block.ln2(x))


def mapped(edit) -> Tensor:
    """A_j(R) or B_j(R), vector by vector."""
    mapping = edit.mapping
    weight = mapping.weight + (mapping.u @ mapping.v if hasattr(mapping, "u") else 0)
    return torch.stack([weight @ r + mapping.bias for r in edit.space.vectors])


def represented(model: Model, tower, x: Tensor, beta: float) -> Tensor:
    """The tokens [L + 5, D] that leave the last block for one image or text [L, D]."""
    for number, block in enumerate(tower.blocks, 1):
        if number >= 6:
            own = mapped(model.edits[f"{tower.name}.blocks.{number - 2}"])
            if number == 6:
                x = torch.cat([x[:1], own, x[1:]])
            else:
                x = torch.cat([x[:1], beta * own + (1 - beta) * x[1:6], x[6:]])
        x = block_by_hand(block, x, causal=tower.name == "text")
    return x


def representations(model: Model, beta: float, names=FIT.names) -> tuple[Tensor, Tensor, Tensor]:
    """f, f_r and t."""
    clip, visual, projection = model.clip, model.clip.image.visual, model.edits["image.features"]
    projection, first, second, text = projection.projection, [], [], []
    own = visual.proj + projection.u @ projection.v if beta < 1 else projection.weight
    for pixels in images():
        x = represented(model, clip.image, clip.image.stem(pixels[None])[0], beta)
        first.append(visual.ln_post(x[0]) @ visual.proj)
        second.append(sum(visual.ln_post(r) for r in x[1:6]) / 5 @ own)
    for name in names:
        ids = clip.tokenize([f"{name} disc."])
        x = represented(model, clip.text, clip.text.stem(ids)[0], beta)
        end = int(ids[0].argmax())
        text.append(clip.text.text.ln_final(x[end + 5]) @ clip.text.text.text_projection)
    return torch.stack(first), torch.stack(second), torch.stack(text)


@pytest.mark.parametrize(
    ("name", "beta", "fields"),
    [("mmrl", 1.0, {}), ("mmrl_pp", 0.9, {}), ("mmrl_pp", 0.25, {"beta": 0.25})],
)
def test_mmrl_has_tokens_of_one_space_in_both_towers_and_a_second_image_feature(
    exact, name, beta, fields
):
    model = grafted(name, exact, weight=0.3, **fields)
    shake(model)
    f, f_r, t = representations(model, beta)
    scale = exact.logit_scale.exp()
    first, second = scale * cosines(f, t), scale * cosines(f_r, t)
    close(logits(model, FIT, images()), (0.7 * first + 0.3 * second).detach(), **CLOSE)
    _, _, other = representations(model, beta, OTHER.names)
    close(logits(model, OTHER, images()), (scale * cosines(f, other)).detach(), **CLOSE)

    def kept(features: Tensor, frozen: Tensor) -> Tensor:
        pairs = zip(features, frozen, strict=True)
        return 1 - sum((unit(a) * unit(b)).sum() for a, b in pairs) / len(features)

    classified = 0.7 * cross_entropy(first, LABELS) + 0.3 * cross_entropy(second, LABELS)
    held = kept(f, exact.image(images())) + kept(t, template(exact))
    agrees(model, classified + 0.3 * held)


@pytest.mark.parametrize(
    ("fitted", "transferred", "share"), [(True, False, 0.7), (True, True, 1), (False, False, 1)]
)
def test_mmrl_uses_the_second_feature_for_the_fitted_classes_of_the_fitted_dataset(
    exact, fitted, transferred, share
):
    model = grafted("mmrl", exact)
    image, text = torch.randn(4, 2, 36).double(), torch.randn(3, 1, 36).double()
    given = HeadContext(torch.tensor(9.0), fitted=fitted, transferred=transferred)
    first, second = (cosines(image[:, i], text[:, 0]) for i in range(2))
    expected = 9 * (share * first + (1 - share) * second)
    close(model.output(image, text, given).logits, expected, **CLOSE)


def test_mmrl_starts_with_one_map_a_tower_and_mmrl_pp_at_clips_projection(exact):
    edits = Model(exact, build("mmrl"), FIT, seed=1).edits
    for tower in ("image", "text"):
        maps = [edits[f"{tower}.blocks.{i}"].mapping for i in range(4, 11)]
        assert all(torch.equal(each.weight, maps[0].weight) for each in maps)
        assert len({id(each) for each in maps}) == 7
        assert len({id(edits[f"{tower}.blocks.{i}"].space) for i in range(4, 11)}) == 1
    model = grafted("mmrl_pp", exact)
    maps = [model.edits[f"image.blocks.{i}"].mapping for i in range(4, 11)]
    assert len({id(each.weight) for each in maps}) == 1
    assert len({id(each.bias) for each in maps}) == 7
    x, proj = torch.randn(2, 48).double(), exact.image.visual.proj
    close(model.edits["image.features"].projection(x, proj), x @ proj, **CLOSE)


def test_mmrl_takes_texts_of_the_towers_full_length(exact):
    name = " ".join(["x"] * 28)
    (length,) = exact.tokenize([f"{name} disc."]).argmax(-1) + 1
    assert length > exact.text.length - 5
    model = grafted("mmrl", exact)
    shake(model)
    classes = type(FIT)("toy", ("red", name), "{} disc.")
    f, _, t = representations(model, 1.0, classes.names)
    expected = exact.logit_scale.exp() * cosines(f, t)
    close(logits(model, classes, images()), expected.detach(), **CLOSE)


def test_mmrl_needs_a_backbone_that_projects_its_class_token(exact, monkeypatch):
    monkeypatch.setattr(exact.image, "class_token", False)
    with pytest.raises(HarnessError, match=r"mmrl needs image class token.*ViT-B-16"):
        Model(exact, build("mmrl"), FIT, seed=1)
