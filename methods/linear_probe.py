"""Linear probe: logistic regression on frozen image features."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.method import Classes, Clip, HeadContext, Method, Support, published


class Linear(nn.Module):
    """Weights and biases of the fitted classes; texts play no part."""

    def __init__(self, embedding: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, classes)

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        return self.linear(image)


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Method):
    """Logistic regression on the frozen image features of the few-shot images.

        min_{W, b} |W|^2 / 2 + C sum_n CE(W f_n + b, y_n)

    f_n [E]: feature of image n under the test transform, before normalisation. C is chosen by the
    accuracy on the val images: seven powers of ten from 1e-6 to 1e6, then the step is halved around
    the best until there are eight values a decade; of equal ones the first tried wins.

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
        appendix A.3 (https://arxiv.org/abs/2103.00020), solved by scikit-learn's L-BFGS.
    Differs: the features are those after CLIP's projection, as in the paper's released example, and
        val has min(shots, 4) images a class. Afterwards it is not fitted again on train and val. Of
        equal strengths the smallest counts; CoOp's lpclip begins with the largest, and halves its
        steps.
    """

    uses_val: ClassVar[bool] = True
    only_fitted_classes: ClassVar[bool] = True

    epochs: int = published(0, "solved in closed form by scikit-learn")
    iterations: int = published(1000, "Radford et al., appendix A.3")

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Linear(clip.embedding, len(classes.names))

    def prepare(self, head: nn.Module, support: Support) -> None:
        assert isinstance(head, Linear)
        features, labels = support.test().cpu().numpy(), support.labels.cpu().numpy()
        held, truth = (each.cpu().numpy() for each in support.val())
        from sklearn.linear_model import LogisticRegression  # takes a second, and few need it

        tried: dict[float, tuple[float, LogisticRegression]] = {}

        def attempt(exponent: float) -> None:
            if exponent not in tried:
                model = LogisticRegression(C=10**exponent, max_iter=self.iterations)
                model.fit(features, labels)
                tried[exponent] = (float((model.predict(held) == truth).mean()), model)

        for exponent in range(-6, 7, 2):
            attempt(exponent)
        width = 1.0
        while width >= 1 / 8:
            best = max(tried, key=lambda e: tried[e][0])
            attempt(best - width)
            attempt(best + width)
            width /= 2
        chosen = max(tried.values(), key=lambda t: t[0])[1]
        weight, bias = torch.from_numpy(chosen.coef_), torch.from_numpy(chosen.intercept_)
        if len(weight) == 1:  # two classes: scikit-learn gives the second's logit
            weight, bias = torch.cat([0 * weight, weight]), torch.cat([0 * bias, bias])
        with torch.no_grad():
            head.linear.weight.copy_(weight)
            head.linear.bias.copy_(bias)
