"""The pairs of model and weights that open_clip lists, by their configuration alone."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import nn

from harness.errors import HarnessError
from harness.towers.openclip import image_tower
from harness.towers.pixels import Pixels
from harness.towers.text import TextTower, check_text_tower
from harness.towers.tower import POINTS, Site, Tower


@dataclass(frozen=True)
class Unloaded:
    """A backbone without weights: towers on the meta device, and what images it takes."""

    name: str
    image: Tower
    text: TextTower
    embedding: int
    pixels: Pixels
    parameters: int

    def sites(self) -> list[Site]:
        """Every site of both towers."""
        return self.image.sites() + self.text.sites()

    def about(self) -> dict[str, str]:
        """Towers, sites, pixels and parameters in words."""
        opened = set(getattr(self.image.blocks[0], "points", ())) if len(self.image.blocks) else ()
        inside = "all sites" if opened == set(POINTS) else "blocks, norms, attention and MLP"
        blocks = f"{len(self.image.blocks)} blocks of width {self.image.width}, {inside}"
        image = blocks if opened else "features alone"
        seen = "causal" if self.text.causal else "bidirectional"
        text = f"{len(self.text.blocks)} blocks of width {self.text.width}, {seen}, pooled at "
        return {
            "image tower": image,
            "text tower": text + self.text.pooling,
            "images": str(self.pixels),
            "parameters": f"{self.parameters:,}",
        }


def check_gelu(model: str, pretrained: str) -> None:
    """Raises HarnessError for weights of the other GELU, with the model that has theirs, if any."""
    tag = open_clip.get_pretrained_cfg(model, pretrained) or {}
    quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    if not tag or bool(tag.get("quick_gelu", False)) == quick:
        return
    other = model.removesuffix("-quickgelu") if quick else f"{model}-quickgelu"
    there = other != model and pretrained in open_clip.list_pretrained_tags_by_model(other)
    raise HarnessError(
        f"the weights {pretrained!r} were trained with the other GELU than {model!r} computes, "
        "which costs accuracy silently. "
        + (f"Use {other}:{pretrained}." if there else "No model of open_clip has theirs.")
    )


def check_text_model(model: str) -> None:
    """Raises HarnessError for a model whose text tower another library makes."""
    words = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
    if words.get("hf_model_name"):
        raise HarnessError(
            f"the text tower of {model!r} is {words['hf_model_name']} of the package transformers; "
            "only open_clip's TextTransformer is supported. Choose another backbone, such as "
            "ViT-B-16."
        )


def other_tokenizer(model: str) -> bool:
    """Whether open_clip takes the tokenizer of a model from the package transformers."""
    words = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
    return bool(words.get("hf_tokenizer_name")) or "siglip" in model.lower()


def listed(only: str = "") -> Iterator[tuple[str, Unloaded | str]]:
    """The names of all pairs, or of those of one model, each with its backbone or with the reason
    why it is refused."""
    made = dict[str, nn.Module]()
    for model, pretrained in open_clip.list_pretrained():
        name = f"{model}:{pretrained}"
        if only not in ("", name, model):
            continue
        try:
            check_gelu(model, pretrained)
            check_text_model(model)
            if model not in made:
                made[model] = _shapes(model)
            yield name, _unloaded(name, made[model])
        except HarnessError as error:
            yield name, str(error)


def without_numbers(model: str, pretrained: str) -> nn.Module:
    """open_clip's model of fake tensors, which compute shapes and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # seldom needed, and slow to import

    made = _shapes(model, FakeTensorMode(allow_non_fake_inputs=True))
    _takes(made, model, pretrained)
    return made


def _shapes(model: str, where: AbstractContextManager[Any] | None = None) -> nn.Module:
    """open_clip's model on the meta device: settings and shapes, no weights."""
    config = dict(open_clip.get_model_config(model) or {})
    kept: dict[str, Any] = {
        key: value for key, value in config.items() if key not in ("custom_text", "multimodal_cfg")
    }
    with where or torch.device("meta"):
        made = open_clip.CustomTextCLIP(**kept)
    check_text_tower(made.text, model)
    return made


def _takes(made: Any, model: str, pretrained: str) -> None:
    """Notes what images the weights were trained with."""
    tag = open_clip.get_pretrained_cfg(model, pretrained) or {}
    config = asdict(PreprocessCfg(size=made.visual.image_size))
    set_model_preprocess_cfg(made, config | {key: tag[key] for key in config if key in tag})


def _unloaded(name: str, model: Any) -> Unloaded:
    kind, _, pretrained = name.partition(":")
    _takes(model, kind, pretrained)
    embedding = int(getattr(model.visual, "output_dim", model.text.output_dim))
    text = TextTower(model.text)
    text.takes_tokens = not other_tokenizer(kind)  # those have no start token, or no largest end
    count = sum(parameter.numel() for parameter in model.parameters())
    image = image_tower(model.visual, embedding)
    return Unloaded(name, image, text, embedding, Pixels.of(model.visual, name), count)
