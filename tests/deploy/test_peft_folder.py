"""Folders in peft's own format: peft reads what is written, and what peft wrote is read."""

import importlib.util
import json
import shutil

import pytest
import safetensors
import safetensors.torch
import torch

import harness
from harness.cli.commands import main
from harness.deploy.peft_folder import CONFIG, WEIGHTS, read, write
from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.towers.wrapped import tree, wrappable
from tests.conftest import TOY
from tests.methods import test_contract as contract
from tests.methods.test_contract import FIT, images, logits, shake
from tests.methods.test_peft import VARIANTS, build, copied, shortened

pytestmark = [
    pytest.mark.peft,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra [peft]"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type", "ignore:Sparse invariant"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA", "ignore:Setting boft_n_butterfly"),
]


@pytest.fixture(scope="module")
def short():
    return shortened()


def fitted(clip, name: str, **settings) -> Model:
    model = Model(clip, build(name, **settings), FIT, seed=1)
    shake(model)
    return model


def small(model: Model):
    return logits(model, FIT, images(like=model.clip.logit_scale))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_that_was_written_is_read_as_the_same_model(name, short, tmp_path):
    model = fitted(short, name)
    write(model, tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [CONFIG, WEIGHTS]
    again = read(tmp_path / "out", short, FIT)
    assert torch.equal(small(again), small(model))


@pytest.mark.parametrize("name", ["peft-lora", "peft-vera", "peft-oft"])
def test_peft_loads_the_folder_onto_modules_of_the_sites_names(name, short, tmp_path):
    import peft

    model = fitted(short, name)
    write(model, tmp_path / "out")
    ops = {**wrappable(short.image), **wrappable(short.text)}
    loaded = peft.PeftModel.from_pretrained(
        tree({site: copied(op) for site, op in ops.items()}), str(tmp_path / "out")
    )
    said = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert said["base_model_name_or_path"] == short.name
    site = "text.blocks.1.q"
    x = torch.randn(2, 5, ops[site].weight.shape[1])
    layer = loaded.base_model.model.get_submodule(site)
    torch.testing.assert_close(layer(x), model.edits[site].layer(x))
    assert not torch.equal(layer(x), ops[site](x))


def test_what_peft_saved_itself_is_read(short, tmp_path):
    import peft

    ops = {**wrappable(short.image), **wrappable(short.text)}
    config = peft.LoraConfig(r=3, target_modules=r"image\.blocks\.1\.(q|v)", lora_alpha=5)
    made = peft.get_peft_model(tree({s: copied(op) for s, op in ops.items()}), config)
    with torch.no_grad():
        for name, each in made.named_parameters():
            if "lora_" in name:
                each.normal_()
    made.save_pretrained(str(tmp_path / "theirs"))
    model = read(tmp_path / "theirs", short, FIT)
    assert sorted(model.edits) == ["image.blocks.1.q", "image.blocks.1.v"]
    x = torch.randn(2, 5, ops["image.blocks.1.q"].weight.shape[1])
    theirs = made.base_model.model.get_submodule("image.blocks.1.q")(x)
    torch.testing.assert_close(model.edits["image.blocks.1.q"].layer(x), theirs)


@pytest.mark.parametrize("kind", [{"peft_type": "LORA", "r": 2}, {"peft_type": "UNILORA"}])
def test_one_towers_adapter_is_read_for_that_tower(kind, short, tmp_path):
    method = type(build("peft-lora"))(config=json.dumps(kind), towers="text")
    model = Model(short, method, FIT, seed=1)
    shake(model)
    write(model, tmp_path / "out")
    again = read(tmp_path / "out", short, FIT)
    assert again.edits.keys() == model.edits.keys()
    assert torch.equal(small(again), small(model))


def test_what_peft_does_not_keep_whole_is_refused_and_leaves_no_files(short, tmp_path):
    model = fitted(short, "peft-adalora")
    for name, value in model.trained.state_dict().items():
        if "ranknum" in name:  # as after its budget has fallen
            value.fill_(3)
    with pytest.raises(HarnessError, match=r"does not hold all of this ADALORA: .*ranknum"):
        write(model, tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]


def test_other_methods_and_folders_that_are_not_empty_are_refused(short, tmp_path):
    with pytest.raises(HarnessError, match=r"lora is no layer of peft.*`peft-\*`"):
        write(Model(short, contract.build("lora"), FIT, seed=1), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(HarnessError, match="is there already"):
        write(fitted(short, "peft-lora"), tmp_path / "full")


@pytest.fixture(scope="module")
def written(short, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "lora"
    write(fitted(short, "peft-lora"), folder)
    return folder


def changed(written, folder, state=lambda s: s, **settings):
    """A copy of a folder with other weights or settings."""
    folder.mkdir()
    config = json.loads((written / CONFIG).read_text()) | settings
    (folder / CONFIG).write_text(json.dumps(config))
    kept = safetensors.torch.load_file(written / WEIGHTS)
    safetensors.torch.save_file(state(kept), folder / WEIGHTS)
    return folder


FIRST = "base_model.model.image.blocks.0.q.lora_A.weight"


@pytest.mark.parametrize(
    ("state", "settings", "said"),
    [
        (lambda s: {n: x for n, x in s.items() if n != FIRST}, {}, rf"it lacks {FIRST}"),
        (lambda s: s | {"base_model.model.image.more": torch.ones(1)}, {}, "beyond that, base_mo"),
        (lambda s: s | {FIRST: torch.ones(4, 7)}, {}, r"lora_A.weight is \[4, 7\], and this"),
        (lambda s: s | {FIRST: s[FIRST] * torch.nan}, {}, "numbers that are not finite"),
        (lambda s: s, {"bias": "all"}, "train the frozen towers' biases"),
        (lambda s: s, {"target_modules": ["q_proj"]}, "q_proj"),
        (lambda s: s, {"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        (lambda s: s, {"peft_type": ["LORA"]}, "unknown peft_type"),
        (lambda s: s, {"target_modules": "(("}, "unterminated subpattern"),
        (lambda s: s, {"r": 2}, r"lora_[AB].weight is"),
        (lambda s: s, {"rr": 2}, "'rr'"),
    ],
)
def test_a_folder_that_does_not_fit_says_why(state, settings, said, written, short, tmp_path):
    with pytest.raises(HarnessError, match=said):
        read(changed(written, tmp_path / "other", state, **settings), short, FIT)


def test_pickled_weights_are_not_opened(written, short, tmp_path):
    folder = changed(written, tmp_path / "pickled")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(HarnessError, match="read as safetensors alone"):
        read(folder, short, FIT)
    for text in ("{", "[" * 100_000):
        (folder / CONFIG).write_text(text)
        with pytest.raises(HarnessError, match="is no configuration of peft"):
            read(folder, short, FIT)


PLUGIN = ["--plugin", str(TOY)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results folder of two short fits."""
    folder = tmp_path_factory.mktemp("results")
    harness.run(
        ["peft-lora", "coop"], "few_shot", "toy", shots=2, results=folder, plugins=[str(TOY)],
        settings={"engine.max_steps": 2, "peft-lora.lr": 0.01}, cache_limit=0,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def exported(results, tmp_path_factory):
    """The folder that `export` makes of the first."""
    out = tmp_path_factory.mktemp("exported") / "out"
    asked = ["export", "peft-lora", "--form", "peft", "--out", str(out)]
    assert main([*asked, "--results", str(results), *PLUGIN]) == 0
    return out


def test_an_exported_folder_is_loaded_as_the_fit(results, exported):
    (record,) = (r for r in harness.leaderboard(results).records if "peft" in r.run["method"])
    fit, again = (
        harness.load(record, plugins=[str(TOY)], device="cpu"),
        harness.load_peft(exported, device="cpu"),
    )
    assert (again.class_names, again.run) == (fit.class_names, fit.run)
    x = images(like=fit.model.clip.logit_scale)
    assert torch.equal(again.logits(x), fit.logits(x))
    assert torch.equal(again.logits(x, ["cat", "dog"]), fit.logits(x, ["cat", "dog"]))
    assert torch.equal(harness.load(exported, device="cpu").logits(x), fit.logits(x))
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md", CONFIG, WEIGHTS, "classes.json", "preprocessing.json"
    ]  # fmt: skip
    assert "harness.load(" in (exported / "README.md").read_text()


def test_a_method_that_is_no_layer_of_peft_is_refused_with_the_forms_that_it_has(
    results, tmp_path, capsys
):
    asked = ["export", "coop", "--form", "peft", "--out", str(tmp_path / "out")]
    assert main([*asked, "--results", str(results), *PLUGIN]) == 2
    assert "Choose --form classifier, onnx or pt2." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_is_loaded_with_class_names_and_backbone(exported, tmp_path):
    other = changed(exported, tmp_path / "other")  # the same weights, and nothing said of a fit
    with pytest.raises(HarnessError, match="give class_names and backbone"):
        harness.load_peft(other, ["cat", "dog"])
    model = harness.load_peft(other, ["cat", "dog"], "emoji-mini", device="cpu")
    x = images(like=model.model.clip.logit_scale)
    fit = harness.load_peft(exported, device="cpu")
    assert torch.equal(model.logits(x), fit.logits(x, ["cat", "dog"]))


def test_a_folder_that_says_its_classes_takes_no_others(exported):
    with pytest.raises(HarnessError, match="leave class_names and backbone out"):
        harness.load_peft(exported, ["cat", "dog"])


def test_a_folder_with_truncated_weights_or_of_other_backbone_weights_is_one_sentence(
    exported, tmp_path
):
    cut = shutil.copytree(exported, tmp_path / "cut")
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(HarnessError, match=r"cannot be read: .*read as safetensors alone"):
        harness.load_peft(cut)
    moved = shutil.copytree(exported, tmp_path / "moved")
    with safetensors.safe_open(moved / WEIGHTS, "pt") as file:
        about = file.metadata()
    run = json.loads(about["run"])
    run["fingerprints"]["weights"] = "another"
    state = safetensors.torch.load_file(moved / WEIGHTS)
    safetensors.torch.save_file(state, moved / WEIGHTS, about | {"run": json.dumps(run)})
    with pytest.raises(HarnessError, match=r"fitted on other weights of emoji-mini \(another\)"):
        harness.load_peft(moved, device="cpu")
