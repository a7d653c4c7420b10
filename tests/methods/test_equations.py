"""Each method's equations against slow, literal transcriptions (float64, 1e-10)."""

import math

import pytest
import torch

from harness.method import rescale_gradient
from harness.methods import dra as dra_module
from harness.methods.adapter import Bottleneck
from harness.methods.coop import Context
from harness.methods.dra import (
    DRA,
    DynamicRank,
    channel_scores,
    descending,
    rank_mask,
    token_scores,
)
from harness.methods.mma import Shared
from harness.towers import tower as towers
from harness.towers.edit import Rows, SiteContext
from tests.methods.test_contract import FIT, grafted, images, logits, shake

CLOSE = {"atol": 1e-10, "rtol": 1e-10}


def relu(x: float) -> float:
    return max(x, 0.0)


def affine(linear: torch.nn.Linear, x: list[float]) -> list[float]:
    """W x + b, entry by entry."""
    weight, bias = linear.weight.tolist(), linear.bias.tolist()
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias)]  # noqa: B905


def at(training: bool, rows: int = 2, op: torch.nn.Module | None = None) -> SiteContext:
    numbers = torch.arange(rows)
    return SiteContext(
        "image.blocks.0.attn", op or torch.nn.Identity(), Rows(numbers, rows, training, (1, 0))
    )


def tokens(rows: int = 2, length: int = 7, width: int = 6) -> torch.Tensor:
    return torch.randn(rows, length, width, dtype=torch.float64)


def test_adapter_is_equation_8():
    module = Bottleneck(6, 4, 0.1, rescale=True).double()
    x, y = tokens(), tokens()
    out = module(x, y, at(True))
    for n in range(2):
        for i in range(7):
            inner = [relu(v) for v in affine(module.down, x[n, i].tolist())]
            branch = [relu(v) for v in affine(module.up, inner)]
            expected = [o + 0.1 * b for o, b in zip(y[n, i].tolist(), branch, strict=True)]
            torch.testing.assert_close(
                out[n, i], torch.tensor(expected, dtype=torch.float64), **CLOSE
            )


def test_rescaling_gives_parameters_the_gradient_of_s_equal_to_one_and_others_the_true_one():
    x = tokens().requires_grad_()
    results = []
    for rescale in (False, True):
        torch.manual_seed(0)
        module = Bottleneck(6, 4, 0.001, rescale).double()
        out = module(x, torch.zeros_like(x), at(True))
        grads = torch.autograd.grad((out**2).sum(), [x, *module.parameters()])
        # the loss's own gradient depends on the output, which is the same
        results.append(grads)
    torch.testing.assert_close(results[1][0], results[0][0], **CLOSE)
    for plain, rescaled in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(rescaled, 1000 * plain, **CLOSE)


def test_rescale_gradient_leaves_values_alone():
    x = tokens().requires_grad_()
    y = rescale_gradient(x, 3.0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, x)
    assert torch.equal(gradient, torch.full_like(x, 3.0))


def test_mma_is_parallel_to_the_block_and_reads_its_first_layer_norm(exact):
    model = grafted("mma", exact, first_block=12, scale=0.1)
    shake(model)
    module = model.edits["image.blocks.11"]
    assert isinstance(module, Shared)
    block = exact.image.blocks[11]
    x = tokens(2, 37, exact.image.width)
    rows = Rows(torch.arange(2), 2, False, ())
    out = module(x, block(x, None, towers.unedited), SiteContext("image.blocks.11", block, rows))
    hidden = block.ln1(x)
    down = (hidden @ module.down.weight.T + module.down.bias).clamp_min(0)
    inner = (down @ module.shared.weight.T + module.shared.bias).clamp_min(0)
    up = inner @ module.up.weight.T + module.up.bias
    torch.testing.assert_close(out, block(x, None, towers.unedited) + 0.1 * up, **CLOSE)


def test_mma_shares_its_inner_layer_between_the_towers_of_a_block(exact):
    edits = grafted("mma", exact).edits
    for block in range(4, 12):
        image, text = edits[f"image.blocks.{block}"], edits[f"text.blocks.{block}"]
        assert image.shared is text.shared
        assert image.down is not text.down
    assert edits["image.blocks.4"].shared is not edits["image.blocks.5"].shared


def test_coop_starts_as_the_hand_written_prompt(exact):
    coop, frozen = grafted("coop", exact), grafted("zero_shot", exact)
    classes = type(FIT)(FIT.dataset, FIT.names, "a photo of a {}.")
    torch.testing.assert_close(
        logits(coop, classes, images()), logits(frozen, classes, images()), **CLOSE
    )


def test_coop_replaces_the_four_embeddings_after_start_of_text():
    vectors = torch.randn(4, 6, dtype=torch.float64)
    y = tokens(3, 9)
    out = Context(vectors)(y, y, at(True))
    assert torch.equal(out[:, 0], y[:, 0])
    assert torch.equal(out[:, 1:5], vectors.expand(3, -1, -1))
    assert torch.equal(out[:, 5:], y[:, 5:])


def test_token_scores_are_equation_10():
    projected, width = tokens(2, 5, 3), 6
    got = token_scores(projected, math.sqrt(width))
    for n in range(2):
        rows = projected[n].tolist()
        attention = []
        for a in rows:
            energies = [math.exp(sum(p * q for p, q in zip(a, b)) / math.sqrt(width)) for b in rows]  # noqa: B905
            attention.append([e / sum(energies) for e in energies])
        expected = [sum(attention[i][j] for i in range(5)) / 5 for j in range(5)]
        torch.testing.assert_close(got[n], torch.tensor(expected, dtype=torch.float64), **CLOSE)
        assert sum(expected) == pytest.approx(1)


def test_channel_scores_are_equation_12():
    projected = tokens(2, 5, 3)
    got = channel_scores(projected)
    for n in range(2):
        centred = projected[n] - projected[n].mean(0)
        expected = torch.diag(centred.T @ centred) / 4
        torch.testing.assert_close(got[n], expected, **CLOSE)


def literal_mask(t: list[int], c: list[int], ratios: tuple[float, ...], rank: int) -> torch.Tensor:
    """Equations 14-16 with sorting and restoring written out: M' in the tokens' own order."""
    groups, start = [], 0
    size, rest = divmod(len(t), len(ratios))
    for i in range(len(ratios)):
        end = start + size + (i < rest)
        groups.append(t[start:end])
        start = end
    mask = torch.zeros(len(t), rank, dtype=torch.float64)
    for group, e in zip(groups, ratios, strict=True):
        for token in group:
            for channel in c[: math.floor(round(e * rank, 9))]:
                mask[token, channel] = 1 / e
    return mask


@pytest.mark.parametrize("ratios", [(1.0, 0.8, 0.6, 0.4), (1.0, 0.5), (1.0, 0.7, 0.4, 0.1)])
@pytest.mark.parametrize("length", [8, 37])
def test_masks_are_equations_14_to_16(ratios, length):
    generator = torch.Generator().manual_seed(5)
    t = torch.stack([torch.randperm(length, generator=generator) for _ in range(3)])
    c = torch.stack([torch.randperm(10, generator=generator) for _ in range(3)])
    got = rank_mask(t, c, ratios, 10, torch.float64)
    for n in range(3):
        expected = literal_mask(t[n].tolist(), c[n].tolist(), ratios, 10)
        torch.testing.assert_close(got[n], expected)


def test_without_channel_response_the_first_channels_are_kept():
    mask = rank_mask(torch.arange(4)[None], None, (1.0, 0.5), 4, torch.float32)[0]
    expected = [[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]
    assert mask.tolist() == expected


def module(**fields) -> DynamicRank:
    torch.manual_seed(4)
    method = DRA(rank=5, scale=0.1, **fields)
    return DynamicRank(6, method, method.lambda_image).double()


def literal_dra(m: DynamicRank, x: torch.Tensor, y: torch.Tensor, where: SiteContext):
    """Equations 9-19 for each sample with explicit sorting; returns X~ and the regulariser."""
    outputs, distances = [], []
    noise_t = -torch.log(-torch.log(where.noise("tokens", x.shape[1])))
    noise_c = -torch.log(-torch.log(where.noise("channels", 5)))
    for n in range(len(x)):
        inner = torch.relu(x[n] @ m.down.weight.T + m.down.bias)  # 9
        w = inner @ m.tokens.weight.T + m.tokens.bias
        a_t = torch.softmax(w @ w.T / math.sqrt(6), dim=1).mean(0)  # 10
        t = torch.sort(a_t + noise_t[n], descending=True).indices.tolist()  # 11
        v = inner @ m.channels.weight.T + m.channels.bias
        a_c = ((v - v.mean(0)) ** 2).sum(0) / (len(v) - 1)  # 12
        c = torch.sort(a_c + noise_c[n], descending=True).indices.tolist()  # 13
        mask = literal_mask(t, c, m.method.ratios, 5)
        adapted, plain = (
            torch.relu(torch.relu(z @ m.mix.weight.T + m.mix.bias) @ m.up.weight.T + m.up.bias)
            for z in (inner * mask, inner)
        )
        outputs.append(y[n] + 0.1 * adapted)  # 17
        distances.append((0.1 * adapted - 0.1 * plain).abs())  # 19
    return torch.stack(outputs), torch.stack(distances)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_dra_in_training_is_equations_9_to_19(reduction):
    m, x, y = module(reg_reduction=reduction), tokens(), tokens()
    where = at(True)
    out = m(x, y, where)
    expected, distance = literal_dra(m, x, y, where)
    torch.testing.assert_close(out, expected, **CLOSE)
    (loss,) = where.rows.losses.values()
    reduced = distance.mean((1, 2)) if reduction == "mean" else distance.sum((1, 2))
    torch.testing.assert_close(loss.double(), reduced, **CLOSE)


def test_dra_at_inference_is_equation_18():
    m, x, y = module(), tokens(), tokens()
    inner = torch.relu(x @ m.down.weight.T + m.down.bias)
    mixed = torch.relu(inner @ m.mix.weight.T + m.mix.bias)
    expected = y + 0.1 * torch.relu(mixed @ m.up.weight.T + m.up.bias)
    torch.testing.assert_close(m(x, y, at(False)), expected, **CLOSE)


def test_dra_gradients_are_those_of_the_transcription():
    x, y = tokens().requires_grad_(), tokens()
    plain = module(gradient_rescale=False)
    where = at(True)
    ours = (plain(x, y, where) ** 2).sum() + where.rows.auxiliary()
    expected, distance = literal_dra(plain, x, y, at(True))
    theirs = (expected**2).sum() + distance.mean((1, 2)).sum() / 2
    learned = [p for n, p in plain.named_parameters() if not n.startswith(("tokens", "channels"))]
    for a, b in zip(
        torch.autograd.grad(ours, [x, *learned]),
        torch.autograd.grad(theirs, [x, *learned]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **CLOSE)


def test_straight_through_teaches_the_projections_and_changes_no_value():
    x, y = tokens(), tokens()
    printed, taught = module(), module(gradient="straight_through")
    torch.testing.assert_close(taught(x, y, at(True)), printed(x, y, at(True)), **CLOSE)
    taught(x, y, at(True)).pow(2).sum().backward()
    assert taught.tokens.weight.grad.abs().sum() > 0
    assert taught.channels.weight.grad.abs().sum() > 0
    printed(x, y, at(True)).pow(2).sum().backward()
    assert printed.tokens.weight.grad is None


def test_noise_modes_order_tokens_as_they_say():
    scores = torch.tensor([[0.1, 0.7, 0.2]]).expand(2000, -1)
    where = at(True, rows=2000)
    first = {
        mode: descending(scores, mode, where, "tokens")[:, 0].bincount(minlength=3) / 2000
        for mode in ("none", "random", "gumbel", "log_gumbel")
    }
    assert first["none"].tolist() == [0, 1, 0]
    assert first["random"].tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    # Gumbel-max: adding Gumbel noise to z samples from softmax(z); to log a it samples from a
    assert first["gumbel"].tolist() == pytest.approx(scores[0].softmax(0).tolist(), abs=0.05)
    assert first["log_gumbel"].tolist() == pytest.approx([0.1, 0.7, 0.2], abs=0.05)


def test_noise_differs_between_sites_steps_and_purposes():
    rows = Rows(torch.arange(2), 2, True, (1, 0))
    later = Rows(torch.arange(2), 2, True, (1, 1))
    here, op = "image.blocks.4.attn", torch.nn.Identity()
    draws = [
        SiteContext(here, op, rows).noise("tokens", 5),
        SiteContext("text.blocks.4.attn", op, rows).noise("tokens", 5),
        SiteContext(here, op, later).noise("tokens", 5),
        SiteContext(here, op, rows).noise("channels", 5),
    ]
    assert torch.equal(draws[0], SiteContext(here, op, rows).noise("tokens", 5))
    assert all(not torch.equal(draws[0], other) for other in draws[1:])
    assert dra_module.gumbel(SiteContext(here, op, rows), "tokens", 5).isfinite().all()
