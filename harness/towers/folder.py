"""A backbone in a folder, in open_clip's layout or that of transformers, here or on a hub."""

from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.hf_model import HFTextEncoder
from torch import nn

from harness.errors import HarnessError
from harness.towers import hub, transformers_folder
from harness.towers.hf import check_installed, local_config
from harness.towers.processor import PROCESSORS
from harness.towers.weights import check_file, load_weights, made, read_json, unwarned

CONFIG, MERGES = "open_clip_config.json", "bpe_merges.txt.gz"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
USUAL = (*WEIGHTS, transformers_folder.WEIGHTS)
TOKENIZERS = (  # files that a tokenizer of transformers is read from
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)  # fmt: skip
BESIDE = (  # what is fetched with config and weights
    *TOKENIZERS, MERGES, "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "tokenizer_config.json", *PROCESSORS,
)  # fmt: skip


def load(folder: Path, name: str) -> tuple[nn.Module, Any]:
    """The open_clip model and the tokenizer of a folder.

    Raises:
        HarnessError: neither layout; weights that are no safetensors, are damaged, or do not fit
            the config; or a part that another place would have to give.
    """
    ours, theirs = folder / CONFIG, folder / transformers_folder.CONFIG
    if not ours.is_file() and not theirs.is_file():
        raise HarnessError(
            f"{name} has neither {CONFIG} nor {theirs.name}: the folder of a backbone holds one of "
            "them, and weights as safetensors."
        )
    with unwarned():
        weights = Path(str(_find_checkpoint_in_dir(folder)))
    if not ours.is_file():
        weights = folder / transformers_folder.WEIGHTS
    elif weights.name not in USUAL and len([*folder.glob("*.safetensors")]) > 1:
        raise HarnessError(
            f"{name} has several .safetensors files, and none is named {WEIGHTS[0]}: name the one "
            "with the weights so."
        )
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise HarnessError(
            f"the weights of {name} are no .safetensors file"
            f"{'' if ours.is_file() else f' named {weights.name}'}. Other formats are not loaded, "
            "because reading them can execute code: convert them with safetensors.torch.save_file."
        )
    check_file(weights)
    model, tokenizer = made(
        f"backbone {name!r} cannot be loaded",
        lambda: _open_clip(folder, weights) if ours.is_file() else transformers_folder.load(folder),
    )
    _check_vocabulary(model, tokenizer, name)
    return model, tokenizer


def _open_clip(folder: Path, weights: Path) -> tuple[nn.Module, Any]:
    config = _checked(folder / CONFIG)
    words = local_config(config["model_cfg"]["text_cfg"], str(folder))
    with unwarned():
        model = open_clip.create_model(
            f"local-dir:{folder}", force_custom_text=True, load_weights=False,
            pretrained_text=False, text_cfg=words,
        )  # fmt: skip
    load_weights(model, weights)
    size = config["preprocess_cfg"].get("size", model.visual.image_size)
    if _pair(size) != _pair(model.visual.image_size):
        raise HarnessError(
            f"{folder / CONFIG} says size {size} in its preprocess_cfg, and the model takes images "
            f"of {model.visual.image_size}."
        )
    if words.get("hf_tokenizer_name"):
        check_installed(f"the tokenizer of {folder}")
        safe = {"trust_remote_code": False, "local_files_only": True}
        return model, open_clip.get_tokenizer(f"local-dir:{folder}", **safe)
    return model, merged_tokenizer(folder)


def _pair(size: Any) -> tuple[Any, Any]:
    """Height and width of images, of which one number or two are given."""
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def merged_tokenizer(folder: Path) -> Any:
    """open_clip's own tokenizer, with the merges of a folder if it has any."""
    merges = folder / MERGES
    # open_clip resolves a relative path against the working directory: pass it absolute
    path = {"bpe_path": str(merges.resolve())} if merges.is_file() else {}
    return made(
        f"the tokenizer of {folder} cannot be made from {merges}",
        lambda: open_clip.get_tokenizer(f"local-dir:{folder}", **path),
    )


def _check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Raises HarnessError for a tokenizer of another vocabulary than that of the weights."""
    if isinstance(model.text, HFTextEncoder):
        known = model.text.config.vocab_size
    else:
        known = model.text.token_embedding.num_embeddings
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers: may leave rows unused
    tokens = max(inner.get_vocab().values()) + 1 if inner else tokenizer.vocab_size
    if tokens > known or (inner is None and tokens < known):
        raise HarnessError(
            f"{name!r} embeds {known:,} tokens, but its tokenizer has {tokens:,}: its files, such "
            f"as {MERGES}, are not those of these weights, or are missing."
        )


def _checked(path: Path) -> dict[str, Any]:
    """A config of the right types, without a part that would be fetched."""
    config = read_json(path)
    model, pixels = config.get("model_cfg"), config.get("preprocess_cfg")
    named: dict[str, Any] = {}
    for part in ("vision_cfg", "text_cfg"):
        fields = model.get(part) if isinstance(model, dict) else None
        if not isinstance(fields, dict):
            raise HarnessError(
                f"{path} needs a model_cfg with a vision_cfg and a text_cfg, each in braces, as "
                "open_clip writes it."
            )
        named |= fields
    if not isinstance(pixels, dict) or not {"mean", "std"} <= set(pixels):
        raise HarnessError(
            f"{path} needs a preprocess_cfg with mean and std, as open_clip writes it: how images "
            "are normalised is not known else."
        )
    if pixels.get("mode", "RGB") != "RGB":
        raise HarnessError(
            f"{path}: images of mode {pixels['mode']!r} are not supported, only RGB."
        )
    foreign = ["timm_model_pretrained"] if named.get("timm_model_pretrained") else []
    if named.get("hf_tokenizer_name") and not any((path.parent / n).is_file() for n in TOKENIZERS):
        foreign.append("hf_tokenizer_name")
    # timm would ask a hub for what has a schema or an owner in its name
    foreign += ["timm_model_name"] if set(":/") & {*str(named.get("timm_model_name"))} else []
    foreign += ["tokenizer_kwargs"] if "bpe_path" in str(named.get("tokenizer_kwargs")) else []
    if foreign:
        raise HarnessError(
            f"{path} sets {', '.join(foreign)}: a model or tokenizer that is not in the folder, "
            "which is not supported and would be fetched. Put its files there, or choose another "
            "folder."
        )
    return config


def of_hub(repository: str, fetch: bool) -> Path:
    """The folder of a hub's repository on this machine, fetched if need be.

    Raises:
        HarnessError: no such repository, no network, or no weights as safetensors.
    """
    layouts = [(CONFIG, WEIGHTS), (transformers_folder.CONFIG, (transformers_folder.WEIGHTS,))]
    for config, weights in layouts:
        there = hub.cached(repository, weights)
        if there is not None and (there.parent / config).is_file() and _whole(there.parent):
            return there.parent
    if not fetch:
        raise hub.NotHereError(
            f"hf-hub:{repository} is not on this machine, and --dry-run downloads nothing."
        )
    held = hub.held(repository)
    for config, weights in layouts:
        named = [name for name in weights if name in held]
        if config in held and named:
            wanted = [config, *(name for name in BESIDE if name in held), named[0]]
            return hub.fetched(repository, wanted)[-1].parent
    raise HarnessError(
        f"hf-hub:{repository} has neither {CONFIG} with {WEIGHTS[0]} nor "
        f"{transformers_folder.CONFIG} with {transformers_folder.WEIGHTS}. Other formats are not "
        "loaded, because reading them can execute code."
    )


def _whole(home: Path) -> bool:
    """Whether what config and weights do not say lies beside them."""
    words = any((home / name).is_file() for name in TOKENIZERS)
    if not (home / CONFIG).is_file():
        return words and any((home / name).is_file() for name in PROCESSORS)
    model = read_json(home / CONFIG).get("model_cfg") or {}
    return words or not model.get("text_cfg", {}).get("hf_tokenizer_name")


def words_of_hub(repository: str, fetch: bool) -> Path | None:
    """The folder with a repository's tokenizer; None if it is not here and not to be fetched.

    Raises:
        HarnessError: no such repository, or no network.
    """
    there = hub.cached(repository, TOKENIZERS)
    if there is None and fetch:
        held = hub.held(repository)
        # the vocabulary comes last, so that all is there where it is
        wanted = [name for name in (transformers_folder.CONFIG, *reversed(BESIDE)) if name in held]
        there = hub.fetched(repository, wanted)[-1]
    return None if there is None else there.parent
