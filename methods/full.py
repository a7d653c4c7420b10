"""Full fine-tuning of both towers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.method import Clip, Method, Step, adamw, clipped, published


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """All parameters of both towers are trained.

        L = CE(cos(f, t_c) / tau)

    The gradient of all parameters together is clipped to the norm 1.

    Source: the reference point of parameter-efficient methods; the optimiser, rate, epochs and
        decay of Wortsman et al., Robust fine-tuning of zero-shot models
        (https://arxiv.org/abs/2109.01903); code mlfoundations/wise-ft, src/models/finetune.py.
    Differs: WiSE-FT trains the image tower and a classifier on all of ImageNet, in batches of 512
        for ten epochs. Here both towers learn from the shots, in batches of 32 for ten epochs with
        rates that fall by epoch after one of warm-up: this project's choice. logit_scale stays as
        it is.
    """

    lr: float = published(3e-5, "WiSE-FT README.md")
    epochs: int = published(10, "WiSE-FT src/args.py")
    batch_size: int = published(32, "this project's choice for few shots")
    momentum: float = published(0.9, "PyTorch's default, AdamW's beta_1")
    weight_decay: float = published(0.1, "WiSE-FT src/args.py")
    norm: float = published(1.0, "WiSE-FT src/models/finetune.py, of the clipped gradient")

    def unfrozen(self, clip: Clip) -> Iterable[str]:
        return clip.parameters_by_name()

    def step(self, step: Step) -> Tensor:
        loss, gradients = step.gradients(self.loss)
        step.update(clipped(gradients, self.norm))
        return loss

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return adamw(self, parameters)
