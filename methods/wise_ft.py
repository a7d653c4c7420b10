"""WiSE-FT: fine-tuned weights mixed with the frozen ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from harness.method import CosineHead, HeadContext, Support
from harness.methods.full import Full


@dataclass(frozen=True, kw_only=True)
class WiSEFT(Full):
    """Full fine-tuning whose weights are mixed with those that it started from.

        theta = (1 - a) theta_0 + a theta_1

    theta_0, theta_1: both towers' parameters, frozen and fine-tuned (see `full`); a: the one of
    0, 0.1, ..., 1 that is best on the val images, of equal ones the smallest.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, section 3
        (https://arxiv.org/abs/2109.01903); code mlfoundations/wise-ft, src/wise_ft.py.
    Differs: as `full`. The paper reports all a, or 0.5; here one is chosen on val images.
    """

    uses_val: ClassVar[bool] = True

    @torch.no_grad()
    def finish(self, head: nn.Module, support: Support) -> None:
        pairs = [(frozen, copy, copy.clone()) for frozen, copy in support.unfrozen.values()]
        shares, correct = [tenth / 10 for tenth in range(11)], list[int]()

        def mix(share: float) -> None:
            for frozen, copy, trained in pairs:
                copy.copy_(torch.lerp(frozen.to(copy), trained, share))

        for share in shares:
            mix(share)
            image, labels = support.val()
            logits = CosineHead()(image, support.text, HeadContext(support.scale))
            correct.append(int((logits.argmax(-1) == labels).sum()))
        mix(shares[correct.index(max(correct))])
