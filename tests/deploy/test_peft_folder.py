"""Folders in peft's own format: peft reads what is written, and what peft wrote is read."""

import importlib.util
import json

import pytest
import safetensors.torch
import torch

from harness.deploy.peft_folder import CONFIG, WEIGHTS, read, write
from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.towers.wrapped import tree, wrappable
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


def test_one_towers_adapter_is_read_for_that_tower(short, tmp_path):
    config = json.dumps({"peft_type": "LORA", "r": 2})
    method = type(build("peft-lora"))(config=config, towers="text")
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
    (folder / CONFIG).write_text("{")
    with pytest.raises(HarnessError, match="is no configuration of peft"):
        read(folder, short, FIT)
