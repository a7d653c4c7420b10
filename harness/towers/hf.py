"""Text towers and tokenizers of the package transformers inside of open_clip models."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.hf_model import ClsPooler, HFTextEncoder
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.towers.text import TextTower, check_text_tower
from harness.towers.tower import EditCall, unedited

CONFIGS = Path(__file__).parent / "hf_configs"  # of the models that open_clip takes texts from


class HFTextTower(TextTower):
    """A text model of transformers under open_clip's pooling and projection.

    Its features alone can be edited. It stays in evaluation, since it has dropout of its own.

    context: token ids of a text. Its tokens see each other in both directions, but no padding.
    """

    stem_names: tuple[str, ...] = ("",)
    block_names = ()
    takes_tokens = False
    causal = False

    def __init__(self, text: HFTextEncoder, context: int) -> None:
        nn.Module.__init__(self)
        self.text = text
        self.width, self.length, self.context = text.output_dim, context, context
        self.blocks = nn.ModuleList()
        self.pooling = "first" if isinstance(text.pooler, ClsPooler) else "mean"

    def train(self, mode: bool = True) -> "HFTextTower":
        return super().train(False)

    def needed(self, ids: Tensor) -> Tensor:
        """How many positions come before the padding at the end: [R] of token ids [R, L]."""
        places = torch.arange(1, ids.shape[1] + 1)
        return (places * (ids.cpu() != self.text.config.pad_token_id)).amax(-1)

    def stem(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        """Token ids [R, L] -> features [R, E]."""
        features = self.text(inputs)
        return features[0] if isinstance(features, tuple) else features

    def head(self, x: Tensor, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        return edit("text.features", self.text, x, x)


def text_tower(text: Any, context: int, name: str) -> TextTower:
    """The tower of an open_clip text model; `context`: token ids of a text, which the models of
    transformers do not say.

    Raises:
        HarnessError: a text model of another kind.
    """
    if isinstance(text, HFTextEncoder):
        return HFTextTower(text, context)
    check_text_tower(text, name)
    return TextTower(text)


def check_installed(what: str) -> None:
    """Raises HarnessError if transformers, from which something comes, is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise HarnessError(
            f"{what} is one of the package transformers, which is not installed: pip install "
            "'vlm-peft-harness[hf]'. Or choose another backbone."
        )


def local_config(words: Mapping[str, Any], name: str) -> dict[str, Any]:
    """open_clip's `text_cfg` of a model, changed so that nothing is fetched to make its text tower:
    a model of transformers is made from its config here, and its weights are a part of the model's.

    Raises:
        HarnessError: transformers is missing, or it is a model whose config is not here.
    """
    wanted = words.get("hf_model_name")
    if not wanted:
        return dict(words)
    check_installed(f"the text tower of {name}")
    home = CONFIGS / str(wanted).rpartition("/")[2]
    if not (home / "config.json").is_file():
        known = ", ".join(sorted(each.name for each in CONFIGS.iterdir() if each.is_dir()))
        raise HarnessError(
            f"the text tower of {name} is {wanted!r} of the package transformers; supported are "
            f"{known}. Choose another backbone, such as ViT-B-16."
        )
    return {**words, "hf_model_name": str(home), "hf_model_pretrained": False}
