"""Runs: every combination asked for, each with a key that is a hash of all it depends on."""

import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harness.cache import Cache
from harness.clip import Clip
from harness.config import Engine
from harness.data import Augmentation, FiveCrop, Source
from harness.dataset import Classes, Dataset, Item, Split, class_names, few_shot, select
from harness.errors import HarnessError
from harness.graft import Model
from harness.measure import device_name
from harness.method import Method
from harness.results import digest
from harness.task import Fit, Measurement
from harness.trainer import Schedule


@dataclass(frozen=True)
class Named:
    """A built plugin: its registered name, the object, and the fields that the user changed."""

    name: str
    value: Any
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """What a plan needs to know of a model: trained numbers, and the cut of each tower."""

    parameters: int
    cuts: dict[str, int | None]


@dataclass
class Bench:
    """What the runs share: the backbone, the datasets under their root, settings and caches."""

    clip: Clip
    datasets: dict[str, Dataset]
    root: Path | None
    engine: Engine
    cache: Cache = field(default_factory=Cache)
    _read: dict[str, dict[str, list[Item]]] = field(default_factory=dict)
    _classes: dict[str, Classes] = field(default_factory=dict)
    _contents: dict[str, str] = field(default_factory=dict)
    _shapes: dict[object, Shape] = field(default_factory=dict)
    _sources: dict[str, Source] = field(default_factory=dict)

    def lists(self, dataset: str) -> dict[str, list[Item]]:
        """The full lists of a dataset, read once.

        Raises:
            HarnessError: the data is missing or unusable, with the dataset's name.
        """
        if dataset not in self._read:
            self._read[dataset] = self.datasets[dataset].read(self.root)
        return self._read[dataset]

    def classes(self, dataset: str) -> Classes:
        """All classes of a dataset: those of its training list, or of its test list."""
        if dataset not in self._classes:
            lists = self.lists(dataset)
            names = class_names(lists["train"] or lists["test"])
            template = self.datasets[dataset].template
            self._classes[dataset] = Classes(dataset, tuple(names), template)
        return self._classes[dataset]

    def train(self, dataset: str, subset: str, shots: int, seed: int) -> Split:
        """The few-shot images of a subset of the classes.

        Raises:
            HarnessError: there are none.
        """
        lists = self.lists(dataset)
        drawn, _ = few_shot(lists["train"], lists["val"], shots, seed)
        return self._select(drawn, dataset, subset, "training")

    def evaluated(self, dataset: str, subset: str, shots: int, seed: int) -> Split:
        """The images that are scored: the test split, or the few-shot val (engine.split)."""
        if self.engine.split == "val":
            return self.val(dataset, subset, shots, seed)
        return self._select(self.lists(dataset)["test"], dataset, subset, "test")

    def val(self, dataset: str, subset: str, shots: int, seed: int) -> Split:
        """The few-shot validation images of a subset of the classes."""
        lists = self.lists(dataset)
        _, drawn = few_shot(lists["train"], lists["val"], shots, seed)
        return self._select(drawn, dataset, subset, "validation")

    def source(self, dataset: str) -> Source:
        """Where a dataset's images come from."""
        if dataset not in self._sources:
            self._sources[dataset] = Source(self.datasets[dataset], self.root, self.cache.disk)
        return self._sources[dataset]

    def augmentation(self, method: Method) -> Augmentation | FiveCrop:
        """How a method's training views are made."""
        views = method.views()
        if views.crop == "five":
            return FiveCrop()
        return Augmentation(views.scale or self.engine.crop_scale, views=self.engine.views)

    def _select(self, items: Sequence[Item], dataset: str, subset: str, split: str) -> Split:
        if dataset not in self._contents:
            self._contents[dataset] = self.datasets[dataset].content(self.root)
        chosen = select(items, subset, self.classes(dataset), self._contents[dataset], split)
        if self.engine.on_bad_image == "error":
            return chosen
        return chosen.without(self.source(dataset).unreadable(chosen))


@dataclass(frozen=True)
class Run:
    """A method on a task and dataset, for one seed, on a bench."""

    method: Named
    task: Named
    dataset: str
    shots: int
    seed: int
    bench: Bench

    @cached_property
    def fit(self) -> Fit:
        return self.task.value.fit(self.dataset)

    @cached_property
    def train(self) -> Split:
        return self.bench.train(self.fit.dataset, self.fit.subset, self.shots, self.seed)

    @cached_property
    def val(self) -> Split | None:
        """The validation images of the fitted classes, for a method that uses them."""
        if not self.method.value.uses_val:
            return None
        return self.bench.val(self.fit.dataset, self.fit.subset, self.shots, self.seed)

    @cached_property
    def refusal(self) -> str | None:
        """Why the method cannot serve the task, or None."""
        if not self.method.value.only_fitted_classes:
            return None
        mine = self.train.classes
        others = [name for name, s in self.evaluated.items() if mine.numbers(s.classes) is None]
        if not others:
            return None
        return (
            f"{self.method.name} classifies only the classes that it was fitted on, and "
            f"{self.task.name} evaluates others ({', '.join(others[:3])})"
        )

    @cached_property
    def evaluated(self) -> dict[str, Split]:
        """The scored splits by evaluation."""
        return {
            e.name: self.bench.evaluated(e.dataset, e.subset, self.shots, self.seed)
            for e in self.task.value.evaluations(self.dataset)
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values."""
        clip = self.bench.clip
        prints = {
            "weights": clip.fingerprint,
            "train": self.train.fingerprint,
            "evaluated": {name: s.fingerprint for name, s in self.evaluated.items()},
        }
        identity = {
            "method": self.method.name,
            "hyperparameters": asdict(self.method.value),
            "overrides": dict(self.method.overrides),
            "code": code_hash(type(self.method.value)),
            "task": self.task.name,
            "task_fields": asdict(self.task.value),
            "dataset": self.dataset,
            "backbone": clip.name,
            "shots": self.shots,
            "seed": self.seed,
            "settings": self.bench.engine.identity(),
            "fingerprints": prints | ({"val": self.val.fingerprint} if self.val else {}),
        }
        if isinstance(self.task.value, Measurement):
            identity["measured_on"] = [device_name(clip.device), torch.get_num_threads()]
        splits = {"train": self.train, **self.evaluated}
        skipped = {name: list(split.skipped) for name, split in splits.items() if split.skipped}
        return json.loads(json.dumps(identity | ({"skipped": skipped} if skipped else {})))

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits of the identity's hash; the user's notation of it plays no part."""
        content = {k: v for k, v in self.identity.items() if k != "overrides"}
        return digest(content)

    @cached_property
    def fit_key(self) -> str:
        """Sixteen hex digits of a hash of all that the fit depends on: runs that share it share
        the fitted weights, whatever they evaluate."""
        names = ("hyperparameters", "code", "backbone", "shots", "seed")
        content: dict[str, Any] = {name: self.identity[name] for name in names}
        content["settings"] = {k: v for k, v in self.identity["settings"].items() if k != "split"}
        content["prints"] = {k: v for k, v in self.identity["fingerprints"].items()
                             if k != "evaluated"}  # fmt: skip
        return digest(content | {"method": type(self.method.value).name})

    @cached_property
    def schedule(self) -> Schedule:
        engine = self.bench.engine
        count = len(self.train.items)
        return Schedule.of(self.method.value, count, engine.max_epochs, engine.max_steps)

    def model(self) -> Model:
        """The untrained model of this run."""
        return Model(self.bench.clip, self.method.value, self.train.classes, self.seed)

    @property
    def shape(self) -> Shape:
        """The model's size and cuts, found once for a method and a dataset.

        Raises:
            HarnessError: the backbone cannot carry the method.
        """
        key = (self.method.value, self.train.classes)
        if key not in self.bench._shapes:
            model, clip = self.model(), self.bench.clip
            parameters = sum(parameter.numel() for parameter in model.parameters())
            cuts = {tower.name: model.cut(tower) for tower in (clip.image, clip.text)}
            self.bench._shapes[key] = Shape(parameters, cuts)
        return self.bench._shapes[key]

    def __str__(self) -> str:
        return f"{self.method.name} {self.task.name} {self.dataset} seed {self.seed}"


# (task whose recipes hold, fitted dataset, shots) -> methods
Build = Callable[[str, str, int], Sequence[Named]]


def product(
    bench: Bench,
    methods: Build,
    task: Named,
    datasets: Iterable[str],
    shots: int,
    seeds: Iterable[int],
) -> list[Run]:
    """All combinations of a task, in an order that lets neighbours share frozen activations.

    Raises:
        HarnessError: fewer than one shot, or no seed.
    """
    if shots < 1:
        raise HarnessError(f"--shots must be at least 1, not {shots}.")
    return [
        Run(method, task, dataset, shots, seed, bench)
        for dataset, seed in itertools.product(datasets, seeds)
        for method in methods(
            task.value.published(task.name), task.value.fit(dataset).dataset, shots
        )
    ]


def code_hash(cls: type) -> str:
    """A hash of the files that define a method: its own and those of the methods it extends."""
    files = {
        inspect.getsourcefile(c) for c in cls.mro() if issubclass(c, Method) and c is not Method
    }
    digest = hashlib.sha256()
    for file in sorted(filter(None, files), key=lambda f: Path(f).name):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]
