"""Image-LoRA: low-rank updates of the values of the image tower alone."""

from dataclasses import dataclass

from harness.method import Classes, Clip, Edit, Site
from harness.methods.lora import LoRA


@dataclass(frozen=True, kw_only=True)
class ImageLoRA(LoRA):
    """CLIP-LoRA on the value matrices of the image tower alone.

        W_v' = W_v + (alpha / sqrt(r)) B A,  in every block of the image tower

    Source: Towards Minimal Fine-Tuning of VLMs (https://arxiv.org/abs/2512.19219), section on
        value-only updates of visual tokens; sites, rank and recipe of CLIP-LoRA (see `lora`).
    Differs: a transfer of the idea, not the published method. That is for vision-language models
        with a decoder: it updates the visual tokens there, in heads chosen by the influence that a
        rank-1 probe measures, with a scale normalised by their number. In CLIP's image tower every
        token is visual; all heads are updated, and the scale is CLIP-LoRA's.
    """

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        edits = super().edits(clip, classes)
        return {s: e for s, e in edits.items() if s.startswith("image.") and s.endswith(".v")}
