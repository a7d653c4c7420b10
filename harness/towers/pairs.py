"""open_clip's models by name, with the weights of a tag, of a file, or random ones."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_WEIGHTS_NAME
from open_clip.pretrained import _get_safe_alternatives
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.randomness import seed_of
from harness.towers import folder, hub, transformers_folder
from harness.towers.catalogue import check_gelu, without_numbers
from harness.towers.hf import check_installed, local_config
from harness.towers.layouts import kind_of
from harness.towers.weights import check_file, load_weights, made, unwarned


class NoWords:
    """The tokenizer of a dry run where the model's own is not on this machine: no text has tokens.

    context_length: token ids of a text.
    """

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: Sequence[str], length: int) -> Tensor:
        """Token ids [R, L]."""
        return torch.zeros(len(texts), length, dtype=torch.long)


def model(name: str, pretrained: str, fetch: bool = True, numbers: bool = True) -> nn.Module:
    """open_clip's model with both towers as modules; without `numbers` one of fake tensors.

    Raises:
        HarnessError: no such model, tag or file; weights of the other GELU, of other sizes, or that
            cannot be fetched; NotHereError: a tag's weights are to be fetched, and may not be.
    """
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), n=1)
        raise HarnessError(
            f"unknown backbone {name!r}.{f' Did you mean {close[0]!r}?' if close else ''} Allowed: "
            "emoji-mini, local-dir:FOLDER, hf-hub:OWNER/REPO or MODEL:PRETRAINED with a model of "
            "`list backbones --all`."
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained:
        raise HarnessError(
            f"backbone {name!r} needs its weights: {name}:PRETRAINED with one of "
            f"{', '.join(tags) or 'no tag'}, a .safetensors file or random."
        )
    check_gelu(name, pretrained)
    file = Path(pretrained)
    own = file.suffix == ".safetensors" and file.is_file()
    if pretrained not in (*tags, "random") and not own:
        raise HarnessError(
            f"backbone {name}:{pretrained} names neither a tag of {name} "
            f"({', '.join(tags) or 'it has none'}) nor an existing .safetensors file."
        )
    if not numbers:
        return without_numbers(name, pretrained)
    if pretrained == "random":
        with torch.random.fork_rng(), unwarned():
            torch.manual_seed(seed_of("random backbone", name))
            return open_clip.create_model(name, **_how(name))
    if pretrained in tags:
        file = tag_file(name, pretrained, fetch)
    pixels = _pixels(name, [pretrained] if pretrained in tags else tags)
    return made(
        f"the weights of {name}:{pretrained} cannot be loaded",
        lambda: _with_weights(name, file, pixels),
    )


def tag_file(name: str, tag: str, fetch: bool = True) -> Path:
    """Where the weights of a tag are on this machine, fetched if need be.

    Raises:
        HarnessError: they cannot be fetched, or are not there and not to be fetched.
    """
    repository, _, file = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")
    file = file or HF_WEIGHTS_NAME
    return hub.first(repository, [*_get_safe_alternatives(file), file], fetch)


def tokenizer(name: str, fetch: bool = True) -> Any:
    """The tokenizer of a model; if it is not to be fetched and not here, `NoWords`.

    Raises:
        HarnessError: transformers, of which it is one, is missing, or it cannot be fetched.
    """
    words = open_clip.get_model_config(name)["text_cfg"]
    source, length = words.get("hf_tokenizer_name"), words.get("context_length")
    length = length or DEFAULT_CONTEXT_LENGTH
    if not source:
        return open_clip.get_tokenizer(name)
    check_installed(f"the tokenizer of {name}")
    settings = words.get("tokenizer_kwargs", {}) | {"tokenizer_mode": words.get("tokenizer_mode")}
    home = folder.words_of_hub(source, fetch)
    if home is None:
        return NoWords(length)
    return made(
        f"the tokenizer of {name} cannot be made",
        lambda: transformers_folder.folder_tokenizer(home, length, **settings),
    )


def _with_weights(name: str, file: Path, pixels: Mapping[str, Any]) -> Any:
    how = _how(name) | {"force_preprocess_cfg": pixels}
    if file.suffix != ".safetensors":  # of a tag: read with PyTorch's restricted loader
        return open_clip.create_model(name, str(file), **how)
    check_file(file)
    with unwarned():
        created = open_clip.create_model(name, **how)
    if kind_of(file):
        transformers_folder.fill(created, name, file)
    else:
        load_weights(created, file)
    return created


def _pixels(name: str, tags: Sequence[str]) -> dict[str, Any]:
    """How images are taken with some tags of a model; without tags, as open_clip does by default.

    Raises:
        HarnessError: the tags differ.
    """
    fields = ("mean", "std", "interpolation", "resize_mode")
    settings = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    found = [{field: each[field] for field in fields} for each in settings]
    if any(each != found[0] for each in found):
        raise HarnessError(
            f"the tags of {name} take images in several ways, and a file of weights does not say "
            "which is its own. Put it into a folder with an open_clip_config.json, whose "
            "preprocess_cfg says it, and give local-dir:FOLDER."
        )
    return found[0] if found else {}


def _how(name: str) -> dict[str, Any]:
    """How open_clip makes a model, whatever its weights: both towers as modules, nothing fetched
    for one of them alone."""
    words = local_config(open_clip.get_model_config(name)["text_cfg"], name)
    return {"force_custom_text": True, "pretrained_text": False, "text_cfg": words}
