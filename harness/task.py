"""Tasks: evaluation protocols. A task says what is fitted and what each fit is evaluated on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.errors import HarnessError


@dataclass(frozen=True)
class Evaluation:
    """One score of a run: the classes of a dataset, closed-set over their own names.

    `change`: what counts is the difference to the frozen backbone's zero-shot accuracy; a run's
    changes are shown as their mean.
    """

    name: str
    dataset: str
    subset: str  # all, base or new
    change: bool = False


@dataclass(frozen=True)
class Fit:
    """What is trained on: the few-shot images of a subset of a dataset's classes."""

    dataset: str
    subset: str


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A protocol: its fit and its evaluations, for each dataset that it is run on."""

    name: ClassVar[str] = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def datasets(self) -> Sequence[str]:
        """What the task runs on if the user does not say; empty: the embedded benchmarks."""
        return ()

    def with_datasets(self, datasets: Sequence[str]) -> "Task":
        """The task, knowing the datasets that it will be run on."""
        return self

    def recipe_task(self, name: str) -> str:
        """The task whose published settings the methods take, of a task registered as `name`."""
        return name

    @abstractmethod
    def fit(self, dataset: str) -> Fit:
        """What a run of this task on `dataset` is fitted on."""

    @abstractmethod
    def evaluations(self, dataset: str) -> list[Evaluation]:
        """What the fitted method is then evaluated on, in the order of the table's columns."""


@dataclass(frozen=True, kw_only=True)
class Measurement(Task):
    """What a method costs, and not how well it does: each part is done `repeats` times, inference
    on `images` at once, with the settings that the methods have on the task `like`.

    printed: trainable parameters on ViT-B/16 that a paper prints, by method.
    """

    printed: ClassVar[Mapping[str, int]] = {}

    repeats: int = 5
    images: int = 100
    like: str = "base2new"

    def recipe_task(self, name: str) -> str:
        return self.like

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.images < 1:
            raise HarnessError(f"{self.name} needs repeats and images of at least 1, not {self}.")


@dataclass(frozen=True, kw_only=True)
class Transfer(Task):
    """One fit on all classes of a source, evaluated on all classes of each dataset.

    The source may be among the datasets; it is no part of their average. `targets` are the usual
    ones of a source.
    """

    targets: ClassVar[Mapping[str, Sequence[str]]] = {}

    source: str = "imagenet"

    def datasets(self) -> Sequence[str]:
        return (self.source, *self.targets.get(self.source, ()))

    def fit(self, dataset: str) -> Fit:
        return Fit(self.source, "all")

    def evaluations(self, dataset: str) -> list[Evaluation]:
        return [Evaluation("test", dataset, "all")]
