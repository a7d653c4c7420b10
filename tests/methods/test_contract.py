"""The contract of every registered method, by registration alone."""

import copy
import dataclasses
import inspect

import pytest
import torch

from harness.dataset import Classes
from harness.fitting.inputs import image_features
from harness.fitting.model import Model
from harness.fitting.sites import show_inputs
from harness.fitting.step import Batch, Chunks, TrainingStep, gradients
from harness.fitting.texts import Texts, text_features, texts
from harness.method import HeadContext, Method
from harness.methods.coop import Context
from harness.towers.edit import Edit
from tests.conftest import EACH, METHODS, PLUGINS
from tests.toy_backbone import SIZE

DESCRIBED = (
    ("red as blood", "warm", "near"), ("a leaf", "grass", "moss", "a frog"), ("sky", "cold", "far"),
)  # fmt: skip
FIT = Classes("toy", ("red", "a very light green", "blue"), "{} disc.", descriptions=DESCRIBED)
OTHER = Classes("toy", ("a yellow square", "sun"), "{} disc.", descriptions=DESCRIBED[1:])


PARTS = {"proda": 22, "cocoop": 12, "argue": 6}  # half of a step's texts, where they are many


def build(name: str, **fields) -> Method:
    plugin = PLUGINS.plugins["methods"][name]
    return plugin.cls(**{**plugin.fixed, **fields})


def fitting(name: str) -> dict[str, object]:
    """What fits a method to the narrow toy backbone."""
    return {"heads": 4} if name == "rada" else {}


def served(name: str) -> list[Classes]:
    """The classes that a method fitted on FIT can be asked for."""
    return [FIT] if PLUGINS.plugins["methods"][name].cls.only_fitted_classes else [FIT, OTHER]


def images(count: int = 8, like: torch.Tensor | None = None) -> torch.Tensor:
    """Random images, on the device and in the precision of another tensor; else in float64."""
    generator = torch.Generator().manual_seed(1)
    dtype, device = (torch.float64, "cpu") if like is None else (like.dtype, like.device)
    made = torch.randn(count, 3, SIZE, SIZE, dtype=dtype, generator=generator)
    return made.to(device)


def grafted(name: str, clip, **fields) -> Model:
    model = Model(clip, build(name, **fitting(name), **fields), FIT, seed=1)
    model.trained.to(clip.logit_scale.dtype)
    model.method.prepare(model.head, EightImages(model))
    return model


class EightImages:
    """What `prepare` may use: random images of the fitted classes."""

    def __init__(self, model: Model) -> None:
        self.features = model.clip.image(images(like=model.clip.logit_scale))
        self.labels = torch.arange(8, device=model.clip.device) % len(FIT.names)
        self.scale, self.seed, self.model = model.clip.logit_scale.exp(), 1, model

    @property
    def text(self) -> torch.Tensor:
        return text_features(self.model, texts(self.model, FIT, training=False))

    @property
    def edits(self) -> dict[str, Edit]:
        return self.model.edits

    def inputs(self, sites, see) -> None:
        def pixels(model: Model) -> list[torch.Tensor]:
            return [model.prefix(model.clip.image, images(like=model.clip.logit_scale))]

        show_inputs(self.model, sites, see, pixels, texts(self.model, FIT, training=True))

    @property
    def unfrozen(self) -> dict[str, tuple[torch.Tensor, torch.nn.Parameter]]:
        frozen = self.model.clip.parameters_by_name()
        return {name: (frozen[name], copy) for name, copy in self.model.unfrozen.items()}

    def view(self, number: int) -> torch.Tensor:
        return self.features

    def test(self) -> torch.Tensor:
        return self.features

    def val(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features, self.labels


def logits(model: Model, classes: Classes, x: torch.Tensor) -> torch.Tensor:
    """Evaluation logits [B, C]."""
    prompts = texts(model, classes, training=False)
    image = image_features(model, model.prefix(model.clip.image, x))
    own = image if model.method.text_per_image else None
    seen = model.clip.image(x) if model.method.frozen_when_scored else None
    given = HeadContext(
        model.clip.logit_scale.exp(), prompts.references, seen, classes == FIT,
        numbers=model.classes.numbers(classes),
    )  # fmt: skip
    return model.output(image, text_features(model, prompts, own), given).logits


def shake(model: Model) -> None:
    """Moves every trained parameter, so that zero initialisation hides nothing."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += 0.05 * noise.to(parameter.device)


def batch(model: Model, step: int = 0, chunks: Chunks | None = None) -> Batch:
    pixels = images(like=model.clip.logit_scale)
    x = model.prefix(model.clip.image, pixels)
    labels = torch.arange(8, device=pixels.device) % len(FIT.names)
    frozen = model.clip.image(pixels) if model.method.frozen_images else None
    return Batch(
        model, x, texts(model, FIT, training=True), labels, (1, step), chunks or Chunks(), frozen,
        progress=0.7,
    )  # fmt: skip


def whole(_: object, ids: torch.Tensor) -> torch.Tensor:
    """What `needed` says where nothing is cropped."""
    return torch.full((len(ids),), ids.shape[1])


def train_step(model: Model, step: int = 0) -> torch.Tensor:
    return gradients(batch(model, step))


class WatchedStep(TrainingStep):
    """A step that notes which parameters its gradients reach."""

    def gradients(self, *asked, **named):
        value, found = super().gradients(*asked, **named)
        reached = {name: g for name, g in found.items() if g is not None}
        assert all(g.isfinite().all() for g in reached.values())
        self.__dict__.setdefault("reached", set()).update(reached)
        return value, found


def own_step(model: Model, optimiser: torch.optim.Optimizer, number: int, total: int) -> set[str]:
    """A whole step as the method takes it, `number` of `total`; the parameters that it reaches."""
    step = WatchedStep(batch(model, number), optimiser, 0.01, number, total)
    model.method.step(step)
    return step.reached


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_value_with_a_documented_source(name):
    plugin = PLUGINS.plugins["methods"][name]
    assert build(name) == build(name)
    assert hash(build(name)) == hash(build(name))
    document = inspect.getdoc(plugin.cls)
    assert "Source:" in document
    assert "Differs:" in document
    for field in dataclasses.fields(plugin.cls):
        assert field.metadata.get("source"), f"{name}.{field.name} does not say where it comes from"


@pytest.mark.parametrize("name", METHODS)
def test_logits_are_finite_and_of_the_right_shape(name, exact):
    for classes in served(name):
        result = logits(grafted(name, exact), classes, images())
        assert result.shape == (8, len(classes.names))
        assert result.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_reaches_every_parameter_but_the_declared_ones_and_no_other(name, exact):
    model = grafted(name, exact)
    if not model.parameters():
        return
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    reached = set()
    for step in range(2):
        reached |= own_step(model, optimiser, step, 2)
    declared = model.method.untrained()
    expected = {
        n for n, _ in model.trained.named_parameters() if not n.endswith(declared or ("?",))
    }
    assert reached == expected
    assert all(p.grad is None and not p.requires_grad for p in exact.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_the_frozen_prefix_changes_nothing(name, exact, monkeypatch):
    model = grafted(name, exact)
    shake(model)
    prefixed = logits(model, FIT, images())
    monkeypatch.setattr(Model, "cut", lambda self, tower: -1)
    torch.testing.assert_close(logits(model, FIT, images()), prefixed, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_cropped_texts_give_the_logits_of_full_ones(name, exact, monkeypatch):
    model = grafted(name, exact)
    shake(model)
    cropped = logits(model, FIT, images())
    monkeypatch.setattr("harness.towers.text.TextTower.needed", whole)
    torch.testing.assert_close(logits(model, FIT, images()), cropped, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", EACH)
def test_training_on_cropped_texts_is_exact_unless_tokens_are_mixed(name, exact, monkeypatch):
    model = grafted(name, exact)
    if not model.parameters():
        return
    shake(model)
    lengths, losses = [], []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr("harness.towers.text.TextTower.needed", whole)
        lengths.append(texts(model, FIT, training=True).ids.shape[1])
        losses.append(train_step(model))
    assert (lengths[0] == lengths[1]) == model.mixes_text()
    torch.testing.assert_close(losses[0], losses[1], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", EACH)
def test_micro_batches_and_recomputation_give_the_whole_batchs_gradient(name, exact, monkeypatch):
    model = grafted(name, exact)
    if not model.parameters():
        return
    shake(model)
    grads, losses = [], []
    tight = Chunks(3, PARTS.get(name, 2), checkpointing=True)
    for chunks, fixed in ((Chunks(), 10**6), (tight, 0), (Chunks(0, tight.texts), 10**6)):
        monkeypatch.setattr("harness.fitting.texts.PASS", {"cpu": fixed})
        model.trained.zero_grad()
        losses.append(gradients(batch(model, chunks=chunks)))
        grads.append([p.grad for p in model.parameters()])
    for loss, parts in zip(losses[1:], grads[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], atol=1e-10, rtol=1e-10)
        for whole, part in zip(grads[0], parts, strict=True):
            torch.testing.assert_close(part, whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", EACH)
def test_texts_in_groups_of_like_lengths_give_what_all_together_give(name, exact, monkeypatch):
    model = grafted(name, exact)
    shake(model)
    counts, found = [], []
    for fixed in ({"cpu": 10**6}, {"cpu": 0}):
        monkeypatch.setattr("harness.fitting.texts.PASS", fixed)
        counts.append(len(texts(model, FIT, training=True).groups()))
        found.append([logits(model, FIT, images())])
        if model.parameters():
            model.trained.zero_grad()
            found[-1].append(train_step(model))
            found[-1] += [p.grad for p in model.parameters()]
    assert counts[0] == 1
    untouched = model.cut(exact.text) is None
    draws = getattr(model.method, "dropout", 0) > 0
    together = untouched or model.mixes_text() or draws
    # to pass their long beginnings again would cost more
    together |= name in ("prograd", "atprompt", "dept")
    assert (counts[1] == 1) == together
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(apart, together, atol=1e-10, rtol=1e-10)


def test_groups_of_texts_are_those_with_which_the_fewest_tokens_pass(mini):
    made = texts(grafted("coop", mini), FIT, training=True)
    made = dataclasses.replace(
        made, ids=made.ids[[0, 0, 0, 0]], lengths=torch.tensor([12, 8, 9, 8]), shared=0
    )

    def groups(fixed: int, copies: int = 1) -> list[tuple[list[int], int]]:
        again = dataclasses.replace(made, fixed=fixed)  # that remembers nothing
        return [(rows.tolist(), length) for rows, length, _ in again.groups(copies)]

    assert groups(0) == [([0], 12), ([2], 9), ([1, 3], 8)]  # 37 tokens
    assert groups(3) == [([0], 12), ([1, 2, 3], 9)]  # 39 + 2 * 3; three groups: 37 + 3 * 3
    assert groups(10) == [([0, 1, 2, 3], 12)]  # 48 + 10; two groups: 39 + 2 * 10
    assert groups(10, copies=2) == [([0], 12), ([1, 2, 3], 9)]  # 78 + 2 * 10; one: 96 + 10
    parts = dataclasses.replace(made, fixed=10).micro_batches(5, copies=3)
    micro_batches = [(each.numbers.tolist(), each.copies) for each in parts]
    assert micro_batches == [([0, 4, 8], 3), ([1, 2, 3], 1), ([5, 6, 7], 1), ([9, 10, 11], 1)]


def test_what_all_texts_begin_with_passes_once_where_it_is_the_same(toy, monkeypatch):
    monkeypatch.setattr("harness.fitting.texts.PASS", {})
    models = {name: grafted(name, toy) for name in METHODS}
    shared = {name: texts(model, FIT, training=True).shared for name, model in models.items()}
    assert {n: count for n, count in shared.items() if count} == {
        "coop": 5, "cocoop": 5, "kgcoop": 5, "prograd": 17, "atprompt": 9, "dept": 17,
        "dept-cocoop": 5, "dept-kgcoop": 5, "argue": 5, "argue_n": 5,
    }  # fmt: skip

    class OfAClass(Context):
        """Each class has its own vectors, all equal at the start."""

        def forward(self, x, y, at):
            return self.replaced(y, self.vectors[at.rows.numbers])

    equal = models["coop"].edits["text.tokens"].vectors.detach().expand(3, -1, -1).clone()
    models["coop"].edits["text.tokens"] = OfAClass(equal)
    assert texts(models["coop"], FIT, training=True).shared == 0  # start-of-text alone
    models["coop"] = grafted("coop", toy)
    monkeypatch.setattr("harness.fitting.texts.PASS", {"cpu": 10})  # two of three times five tokens
    assert texts(models["coop"], FIT, training=True).shared == 0


@pytest.mark.parametrize("name", EACH)
def test_saved_weights_restore_the_logits_on_other_classes(name, exact, tmp_path):
    model, fresh = grafted(name, exact), grafted(name, exact)
    if not model.parameters():
        return
    shake(model)
    model.save(tmp_path / "weights.safetensors")
    fresh.load(tmp_path / "weights.safetensors")
    for classes in served(name):
        assert torch.equal(logits(fresh, classes, images()), logits(model, classes, images()))


@pytest.mark.parametrize("name", EACH)
def test_the_loss_falls_on_eight_images(name, toy):
    model = grafted(name, toy)
    if not model.parameters():
        return
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(4):
        optimiser.zero_grad()
        losses.append(train_step(model, step))
        optimiser.step()
    assert torch.stack(losses[-2:]).mean() < torch.stack(losses[:2]).mean()


PARAMETERS = {
    "zero_shot": 0,
    "argue": 39_424,
    "argue_n": 39_424,
    "cupl": 0,
    "dclip": 0,
    "taskres": 3 * 512,
    "clap": 3 * 512,
    "zs_lp": 3 * 512,
    "lp_plus_plus": 3 * 514,
    "gda": 0,
    "tip_x": 0,
    "ape": 0,
    "ape_t": 3 * 400 + 3 * 16,
    "graph_adapter": 524_288 + 3 * 1_024,
    "rada": 1_575_936,
    "clip_svd": 92_160,
    "dora": 230_400,
    "image_lora": 36_864,
    "prilora": 737_280,
    "lora_plus": 184_320,
    "flat_lora": 184_320,
    "lora_pro": 184_320,
    "eva": 184_320,
    "ba_lora": 184_320,
    "skip_tuning": 62_099_456,
    "promptsrc": 46_080,
    "atprompt": 3_072,
    "dept": 8_192 + 2_048 + 3 * 513,
    "dept-cocoop": 35_360 + 2_048 + 3 * 513,
    "dept-kgcoop": 2_048 + 2_048 + 3 * 513,
    "dept-maple": 3_555_072 + 2_048 + 3 * 513,
    "dept-promptsrc": 46_080 + 2_048 + 3 * 513,
    "two_stage": 65_536 + 3 * 512,
    "ln_tuning": 65_536,
    "bitfit": 124_928,
    "full": 149_620_736,
    "wise_ft": 149_620_736,
    "coop": 2_048,
    "cocoop": 35_360,
    "kgcoop": 2_048,
    "prograd": 8_192,
    "proda": 262_144,
    "tcp": 331_904,
    "maple": 3_555_072,
    "maple-lite": 50_944,
    "coprompt": 3_817_216,
    "mmrl": 4_992_256,
    "mmrl_pp": 813_312,
    "plot": 32_768,
    "dyt": 1_198_860,
    "vpt": 73_728,
    "metaprompt": 30_720,
    "lora": 184_320,
    "comp_lora": 184_320,
    "adaptformer": 1_189_632,
    "clip_adapter": 131_072,
    "lfa": 262_144,
    "linear_probe": 3 * 513,
    "tip_adapter": 0,
    "tip_adapter_f": 3 * 16 * 512,
    "adapter": 666_112,
    "mma": 674_560,
    "dra": 716_800,
    "dra-t": 691_456,
    "dra-v": 691_456,
    "dra-none": 699_904,
    "dra-cr": 716_800,
    "dra-reg": 699_904,
    "dra-nonoise": 716_800,
    "dra-loggumbel": 716_800,
    "dra-random": 716_800,
}


READ = {  # words' embeddings or weights, where all others need shapes alone
    "argue", "argue_n", "promptsrc", "dept-cocoop", "dept-kgcoop", "dept-maple", "dept-promptsrc",
    "coop", "cocoop", "kgcoop", "maple", "maple-lite", "coprompt", "mmrl_pp",
}  # fmt: skip


@pytest.fixture(scope="module")
def vit_b16():
    """By whether it has values."""
    from harness.towers import backbone

    whole = backbone.load("ViT-B-16-quickgelu:random")
    return {True: whole, False: copy.deepcopy(whole).to("meta")}


def test_every_registered_methods_parameters_are_listed():
    assert set(PARAMETERS) == set(METHODS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_trainable_parameters_on_vit_b16_are_the_published_number(name, vit_b16):
    model = Model(vit_b16[name in READ], build(name), FIT, seed=1)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_asking_for_a_block_that_is_not_there_names_method_backbone_and_remedy(mini):
    from harness.errors import HarnessError

    class Deep(Method):
        def edits(self, clip, classes):
            return {"image.blocks.40.attn": Edit()}

    with pytest.raises(HarnessError, match=r"image\.blocks\.40\.attn.*emoji-mini.*12 blocks"):
        Model(mini, Deep(), FIT, seed=1)


def test_texts_of_a_class_are_averaged_after_normalisation(exact):
    from harness.method import CosineHead

    image, text = torch.randn(2, 5).double(), torch.randn(3, 4, 5).double()
    mean = (text / text.norm(dim=-1, keepdim=True)).mean(1)
    expected = torch.stack(
        [torch.stack([torch.cosine_similarity(i, m, dim=0) for m in mean]) for i in image]
    )
    got = CosineHead()(image, text, HeadContext(exact.logit_scale.exp()))
    torch.testing.assert_close(got, exact.logit_scale.exp() * expected, atol=1e-10, rtol=1e-10)


def test_texts_keeps_the_number_of_prompts_of_a_class(mini):
    model = grafted("zero_shot", mini)
    prompts = texts(model, FIT, training=False)
    assert isinstance(prompts, Texts)
    assert prompts.per_class == 1
