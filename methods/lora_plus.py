"""LoRA+: low-rank updates with a larger learning rate for the second factor."""

from dataclasses import dataclass

from harness.method import published
from harness.methods.lora import LoRA


@dataclass(frozen=True, kw_only=True)
class LoRAPlus(LoRA):
    """CLIP-LoRA in which B learns faster than A.

        W' = W + (alpha / sqrt(r)) B A,  rate of B = lambda times the rate of A

    Source: Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models, section 4
        (https://arxiv.org/abs/2402.12354); sites, rank and recipe of CLIP-LoRA (see `lora`).
    Differs: it was not published for CLIP. lambda = 16 is what the paper suggests for language
        models; the rate of A is CLIP-LoRA's.
    """

    ratio: float = published(16.0, "LoRA+ section 4, lambda")

    def rate_factor(self, name: str) -> float:
        return self.ratio if name.endswith(".b") else 1.0
