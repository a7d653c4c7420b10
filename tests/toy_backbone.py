"""A backbone of twelve narrow blocks whose weights follow from a formula: the same numbers on every
processor, and towers that differ in width, heads and length, so that nothing is mixed up."""

import math

import open_clip
import torch
from open_clip.model import CustomTextCLIP, set_model_preprocess_cfg

from harness.towers.backbone import EMBEDDED
from harness.towers.openclip import Clip

SIZE = 48  # pixels
VISION = {"image_size": SIZE, "patch_size": 16, "width": 48, "layers": 12, "head_width": 16}
TEXT = {"context_length": 32, "vocab_size": 3014, "width": 40, "heads": 2, "layers": 12}
PIXELS = {
    "size": (SIZE, SIZE), "mode": "RGB", "resize_mode": "shortest", "interpolation": "bicubic",
    "fill_color": 0, "mean": (0.5, 0.4, 0.3), "std": (0.3, 0.25, 0.2),
}  # fmt: skip


def load(embedding: int = 36) -> Clip:
    """The backbone, float32, with the embedded default's vocabulary."""
    model = CustomTextCLIP(embed_dim=embedding, vision_cfg=VISION, text_cfg=TEXT)
    draws = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        value = torch.rand(parameter.shape, generator=draws) - 0.5  # exact on every processor
        if name == "logit_scale":
            parameter.data = torch.tensor(math.log(50.0))
        elif ".ln_" in f".{name}" and name.endswith("weight"):
            parameter.data = 1 + value / 2
        elif parameter.ndim < 2:
            parameter.data = value / 2
        else:
            parameter.data = value * math.sqrt(12 / parameter[0].numel())
    set_model_preprocess_cfg(model, PIXELS)
    merges = str(EMBEDDED / "emoji-mini" / "bpe_merges.txt.gz")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{EMBEDDED / 'emoji-mini'}", bpe_path=merges)
    return Clip(model, tokenizer, "toy")
