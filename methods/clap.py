"""CLAP: a linear probe that starts from, and is held to, the text features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    BEST_SEVEN,
    Classes,
    Clip,
    HeadContext,
    Method,
    Output,
    Step,
    Support,
    Views,
    ensembled,
    generator,
    published,
)

TEMPLATES = (*BEST_SEVEN, "a photo of a {}.")


class Prototypes(nn.Module):
    """A cosine classifier with a learned weight for each class, and the text feature that each
    weight is held to.

    pool [P, E] and pool_labels [P]: the features that it is fitted on, which are not saved.
    """

    anchors: Tensor
    strengths: Tensor
    pool: Tensor
    pool_labels: Tensor

    def __init__(self, classes: int, embedding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, embedding))
        self.register_buffer("anchors", torch.zeros(classes, embedding))
        self.register_buffer("strengths", torch.zeros(classes))
        self.register_buffer("pool", torch.zeros(0, embedding), persistent=False)
        self.register_buffer("pool_labels", torch.zeros(0, dtype=torch.long), persistent=False)

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        return given.scale * F.normalize(image, dim=-1) @ F.normalize(self.weight, dim=-1).T

    def penalty(self) -> Tensor:
        """Mean over classes of lambda_c |w_c - t_c|^2."""
        return (self.strengths * (self.weight - self.anchors).square().sum(-1)).mean()


@dataclass(frozen=True, kw_only=True)
class CLAP(Method):
    """A cosine classifier on frozen features that starts at the text features and is pulled back to
    them, the more the better zero-shot CLIP knows a class.

        logits_c = cos(f, w_c) / tau,  w_c = t_c at the start
        L = CE + 1/C sum_c lambda_c |w_c - t_c|^2
        lambda_c = mean over the views of class c's shots of zero-shot CLIP's probability of c

    f [E]: image feature; t_c [E]: mean of the features of the class's templates, before
    normalisation; w_c [E]: learned, stored and penalised without normalisation. The shots are seen
    as a pool of 20 views of each, encoded once; a step takes 256 of them, an epoch as many steps as
    the shots alone have batches.

    `zs_lp` is the same without the penalty.

    Source: Silva-Rodriguez et al., A Closer Look at the Few-Shot Adaptation of Large
        Vision-Language Models, Eq. 5-8 (https://arxiv.org/abs/2312.12730); code jusiro/CLAP,
        trainers/adapters.py and configs/trainers/SGD_lr1e-1_B256_ep300.yaml (constraint `l2`).
    Differs: the names of classes are read with spaces, where the code leaves underscores in them.
        The multipliers stay as they are at the start, as in the scripts of the experiments; the
        paper describes further outer steps. On CUDA the towers run in bfloat16 autocast and the
        classifier in single precision.
    """

    only_fitted_classes: ClassVar[bool] = True
    may_be_zero: ClassVar[tuple[str, ...]] = (*Method.may_be_zero, "penalty")
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"zs_lp": {"penalty": 0.0}}

    lr: float = published(0.1, "CLAP configs/trainers/SGD_lr1e-1_B256_ep300.yaml")
    epochs: int = published(300, "CLAP configs/trainers/SGD_lr1e-1_B256_ep300.yaml")
    batch_size: int = published(256, "CLAP configs/trainers/SGD_lr1e-1_B256_ep300.yaml")
    weight_decay: float = published(0.0, "CLAP configs/trainers/SGD_lr1e-1_B256_ep300.yaml")
    views_of_each: int = published(20, "CLAP trainers/adapters.py, reps")
    penalty: float = published(1.0, "CLAP trainers/adapters.py; 0 is ZS-LP")

    def prompts(self, classes: Classes) -> list[list[str]]:
        return ensembled(classes, *TEMPLATES)

    def views(self) -> Views:
        return Views(count=self.views_of_each)

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Prototypes(len(classes.names), clip.embedding)

    @torch.no_grad()
    def prepare(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Prototypes)
        text = support.text.mean(1)  # [C, E]
        head.weight.copy_(text)
        head.anchors.copy_(text)
        head.pool = torch.cat([support.view(number) for number in range(self.views_of_each)])
        head.pool_labels = support.labels.repeat(self.views_of_each)
        head.strengths.copy_(self.confidence(head, support.scale))

    def confidence(self, head: Prototypes, scale: Tensor) -> Tensor:
        """lambda [C] of a head whose weights are the text features."""
        probabilities = head(head.pool, head.anchors, HeadContext(scale)).softmax(-1)
        own = F.one_hot(head.pool_labels, probabilities.shape[1]).to(probabilities)  # [P, C]
        return self.penalty * (own * probabilities).sum(0) / own.sum(0)

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        assert isinstance(output.head, Prototypes)
        return super().loss(output, labels) + output.head.penalty()

    def step(self, step: Step) -> Tensor:
        head = step.head
        assert isinstance(head, Prototypes)
        chosen = self.chosen(len(head.pool), step).to(head.pool.device)
        labels = head.pool_labels[chosen]

        def of_pool(output: Output, _: Tensor) -> Tensor:
            logits = head(head.pool[chosen], output.text, output.given)
            return self.loss(output._replace(logits=logits), labels)

        value, gradients = step.gradients(of_pool)
        step.update(gradients)
        return value

    def chosen(self, count: int, step: Step) -> Tensor:
        """Numbers of the views that a step takes; those of an epoch are different ones."""
        size = min(self.batch_size or count, count)
        an_epoch = max(1, count // self.views_of_each // size)
        epoch, batch = divmod(step.number, an_epoch)
        order = torch.randperm(count, generator=generator("pool", step.key[0], epoch))
        return order[batch * size : (batch + 1) * size]
