"""Equations of low-rank variants against slow, literal transcriptions (float64, 1e-10)."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.fitting.inputs import FewShotSupport, Images
from harness.fitting.model import Model
from harness.fitting.step import TrainingStep, gradients
from harness.fitting.texts import texts
from harness.methods.flat_lora import Flattened
from harness.methods.lora_pro import nearest
from harness.randomness import normal
from harness.towers.edit import Rows, SiteContext
from tests.conftest import execute
from tests.methods.test_contract import FIT, batch, build, grafted, images, logits, shake
from tests.methods.test_equations import CLOSE
from tests.methods.test_equations_weights import (
    LABELS,
    agrees,
    close,
    cosines,
    cross_entropy,
    template,
    tower_by_hand,
    unit,
)

PHOTO = "a photo of a {}."
PROGRESS = 0.7  # of `batch`


def frozen_logits(clip) -> Tensor:
    return clip.logit_scale.exp() * cosines(clip.image(images()), template(clip, text=PHOTO))


def product(edit) -> Tensor:
    """B A, as a sum of outer products."""
    return sum(torch.outer(edit.b[:, i], edit.a[i]) for i in range(len(edit.a)))


def changed_logits(model: Model, moved, training: bool) -> Tensor:
    """Logits of q, k, v with updates B A / sqrt 2; in training of dropped inputs, and with
    moved(site, W') added to the matrix."""

    def features(tower, inputs: Tensor) -> Tensor:
        def project(site, op, x):
            update = product(model.edits[site]) / math.sqrt(2)
            if not training:
                return x @ (op.weight + update).T + op.bias
            rows = Rows(torch.arange(len(x)), len(x), True, (1, 0))
            kept = SiteContext(site, op, rows, tower.length).dropout(torch.ones_like(x), 0.25)
            matrix = op.weight + moved(site, (op.weight + update).detach())
            return x @ matrix.T + op.bias + (x * kept) @ update.T

        return tower_by_hand(tower, inputs, project, lambda site, x: 0)

    clip = model.clip
    ids = clip.tokenize([PHOTO.format(name) for name in FIT.names])
    return clip.logit_scale.exp() * cosines(
        features(clip.image, images()), features(clip.text, ids)
    )


def noise(site: str, matrix: Tensor) -> Tensor:
    """Flat-LoRA's at a rho of 0.05: rows of W' of norm |W'_i| get 0.05 h |W'_i| / sqrt n."""
    rows, columns = matrix.shape
    drawn = normal((rows, columns), 1, 0, site, "flat", like=matrix)
    h = (1 - math.cos(PROGRESS * math.pi)) / 2
    deviations = [
        0.05 * h * math.sqrt(sum(w * w for w in row) / columns) for row in matrix.tolist()
    ]
    return torch.stack([s * row for s, row in zip(deviations, drawn, strict=True)])


def test_flat_lora_learns_at_matrices_moved_by_noise_in_proportion_to_their_rows(exact):
    model = grafted("flat_lora", exact)
    close(logits(model, FIT, images()), frozen_logits(exact), **CLOSE)
    shake(model)
    close(logits(model, FIT, images()), changed_logits(model, noise, False).detach(), **CLOSE)
    agrees(model, cross_entropy(changed_logits(model, noise, True), LABELS))


def test_flat_loras_noise_grows_from_nothing_to_rho_over_the_fit(exact):
    model = grafted("flat_lora", exact)
    edit, op = model.edits["text.blocks.3.k"], exact.text.blocks[3].attn.k
    ratios = []
    for progress in (0.0, 0.5, 1.0):
        rows = Rows(torch.arange(2), 2, True, (1, 0), progress=progress)
        moved = edit.noise(SiteContext("text.blocks.3.k", op, rows))
        ratios.append((moved.norm(dim=1) / op.weight.norm(dim=1)).square().mean().sqrt())
    assert ratios[0] == 0
    assert ratios[1:] == pytest.approx([0.025, 0.05], rel=0.1)


def test_normal_draws_are_the_same_for_all_rows_and_others_for_each_site_and_step():
    def drawn(numbers: list[int], site: str = "text.blocks.3.q", step: int = 0) -> Tensor:
        rows = Rows(torch.tensor(numbers), 8, True, (1, step))
        like = torch.zeros(1).double()
        return SiteContext(site, torch.nn.Identity(), rows).normal("x", 60, 50, like=like)

    whole = drawn(list(range(8)))
    assert torch.equal(drawn([5, 2]), whole)
    assert (whole.mean().item(), whole.std().item()) == pytest.approx((0, 1), abs=0.05)
    for other in (drawn([0], site="text.blocks.3.k"), drawn([0], step=1)):
        assert abs(torch.corrcoef(torch.stack([whole.flatten(), other.flatten()]))[0, 1]) < 0.05


class LiteralPro:
    """LoRA-Pro of one pair, with dense matrices and Sylvester's equation as a linear system."""

    def __init__(self, scale: float, decay: float) -> None:
        self.s, self.decay, self.t, self.m, self.v = scale, decay, 0, 0.0, 0.0

    def step(self, a: Tensor, b: Tensor, ga: Tensor, gb: Tensor, rate: float):
        s, r, eye = self.s, len(a), torch.eye(len(a)).double()
        self.t += 1
        first = self.t == 1
        small_a = torch.linalg.inv(a @ a.T + 1e-8 * eye)
        small_b = torch.linalg.inv(b.T @ b + 1e-8 * eye)
        outside = torch.eye(len(b)).double() - b @ small_b @ b.T

        def mapped(of_a: Tensor, of_b: Tensor) -> tuple[Tensor, Tensor]:
            if first:
                return of_a, of_b @ small_a / s**2
            return small_b @ of_a / s**2, outside @ of_b @ small_a / s**2

        da, db = mapped(ga, gb)
        g = s * b @ da + s * db @ a
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        mean, square = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        g = mean / (square.sqrt() + 1e-8)
        of_a, of_b = s * b.T @ g, s * g @ a.T
        da, db = mapped(of_a, of_b)
        if not first:
            system = torch.kron(b.T @ b, eye) + torch.kron(eye, (a @ a.T).T.contiguous())
            right = -small_b @ of_a @ a.T / s**2
            x = torch.linalg.solve(system, right.flatten()).view(r, r)
            da, db = da + x @ a, db - b @ x
        kept = math.sqrt(1 - rate * self.decay)
        return kept * a - rate * da, kept * b - rate * db


def test_lora_pro_moves_its_factors_so_that_their_product_follows_adam(exact):
    model = grafted("lora_pro", exact)
    optimiser, rate = model.optimiser(), 2e-4
    sites = ["image.blocks.0.q", "image.blocks.11.v", "text.blocks.5.k"]
    literal = {site: LiteralPro(1 / math.sqrt(2), 0.01) for site in sites}
    for number in range(4):
        step = TrainingStep(batch(model, number), optimiser, rate, number, 4)
        pairs = {site: (model.edits[site].a, model.edits[site].b) for site in sites}
        before = {site: [p.detach().clone() for p in pair] for site, pair in pairs.items()}
        model.method.step(step)
        for site, (a, b) in pairs.items():
            expected = literal[site].step(*before[site], a.grad, b.grad, rate)
            close((a.detach(), b.detach()), expected, **CLOSE)
            assert not torch.equal(b.detach(), before[site][1])


def test_lora_pros_change_of_the_product_is_the_nearest_to_a_whole_gradient():
    draws = torch.Generator().manual_seed(1)
    a, b, whole = (torch.randn(1, *shape, generator=draws).double()
                   for shape in ((2, 6), (5, 2), (5, 6)))  # fmt: skip
    s = 0.7
    down, up = nearest(a, b, s * b.mT @ whole, s * whole @ a.mT, s, first=False)
    change = (s * (b @ down + up @ a))[0]
    onto_b, onto_a = b[0] @ torch.linalg.pinv(b[0]), torch.linalg.pinv(a[0]) @ a[0]
    outside = (torch.eye(5).double() - onto_b) @ whole[0] @ (torch.eye(6).double() - onto_a)
    close(change, whole[0] - outside, atol=1e-6, rtol=1e-6)  # but for delta


def entered(clip, tower: str, block: int) -> Tensor:
    """The tokens [n, D] that enter the attention of a block, of random images or of the prompts."""
    if tower == "image":
        x = clip.image.stem(images())
        kept = torch.ones(x.shape[:2], dtype=torch.bool)
    else:
        ids = clip.tokenize([PHOTO.format(name) for name in FIT.names])
        x = clip.text.stem(ids)
        kept = torch.zeros(ids.shape, dtype=torch.bool)
        for row, text in enumerate(ids.tolist()):
            kept[row, : text.index(max(text)) + 1] = True
    own = getattr(clip, tower)
    for index in range(block):
        x = own.block(index, x)
    return own.blocks[block].ln1(x)[kept]


def test_eva_starts_at_principal_components_and_ranks_them_by_explained_variance(exact):
    model = grafted("eva", exact)
    close(logits(model, FIT, images()), frozen_logits(exact), **CLOSE)
    components, shares = {}, []
    for tower in ("image", "text"):
        for block in range(12):
            x = entered(exact, tower, block)
            _, values, rows = torch.linalg.svd(x - x.mean(0), full_matrices=False)
            explained = values**2 / (values**2).sum()
            for part in "qkv":
                site = f"{tower}.blocks.{block}.{part}"
                components[site] = rows
                shares += [(explained[i].item(), site) for i in range(4)]
    threshold = sorted(share for share, _ in shares)[-72 * 2]
    found = {site: len(edit.a) for site, edit in model.edits.items()}
    assert sum(found.values()) == 72 * 2
    assert len({*found.values()}) > 2
    for site, edit in model.edits.items():
        own = [share for share, of in shares if of == site]
        above, at_least = (
            sum(share > threshold * factor for share in own) for factor in (1 + 1e-9, 1 - 1e-9)
        )
        assert above <= found[site] <= at_least
        assert edit.b.shape == (len(edit.b), found[site])
        assert edit.b.count_nonzero() == 0
        for row, expected in zip(edit.a.detach(), components[site], strict=False):
            sign = expected[expected.abs().argmax()].sign()
            close(row, sign * expected, atol=1e-8, rtol=1e-8)


def test_eva_learns_updates_of_the_scale_of_the_mean_rank(exact):
    model = grafted("eva", exact)
    shake(model)
    expected = changed_logits(model, lambda site, matrix: torch.zeros_like(matrix), False)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    loss = cross_entropy(
        changed_logits(model, lambda site, matrix: torch.zeros_like(matrix), True), LABELS
    )
    parameters = model.parameters()
    wanted = torch.autograd.grad(loss, parameters, allow_unused=True)
    close(gradients(batch(model)), loss.detach(), **CLOSE)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        if parameter.numel():
            close(parameter.grad, gradient, **CLOSE)


def test_evas_record_counts_what_is_trained_after_the_ranks_were_dealt_out(make_run):
    run = make_run("eva")
    record, _, model = execute(run)
    dealt = sum(edit.a.numel() + edit.b.numel() for edit in model.edits.values())
    assert record.cost["trainable_parameters"] == dealt != run.summary.parameters


def test_eva_with_a_rho_of_one_has_the_same_rank_everywhere(exact):
    edits = grafted("eva", exact, rho=1.0).edits
    assert {len(edit.a) for edit in edits.values()} == {2}
    assert len({edit.a.data_ptr() for edit in edits.values()}) == 72  # of q, k and v each its own
    with pytest.raises(HarnessError, match=r"eva\.rho must be at least 1"):
        build("eva", rho=0.5).check()


def test_a_support_shows_what_enters_any_site_of_the_shots_and_the_prompts(make_run):
    run = make_run("lora")
    model = run.model()
    images_ = Images(
        model, run.source(run.train), run.train, run.context.cache, run.augmentation(model.method)
    )
    prompts = texts(model, run.train.classes, training=True)
    support, seen = FewShotSupport(images_, prompts, None, seed=1), {}
    sites = ["image.blocks.3.q", "image.features", "text.blocks.2.fc1"]
    support.inputs(sites, lambda site, x: seen.setdefault(site, []).append(x))
    clip, count = model.clip, len(run.train.items)
    shown = {site: torch.cat(parts) for site, parts in seen.items()}
    assert shown["image.blocks.3.q"].shape == (count * clip.image.length, clip.image.width)
    assert len(shown["text.blocks.2.fc1"]) == int(clip.text.needed(prompts.ids).sum())
    view = images_.augmentation.view(1, 0)
    features = next(images_.frozen().train(view, [torch.arange(count)]))
    close(shown["image.features"] @ clip.image.visual.proj, features, atol=1e-4, rtol=1e-4)
    with pytest.raises(HarnessError, match=r"there is no such site.*image\.blocks\.3\.q"):
        support.inputs(["image.blocks.3.qq"], print)


def principal_logits(model: Model) -> Tensor:
    """With W's two largest singular directions out of W, and B A / sqrt 2 in their place."""

    def features(tower, inputs: Tensor) -> Tensor:
        def project(site, op, x):
            left, values, right = np.linalg.svd(op.weight.numpy())
            rest = torch.from_numpy(left[:, 2:] @ np.diag(values[2:]) @ right[2:])
            return x @ (rest + product(model.edits[site]) / math.sqrt(2)).T + op.bias

        return tower_by_hand(tower, inputs, project, lambda site, x: 0)

    clip = model.clip
    ids = clip.tokenize([PHOTO.format(name) for name in FIT.names])
    return clip.logit_scale.exp() * cosines(
        features(clip.image, images()), features(clip.text, ids)
    )


def test_ba_lora_replaces_the_largest_singular_directions_and_holds_the_logits(exact):
    weights = {"consistency": 0.7, "diversity": 0.02, "focus": 0.9, "directions": 2}
    model = grafted("ba_lora", exact, **weights)
    close(logits(model, FIT, images()), frozen_logits(exact), **CLOSE)
    edit, op = model.edits["text.blocks.3.k"], exact.text.blocks[3].attn.k
    assert torch.linalg.svdvals(op.weight - product(edit).detach() / math.sqrt(2)).max() == (
        pytest.approx(torch.linalg.svdvals(op.weight)[2].item())
    )
    shake(model)
    z, z0 = principal_logits(model), frozen_logits(exact)
    close(logits(model, FIT, images()), z.detach(), **CLOSE)
    drift = sum(((unit(a) - unit(b)) ** 2).sum() for a, b in zip(z, z0, strict=True)) / (8 * 3)
    means, spread = z.mean(0), 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        covariance = sum((row[i] - means[i]) * (row[j] - means[j]) for row in z) / 7
        spread = spread + 2 * covariance**2 / 3
    values = torch.linalg.eigvalsh(z.T @ z).sqrt()  # ascending
    kept = (values[1] + values[2]) / values.sum()
    agrees(model, cross_entropy(z, LABELS) + 0.7 * drift + 0.02 * spread - 0.9 * kept)


def test_ba_loras_loss_is_finite_on_a_single_image(exact):
    model = grafted("ba_lora", exact)
    given = batch(model)
    one = replace(given, x=given.x[:1], labels=given.labels[:1], frozen=given.frozen[:1])
    assert gradients(one).isfinite()


def test_an_edit_is_told_how_far_the_fit_is(make_run, monkeypatch):
    told, plain = [], Flattened.noise

    def noted(edit, at):
        told.append(at.progress)
        return plain(edit, at)

    run = make_run("flat_lora", max_steps=4)
    monkeypatch.setattr(Flattened, "noise", noted)
    record, _, _ = execute(run)
    assert record.status == "done", record.error
    assert [told[0], *(b for a, b in pairwise(told) if a != b)][-4:] == [0.0, 0.25, 0.5, 0.75]


def test_parameters_that_move_before_the_first_step_alone_count_as_unmoved(make_run, monkeypatch):
    monkeypatch.setattr("harness.methods.eva.EVA.step", lambda method, step: torch.zeros(()))
    record, _, _ = execute(make_run("eva", max_steps=2))
    assert record.status == "done", record.error
    assert "no trained parameter moved" in record.checks
