"""Few-shot classification over all classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.task import Evaluation, Fit, Task


@dataclass(frozen=True, kw_only=True)
class FewShot(Task):
    """Fit on all classes of a dataset; evaluate on test images of the same classes.

    With `forgetting` (--forgetting) also on the other selected datasets: the mean of the accuracy
    after the fit minus the zero-shot accuracy there, negative where the fit harmed.

    Source: Zhou et al., Learning to Prompt for Vision-Language Models, section 4.1
        (https://arxiv.org/abs/2109.01134); forgetting: the question of Comp-LoRA.
    """

    forgetting: bool = False
    others: tuple[str, ...] = ()  # the selected datasets, with forgetting

    def with_datasets(self, datasets: Sequence[str]) -> "FewShot":
        return replace(self, others=tuple(datasets) if self.forgetting else ())

    def fit(self, dataset: str) -> Fit:
        return Fit(dataset, "all")

    def evaluations(self, dataset: str) -> list[Evaluation]:
        others = [each for each in self.others if each != dataset]
        own = Evaluation("test", dataset, "all")
        return [own, *(Evaluation(each, each, "all", change=True) for each in others)]
