"""Weights of transformers' CLIPModel and SiglipModel under the names of open_clip."""

import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from harness.errors import HarnessError

MARKS = {  # a weight that models of one kind alone have
    "vision_model.embeddings.class_embedding": "clip",
    "vision_model.head.probe": "siglip",
}
IMAGE, TEXT = "vision_model.embeddings.", "text_model.embeddings."
ALIKE = {  # in both kinds
    "logit_scale": "logit_scale",
    TEXT + "token_embedding.weight": "text.token_embedding.weight",
    TEXT + "position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm.weight": "text.ln_final.weight",
    "text_model.final_layer_norm.bias": "text.ln_final.bias",
}
OUTSIDE = {  # of the blocks
    "clip": ALIKE | {
        "visual_projection.weight": "visual.proj",
        "text_projection.weight": "text.text_projection",
        IMAGE + "class_embedding": "visual.class_embedding",
        IMAGE + "patch_embedding.weight": "visual.conv1.weight",
        IMAGE + "position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # so spelled there
        "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
        "vision_model.post_layernorm.weight": "visual.ln_post.weight",
        "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    },
    "siglip": ALIKE | {
        "logit_bias": "logit_bias",
        "text_model.head.weight": "text.text_projection.weight",
        "text_model.head.bias": "text.text_projection.bias",
        IMAGE + "patch_embedding.weight": "visual.trunk.patch_embed.proj.weight",
        IMAGE + "patch_embedding.bias": "visual.trunk.patch_embed.proj.bias",
        IMAGE + "position_embedding.weight": "visual.trunk.pos_embed",
        "vision_model.post_layernorm.weight": "visual.trunk.norm.weight",
        "vision_model.post_layernorm.bias": "visual.trunk.norm.bias",
        "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    },
}  # fmt: skip
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTED = "position_ids"  # a buffer of the numbers of positions
POOL = {  # of SigLIP's attention pooling
    "attention.out_proj": "proj", "layernorm": "norm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
HEAD = re.compile(r"vision_model\.head\.(.+?)[._](weight|bias)")
OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
TIMM = {
    "self_attn.out_proj": "attn.proj", "layer_norm1": "norm1", "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
BLOCKS = {  # of each kind and tower: where they are, the names of their parts, and of q, k and v
    ("clip", "vision"): ("visual.transformer.resblocks", OPEN_CLIP, "attn.in_proj_"),
    ("clip", "text"): ("text.transformer.resblocks", OPEN_CLIP, "attn.in_proj_"),
    ("siglip", "vision"): ("visual.trunk.blocks", TIMM, "attn.qkv."),
    ("siglip", "text"): ("text.transformer.resblocks", OPEN_CLIP, "attn.in_proj_"),
}


def kind_of(file: Path) -> str | None:
    """`clip` or `siglip` if a safetensors file holds such a model of transformers, else None."""
    with safetensors.safe_open(str(file), "pt") as opened:
        names = set(opened.keys())
    return next((kind for mark, kind in MARKS.items() if mark in names), None)


def renamed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The weights of a model of transformers as open_clip has them.

    Raises:
        HarnessError: a weight that no model of the kind has, or a part of a packed one is missing.
    """
    found = dict[str, Tensor]()
    packed = dict[str, dict[str, Tensor]]()
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS and not name.endswith(COUNTED):
            raise HarnessError(f"{name} is of {tensor.dtype}; weights must be floats of 16 bits.")
        block, head = BLOCK.fullmatch(name), HEAD.fullmatch(name)
        if name in OUTSIDE[kind]:
            to = OUTSIDE[kind][name]
            found[to] = _shaped(to, tensor)
        elif block is not None:
            tower, number, part, last = block.groups()
            where, names, triple = BLOCKS[kind, tower]
            if part in names:
                found[f"{where}.{number}.{names[part]}.{last}"] = tensor
            else:
                into = packed.setdefault(f"{where}.{number}.{triple}{last}", {})
                into[part] = tensor
        elif kind == "siglip" and head is not None:
            found |= _pooled(head[1], head[2], tensor)
        elif not name.endswith(COUNTED):
            raise _unknown(name, kind)
    for name, parts in packed.items():
        whole = [f"self_attn.{each}_proj" for each in "qkv"]
        if set(parts) != set(whole):
            raise HarnessError(f"of {name} the weights have {', '.join(sorted(parts))} alone.")
        found[name] = torch.cat([parts[each] for each in whole])
    return found


def _shaped(name: str, tensor: Tensor) -> Tensor:
    """As open_clip's weight of this name is."""
    if name in ("visual.proj", "text.text_projection"):
        return tensor.T.contiguous()
    if name.startswith("logit_"):
        return tensor.reshape(())
    return tensor[None] if name == "visual.trunk.pos_embed" else tensor


def _pooled(part: str, last: str, tensor: Tensor) -> dict[str, Tensor]:
    """A weight of the attention pooling, whose query is made apart from keys and values."""
    home = "visual.trunk.attn_pool"
    if part == "attention.in_proj":
        width = len(tensor) // 3
        return {f"{home}.q.{last}": tensor[:width], f"{home}.kv.{last}": tensor[width:]}
    if part not in POOL:
        raise _unknown(f"vision_model.head.{part}.{last}", "siglip")
    return {f"{home}.{POOL[part]}.{last}": tensor}


def _unknown(name: str, kind: str) -> HarnessError:
    return HarnessError(f"the weights have {name!r}, which no {kind} model of transformers has.")


def block_counts(file: Path) -> dict[str, int]:
    """How many blocks of each tower a file of transformers holds."""
    counts = {"vision": 0, "text": 0}
    with safetensors.safe_open(str(file), "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            block = BLOCK.fullmatch(name)
            if block is not None:
                counts[block[1]] = max(counts[block[1]], int(block[2]) + 1)
    return counts
