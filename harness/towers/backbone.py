"""Backbone names to models: open_clip's own, a hub's, a folder's, and the embedded one.

Weights are read as safetensors or through PyTorch's restricted loader for open_clip's own tags;
nothing from a user's folder is unpickled.
"""

import ctypes
import functools
import importlib.util
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import safetensors
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip import transformer as oc
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import nn

from harness.errors import HarnessError
from harness.randomness import seed_of
from harness.towers.catalogue import (
    check_gelu,
    check_text_model,
    other_tokenizer,
    without_numbers,
)
from harness.towers.layouts import is_transformers, load_transformers
from harness.towers.openclip import Clip
from harness.towers.pixels import Pixels
from harness.towers.text import check_text_tower

NOT_HERE = "not downloaded"  # the fingerprint of weights that a dry run does without
EMBEDDED = Path(__file__).parents[1] / "backbones"
IMAGENET: list[str] = open_clip.IMAGENET_CLASSNAMES  # in the order of the labels
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's mallopt
FOREIGN = ("hf_model_name", "hf_tokenizer_name", "timm_model_pretrained")
T = TypeVar("T")


def load(
    name: str, device: str | torch.device = "cpu", weights: bool = True, numbers: bool = True
) -> Clip:
    """The model that a backbone name stands for.

    Without `weights` nothing is downloaded: a model whose weights are not here has random ones, and
    the fingerprint `NOT_HERE`. Without `numbers` one of open_clip's has no weights at all, but fake
    tensors, and that fingerprint, too.

    `emoji-mini` and other folders of `harness/backbones`, `local-dir:FOLDER`, `hf-hub:OWNER/REPO`,
    or an open_clip pair `MODEL:PRETRAINED`, where PRETRAINED is a tag, a .safetensors file or
    `random` (seeded random weights, for tests and timing).

    Raises:
        HarnessError: an unknown name, weights that would have to be unpickled, weights in the wrong
            configuration, or a text tower that is no TextTransformer.
    """
    if torch.device(device).type == "cpu":
        _keep_freed_memory()
    embedded = EMBEDDED / name
    model_name = f"local-dir:{embedded}" if _is_embedded(name) else name
    schema, _, rest = model_name.partition(":")
    if not numbers and schema not in ("local-dir", "hf-hub"):
        made = _open_clip(schema, rest, numbers)
        return Clip(made, _tokenizer(schema), name, known=NOT_HERE)
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
    model = _made(
        f"backbone {name!r} cannot be loaded",
        lambda: open_clip.create_model(
            model_name, force_custom_text=True, require_pretrained=True, pretrained_text=False
        ),
    )
    _check_towers(model, name)
    tokenizer = _tokenizer(model_name, merges)
    if schema == "local-dir":
        _check_vocabulary(model, tokenizer, name)
    return Clip(model, tokenizer, name).to(device)


@functools.lru_cache(maxsize=8)
def reference(depths: tuple[int, int], embedding: int, length: int, kind: type[Clip]) -> Clip:
    """A small random CLIP with every site: so many image and text blocks, and positions."""
    folder = EMBEDDED / "emoji-mini"
    tokenizer = _tokenizer(f"local-dir:{folder}", folder / "bpe_merges.txt.gz")
    image, text = depths
    model = open_clip.CustomTextCLIP(
        embedding,
        {"image_size": 32, "patch_size": 16, "width": 128, "layers": image, "head_width": 32},
        {"context_length": length, "vocab_size": tokenizer.vocab_size, "width": 128, "heads": 4,
         "layers": text},
    )  # fmt: skip
    set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=32)))
    return kind(model, tokenizer, "a CLIP")


def _made(failure: str, make: Callable[[], T]) -> T:
    """What `make` returns; whatever it raises is a HarnessError of one sentence."""
    try:
        return make()
    except HarnessError:
        raise
    except Exception as error:  # open_clip, safetensors and gzip raise all kinds
        said = " ".join(str(error).split())
        said = said if len(said) < 300 else f"{said[:300]} ..."
        raise HarnessError(f"{failure}: {said or type(error).__name__}.") from error


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


def _open_clip(model: str, pretrained: str, numbers: bool = True) -> nn.Module:
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
    check_gelu(model, pretrained)
    check_text_model(model)
    if pretrained == "random" and numbers:
        with torch.random.fork_rng():
            torch.manual_seed(seed_of("random backbone", model))
            created = open_clip.create_model(model, force_custom_text=True, pretrained_text=False)
        _check_towers(created, model)
        return created
    if pretrained not in (*tags, "random") and not (
        pretrained.endswith(".safetensors") and Path(pretrained).is_file()
    ):
        raise HarnessError(
            f"backbone {model}:{pretrained} names neither a tag of {model} "
            f"({', '.join(tags) or 'it has none'}) nor an existing .safetensors file."
        )
    made = without_numbers if not numbers else _with_weights
    created = _made(
        f"the weights of {model}:{pretrained} cannot be loaded", lambda: made(model, pretrained)
    )
    _check_towers(created, model)
    return created


def _with_weights(model: str, pretrained: str) -> nn.Module:
    file = Path(pretrained)
    if pretrained.endswith(".safetensors") and is_transformers(file):
        return load_transformers(model, file)
    return open_clip.create_model(model, pretrained, force_custom_text=True)


def _check_folder(folder: Path) -> Path | None:
    """Refuses what is damaged, would be unpickled or fetched; returns the folder's own BPE merges
    file, if it has one."""
    if not (folder / "open_clip_config.json").is_file():
        raise HarnessError(f"local-dir:{folder} has no open_clip_config.json.")
    weights = Path(str(_find_checkpoint_in_dir(folder)))
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise HarnessError(
            f"the weights that open_clip would take from local-dir:{folder} are no .safetensors "
            "file. Other formats are not loaded, because reading them can execute code: convert "
            "them with safetensors.torch.save_file."
        )
    _check_config(folder / "open_clip_config.json")
    _made(
        f"{weights} is damaged or no safetensors file",
        lambda: safetensors.safe_open(str(weights), "pt").keys(),
    )
    merges = folder / "bpe_merges.txt.gz"
    return merges if merges.is_file() else None


def _check_config(path: Path) -> None:
    """Refuses a config of the wrong types, or with a text model or tokenizer from a hub."""
    config = _made(
        f"{path} cannot be read as JSON", lambda: json.loads(path.read_text(encoding="utf-8"))
    )
    model = config.get("model_cfg") if isinstance(config, dict) else None
    named: dict[str, Any] = {}
    for part in ("vision_cfg", "text_cfg"):
        fields = model.get(part) if isinstance(model, dict) else None
        if not isinstance(fields, dict):
            raise HarnessError(
                f"{path} needs a model_cfg with a vision_cfg and a text_cfg, each in braces, as "
                "open_clip writes it."
            )
        named |= fields
    foreign = [name for name in FOREIGN if named.get(name)]
    # timm would ask a hub for what has a schema or an owner in its name
    foreign += ["timm_model_name"] if set(":/") & {*str(named.get("timm_model_name"))} else []
    foreign += ["tokenizer_kwargs"] if "bpe_path" in str(named.get("tokenizer_kwargs")) else []
    if foreign:
        raise HarnessError(
            f"{path} sets {', '.join(foreign)}: a model or tokenizer of another library, which is "
            "not supported and would be fetched. Choose a folder with open_clip's own text tower."
        )


def _check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    known, tokens = model.text.token_embedding.num_embeddings, tokenizer.vocab_size
    if known != tokens:
        raise HarnessError(
            f"{name!r} embeds {known:,} tokens, but its tokenizer has {tokens:,}: its "
            "bpe_merges.txt.gz is not that of these weights, or is missing."
        )


def _tokenizer(model: str, merges: Path | None = None) -> Any:
    # open_clip resolves a relative merges path against the working directory: pass it absolute
    path = {"bpe_path": str(merges)} if merges else {}
    foreign = model in open_clip.list_models() and other_tokenizer(model)
    if foreign and importlib.util.find_spec("transformers") is None:
        raise HarnessError(
            f"the tokenizer of {model} is one of the package transformers, which is not installed: "
            "pip install 'vlm-peft-harness[hf]'. Or choose another backbone."
        )
    return _made(
        f"the tokenizer of {model} cannot be made{f' from {merges}' if merges else ''}",
        lambda: open_clip.get_tokenizer(model, **path),
    )


def _check_towers(model: Any, name: str) -> None:
    check_text_tower(getattr(model, "text", None), name)
    Pixels.of(model.visual, name)
    for block in model.text.transformer.resblocks:
        if type(block) is not oc.ResidualAttentionBlock:
            raise HarnessError(
                f"{name!r} has text blocks of type {type(block).__name__}; only open_clip's "
                "ResidualAttentionBlock is supported."
            )
