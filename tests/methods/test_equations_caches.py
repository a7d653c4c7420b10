"""Equations of few-shot caches and graphs of classes against literal transcriptions (float64,
1e-10)."""

import math

import pytest
import torch
from torch import Tensor

from harness.methods.ape import APE, Refined, Residual
from harness.methods.tip_x import Compared
from tests.methods.test_contract import FIT, build, images, logits, shake
from tests.methods.test_equations import CLOSE
from tests.methods.test_equations_heads import fitted_on
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


def keys_of(support) -> Tensor:
    return unit(sum(support.views))


def divergence_by_hand(image: Tensor, text: Tensor, keys: Tensor) -> Tensor:
    """KL(p || P_n) of the classes' distributions at temperature 0.5."""
    rows = []
    for f in image:
        p = ((unit(text) @ unit(f)) / 0.5).softmax(0)
        per_key = [(p * (p / ((unit(text) @ k) / 0.5).softmax(0)).log()).sum() for k in keys]
        rows.append(torch.stack(per_key))
    return torch.stack(rows)


def cache_by_hand(affinity: Tensor, values: Tensor, beta: float) -> Tensor:
    return (-(beta - beta * affinity)).exp() @ values


def test_tip_x_adds_the_scaled_divergences_of_class_distributions(exact):
    support = few(images=5, held=12)
    support.text = template(exact)[:, None]
    model = fitted_on("tip_x", exact, support, shots=2)  # room for six, five are there
    head = model.head
    assert isinstance(head, Compared)
    model.method.finish(head, support)
    val, labels = support.held
    keys, text = keys_of(support), support.text[:, 0]
    values = torch.nn.functional.one_hot(support.labels, 3).double()
    seen, near = divergence_by_hand(val, text, keys), unit(val) @ keys.T

    def psi(divergence: Tensor) -> Tensor:
        share = (divergence - seen.min()) / (seen.max() - seen.min())
        return share * (near.max() - near.min()) + near.min()

    frozen, best = 20.0 * cosines(val, text), (-1, 0.0, 0.0, 0.0)
    compared = -psi(seen) @ values
    for a in range(20):
        for b in range(200):
            alpha, beta = 0.1 + a * (50 - 0.1) / 20, 1 + b * (50 - 1) / 200
            with_cache = frozen + alpha * cache_by_hand(near, values, beta)
            gammas = 0.1 + torch.arange(50).double() * (30 - 0.1) / 50
            right = ((with_cache + gammas[:, None, None] * compared).argmax(2) == labels).sum(1)
            if int(right.max()) > best[0]:
                best = int(right.max()), alpha, beta, float(gammas[int(right.argmax())])
    got = [float(x) for x in (head.alpha, head.beta, head.gamma)]
    assert got == pytest.approx(best[1:])
    image, scale = exact.image(images()), exact.logit_scale.exp()
    here = template(exact)
    expected = (
        scale * cosines(image, here)
        + best[1] * cache_by_hand(unit(image) @ keys.T, values, best[2])
        - best[3] * psi(divergence_by_hand(image, here, keys)) @ values
    )
    close(logits(model, FIT, images()), expected, **CLOSE)


def channels_by_hand(text: Tensor, keys: Tensor | None, labels: Tensor, share: float, count: int):
    """The channels with the largest criterion, by all pairs of different classes."""
    of_class = [[unit(text[c])] for c in range(3)]
    for key, label in zip(keys if keys is not None else [], labels.tolist(), strict=False):
        of_class[label].append(key)
    pairs = [
        x * y
        for i in range(3)
        for j in range(3)
        if i != j
        for x in of_class[i]
        for y in of_class[j]
    ]
    criterion = -share * sum(pairs) / len(pairs) + (1 - share) * unit(text).var(0)
    return criterion.argsort(descending=True)[:count]


def test_ape_caches_the_channels_that_tell_classes_apart(exact):
    support = few(images=5, held=12)
    model = fitted_on("ape", exact, support, shots=2, channels=512, most_gamma=1.5)
    head = model.head
    assert isinstance(head, Refined)
    keys, text = keys_of(support), support.text[:, 0]
    values = torch.nn.functional.one_hot(support.labels, 3).double()
    chosen = channels_by_hand(text, keys, support.labels, 0.7, 18)  # half of 36
    assert head.channels.tolist() == chosen.tolist()

    def part(x: Tensor) -> Tensor:
        return unit(unit(x)[:, chosen])

    said = (part(keys) @ part(text).T).softmax(1)
    divergence = torch.stack(
        [
            sum(values[n, c] * math.log2((values[n, c] + 1e-6) / (said[n, c] + 1e-6))
                for c in range(3))
            for n in range(5)
        ]
    )  # fmt: skip
    model.method.finish(head, support)
    val, labels = support.held
    frozen, best = 20.0 * cosines(val, text), (-1, 0.0, 0.0, 0.0)
    for b in range(200):
        beta = 0.1 + b * (7 - 0.1) / 200
        affinity = (-(beta - beta * part(val) @ part(keys).T)).exp()
        for a in range(20):
            alpha = 0.1 + a * (7 - 0.1) / 20
            gammas = torch.arange(20).double() * 1.5 / 20
            soft = values * (gammas[:, None] * divergence).exp()[:, :, None]  # [20, N, C]
            right = ((frozen + alpha * (affinity @ soft)).argmax(2) == labels).sum(1)
            if int(right.max()) > best[0]:
                best = int(right.max()), alpha, beta, float(gammas[int(right.argmax())])
    assert [float(x) for x in (head.alpha, head.beta, head.gamma)] == pytest.approx(best[1:])
    head.gamma.fill_(0.3)
    image, scale = exact.image(images()), exact.logit_scale.exp()
    soft = values * (0.3 * divergence).exp()[:, None]
    cached = cache_by_hand(part(image) @ part(keys).T, soft, best[2])
    expected = scale * cosines(image, template(exact)) + best[1] * cached
    close(logits(model, FIT, images()), expected, **CLOSE)


def test_ape_t_trains_one_residual_of_texts_and_keys_and_a_weight_for_each_key(exact):
    support = few(images=6)
    model = fitted_on("ape_t", exact, support, shots=2, channels_trained=256, alpha=2.0)
    head = model.head
    assert isinstance(head, Residual)
    keys = keys_of(support)
    chosen = channels_by_hand(support.text[:, 0], None, support.labels, 0.2, 9)
    assert head.channels.tolist() == chosen.tolist()
    shake(model)
    residual = torch.zeros(3, 36).double()
    residual[:, chosen] = head.residual
    text = unit(template(exact)) + residual
    moved = torch.stack(
        [key + residual[label] for key, label in zip(keys, support.labels.tolist(), strict=True)]
    )
    values = torch.nn.functional.one_hot(support.labels, 3).double() * head.weights[:, None]
    f = unit(exact.image(images()))
    expected = exact.logit_scale.exp() * f @ text.T + 2.0 * cache_by_hand(f @ moved.T, values, 1.0)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS))


def test_ape_takes_the_published_share_of_the_channels(exact):
    assert len(APE(channels=500).head(exact, FIT).channels) == 18  # of 36
    assert len(APE(trained=True, channels_trained=900).head(exact, FIT).channels) == 32


def convolved(text: Tensor, nodes: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """A graph convolution over one text and its nodes; the text's row."""
    x = torch.stack([text, *nodes])
    adjacency = cosines(x, x).clamp_min(0) + torch.eye(len(x)).double()
    degree = torch.diag(adjacency.sum(1) ** -0.5)
    return (degree @ adjacency @ degree @ x @ weight + bias)[0].tanh()


def test_graph_adapter_moves_texts_along_graphs_of_texts_and_of_mean_images(exact):
    support = few(images=9)
    model = fitted_on("graph_adapter", exact, support)
    head = model.head
    close(head.of_texts.bias.detach(), torch.zeros(3, 36).double(), **CLOSE)
    shake(model)
    texts, pool = support.text[:, 0], torch.stack(support.views)
    means = [pool[:, support.labels == c].flatten(0, 1).mean(0) for c in range(3)]
    rows = []
    for c in range(3):
        mixed = 0
        for group in range(3):  # of four, three have a class
            of_texts = convolved(
                texts[c], [texts[group]], head.of_texts.weight, head.of_texts.bias[c]
            )
            of_images = convolved(
                texts[c], [means[group]], head.of_images.weight, head.of_images.bias[c]
            )
            mixed = mixed + (0.7 * of_texts + 0.3 * of_images) / 3
        rows.append(mixed)
    adapted = 0.7 * template(exact) + 0.3 * torch.stack(rows)
    expected = exact.logit_scale.exp() * cosines(exact.image(images()), adapted)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS))


def test_graph_adapters_nodes_are_of_every_fourth_class():
    from harness.methods.graph_adapter import Graphs, gathered

    head, support = Graphs(6, 36, 4, 0.7, 0.7).double(), few(images=12, classes=6)
    build("graph_adapter").prepare(head, support)
    text = support.text[:, 0]
    for group, members in enumerate(([0, 4], [1, 5], [2], [3])):
        close(head.gathered[0, group], gathered(text, text[members]), **CLOSE)


def test_graph_adapters_four_groups_take_every_fourth_class():
    from harness.methods.graph_adapter import gathered

    text, nodes = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    eye, zero = torch.eye(5).double(), torch.zeros(5).double()
    for c in range(6):
        got = gathered(text, nodes[1::4])[c]  # classes 1 and 5
        close(got.tanh(), convolved(text[c], [nodes[1], nodes[5]], eye, zero), **CLOSE)
