"""Equations of prompts at several depths against literal transcriptions (float64, 1e-10)."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.dataset import Classes
from harness.fitting.model import Model
from harness.randomness import generator
from tests.methods.test_contract import FIT, build, images, logits
from tests.methods.test_equations_prompts import (
    NAMES,
    PETS,
    TOY,
    close,
    cosines,
    cross_entropy,
    features,
    fitted,
    image_feature,
    is_cross_entropy_of,
    learns,
    seen,
    take,
    text_feature,
    words,
)


@pytest.fixture(scope="module")
def faces(exact) -> list[Tensor]:
    """The images' frozen features."""
    return [image_feature(exact, pixels) for pixels in images()]


def vectors(model: Model, tower: str, depth: int) -> list[Tensor]:
    """What is learned in front of each of the first blocks."""
    sites = [f"{tower}.tokens", *(f"{tower}.blocks.{i}" for i in range(depth - 1))]
    assert [site for site in model.edits if site.startswith(tower)] == sites
    return [model.edits[site].vectors for site in sites]


@pytest.mark.parametrize("name", ["maple", "maple-lite"])
def test_maple_overwrites_two_words_and_couples_image_tokens_to_them_at_nine_depths(exact, name):
    model = fitted(name, exact)
    contexts, tokens = vectors(model, "text", 9), []
    for i, context in enumerate(contexts):
        coupling = model.edits["image.tokens" if i == 0 else f"image.blocks.{i - 1}"].coupling
        if name == "maple-lite":
            down, up = coupling
            coupled = [up.weight @ (down.weight @ p) + up.bias for p in context]
        else:
            coupled = [coupling.weight @ p + coupling.bias for p in context]
        tokens.append(torch.stack(coupled))
    seen_images = [image_feature(exact, pixels, tokens) for pixels in images()]
    before = {i: context for i, context in enumerate(contexts) if i}
    names = features(exact, TOY.names, "of a {}.", contexts[0], before)
    is_cross_entropy_of(model, cosines(exact, seen_images, names))


def test_maple_starts_as_two_words_with_equal_later_couplings(exact):
    edits = Model(exact, build("maple"), TOY, seed=1).edits
    start = exact.text.text.token_embedding(words(exact, "a photo"))
    assert torch.equal(edits["text.tokens"].vectors, start)
    later = [edits[f"image.blocks.{i}"].coupling.weight for i in range(8)]
    assert all(torch.equal(each, later[0]) for each in later)
    assert len({id(each) for each in later}) == 8
    assert not torch.equal(edits["image.tokens"].coupling.weight, later[0])


@pytest.mark.parametrize("depth", [12, 3])
def test_vpt_gives_each_image_block_new_tokens_and_leaves_texts_alone(exact, depth):
    model = fitted("vpt", exact, depth=depth)
    tokens = vectors(model, "image", depth)
    seen_images = [image_feature(exact, pixels, tokens) for pixels in images()]
    names = features(exact, TOY.names, "a photo of a {}.")
    is_cross_entropy_of(model, cosines(exact, seen_images, names))


@torch.no_grad()
def test_promptsrc_has_independent_tokens_in_both_towers_at_nine_depths(exact):
    model = fitted("promptsrc", exact)
    contexts, tokens = vectors(model, "text", 9), vectors(model, "image", 9)
    assert {len(each) for each in (*contexts, *tokens)} == {4}
    seen_images = [image_feature(exact, pixels, tokens) for pixels in images()]
    before = {i: context for i, context in enumerate(contexts) if i}
    names = features(exact, TOY.names, "{}.", contexts[0], before)
    close(logits(model, TOY, images()), cosines(exact, seen_images, names))


def text_scores(clip, faces: Sequence[Tensor], theta: Sequence[Tensor], names: Sequence[str]):
    """l_t: frozen images against prompted texts."""
    before = {i: p for i, p in enumerate(theta) if i}
    return cosines(clip, faces, features(clip, names, "{}.", theta[0], before))


def metaprompt(model: Model, faces: Sequence[Tensor], prompts, labels: Sequence[int]):
    """l and L with twelve text prompts and twelve image prompts."""
    names, theta, phi = model.classes.names, prompts[:12], prompts[12:]
    prompted = [image_feature(model.clip, pixels, phi) for pixels in images()]
    l_i = cosines(model.clip, prompted, features(model.clip, names, "{} disc"))  # no period
    l_t = text_scores(model.clip, faces, theta, names)
    both = (l_i + l_t) / 2
    return both, sum(cross_entropy(each, labels) for each in (both, l_i, l_t))


def test_metaprompt_averages_two_classifiers_and_trains_on_all_three(exact, faces):
    model = fitted("metaprompt", exact)
    prompts, data = [*vectors(model, "text", 12), *vectors(model, "image", 12)], seen(model)
    scores, loss = metaprompt(model, faces, prompts, data.labels)
    close(logits(model, TOY, images()), scores.detach())
    learns(model, data, loss)


STEPS = {  # of the method's inner and image_momentum
    "the code's under PyTorch 1.10": {},
    "the code's under PyTorch 2": {"image_momentum": False},
    "the equations'": {"inner": "equations"},
}


@pytest.mark.parametrize("fields", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("case", ["halves of 3 and 2", "a half of 1", "a half without images"])
def test_metaprompt_steps_on_all_prompts_and_then_across_halves(exact, faces, case, fields):
    classes = Classes("toy", NAMES[:3] if case == "a half of 1" else NAMES, "{} disc.")
    model, rate, moved = fitted("metaprompt", exact, classes, **fields), 0.05, []
    learned = [*vectors(model, "text", 12), *vectors(model, "image", 12)]
    buffers, drifting = [0.0] * 24, fields.get("image_momentum", True)
    optimiser = model.method.optimiser(model.parameters())

    def momentum_step(values: list[Tensor], slopes: Sequence[Tensor], first: int) -> list[Tensor]:
        """The optimiser's step of the values from number `first` on."""
        stepped = []
        for i, (p, g) in enumerate(zip(values, slopes, strict=True), first):
            buffers[i] = 0.9 * buffers[i] + g + 5e-4 * p.detach()
            stepped.append(p.detach() - rate * buffers[i])
        return stepped

    for number in range(2 if case == "halves of 3 and 2" else 1):  # the second with momentum
        order = torch.randperm(len(classes.names), generator=generator("halves", 1, number))
        halves = order[: (len(order) + 1) // 2].tolist(), order[(len(order) + 1) // 2 :].tolist()
        data = seen(model, number)
        if case == "a half without images":
            data = replace(data, labels=order[torch.arange(8) % 3])
        labels = data.labels.tolist()

        values = [p.detach().clone().requires_grad_() for p in learned]
        _, loss = metaprompt(model, faces, values, labels)
        values = momentum_step(values, torch.autograd.grad(loss, values), 0)

        def slope(theta, half, labels=labels) -> Sequence[Tensor]:
            theta = [p.detach().clone().requires_grad_() for p in theta]
            chosen = [face for face, y in zip(faces, labels, strict=True) if y in half]
            scores = text_scores(exact, chosen, theta, [classes.names[c] for c in half])
            own = [half.index(y) for y in labels if y in half]
            return torch.autograd.grad(cross_entropy(scores, own), theta)

        theta, phi, total = values[:12], values[12:], [torch.zeros_like(p) for p in values[:12]]
        usual = all(any(y in half for y in labels) for half in halves)
        for one, other in (halves[::-1], halves) if usual else ():
            if len(other) == 1:
                continue
            slopes = slope(theta, one)
            if "inner" in fields:
                adapted = [p - rate * g for p, g in zip(theta, slopes, strict=True)]
            else:
                adapted = momentum_step(theta, slopes, 0)
                if drifting:
                    phi = momentum_step(phi, [torch.zeros_like(p) for p in phi], 12)
            total = [t + g for t, g in zip(total, slope(adapted, other), strict=True)]
            if "inner" not in fields and other == halves[1]:  # the second restore does nothing
                theta = adapted
        moved.append(max(float(t.abs().max()) for t in total))
        theta = [p - rate * 0.2 * t for p, t in zip(theta, total, strict=True)]

        close(take(model, data, optimiser, rate), loss.detach())
        close([p.detach() for p in learned], [*theta, *phi])
    assert all((each > 1e-3) == (case != "a half without images") for each in moved)


@pytest.mark.parametrize(("underscores", "written"), [(True, "dark_green"), (False, "dark green")])
def test_metaprompts_frozen_texts_keep_the_underscores_of_names(underscores, written):
    method = build("metaprompt", underscores=underscores)
    pets = Classes("oxford_pets", ("dark_green",), PETS.template)
    frozen = method.references(pets)["frozen"]
    assert frozen == [[f"a photo of a {written}, a type of pet"]]
    assert method.prompts(pets) == [["X X dark green."]]
    several = method.references(replace(pets, dataset="imagenet_a"))["frozen"][0]
    assert several[0] == f"itap of a {written}"
    assert several[-1] == f"a photo of a {written}"
    assert len(several) == 8


def test_coprompt_is_maple_with_two_adapters_held_to_one_sentence_of_each_class(exact, faces):
    model = fitted("coprompt", exact, FIT)
    contexts, tokens = vectors(model, "text", 9), []
    for i, context in enumerate(contexts):
        coupling = model.edits["image.tokens" if i == 0 else f"image.blocks.{i - 1}"].coupling
        tokens.append(torch.stack([coupling.weight @ p + coupling.bias for p in context]))
    before = {i: context for i, context in enumerate(contexts) if i}
    seen_images = [image_feature(exact, pixels, tokens) for pixels in images()]
    names = features(exact, FIT.names, "of a {}.", contexts[0], before)

    def adapted(x: Tensor, adapter, ratio: float) -> Tensor:
        inner = (adapter[0].weight @ x).clamp_min(0)
        return ratio * (adapter[2].weight @ inner).clamp_min(0) + (1 - ratio) * x

    seen_images = [adapted(f, model.head.image, 0.1) for f in seen_images]
    names = [adapted(t, model.head.text, 0.2) for t in names]
    draw = generator("sentence", 1, 0)  # seed 1, step 0
    chosen = int(torch.randint(3, (), generator=draw))  # the shortest list has three
    sentences = [text_feature(exact, texts[chosen]) for texts in FIT.descriptions]
    apart = [torch.stack([1 - torch.cosine_similarity(a, b, dim=0) for a, b in pairs]).mean()
             for pairs in (zip(names, sentences, strict=True),
                           zip(seen_images, faces, strict=True))]  # fmt: skip
    is_cross_entropy_of(model, cosines(exact, seen_images, names), sum(apart))
