"""Folders in the layout of transformers, written from models of open_clip by a list of names."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.towers import kinds

SEEN, READ = "vision_model.embeddings.", "text_model.embeddings."
ALIKE = {
    "logit_scale": "logit_scale",
    READ + "token_embedding.weight": "text.token_embedding.weight",
    READ + "position_embedding.weight": "text.positional_embedding",
}
PARTS = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
TIMM = {
    "self_attn.out_proj": "attn.proj", "layer_norm1": "norm1", "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
CLIP = {
    "model_type": "clip", "projection_dim": 36,
    "vision_config": {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2,
                      "num_attention_heads": 3, "image_size": 48, "patch_size": 16,
                      "hidden_act": "gelu"},
    "text_config": {"hidden_size": 40, "intermediate_size": 160, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "vocab_size": 3014, "max_position_embeddings": 24,
                    "hidden_act": "gelu", "eos_token_id": 2},
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip",
    "vision_config": {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2,
                      "num_attention_heads": 4, "image_size": 32, "hidden_act": "gelu"},
    "text_config": {"hidden_size": 40, "intermediate_size": 160, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "vocab_size": 3014, "max_position_embeddings": 24,
                    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "projection_size": 48},
}  # fmt: skip
SHORTEST = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}, "resample": 2,
            "image_mean": [0.5, 0.4, 0.3], "image_std": [0.3, 0.25, 0.2]}  # fmt: skip
SQUASH = {"size": {"height": 32, "width": 32}}


def clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state of open_clip's CLIP under transformers' names."""
    made = {theirs: state[ours] for theirs, ours in ALIKE.items()}
    made["visual_projection.weight"] = state["visual.proj"].T.contiguous()
    made["text_projection.weight"] = state["text.text_projection"].T.contiguous()
    made[SEEN + "class_embedding"] = state["visual.class_embedding"]
    made[SEEN + "patch_embedding.weight"] = state["visual.conv1.weight"]
    made[SEEN + "position_embedding.weight"] = state["visual.positional_embedding"]
    made[SEEN + "position_ids"] = torch.arange(5)[None]
    for kind in ("weight", "bias"):
        made[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        made[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        made[f"text_model.final_layer_norm.{kind}"] = state[f"text.ln_final.{kind}"]
    made |= _blocks(state, "vision", "visual.transformer.resblocks", PARTS, "attn.in_proj_")
    return made | _blocks(state, "text", "text.transformer.resblocks", PARTS, "attn.in_proj_")


def siglip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state of open_clip's SigLIP under transformers' names."""
    trunk, pool = "visual.trunk.", "visual.trunk.attn_pool."
    made = {theirs: state[ours] for theirs, ours in ALIKE.items()}
    made["logit_scale"], made["logit_bias"] = made["logit_scale"][None], torch.tensor([-9.0])
    made[SEEN + "position_embedding.weight"] = state[trunk + "pos_embed"][0]
    made["vision_model.head.probe"] = state[pool + "latent"]
    for kind in ("weight", "bias"):
        made[f"{SEEN}patch_embedding.{kind}"] = state[f"{trunk}patch_embed.proj.{kind}"]
        made[f"vision_model.post_layernorm.{kind}"] = state[f"{trunk}norm.{kind}"]
        made[f"text_model.final_layer_norm.{kind}"] = state[f"text.ln_final.{kind}"]
        made[f"text_model.head.{kind}"] = state[f"text.text_projection.{kind}"]
        packed = [state[f"{pool}{part}.{kind}"] for part in ("q", "kv")]
        made[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat(packed)
        for theirs, ours in (("attention.out_proj", "proj"), ("layernorm", "norm"),
                             ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):  # fmt: skip
            made[f"vision_model.head.{theirs}.{kind}"] = state[f"{pool}{ours}.{kind}"]
    made |= _blocks(state, "vision", "visual.trunk.blocks", TIMM, "attn.qkv.")
    return made | _blocks(state, "text", "text.transformer.resblocks", PARTS, "attn.in_proj_")


def _blocks(state, tower: str, home: str, parts: dict[str, str], packed: str) -> dict:
    made = {}
    for i in range(2):
        to, of = f"{tower}_model.encoder.layers.{i}.", f"{home}.{i}."
        for kind in ("weight", "bias"):
            thirds = state[f"{of}{packed}{kind}"].chunk(3)
            for name, third in zip("qkv", thirds, strict=True):
                made[f"{to}self_attn.{name}_proj.{kind}"] = third.clone()
            for theirs, ours in parts.items():
                made[f"{to}{theirs}.{kind}"] = state[f"{of}{ours}.{kind}"]
    return made


def vocabulary(folder: Path) -> None:
    """The embedded backbone's vocabulary as transformers writes CLIP's."""
    tokenizer = kinds.tokenizer()
    ends = dict(zip(tokenizer.all_special_ids, ("<|startoftext|>", "<|endoftext|>"), strict=True))
    words = {ends.get(number, name): number for name, number in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(words))
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")


def write(folder: Path, kind: str) -> torch.nn.Module:
    """A folder of `clip` or `siglip`, and the model of open_clip that it holds."""
    model = kinds.model("plain" if kind == "clip" else "siglip")
    state = clip(model.state_dict()) if kind == "clip" else siglip(model.state_dict())
    save_file({name: tensor.contiguous() for name, tensor in state.items()},
              folder / "model.safetensors")  # fmt: skip
    config, taken = (CLIP, SHORTEST) if kind == "clip" else (SIGLIP, SQUASH)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(taken))
    if kind == "clip":
        vocabulary(folder)
    return model
