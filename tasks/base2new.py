"""Base-to-new generalisation."""

from dataclasses import dataclass

from harness.task import Evaluation, Fit, Task


@dataclass(frozen=True, kw_only=True)
class BaseToNew(Task):
    """Fit on the base classes; evaluate base and new classes, each among their own names.

    Source: Zhou et al., Conditional Prompt Learning for Vision-Language Models, section 4.1
        (https://arxiv.org/abs/2203.05557).
    """

    def fit(self, dataset: str) -> Fit:
        return Fit(dataset, "base")

    def evaluations(self, dataset: str) -> list[Evaluation]:
        return [Evaluation(subset, dataset, subset) for subset in ("base", "new")]
