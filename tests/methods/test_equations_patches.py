"""Equations of methods that treat each patch of an image by itself against literal transcriptions
(float64, 1e-10)."""

import math

import pytest
import torch
from torch import Tensor

from harness.fitting.model import Model
from harness.fitting.step import AdaptiveChunks, Chunks, TrainingStep, gradients
from harness.towers.edit import Rows, SiteContext
from tests.methods.test_contract import FIT, batch, build, grafted, images, logits, shake
from tests.methods.test_equations import CLOSE
from tests.methods.test_equations_tokens import attention, block_by_hand
from tests.methods.test_equations_weights import LABELS, agrees, cosines, cross_entropy, template

close = torch.testing.assert_close


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
    close(gradients(batch(model)), own.detach(), **CLOSE)

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
            assert gradient.abs().max() > 0, name
            close(parameter.grad, gradient, **CLOSE)


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
