"""Equations of adapted weights, caches and maps against literal transcriptions (float64, 1e-10)."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from harness.dataset import Classes
from harness.fitting.evaluate import evaluate
from harness.fitting.inputs import Images
from harness.fitting.model import Model
from harness.fitting.step import TrainingStep, gradients
from harness.fitting.texts import text_features, texts
from harness.fitting.trainer import Schedule, fit
from harness.images import pixels as data
from harness.images.pixels import Augmentation, FiveCrop
from harness.images.source import test_batches as batches_under_test
from harness.images.source import train_batches
from harness.method import HeadContext
from harness.methods.lfa import Mapped, aligned, cross_validated
from harness.methods.linear_probe import Linear
from harness.randomness import generator
from harness.runs.run import Configured
from harness.towers.edit import Rows, SiteContext
from tests.conftest import PLUGINS, execute
from tests.methods.test_contract import FIT, OTHER, batch, build, grafted, images, logits, shake
from tests.methods.test_equations import CLOSE, at

LABELS = torch.arange(8) % 3
close = torch.testing.assert_close


@dataclass
class Few:
    """A stand-in for the few-shot images of a fit: random features."""

    labels: Tensor
    views: list[Tensor]
    text: Tensor
    held: tuple[Tensor, Tensor]
    scale: Tensor
    plain: Tensor | None = None
    seed: int = 1

    def view(self, number: int) -> Tensor:
        return self.views[number]

    def test(self) -> Tensor:
        assert self.plain is not None, "not asked for by this method"
        return self.plain

    def val(self) -> tuple[Tensor, Tensor]:
        return self.held


def few(
    images: int = 5, classes: int = 3, width: int = 36, views: int = 10, noise=3.0, held=40
) -> Few:
    """Classes are directions, images are noisy around them."""
    centre = torch.randn(classes, width).double()

    def around(labels: Tensor) -> Tensor:
        return centre[labels] + noise * torch.randn(len(labels), width).double()

    labels, truth = torch.arange(images) % classes, torch.arange(held) % classes
    seen = [around(labels) for _ in range(views)]
    text = around(torch.arange(classes))[:, None]
    scale, plain = torch.tensor(20.0).double(), around(labels)
    return Few(labels, seen, text, (around(truth), truth), scale, plain)


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum(-1, keepdim=True).sqrt()


def cosines(image: Tensor, text: Tensor) -> Tensor:
    return torch.stack([torch.stack([(unit(f) * unit(t)).sum() for t in text]) for f in image])


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    rows = zip(scores, labels, strict=True)
    return sum(row.exp().sum().log() - row[label] for row, label in rows) / len(labels)


def template(clip, names=FIT.names, text: str = "{} disc.") -> Tensor:
    return clip.text(clip.tokenize([text.format(name) for name in names]))


def agrees(model, loss: Tensor, factor: float = 1.0, step: int = 0) -> None:
    """The trainer's loss and gradients are the transcription's (gradients times `factor`)."""
    named = dict(model.trained.named_parameters())
    expected = torch.autograd.grad(loss, list(named.values()))
    close(gradients(batch(model, step)), loss.detach(), **CLOSE)
    for (name, parameter), gradient in zip(named.items(), expected, strict=True):
        assert gradient.abs().max() > 0, name
        close(parameter.grad, factor * gradient, **CLOSE)


def tower_by_hand(tower, inputs, project, beside) -> Tensor:
    """Blocks written out: project(site, op, x) is q, k or v; beside(site, x) joins the MLP."""
    x = tower.stem(inputs)
    mask = 0 if tower.mask(x.shape[1]) is None else tower.mask(x.shape[1])
    for block in tower.blocks:
        attn, h = block.attn, block.ln1(x)
        size = x.shape[-1] // attn.heads
        parts = [project(f"{block.site}.{n}", getattr(attn, n), h).split(size, -1) for n in "qkv"]
        mixed = [
            (q @ k.transpose(1, 2) / math.sqrt(size) + mask).softmax(-1) @ v
            for q, k, v in zip(*parts, strict=True)
        ]
        x = x + torch.cat(mixed, -1) @ attn.o.weight.T + attn.o.bias
        h = block.ln2(x)
        x = x + block.mlp(h) + beside(f"{block.site}.mlp", h)
    return tower.head(x, inputs)


def change(name: str, edit, weight: Tensor) -> Tensor:
    """alpha / sqrt(r) B A, for comp_lora between the complements of 32 singular directions."""
    product = sum(torch.outer(edit.b[:, i], edit.a[i]) for i in range(2))
    if name == "comp_lora":
        left, _, right = (torch.from_numpy(m) for m in np.linalg.svd(weight.numpy()))
        rest_left, rest_right = left[:, 32:], right[32:].T
        product = rest_left @ rest_left.T @ product @ rest_right @ rest_right.T
    return 1.0 / math.sqrt(2) * product


def low_rank_logits(name: str, model, training: bool) -> Tensor:
    def features(tower, inputs: Tensor) -> Tensor:
        def project(site, op, x):
            update = change(name, model.edits[site], op.weight)
            if not training:
                return x @ (op.weight + update).T + op.bias
            where = SiteContext(
                site, op, Rows(torch.arange(len(x)), len(x), True, (1, 0)), tower.length
            )
            kept = where.dropout(torch.ones_like(x), 0.25)
            return x @ op.weight.T + op.bias + (x * kept) @ update.T

        return tower_by_hand(tower, inputs, project, lambda site, x: 0)

    clip = model.clip
    ids = clip.tokenize([f"a photo of a {name}." for name in FIT.names])
    scale = clip.logit_scale.exp()
    return scale * cosines(features(clip.image, images()), features(clip.text, ids))


@pytest.mark.parametrize("name", ["lora", "comp_lora"])
def test_low_rank_updates_are_merged_weights_that_learn_from_dropped_inputs(name, exact):
    model = grafted(name, exact)
    shake(model)
    close(logits(model, FIT, images()), low_rank_logits(name, model, False).detach(), **CLOSE)
    agrees(model, cross_entropy(low_rank_logits(name, model, True), LABELS))


@pytest.mark.parametrize("name", ["lora", "comp_lora", "adaptformer"])
def test_updates_of_weights_start_at_zero_with_only_their_second_factor_zero(name, exact):
    model = grafted(name, exact)
    scale, text = exact.logit_scale.exp(), template(exact, text="a photo of a {}.")
    close(logits(model, FIT, images()), scale * cosines(exact.image(images()), text), **CLOSE)
    for edit in model.edits.values():
        adapter = name == "adaptformer"
        pair = (edit.down.weight, edit.up.weight) if adapter else (edit.a, edit.b)
        assert pair[0].abs().max() <= 1 / math.sqrt(pair[0].shape[1])  # Kaiming-uniform, sqrt(5)
        assert pair[1].count_nonzero() == 0


def test_low_rank_dropout_drops_a_quarter_and_scales_the_rest_separately_for_q_k_and_v():
    rows, ones = Rows(torch.arange(8), 8, True, (1, 0)), torch.ones(8, 50, 96).double()
    sites = [f"text.blocks.3.{part}" for part in "qkv"]
    q, k, v = (
        SiteContext(site, torch.nn.Identity(), rows, 50).dropout(ones, 0.25) for site in sites
    )
    for mask in (q, k, v):
        assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
        assert (mask == 0).double().mean() == pytest.approx(0.25, abs=0.01)
    for one, other in ((q, k), (q, v), (k, v)):
        assert ((one == 0) & (other == 0)).double().mean() == pytest.approx(1 / 16, abs=0.01)


def test_low_rank_dropout_is_the_same_in_micro_batches_and_in_cropped_texts():
    def dropped(numbers: list[int], length: int) -> Tensor:
        rows = Rows(torch.tensor(numbers), 8, True, (1, 0))
        where = SiteContext("text.blocks.3.q", torch.nn.Identity(), rows, 50)
        return where.dropout(torch.ones(len(numbers), length, 96), 0.25)

    whole = dropped(list(range(8)), 50)
    assert torch.equal(dropped([5, 2], 50), whole[[5, 2]])
    assert torch.equal(dropped([3], 9), whole[[3], :9])


def test_complementary_updates_have_no_part_in_the_top_singular_directions(exact):
    model = grafted("comp_lora", exact)
    shake(model)
    for tower in (exact.image, exact.text):
        for part in "qkv":
            op = getattr(tower.blocks[5].attn, part)
            edit = model.edits[f"{tower.name}.blocks.5.{part}"]
            eye = torch.eye(tower.width).double()[None]
            update = edit(eye, torch.zeros_like(eye), at(False, 1))[0].T.detach()
            left, _, right = (torch.from_numpy(m) for m in np.linalg.svd(op.weight.numpy()))
            assert (left[:, :32].T @ update).abs().max() < 1e-10
            assert (update @ right[:32].T).abs().max() < 1e-10
            close(update, change("comp_lora", edit, op.weight).detach(), **CLOSE)
            assert torch.linalg.matrix_rank(update) == 2


@pytest.mark.parametrize("shots", [1, 4, 16])
def test_clip_lora_takes_500_steps_a_shot(shots):
    method = build("lora", **build("lora").recipe("few_shot", "dtd", shots))
    assert Schedule.of(method, 47 * shots, None, None).total == 500 * shots


@pytest.mark.parametrize(
    ("name", "rate", "floor", "decay", "eps"),
    [
        ("lora", 2e-4, 1e-6, 1e-2, 1e-8),
        ("comp_lora", 2e-4, 1e-6, 1e-2, 1e-8),
        ("tip_adapter_f", 1e-3, 0.0, 1e-2, 1e-4),
        ("lfa", 5e-4, 1e-7, 5e-4, 1e-8),
    ],
)
def test_rates_fall_along_a_cosine_at_each_iteration_of_adamw(name, rate, floor, decay, eps):
    method, weights = build(name), [torch.nn.Parameter(torch.zeros(1))]
    ours = method.optimiser(weights).defaults
    assert isinstance(method.optimiser(weights), torch.optim.AdamW)
    assert (ours["betas"], ours["weight_decay"], ours["eps"]) == ((0.9, 0.999), decay, eps)
    optimiser = torch.optim.AdamW(weights, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 11, eta_min=floor)
    for step in range(11):
        assert method.learning_rate(step, 4, 11) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


def adaptformer_logits(model) -> Tensor:
    def beside(site, x):
        edit = model.edits[site]
        inner = (x @ edit.down.weight.T + edit.down.bias).clamp_min(0)
        return 0.1 * (inner @ edit.up.weight.T + edit.up.bias)

    def project(site, op, x):
        return x @ op.weight.T + op.bias

    clip = model.clip
    image = tower_by_hand(clip.image, images(), project, beside)
    return clip.logit_scale.exp() * cosines(image, template(clip, text="a photo of a {}."))


@pytest.mark.parametrize("rescaled", [False, True])
def test_adaptformer_is_beside_each_mlp_and_learns_as_it_is_or_as_if_s_were_one(rescaled, exact):
    model = grafted("adaptformer", exact, gradient_rescale=rescaled)
    shake(model)
    expected = adaptformer_logits(model)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS), 10.0 if rescaled else 1.0)


def clip_adapter_logits(model) -> Tensor:
    w1, w2, mixed = model.head.down.weight, model.head.up.weight, []
    for f in model.clip.image(images()):
        adapted = (w2 @ (w1 @ f).clamp_min(0)).clamp_min(0)
        mixed.append(0.2 * adapted + 0.8 * f)
    return model.clip.logit_scale.exp() * cosines(torch.stack(mixed), template(model.clip))


def test_clip_adapter_mixes_the_raw_feature_with_its_adapted_form(exact):
    model = grafted("clip_adapter", exact)
    shake(model)
    expected = clip_adapter_logits(model)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS))


def tip(name: str, clip, support: Few, **fields) -> Model:
    """Tip-Adapter with room for six images."""
    model = Model(clip, build(name, shots=2, **fields), FIT, seed=1)
    model.trained.double()
    model.method.prepare(model.head, replace(support, plain=None))
    return model


def tip_logits(model, support: Few) -> Tensor:
    head, image = model.head, model.clip.image(images())
    rows = []
    for f in image:
        row = [torch.zeros(()).double() for _ in FIT.names]
        for key, label in zip(head.keys, support.labels.tolist(), strict=False):
            row[label] = row[label] + torch.exp(-head.beta * (1 - (unit(f) * key).sum()))
        rows.append(torch.stack(row))
    cached = head.alpha * torch.stack(rows)
    return model.clip.logit_scale.exp() * cosines(image, template(model.clip)) + cached


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_tip_adapters_keys_are_normalised_means_over_ten_views_and_its_cache_is_added(name, exact):
    support = few()
    model = tip(name, exact, support, alpha=1.7, beta=2.3)
    for n in range(5):
        mean = sum(support.views[view][n] for view in range(10)) / 10
        close(model.head.keys[n].detach(), unit(mean), **CLOSE)
    assert model.head.keys[5].count_nonzero() == 0  # room for a sixth image
    expected = tip_logits(model, support)
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    assert (model.head.alpha, model.head.beta) == (pytest.approx(1.7), pytest.approx(2.3))


def test_tip_adapter_f_trains_its_keys_alone(exact):
    support = few(6)
    model = tip("tip_adapter_f", exact, support)
    shake(model)
    assert [name for name, _ in model.trained.named_parameters()] == ["head.keys"]
    agrees(model, cross_entropy(tip_logits(model, support), LABELS))
    assert tip("tip_adapter", exact, support).parameters() == []


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f"])
def test_tip_adapters_search_takes_the_first_best_of_its_grid_on_val(name, exact):
    support = few()
    model = tip(name, exact, support, most_alpha=30.0, most_beta=12.0)
    shake(model)
    model.method.finish(model.head, support)
    image, truth = support.held
    frozen = support.scale * cosines(image, support.text[:, 0])
    affinity = unit(image) @ model.head.keys.detach()[:5].T  # trained keys are not normalised
    best, chosen = 0, (0.0, 0.0)
    for i in range(200):
        beta = 0.1 + i * (12.0 - 0.1) / 200
        similar = torch.exp(-beta * (1 - affinity))
        cached = torch.stack([similar[:, support.labels == c].sum(1) for c in range(3)], 1)
        for j in range(20):
            alpha = 0.1 + j * (30.0 - 0.1) / 20
            correct = int(((frozen + alpha * cached).argmax(1) == truth).sum())
            if correct > best:
                best, chosen = correct, (alpha, beta)
    assert chosen != (0.1, 0.1)
    assert (model.head.alpha.item(), model.head.beta.item()) == pytest.approx(chosen)


def few_shot_run(make_run, name: str, **fields):
    made = make_run(name, **fields)
    task = PLUGINS.plugins["tasks"]["few_shot"].cls()
    return made.context.prepare(replace(made.run, task=Configured("few_shot", task)))


def test_tip_adapter_opens_train_and_val_images_and_never_a_test_image(make_run, monkeypatch):
    run = few_shot_run(make_run, "tip_adapter")
    model, source = run.model(), run.source(run.train)
    opened, read = set(), type(source.dataset).open

    def spy(self, item, root):
        opened.add(item.path)
        return read(self, item, root)

    monkeypatch.setattr(type(source.dataset), "open", spy)
    augmentation = run.augmentation(model.method)
    seen, held = (
        Images(model, source, split, run.context.cache, augmentation)
        for split in (run.train, run.val)
    )
    prompts = texts(model, run.train.classes, training=True)
    fit(model, seen, prompts, run.schedule, run.seed, val=held)
    assert opened == {item.path for item in (*run.train.items, *run.val.items)}
    mean, order = 0, [torch.arange(len(run.train.items))]
    for number in range(10):
        arguments = (model.clip.pixels, Augmentation(scale=(0.5, 1.0)), (run.seed, number), order)
        (pixels,) = train_batches(source, run.train, *arguments)
        taken = model.clip.pixels
        mean += model.clip.image(data.normalise(pixels, taken.mean, taken.std)) / 10
    close(model.head.keys[: len(mean)], unit(mean), atol=1e-5, rtol=1e-5)


def procrustes(images: list[Tensor], texts: list[Tensor], beta: float) -> Tensor:
    """The orthogonal factor M (M^T M)^-1/2 of M = sum_n x_n y_n^T, pulled towards the identity."""
    product = sum(torch.outer(x, y) for x, y in zip(images, texts, strict=True))
    values, vectors = torch.linalg.eigh(product.T @ product)
    solved = product @ vectors @ torch.diag(values**-0.5) @ vectors.T
    return (1 - beta) * solved + beta * torch.eye(len(solved)).double()


def test_lfa_solves_the_orthogonal_map_and_pulls_it_towards_the_identity():
    x, y = (unit(torch.randn(40, 5).double()) for _ in range(2))
    solved, eye = aligned(x, y, 0.0), torch.eye(5).double()
    close(solved.T @ solved, eye, **CLOSE)
    close(solved, procrustes(list(x), list(y), 0.0), **CLOSE)
    close(aligned(x, y, 0.9), 0.1 * solved + 0.9 * eye, **CLOSE)


def test_lfa_starts_from_all_five_crops_with_the_given_beta():
    support, head = few(12, 6, 5, views=5), Mapped(5, 0.0, 0.0).double()
    build("lfa").prepare(head, support)
    crops = [unit(view[n]) for view in support.views for n in range(12)]
    prototypes = [unit(support.text[n % 6, 0]) for _ in range(5) for n in range(12)]
    close(head.weight.detach(), procrustes(crops, prototypes, 0.9), **CLOSE)
    assert torch.equal(head.mean, torch.eye(5).double())


@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_lfas_loss_is_the_re_ranking_of_the_nearest_prototypes(neighbours, exact):
    model = grafted("lfa", exact, neighbours=neighbours, noise=0.0, dropout=0.0)
    shake(model)
    prototypes, terms = unit(template(exact)), []
    for f, label in zip(exact.image(images()), LABELS.tolist(), strict=True):
        mapped = unit(unit(f) @ model.head.weight)
        distance = [((mapped - y) ** 2).sum().sqrt() for y in prototypes]
        for j in sorted(range(3), key=lambda j: distance[j].item())[:neighbours]:
            margin = (1 - (prototypes[label] * prototypes[j]).sum()) / 4
            terms.append((distance[label] + margin - distance[j]).clamp_min(0))
    assert len(terms) == 8 * neighbours
    agrees(model, sum(terms) / len(terms))


def test_lfa_disturbs_features_with_noise_half_of_the_time_and_dropout_half_of_the_time():
    head, ones = Mapped(128, 0.035, 0.05), torch.ones(8, 128).double()
    outputs = [head.disturbed(ones, (1, step)) for step in range(400)]
    dropped = [bool((x == 0).any()) for x in outputs]
    noisy = [len(x[x != 0].unique()) > 1 for x in outputs]
    both = [a and b for a, b in zip(dropped, noisy, strict=True)]
    for happened, chance in ((dropped, 0.5), (noisy, 0.5), (both, 0.25)):
        assert sum(happened) / 400 == pytest.approx(chance, abs=0.08)
    pairs = list(zip(outputs, dropped, noisy, strict=True))
    zeros = torch.cat([x for x, d, _ in pairs if d]) == 0
    assert zeros.double().mean() == pytest.approx(0.05, abs=0.003)
    assert all(torch.equal(x[x != 0].unique(), ones[0, :1] / 0.95) for x, d, n in pairs if d > n)
    noise = torch.cat([x for x, d, n in pairs if n > d]) - 1
    assert (noise.mean().item(), noise.std().item()) == pytest.approx((0, 0.035), abs=0.001)


@pytest.mark.parametrize("total", [1, 6, 7])
def test_lfas_mean_map_starts_at_the_identity_and_follows_with_a_growing_momentum(total, exact):
    model = grafted("lfa", exact)
    optimiser, mean = (
        model.method.optimiser(model.parameters()),
        torch.eye(exact.embedding).double(),
    )
    for t in range(total):
        model.method.step(TrainingStep(batch(model, t), optimiser, 0.01, t, total))
        half = total // 2
        ramp = 1.0 if half == 0 else 1 - math.exp(-5 * (t if t < half else half) / half)
        m = 0.9 + 0.1 * ramp
        mean = m * mean + (1 - m) * model.head.weight.detach()
        close(model.head.mean, mean, **CLOSE)


@pytest.mark.parametrize("target", ["mean", "refined"])
@pytest.mark.parametrize(
    ("classes", "transferred"), [(FIT, False), (FIT, True), (OTHER, False), (OTHER, True)]
)
def test_lfa_maps_its_source_with_w_and_the_rest_as_chosen(classes, transferred, target, exact):
    model = grafted("lfa", exact, target=target)
    shake(model)
    model.head.mean += 0.1 * torch.randn(exact.embedding, exact.embedding).double()
    source = classes == FIT and not transferred
    mapping = model.head.weight if source or target == "refined" else model.head.mean
    frozen = exact.image(images())
    mapped = torch.stack([unit(f) @ mapping for f in frozen])
    expected = exact.logit_scale.exp() * cosines(mapped, template(exact, classes.names))
    given = HeadContext(exact.logit_scale.exp(), fitted=classes == FIT, transferred=transferred)
    got = model.head(frozen, template(exact, classes.names)[:, None], given)
    close(got.detach(), expected.detach(), **CLOSE)


def test_lfa_is_told_of_a_target_with_the_class_names_of_its_source(make_run):
    run = make_run("lfa")
    model, told = run.model(), []
    split, augmentation = run.evaluated["base"], run.augmentation(model.method)
    model.head.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2]))
    for dataset in ("toy", "another"):
        same = replace(split, classes=replace(split.classes, dataset=dataset))
        evaluate(model, Images(model, run.source(split), same, run.context.cache, augmentation))
        assert told[-1].fitted
        assert told[-1].transferred == (dataset == "another")


@pytest.mark.parametrize(("name", "count"), [("lfa", 8), ("tip_adapter", 7)])
def test_imagenet_and_its_variants_have_several_templates_and_others_one(name, count):
    seven = (
        "itap of a {}. / a bad photo of the {}. / a origami {}. / a photo of the large {}. / "
        "a {} in a video game. / art of the {}. / a photo of the small {}."
    )
    written = [each.replace("{}", "dark green") for each in seven.split(" / ")]
    one = ["a photo of a dark green."]
    for dataset in ("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"):
        classes = Classes(dataset, ("dark_green",), "a photo of a {}.")
        (several,) = build(name).prompts(classes)
        assert len(several) == count
        assert sorted(several) == sorted(written + one * (count - 7))
        assert build(name, ensemble=False).prompts(classes) == [one]
    (own,) = build(name).prompts(Classes("dtd", ("dark_green",), "{} texture."))
    assert own == ["dark green texture."]


@pytest.mark.parametrize("ensemble", [True, False])
def test_lfa_and_tip_adapter_take_the_mean_of_normalised_templates(ensemble, exact):
    classes = Classes("imagenet", FIT.names, "a photo of a {}.")
    for name in ("lfa", "tip_adapter"):
        model = Model(exact, build(name, ensemble=ensemble), classes, seed=1)
        model.trained.double()
        shake(model)
        prompts = texts(model, classes, training=False)
        given, x = HeadContext(exact.logit_scale.exp()), exact.image(images())
        text = text_features(model, prompts)
        got = model.head(x, text, given)
        weights = []
        for texts_of_one in model.method.prompts(classes):
            features = [exact.text(exact.tokenize([each]))[0] for each in texts_of_one]
            weights.append(sum(unit(f) for f in features) / len(features))
        mapped = x @ model.head.weight if name == "lfa" else x
        expected = exact.logit_scale.exp() * cosines(mapped, torch.stack(weights))
        close(got.detach(), expected.detach(), **CLOSE)


def test_lfas_five_crops_are_the_corners_and_the_centre(mini):
    taken = replace(mini.pixels, size=(8, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 14, 3), dtype=np.uint8)
    image, whole = Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)
    for number, left in enumerate((0, 6, 0, 6, 3)):  # as high as a crop: top is bottom
        assert torch.equal(FiveCrop()(image, taken, (number,), 0), whole[:, :, left : left + 8])
    assert {FiveCrop().view(1, epoch) for epoch in range(99)} == {(n,) for n in range(5)}


def test_lfas_beta_is_the_best_of_25_on_three_held_out_fifths_of_the_centre_crops(monkeypatch):
    support, draw = few(30, 6, 6, noise=1.0), generator("cross-validation", 1)
    x, y = unit(support.views[4]), unit(support.text[:, 0])
    scores = []
    for i in range(25):
        scores.append(0)
        for _ in range(3):
            order = torch.randperm(30, generator=draw).tolist()
            fitted, held = order[:24], order[24:]
            targets = [y[support.labels[n]] for n in fitted]
            mapping = procrustes([x[n] for n in fitted], targets, i / 24)
            for n in held:
                scores[-1] += int(cosines((x[n] @ mapping)[None], y).argmax() == support.labels[n])
    assert min(scores) < max(scores)
    expected = scores.index(max(scores)) / 24
    assert cross_validated(x, y, support.labels, 1) == pytest.approx(expected)
    given = []
    monkeypatch.setattr(
        "harness.methods.lfa.cross_validated", lambda *each: given.extend(each) or 0.5
    )
    build("lfa", beta=None).prepare(Mapped(6, 0.0, 0.0).double(), support)
    close(given[:3], [x, y, support.labels], **CLOSE)


def probe_search(support: Few) -> tuple[float, dict[float, float], dict[float, LogisticRegression]]:
    """The exponent of C: a coarse sweep, then half the step on both sides of the best so far."""
    accuracy, fits = {}, {}
    image, truth = (each.numpy() for each in support.held)
    rounds = [lambda: range(-6, 7, 2)]
    for width in (1.0, 0.5, 0.25, 0.125):
        rounds.append(lambda w=width: [peak(accuracy) - w, peak(accuracy) + w])
    for exponents in rounds:
        for e in exponents():
            if e not in accuracy:
                fits[e] = LogisticRegression(C=10.0**e, max_iter=1000)
                fits[e].fit(support.plain.numpy(), support.labels.numpy())
                accuracy[e] = fits[e].score(image, truth)
    return peak(accuracy), accuracy, fits


def peak(accuracy: dict[float, float]) -> float:
    return next(e for e, a in accuracy.items() if a == max(accuracy.values()))


def probed(support: Few, classes: int = 3, width: int = 36) -> Linear:
    head = Linear(width, classes).double()
    build("linear_probe").prepare(head, support)
    return head


def test_linear_probe_is_logistic_regression_with_the_c_that_is_best_on_val():
    chosen = set()
    for noise in (2.0, 4.0, 6.0):
        support = few(12, noise=noise, held=1000)
        c, accuracy, fits = probe_search(support)
        chosen.add(c)
        head = probed(support)
        close(head.linear.weight.detach(), torch.from_numpy(fits[c].coef_), **CLOSE)
        close(head.linear.bias.detach(), torch.from_numpy(fits[c].intercept_), **CLOSE)
        image, truth = support.held
        right = (head.linear(image).argmax(1) == truth).double().mean()
        assert right == pytest.approx(max(accuracy.values()))
        assert min(accuracy.values()) < max(accuracy.values())
    assert any(8 * c % 2 for c in chosen)  # eight values a decade, not four


def test_linear_probe_minimises_its_objective():
    support = few(12)
    c = 10 ** probe_search(support)[0]
    head = probed(support)
    weight, bias = head.linear.weight, head.linear.bias
    scores = torch.stack([weight @ f + bias for f in support.plain])
    objective = (weight**2).sum() / 2 + c * 12 * cross_entropy(scores, support.labels)
    for gradient in torch.autograd.grad(objective, [weight, bias]):
        assert (gradient / (12 * c)).abs().max() < 1e-4  # L-BFGS's tolerance


def test_linear_probe_of_two_classes_gives_scikit_learns_probabilities():
    support = few(12, 2)
    c, _, fits = probe_search(support)
    got = probed(support, 2).linear(support.held[0]).softmax(1).detach()
    close(got, torch.from_numpy(fits[c].predict_proba(support.held[0].numpy())), **CLOSE)


def test_linear_probe_is_affine_in_the_raw_image_feature(exact):
    model = grafted("linear_probe", exact)
    shake(model)
    weight, bias = model.head.linear.weight, model.head.linear.bias
    expected = torch.stack([weight @ f + bias for f in exact.image(images())])
    close(logits(model, FIT, images()), expected.detach(), **CLOSE)
    agrees(model, cross_entropy(expected, LABELS))


def test_linear_probe_of_a_run_predicts_what_scikit_learn_does_on_the_same_features(make_run):
    run = few_shot_run(make_run, "linear_probe")
    record, predictions, model = execute(run)
    assert record.status == "done", record.error
    features = []
    for split in (run.train, run.val, run.evaluated["test"]):
        (pixels,) = batches_under_test(run.source(run.train), split, model.clip.pixels, 100)
        pixels = data.normalise(pixels, model.clip.pixels.mean, model.clip.pixels.std)
        features.append((model.clip.image(pixels), torch.tensor([i.label for i in split.items])))
    (plain, labels), held, (test, truth) = features
    c, _, fits = probe_search(replace(few(), labels=labels, held=held, plain=plain))
    assert predictions["test.class"].tolist() == fits[c].predict(test.numpy()).tolist()
    assert record.scores["test"]["accuracy"] == fits[c].score(test.numpy(), truth.numpy())
