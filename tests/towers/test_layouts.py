"""Weights in the layout of transformers are those of open_clip under other names."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from harness.errors import HarnessError
from harness.towers import backbone

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


def theirs(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state of open_clip, written out under transformers' names."""
    made = {"logit_scale": state["logit_scale"]}
    made["visual_projection.weight"] = state["visual.proj"].T.contiguous()
    made["text_projection.weight"] = state["text.text_projection"].T.contiguous()
    seen, read = "vision_model.embeddings.", "text_model.embeddings."
    made[seen + "class_embedding"] = state["visual.class_embedding"]
    made[seen + "patch_embedding.weight"] = state["visual.conv1.weight"]
    made[seen + "position_embedding.weight"] = state["visual.positional_embedding"]
    made[seen + "position_ids"] = torch.arange(5)[None]
    made[read + "token_embedding.weight"] = state["text.token_embedding.weight"]
    made[read + "position_embedding.weight"] = state["text.positional_embedding"]
    for kind in ("weight", "bias"):
        made[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        made[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        made[f"text_model.final_layer_norm.{kind}"] = state[f"text.ln_final.{kind}"]
        for tower, own in (("vision", "visual"), ("text", "text")):
            for i in range(2):
                to = f"{tower}_model.encoder.layers.{i}."
                of = f"{own}.transformer.resblocks.{i}."
                for name, part in zip(
                    "qkv", state[f"{of}attn.in_proj_{kind}"].chunk(3), strict=True
                ):
                    made[f"{to}self_attn.{name}_proj.{kind}"] = part.clone()
                made[f"{to}self_attn.out_proj.{kind}"] = state[f"{of}attn.out_proj.{kind}"]
                made[f"{to}layer_norm1.{kind}"] = state[f"{of}ln_1.{kind}"]
                made[f"{to}layer_norm2.{kind}"] = state[f"{of}ln_2.{kind}"]
                made[f"{to}mlp.fc1.{kind}"] = state[f"{of}mlp.c_fc.{kind}"]
                made[f"{to}mlp.fc2.{kind}"] = state[f"{of}mlp.c_proj.{kind}"]
    return made


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
    save_file(theirs(state), tmp_path / "model.safetensors")
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
