"""Equations of what is changed inside the towers against literal transcriptions (float64)."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.step import TrainingStep, gradients
from harness.fitting.trainer import WeightedMean
from harness.method import Method
from harness.methods.argue import ANCHORS
from harness.methods.promptsrc import TEACHER
from harness.randomness import generator
from harness.towers.edit import Rows, SiteContext
from tests.methods.test_contract import FIT, OTHER, batch, build, grafted, images, logits, shake
from tests.methods.test_equations import CLOSE
from tests.methods.test_equations_weights import (
    LABELS,
    agrees,
    cosines,
    cross_entropy,
    template,
    tower_by_hand,
    unit,
)

close = torch.testing.assert_close
PHOTO = "a photo of a {}."


def svd_logits(model: Model) -> Tensor:
    """With every matrix multiplied anew of its singular values."""

    def features(tower, inputs: Tensor) -> Tensor:
        changed = copy.deepcopy(tower)
        for block in changed.blocks:
            first, _, second = block.mlp
            packed = []
            for part, op in (("q", 0), ("k", 1), ("v", 2)):
                packed.append(rebuilt(block.attn.weight.chunk(3)[op], block, part))
            del block.attn.weight
            block.attn.weight = torch.cat(packed)
            for part, op in (("o", block.attn.o), ("fc1", first), ("fc2", second)):
                weight = rebuilt(op.weight, block, part)
                del op.weight
                op.weight = weight
        return changed(inputs)

    def rebuilt(weight: Tensor, block, part: str) -> Tensor:
        left, _, right = np.linalg.svd(weight.numpy(), full_matrices=False)
        values = model.edits[f"{block.site}.{part}"].values
        return torch.from_numpy(left) @ torch.diag(values) @ torch.from_numpy(right)

    clip = model.clip
    ids = clip.tokenize([PHOTO.format(name) for name in FIT.names])
    return clip.logit_scale.exp() * cosines(
        features(clip.image, images()), features(clip.text, ids)
    )


def test_clip_svd_trains_the_singular_values_of_six_matrices_a_block(exact):
    model = grafted("clip_svd", exact)
    text = template(exact, text=PHOTO)
    frozen = exact.logit_scale.exp() * cosines(exact.image(images()), text)
    close(logits(model, FIT, images()), frozen, **CLOSE)
    assert {site.split(".")[-1] for site in model.edits} == {"q", "k", "v", "o", "fc1", "fc2"}
    shake(model)
    expected = svd_logits(model)
    close(logits(model, FIT, images()), expected.detach(), atol=1e-9, rtol=1e-9)
    agrees(model, cross_entropy(expected, LABELS))


def test_clip_svd_keeps_the_largest_singular_values_of_a_share(exact):
    edits = Model(exact, build("clip_svd", rank=0.25), FIT, seed=1).edits
    op = exact.text.blocks[2].attn.k
    values = np.linalg.svd(op.weight.numpy())[1]
    close(edits["text.blocks.2.k"].values.detach(), torch.from_numpy(values[:10]), **CLOSE)


@pytest.mark.parametrize(
    ("task", "dataset", "step", "rate"),
    [
        ("base2new", "dtd", 30, 1e-6 + (4e-4 - 1e-6) / 2 * (1 + math.cos(math.pi * 30 / 20))),
        ("base2new", "dtd", 40, 4e-4),
        ("domain_generalization", "imagenet", 7, 1e-6),
        ("few_shot", "dtd", 30, 1e-6 + (5e-4 - 1e-6) / 2 * (1 + math.cos(math.pi * 30 / 80))),
    ],
)
def test_clip_svds_cosine_takes_as_many_steps_as_epochs_and_in_few_shot_all(
    task, dataset, step, rate
):
    method = build("clip_svd", **build("clip_svd").recipe(task, dataset, 16))
    assert method.learning_rate(step, 4, 80) == pytest.approx(rate, rel=1e-12)


def dora_logits(model: Model, training: bool) -> Tensor:
    def features(tower, inputs: Tensor) -> Tensor:
        def project(site, op, x):
            edit = model.edits[site]
            update = sum(torch.outer(edit.b[:, i], edit.a[i]) for i in range(2)) / math.sqrt(2)
            changed = op.weight + update
            norms = torch.stack([row.detach().square().sum().sqrt() for row in changed])
            weight = (edit.magnitude / norms)[:, None] * changed
            if not training:
                return x @ weight.T + op.bias
            rows = Rows(torch.arange(len(x)), len(x), True, (1, 0))
            kept = SiteContext(site, op, rows, tower.length).dropout(torch.ones_like(x), 0.25)
            return x @ op.weight.T + op.bias + (x * kept) @ (weight - op.weight).T

        return tower_by_hand(tower, inputs, project, lambda site, x: 0)

    clip = model.clip
    ids = clip.tokenize([PHOTO.format(name) for name in FIT.names])
    scale = clip.logit_scale.exp()
    return scale * cosines(features(clip.image, images()), features(clip.text, ids))


def test_dora_scales_the_rows_of_the_changed_matrix_to_learned_magnitudes(exact):
    model = grafted("dora", exact)
    frozen = exact.logit_scale.exp() * cosines(exact.image(images()), template(exact, text=PHOTO))
    close(logits(model, FIT, images()), frozen, **CLOSE)
    shake(model)
    close(logits(model, FIT, images()), dora_logits(model, False).detach(), **CLOSE)
    agrees(model, cross_entropy(dora_logits(model, True), LABELS))


def test_prilora_has_ranks_that_grow_from_4_to_12(exact):
    edits = grafted("prilora", exact).edits
    ranks = [len(edits[f"image.blocks.{i}.v"].a) for i in range(12)]
    assert ranks == [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12]
    assert sum(ranks) == 8 * 12
    assert edits["text.blocks.11.q"].scale == 1 / math.sqrt(12)


def test_image_lora_changes_the_values_of_the_image_tower_alone(exact):
    assert {*grafted("image_lora", exact).edits} == {f"image.blocks.{i}.v" for i in range(12)}


def test_lora_plus_gives_the_second_factor_sixteen_times_the_rate(exact):
    model = grafted("lora_plus", exact)
    optimiser = model.optimiser()
    step = TrainingStep(batch(model), optimiser, 2e-4)
    rates = {
        name: group["lr"]
        for group in optimiser.param_groups
        for name, p in step.parameters.items()
        if any(p is each for each in group["params"])
    }
    assert {name.split(".")[-1]: rate for name, rate in rates.items()} == {"a": 2e-4, "b": 32e-4}
    plain = grafted("lora", exact)
    assert [group["lr"] for group in plain.optimiser().param_groups] == [2e-4]


class Unfrozen(Method):
    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)

    def unfrozen(self, clip):
        return self.names


def with_own(model: Model, tower) -> torch.nn.Module:
    """A copy of a tower with a model's own parameters put into it."""
    changed = copy.deepcopy(tower)
    for name, (here, _) in tower.own_parameters().items():
        own = model.unfrozen.get(f"{tower.name}.{name}")
        if own is not None:
            module, _, last = here.rpartition(".")
            holder = changed.get_submodule(module)
            delattr(holder, last)
            setattr(holder, last, own)
    return changed


@pytest.mark.parametrize("name", ["full", "two_stage", "ln_tuning", "bitfit"])
def test_unfrozen_parameters_stand_in_for_the_backbones_and_get_its_gradients(name, exact):
    before = {n: p.clone() for n, p in exact.state_dict().items()}
    model = grafted(name, exact)
    shake(model)
    ids = exact.tokenize([PHOTO.format(each) for each in FIT.names])
    image, text = with_own(model, exact.image)(images()), with_own(model, exact.text)(ids)
    expected = exact.logit_scale.exp() * cosines(image, text)
    if name != "two_stage":
        close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    loss = cross_entropy(expected, LABELS)
    named = {n: p for n, p in model.trained.named_parameters() if n != "head.weight"}
    wanted = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    close(gradients(batch(model)), loss.detach(), **CLOSE)
    for (parameter_name, parameter), gradient in zip(named.items(), wanted, strict=True):
        assert (parameter.grad is None) == (gradient is None), parameter_name
        if gradient is not None:
            close(parameter.grad, gradient, **CLOSE)
    assert all(torch.equal(p, before[n]) for n, p in exact.state_dict().items())


def test_a_towers_cut_is_the_first_of_its_unfrozen_parameters(exact):
    def cut(*names: str) -> tuple[int | None, int | None]:
        model = Model(exact, Unfrozen(*names), FIT, seed=1)
        return model.cut(exact.image), model.cut(exact.text)

    assert cut() == (None, None)
    assert cut("image.head.proj", "text.blocks.3.ln1.weight") == (12, 3)
    assert cut("image.stem.ln_pre.bias", "text.head.ln_final.bias") == (-1, 12)
    with pytest.raises(HarnessError, match=r"Did you mean 'image\.stem\.ln_pre\.bias'"):
        cut("image.stem.ln_pre.bia")


def test_every_parameter_of_the_backbone_but_the_scale_has_one_name(exact):
    named = exact.parameters_by_name()
    everything = {id(p) for p in exact.parameters()} - {id(exact.logit_scale)}
    assert {id(p) for p in named.values()} == everything
    assert len(named) == len(everything)


def test_bitfit_leaves_the_biases_of_queries_keys_and_values_alone(exact):
    names = list(grafted("bitfit", exact).unfrozen)
    assert all(name.endswith(".bias") for name in names)
    assert "image.blocks.3.attn.o.bias" in names
    assert not any(name.endswith("attn.bias") for name in names)


def test_the_second_stage_starts_at_the_tuned_texts_and_trains_its_classifier_alone(exact):
    model = grafted("two_stage", exact)
    optimiser = model.optimiser()
    total, rates = 10, []
    for number in range(total):
        rate = model.method.learning_rate(number, 4, total)
        rates.append(rate)
        step = TrainingStep(batch(model, number), optimiser, rate, number, total)
        before = {n: p.detach().clone() for n, p in step.parameters.items()}
        tuned = unit(with_own(model, exact.text)(exact.tokenize(
            [PHOTO.format(each) for each in FIT.names])).detach())  # fmt: skip
        image = with_own(model, exact.image)(images()).detach()
        loss = model.method.step(step)
        moved = {n for n, p in step.parameters.items() if not torch.equal(p, before[n])}
        if number < 6:
            assert "head.weight" not in moved
            assert len(moved) == len(before) - 1
            continue
        assert moved == {"head.weight"}
        weight = tuned if number == 6 else before["head.weight"]
        close(
            loss, cross_entropy(exact.logit_scale.exp() * cosines(image, weight), LABELS), **CLOSE
        )
    half = [1e-6 + (2e-4 - 1e-6) / 2 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    rest = [1e-6 + (2e-4 - 1e-6) / 2 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert rates == pytest.approx(half + rest, rel=1e-12)
    (state,) = [s for p, s in optimiser.state.items() if p is step.parameters["head.weight"]]
    assert int(state["step"]) == 4  # its optimiser began with the stage
    scale, weight = exact.logit_scale.exp(), model.head.weight.detach()
    close(logits(model, FIT, images()), scale * cosines(image, weight), **CLOSE)
    others = with_own(model, exact.text)(exact.tokenize([PHOTO.format(n) for n in OTHER.names]))
    close(logits(model, OTHER, images()), (scale * cosines(image, others)).detach(), **CLOSE)


class Held:
    """Random images to choose a mixture by, as the tuned towers see them."""

    def __init__(self, model: Model) -> None:
        self.model, self.scale = model, model.clip.logit_scale.exp()
        frozen = model.clip.parameters_by_name()
        self.unfrozen = {name: (frozen[name], own) for name, own in model.unfrozen.items()}
        draws = torch.Generator().manual_seed(3)
        self.pixels = torch.randn(40, 3, 48, 48, generator=draws).double()

    @property
    def text(self) -> Tensor:
        tower = with_own(self.model, self.model.clip.text)
        return tower(self.model.clip.tokenize([PHOTO.format(name) for name in FIT.names]))[:, None]

    def val(self) -> tuple[Tensor, Tensor]:
        return with_own(self.model, self.model.clip.image)(self.pixels), torch.arange(40) % 3


def test_wise_ft_mixes_the_weights_with_the_share_that_is_best_on_val(exact):
    model = grafted("wise_ft", exact)
    shake(model)
    held = Held(model)
    tuned = {name: own.detach().clone() for name, own in model.unfrozen.items()}

    def mixed(tenth: int) -> dict[str, Tensor]:
        share = tenth / 10
        return {n: (1 - share) * f + share * tuned[n] for n, (f, _) in held.unfrozen.items()}

    correct = []
    for tenth in range(11):
        for name, value in mixed(tenth).items():
            model.unfrozen[name].data.copy_(value)
        image, truth = held.val()
        scores = cosines(image, held.text[:, 0])
        correct.append(int((scores.argmax(1) == truth).sum()))
    assert len({*correct}) > 1
    for name, value in tuned.items():
        model.unfrozen[name].data.copy_(value)
    model.method.finish(model.head, held)
    for name, value in mixed(correct.index(max(correct))).items():
        close(model.unfrozen[name].detach(), value.detach(), **CLOSE)


def test_the_weighted_mean_of_epochs_takes_the_place_of_the_parameters():
    parameter, mean = torch.nn.Parameter(torch.zeros(2)), WeightedMean()
    for value, weight in ((1.0, 0.5), (2.0, 1.5), (4.0, 2.0)):
        parameter.data.fill_(value)
        mean.add([parameter], weight)
    mean.load([parameter])
    close(parameter.data, torch.full((2,), (0.5 * 1 + 1.5 * 2 + 2 * 4) / 4))
    untouched = WeightedMean()
    untouched.add([parameter], None)
    untouched.load([parameter])
    assert parameter.data.tolist() == [2.875, 2.875]


def test_promptsrcs_epochs_weigh_as_a_gaussian_and_as_much_in_a_shorter_fit():
    method = build("promptsrc")
    weights = [method.epoch_weight(epoch, 20) for epoch in range(20)]
    shares = [weight / sum(weights) for weight in weights]
    assert [round(share, 3) for share in shares[12:17]] == [0.054, 0.242, 0.399, 0.242, 0.054]
    short = [method.epoch_weight(epoch, 4) for epoch in range(4)]
    assert max(short) == short[2]  # three quarters of the fit, as before


def test_promptsrc_is_cross_entropy_and_three_ties_to_the_frozen_model(exact):
    model = grafted("promptsrc", exact)
    shake(model)
    seen = {}

    def kept(output, labels):
        seen["output"] = output
        return Method.loss(model.method, output, labels)

    gradients(batch(model), kept)
    output = seen["output"]
    f, t = unit(output.image.detach()), unit(output.text[:, 0].detach())
    f0 = unit(exact.image(images()))
    assert len(TEACHER) == len({*TEACHER}) == 60
    features = [template(exact, text=text) for text in TEACHER]
    t0 = unit(sum(features) / 60)
    scale = exact.logit_scale.exp()
    p, p0 = (scale * f @ t.T).softmax(1), (scale * f0 @ t0.T).softmax(1)
    expected = (
        cross_entropy(scale * f @ t.T, LABELS)
        + 25 * (t - t0).abs().mean()
        + 10 * (f - f0).abs().mean()
        + (p0 * (p0 / p).log()).sum() / (8 * 3)
    )
    close(gradients(batch(model)), expected, **CLOSE)
    assert {s for s in model.edits if s.startswith("text")} == {
        "text.tokens", *(f"text.blocks.{i}" for i in range(8))
    }  # fmt: skip


def test_atprompt_learns_vectors_around_its_attributes_words(exact):
    model = grafted("atprompt", exact, attributes="color, shape")
    shake(model)
    ids = exact.tokenize([f"X X color X X shape X X {name}." for name in FIT.names])
    embedded = exact.text.text.token_embedding(ids)
    color, shape = (len(exact.tokenizer.encode(word)) for word in ("color", "shape"))
    vectors = model.edits["text.tokens"].vectors
    places = [1, 2, 3 + color, 4 + color, 5 + color + shape, 6 + color + shape]
    for row, place in enumerate(places):
        embedded = embedded.clone()
        embedded[:, place] = vectors[row]

    def own(site, op, x, y, *_):
        return embedded if site == "text.tokens" else y

    text = exact.text(ids, own)
    expected = exact.logit_scale.exp() * cosines(exact.image(images()), text)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS))


def test_atprompt_takes_the_published_attributes_of_a_dataset():
    found = build("atprompt").recipe("base2new", "dtd", 16)
    assert found["attributes"] == "pattern, color, design"
    with pytest.raises(HarnessError, match="commas between them"):
        build("atprompt", attributes="color, ").check()


@pytest.mark.parametrize(("name", "number"), [("argue", 0), ("argue_n", 0), ("argue", 2)])
def test_argue_is_the_mean_over_attributes_held_to_anchors_and_blind_to_backgrounds(
    name, number, exact
):
    model = grafted(name, exact)
    shake(model)
    head, clip, scale = model.head, exact, exact.logit_scale.exp()
    vectors = model.edits["text.tokens"].vectors

    def texts(rows: list[str]) -> Tensor:
        ids = clip.tokenize([f"X X X X {row}." for row in rows])
        start = clip.text.text.token_embedding(ids)
        embedded = torch.cat([start[:, :1], vectors.expand(len(ids), -1, -1), start[:, 5:]], 1)
        features = clip.text(ids, lambda s, op, x, y, *_: embedded if s == "text.tokens" else y)
        return unit(features + head.correction)

    image = with_own(model, clip.image)(images())
    attributes = [texts([row[a] for row in FIT.descriptions]) for a in range(3)]
    scores = scale * sum(unit(image) @ each.T for each in attributes) / 3
    close(logits(model, FIT, images()), scores.detach(), **CLOSE)
    anchors = [unit(template(clip, text=text)) for text in ANCHORS]
    draw = generator("anchors", 1, number)
    noisy = torch.rand((), generator=draw) < 0.5
    assert noisy == (number == 0)  # with noise, and without
    noise = 0.05 * torch.randn(3, len(ANCHORS), 36, generator=draw).double() * noisy
    plain = texts(list(FIT.names))
    terms = [
        -(scale * plain @ (anchor[c] + noise[c, k])).log_softmax(0)[c]
        for k, anchor in enumerate(anchors)
        for c in range(3)
    ]
    loss = cross_entropy(scores, LABELS) + 5 * sum(terms) / len(terms)
    if name == "argue_n":
        p = (scale * unit(image) @ texts([f"a background of {n}" for n in FIT.names]).T).softmax(1)
        loss = loss + 3 * (p * p.log()).mean()
    agrees(model, loss, step=number)


def test_full_fine_tuning_clips_the_gradient_of_all_parameters_to_norm_one(exact, monkeypatch):
    model, seen = grafted("full", exact), {}
    step = TrainingStep(batch(model), model.optimiser(), 0.1)
    _, found = step.gradients(model.method.loss)
    norm = torch.cat([g.flatten() for g in found.values()]).norm()
    assert norm > 1
    monkeypatch.setattr(TrainingStep, "update", lambda _, given: seen.update(given))
    model.method.step(step)
    for name, gradient in found.items():
        close(seen[name], gradient / (norm + 1e-6), **CLOSE)


def test_argue_clips_its_gradient_and_rates_the_layer_norms_at_a_tenth(exact):
    model = grafted("argue", exact)
    step = TrainingStep(batch(model), model.optimiser(), 0.032)
    before = {name: p.detach().clone() for name, p in step.parameters.items()}
    _, found = step.gradients(model.method.loss)
    norm = torch.cat([g.flatten() for g in found.values()]).norm()
    assert norm > 1
    model.method.step(step)
    for name, p in step.parameters.items():
        rate = 0.0032 if name.startswith("unfrozen.") else 0.032
        change = found[name] / (norm + 1e-6) + 5e-4 * before[name]
        close(p.detach(), before[name] - rate * change, **CLOSE)


def test_argue_refuses_classes_with_fewer_attributes(exact):
    few = type(FIT)("toy", ("red", "blue"), "{}", descriptions=(("a", "b", "c"), ("d",)))
    with pytest.raises(HarnessError, match="needs 3 attributes of each class, and 'blue' has 1"):
        build("argue").prompts(few)
