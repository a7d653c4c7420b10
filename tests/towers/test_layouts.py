"""Weights in the layout of transformers are those of open_clip under other names."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from harness.errors import HarnessError
from harness.towers import backbone
from tests.towers import theirs

MODEL = "tiny-clip"
CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "patch_size": 16, "head_width": 16},
    "text_cfg": {"width": 40, "heads": 2, "layers": 2},
}
SAID = {
    "vision_config": {"num_attention_heads": 3},
    "text_config": {"num_attention_heads": 2, "hidden_act": "quick_gelu"},
}


@pytest.fixture
def files(tmp_path):
    """A model that open_clip knows, and a folder with its weights in both layouts."""
    (tmp_path / f"{MODEL}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / f"{MODEL}.json")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = open_clip.create_model(MODEL, force_custom_text=True, pretrained_text=False)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    state = model.state_dict()
    save_file(state, tmp_path / "own.safetensors")
    save_file(theirs.clip(state), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SAID))
    yield tmp_path
    open_clip.factory._MODEL_CONFIG_PATHS.remove(tmp_path / f"{MODEL}.json")
    open_clip.factory._rescan_model_configs()
    open_clip.factory._MODEL_CONFIGS.pop(MODEL, None)


def test_the_same_weights_in_either_layout_are_the_same_backbone(files):
    own = backbone.load(f"{MODEL}:{files / 'own.safetensors'}")
    other = backbone.load(f"{MODEL}:{files / 'model.safetensors'}")
    assert other.fingerprint == own.fingerprint


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("vision_config", {"num_attention_heads": 6}),
        ("text_config", {"num_attention_heads": 2, "hidden_act": "gelu"}),
        ("text_config", {"num_attention_heads": 2, "layer_norm_eps": 1e-6}),
    ],
)
def test_what_the_weights_do_not_show_must_agree(files, part, said):
    (files / "config.json").write_text(json.dumps(SAID | {part: said}))
    with pytest.raises(HarnessError, match="activation, heads, epsilon"):
        backbone.load(f"{MODEL}:{files / 'model.safetensors'}")


def test_weights_without_their_config_are_refused(files):
    (files / "config.json").unlink()
    with pytest.raises(HarnessError, match=r"Put the model's config\.json beside them"):
        backbone.load(f"{MODEL}:{files / 'model.safetensors'}")
