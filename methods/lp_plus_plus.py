"""LP++: a linear probe with a learned share of the text classifier."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    BEST_SEVEN,
    Classes,
    Clip,
    Gradients,
    HeadContext,
    Method,
    Step,
    Support,
    Views,
    class_features,
    ensembled,
    published,
)


class Blended(nn.Module):
    """A linear classifier plus alpha_c times the cosine of image and text.

    What the descent needs beside them is not saved: both step sizes, the momenta, the sum of
    alpha's gradients, and the weights that were best on the val images so far.
    """

    def __init__(self, classes: int, embedding: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, classes)
        self.alpha = nn.Parameter(torch.zeros(classes))
        self.rates, self.momenta = list[float](), dict[str, Tensor]()
        self.text_gradient = torch.zeros(classes)  # the sum of all steps
        self.best, self.accuracy = dict[str, Tensor](), -1.0
        self.held: tuple[Tensor, Tensor, Tensor] | None = None  # images, texts, labels of val

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        image = F.normalize(image, dim=-1)
        return self.linear(image) + self.alpha * (image @ class_features(text).T)

    @torch.no_grad()
    def descend(self, gradients: Gradients, momentum: float, text_too: bool) -> None:
        """A step of each block of variables, along the gradients by parameter name."""
        found = {name: g for name, g in gradients.items() if g is not None}
        for name, parameter in self.linear.named_parameters():
            velocity = self.momenta[name].mul_(momentum).add_(found[f"head.linear.{name}"])
            parameter.sub_(velocity, alpha=self.rates[0])
        self.text_gradient += found["head.alpha"]
        if text_too:
            self.alpha.sub_(self.text_gradient, alpha=self.rates[1])

    @torch.no_grad()
    def remember(self, given: HeadContext) -> None:
        """Keeps the weights if none were better on the val images."""
        assert self.held is not None
        image, text, labels = self.held
        accuracy = float((self(image, text, given).argmax(-1) == labels).double().mean())
        if accuracy >= self.accuracy:
            self.accuracy = accuracy
            self.best = {name: value.clone() for name, value in self.state_dict().items()}


@dataclass(frozen=True, kw_only=True)
class LPPlusPlus(Method):
    """Logistic regression on frozen features, with a learned weight of the text for each class.

        logits_c = w_c f^ + b_c + alpha_c cos(f, t_c)
        w_c = sum of class c's f^,  alpha_c = 250 mean_c mean_{i in c} cos(f_i, t_c) at the start

    f^ [E]: normalised image feature, of one augmented view of each shot; t_c [E]: text feature.
    Gradient descent over all shots, 300 steps: w and b with momentum 0.9 and the rate
    4 N / lambda_max(F^T F); after every tenth step alpha moves along the sum of its gradients from
    the first step on, with the rate N / (4 max_c sum_i cos(f_i, t_c)^2). The step with the best
    accuracy on the val images counts, of equal ones the last.

    Source: Huang et al., LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, Eq. 3-11
        (https://arxiv.org/abs/2404.02285); code FereshteShakeri/FewShot-CLIP-Strong-Baseline,
        methods/linear_probe_p2.py, methods/utils.py and configs/base.yaml.
    Differs: the sum of alpha's gradients is the code's, which never clears them; the paper has the
        gradient of the step. val has min(shots, 4) images a class, where the code has `shots`, and
        accuracy is measured there after each step, our reading. w starts at the sum of the class's
        features, as in the code; the paper has the mean. The classifier is in single precision,
        where the code has that of the backbone (half on a GPU).
    """

    uses_val: ClassVar[bool] = True
    only_fitted_classes: ClassVar[bool] = True

    epochs: int = published(0, "not used: `iterations` counts")
    iterations: int = published(300, "LP++ configs/base.yaml")
    batch_size: int = published(0, "LP++ methods/linear_probe_p2.py: all shots in every step")
    warmup_epochs: int = published(0, "LP++ methods/linear_probe_p2.py")
    weight_decay: float = published(0.0, "LP++ methods/linear_probe_p2.py")
    text_weight: float = published(250.0, "LP++ methods/linear_probe_p2.py, alpha's start")
    text_every: int = published(10, "LP++ methods/linear_probe_p2.py, steps between alpha's")

    def prompts(self, classes: Classes) -> list[list[str]]:
        return ensembled(classes, *BEST_SEVEN)

    def views(self) -> Views:
        return Views(scale=(0.5, 1.0), drop_last=False, count=1)

    def steps(self, steps_an_epoch: int) -> int:
        return self.iterations

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Blended(len(classes.names), clip.embedding)

    @torch.no_grad()
    def prepare(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Blended)
        image, features = F.normalize(support.view(0), dim=-1), support.text
        text = class_features(features)
        own = F.one_hot(support.labels, len(text)).to(image)  # [N, C]
        cosines = image @ text.T  # [N, C]
        head.linear.weight.copy_(own.T @ image)
        head.alpha.fill_(self.text_weight * ((own * cosines).sum(0) / own.sum(0)).mean())
        largest = torch.linalg.eigvalsh((image.T @ image).cpu())[-1]
        head.rates = [
            4 * len(image) / float(largest),
            len(image) / (4 * float(cosines.square().sum(0).max())),
        ]
        head.text_gradient = torch.zeros_like(head.alpha)
        head.momenta = {name: torch.zeros_like(p) for name, p in head.linear.named_parameters()}
        val, labels = support.val()
        head.held, head.accuracy = (val, features, labels), -1.0

    def step(self, step: Step) -> Tensor:
        head = step.head
        assert isinstance(head, Blended)
        value, gradients = step.gradients(self.loss)
        head.descend(gradients, self.momentum, (step.number + 1) % self.text_every == 0)
        head.remember(HeadContext(torch.ones(())))
        return value

    @torch.no_grad()
    def finish(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Blended)
        if head.best:
            head.load_state_dict(head.best)
