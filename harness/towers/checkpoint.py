"""A `Clip` as a folder that open_clip loads: `local-dir:FOLDER`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from harness.errors import HarnessError
from harness.towers.backbone import EMBEDDED
from harness.towers.openclip import Clip

CONFIG, WEIGHTS, MERGES = (
    "open_clip_config.json", "open_clip_model.safetensors", "bpe_merges.txt.gz",
)  # fmt: skip


def write(folder: Path, clip: Clip, changed: Mapping[int, Tensor]) -> None:
    """Writes config, weights and vocabulary.

    Args:
        changed: other values of some of the model's parameters, by the parameters' `id`.

    Raises:
        HarnessError: nobody knows the backbone's config any more.
    """
    config, home = _config(clip.name)
    model = dict(config["model_cfg"])
    model.pop("init_logit_bias", None)  # a constant that a `Clip` leaves out
    model["custom_text"] = True  # names of weights as `Clip` has them
    parts: dict[str, Any] = {"visual": clip.image.visual, "text": clip.text.text}
    pixels = parts["visual"].preprocess_cfg
    taken = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    kept = {name: pixels[name] for name in taken if name in pixels}
    text = json.dumps({"model_cfg": model, "preprocess_cfg": kept}, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    if home is not None and (home / MERGES).is_file():
        shutil.copyfile(home / MERGES, folder / MERGES)
    weights = {"logit_scale": clip.logit_scale}
    for prefix, module in parts.items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            weights[f"{prefix}.{name}"] = changed.get(id(tensor), tensor)
    contents = {name: each.detach().cpu().contiguous() for name, each in weights.items()}
    safetensors.torch.save_file(contents, str(folder / WEIGHTS))


def _config(name: str) -> tuple[Mapping[str, Any], Path | None]:
    """What open_clip builds the backbone from, and the folder that it is in."""
    schema, _, rest = name.partition(":")
    home = EMBEDDED / name if not rest else Path(rest) if schema == "local-dir" else None
    if home is None and schema == "hf-hub":
        there = try_to_load_from_cache(rest, CONFIG)
        home = Path(there).parent if isinstance(there, str) else None
    if home is not None:
        if not (home / CONFIG).is_file():
            raise HarnessError(f"{home} has no {CONFIG}: the backbone {name} cannot be written.")
        return json.loads((home / CONFIG).read_text(encoding="utf-8")), home
    config = open_clip.get_model_config(schema)
    if config is None:
        raise HarnessError(f"open_clip knows no config of {name}: it cannot be written.")
    return {"model_cfg": config}, None
