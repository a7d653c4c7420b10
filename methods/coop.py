"""CoOp: context optimisation."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.method import At, Classes, Clip, Edit, Method, Site, published


class Context(Edit):
    """Replaces the token embeddings after start-of-text by learned vectors [M, D]."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def forward(self, x: Tensor, y: Tensor, at: At) -> Tensor:
        rows, count = len(y), len(self.vectors)
        context = self.vectors.to(y.dtype).expand(rows, -1, -1)  # [R, M, D]
        return torch.cat([y[:, :1], context, y[:, 1 + count :]], dim=1)  # [R, L, D]


@dataclass(frozen=True, kw_only=True)
class CoOp(Method):
    """Learned context vectors in place of the words of the prompt, shared by all classes.

        t_c = [SOS] v_1 ... v_M [name of c] "." [EOS];  L = CE(cos(f(x), g(t_c)) / tau)

    v_m: learned vectors in the space of the token embeddings; f, g: the frozen towers.

    Source: Zhou et al., Learning to Prompt for Vision-Language Models, section 3.2
        (https://arxiv.org/abs/2109.01134); for base-to-new the configuration of Zhou et al.,
        Conditional Prompt Learning, section 4.1 (https://arxiv.org/abs/2203.05557): M = 4,
        initialised from "a photo of a", 200 epochs.
    Differs: bfloat16 autocast with float32 prompts instead of half-precision weights and prompts.
    """

    epochs: int = published(200, "CoOp scripts/cocoop/base2new_train.sh; Zhou et al. 2022b, 4.1")
    context: str = published("a photo of a", "Zhou et al. 2022b, section 4.1")

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(f"{self.context} {{}}.")

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        ids = clip.tokenize([self.context])[0]
        embedded = clip.text.text.token_embedding(ids[1 : int(ids.argmax())])  # [M, D]
        return {"text.tokens": Context(embedded.detach().clone())}
