"""Equations of classifiers on frozen features against literal transcriptions (float64, 1e-10)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.dataset import Classes
from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.step import TrainingStep, gradients
from harness.method import HeadContext, Output
from harness.methods.gda import Gaussian
from harness.methods.lp_plus_plus import Blended
from harness.methods.rada import Rational
from harness.randomness import generator
from tests.methods.test_contract import FIT, OTHER, batch, build, grafted, images, logits, shake
from tests.methods.test_equations import CLOSE
from tests.methods.test_equations_weights import (
    LABELS,
    agrees,
    cosines,
    cross_entropy,
    few,
    template,
    unit,
)

close = torch.testing.assert_close


def fitted_on(name: str, clip, support, **fields) -> Model:
    """A method prepared with a stand-in for its shots."""
    model = Model(clip, build(name, **fields), FIT, seed=1)
    model.trained.double()
    model.method.prepare(model.head, support)
    return model


def test_taskres_shifts_the_unnormalised_text_features(exact):
    model = grafted("taskres", exact)
    shake(model)
    text = template(exact) + 0.5 * model.head.residual
    expected = exact.logit_scale.exp() * cosines(exact.image(images()), text)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS))


def test_taskres_starts_as_zero_shot_with_the_mean_of_eight_templates_on_imagenet(exact):
    classes = type(FIT)("imagenet", FIT.names, "a photo of a {}.")
    method = build("taskres")
    (texts,) = {len(each) for each in method.prompts(classes)}
    assert texts == 8
    text = torch.randn(3, 8, 36).double()
    scale, image = exact.logit_scale.exp(), exact.image(images())
    got = method.head(exact, classes).double()(image, text, HeadContext(scale))
    mean = torch.stack([sum(row) / 8 for row in text])
    close(got.detach(), scale * cosines(image, mean), **CLOSE)


@pytest.mark.parametrize("name", ["clap", "zs_lp"])
def test_clap_is_a_cosine_classifier_held_to_the_texts_by_their_confidence(name, exact):
    support = few(views=20)
    model = fitted_on(name, exact, support)
    head = model.head
    anchors = support.text[:, 0]
    close(head.weight.detach(), anchors, **CLOSE)  # unnormalised
    shake(model)
    strengths = []
    for c in range(3):
        own = [
            (support.scale * cosines(view[i : i + 1], anchors)[0]).softmax(0)[c]
            for view in support.views
            for i in range(len(view))
            if support.labels[i] == c
        ]
        strengths.append(sum(own) / len(own))
    pull = sum(
        strengths[c] * ((head.weight[c] - anchors[c]) ** 2).sum() for c in range(3)
    ) / 3  # fmt: skip
    expected = exact.logit_scale.exp() * cosines(exact.image(images()), head.weight)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS) + (0 if name == "zs_lp" else pull))


def test_clap_takes_256_of_a_pool_of_twenty_views_and_each_of_them_once_an_epoch(exact):
    support = few(images=600, views=20)
    model = fitted_on("clap", exact, support, batch_size=256)
    seen = []
    for number in (0, 1, 2):  # 600 shots have two batches: an epoch of two steps
        step = TrainingStep(batch(model), model.optimiser(), 0.1, number, 600)
        seen.append(model.method.chosen(12_000, step))
        assert len(seen[-1]) == 256
    assert not {*seen[0].tolist()} & {*seen[1].tolist()}
    order = torch.randperm(12_000, generator=generator("pool", 1, 1))
    assert torch.equal(seen[2], order[:256])
    step = TrainingStep(batch(model), model.optimiser(), 0.1, 0, 600)
    loss = model.method.step(step)
    pool, labels = torch.cat(support.views), support.labels.repeat(20)
    rows = exact.logit_scale.exp() * cosines(pool[seen[0]], support.text[:, 0])
    close(loss, cross_entropy(rows, labels[seen[0]]), **CLOSE)  # the penalty is zero at the start
    shake(model)
    rows = exact.logit_scale.exp() * cosines(pool[seen[0]], model.head.weight.detach())
    penalty = model.head.penalty().detach()
    assert penalty > 1e-3
    close(model.method.step(step), cross_entropy(rows, labels[seen[0]]) + penalty, **CLOSE)


def lp_start(support, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """W and alpha of LP++ before the first step."""
    labels = support.labels.tolist()
    weight = torch.stack(
        [sum(image[i] for i in range(len(image)) if labels[i] == c) for c in range(3)]
    )
    means = [
        sum((image[i] * text[c]).sum() for i in range(len(image)) if labels[i] == c)
        / labels.count(c)
        for c in range(3)
    ]
    return weight, 250 * sum(means) / 3 * torch.ones(3).double()


def test_lp_plus_plus_descends_in_two_blocks_with_their_own_step_sizes(exact):
    support = few(images=9)
    model = fitted_on("lp_plus_plus", exact, support)
    head = model.head
    assert isinstance(head, Blended)
    image = unit(support.views[0])
    text = unit(support.text[:, 0])
    weight, alpha = lp_start(support, image, text)
    bias = head.linear.bias.detach().clone()
    close(head.linear.weight.detach(), weight, **CLOSE)
    close(head.alpha.detach(), alpha, **CLOSE)
    assert 0 < bias.abs().max() <= 1 / math.sqrt(36)
    largest = torch.linalg.eigvalsh(image.T @ image).max()
    rate = 4 * 9 / largest
    text_rate = 9 / (4 * max(((image @ text[c]) ** 2).sum() for c in range(3)))

    velocity, gathered = [torch.zeros_like(weight), torch.zeros_like(bias)], 0
    for number in range(21):
        weight, bias, alpha = (each.requires_grad_() for each in (weight, bias, alpha))
        scores = image @ weight.T + bias + alpha * (image @ text.T)
        grads = torch.autograd.grad(F.cross_entropy(scores, support.labels), [weight, bias, alpha])
        own = Fed(head, image, support)
        model.method.step(own.at(number))
        velocity = [0.9 * v + g for v, g in zip(velocity, grads[:2], strict=True)]
        gathered = gathered + grads[2]
        weight, bias = (
            (p - rate * v).detach() for p, v in zip((weight, bias), velocity, strict=True)
        )
        alpha = (alpha - text_rate * gathered * (number in (9, 19))).detach()
        close(head.linear.weight.detach(), weight, **CLOSE)
        close(head.linear.bias.detach(), bias, **CLOSE)
        close(head.alpha.detach(), alpha, **CLOSE)


class Fed:
    """A step on given features, for a method that reads nothing else of it."""

    def __init__(self, head, image: Tensor, support) -> None:
        self.head, self.image, self.labels = head, image, support.labels
        self.text, self.number = support.text, 0

    def at(self, number: int) -> "Fed":
        self.number = number
        return self

    def gradients(self, loss):
        given = HeadContext(torch.ones(()))
        scores = self.head(self.image, self.text, given)
        value = loss(Output(scores, self.image, self.text, 0.0, given, self.head), self.labels)
        names = [f"head.{name}" for name, _ in self.head.named_parameters()]
        found = torch.autograd.grad(value, list(self.head.parameters()))
        return value.detach(), dict(zip(names, found, strict=True))


def test_lp_plus_plus_ends_with_the_step_that_was_best_on_val_of_equal_ones_the_last(exact):
    support = few(images=9, noise=6.0)
    model = fitted_on("lp_plus_plus", exact, support)
    seen = []
    fed = Fed(model.head, unit(support.views[0]), support)
    for number in range(30):
        model.method.step(fed.at(number))
        val, labels = support.held
        scores = model.head(val, support.text, HeadContext(torch.ones(())))
        correct = int((scores.argmax(1) == labels).sum())
        seen.append((correct, number, model.head.linear.weight.detach().clone()))
    assert len({correct for correct, _, _ in seen}) > 1
    model.method.finish(model.head, support)
    best = max(seen, key=lambda each: each[:2])
    close(model.head.linear.weight.detach(), best[2], **CLOSE)


def gaussian_by_hand(support, by_class: bool) -> tuple[Tensor, Tensor]:
    features = torch.cat([unit(view) for view in support.views])
    labels = support.labels.repeat(10)
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    if by_class:
        covariances = [features[labels == c].T.cov() for c in range(3)]
        inverse = torch.linalg.pinv(sum(covariances) / 3, rtol=1.2e-7 * 36, hermitian=True)
    else:
        centred = torch.cat([features[labels == c] - means[c] for c in range(3)])
        cov = centred.T.cov()
        ridge = torch.trace(cov) * torch.eye(36).double()
        inverse = 36 * torch.linalg.pinv((len(features) - 1) * cov + ridge)
    weight = torch.stack([inverse @ mean for mean in means])
    bias = torch.stack([math.log(1 / 3) - mean @ inverse @ mean / 2 for mean in means])
    return weight, bias


@pytest.mark.parametrize("covariance", ["pooled", "by_class"])
def test_gda_adds_the_discriminant_of_gaussians_with_one_covariance(covariance, exact):
    support = few(images=30, noise=1.0)
    model = fitted_on("gda", exact, support, covariance=covariance)
    head = model.head
    assert isinstance(head, Gaussian)
    weight, bias = gaussian_by_hand(support, covariance == "by_class")
    close(head.weight, weight, atol=1e-8, rtol=1e-8)
    close(head.bias, bias, atol=1e-8, rtol=1e-8)
    model.method.finish(head, support)
    val, labels = support.held
    frozen = 20.0 * cosines(val, support.text[:, 0])
    added = unit(val) @ weight.T + bias
    counts = {a: int(((frozen + a * added).argmax(1) == labels).sum()) for a in
              (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)}  # fmt: skip
    assert float(head.alpha) == max(counts, key=counts.get)
    image, scale = exact.image(images()), exact.logit_scale.exp()
    expected = scale * cosines(image, template(exact)) + head.alpha * (
        unit(image) @ weight.T + bias
    )
    close(logits(model, FIT, images()), expected, atol=1e-7, rtol=1e-7)


def test_gda_makes_classes_without_shots_of_the_64_nearest_features_and_16_copies_of_a_text(exact):
    support = few(images=30, noise=1.0)
    model = fitted_on("gda", exact, support)
    model.head.alpha.fill_(0.5)
    shots = torch.cat([unit(view) for view in support.views])
    texts = unit(template(exact, OTHER.names))
    means, inverse = [], torch.zeros(36, 36).double()
    for text in texts:
        near = shots[(shots @ text).argsort(descending=True)[:64]]
        means.append((near.sum(0) + 16 * text) / 80)
        scatter = sum(torch.outer(f - text, f - text) for f in near)  # 63 S
        ridge = torch.trace(scatter / 63) * torch.eye(36).double()
        inverse += 36 * torch.linalg.pinv(scatter + ridge) / 2
    image, scale = exact.image(images()), exact.logit_scale.exp()
    added = torch.stack(
        [unit(image) @ inverse @ m + math.log(1 / 2) - m @ inverse @ m / 2 for m in means], 1
    )
    expected = scale * cosines(image, texts) + 0.5 * added
    close(logits(model, OTHER, images()), expected, atol=1e-8, rtol=1e-8)


def rational_by_hand(head: Rational, image: Tensor, text: Tensor, scale: Tensor):
    """Logits and mask, entry by entry over images, heads and queries."""
    size, rows, masks = 9, [], []
    for f in image:
        product = torch.stack([unit(f) * unit(t) for t in text])  # [C, E]
        keys, values = head.key(scale * product), head.value(scale * product)
        queries = [
            torch.stack([head.queries["image"](scale.sqrt() * unit(f))] * len(text)),
            torch.stack([head.queries["text"](scale.sqrt() * unit(t)) for t in text]),
            head.queries["product"](scale * product),
        ]
        mixed = []
        for h in range(4):
            part = slice(h * size, (h + 1) * size)
            weights = 0
            for q in queries:
                energies = (q[:, part] @ keys[:, part].T / (3 * 0.5)).exp()
                weights = weights + len(text) * energies / energies.sum() / 3
            mixed.append(weights @ values[:, part])
        mask = (1 + head.out(torch.cat(mixed, 1))).clamp_min(0)
        rows.append(scale * (mask * product).sum(1))
        masks.append(mask)
    return torch.stack(rows), torch.stack(masks)


def test_rada_reweights_the_products_by_an_attention_over_classes(exact):
    model = grafted("rada", exact, temperature=0.5, mask_weight=2.0)
    scale, text = exact.logit_scale.exp(), template(exact, text="a photo of a {}.")
    close(logits(model, FIT, images()), scale * cosines(exact.image(images()), text), **CLOSE)
    shake(model)
    expected, mask = rational_by_hand(model.head, exact.image(images()), text, scale)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    change = sum((m - 1).abs().max() for m in mask) / len(mask)
    agrees(model, cross_entropy(expected, LABELS) + 2 * change)


@pytest.mark.parametrize("base", ["coop", "cocoop", "kgcoop", "maple", "promptsrc"])
def test_dept_adds_a_linear_head_on_both_features_and_mixes_it_in_for_fitted_classes(base, exact):
    model = grafted("dept" if base == "coop" else f"dept-{base}", exact)
    shake(model)
    head, seen = model.head, {}

    def kept(output: Output, labels: Tensor) -> Tensor:
        seen["output"] = output
        return model.method.prompt.loss(output, labels)

    first = gradients(batch(model), kept)
    output, scale_of_logits = seen["output"], exact.logit_scale.exp()
    f, t = output.image.detach(), output.text[..., 0, :].detach()  # [B, E], [C, E] or [B, C, E]
    alone = base == "cocoop"  # each image has texts of its own
    plain = (
        torch.cat([scale_of_logits * cosines(f[i : i + 1], t[i]) for i in range(8)])
        if alone
        else scale_of_logits * cosines(f, t)
    )
    rest = {
        "kgcoop": lambda: 2 - 2 * cosines(t, template(exact)).diag().mean(),
        "promptsrc": lambda: first - cross_entropy(plain, LABELS),
    }.get(base, lambda: 0.0)()
    linear, scale, shift = head.linear, head.scale, head.shift

    def own(x: Tensor, kind: str) -> Tensor:
        return (x * scale[kind] + shift[kind]) @ linear.weight.T + linear.bias

    named = torch.stack([t[i, c] for i, c in enumerate(LABELS)]) if alone else t[LABELS]
    both = torch.cat([own(named, "text"), own(f, "image")])
    second = cross_entropy(both, torch.cat([LABELS, LABELS]))
    expected = 0.3 * cross_entropy(plain, LABELS) + 0.7 * second.detach() + rest
    close(gradients(batch(model)), expected, **CLOSE)
    close(output.logits.detach(), plain, **CLOSE)
    mixed = 0.3 * plain + 0.7 * own(f, "image").detach()
    close(head(f, t[..., None, :], HeadContext(scale_of_logits)).detach(), mixed, **CLOSE)
    unseen = HeadContext(scale_of_logits, fitted=False)
    close(head(f, t[..., None, :], unseen).detach(), plain, **CLOSE)


@pytest.mark.parametrize("name", ["dept", "two_stage", "gda"])
def test_a_part_of_the_fitted_classes_keeps_what_was_learned_for_them(name, exact):
    model = grafted(name, exact)
    shake(model)
    part = Classes("other", (FIT.names[2], FIT.names[0]), FIT.template)
    close(logits(model, part, images()), logits(model, FIT, images())[:, [2, 0]], **CLOSE)


def test_gda_with_the_pooled_covariance_has_no_answer_for_other_classes(exact):
    model = fitted_on("gda", exact, few(images=30, noise=1.0), covariance="pooled")
    with pytest.raises(HarnessError, match="knows the fitted classes alone"):
        logits(model, OTHER, images())


def test_depts_second_head_learns_six_and_a_half_times_as_fast(exact):
    model = grafted("dept", exact)
    step = TrainingStep(batch(model), model.optimiser(), 0.002)
    before = {name: p.detach().clone() for name, p in step.parameters.items()}
    _, found = step.gradients(model.method.loss)
    step.update(found)
    for name, p in step.parameters.items():
        rate = 0.002 * (6.5 if name.startswith("head.") else 1)
        decayed = found[name] + 5e-4 * before[name]
        close(p.detach(), before[name] - rate * decayed, **CLOSE)
