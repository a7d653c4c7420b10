"""CLIP-Adapter: an adapter on the image feature."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.method import Classes, Clip, CosineHead, HarnessError, HeadContext, Method, published
from harness.methods.coop import few_shot_epochs


class Mixed(CosineHead):
    """CLIP's classifier on a mixture of the image feature and its adapted form."""

    def __init__(self, embedding: int, ratio: float) -> None:
        super().__init__()
        self.down = nn.Linear(embedding, embedding // 4, bias=False)
        self.up = nn.Linear(embedding // 4, embedding, bias=False)
        self.ratio = ratio

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        adapted = self.up(self.down(image).relu()).relu()
        return super().forward(self.ratio * adapted + (1 - self.ratio) * image, text, given)


@dataclass(frozen=True, kw_only=True)
class CLIPAdapter(Method):
    """A bottleneck on the image feature, mixed with the feature itself; both towers stay frozen.

        f' = rho ReLU(W_2 ReLU(W_1 f)) + (1 - rho) f;  logits_c = cos(f', t_c) / tau

    f [E]: the image feature before normalisation; W_1 [E, E/4], W_2 [E/4, E]: without biases;
    rho = 0.2; t_c: the feature of the dataset's template.

    Source: Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, Eq. 4-7
        (https://arxiv.org/abs/2110.04544); code gaopengcuhk/CLIP-Adapter, clip_adapter.py.
    Differs: the image adapter alone, with rho = 0.2 everywhere, as in the released code; the paper
        also has a text adapter and a ratio for each dataset. Trained with CoOp's settings, as the
        code's README says (the paper: learning rate 1e-5); where the paper has no numbers, beyond
        few-shot, with the same, this project's choice. On CUDA the towers run in bfloat16
        autocast and the adapter in single precision, in the code both in single precision.
    """

    epochs: int = published(200, "CLIP-Adapter README: CoOp's configuration")
    ratio: float = published(0.2, "CLIP-Adapter clip_adapter.py, rho")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """CoOp's epochs of few-shot classification."""
        return {"epochs": few_shot_epochs(dataset, shots)}

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(classes.template)

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Mixed(clip.embedding, self.ratio)

    def check(self) -> None:
        super().check()
        if self.ratio > 1:
            raise HarnessError(f"{self.name}.ratio must be at most 1, not {self.ratio}.")
