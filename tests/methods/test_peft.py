"""Layers of Hugging Face peft against peft itself on plain linear modules (float64)."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from harness import config
from harness.config import Engine
from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.step import Chunks, TrainingStep, gradients
from harness.randomness import seed_of
from harness.runs.run import Configured
from harness.towers import backbone
from harness.towers.wrapped import Proxy, tree, wrappable
from tests import toy_backbone
from tests.conftest import EVERY_METHOD, PLUGINS, execute, prepared
from tests.methods import test_contract as contract
from tests.methods.test_contract import FIT, batch, images, shake
from tests.methods.test_equations_weights import LABELS, cosines, cross_entropy

pytestmark = [
    pytest.mark.peft,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra [peft]"),
]
FAMILY = EVERY_METHOD["peft"].cls
VARIANTS = list(FAMILY.variants)
SMALL = {  # where a variant's sizes do not divide the toy backbone's widths of 48 and 40
    "peft-c3a": {"block_size": 8},
    "peft-road": {"group_size": 8},
    "peft-vblora": {"num_vectors": 16, "vector_length": 8},
    "peft-fourierft": {"n_frequency": 100},
    "peft-vera": {"r": 16},
    "peft-adamss": {"r": 4, "num_subspaces": 2},
}
# parts of these are computed in single precision
SINGLE = {"peft-fourierft", "peft-c3a", "peft-psoft", "peft-tinylora", "peft-adamss", "peft-deft"}
CONTRACT = [
    contract.test_logits_are_finite_and_of_the_right_shape,
    contract.test_a_gradient_reaches_every_parameter_but_the_declared_ones_and_no_other,
    contract.test_the_frozen_prefix_changes_nothing,
    contract.test_cropped_texts_give_the_logits_of_full_ones,
    contract.test_training_on_cropped_texts_is_exact_unless_tokens_are_mixed,
    contract.test_micro_batches_and_recomputation_give_the_whole_batchs_gradient,
    contract.test_texts_in_groups_of_like_lengths_give_what_all_together_give,
    contract.test_saved_weights_restore_the_logits_on_other_classes,
]


def build(name: str, **settings):
    """A variant with sizes that fit the toy backbone."""
    if "config" in settings:
        return FAMILY(**settings)
    given = json.loads(FAMILY.variants[name]["config"]) | SMALL.get(name, {})
    return FAMILY(config=json.dumps(given | settings))


def shortened():
    clip = toy_backbone.load()
    for tower in (clip.image, clip.text):
        tower.blocks = tower.blocks[:2]
    return clip


@pytest.fixture(scope="module")
def short():
    """The toy backbone in float32 with two blocks a tower."""
    return shortened()


@pytest.fixture(scope="module")
def two():
    """The same in float64."""
    return shortened().double()


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(contract, "grafted", lambda name, clip: grafted(clip, build(name)))


def grafted(clip, method, seed=1) -> Model:
    if "PSOFT" in method.config:  # which starts in single precision only
        clip.float()
    model = Model(clip, method, FIT, seed)
    clip.double()
    model.trained.double()
    return model


def plainly(clip, method, seed=1):
    """peft's tuner on a copy of every frozen module, and its layers by site."""
    import peft

    if "PSOFT" in method.config:
        clip.float()
    ops = {**wrappable(clip.image), **wrappable(clip.text)}
    plain = {site: copied(op) for site, op in ops.items()}
    shell, settings = tree(plain), method.parsed(8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("initialisation", seed))
        tuner = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type](
            shell, settings, "default"
        )
    shell.double()
    clip.double()
    layers = {site: shell.get_submodule(site) for site in ops}
    return tuner, {s: layer for s, layer in layers.items() if layer is not plain[s]}


def copied(op):
    if isinstance(op, torch.nn.LayerNorm):
        norm = torch.nn.LayerNorm(op.normalized_shape, op.eps, dtype=op.weight.dtype)
        norm.load_state_dict(op.state_dict())
        return norm
    linear = torch.nn.Linear(*reversed(op.weight.shape), dtype=op.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(op.weight)
        linear.bias.copy_(op.bias)
    return linear


def loss_of(clip, layers):
    """Cross-entropy of the toy batch where each site's layer runs in the frozen module's place."""

    def edit(site, op, x, y, *_):
        return layers[site](x) if site in layers else y

    ids = clip.tokenize([f"a photo of a {name}." for name in FIT.names])
    scores = clip.logit_scale.exp() * cosines(clip.image(images(), edit), clip.text(ids, edit))
    return scores, cross_entropy(scores, LABELS)


def trained(layer):
    """What peft names as the adapter's weights."""
    named = layer.named_parameters()
    return {n: p for n, p in named if n.partition(".")[0] in layer.adapter_layer_names}


@pytest.mark.filterwarnings("ignore:Unsupported layer type", "ignore:Sparse invariant")
@pytest.mark.filterwarnings("ignore:Failed to load the CUDA", "ignore:Setting boft_n_butterfly")
@pytest.mark.parametrize("name", VARIANTS)
def test_features_and_gradients_are_those_of_peft_on_plain_modules(name, two, short, monkeypatch):
    before = {key: value.clone() for key, value in two.state_dict().items()}
    model, (_, layers) = grafted(two, build(name)), plainly(two, build(name))
    close = {"atol": 1e-4, "rtol": 1e-4} if name in SINGLE else {"atol": 1e-10, "rtol": 1e-8}
    assert set(model.edits) == set(layers)
    assert {n for n, _ in model.trained.named_parameters()} == {
        n for n, _ in Model(short, build(name), FIT, 1).trained.named_parameters()
    }  # whether or not peft had to move what it made
    for site, layer in layers.items():
        mine = dict(model.edits[site].layer.named_parameters())
        assert set(mine) == set(trained(layer))
        for each, parameter in trained(layer).items():
            torch.testing.assert_close(mine[each], parameter, atol=1e-6, rtol=1e-6)
    shake(model)
    for site, layer in layers.items():
        for each, parameter in trained(layer).items():
            parameter.data.copy_(model.edits[site].layer.get_parameter(each))
    scores, loss = loss_of(two, layers)
    torch.testing.assert_close(contract.logits(model, FIT, images()), scores, **close)
    loss.backward()
    torch.testing.assert_close(gradients(batch(model)), loss.detach(), **close)
    for site, layer in layers.items():
        for each, parameter in trained(layer).items():
            mine = model.edits[site].layer.get_parameter(each)
            torch.testing.assert_close(mine.grad, parameter.grad, **close)
    grads = [p.grad for p in model.parameters()]
    model.trained.zero_grad()
    monkeypatch.setattr(Proxy, "forward", lambda self, x: F.linear(x, self.weight, self.bias))
    gradients(batch(model))
    for one, other in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, **close)
    assert all(torch.equal(value, before[key]) for key, value in two.state_dict().items())
    assert not any(p.requires_grad for p in two.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_fit_moves_the_layers_and_leaves_the_towers_as_they_were(name, short):
    before = {key: value.clone() for key, value in short.state_dict().items()}
    method = Configured("peft", replace(build(name), batch_size=4))
    settings = Engine(max_steps=2, precision="bf16", crop_scale=(0.5, 1.0))
    record, _, model = execute(prepared(short, method, "base2new", 2, 1, settings))
    assert record.status == "done", record.error
    assert record.provenance["versions"]["peft"]
    assert any(not torch.equal(p, q) for p, q in zip(
        model.parameters(), Model(short, method.value, model.classes, 1).parameters(), strict=True
    ))  # fmt: skip
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in short.state_dict().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_keeps_the_contract_of_methods(name, two, tmp_path):
    exactly = torch.testing.assert_close

    def nearly(one, other, **ignored):
        exactly(one, other, atol=1e-4, rtol=1e-4)

    for function in CONTRACT:
        with pytest.MonkeyPatch.context() as patch:
            if name in SINGLE:
                patch.setattr(torch.testing, "assert_close", nearly)
            given = {"name": name, "exact": two, "monkeypatch": patch, "tmp_path": tmp_path}
            names = function.__code__.co_varnames[: function.__code__.co_argcount]
            function(**{each: given[each] for each in names})


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_weights_are_those_of_a_model_made_with_another_seed(name, two, tmp_path):
    model, other = grafted(two, build(name)), grafted(two, build(name), seed=7)
    shake(model)
    model.save(tmp_path / "weights.safetensors")
    other.load(tmp_path / "weights.safetensors")
    for classes in (FIT, contract.OTHER):
        first, second = (contract.logits(each, classes, images()) for each in (model, other))
        assert torch.equal(first, second)


DROPOUTS = [
    {"peft_type": "LORA", "r": 4, "lora_dropout": 0.3},
    {"peft_type": "LORA", "r": 4, "lora_dropout": 0.3, "use_dora": True},
    {"peft_type": "VERA", "r": 8, "vera_dropout": 0.3},
    {"peft_type": "DELORA", "r": 4, "module_dropout": 0.3},
    {"peft_type": "RANDLORA", "r": 4, "randlora_dropout": 0.3},
    {"peft_type": "GRALORA", "r": 4, "gralora_dropout": 0.3},
    {"peft_type": "HIRA", "r": 4, "hira_dropout": 0.3},
    {"peft_type": "MISS", "r": 4, "miss_dropout": 0.3},
]


@pytest.mark.parametrize("given", DROPOUTS, ids=lambda given: " ".join(map(str, given.values())))
def test_dropout_is_the_steps_whatever_the_micro_batch_or_the_global_seed(given, two):
    model = grafted(two, build("", config=json.dumps(given)))
    shake(model)
    found = []
    for step, chunks in ((0, Chunks()), (0, Chunks(3, 2, checkpointing=True)), (1, Chunks())):
        torch.manual_seed(len(found))
        model.trained.zero_grad()
        loss = gradients(batch(model, step, chunks))
        found.append([loss, *(p.grad for p in model.parameters())])
    for one, other in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)
    assert (found[0][0] - found[2][0]).abs() > 1e-6


def test_adaloras_loss_and_budget_are_pefts_own(two):
    method = build("peft-adalora", tfinal=2)
    model, (tuner, layers) = grafted(two, method), plainly(two, method)
    mine = torch.optim.AdamW(model.parameters(), lr=0.01)
    theirs = [p for layer in layers.values() for p in trained(layer).values()]
    optimiser = torch.optim.AdamW(theirs, lr=0.01)
    for step in range(8):
        found = method.step(TrainingStep(batch(model, step), mine, 0.01, step, 8))
        optimiser.zero_grad()
        tuner.model.forward = lambda: type("Output", (), {"loss": loss_of(two, layers)[1]})()
        loss = tuner.forward().loss
        loss.backward()
        optimiser.step()
        tuner.update_and_allocate(step)
        torch.testing.assert_close(found, loss.detach(), atol=1e-9, rtol=1e-9)
    for site, layer in layers.items():
        for each, parameter in trained(layer).items():
            own = model.edits[site].layer.get_parameter(each)
            torch.testing.assert_close(own, parameter, atol=1e-8, rtol=1e-8)
    kept = sum(int(p.count_nonzero()) for n, p in model.trained.named_parameters() if "lora_E" in n)
    assert kept == 2 * len(layers)


PARAMETERS = {
    "peft-lora": 491_520,
    "peft-rslora": 491_520,
    "peft-dora": 552_960,
    "peft-adalora": 491_904,
    "peft-vera": 86_016,
    "peft-ia3": 61_440,
    "peft-oft": 92_160,
    "peft-boft": 307_200,
    "peft-hra": 245_760,
    "peft-loha": 983_040,
    "peft-lokr": 64_512,
    "peft-fourierft": 96_000,
    "peft-waveft": 9_600,
    "peft-c3a": 638_976,
    "peft-miss": 245_760,
    "peft-bone": 245_760,
    "peft-shira": 491_520,
    "peft-randlora": 1_339_392,
    "peft-road": 61_440,
    "peft-vblora": 557_056,
    "peft-delora": 491_616,
    "peft-gralora": 491_520,
    "peft-hira": 491_520,
    "peft-psoft": 1_344,
    "peft-unilora": 256,
    "peft-tinylora": 6_144,
    "peft-deft": 491_520,
    "peft-beft": 61_440,
    "peft-adamss": 63_360,
    "peft-peanut": 491_520,
    "peft-supertuning": 408_912,
    "peft-ln_tuning": 61_440,
}


@pytest.fixture(scope="module")
def vit_b16():
    return backbone.load("ViT-B-16-quickgelu:random")


@pytest.mark.parametrize("name", VARIANTS)
def test_trainable_parameters_on_vit_b16_are_pefts(name, vit_b16, monkeypatch):
    monkeypatch.setattr("harness.towers.wrapped.Wrapped.check", lambda *given: None)
    model = Model(vit_b16, FAMILY(**FAMILY.variants[name]), FIT, seed=1)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_sites_are_chosen_by_towers_lists_patterns_and_layers(two):
    def sites(towers="both", **settings):
        given = json.dumps({"peft_type": "LORA", "r": 2, **settings})
        return sorted(Model(two, FAMILY(config=given, towers=towers), FIT, seed=1).edits)

    assert sites("text", target_modules=["fc2"]) == ["text.blocks.0.fc2", "text.blocks.1.fc2"]
    assert sites(target_modules=r"image\.blocks\.1\.(q|fc1)") == [
        "image.blocks.1.fc1", "image.blocks.1.q",
    ]  # fmt: skip
    last = {"layers_to_transform": [1], "layers_pattern": "blocks", "target_modules": ["v"]}
    assert sites(**last) == ["image.blocks.1.v", "text.blocks.1.v"]
    assert len(sites(target_modules="all-linear")) == 2 * 2 * 6


def test_a_configuration_is_json_on_the_command_line_whether_or_not_python_can_read_it():
    plugin = PLUGINS.plugins["methods"]["peft"]
    for text in ('{"peft_type": "LORA", "r": 3}', '{"peft_type": "LORA", "use_dora": true}'):
        method, _ = config.build(plugin, [config.read_set(f"peft.config={text}")])
        assert json.loads(method.config) == json.loads(text)
        method.check()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "no JSON"),
        ("[]", "must be JSON such as"),
        ('{"r": 4}', "must be JSON such as"),
        ({"peft_type": "lora"}, "Did you mean 'LORA'"),
        ({"peft_type": 3}, "unknown peft_type '3'"),
        ({"peft_type": "LORA", "rank": 4}, "unknown setting of peft's LORA 'rank'"),
        ({"peft_type": "LORA", "lora_alhpa": 4}, "Did you mean 'lora_alpha'"),
        ({"peft_type": "LORA", "r": "4"}, "r must be a number"),
        ({"peft_type": "LORA", "r": True}, "r must be a number"),
        ({"peft_type": "LORA", "use_dora": "no"}, "use_dora must be true or false"),
        ({"peft_type": "PREFIX_TUNING"}, "is no layer"),
        ({"peft_type": "P_TUNING"}, "is no layer"),
        ({"peft_type": "XLORA"}, "is no layer"),
        ({"peft_type": "PVERA"}, "draws from the global generator"),
        ({"peft_type": "LILY"}, "depends on its neighbours"),
        ({"peft_type": "OSF"}, "a copy of the frozen weights"),
        ({"peft_type": "LORA", "bias": "lora_only"}, "frozen towers' biases"),
        ({"peft_type": "LORA", "modules_to_save": ["ln1"]}, "copies of frozen modules"),
        ({"peft_type": "LORA", "trainable_token_indices": [3]}, "no embedding"),
        ({"peft_type": "LORA", "use_qalora": True}, "not quantised"),
        ({"peft_type": "LORA", "inference_mode": True}, "nothing would be trained"),
        ({"peft_type": "LORA", "loftq_config": {"loftq_bits": 4}}, "nested settings"),
        ({"peft_type": "LORA", "monteclora_config": {}}, "nested settings"),
        *(
            ({"peft_type": "LORA", "init_lora_weights": start}, "such a start")
            for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "eva")
        ),
        ({"peft_type": "LOHA", "rank_dropout": 0.1}, "draws from the global generator"),
        ({"peft_type": "LOKR", "module_dropout": 0.1}, "draws from the global generator"),
        ({"peft_type": "BOFT", "boft_dropout": 0.1}, "draws from the global generator"),
        ({"peft_type": "OFT", "module_dropout": 0.1}, "draws from the global generator"),
        ({"peft_type": "BOFT", "boft_n_butterfly_factor": 2}, "CUDA"),
        ({"peft_type": "ADALORA", "total_step": 9}, "number of steps of the fit"),
        ({"peft_type": "ADALORA", "init_r": 4, "target_r": 4}, "target_r < init_r"),
        ({"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 9000}, "tinit"),
    ],
)
def test_what_cannot_be_is_refused_while_planning(given, said):
    text = given if isinstance(given, str) else json.dumps(given)
    with pytest.raises(HarnessError, match=said):
        FAMILY(config=text).check()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"peft_type": "LORA", "target_modules": ["attention"]}, "attention"),
        ({"peft_type": "LORA", "target_modules": ["ln1"]}, "not supported"),
        ({"peft_type": "LORA", "lora_dropout": 1.0}, "below 1"),
        ({"peft_type": "C3A", "block_size": 7}, "block"),
    ],
)
def test_what_the_backbone_does_not_allow_is_refused_when_a_model_is_made(given, said, two):
    with pytest.raises(HarnessError, match=said):
        Model(two, FAMILY(config=json.dumps(given)), FIT, seed=1)


def test_a_start_that_writes_into_the_frozen_weights_is_refused_and_the_tower_stays(
    two, monkeypatch
):
    monkeypatch.setattr("harness.methods.peft._check_fields", lambda *given: None)
    before = {key: value.clone() for key, value in two.state_dict().items()}
    for start in ("olora", "pissa_niter_4"):
        given = json.dumps({"peft_type": "LORA", "r": 2, "init_lora_weights": start})
        clip = toy_backbone.load()
        with pytest.raises(HarnessError, match="write into the frozen weights"):
            Model(clip, FAMILY(config=given), FIT, seed=1)
        kept = toy_backbone.load().state_dict()
        assert all(torch.equal(value, kept[key]) for key, value in clip.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in two.state_dict().items())


@pytest.mark.parametrize("kind", ["PVERA", "LILY"])
def test_a_type_that_draws_or_looks_at_other_rows_is_found_by_its_layers(kind, two, monkeypatch):
    monkeypatch.setitem(FAMILY.variants, "peft-more", {"config": json.dumps({"peft_type": kind})})
    with pytest.raises(HarnessError, match=r"draws from a global|depend on other"):
        Model(two, FAMILY(config=json.dumps({"peft_type": kind, "r": 4})), FIT, seed=1)
