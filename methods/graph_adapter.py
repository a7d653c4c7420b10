"""GraphAdapter: class texts adapted along graphs of the other classes' texts and images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    BEST_SEVEN,
    Classes,
    Clip,
    CosineHead,
    HarnessError,
    HeadContext,
    Method,
    Support,
    ensembled,
    published,
)

TEMPLATES = (*BEST_SEVEN, "a photo of a {}.")
GROUPS = 4


class Convolution(nn.Module):
    """tanh(X W + b_c) of what a graph has gathered for each class, X [G, C, E]."""

    def __init__(self, classes: int, embedding: int) -> None:
        super().__init__()
        bound = embedding**-0.5
        self.weight = nn.Parameter(torch.empty(embedding, embedding).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(classes, embedding))

    def forward(self, gathered: Tensor) -> Tensor:
        """[G, C, E]."""
        return (gathered @ self.weight + self.bias).tanh()


class Graphs(CosineHead):
    """CLIP's classifier on text features mixed with what two graphs make of them.

    gathered [2, G, C, E]: each class's neighbourhood in the G groups' graphs of texts and images.
    """

    gathered: Tensor

    def __init__(
        self, classes: int, embedding: int, groups: int, text_share: float, own_share: float
    ) -> None:
        super().__init__()
        self.of_texts = Convolution(classes, embedding)
        self.of_images = Convolution(classes, embedding)
        self.register_buffer("gathered", torch.zeros(2, groups, classes, embedding))
        self.text_share, self.own_share = text_share, own_share

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        """text [C, T, E]: the mean of its T features is adapted."""
        texts, images = self.of_texts(self.gathered[0]), self.of_images(self.gathered[1])
        graph = (self.text_share * texts + (1 - self.text_share) * images).mean(0)  # [C, E]
        adapted = self.own_share * text.mean(1) + (1 - self.own_share) * graph
        return super().forward(image, adapted[:, None], given)


def gathered(text: Tensor, nodes: Tensor) -> Tensor:
    """Row 0 of D^-1/2 A D^-1/2 X [C, E], for each class's graph of its text [C, E] and some nodes
    [K, E], A = max(cosines, 0) + I."""
    across = (F.normalize(text, dim=-1) @ F.normalize(nodes, dim=-1).T).clamp_min(0)  # [C, K]
    among = F.normalize(nodes, dim=-1) @ F.normalize(nodes, dim=-1).T
    degrees = among.clamp_min(0).sum(1) + 1 + across  # [C, K]
    own = 2 + across.sum(1, keepdim=True)  # of the class's text; its cosine with itself is 1
    return 2 * text / own + (across / (own * degrees).sqrt()) @ nodes


@dataclass(frozen=True, kw_only=True)
class GraphAdapter(Method):
    """Each class's text feature moves along graphs whose nodes are the texts, and the mean images,
    of the classes; both towers stay frozen.

        t'_c = beta t_c + (1 - beta) 1/4 sum_g [alpha G_t(t_c, T_g) + (1 - alpha) G_v(t_c, V_g)]
        G(t_c, N) = tanh(row 1 of D^-1/2 A D^-1/2 X W + b_c),  X = (t_c, N)
        logits_c = cos(f, t'_c) / tau

    f [E]: image feature; t_c [E]: mean of the features of the class's templates, before
    normalisation; T_g, V_g: the texts and the mean image features of the classes g, g + 4, g + 8,
    ...; A: the nodes' cosines, negative ones zero, plus I; D: its row sums; W [E, E] and b [C, E]:
    learned, one of each for G_t and for G_v; the mean image is over ten views of the class's shots.

    Source: Li et al., GraphAdapter: Tuning Vision-Language Models With Dual Knowledge Graph,
        Eq. 3-8 (https://arxiv.org/abs/2309.13625); code lixinustc/GraphAdapter,
        baseclip_graph_v1.py.
    Differs: the code takes the number of classes to be a multiple of four; here the four groups may
        differ by one class. Its repository is one file without settings: beta, the batch size and
        the templates (TaskRes's, on whose code it stands) are our choice. On CUDA the towers run in
        bfloat16 autocast and the graphs in single precision.
    """

    only_fitted_classes: ClassVar[bool] = True

    lr: float = published(1e-3, "GraphAdapter section 4.1")
    epochs: int = published(100, "GraphAdapter section 4.1")
    batch_size: int = published(256, "not published: TaskRes's")
    momentum: float = published(0.9, "PyTorch's default, Adam's beta_1")
    views_of_each: int = published(10, "GraphAdapter baseclip_graph_v1.py, of the mean images")
    text_share: float = published(0.7, "GraphAdapter baseclip_graph_v1.py, alpha")
    own_share: float = published(0.7, "not published: beta")
    ensemble: bool = published(True, "not published: TaskRes's eight templates on ImageNet")

    def prompts(self, classes: Classes) -> list[list[str]]:
        return ensembled(classes, *(TEMPLATES if self.ensemble else [classes.template]))

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        count = len(classes.names)
        groups = min(GROUPS, count)
        return Graphs(count, clip.embedding, groups, self.text_share, self.own_share)

    @torch.no_grad()
    def prepare(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Graphs)
        text, groups = support.text.mean(1), head.gathered.shape[1]
        views = [support.view(number) for number in range(self.views_of_each)]
        own = F.one_hot(support.labels, len(text)).to(text)  # [N, C]
        images = own.T @ torch.stack(views).mean(0) / own.sum(0)[:, None]  # [C, E]
        for kind, nodes in enumerate((text, images)):
            for group in range(groups):
                head.gathered[kind, group] = gathered(text, nodes[group::groups])

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        betas = (self.momentum, 0.999)
        return torch.optim.Adam(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay)

    def check(self) -> None:
        super().check()
        if self.text_share > 1 or self.own_share > 1:
            raise HarnessError(f"{self.name} needs text_share and own_share of at most 1.")
