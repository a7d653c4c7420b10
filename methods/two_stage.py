"""Two-stage few-shot adaptation: LayerNorms of both towers first, then a classifier."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    CosineHead,
    Gradients,
    HarnessError,
    HeadContext,
    Method,
    Output,
    Step,
    Support,
    Views,
    adamw,
    class_features,
    cosine_decay,
    published,
)


class Selective(CosineHead):
    """A cosine classifier with a learned weight for each fitted class; other classes are told apart
    by their texts."""

    def __init__(self, classes: int, embedding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, embedding))

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        own = text if given.rows is None else self.weight[given.rows, None]
        return super().forward(image, own, given)


@dataclass(frozen=True, kw_only=True)
class TwoStage(Method):
    """LayerNorms of both towers are tuned, then frozen, and a classifier that starts at their text
    features is tuned.

        first 0.6 of the steps:  L = CE(cos(f, t_c) / tau), all LayerNorms are trained
        then:                    L = CE(cos(f, w_c) / tau), W [C, E] alone; w_c = t_c at its start

    f [E], t_c [E]: features of the tuned towers, "a photo of a {}." Classes that are fitted are
    told apart by w_c, others by t_c. The optimiser and the cosine of the rate begin anew with the
    second stage.

    `ln_tuning` is the first stage alone, for all steps; `bitfit` the same with the biases in the
    place of the LayerNorms.

    Source: Farina et al., Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages
        (https://arxiv.org/abs/2503.11609); code FarinaMatteo/rethinking_fewshot_vlms,
        fs/twostage.py, fs/ln_only.py and fs/utils/model_utils.py.
    Differs: the shots are the field's, the code has 165 lists of its own. `bitfit` leaves the
        biases of queries, keys and values alone, as the code does, where they have another name.
        The towers run through the second stage as through the first, which costs time and changes
        nothing. On CUDA bfloat16 autocast, with normalised features and logits in single precision,
        where the code has half-precision autocast with loss scaling.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ln_tuning": {"share": 1.0},
        "bitfit": {"share": 1.0, "trained": "biases"},
    }

    lr: float = published(2e-4, "2SFS fs/main.py")
    epochs: int = published(0, "not used: `iterations` counts")
    iterations: int = published(4800, "2SFS fs/main.py, 300 for each shot")
    batch_size: int = published(32, "2SFS fs/main.py")
    momentum: float = published(0.9, "2SFS fs/main.py, AdamW's beta_1")
    weight_decay: float = published(1e-2, "2SFS fs/main.py, AdamW")
    warmup_epochs: int = published(0, "2SFS fs/twostage.py")
    share: float = published(0.6, "2SFS fs/main.py, of the steps that are the first stage's")
    trained: Literal["norms", "biases"] = published("norms", "2SFS fs/main.py, in the first stage")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """2SFS fs/main.py: 300 iterations a shot."""
        return {"iterations": 300 * shots}

    def views(self) -> Views:
        return Views(drop_last=False)

    def unfrozen(self, clip: Clip) -> Iterable[str]:
        names = clip.parameters_by_name()
        if self.trained == "biases":
            return [n for n in names if n.endswith(".bias") and not n.endswith(".attn.bias")]
        return [name for name in names if name.split(".")[-2].startswith("ln")]

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        one = self.share == 1
        return CosineHead() if one else Selective(len(classes.names), clip.embedding)

    def prepare(self, head: nn.Module, support: Support) -> None:
        if isinstance(head, Selective):
            with torch.no_grad():
                head.weight.copy_(class_features(support.text))

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Of the first stage."""
        logits = CosineHead()(output.image, output.text, output.given)
        return F.cross_entropy(logits, labels) + output.auxiliary

    def step(self, step: Step) -> Tensor:
        first = self.first_steps(step.total)
        if step.number < first:
            return super().step(step)
        head = step.head
        assert isinstance(head, Selective)

        def second(output: Output, labels: Tensor) -> Tensor:
            if step.number == first:  # what all texts of the step come to, before W is used
                head.weight.data.copy_(class_features(output.text))
            logits = head(output.image.detach(), output.text, output.given)
            return F.cross_entropy(logits, labels)

        value, gradients = step.gradients(second)
        only: Gradients = dict.fromkeys(gradients)
        step.update(only | {"head.weight": gradients["head.weight"]})
        return value

    def first_steps(self, total: int) -> int:
        """How many of the steps are the first stage's."""
        return int(self.share * total)

    def steps(self, steps_an_epoch: int) -> int:
        return self.iterations

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return adamw(self, parameters)

    def learning_rate(self, step: int, steps_an_epoch: int, total: int) -> float:
        first = self.first_steps(total)
        at, of = (step, first) if step < first else (step - first, total - first)
        return cosine_decay(self.lr, at, of, floor=1e-6)

    def check(self) -> None:
        super().check()
        if self.share > 1:
            raise HarnessError(f"{self.name}.share must be at most 1, not {self.share}.")
