"""Few-shot classification over all classes."""

from dataclasses import dataclass

from harness.task import Evaluation, Fit, Task


@dataclass(frozen=True, kw_only=True)
class FewShot(Task):
    """Fit on all classes of a dataset; evaluate on its test images, over the same classes.

    Source: Zhou et al., Learning to Prompt for Vision-Language Models, section 4.1
        (https://arxiv.org/abs/2109.01134).
    """

    def fit(self, dataset: str) -> Fit:
        return Fit(dataset, "all")

    def evaluations(self, dataset: str) -> list[Evaluation]:
        return [Evaluation("test", dataset, "all")]
