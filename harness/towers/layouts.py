"""Weights of transformers' CLIPModel under the names of open_clip."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from harness.errors import HarnessError

MARK = "vision_model.embeddings.class_embedding"
OUTSIDE = {  # of the blocks
    "logit_scale": "logit_scale",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text.text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
}
NORMS = {
    "vision_model.pre_layrnorm": "visual.ln_pre",  # so spelled there
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.final_layer_norm": "text.ln_final",
}
PARTS = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
HEADS = {"vision": 12, "text": 8}  # what a config.json leaves out is transformers' default
TOWERS = {"vision": "visual", "text": "text"}


def is_transformers(file: Path) -> bool:
    """Whether a safetensors file holds transformers' CLIPModel."""
    with safetensors.safe_open(str(file), "pt") as opened:
        return MARK in opened.keys()  # noqa: SIM118


def load_transformers(model: str, file: Path) -> nn.Module:
    """open_clip's model with the weights of a file in transformers' layout.

    Raises:
        HarnessError: the config.json beside it is missing, or its activations or heads, which the
            weights do not show, are not the model's; or the weights are of other shapes.
    """
    created: Any = open_clip.create_model(model, force_custom_text=True, pretrained_text=False)
    _check(model, created, file.parent / "config.json")
    renamed = _renamed(safetensors.torch.load_file(str(file)))
    created.load_state_dict(renamed, strict=True)
    return created


def _check(model: str, created: Any, path: Path) -> None:
    if not path.is_file():
        raise HarnessError(
            f"{path} is missing: weights in the layout of transformers do not say which GELU and "
            "how many heads they were trained with. Put the model's config.json beside them."
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    blocks = {"vision": created.visual.transformer, "text": created.text.transformer}
    for part, transformer in blocks.items():
        said = config.get(f"{part}_config") or {}
        block = transformer.resblocks[0]
        theirs = (said.get("hidden_act", "quick_gelu") == "quick_gelu",
                  said.get("num_attention_heads", HEADS[part]),
                  said.get("layer_norm_eps", 1e-5))  # fmt: skip
        ours = quick, block.attn.num_heads, block.ln_1.eps
        if theirs != ours:
            names = "quick GELU, heads, epsilon of the norms"
            raise HarnessError(
                f"{path} has a {part} tower of ({names}) {theirs}, and {model} computes {ours}: "
                "choose the model of open_clip that has these, with or without -quickgelu."
            )


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict[str, Tensor]()
    packed = dict[str, dict[str, Tensor]]()
    for name, tensor in state.items():
        norm, _, last = name.rpartition(".")
        block = BLOCK.fullmatch(name)
        if name in OUTSIDE:
            found[OUTSIDE[name]] = tensor.T.contiguous() if "projection" in name else tensor
        elif norm in NORMS:
            found[f"{NORMS[norm]}.{last}"] = tensor
        elif block is None:
            if not name.endswith("position_ids"):  # a buffer of counted positions
                raise HarnessError(f"the weights have {name!r}, which no CLIP of open_clip has.")
        else:
            tower, number, part, kind = block.groups()
            prefix = f"{TOWERS[tower]}.transformer.resblocks.{number}."
            if part in PARTS:
                found[f"{prefix}{PARTS[part]}.{kind}"] = tensor
            else:
                into = packed.setdefault(f"{prefix}attn.in_proj_{kind}", {})
                into[part.removeprefix("self_attn.")] = tensor
    for name, parts in packed.items():
        found[name] = torch.cat([parts[f"{each}_proj"] for each in "qkv"])
    return found
