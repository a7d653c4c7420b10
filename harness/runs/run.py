"""A run: a value that says what is fitted and evaluated, and with which settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.config import Engine
from harness.dataset import Dataset
from harness.task import Fit

# The version of the engine's arithmetic: part of every key. Raise it when a change of the engine
# moves a number; the golden values of tests/golden.json, which state it, show whether one does.
ENGINE = 1
BF16_ENGINE = 3  # of runs in bfloat16: closed forms are in float32 since 2, methods' steps since 3


@dataclass(frozen=True)
class Configured:
    """A plugin with its settings: its registered name, the object, the fields that the user
    changed, and the names of those that the user gave."""

    name: str
    value: Any
    overrides: Mapping[str, Any] = field(default_factory=dict, compare=False)
    given: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Run:
    """A method on a task and dataset, with a backbone, for one number of shots and one seed.

    datasets: those that it is fitted and evaluated on, by name. It holds no data and no model, so
    that processes can exchange it (as a pickle it takes less than a kilobyte).
    """

    method: Configured
    task: Configured
    dataset: str
    backbone: str
    shots: int
    seed: int
    settings: Engine
    datasets: tuple[tuple[str, Dataset], ...]

    @property
    def fit(self) -> Fit:
        """What it is fitted on."""
        return self.task.value.fit(self.dataset)

    @property
    def data(self) -> dict[str, Dataset]:
        """Its datasets by name."""
        return dict(self.datasets)

    def __str__(self) -> str:
        return f"{self.method.name} {self.task.name} {self.dataset} seed {self.seed}"
