"""Backbone names to models: open_clip's own, a hub's, a folder's, and the embedded one.

Weights are read as safetensors or through PyTorch's restricted loader for open_clip's own tags;
nothing from a user's folder is unpickled.
"""

import ctypes
import functools
import platform
from dataclasses import asdict
from pathlib import Path

import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg

from harness.towers import folder, hub, pairs
from harness.towers.openclip import Clip

NOT_HERE = "not downloaded"  # the fingerprint of weights that a dry run does without
EMBEDDED = Path(__file__).parents[1] / "backbones"
IMAGENET: list[str] = open_clip.IMAGENET_CLASSNAMES  # in the order of the labels
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's mallopt


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
            configuration, or a text tower of an unknown kind.
    """
    if torch.device(device).type == "cpu":
        _keep_freed_memory()
    embedded = EMBEDDED / name
    model_name = f"local-dir:{embedded}" if _is_embedded(name) else name
    schema, _, rest = model_name.partition(":")
    if schema in ("local-dir", "hf-hub"):
        home = Path(rest).resolve() if schema == "local-dir" else folder.of_hub(rest, weights)
        model, tokenizer = folder.load(home, name)
        return Clip(model, tokenizer, name).to(device)
    if not numbers:
        made = pairs.model(schema, rest, numbers=False)
        return Clip(made, pairs.tokenizer(schema, fetch=False), name, known=NOT_HERE)
    try:
        model = pairs.model(schema, rest, weights)
    except hub.NotHereError:
        clip = Clip(pairs.model(schema, "random"), pairs.tokenizer(schema, fetch=False), name)
        clip.fingerprint = NOT_HERE
        return clip.to(device)
    return Clip(model, pairs.tokenizer(schema, weights), name).to(device)


@functools.lru_cache(maxsize=8)
def reference(depths: tuple[int, int], embedding: int, length: int, kind: type[Clip]) -> Clip:
    """A small random CLIP with every site: so many image and text blocks, and positions."""
    tokenizer = folder.merged_tokenizer(EMBEDDED / "emoji-mini")
    image, text = depths
    model = open_clip.CustomTextCLIP(
        embedding,
        {"image_size": 32, "patch_size": 16, "width": 128, "layers": image, "head_width": 32},
        {"context_length": length, "vocab_size": tokenizer.vocab_size, "width": 128, "heads": 4,
         "layers": text},
    )  # fmt: skip
    set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=32)))
    return kind(model, tokenizer, "a CLIP")


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
        "hf-hub:OWNER/REPO": ("a repository with such a folder", "the hub"),
        "local-dir:FOLDER": (
            "open_clip's layout, or transformers' CLIP or SigLIP; safetensors",
            "your folder",
        ),
    }


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
