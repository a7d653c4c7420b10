"""Backbone names to models: open_clip's own, a hub's, a folder's, and the embedded one.

Weights are read as safetensors or through PyTorch's restricted loader for open_clip's own tags;
nothing from a user's folder is unpickled.
"""

import ctypes
import platform
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip import transformer as oc
from open_clip.factory import _find_checkpoint_in_dir
from torch import nn

from harness.errors import HarnessError
from harness.randomness import seed_of
from harness.towers.openclip import Clip

NOT_HERE = "not downloaded"  # the fingerprint of weights that a dry run does without
EMBEDDED = Path(__file__).parents[1] / "backbones"
IMAGENET: list[str] = open_clip.IMAGENET_CLASSNAMES  # in the order of the labels
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's mallopt


def load(name: str, device: str | torch.device = "cpu", weights: bool = True) -> Clip:
    """The model that a backbone name stands for.

    Without `weights` nothing is downloaded: a model whose weights are not here has random ones, and
    the fingerprint `NOT_HERE`.

    `emoji-mini` and other folders of `harness/backbones`, `local-dir:FOLDER`, `hf-hub:OWNER/REPO`,
    or an open_clip pair `MODEL:PRETRAINED`, where PRETRAINED is a tag, a .safetensors file or
    `random` (seeded random weights, for tests and timing).

    Raises:
        HarnessError: an unknown name, weights that would have to be unpickled, weights in the wrong
            configuration, or towers that are not ViT and TextTransformer.
    """
    if torch.device(device).type == "cpu":
        _keep_freed_memory()
    embedded = EMBEDDED / name
    model_name = f"local-dir:{embedded}" if _is_embedded(name) else name
    schema, _, rest = model_name.partition(":")
    if not weights and not _here(schema, rest):
        if schema == "hf-hub":
            raise HarnessError(f"{name} is not on this machine, and --dry-run downloads nothing.")
        clip = load(f"{schema}:random", device)
        clip.name, clip.fingerprint = name, NOT_HERE
        return clip
    if schema not in ("local-dir", "hf-hub"):
        return Clip(_open_clip(schema, rest), _tokenizer(schema), name).to(device)
    merges = None
    if schema == "local-dir":
        merges = _check_folder(Path(rest).resolve())
        model_name = f"local-dir:{Path(rest).resolve()}"
    try:
        model = open_clip.create_model(
            model_name, force_custom_text=True, require_pretrained=True, pretrained_text=False
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise HarnessError(f"backbone {name!r} cannot be loaded: {error}") from error
    _check_towers(model, name)
    return Clip(model, _tokenizer(model_name, merges), name).to(device)


def names() -> dict[str, tuple[str, str]]:
    """Backbones that need no download, and how to name the others: what each is, and its source."""
    embedded = {
        path.parent.name: (
            "embedded: a small CLIP, for tests and the default",
            f"harness/backbones/{path.parent.name}",
        )
        for path in sorted(EMBEDDED.glob("*/open_clip_config.json"))
    }
    return embedded | {
        "MODEL:PRETRAINED": ("such as ViT-B-16-quickgelu:openai", "open_clip's list"),
        "MODEL:FILE.safetensors": ("an open_clip model, your own weights", "your file"),
        "MODEL:random": ("seeded random weights, for tests and timing", "nothing is loaded"),
        "hf-hub:OWNER/REPO": ("an open_clip repository", "the hub"),
        "local-dir:FOLDER": ("open_clip_config.json and safetensors weights", "your folder"),
    }


def _here(model: str, pretrained: str) -> bool:
    """Whether loading needs no download, as far as open_clip's cache shows."""
    if model == "hf-hub":
        return isinstance(try_to_load_from_cache(pretrained, "open_clip_config.json"), str)
    tag = open_clip.get_pretrained_cfg(model, pretrained) or {}
    if not tag:  # a folder, a file, random weights; or nothing, which is refused elsewhere
        return True
    repository, _, file = tag.get("hf_hub", "").rpartition("/")
    files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    cached = [
        isinstance(try_to_load_from_cache(repository, each), str) for each in files if repository
    ]
    url = tag.get("url", "")
    downloaded = Path("~/.cache/clip", url.rpartition("/")[2]).expanduser()
    return any(cached) or (bool(url) and downloaded.is_file())


def _keep_freed_memory() -> None:
    """From now on this process keeps the memory of freed tensors for the next ones.

    glibc gives a large block back to the kernel when it is freed, and every step takes its pages
    anew: up to a third of the time of a step of ViT-B/16. Nothing happens with other C libraries.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, -1)


def _is_embedded(name: str) -> bool:
    return ":" not in name and (EMBEDDED / name / "open_clip_config.json").is_file()


def _open_clip(model: str, pretrained: str) -> nn.Module:
    if model not in open_clip.list_models():
        allowed = ", ".join(k for k, (what, _) in names().items() if what.startswith("embedded"))
        raise HarnessError(
            f"unknown backbone {model!r}. Allowed: {allowed}, local-dir:FOLDER, "
            f"hf-hub:OWNER/REPO or MODEL:PRETRAINED with a model of `open_clip.list_models()`."
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not pretrained:
        raise HarnessError(
            f"backbone {model!r} needs its weights: {model}:PRETRAINED with one of "
            f"{', '.join(tags) or 'no tag'}, a .safetensors file or random."
        )
    if pretrained == "random":
        with torch.random.fork_rng():
            torch.manual_seed(seed_of("random backbone", model))
            created = open_clip.create_model(model, force_custom_text=True, pretrained_text=False)
        _check_towers(created, model)
        return created
    if pretrained not in tags and not (
        pretrained.endswith(".safetensors") and Path(pretrained).is_file()
    ):
        raise HarnessError(
            f"backbone {model}:{pretrained} names neither a tag of {model} "
            f"({', '.join(tags) or 'it has none'}) nor an existing .safetensors file."
        )
    tag = open_clip.get_pretrained_cfg(model, pretrained) or {}
    quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    if tag and bool(tag.get("quick_gelu", False)) != quick:
        other = model.removesuffix("-quickgelu") if quick else f"{model}-quickgelu"
        raise HarnessError(
            f"the weights {pretrained!r} were trained with the other GELU than {model!r} computes, "
            f"which costs accuracy silently. Use {other}:{pretrained}."
        )
    try:
        created = open_clip.create_model(model, pretrained, force_custom_text=True)
    except (RuntimeError, OSError) as error:
        raise HarnessError(
            f"the weights of {model}:{pretrained} cannot be loaded: {error}"
        ) from error
    _check_towers(created, model)
    return created


def _check_folder(folder: Path) -> Path | None:
    """Refuses what would be unpickled; returns the folder's own BPE merges file, if it has one."""
    if not (folder / "open_clip_config.json").is_file():
        raise HarnessError(f"local-dir:{folder} has no open_clip_config.json.")
    if not str(_find_checkpoint_in_dir(folder)).endswith(".safetensors"):
        raise HarnessError(
            f"the weights that open_clip would take from local-dir:{folder} are no .safetensors "
            "file. Other formats are not loaded, because reading them can execute code: convert "
            "them with safetensors.torch.save_file."
        )
    merges = folder / "bpe_merges.txt.gz"
    return merges if merges.is_file() else None


def _tokenizer(model: str, merges: Path | None = None) -> Any:
    # open_clip resolves a relative merges path against the working directory: pass it absolute
    return open_clip.get_tokenizer(model, **({"bpe_path": str(merges)} if merges else {}))


def _check_towers(model: Any, name: str) -> None:
    visual: Any = model.visual
    text: Any = getattr(model, "text", None)
    if not isinstance(visual, oc.VisionTransformer):
        raise HarnessError(
            f"the image tower of {name!r} is a {type(visual).__name__}; only open_clip's "
            "VisionTransformer (ViT-*) is supported. Choose a ViT backbone."
        )
    causal = isinstance(text, oc.TextTransformer) and text.attn_mask is not None
    if not causal or text.cls_emb is not None or text.pool_type != "argmax":
        raise HarnessError(
            f"the text tower of {name!r} is not a causal TextTransformer pooled at the end-of-text "
            "token, the only kind supported. Choose a CLIP backbone such as ViT-B-16."
        )
    pixels = visual.preprocess_cfg
    if pixels["resize_mode"] != "shortest" or pixels["interpolation"] != "bicubic":
        raise HarnessError(
            f"{name!r} wants images resized by {pixels['resize_mode']!r} with "
            f"{pixels['interpolation']!r}; only 'shortest' with 'bicubic', as in the protocol, is "
            "supported. Choose another tag."
        )
    for block in (*visual.transformer.resblocks, *text.transformer.resblocks):
        if type(block) is not oc.ResidualAttentionBlock:
            raise HarnessError(
                f"{name!r} has blocks of type {type(block).__name__}; only open_clip's "
                "ResidualAttentionBlock is supported."
            )
