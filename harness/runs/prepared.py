"""A run in a context: its lists of images, its key and its model."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from harness.config import Engine
from harness.dataset import Classes
from harness.errors import HarnessError, blaming
from harness.fitting.model import Model
from harness.fitting.trainer import Schedule
from harness.images import lists as given_lists
from harness.images.pixels import Augmentation, FiveCrop
from harness.images.randaugment import RandAugment
from harness.images.source import ImageSource
from harness.measure import device_name
from harness.method import PHOTO, Method
from harness.records.store import digest
from harness.runs.run import BF16_ENGINE, ENGINE, Configured, Run
from harness.splits import Split
from harness.task import Fit, Measurement

if TYPE_CHECKING:
    from harness.runs.context import Context

Part = Literal["training", "validation", "further", "test"]


@dataclass(frozen=True)
class ModelSummary:
    """What a plan needs to know of a model: trained numbers, and the cut of each tower."""

    parameters: int
    cuts: dict[str, int | None]


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """A run in a context: its lists of images, key and model, each made when it is asked for."""

    run: Run
    context: "Context"

    @property
    def method(self) -> Configured:
        return self.run.method

    @property
    def task(self) -> Configured:
        return self.run.task

    @property
    def dataset(self) -> str:
        return self.run.dataset

    @property
    def fit(self) -> Fit:
        return self.run.fit

    @property
    def shots(self) -> int:
        return self.run.shots

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def settings(self) -> Engine:
        return self.run.settings

    @cached_property
    def train(self) -> Split:
        """The few-shot images of the fit."""
        return self._spoken(self._drawn("training"))

    @cached_property
    def val(self) -> Split | None:
        """The validation images of the fitted classes, for a method that uses them."""
        if not self.method.value.uses_val:
            return None
        try:
            return self._spoken(self._drawn("validation"))
        except HarnessError as error:
            raise HarnessError(
                f"{self.method.name} chooses its settings on validation images: {error} Give the "
                "dataset some, in groups that are not trained on, or leave the method out."
            ) from error

    @cached_property
    def evaluated(self) -> dict[str, Split]:
        """The scored images by evaluation: the test split, or few-shot val (engine.split)."""
        part: Part = "validation" if self.settings.split == "val" else "test"
        return {
            e.name: self._spoken(self.context.split(self.run, e.dataset, e.subset, part))
            for e in self.task.value.evaluations(self.dataset)
        }

    def _drawn(self, part: Part) -> Split:
        return self.context.split(self.run, self.fit.dataset, self.fit.subset, part)

    def _spoken(self, split: Split) -> Split:
        """The split with the templates that the method takes: one if it changes the towers, because
        it puts words of its own, or learned ones, into it."""
        several = "\n" in split.classes.template
        alone = several and (self._changes_towers or self._wordless)
        return split.of_one_template() if alone else split

    @cached_property
    def _changes_towers(self) -> bool:
        if self.method.value.class_texts and not self.context.class_texts:
            return True  # it is refused
        classes = self._drawn("training").of_one_template().classes
        return set(self._summary(classes).cuts.values()) != {None}

    @property
    def _wordless(self) -> bool:
        """Whether the method has no words of its own."""
        return type(self.method.value).prompts is Method.prompts

    def _asks(self) -> dict[str, str]:
        """What a method without words of its own asks of datasets that are given by their paths or
        names, where that is not "a photo of a {}."."""
        every = [self.train.classes, *(split.classes for split in self.evaluated.values())]
        first = {each.dataset: each.template.partition("\n")[0] for each in every if each.own}
        return {n: text for n, text in first.items() if self._wordless and text != PHOTO}

    @property
    def asks_template(self) -> bool:
        """Whether it asks the first template of its dataset."""
        classes = self.train.of_one_template().classes
        with suppress(HarnessError):  # texts that no file has
            return self.method.value.prompts(classes)[0] == classes.texts(classes.template)[0]
        return False

    @property
    def one_template(self) -> dict[str, str]:
        """By dataset the first template, of a method that does not average several."""
        splits = [self.train, *self.evaluated.values()]
        return {s.classes.dataset: s.classes.template for s in splits if s.templates}

    @cached_property
    def refusal(self) -> str | None:
        """Why the method cannot serve the task, or None."""
        if self.method.value.class_texts and not self.context.class_texts:
            return f"{self.method.name} needs texts of the classes: give a file with --class-texts"
        if not self.method.value.only_fitted_classes:
            return None
        fitted = self.train.classes
        others = [name for name, s in self.evaluated.items() if fitted.numbers(s.classes) is None]
        if not others:
            return None
        return (
            f"{self.method.name} classifies only the classes that it was fitted on, and "
            f"{self.task.name} evaluates others ({', '.join(others[:3])})"
        )

    def source(self, split: Split) -> ImageSource:
        """Where the images of a split come from."""
        return self.context.source(self.run.data[split.classes.dataset])

    def augmentation(self, method: Method) -> Augmentation | FiveCrop:
        """How a method's training views are made."""
        views, settings = method.views(), self.settings
        if views.crop == "five":
            return FiveCrop()
        if views.crop == "randaugment":
            return RandAugment(views=settings.views or views.count)
        return Augmentation(views.scale or settings.crop_scale, views=settings.views or views.count)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values."""
        run, clip = self.run, self.context.clip
        prints = {
            "weights": clip.fingerprint,
            "train": self.train.fingerprint,
            "evaluated": {name: s.fingerprint for name, s in self.evaluated.items()},
        }
        identity = {
            "method": self.method.name,
            "hyperparameters": asdict(self.method.value),
            "overrides": dict(self.method.overrides),
            "given": list(self.method.given),
            "code": self.context.code(type(self.method.value)),
            "engine": BF16_ENGINE if run.settings.precision == "bf16" else ENGINE,
            "task": self.task.name,
            "task_fields": asdict(self.task.value),
            "dataset": run.dataset,
            "backbone": run.backbone,
            "shots": run.shots,
            "seed": run.seed,
            "settings": run.settings.identity(isinstance(self.task.value, Measurement)),
            "fingerprints": prints | ({"val": self.val.fingerprint} if self.val else {}),
        }
        if self.one_template:
            identity["one_template"] = self.one_template
            identity["templates"] = self.train.dataset_classes.template.split("\n")
        if asks := self._asks():
            identity["asks"] = asks
        if self.method.value.class_texts:
            identity["class_texts"] = self.class_texts
        if self.context.given is not None:
            drawn = self.context.few_shot(run, self.fit.dataset)
            identity["list"] = given_lists.fingerprint(*drawn)
            identity["lists"] = self.context.given.name
        if isinstance(self.task.value, Measurement):
            identity["measured_on"] = [device_name(clip.device), torch.get_num_threads()]
        splits = {"train": self.train, **({"val": self.val} if self.val else {}), **self.evaluated}
        skipped = {name: list(split.skipped) for name, split in splits.items() if split.skipped}
        return json.loads(json.dumps(identity | ({"skipped": skipped} if skipped else {})))

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits of the identity's hash; the user's notation of it plays no part, nor
        does the name of a folder of lists."""
        words = ("overrides", "given", "lists", "templates")  # the fingerprints know templates
        content = {k: v for k, v in self.identity.items() if k not in words}
        return digest(content)

    @cached_property
    def fit_key(self) -> str:
        """Sixteen hex digits of a hash of all that the fit depends on: runs that share it share
        the fitted weights, whatever they evaluate."""
        names = ("hyperparameters", "code", "engine", "backbone", "shots", "seed")
        content: dict[str, Any] = {name: self.identity[name] for name in names}
        content["settings"] = {k: v for k, v in self.identity["settings"].items() if k != "split"}
        prints: Mapping[str, Any] = self.identity["fingerprints"]
        content["prints"] = {k: v for k, v in prints.items() if k != "evaluated"}
        content |= {n: v for n, v in self.identity.items() if n == "class_texts"}
        if asked := self.identity.get("asks", {}).get(self.train.classes.dataset):
            content["asks"] = asked
        return digest(content | {"method": type(self.method.value).name})

    @cached_property
    def schedule(self) -> Schedule:
        settings, count = self.settings, len(self.train.items)
        return Schedule.of(self.method.value, count, settings.max_epochs, settings.max_steps)

    def model(self) -> Model:
        """The untrained model of this run."""
        return Model(self.context.clip, self.method.value, self.train.classes, self.seed)

    @property
    def summary(self) -> ModelSummary:
        """The model's size and cuts, found once for a method and a dataset.

        Raises:
            HarnessError: the backbone cannot carry the method.
        """
        return self._summary(self.train.classes)

    def _summary(self, classes: Classes) -> ModelSummary:
        key, known = (self.method.value, classes), self.context._models
        if key not in known:
            clip, name = self.context.clip, self.method.name
            try:
                with blaming(f"{name} on {self.run.backbone}"):
                    model = Model(clip, self.method.value, classes, self.seed)
            except HarnessError as error:  # it may name the family, or what it is made of
                raise (
                    error
                    if re.search(rf"\b{re.escape(name)}\b", str(error))
                    else HarnessError(f"{name}: {error}")
                ) from error
            parameters = sum(parameter.numel() for parameter in model.parameters())
            cuts = {tower.name: model.cut(tower) for tower in (clip.image, clip.text)}
            known[key] = ModelSummary(parameters, cuts)
        return known[key]

    @cached_property
    def class_texts(self) -> str:
        """A hash of the user's texts of all classes that the run fits or scores."""
        every = [self.train.classes, *(split.classes for split in self.evaluated.values())]
        return digest([classes.descriptions for classes in every])

    def check_class_texts(self) -> None:
        """Raises HarnessError if the method needs texts of classes that no file has."""
        if not self.method.value.class_texts or self.refusal:
            return
        for name, dataset in self.run.datasets:
            classes = self.context.classes(name, dataset)
            if not classes.descriptions:
                raise HarnessError(
                    f"{self.method.name} needs texts of the classes of {name}. "
                    f"{self.context.unmatched(classes)}"
                )

    def check_texts(self) -> None:
        """Raises HarnessError for a prompt that is too long for the text tower."""
        for classes in {self.train.classes, *(split.classes for split in self.evaluated.values())}:
            key, checked = (self.method.value, classes), self.context._checked
            if key not in checked:
                with blaming(f"{self.method.name}.prompts"):
                    prompts = self.method.value.prompts(classes)
                self.context.clip.tokenize([text for each in prompts for text in each])
                checked.add(key)

    def __str__(self) -> str:
        return str(self.run)
