"""Skip Tuning against slow, literal transcriptions (float64, 1e-10)."""

import copy
import math

import pytest
import torch

from harness.errors import HarnessError
from harness.fitting.step import TrainingStep
from harness.images.pixels import epoch_order, steps_per_epoch
from harness.randomness import generator
from tests.methods.test_contract import FIT, batch, build, grafted, images, shake
from tests.methods.test_equations import CLOSE
from tests.methods.test_equations_towers import with_own
from tests.methods.test_equations_weights import close, cosines, cross_entropy, template, unit

LABELS = torch.arange(8) % 3


def test_skip_tuning_trains_the_last_half_of_both_towers(exact):
    names = [*grafted("skip_tuning", exact).unfrozen]
    for tower in ("image", "text"):
        blocks = {int(n.split(".")[2]) for n in names if n.startswith(f"{tower}.blocks.")}
        assert blocks == set(range(6, 12))
    heads = {name for name in names if ".head." in name}
    assert heads == {
        "image.head.ln_post.weight", "image.head.ln_post.bias", "image.head.proj",
        "text.head.ln_final.weight", "text.head.ln_final.bias", "text.head.text_projection",
    }  # fmt: skip
    model = grafted("skip_tuning", exact)
    assert (model.cut(exact.image), model.cut(exact.text)) == (6, 6)


def test_a_step_of_skip_tuning_learns_from_the_classes_it_takes_as_if_there_were_no_other(exact):
    model = grafted("skip_tuning", exact, share=0.3)
    shake(model)
    of_one = [1, 4, 7]  # images of class 1
    given = batch(model)
    given = type(given)(model, given.x[of_one], given.texts, given.labels[of_one], (1, 0))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    image, text = with_own(model, exact.image)(images()[of_one]), with_own(model, exact.text)
    similar = cosines(image, template(exact)).amax(0)
    assert model.head.prototypes.shape == (3, exact.embedding)
    close(model.head.prototypes, unit(template(exact)), **CLOSE)
    second = 0 if similar[0] > similar[2] else 2  # rank 2 has the chance 1, rank 3 the chance 0
    kept = sorted([1, second])
    ids = exact.tokenize([f"{FIT.names[c]} disc." for c in kept])
    scores = exact.logit_scale.exp() * cosines(image, text(ids))
    expected = cross_entropy(scores, torch.full((3,), kept.index(1)))
    wanted = torch.autograd.grad(expected, model.parameters())
    loss = model.method.step(TrainingStep(given, optimiser, 0.0))
    close(loss, expected.detach(), **CLOSE)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        close(parameter.grad, gradient, **CLOSE)


def test_a_class_of_a_late_rank_takes_part_with_an_exponentially_falling_chance():
    method, classes = build("skip_tuning"), 30
    counts = torch.zeros(classes)
    for seed in range(400):
        similar = -torch.arange(classes).double().expand(2, -1).clone()  # class c has rank c + 1
        taken = method.taken(similar, torch.tensor([0, 1]), seed)
        counts[taken] += 1
        assert torch.equal(taken, method.taken(similar, torch.tensor([0, 1]), seed))
    density = [math.exp(-5 * i / 14 / 0.3) for i in range(15)]
    chances = [(d - density[-1]) / (density[0] - density[-1]) for d in density]
    assert counts[:15].tolist() == [400] * 15
    assert (counts[15:] / 400).tolist() == pytest.approx(chances, abs=0.08)


def test_which_ranks_take_part_is_drawn_once_for_a_fit():
    method, classes = build("skip_tuning"), 30
    drawn = torch.rand(classes, generator=generator("skipped classes", 7))
    density = torch.exp(-torch.linspace(0, 5, 15) / 0.3)
    chances = torch.cat([torch.ones(15), (density - density[-1]) / (density[0] - density[-1])])
    for step in range(5):
        similar = torch.randn(4, classes, generator=generator("similar", step)).double()
        ranks = similar.amax(0).argsort(descending=True)
        own = int(ranks[20])  # the batch's class, which comes first
        ranks = [own, *(c for c in ranks.tolist() if c != own)]
        expected = sorted(c for c, kept in zip(ranks, drawn < chances, strict=True) if kept)
        assert method.taken(similar, torch.full((4,), own), 7).tolist() == expected


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_of_few_classes_half_take_part_and_the_one_after_them_unless_it_is_the_last(classes, count):
    similar = torch.zeros(1, classes).double()
    assert len(build("skip_tuning").taken(similar, torch.tensor([0]), 1)) == count


def test_of_many_classes_fifty_always_take_part():
    method, similar = build("skip_tuning"), -torch.arange(1000).double()[None]
    for seed in range(5):
        taken = method.taken(similar, torch.tensor([0]), seed)
        assert taken[:50].tolist() == [*range(50)]
        assert 50 < len(taken) < 200


def test_the_classes_of_a_batch_take_part_even_if_they_are_more_than_half():
    method, similar = build("skip_tuning"), torch.zeros(4, 5).double()
    for seed in range(20):
        assert {0, 1, 2, 3} <= {*method.taken(similar, torch.arange(4), seed).tolist()}


def test_skip_tunings_image_tower_has_a_rate_of_its_own(exact):
    model = grafted("skip_tuning", exact)
    optimiser = model.optimiser()
    step = TrainingStep(batch(model), optimiser, 2e-5)
    rates = {
        name.split("/")[0]: group["lr"]
        for group in optimiser.param_groups
        for name, p in step.parameters.items()
        if any(p is each for each in group["params"])
    }
    assert rates == {"unfrozen.image": pytest.approx(5e-6), "unfrozen.text": 2e-5}
    few = build("skip_tuning", **build("skip_tuning").recipe("few_shot", "dtd", 16))
    assert few.rate_factor("unfrozen.image/head/proj") == 1
    with pytest.raises(HarnessError, match="a decay and a rate above 0"):
        build("skip_tuning", lr=0.0).check()


def test_a_steps_image_features_are_the_models_now_whatever_the_micro_batches(exact):
    model = grafted("skip_tuning", exact)
    shake(model)
    step = TrainingStep(batch(model), torch.optim.SGD(model.parameters()), 0.0)
    small = copy.deepcopy(step.room)
    small.chunks = type(small.chunks)(3, 2)
    apart = TrainingStep(batch(model), torch.optim.SGD(model.parameters()), 0.0, room=small)
    expected = with_own(model, exact.image)(images()).detach()
    for each in (step, apart):
        close(each.image_features(), expected, **CLOSE)
        assert not each.image_features().requires_grad


def test_batches_of_one_class_are_full_ones_and_the_rest_together():
    labels = torch.tensor([0] * 9 + [1] * 4 + [2] * 3 + [3] * 8)
    batches = epoch_order(24, 4, 1, 0, labels=labels)
    pure = [b for b in batches if len(labels[b].unique()) == 1]
    assert sorted(int(labels[b[0]]) for b in pure) == [0, 0, 1, 3, 3]
    assert len(batches) == steps_per_epoch(24, 4) == 6
    assert torch.cat(batches).sort().values.tolist() == [*range(24)]
    (mixed,) = [b for b in batches if len(labels[b].unique()) > 1]
    assert sorted(labels[mixed].tolist()) == [0, 2, 2, 2]
    for epoch in range(3):
        assert all(len(b) == 4 for b in epoch_order(23, 4, 1, epoch, labels=labels[:23]))
    assert len(epoch_order(23, 4, 1, 0, labels=labels[:23])) == steps_per_epoch(23, 4)
    others = epoch_order(24, 4, 1, 1, labels=labels)
    assert [b.tolist() for b in others] != [b.tolist() for b in batches]


def test_a_fit_of_skip_tuning_sees_batches_of_one_class(make_run, monkeypatch):
    from harness.fitting import trainer
    from tests.conftest import execute

    seen, plain = [], trainer.epoch_order

    def noted(*arguments):
        seen.append((plain(*arguments), arguments[-1]))
        return seen[-1][0]

    monkeypatch.setattr(trainer, "epoch_order", noted)
    record, _, _ = execute(make_run("skip_tuning", max_steps=2))
    assert record.status == "done", record.error
    assert all(len(labels[b].unique()) == 1 for order, labels in seen for b in order)
