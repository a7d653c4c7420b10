"""A folder as transformers writes it, as a model of open_clip: config, weights, pixels, words."""

import gzip
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
from open_clip import transformer as oc
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from harness.errors import HarnessError
from harness.towers.hf import check_installed
from harness.towers.layouts import block_counts, kind_of, renamed
from harness.towers.processor import pixels
from harness.towers.weights import check_finite, read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
# what transformers leaves out of a config has its default there
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("clip", "vision"): CLIP | {"image_size": 224, "patch_size": 32},
    ("clip", "text"): CLIP
    | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
    ("siglip", "vision"): SIGLIP | {"image_size": 224, "patch_size": 16, "vision_use_head": True},
    ("siglip", "text"): SIGLIP | {"vocab_size": 32000, "max_position_embeddings": 64},
}
WIDE, NARROW = (768, 3072, 12, 12), (512, 2048, 12, 8)
ACTIVATIONS = {"clip": ("quick_gelu", "gelu"), "siglip": ("gelu_pytorch_tanh", "gelu")}


def load(folder: Path) -> tuple[nn.Module, Any]:
    """The model of open_clip that a folder's CLIPModel or SiglipModel is, and its tokenizer.

    Raises:
        HarnessError: another kind of model, sizes that are not those of the weights, or pixels that
            no transform here makes.
    """
    config = read_json(folder / CONFIG)
    kind, file = config.get("model_type"), folder / WEIGHTS
    if kind not in ACTIVATIONS or kind_of(file) != kind:
        raise HarnessError(
            f"{folder / CONFIG} says model_type {kind!r}, and {WEIGHTS} holds "
            f"{kind_of(file) or 'another kind of model'}; supported are "
            f"{' and '.join(ACTIVATIONS)}, with both towers."
        )
    vision, text = (fields(config, kind, part, folder / CONFIG) for part in ("vision", "text"))
    said = {"vision": vision["num_hidden_layers"], "text": text["num_hidden_layers"]}
    if block_counts(file) != said:
        raise HarnessError(
            f"{folder / CONFIG} says {said} blocks, and {WEIGHTS} has {block_counts(file)}."
        )
    make = _clip if kind == "clip" else _siglip
    model = make(vision, text, config)
    model.load_state_dict(renamed(safetensors.torch.load_file(str(file)), kind), strict=True)
    check_finite(model, file)
    taken = asdict(PreprocessCfg()) | pixels(folder, kind, vision["image_size"])
    set_model_preprocess_cfg(model, taken | {"size": vision["image_size"]})
    words = _merged if kind == "clip" else _pieces
    return model, words(folder, text)


def fill(model: Any, name: str, file: Path) -> None:
    """Gives a CLIP of open_clip the weights of a file in transformers' layout.

    Raises:
        HarnessError: the config.json beside it is missing, or its activations or heads, which the
            weights do not show, are not the model's; or it is no CLIP.
    """
    path = file.parent / CONFIG
    if not path.is_file():
        raise HarnessError(
            f"{path} is missing: weights in the layout of transformers do not say which GELU and "
            "how many heads they were trained with. Put the model's config.json beside them."
        )
    if kind_of(file) != "clip" or not isinstance(model.visual, oc.VisionTransformer):
        raise HarnessError(
            f"{file} is in the layout of transformers and no plain CLIP: give its folder, "
            "local-dir:FOLDER, whose config.json says what model it is."
        )
    towers = {"vision": model.visual.transformer, "text": model.text.transformer}
    for part, transformer in towers.items():
        said, block = fields(read_json(path), "clip", part, path), transformer.resblocks[0]
        theirs = said["hidden_act"], said["num_attention_heads"], said["layer_norm_eps"]
        quick = isinstance(block.mlp.gelu, oc.QuickGELU)
        ours = "quick_gelu" if quick else "gelu", block.attn.num_heads, block.ln_1.eps
        if theirs != ours:
            raise HarnessError(
                f"{path} has a {part} tower of (activation, heads, epsilon of the norms) {theirs}, "
                f"and {name} computes {ours}: choose the model of open_clip that has these, with "
                "or without -quickgelu, or give the folder as local-dir:FOLDER."
            )
    model.load_state_dict(renamed(safetensors.torch.load_file(str(file)), "clip"), strict=True)
    check_finite(model, file)


def fields(config: Mapping[str, Any], kind: str, part: str, path: Path) -> dict[str, Any]:
    """What a config.json says of a tower, with the defaults of transformers.

    Raises:
        HarnessError: a field of another type, or a size below 1.
    """
    sizes = NARROW if (kind, part) == ("clip", "text") else WIDE
    default = dict(zip(SIZES, sizes, strict=True)) | DEFAULTS[kind, part]
    old = config.get(f"{part}_config_dict")  # where there is one, it wins
    given = config.get(f"{part}_config") if old is None else old
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise HarnessError(f"{path}: {part}_config must be in braces, not {given!r:.80}.")
    found = {name: given.get(name, value) for name, value in default.items()}
    for name, value in found.items():
        right = type(value) is type(default[name])
        if not right or (isinstance(value, int) and name != "eos_token_id" and value < 1):
            raise HarnessError(
                f"{path}: {part}_config.{name} is {value!r:.80}; expected is something like "
                f"{default[name]!r}."
            )
    if found["hidden_act"] not in ACTIVATIONS[kind]:
        raise HarnessError(
            f"{path}: {part}_config.hidden_act is {found['hidden_act']!r}; supported are "
            f"{' and '.join(ACTIVATIONS[kind])}."
        )
    return found


def _ratio(tower: Mapping[str, Any]) -> float:
    """Of the MLP's width, so that width times ratio, cut to an integer, is exact."""
    width, inner = tower["hidden_size"], tower["intermediate_size"]
    return inner / width if int(width * (inner / width)) == inner else (inner + 0.5) / width


def _words(text: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"],
        "width": text["hidden_size"], "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"], "mlp_ratio": _ratio(text),
        "norm_kwargs": {"eps": text["layer_norm_eps"]},
    }  # fmt: skip


def _clip(vision: Mapping[str, Any], text: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    if vision["hidden_act"] != text["hidden_act"]:
        raise HarnessError(
            f"the towers compute {vision['hidden_act']} and {text['hidden_act']}; a CLIP of "
            "open_clip has one activation."
        )
    end = text["eos_token_id"]  # 2 is written in old configs, and stands for the largest id
    pooled = {} if end in (2, text["vocab_size"] - 1) else {"pool_type": "eos", "eos_id": end}
    return open_clip.CustomTextCLIP(
        config.get("projection_dim", 512),
        {
            "image_size": vision["image_size"], "patch_size": vision["patch_size"],
            "width": vision["hidden_size"], "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": _ratio(vision), "norm_kwargs": {"eps": vision["layer_norm_eps"]},
        },
        _words(text) | pooled,
        quick_gelu=text["hidden_act"] == "quick_gelu",
    )  # fmt: skip


def _siglip(vision: Mapping[str, Any], text: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    def gelu(tower: Mapping[str, Any]) -> dict[str, Any]:
        tanh = tower["hidden_act"] == "gelu_pytorch_tanh"
        return {"approximate": "tanh" if tanh else "none"}

    width = vision["hidden_size"]
    words = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    smallest = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": ""}
    made = open_clip.CustomTextCLIP(
        width, smallest, _words(text) | words | {"act_kwargs": gelu(text)}, init_logit_bias=-10.0
    )
    made.visual.trunk = VisionTransformer(
        img_size=vision["image_size"], patch_size=vision["patch_size"], num_classes=0,
        global_pool="map", embed_dim=width, depth=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"], mlp_ratio=_ratio(vision), class_token=False,
        norm_layer=partial(nn.LayerNorm, eps=vision["layer_norm_eps"]),
        act_layer=partial(nn.GELU, **gelu(vision)),
    )  # fmt: skip
    made.visual.image_size, made.visual.head = (vision["image_size"],) * 2, nn.Sequential()
    return made


def _merged(folder: Path, text: Mapping[str, Any]) -> SimpleTokenizer:
    """CLIP's tokenizer with the folder's byte-pair merges, in the order of its vocabulary."""
    whole, merges, names = folder / "tokenizer.json", folder / "merges.txt", folder / "vocab.json"
    if merges.is_file() and names.is_file():
        lines = merges.read_text(encoding="utf-8").rstrip("\n").split("\n")
        pairs = lines[1:] if lines[0].startswith("#version") else lines
        vocabulary = read_json(names)
    elif whole.is_file():
        inner = read_json(whole).get("model") or {}
        given = inner.get("merges") or []
        pairs = [each if isinstance(each, str) else " ".join(each) for each in given]
        vocabulary = inner.get("vocab") or {}
    else:
        raise HarnessError(f"{folder} has neither tokenizer.json nor vocab.json and merges.txt.")
    with tempfile.TemporaryDirectory() as made:
        packed = Path(made) / "merges.gz"
        packed.write_bytes(gzip.compress("\n".join(["#version: 0.2", *pairs]).encode()))
        tokenizer = SimpleTokenizer(str(packed), context_length=text["max_position_embeddings"])
    ends = tokenizer.all_special_ids
    other = [name for name, id in tokenizer.encoder.items()
             if id not in ends and vocabulary.get(name) != id]  # fmt: skip
    if other or tokenizer.vocab_size != text["vocab_size"] or len(vocabulary) != text["vocab_size"]:
        raise HarnessError(
            f"the vocabulary of {folder} is not CLIP's byte-pair vocabulary of "
            f"{text['vocab_size']:,} tokens in the order of its merges."
        )
    return tokenizer


def _pieces(folder: Path, text: Mapping[str, Any]) -> HFTokenizer:
    """The folder's own tokenizer, on lower-case texts without punctuation, as SigLIP's are."""
    return folder_tokenizer(folder, text["max_position_embeddings"], clean="canonicalize")


def folder_tokenizer(folder: Path, length: int, **settings: Any) -> HFTokenizer:
    """A tokenizer of transformers from the files of a folder: no code of theirs is run, and nothing
    is fetched."""
    check_installed(f"the tokenizer of {folder}")
    return HFTokenizer(
        str(folder), context_length=length, trust_remote_code=False, local_files_only=True,
        **settings,
    )  # fmt: skip
