"""Importance and ranks that are drawn are those that the fitted modules use."""

import math

import pytest
import torch
from PIL import Image

from harness.dataset import Classes
from harness.errors import HarnessError
from harness.fitting.fitted import FittedModel
from harness.fitting.model import Model
from harness.methods.dra import DRA
from harness.runs import importance
from tests import toy_backbone

BLOCK = 11  # from 1; the modules stand in blocks 10 to 12
TEXTS = ["a photo of a red disc.", "blue"]


@pytest.fixture(scope="module")
def fitted(toy_clip):
    method = DRA(rank=8, first_block=10, ratios=(1.0, 0.5, 0.25))
    made = of(toy_clip, method)
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draws).to(parameter.dtype)
    return made


def of(clip, method):
    """The method on the backbone, in float64."""
    model = Model(clip, method, Classes("toy", ("red", "blue"), "a photo of a {}."), seed=1)
    model.trained.double()
    return FittedModel(model, {})


@pytest.fixture(scope="module")
def toy_clip():
    return toy_backbone.load().double()


def pictures():
    return [(c, Image.linear_gradient("L").rotate(turn).convert("RGB").resize((60, 50)))
            for c, turn in (("one", 0), ("two", 90))]  # fmt: skip


def entering(fitted, tower, tokens):
    """The tokens that enter the attention of BLOCK: the tower of the fitted model, written out."""
    model = fitted.model
    for index in range(BLOCK):
        block, edit = tower.blocks[index], model.edits.get(f"{tower.name}.blocks.{index}.attn")
        h = block.ln1(tokens)
        if index == BLOCK - 1:
            return h, edit
        left = block.attn(h, tower.mask(h.shape[1]), lambda site, op, x, y, *_: y)
        if edit is not None:  # Eq. 18
            inner = torch.relu(torch.relu(h @ edit.down.weight.T + edit.down.bias)
                               @ edit.mix.weight.T + edit.mix.bias)  # fmt: skip
            left = left + edit.scale * torch.relu(inner @ edit.up.weight.T + edit.up.bias)
        tokens = tokens + left
        h = block.ln2(tokens)
        for layer in block.mlp:
            h = layer(h)
        tokens = tokens + h
    raise AssertionError


def literal(x, edit, ratios):
    """Eq. 9, 10, 14 and 15 of one row, token by token: importance, and the rank of each token."""
    inner = torch.relu(x @ edit.down.weight.T + edit.down.bias)  # [N, r]
    z = inner @ edit.tokens.weight.T + edit.tokens.bias
    count, rank = z.shape
    received = torch.zeros(count, dtype=z.dtype)
    for i in range(count):
        scores = torch.stack([z[i] @ z[j] / math.sqrt(x.shape[1]) for j in range(count)])
        received += scores.exp() / scores.exp().sum()
    received = received / count
    order = sorted(range(count), key=lambda n: -received[n].item())
    ranks = dict(zip(order, literal_ranks(count, rank, ratios), strict=True))
    return received, [ranks[n] for n in range(count)]


def literal_ranks(count, rank, ratios):
    """Eq. 14: of the tokens in order of their scores."""
    sizes = [count // len(ratios) + (i < count % len(ratios)) for i in range(len(ratios))]
    return [
        math.floor(r * rank) for r, size in zip(ratios, sizes, strict=True) for _ in range(size)
    ]


@torch.no_grad()
def check(fitted, tower, inputs, found):
    x, edit = entering(fitted, tower, tower.stem(inputs))
    for row, each in zip(x, found, strict=True):
        scores, ranks = literal(row, edit, fitted.model.method.ratios)
        assert torch.allclose(torch.tensor(each.importance, dtype=scores.dtype), scores, atol=1e-10)
        assert list(each.ranks) == ranks
        assert abs(sum(each.importance) - 1) < 1e-9


def test_importance_and_ranks_of_images_are_those_of_the_equations(fitted):
    images = pictures()
    pixels = torch.stack([fitted.preprocess(image) for _, image in images]).double()
    found = importance.of_images(fitted, images, BLOCK)
    check(fitted, fitted.model.clip.image, pixels, found)
    assert [each.picture.size for each in found] == [(48, 48)] * 2


def test_importance_and_ranks_of_texts_are_over_all_positions_as_in_training(fitted):
    clip = fitted.model.clip
    found = importance.of_texts(fitted, TEXTS, BLOCK)
    check(fitted, clip.text, clip.tokenize(TEXTS), found)
    assert len(found[0].importance) == clip.text.length
    assert list(found[1].words[:3]) == ["<start>", "blue", "<end>"]
    assert set(found[1].words[3:]) == {""}


def test_the_mean_rank_is_that_of_the_masks_in_training(fitted):
    (found,) = importance.of_texts(fitted, TEXTS[:1], BLOCK)
    uniform = torch.rand(2000, len(found.importance), generator=torch.Generator().manual_seed(5))
    noisy = torch.tensor(found.importance) - torch.log(-torch.log(uniform))  # Eq. 11
    places = noisy.argsort(dim=1, descending=True).argsort(dim=1)
    ranks = torch.tensor(literal_ranks(len(found.importance), 8, (1.0, 0.5, 0.25)))
    literally = ranks[places].double().mean(0).tolist()
    # four standard errors of a mean of 200 draws; without noise they would be 8, 4 and 2
    assert list(found.expected) == pytest.approx(literally, abs=0.7)
    assert sum(found.expected) == pytest.approx(sum(ranks.tolist()))


def test_without_noise_the_mean_rank_is_the_rank(toy_clip):
    method = DRA(rank=8, first_block=12, noise="none", channel_noise="none")
    quiet = of(toy_clip, method)
    (found,) = importance.of_texts(quiet, TEXTS[:1])
    assert list(found.expected) == list(found.ranks)


def test_looking_changes_no_logits(fitted):
    images = [image for _, image in pictures()]
    before = fitted.logits(images)
    importance.of_images(fitted, pictures(), BLOCK)
    assert fitted.logits(images).equal(before)


def test_a_block_without_a_module_is_refused_with_those_that_have_one(fitted):
    with pytest.raises(HarnessError, match="10, 11, 12"):
        importance.of_texts(fitted, TEXTS, 9)


def test_a_tower_without_dynamic_rank_is_refused(toy_clip):
    method = DRA(rank=8, first_block=12, image="adapter")
    text_alone = of(toy_clip, method)
    with pytest.raises(HarnessError, match="image tower"):
        importance.of_images(text_alone, pictures())
