"""Every kind of tower equals open_clip's own and declares no more than it can do."""

import pytest
import torch

from harness.towers.tower import POINTS
from tests.towers import kinds

TEXTS = ["a photo of a cat.", "a photo of a red apple.", "sun"]
EQUAL = {torch.float32: 1e-5, torch.float64: 1e-10}


def images(clip, dtype=torch.float64) -> torch.Tensor:
    draws = torch.Generator().manual_seed(3)
    return torch.randn(3, *clip.pixels.shape, generator=draws, dtype=dtype)


def close(ours, theirs, dtype=torch.float64):
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, atol=EQUAL[dtype] * max(1.0, scale), rtol=0)


@pytest.mark.parametrize("dtype", EQUAL)
@pytest.mark.parametrize("kind", kinds.IMAGE_KINDS)
def test_an_image_tower_equals_open_clips(kind, dtype):
    theirs, ours = kinds.model(kind).to(dtype), kinds.load(kind).to(dtype).train()
    x = images(ours, dtype)
    close(ours.image(x), theirs.encode_image(x), dtype)


@pytest.mark.parametrize("dtype", EQUAL)
@pytest.mark.parametrize("kind", kinds.TEXT_KINDS)
def test_a_text_tower_equals_open_clips(kind, dtype):
    theirs, ours = kinds.model(kind).to(dtype), kinds.load(kind).to(dtype).train()
    ids = ours.tokenize(TEXTS)
    close(ours.text(ids), theirs.encode_text(ids), dtype)


@pytest.mark.parametrize("kind", kinds.TEXT_KINDS)
def test_a_text_is_cut_only_where_nothing_changes(kind):
    clip = kinds.load(kind).double()
    ids = clip.tokenize(TEXTS)
    needed = clip.text.needed(ids)
    assert (int(needed.max()) < ids.shape[1]) == (kind == "eos")
    close(clip.text(ids[:, : int(needed.max())]), clip.text(ids))
    assert clip.text.ends_early == (kind == "eos")


@pytest.mark.parametrize("kind", kinds.IMAGE_KINDS + kinds.TEXT_KINDS)
def test_every_site_that_is_listed_runs_once_and_no_other(kind):
    clip, seen = kinds.load(kind).double(), []

    def edit(site, op, x, y, *_):
        seen.append(site)
        return y

    close(clip.image(images(clip), edit), clip.image(images(clip)))
    clip.text(clip.tokenize(["sun"]), edit)
    assert sorted(seen) == sorted(clip.sites())


def test_the_points_of_each_kind_of_image_tower():
    def points(kind):
        sites = kinds.load(kind).image.sites()
        return {site.split(".")[-1] for site in sites if site.startswith("image.blocks.0.")}

    assert all(points(kind) == set(POINTS) for kind in kinds.ALL_SITES)
    assert all(points(kind) == {"ln1", "attn", "ln2", "mlp"} for kind in kinds.PARTS)
    assert all(kinds.load(kind).image.sites() == ["image.features"] for kind in kinds.FEATURES)
    tokens = {kind: "image.tokens" in kinds.load(kind).image.sites() for kind in kinds.PARTS}
    assert tokens == {"eva02": False, "eva": True, "pe": False}


THEIRS = {"ln1": "norm1", "attn": "attn", "ln2": "norm2", "mlp": "mlp", "o": "attn.proj",
          "fc1": "mlp.fc1", "act": "mlp.act", "fc2": "mlp.fc2"}  # fmt: skip


@pytest.mark.parametrize("kind", kinds.ALL_SITES + kinds.PARTS)
def test_the_gradient_at_a_site_is_autograds_through_open_clips_module(kind):
    clip, theirs = kinds.load(kind).double(), kinds.model(kind).double()
    for point in clip.image.blocks[1].points:
        if point not in THEIRS:
            continue
        ours, other = [], []

        def edit(site, op, x, y, *_, point=point, ours=ours):
            if site != f"image.blocks.1.{point}":
                return y
            ours.append(y.detach().requires_grad_())
            return ours[-1]

        def hook(module, given, left, other=other):
            other.append(left.detach().requires_grad_())
            return other[-1]

        x = images(clip)
        clip.image(x, edit).pow(2).sum().backward()
        handle = theirs.visual.trunk.blocks[1].get_submodule(THEIRS[point])
        handle = handle.register_forward_hook(hook)
        theirs.encode_image(x).pow(2).sum().backward()
        handle.remove()
        close(ours[0].grad, other[0].grad)


def test_batch_norm_takes_no_statistics_of_a_batch():
    clip = kinds.load("batch-norm").train()
    x = images(clip, torch.float32)
    before = {name: value.clone() for name, value in clip.image.state_dict().items()}
    torch.testing.assert_close(clip.image(x)[:1], clip.image(x[:1]), atol=1e-5, rtol=1e-4)
    after = clip.image.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["attention-pool", "eva02", "resnet"])
def test_parameters_are_named_once_and_replaced_in_their_part(kind):
    clip = kinds.load(kind).double()
    named = clip.parameters_by_name()
    own = [name for name in named if name.startswith("image.")]
    assert len({id(named[name]) for name in own}) == len(own)
    assert {id(p) for p in clip.image.parameters()} == {id(named[name]) for name in own}
