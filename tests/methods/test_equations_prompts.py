"""The prompt methods' equations against slow, literal transcriptions (float64, 1e-10)."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.dataset import Classes
from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.step import Batch, TrainingStep, gradients
from harness.fitting.texts import texts
from tests.methods.test_contract import batch, build, images, logits, shake

NAMES = ("red", "dark green", "a yellow square", "sun", "blue")  # of 1, 3, 5, 1 and 1 tokens
TOY = Classes("toy", NAMES[:3], "{} disc.")
PETS = Classes("oxford_pets", NAMES[:3], "a photo of a {}, a type of pet.")


def text_feature(clip, *parts: str | Sequence[Tensor], before=None) -> Tensor:
    """g [E] of [SOS], parts (words, or vectors [M, D]), [EOS], padded to every position; before[i]
    is what stands at positions 1 .. M when block i runs."""
    embedding, before = clip.text.text.token_embedding, before or {}
    start, end, padding = embedding(clip.tokenize([""])[0, :3])
    rows = [start]
    for part in parts:
        rows += embedding(words(clip, part)) if isinstance(part, str) else part
    last = len(rows)
    rows += [end, *[padding] * (clip.text.length - last - 1)]
    x = (torch.stack(rows) + clip.text.text.positional_embedding)[None]
    for i in range(len(clip.text.blocks)):
        if i in before:
            x = torch.cat([x[:, :1], before[i][None], x[:, 1 + len(before[i]) :]], dim=1)
        x = clip.text.block(i, x)
    return clip.text.text.ln_final(x[0, last]) @ clip.text.text.text_projection


def words(clip, text: str) -> Tensor:
    """The token ids of words."""
    ids = clip.tokenize([text])[0]
    return ids[1 : int(ids.argmax())]


def features(clip, names: Sequence[str], template: str, context=(), before=None) -> list[Tensor]:
    """t_c of each class: vectors (if any), and a template."""
    filled = [template.replace("{}", name) for name in names]
    return [text_feature(clip, context, text, before=before) for text in filled]


def image_feature(clip, pixels: Tensor, tokens: Sequence[Tensor] = ()) -> Tensor:
    """f [E] of one image; tokens[i] [M, D] stands after the patches when block i runs."""
    visual = clip.image.visual
    patches = visual.conv1(pixels[None])[0].flatten(1).T
    x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
    places = len(x)
    x = visual.ln_pre(torch.cat([x, *tokens[:1]]))[None]
    for i in range(len(clip.image.blocks)):
        if 0 < i < len(tokens):
            x = torch.cat([x[:, :places], tokens[i][None]], dim=1)
        x = clip.image.block(i, x)
    return visual.ln_post(x[0, 0]) @ visual.proj


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def cosines(clip, faces: Sequence[Tensor], names: Sequence[Tensor]) -> Tensor:
    """s cos(f, t), pair by pair [B, C]."""
    scale = clip.logit_scale.exp()
    return torch.stack([torch.stack([scale * (unit(f) @ unit(t)) for t in names]) for f in faces])


def cross_entropy(scores: Tensor, labels: Sequence[int]) -> Tensor:
    losses = [row.exp().sum().log() - row[y] for row, y in zip(scores, labels, strict=True)]
    return sum(losses) / len(losses)


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


def fitted(name: str, clip, classes: Classes = TOY, **fields) -> Model:
    """A method with random weights."""
    model = Model(clip, build(name, **fields), classes, seed=1)
    model.trained.double()
    shake(model)
    return model


def seen(model: Model, step: int = 0) -> Batch:
    """The eight images and the labels 0, 1, .. of the model's own classes."""
    labels = torch.arange(8) % len(model.classes.names)
    prompts = texts(model, model.classes, training=True)
    return replace(batch(model, step), texts=prompts, labels=labels)


def learns(model: Model, data: Batch, loss: Tensor) -> None:
    """The training loss is `loss`, and each parameter has its gradient."""
    model.trained.zero_grad()
    close(gradients(data), loss.detach())
    expected = torch.autograd.grad(loss, model.parameters())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert gradient.abs().max() > 0
        close(parameter.grad, gradient)


def is_cross_entropy_of(model: Model, scores: Tensor, extra: Tensor | float = 0.0) -> None:
    """Evaluation's logits are `scores`, and training's loss is their cross-entropy plus `extra`."""
    close(logits(model, model.classes, images()), scores.detach())
    data = seen(model)
    learns(model, data, cross_entropy(scores, data.labels) + extra)


def take(model: Model, data: Batch, optimiser: torch.optim.Optimizer, rate: float) -> Tensor:
    """One training step; its loss."""
    return model.method.step(TrainingStep(data, optimiser, rate))


@pytest.fixture(scope="module")
def faces(exact) -> list[Tensor]:
    """The images' frozen features."""
    return [image_feature(exact, pixels) for pixels in images()]


def test_coop_with_random_vectors_puts_them_between_start_of_text_and_name(exact, faces):
    model = fitted("coop", exact, random_vectors=16)
    context = model.edits["text.tokens"].vectors
    assert context.shape[0] == 16
    names = features(exact, TOY.names, "{}.", context)
    is_cross_entropy_of(model, cosines(exact, faces, names))


def test_cocoop_shifts_every_context_vector_by_a_network_of_the_normalised_image(exact, faces):
    model = fitted("cocoop", exact)
    edit = model.edits["text.tokens"]
    scores = []
    for face in faces:
        inner = (edit.meta[0].weight @ unit(face) + edit.meta[0].bias).clamp_min(0)
        shift = edit.meta[2].weight @ inner + edit.meta[2].bias
        context = torch.stack([v + shift for v in edit.vectors])
        names = features(exact, TOY.names, "{}.", context)
        scores.append(cosines(exact, [face], names)[0])
    is_cross_entropy_of(model, torch.stack(scores))


def test_cocoop_holds_no_more_prompts_than_a_chunk_and_gives_the_same(exact, monkeypatch):
    monkeypatch.setattr("harness.fitting.texts.PASS", {"cpu": 10**6})  # whole texts
    model, held, results = fitted("cocoop", exact), [], []
    hook = exact.text.blocks[0].register_forward_pre_hook(lambda _, x: held.append(len(x[0])))
    for _ in range(2):
        model.trained.zero_grad()
        results += [[logits(model, TOY, images()), gradients(seen(model))]]
        results[-1] += [p.grad for p in model.parameters()]
        for module in ("texts", "step"):
            monkeypatch.setattr(f"harness.fitting.{module}.CHUNK_TEXTS", 7)
    hook.remove()
    held = [count for count in held if count > 1]  # one text shows whether an edit draws
    assert held[:2] == [24, 24]  # evaluation, training: 8 images, 3 classes
    # those of two images at once, and training once more for the gradient
    assert held[2:] == [6] * 4 * 3
    for whole, parts in zip(*results, strict=True):
        close(parts, whole)


def distance(names: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
    """1 - mean_c cos(t_c, t0_c)."""
    near = [unit(name) @ unit(anchor) for name, anchor in zip(names, anchors, strict=True)]
    return 1 - sum(near) / len(near)


def test_kgcoop_adds_eight_times_the_distance_to_the_datasets_template(exact, faces):
    model = fitted("kgcoop", exact)
    names = features(exact, TOY.names, "{}.", model.edits["text.tokens"].vectors)
    anchors = features(exact, TOY.names, "{} disc.")
    is_cross_entropy_of(model, cosines(exact, faces, names), 8 * distance(names, anchors))


@pytest.mark.parametrize(
    ("opposed", "fields"),
    [(False, {}), (True, {}), (True, {"weight": 0.8}), (True, {"counted": "tokens"})],
)
def test_prograd_drops_what_opposes_zero_shot_clip_and_nothing_else(exact, faces, opposed, fields):
    model, weight = fitted("prograd", exact, PETS, **fields), fields.get("weight", 1.0)
    context = model.edits["text.tokens"].vectors
    rest = "{}." if "counted" in fields else "a {}."  # the ninth token of eight words stays
    scores = cosines(exact, faces, features(exact, PETS.names, rest, context))
    close(logits(model, PETS, images()), scores.detach())
    lead = "a type of pet, a photo of a {}."
    teacher = cosines(exact, faces, features(exact, PETS.names, lead))
    labels = teacher.argmin(1) if opposed else teacher.argmax(1)
    loss = cross_entropy(scores, labels)
    kept = sum(
        row.exp()[c] / row.exp().sum() * cross_entropy(scores[n : n + 1], [c])
        for n, row in enumerate(teacher)
        for c in range(3)
    )
    g_ce, g_kl = (torch.autograd.grad(x, context, retain_graph=True)[0] for x in (loss, kept))
    along = (g_ce * unit(g_kl)).sum()
    assert (along < 0) == opposed
    expected = g_ce - weight * along * unit(g_kl) if opposed else g_ce

    before, optimiser = context.detach().clone(), model.method.optimiser(model.parameters())
    close(take(model, replace(seen(model), labels=labels), optimiser, 0.1), loss.detach())
    close(context.detach(), before - 0.1 * (expected + 5e-4 * before))


@pytest.mark.parametrize(
    ("dataset", "template", "lead"),
    [
        ("oxford_pets", PETS.template, "a type of pet, a photo of a"),
        ("food101", "a photo of {}, a type of food.", "a type of food, a photo of"),
        ("toy", "a photo of a {}.", "a photo of a"),
        ("toy", "{} disc.", ""),
    ],
)
def test_prograd_starts_with_as_many_tokens_at_the_right_as_there_are_words(
    exact, dataset, template, lead
):
    classes = Classes(dataset, NAMES[:3], template)
    tokens = words(exact, lead)
    for counted, count in (("words", len(lead.split())), ("tokens", len(tokens))):
        edits = Model(exact, build("prograd", counted=counted), classes, seed=1).edits
        context = edits["text.tokens"].vectors
        assert context.shape == (16, exact.text.width)
        assert context[: 16 - count].count_nonzero() == 0
        assert torch.equal(context[16 - count :], exact.text.text.token_embedding(tokens[:count]))


def test_prograd_refuses_fewer_vectors_than_words_also_on_another_dataset(exact):
    method = build("prograd", vectors=7)
    with pytest.raises(HarnessError, match=r"vectors is 7.*has 8 words.*vectors=8"):
        Model(exact, method, PETS, seed=1)
    Model(exact, method, TOY, seed=1)
    with pytest.raises(HarnessError, match=r"vectors is 7.*has 8 words.*vectors=8"):
        method.prompts(PETS)


def tcp(model: Model, names: Sequence[str], template: str, rest: str):
    """Learned and frozen features of some classes."""
    edit, context = model.edits["text.blocks.7"], model.edits["text.tokens"].vectors
    learned, anchors = [], features(model.clip, names, template)
    for name, anchor in zip(names, anchors, strict=True):
        inner = edit.down.weight @ unit(anchor) + edit.down.bias
        tokens = edit.up.weight @ (inner / (1 + (-1.702 * inner).exp())) + edit.up.bias
        learned += features(model.clip, [name], rest, context, before={8: tokens.reshape(4, -1)})
    return learned, anchors


@pytest.mark.parametrize("dataset", ["toy", "fgvc_aircraft"])
def test_tcp_puts_a_map_of_the_classs_anchor_before_block_nine(exact, faces, dataset):
    written = {
        "toy": ("{} disc.", "{}."),
        "fgvc_aircraft": ("a photo of an aircraft {}.", "{}, a type of aircraft."),
    }
    model = fitted("tcp", exact, Classes(dataset, TOY.names, TOY.template))
    names, anchors = tcp(model, TOY.names, *written[dataset])
    is_cross_entropy_of(model, cosines(exact, faces, names), 8 * distance(names, anchors))


def test_tcp_makes_other_tokens_for_other_class_names(exact, faces):
    model = fitted("tcp", exact)
    other = Classes("oxford_flowers", NAMES[2:], "a photo of a {}, a type of flower.")
    names, _ = tcp(model, other.names, other.template, "{}, a type of flower.")
    close(logits(model, other, images()), cosines(exact, faces, names).detach())


def test_tcp_steps_with_adam_whose_epsilon_is_a_thousandth(exact):
    model = fitted("tcp", exact)
    gradients(seen(model))
    before = [p.detach().clone() for p in model.parameters()]
    slopes = [p.grad + 5e-4 * p.detach() for p in model.parameters()]
    take(model, seen(model), model.method.optimiser(model.parameters()), 0.1)
    for p, old, g in zip(model.parameters(), before, slopes, strict=True):
        close(p.detach(), old - 0.1 * g / (g.abs() + 1e-3))


def proda_text(model: Model, k: int, name: str) -> Tensor:
    """w_kc: 16 prompts end with the name, 8 have it in the middle, 8 begin with it."""
    context = model.edits["text.tokens"].vectors[k]
    first = 16 if k < 16 else 8 if k < 24 else 0
    return unit(text_feature(model.clip, context[:first], name, context[first:], "."))


@torch.no_grad()
def test_proda_infers_with_the_mean_of_all_normalised_prompts_not_normalised(exact, faces):
    model = fitted("proda", exact)
    mean = [sum(proda_text(model, k, name) for k in range(32)) / 32 for name in TOY.names]
    scale = exact.logit_scale.exp()
    expected = torch.stack([torch.stack([scale * (unit(f) @ m) for m in mean]) for f in faces])
    close(logits(model, TOY, images()), expected)


def test_proda_uses_up_permutations_of_its_prompts_and_takes_all_nameless_ones(exact):
    data, rounds = seen(fitted("proda", exact)), []
    for first in range(0, 24, 8):
        rounds.append([])
        for number in range(first, first + 8):
            drawn = replace(data, key=(1, number)).drawn().texts
            assert drawn.per_class == 4
            named, nameless = drawn.kinds.split([12, 32])
            assert all(torch.equal(row, named[:4]) for row in named.split(4))
            rounds[-1] += named[:4].tolist()
            assert nameless.tolist() == list(range(32))
            assert torch.equal(drawn.ids[12:], data.texts.ids[-32:])
    assert all(sorted(each) == list(range(32)) for each in rounds)
    assert rounds[0] != rounds[1] != rounds[2]


def test_proda_as_printed_draws_four_prompts_anew_in_each_step_named_and_nameless(exact):
    data, kinds = seen(fitted("proda", exact, minibatch="equations")), []
    for number in range(60):
        drawn = replace(data, key=(1, number)).drawn().texts.kinds.reshape(4, 4)  # 3 names, none
        assert all(torch.equal(row, drawn[0]) for row in drawn)
        kinds.append(drawn[0].tolist())
        assert len(set(kinds[-1])) == 4
    assert {k for each in kinds for k in each} == set(range(32))
    assert len({k for each in kinds[:8] for k in each}) < 32


@pytest.mark.parametrize("minibatch", ["released", "equations"])
def test_proda_trains_on_the_bound_under_gaussian_class_features_and_on_orthogonality(
    exact, faces, minibatch
):
    model, scale = fitted("proda", exact, minibatch=minibatch), exact.logit_scale.exp()
    data = seen(model)
    kinds = data.drawn().texts.kinds[:4].tolist()
    places = {"end" if k < 16 else "middle" if k < 24 else "front" for k in kinds}
    assert places == {"end", "middle", "front"}
    w = [[proda_text(model, k, name) for k in kinds] for name in TOY.names]
    mu = [sum(each) / 4 for each in w]

    def covariance(i: int, j: int) -> list[Tensor]:
        products = [(w[i][k] - mu[i]) * (w[j][k] - mu[j]) for k in range(4)]
        return (sum(products) / 5).unbind()

    pairs = {(i, j): covariance(i, j) for i in range(3) for j in range(3)}
    scores = []
    for face, y in zip(faces, data.labels.tolist(), strict=True):
        squares = unit(face).square().tolist()
        for j in range(3):
            terms = zip(squares, pairs[y, y], pairs[j, j], pairs[y, j], strict=True)
            spread = sum(f * (yy + jj - 2 * yj) for f, yy, jj, yj in terms)
            scores.append(scale * (unit(face) @ mu[j]) + scale**2 / 2 * spread)
    contexts, others = model.edits["text.tokens"].vectors, []
    those = range(32) if minibatch == "released" else kinds
    nameless = [unit(text_feature(exact, contexts[k], ".")) for k in those]
    for k, one in enumerate(nameless):
        others += [abs(one @ other) for m, other in enumerate(nameless) if m != k]
    bound = cross_entropy(torch.stack(scores).reshape(8, 3), data.labels)
    learns(model, data, bound + 0.1 * sum(others) / len(others))


def test_proda_refuses_prompts_that_no_permutation_uses_up():
    with pytest.raises(HarnessError, match=r"count = 32 prompts cannot be used up 5 by 5"):
        build("proda", drawn=5).check()
    build("proda", drawn=5, minibatch="equations").check()
