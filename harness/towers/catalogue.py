"""The pairs of model and weights that open_clip lists, by their configuration alone."""

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.errors import HarnessError
from harness.towers.hf import local_config, text_tower
from harness.towers.openclip import Clip, image_tower, parameters_by_name
from harness.towers.pixels import Pixels
from harness.towers.text import TextTower
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

    @classmethod
    def of(cls, clip: Clip) -> "Unloaded":
        """A backbone that is loaded."""
        count = sum(p.numel() for tower in (clip.image, clip.text) for p in tower.parameters())
        return cls(clip.name, clip.image, clip.text, clip.embedding, clip.pixels, count + 1)

    def sites(self) -> list[Site]:
        """Every site of both towers."""
        return self.image.sites() + self.text.sites()

    def brief(self) -> dict[str, str]:
        """Towers, pixels and parameters in few letters, for a row of a table."""
        short = {"all sites": "all", "parts of blocks": "parts"}
        seen = "causal" if self.text.causal else "both ways"
        image, text = (len(tower.blocks) > 0 for tower in (self.image, self.text))
        return {
            "image": f"{_size(self.image)} {short[self.opened]}" if image else "features",
            "text": f"{_size(self.text)} {seen}" if text else "features",
            "pixels": f"{self.pixels.size[0]} {self.pixels.resizing}",
            "params": f"{self.parameters / 1e6:,.0f}M",
        }

    @property
    def opened(self) -> str:
        """How far the image tower is opened."""
        points = set(getattr(self.image.blocks[0], "points", ())) if len(self.image.blocks) else ()
        return "all sites" if points == set(POINTS) else "parts of blocks" if points else "features"

    @property
    def seen(self) -> str:
        """What a token of a text sees."""
        return "causal" if self.text.causal else "bidirectional"

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """As of a `Clip`."""
        return parameters_by_name(self.image, self.text)

    def about(self) -> dict[str, str]:
        """Towers, sites, pixels and parameters in words."""
        inside = {"all sites": "all sites", "parts of blocks": "blocks, norms, attention and MLP"}
        image = f"{_size(self.image)}, {inside.get(self.opened, 'features alone')}"
        return {
            "image tower": image,
            "text tower": f"{_size(self.text)}, {self.seen}, pooled at {self.text.pooling}"
            + ("" if len(self.text.blocks) else ", features alone"),
            "images": str(self.pixels),
            "parameters": f"{self.parameters:,}",
        }


def _size(tower: Tower) -> str:
    """How many blocks of which width a tower has; or of what kind it is."""
    if len(tower.blocks):
        return f"{len(tower.blocks)}x{tower.width}"
    inner = getattr(tower, "visual", None) or getattr(tower, "text", None)
    inner = getattr(inner, "trunk", None) or getattr(inner, "transformer", None) or inner
    return type(inner).__name__


def is_model(name: str) -> bool:
    """Whether open_clip has a model of this name."""
    return name in open_clip.list_models()


def closest(name: str) -> str | None:
    """The pair or model of open_clip whose name is most like another, if any is; of a pair whose
    weights are of the other GELU the one that has theirs."""
    names = [*open_clip.list_pretrained(as_str=True), *open_clip.list_models()]
    found = next(iter(difflib.get_close_matches(name, names, n=1)), None)
    model, _, pretrained = (found or "").partition(":")
    return (pretrained and other_gelu(model, pretrained)) or found


def of_transformers(name: str) -> list[str]:
    """What of a model of open_clip needs transformers: its tokenizer, its text tower."""
    words = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    parts = {"tokenizer": "hf_tokenizer_name", "text tower": "hf_model_name"}
    return [part for part, key in parts.items() if words.get(key)]


def other_gelu(model: str, pretrained: str) -> str | None:
    """None, unless the weights are known to be of another GELU than the model computes: then the
    pair that has theirs, or an empty text if there is none."""
    file, tag = Path(pretrained), open_clip.get_pretrained_cfg(model, pretrained)
    own = file.suffix == ".safetensors"
    theirs = gelu_beside(file) if own else bool(tag.get("quick_gelu", False)) if tag else None
    mine = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    if theirs is None or theirs == mine:
        return None
    other = gelu_twin(model)
    there = other and (own or pretrained in open_clip.list_pretrained_tags_by_model(other))
    return f"{other}:{pretrained}" if there else ""


def gelu_twin(model: str) -> str | None:
    """The model that is the same but for its GELU, if open_clip has one."""
    bare = model.removesuffix("-quickgelu")
    other = bare if model != bare else f"{model}-quickgelu"
    return other if is_model(other) else None


def gelu_beside(file: Path) -> bool | None:
    """Whether weights in a file are of QuickGELU, by open_clip's configuration beside it; None if
    there is none."""
    try:
        said = json.loads((file.parent / "open_clip_config.json").read_text(encoding="utf-8"))[
            "model_cfg"
        ]
        return bool(said.get("quick_gelu", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_gelu(model: str, pretrained: str) -> None:
    """Raises HarnessError for weights of the other GELU, with the model that has theirs, if any."""
    twin = other_gelu(model, pretrained)
    if twin is not None:
        raise HarnessError(
            f"the weights {pretrained!r} were trained with the other GELU than {model!r} computes, "
            "which costs accuracy silently. "
            + (f"Use {twin}." if twin else "No model of open_clip has theirs.")
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


class _Unfilled(TorchFunctionMode):
    """Meanwhile tensors are not filled with initial values, which takes long on the meta device and
    is not kept."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        first = args[0] if args else given.get("tensor")
        name = getattr(func, "__name__", "")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        return first if fills and isinstance(first, Tensor) else func(*args, **given)


def _shapes(model: str, where: AbstractContextManager[Any] | None = None) -> nn.Module:
    """open_clip's model on the meta device: settings and shapes, no weights."""
    config = dict(open_clip.get_model_config(model) or {})
    kept: dict[str, Any] = {
        key: value for key, value in config.items() if key not in ("custom_text", "multimodal_cfg")
    }
    kept["text_cfg"] = local_config(kept["text_cfg"], model)
    with _Unfilled(), where or torch.device("meta"):
        return open_clip.CustomTextCLIP(**kept)


def _takes(made: Any, model: str, pretrained: str) -> None:
    """Notes what images the weights were trained with."""
    tag = open_clip.get_pretrained_cfg(model, pretrained) or {}
    config = asdict(PreprocessCfg(size=made.visual.image_size))
    set_model_preprocess_cfg(made, config | {key: tag[key] for key in config if key in tag})


def _unloaded(name: str, model: Any) -> Unloaded:
    kind, _, pretrained = name.partition(":")
    _takes(model, kind, pretrained)
    embedding = int(getattr(model.visual, "output_dim", model.text.output_dim))
    words = (open_clip.get_model_config(kind) or {})["text_cfg"]
    length = words.get("context_length", DEFAULT_CONTEXT_LENGTH)
    text = text_tower(model.text, length, name)
    # tokenizers of transformers have no start token, or no largest end
    text.takes_tokens = text.takes_tokens and not other_tokenizer(kind)
    count = sum(parameter.numel() for parameter in model.parameters())
    image = image_tower(model.visual, embedding)
    return Unloaded(name, image, text, embedding, Pixels.of(model.visual, name), count)
