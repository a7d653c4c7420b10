"""PLOT: prompts matched to local image features by optimal transport."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    Edit,
    HarnessError,
    HeadContext,
    Method,
    Site,
    SiteContext,
    published,
)

TRAINER = "PLOT plot-coop/trainers/plot.py"
CONFIG = "PLOT plot-coop/configs/trainers/PLOT/rn50.yaml"


class Contexts(Edit):
    """Replaces the token embeddings after start-of-text by the vectors of the text's kind."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)  # [N, M, D]

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        own = self.vectors[at.kinds].to(y.dtype)  # [R, M, D]
        return torch.cat([y[:, :1], own, y[:, 1 + own.shape[1] :]], dim=1)  # [R, L, D]


class Local(Edit):
    """The features of all patches instead of the image's: [B, M, E]."""

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        patches = at.op.get_submodule("ln_post")(at.stream[:, 1:])  # [B, M, D]
        return patches @ at.op.get_parameter("proj")


class Transport(nn.Module):
    """Logits by the cosines of local image and prompt features, weighted by the plan that moves the
    ones to the others at the least cost."""

    def __init__(self, entropy: float, iterations: int, threshold: float) -> None:
        super().__init__()
        self.entropy, self.iterations, self.threshold = entropy, iterations, threshold

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        """image [B, M, E], text [C, N, E] -> logits [B, C]."""
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        cosines = torch.einsum("bme,cne->bcmn", image, text)
        return given.scale * (self.plan(cosines.detach()) * cosines).sum((2, 3))

    def plan(self, cosines: Tensor) -> Tensor:
        """Sinkhorn's iterations with uniform margins; [B, C, M, N] -> [B, C, M, N], of sum 1."""
        kernel = ((cosines - 1) / self.entropy).exp()
        m, n = kernel.shape[2:]
        rows, columns = torch.ones_like(kernel[..., :1]), torch.ones_like(kernel[..., :1, :])
        running = torch.ones_like(kernel[..., :1, :1], dtype=torch.bool)  # [B, C, 1, 1]
        for _ in range(self.iterations):
            new = 1 / (m * (kernel * columns).sum(3, keepdim=True))  # [B, C, M, 1]
            change = (new - rows).abs().mean(2, keepdim=True)
            rows = torch.where(running, new, rows)
            columns = torch.where(running, 1 / (n * (kernel * rows).sum(2, keepdim=True)), columns)
            running = running & (change >= self.threshold)
            if not torch.compiler.is_compiling() and not running.any():  # a trace takes them all
                break
        return rows * kernel * columns


@dataclass(frozen=True, kw_only=True)
class PLOT(Method):
    """Several prompts for each class, matched to the local features of an image by optimal
    transport.

        l_c = s sum_mn T_mn cos(z_m, t_cn),  T = argmin_T <T, 1 - cos(z, t_c)> - e H(T)
        L = CE(l);  sums of T over n: 1/M, over m: 1/N

    z_m [E]: feature of patch m of M; t_cn [E]: feature of prompt n of N = 4 for class c, of 16
    learned vectors from N(0, 0.02^2), shared by all classes, and its name; s: CLIP's logit scale;
    H: entropy, e = 0.1. T is what at most 100 of Sinkhorn's iterations give, ended when the scaling
    of the patches changes by less than 0.01 in the mean; no gradient passes it.

    Source: Chen et al., PLOT: Prompt Learning with Optimal Transport for Vision-Language Models,
        section 3 (https://arxiv.org/abs/2210.01253); code CHENGY12/PLOT, of plot-coop:
        trainers/plot.py, configs/trainers/PLOT/rn50.yaml and scripts/main.sh.
    Differs: this form for ViTs is this project's own. PLOT is published for a ResNet, whose 49
        local features come out of its attention pooling; here they are the patch tokens of the last
        block, with the class token's LayerNorm and projection, which CLIP never trained on patches.
        The authors' own form for ViTs, PLOT++, is another method. Of the small datasets for which a
        comment in the code's configuration asks for 32 images a step it names FGVC Aircraft, and
        that alone takes them: where all shots fit into one batch of 128, an epoch is one step. PLOT
        is published for few-shot classification alone; rate, epochs and batch are the same on every
        task. Sinkhorn's iterations end for each pair of image and class by itself; the code ends
        them for a whole batch at once, where a prediction depends on what else is in the batch.
        bfloat16 autocast on CUDA with float32 prompts, and the transport in float32.
    """

    epochs: int = published(50, CONFIG)
    batch_size: int = published(128, CONFIG + "; 32 for small datasets, as a comment says")
    count: int = published(4, "Chen et al. 2023, section 4.1, N")
    vectors: int = published(16, "PLOT plot-coop/scripts/main.sh")
    entropy: float = published(0.1, TRAINER + ", eps")
    iterations: int = published(100, TRAINER + ", max_iter")
    threshold: float = published(0.01, TRAINER + ", thresh")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """PLOT plot-coop/configs/trainers/PLOT/rn50.yaml: 32 images a step on small datasets, of
        which it names FGVC Aircraft."""
        return {"batch_size": 32} if dataset == "fgvc_aircraft" else {}

    def prompts(self, classes: Classes) -> list[list[str]]:
        words = " ".join(["X"] * self.vectors)
        return classes.texts(*[f"{words} {{}}."] * self.count)

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        clip.check_class_token(self.name)
        shape = (self.count, self.vectors, clip.text.width)
        return {"text.tokens": Contexts(0.02 * torch.randn(shape)), "image.features": Local()}

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Transport(self.entropy, self.iterations, self.threshold)

    def check(self) -> None:
        super().check()
        if not self.entropy:
            raise HarnessError(f"{self.name}.entropy must be above 0, not {self.entropy}.")
