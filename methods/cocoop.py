"""CoCoOp: conditional context optimisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import Classes, Clip, Edit, Site, SiteContext, published
from harness.methods.coop import Context, CoOp


class Conditional(Context):
    """Context vectors that a small network shifts by the image's feature."""

    def __init__(self, vectors: Tensor, embedding: int) -> None:
        super().__init__(vectors)
        hidden, width = embedding // 16, vectors.shape[1]
        self.meta = nn.Sequential(nn.Linear(embedding, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        shift = self.meta(F.normalize(at.image, dim=-1))  # [R, D]
        return self.replaced(y, self.vectors + shift[:, None])


@dataclass(frozen=True, kw_only=True)
class CoCoOp(CoOp):
    """CoOp with a context that depends on the image, so that each image has its own class texts.

        v_m(x) = v_m + pi,  pi = W_2 ReLU(W_1 f^ + b_1) + b_2;  logits_c = cos(f, g(t_c(x))) / tau

    f^: the image's normalised feature [E]; W_1 [E, E/16], W_2 [E/16, D]: the meta-network; v_m,
    t_c, tau as in CoOp. On ViT-B/16 there are 35,360 trained numbers; the 0.354M of the DRA paper's
    Table 6 is a misprint.

    The B x C texts of a batch go through the text tower together, at most 1,024 at a time
    unless `engine.text_chunk` says otherwise.

    Source: Zhou et al., Conditional Prompt Learning for Vision-Language Models, section 3.2
        (https://arxiv.org/abs/2203.05557); code KaiyangZhou/CoOp, trainers/cocoop.py and
        configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml.
    Differs: bfloat16 autocast with float32 prompts instead of half precision.
    """

    text_per_image: ClassVar[bool] = True

    epochs: int = published(10, "CoOp configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml")
    batch_size: int = published(1, "CoOp configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """The code runs every dataset and task with the same settings."""
        return {}

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        (context,) = super().edits(clip, classes).values()
        assert isinstance(context, Context)
        return {"text.tokens": Conditional(context.vectors.detach(), clip.embedding)}
