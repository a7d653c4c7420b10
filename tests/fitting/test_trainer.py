"""The schedule, micro-batches, and that equal runs are equal."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from harness.errors import HarnessError
from harness.fitting.inputs import FewShotSupport, Images
from harness.fitting.step import Batch, gradients
from harness.fitting.texts import texts
from harness.fitting.trainer import Schedule, fit
from harness.method import HeadContext, Method
from harness.runs.engine import _precision
from harness.towers.openclip import cast_once
from tests import toy_backbone
from tests.conftest import PLUGINS, ROOT, SOME, execute
from tests.methods.test_contract import fitting, grafted


@pytest.mark.parametrize(
    ("lr", "warmup", "expected"),
    [
        (3.5e-3, 1, [1e-5, 3.5e-3, 3.166e-3, 2.291e-3, 1.209e-3]),  # MaPLe, 5 epochs
        (1.5e-3, 0, [1.5e-3, 1.357e-3, 9.82e-4, 5.18e-4, 1.43e-4]),  # MMA, 5 epochs
    ],
)
def test_learning_rates_are_those_of_dassl(lr, warmup, expected):
    method = Method(lr=lr, warmup_epochs=warmup)
    rates = [method.learning_rate(step, 3, 15) for step in range(0, 15, 3)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_caps_shorten_a_schedule_to_whole_epochs():
    method = Method(epochs=200, batch_size=32)
    assert Schedule.of(method, 400, 30, 300) == Schedule(12, 300)
    assert Schedule.of(method, 400, None, None) == Schedule(12, 2400)
    assert Schedule.of(method, 20_000, 30, 300) == Schedule(625, 300)
    assert Schedule.of(Method(epochs=5), 400, 30, 300) == Schedule(12, 60)


def prepared(run, label="train"):
    model = run.model()
    images = Images(
        model, run.source(run.train), run.train, run.context.cache, run.augmentation(model.method)
    )
    return model, images, texts(model, run.train.classes, training=True)


def test_equal_runs_give_equal_predictions_and_weights(make_run):
    results = [execute(make_run("dra", scale=0.1)) for _ in range(2)]
    (_, first, model), (_, second, again) = results
    assert all(torch.equal(first[name], second[name]) for name in first)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_seed_gives_other_weights(make_run):
    (_, _, model), (_, _, other) = (execute(make_run("adapter", seed=s)) for s in (1, 2))
    assert not torch.equal(model.parameters()[0], other.parameters()[0])


def test_cached_activations_give_what_live_ones_give(make_run):
    run = make_run("adapter", scale=0.1)
    trained = []
    for budget in (2**30, 0):
        model, images, prompts = prepared(run)
        images.cache.kept.clear()
        images.cache.budget = budget
        fit(model, images, prompts, run.schedule, 1)
        trained.append(model.parameters())
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_second_view_of_the_same_images_reaches_the_loss_where_a_method_asks_for_it(
    make_run, monkeypatch
):
    asked = []

    def noted(self, view, order, own=Images.train):
        asked.append((view, [part.tolist() for part in order]))
        return own(self, view, order)

    monkeypatch.setattr(Images, "train", noted)
    for name, first, second in (("coprompt", (1, 0), (1, 0, 1)), ("promptsrc", (1, 0), (1, 0))):
        asked.clear()
        execute(make_run(name, max_steps=1))
        (mine, order), (frozen, same) = asked[:2]
        assert (mine, frozen) == (first, second)
        assert order == same


def test_a_loss_that_is_not_finite_is_an_error_with_the_epoch(make_run):
    run = make_run("coop", lr=float("inf"), warmup_epochs=0)
    model, images, prompts = prepared(run)
    with pytest.raises(HarnessError, match="not finite in epoch"):
        fit(model, images, prompts, Schedule(1, 3), 1)


@pytest.mark.parametrize("name", SOME)
def test_every_method_trains_under_bfloat16_autocast_as_it_does_in_float32(
    make_run, name, monkeypatch
):
    """With a rate that moves the loss: a cast weight that stayed behind would show."""
    monkeypatch.setattr("harness.fitting.texts.PASS", {})
    fields = {field.name for field in dataclasses.fields(PLUGINS.plugins["methods"][name].cls)}
    small = {"lr": 0.01, "warmup_epochs": 0, "scale": 0.1, "dropout": 0.0, "augmentations": 2}
    settings = {field: value for field, value in small.items() if field in fields} | fitting(name)
    bf16, full = (
        execute(make_run(name, few=True, max_steps=2, precision=p, **settings))
        for p in ("bf16", "fp32")
    )
    assert bf16[0].status == "done", bf16[0].error
    if "epoch_losses" not in full[0].cost or not full[0].cost["steps"]:
        return
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in bf16[2].parameters())
    losses = bf16[0].cost["epoch_losses"], full[0].cost["epoch_losses"]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_under_autocast_each_step_sees_the_weights_of_the_step_before(make_run):
    run = make_run("adapter", precision="bf16", scale=0.1)
    with _precision(run):
        model, images, prompts = prepared(run)
        order = [torch.arange(len(run.train.items))]
        x = next(images.train((1, 0), order))
        labels = torch.tensor([item.label for item in run.train.items])
        before = gradients(Batch(model, x, prompts, labels, (1, 0)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3
        after = gradients(Batch(model, x, prompts, labels, (1, 0)))
    assert after != before


def test_a_methods_step_computes_in_float32_around_towers_in_bfloat16(make_run, monkeypatch):
    """Such as moments, sums of gradients and choices by features."""
    run, seen = make_run("adapter", precision="bf16", max_steps=1), {}

    def step(self, given):
        def loss(output, labels):
            seen["loss"] = torch.is_autocast_enabled("cpu")
            seen["image"] = output.image  # what left the towers
            return self.loss(output, labels)

        seen["mine"] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        seen["features"] = given.image_features()
        value, gradients = given.gradients(loss)
        seen["gradients"] = {each.dtype for each in gradients.values()}
        given.update(gradients)
        return value

    monkeypatch.setattr(type(run.method.value), "step", step)
    with _precision(run):
        model, images, prompts = prepared(run)
        fit(model, images, prompts, Schedule(1, 1), 1, graphs=False)
    assert (seen["mine"], seen["loss"], seen["gradients"]) == (
        torch.float32,
        False,
        {torch.float32},
    )
    for features in (seen["features"], seen["image"]):
        rounded = features.bfloat16().float()  # they came in bfloat16
        assert torch.equal(features, rounded)


def test_logits_are_float32_under_autocast(make_run):
    run = make_run("zero_shot", precision="bf16")
    with _precision(run):
        model = run.model()
        image, text = torch.randn(2, 128).bfloat16(), torch.randn(3, 1, 128).bfloat16()
        given = HeadContext(model.clip.logit_scale.exp())
        assert model.output(image, text, given).logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("coop", {"lr": 1e38, "warmup_epochs": 0, "max_steps": 1}),  # the last step ruins it
        ("adapter", {"lr": 1e38, "warmup_epochs": 0, "scale": 1.0, "max_steps": 1}),
    ],
)
def test_what_is_not_finite_after_the_last_step_is_a_failed_run(name, fields, make_run):
    record, predictions, _ = execute(make_run(name, **fields))
    assert record.status == "failed"
    assert "not finite" in record.reason
    assert not predictions
    assert not record.scores


@pytest.mark.parametrize(
    ("value", "says"), [(float("nan"), "not finite"), (float("inf"), "not finite"), (0.0, "zero")]
)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_backbone_without_usable_features_fails_by_the_evaluation(value, says, tower, make_run):
    clip = toy_backbone.load()
    part = clip.image.visual.proj if tower == "image" else clip.text.text.text_projection
    part.data.fill_(value)
    record, _, _ = execute(make_run("zero_shot", backbone=clip))
    assert record.status == "failed"
    assert "evaluation 'base'" in record.reason
    assert says in record.reason


def test_what_surrounds_the_steps_is_computed_in_float32_and_the_towers_in_bfloat16(
    make_run, monkeypatch
):
    seen = {}

    def prepare(self, head, support):
        images = support.view(0)
        seen["product"] = (images @ images.T).dtype
        seen["features"] = images.dtype
        rounded = images.to(torch.bfloat16).float()
        seen["towers"] = torch.equal(images, rounded)

    monkeypatch.setattr(PLUGINS.plugins["methods"]["clip_adapter"].cls, "prepare", prepare)
    plain, _, _ = execute(make_run("clip_adapter", max_steps=1))
    record, _, _ = execute(make_run("clip_adapter", precision="bf16", max_steps=1))
    assert record.status == "done", record.error
    assert record.run["engine"] != plain.run["engine"]
    assert seen == {"product": torch.float32, "features": torch.float32, "towers": True}


def test_what_a_method_is_told_of_the_frozen_parameters_is_not_rounded(mini):
    model = grafted("full", mini)
    images = SimpleNamespace(model=model, labels=torch.arange(2))
    with cast_once(mini, torch.bfloat16):
        pairs = FewShotSupport(images, None, None, seed=1).unfrozen
        assert all(frozen.equal(copy) for frozen, copy in pairs.values())
    assert not mini.whole


def test_frozen_features_belong_to_their_images_however_both_are_batched(make_run, monkeypatch):
    record, _, model = execute(make_run("metaprompt"))
    monkeypatch.setattr("harness.images.source.GROUP", 5)
    monkeypatch.setattr("harness.fitting.inputs.CHUNK", 2)  # 2, 2, 1 where nothing is kept
    monkeypatch.setattr(Images, "_fits", lambda images: type(images.model.method) is Method)
    other, _, again = execute(make_run("metaprompt"))
    assert other.scores == record.scores
    assert other.cost["epoch_losses"] == pytest.approx(record.cost["epoch_losses"], rel=1e-5)
    for one, same in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-6)


TOLD = """
import torch
from harness.fitting.model import _operations, whole_float32
b = torch.backends

def state():
    found = [each.fp32_precision for each in _operations()]
    for read in (lambda: b.cudnn.allow_tf32, torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:  # PyTorch was told in its newer way
            found.append("unreadable")
    return found

def tell_newer(place, value):
    if hasattr(place, "fp32_precision"):
        place.fp32_precision = value

for tell in (
    lambda: None, lambda: torch.set_float32_matmul_precision("high"),
    lambda: torch.set_float32_matmul_precision("highest"),
    lambda: tell_newer(b.mkldnn.matmul, "bf16"), lambda: tell_newer(b.cuda.matmul, "tf32"),
    lambda: tell_newer(b.cudnn.conv, "ieee"), lambda: tell_newer(b, "tf32"),
):
    tell()
    before = state()
    with whole_float32():
        assert state() == ["ieee"] * len(_operations()) + [False, "highest"]
        with whole_float32():
            pass
        assert state() == ["ieee"] * len(_operations()) + [False, "highest"]
    assert state() == before
"""


def test_float32_is_whole_whatever_the_process_was_told_and_is_then_as_it_was():
    subprocess.run([sys.executable, "-c", TOLD], check=True, cwd=ROOT)
