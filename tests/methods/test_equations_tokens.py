"""Equations of methods with tokens or features beside CLIP's own against literal transcriptions
(float64, 1e-10)."""

import math

import pytest
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.step import AdaptiveChunks, Chunks, TrainingStep
from harness.method import Edit, HeadContext, Method
from harness.towers.edit import Rows, SiteContext
from harness.towers.tower import POINTS
from tests.methods.test_contract import FIT, OTHER, batch, build, grafted, images, logits, shake
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
    monkeypatch.setattr(exact.image.visual, "pool_type", "avg")
    with pytest.raises(HarnessError, match=r"mmrl makes features of single .*ViT-B-16"):
        Model(exact, build("mmrl"), FIT, seed=1)


def test_a_head_that_knows_one_image_feature_is_refused_where_there_are_several(exact):
    model = grafted("zero_shot", exact)
    text = torch.randn(3, 1, 36).double()
    with pytest.raises(HarnessError, match=r"zero_shot gives \[4, 2, 3\].*\[images, classes\]"):
        model.output(torch.randn(4, 2, 36).double(), text, HeadContext(torch.tensor(9.0)))


def planned(cosines: Tensor, entropy=0.1, iterations=100, threshold=0.01) -> Tensor:
    """Sinkhorn's plan [M, N] of one image and class, entry by entry."""
    m, n = cosines.shape
    kernel = [[math.exp((float(c) - 1) / entropy) for c in row] for row in cosines]
    rows, columns = [1.0] * m, [1.0] * n
    for _ in range(iterations):
        before = rows
        rows = [1 / m / sum(kernel[i][j] * columns[j] for j in range(n)) for i in range(m)]
        columns = [1 / n / sum(kernel[i][j] * rows[i] for i in range(m)) for j in range(n)]
        if sum(abs(a - b) for a, b in zip(rows, before, strict=True)) / m < threshold:
            break
    plan = [[rows[i] * kernel[i][j] * columns[j] for j in range(n)] for i in range(m)]
    return torch.tensor(plan, dtype=torch.float64)


def test_plot_moves_patches_to_prompts_at_the_least_cost(exact):
    model = grafted("plot", exact)
    shake(model)
    patches = []
    for pixels in images():
        x = exact.image.stem(pixels[None])[0]
        for block in exact.image.blocks:
            x = block_by_hand(block, x, causal=False)
        patches.append(torch.stack([exact.image.visual.ln_post(z) for z in x[1:]]))
    patches = torch.stack(patches) @ exact.image.visual.proj
    vectors, prompts = model.edits["text.tokens"].vectors, []
    assert vectors.shape == (4, 16, 40)
    for name in FIT.names:
        ids = exact.tokenize([" ".join(["X"] * 16) + f" {name}."])
        for own in vectors:
            words = exact.text.text.token_embedding(ids[0])
            x = torch.cat([words[:1], own, words[17:]]) + exact.text.text.positional_embedding
            for block in exact.text.blocks:
                x = block_by_hand(block, x, causal=True)
            end = exact.text.text.ln_final(x[int(ids[0].argmax())])
            prompts.append(end @ exact.text.text.text_projection)
    prompts = torch.stack(prompts).unflatten(0, (3, 4))

    expected = []
    for z in patches:
        rows = [cosines(z, each) for each in prompts]
        plans = [planned(row.detach()) for row in rows]
        expected += [(plan * row).sum() for plan, row in zip(plans, rows, strict=True)]
    expected = exact.logit_scale.exp() * torch.stack(expected).unflatten(0, (8, 3))
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS))


@pytest.mark.parametrize("iterations", [1, 2, 100])
def test_plots_plan_ends_for_each_pair_of_image_and_class_by_itself(iterations):
    alike, unlike = torch.rand(2, 1, 6, 4).double() * 0.01, torch.rand(2, 1, 6, 4).double()
    both = torch.cat([alike, unlike], 1)
    head = build("plot", iterations=iterations).head(None, FIT)
    plans = torch.stack([torch.stack([planned(p, iterations=iterations) for p in i]) for i in both])
    close(head.plan(both), plans, **CLOSE)
    close(head.plan(both).sum(2), torch.full((2, 2, 4), 0.25).double(), **CLOSE)


def dispatched(model: Model, mode: str, training=True) -> tuple[Tensor, Tensor]:
    """Image features [B, E], and which tokens pass the MLP [B, 12, L - 1], 0 or 1 with the
    gradient of their probability."""
    clip, features, chosen = model.clip, [], []
    for number, pixels in enumerate(images()):
        x = clip.image.stem(pixels[None])[0]
        for block in clip.image.blocks:
            site = f"{block.site}.mlp"
            edit = model.edits[site]
            at = SiteContext(site, block, Rows(torch.arange(8), 8, training, (1, 0)), len(x))
            z = x + attention(block, x)
            kept = torch.ones(8, len(x), 5, dtype=torch.float64)
            if training:
                kept = at.dropout(kept, 0.1, f"dropout {mode}")
            inner = (z @ edit.down.weight.T + edit.down.bias).clamp(min=0) * kept[number]
            adapted = 0.1 * (inner @ edit.up.weight.T + edit.up.bias)
            gates = [torch.ones(1).double()]
            for i in range(1, len(x)):
                score = edit.gate.weight[0] @ z[i] + edit.gate.bias
                if training:
                    u = at.noise("gate", len(x) - 1, 1)[number, i - 1].double()
                    score = (score + torch.log(u / (1 - u))) / 5
                soft = 1 / (1 + (-score).exp())
                gates.append((soft.detach() > 0.5).double() - soft.detach() + soft)
            gates = torch.cat(gates)
            chosen.append(gates[1:])
            passed = gates[:, None] if mode != "complete" else 1
            x = z + passed * block.mlp(block.ln2(z)) + adapted
        features.append(clip.image.visual.ln_post(x[0]) @ clip.image.visual.proj)
    return torch.stack(features), torch.stack(chosen).unflatten(0, (8, 12))


def test_dyt_sends_chosen_tokens_through_the_mlp_and_learns_from_the_complete_model(exact):
    model = grafted("dyt", exact, rank=5)
    shake(model)
    text, scale = template(exact, text="a photo of a {}."), exact.logit_scale.exp()
    features, chosen = dispatched(model, "", training=False)
    assert 0.2 < float(chosen.detach().mean()) < 0.8
    close(logits(model, FIT, images()), scale * cosines(features, text).detach(), **CLOSE)

    features, chosen = dispatched(model, "")
    assert 0.2 < float(chosen.detach().mean()) < 0.8
    scores = scale * cosines(features, text)
    own = cross_entropy(scores, LABELS) + 2 * (chosen.sum() / chosen.numel() - 0.5) ** 2
    agrees(model, own)

    whole = scale * cosines(dispatched(model, "complete")[0], text)
    teacher, student = whole.detach().softmax(-1), scores.softmax(-1)
    divergence = (teacher * (teacher / student).log()).sum() / 8
    named = dict(model.trained.named_parameters())
    loss = own + cross_entropy(whole, LABELS) + divergence
    expected = torch.autograd.grad(loss, list(named.values()))
    optimiser = torch.optim.SGD(model.parameters())
    for chunks in (Chunks(), Chunks(3, 2, checkpointing=True)):
        data = batch(model, chunks=chunks)
        step = TrainingStep(data, optimiser, 0.0, room=AdaptiveChunks(chunks))
        close(model.method.step(step), loss.detach(), **CLOSE)
        for (name, parameter), gradient in zip(named.items(), expected, strict=True):
            close(parameter.grad, gradient, msg=name, **CLOSE)


def test_dyt_starts_as_clip_whose_tokens_are_chosen_by_chance(exact):
    edits = Model(exact, build("dyt"), FIT, seed=1).edits
    assert {*edits} == {f"image.blocks.{i}.mlp" for i in range(12)}
    assert not any(edit.up.weight.any() or edit.gate.bias.any() for edit in edits.values())


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (39, 1e-3 * 39 / 40), (40, 1e-3), (220, (1e-3 + 1e-5) / 2), (399, 1.00188e-5)],
)
def test_dyts_rate_rises_for_ten_epochs_and_falls_along_half_a_cosine(step, rate):
    assert build("dyt").learning_rate(step, 4, 400) == pytest.approx(rate, rel=1e-5)


def test_a_fit_of_dyt_that_is_cut_short_warms_up_for_the_same_share_of_it():
    rates = [build("dyt").learning_rate(step, 4, 20) for step in range(20)]
    assert rates[:3] == [0.0, 5e-4, 1e-3]
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_only_sites_beside_the_residual_stream_have_it(exact):
    seen = {}

    class Listens(Edit):
        def forward(self, x, y, at):
            if at.passing is not None:
                seen[at.site.split(".")[-1]] = at.stream
            else:
                with pytest.raises(ValueError, match=r"image\.blocks.* has no residual stream"):
                    _ = at.stream
            return y

    class Everywhere(Method):
        def edits(self, clip, classes):
            return {f"image.blocks.11.{p}": Listens() for p in POINTS} | {
                "image.features": Listens()
            }

    model = Model(exact, Everywhere(), FIT, seed=1)
    x = model.prefix(exact.image, images())
    model.rest(exact.image, x, x, Rows(torch.arange(8), 8, False, ()))
    assert {*seen} == {"ln1", "attn", "ln2", "mlp", "features"}
    block = exact.image.blocks[11]
    between = torch.stack([each + attention(block, each) for each in x])
    for point, stream in (("ln1", x), ("attn", x), ("ln2", between), ("mlp", between)):
        close(seen[point], stream, **CLOSE)
    close(seen["features"], between + block.mlp(block.ln2(between)), **CLOSE)
