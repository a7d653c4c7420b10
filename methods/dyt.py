"""DyT: dynamic tuning, where image tokens skip MLPs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    Edit,
    HarnessError,
    Method,
    Output,
    Site,
    SiteContext,
    Step,
    Views,
    adamw,
    blocks_from,
    cosine_decay,
    published,
)

COMPLETE = "complete"  # the pass in which no token skips anything
IMAGES, ENGINE = "DyT main_image.py", "DyT engine_finetune.py"
VTAB = "DyT main_vtab.py"


class Dispatched(Edit):
    """The MLP for the tokens that a gate chooses, and an adapter beside it for all."""

    def __init__(
        self, width: int, rank: int, scale: float, dropout: float, temperature: float
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        self.gate = nn.Linear(width, 1)
        nn.init.trunc_normal_(self.gate.weight, std=0.02)
        for zero in (self.up.weight, self.up.bias, self.down.bias, self.gate.bias):
            nn.init.zeros_(zero)
        self.scale, self.dropout, self.temperature = scale, dropout, temperature

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        inner = at.dropout(F.relu(self.down(at.stream)), self.dropout, f"dropout {at.mode}")
        adapted = self.scale * self.up(inner)  # [B, L, D]
        if at.mode == COMPLETE:
            return y + adapted.to(y.dtype)
        return self.chosen(at).to(y.dtype) * y + adapted.to(y.dtype)

    def chosen(self, at: SiteContext) -> Tensor:
        """Which tokens pass the MLP, 0 or 1 with the gradient of their probability: [B, L, 1]."""
        scores = self.gate(at.stream[:, 1:])  # the class token always does
        if at.training:  # the difference of two Gumbel numbers is a logistic one
            whole = torch.promote_types(scores.dtype, torch.float32)  # bfloat16 would round to 1
            noise = at.noise("gate", *scores.shape[1:]).to(whole).logit()
            scores = (scores + noise) / self.temperature
        soft = scores.sigmoid()
        hard = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
        if at.training:
            at.statistic("chosen", hard)
        return F.pad(hard, (0, 0, 1, 0), value=1.0)


@dataclass(frozen=True, kw_only=True)
class DyT(Method):
    """Adapters beside the MLPs of the image tower, and gates that decide which tokens pass an MLP.

        z = x + Attn(LN_1(x)),  out_i = z_i + m_i MLP(LN_2(z_i)) + s U(ReLU(D(z_i)))
        m_i = 1[sigmoid((w z_i + b + g - g') / T) > 1/2]
        L = CE(p) + CE(q) + KL(q || p) + k (mean m - r)^2

    z_i [d]: token i after the attention; D [r_b, d], U [d, r_b]: learned, with biases, U zero at
    the start, r_b = 64, a tenth of the bottleneck dropped; s = 0.1; w, b: learned, of each block;
    g, g': Gumbel noise, T = 5, both in training alone. m_i is 1 for the class token, and has the
    gradient of the sigmoid. p: probabilities; q: those of the complete model, where m = 1, without
    a gradient in the divergence; the mean of m is over all images, blocks and other tokens,
    r = 0.5, k = 2. The text tower stays frozen.

    Source: Zhao et al., Dynamic Tuning Towards Parameter and Inference Efficiency for ViT
        Adaptation (https://arxiv.org/abs/2403.11808); code NUS-HPC-AI-Lab/Dynamic-Tuning,
        models/dynamic_adapter.py, models/vision_transformer_IN21K.py, models/losses.py,
        engine_finetune.py, main_image.py and main_vtab.py.
    Differs: it is published for a ViT trained on ImageNet-21k, with a linear classifier; here
        CLIP's texts classify. Model and loss are those that the code trains on whole datasets.
        Optimiser, rate, epochs and batch are those of its version for VTAB-1K, which has 1,000
        images a dataset and is nearest to few shots; that version has r_b = 16 and s = 1, and
        trains without random crops and flips, which are the field's here. The last epoch counts,
        where the code keeps the one with the best test accuracy. A fit that is cut to fewer epochs
        warms up for the same share of its steps. Tokens that skip an MLP are multiplied by zero and
        not left out, so that nothing is faster. On a tower with LayerScale the adapter's output is
        scaled as the MLP's is; the code adds it afterwards. bfloat16 autocast on CUDA instead of
        half precision with loss scaling.
    """

    lr: float = published(1e-3, VTAB)
    epochs: int = published(100, VTAB)
    batch_size: int = published(64, "DyT train_vtab.sh")
    momentum: float = published(0.9, VTAB + ", AdamW's beta_1")
    weight_decay: float = published(1e-4, VTAB)
    warmup_epochs: int = published(10, VTAB + ", linear from 0")
    warmup_lr: float = published(0.0, "not used: the warm-up is linear")
    least_lr: float = published(1e-5, VTAB)
    rank: int = published(64, IMAGES + ", r_b")
    scale: float = published(0.1, IMAGES + ", s")
    dropout: float = published(0.1, "DyT models/vision_transformer_IN21K.py")
    temperature: float = published(5.0, "DyT models/dynamic_adapter.py, T")
    target: float = published(0.5, IMAGES + ", r")
    target_weight: float = published(2.0, IMAGES + ", k")

    def views(self) -> Views:
        return Views(drop_last=False)

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        settings = self.rank, self.scale, self.dropout, self.temperature
        return {
            f"image.blocks.{block}.mlp": Dispatched(clip.image.width, *settings)
            for block in blocks_from(clip.image, 1)
        }

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Without the complete model."""
        share = output.statistics["chosen"]
        return super().loss(output, labels) + self.target_weight * (share - self.target) ** 2

    def step(self, step: Step) -> Tensor:
        teacher: dict[str, Tensor] = {}

        def complete(output: Output, labels: Tensor) -> Tensor:
            teacher["logits"] = output.logits.detach()
            return F.cross_entropy(output.logits, labels)

        def dispatched(output: Output, labels: Tensor) -> Tensor:
            likely, target = output.logits.log_softmax(-1), teacher["logits"].log_softmax(-1)
            divergence = F.kl_div(likely, target, reduction="batchmean", log_target=True)
            return self.loss(output, labels) + divergence

        first, gradients = step.gradients(complete, mode=COMPLETE)
        second, others = step.gradients(dispatched)
        for name, gradient in gradients.items():
            other = others[name]
            if gradient is not None:
                others[name] = gradient if other is None else gradient + other
        step.update(others)
        return first + second

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return adamw(self, parameters)

    def learning_rate(self, step: int, steps_an_epoch: int, total: int) -> float:
        """By step: linear from 0, then half a cosine to the least."""
        warmup = round(total * self.warmup_epochs / max(self.epochs, 1))
        if step < warmup:
            return self.lr * step / warmup
        return cosine_decay(self.lr, step - warmup, total - warmup, floor=self.least_lr)

    def check(self) -> None:
        super().check()
        if self.dropout >= 1 or self.target > 1 or self.temperature <= 0:
            raise HarnessError(
                f"{self.name} needs dropout < 1, target <= 1 and temperature > 0, not {self}."
            )
        if self.warmup_epochs > self.epochs:
            raise HarnessError(
                f"{self.name}.warmup_epochs must be at most {self.epochs}, its epochs, and not "
                f"{self.warmup_epochs}."
            )
