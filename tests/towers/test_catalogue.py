"""Every pair of open_clip's list is accepted or refused by its configuration alone."""

import importlib.util
import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from harness.errors import HarnessError
from harness.runs.remarks import _activation
from harness.towers import pairs
from harness.towers.catalogue import Unloaded, check_gelu, listed


def refused(check, *of) -> str:
    try:
        check(*of)
    except HarnessError as error:
        return str(error)
    return ""


def test_of_196_pairs_28_have_the_other_gelu():
    pairs = open_clip.list_pretrained()
    gelu = {pair: said for pair in pairs if (said := refused(check_gelu, *pair))}
    assert (len(pairs), len(gelu)) == (196, 28)
    for (model, pretrained), said in gelu.items():
        _, _, twin = said.partition("Use ")
        if not twin:
            assert model == "roberta-ViT-B-32" or "No model" in said
            continue
        other = twin.rstrip(".").split(":")
        assert tuple(other) in pairs
        assert refused(check_gelu, *other) == ""
        assert other[1] == pretrained


def test_weights_in_a_file_have_the_gelu_that_the_configuration_beside_them_says(tmp_path):
    """A file alone does not say it."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    for model in ("ViT-B-16", "ViT-B-16-quickgelu"):
        assert refused(check_gelu, model, str(file)) == ""
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    assert f"Use ViT-B-16-quickgelu:{file}" in refused(check_gelu, "ViT-B-16", str(file))
    assert refused(check_gelu, "ViT-B-16-quickgelu", str(file)) == ""
    config.write_text(json.dumps({"model_cfg": {}}))
    assert f"Use ViT-B-16:{file}" in refused(check_gelu, "ViT-B-16-quickgelu", str(file))


def test_where_nothing_says_the_gelu_of_a_file_the_plan_names_the_one_that_is_computed(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"logit_scale": torch.zeros(())}, file)
    (said,) = _activation(f"ViT-B-16:{file}")
    assert "GELU is computed, and model.safetensors does not say" in said
    assert "choose ViT-B-16-quickgelu" in said
    for silent in ("emoji-mini", "ViT-B-16:random", f"ViT-bigG-14-worldwide:{file}", "local-dir:x"):
        assert _activation(silent) == []


@pytest.mark.parametrize(
    ("name", "image", "text", "images"),
    [
        ("ViT-B-16-SigLIP:webli", "12x768, all sites", "bidirectional, pooled at last",
         "224 x 224, both sides to size, bicubic"),
        ("RN50-quickgelu:openai", "features alone", "causal, pooled at argmax",
         "224 x 224, short side to size, bicubic, then the centre"),
        ("EVA02-B-16:merged2b_s8b_b131k", "blocks, norms, attention", "causal, pooled at argmax",
         "224 x 224, short side"),
        ("coca_ViT-B-32:laion2b_s13b_b90k", "all sites", "causal, pooled at class", "224 x 224"),
        ("MobileCLIP-S1:datacompdr", "features alone", "bidirectional", "256 x 256, short side"),
    ],
)  # fmt: skip
def test_a_listed_backbone_says_what_its_towers_are(name, image, text, images):
    ((found, it),) = listed(name)
    assert found == name
    assert isinstance(it, Unloaded)
    about = it.about()
    assert image in about["image tower"]
    assert text in about["text tower"]
    assert images in about["images"]


@pytest.fixture
def without_transformers(monkeypatch):
    usual = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name, *more: None if name == "transformers" else usual(name, *more),
    )  # fmt: skip


@pytest.mark.slow
def test_160_pairs_are_accepted_without_transformers_and_8_name_its_extra(without_transformers):
    found = dict(listed())
    accepted = [it for it in found.values() if isinstance(it, Unloaded)]
    refusals = [it for it in found.values() if not isinstance(it, Unloaded)]
    extra = [said for said in refusals if "'vlm-peft-harness[hf]'" in said]
    assert (len(found), len(accepted), len(extra), len(refusals)) == (196, 160, 8, 36)
    assert all(it.parameters > 10_000_000 for it in accepted)


def test_what_is_not_installed_is_named_with_its_extra(without_transformers):
    for ask in (lambda: pairs.tokenizer("ViT-B-16-SigLIP"),
                lambda: pairs.model("xlm-roberta-base-ViT-B-32", "random")):  # fmt: skip
        assert "pip install 'vlm-peft-harness[hf]'" in refused(ask)
