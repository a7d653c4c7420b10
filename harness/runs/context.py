"""What the runs of a process share: the backbone, datasets and their lists, read once."""

import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.class_texts import ClassTexts
from harness.dataset import Classes, Dataset, FileDataset, Item, Lists
from harness.errors import HarnessError, blaming
from harness.images import lists as given_lists
from harness.images.cache import Cache
from harness.images.contents import DIGESTS
from harness.images.source import ImageSource, no_image_left
from harness.method import method_code
from harness.runs.prepared import ModelSummary, Part, PreparedRun
from harness.runs.run import Run
from harness.splits import Split, class_names, few_shot, read_lists, refilled, select
from harness.towers.openclip import Clip


@dataclass
class Context:
    """The backbone, the folder that holds the datasets, caches, and what has been read already.

    backbone: the model, or what loads it when it is first asked for.
    """

    backbone: Clip | Callable[[], Clip]
    root: Path | None = None
    cache: Cache = field(default_factory=Cache)
    class_texts: Sequence[ClassTexts] = ()
    given: given_lists.ListFolder | None = None  # few-shot lists to train on, instead of drawing
    _prepared: dict[Run, PreparedRun] = field(default_factory=dict, repr=False)
    _lists: dict[Dataset, Lists] = field(default_factory=dict, repr=False)
    _contents: dict[Dataset, str] = field(default_factory=dict, repr=False)
    _classes: dict[tuple[str, Dataset], Classes] = field(default_factory=dict, repr=False)
    _sources: dict[Dataset, ImageSource] = field(default_factory=dict, repr=False)
    _drawn: dict[tuple[object, ...], tuple[list[Item], list[Item]]] = field(
        default_factory=dict, repr=False
    )
    _splits: dict[tuple[object, ...], Split] = field(default_factory=dict, repr=False)
    _codes: dict[type, str] = field(default_factory=dict, repr=False)
    _checked: set[object] = field(default_factory=set, repr=False)
    _models: dict[object, ModelSummary] = field(default_factory=dict, repr=False)

    @property
    def clip(self) -> Clip:
        """The backbone, loaded once."""
        if not isinstance(self.backbone, Clip):
            self.backbone = self.backbone()
        return self.backbone

    def prepare(self, run: Run) -> PreparedRun:
        """The run with what it comes to here, made once."""
        if run not in self._prepared:
            self._prepared[run] = PreparedRun(run, self)
        return self._prepared[run]

    def code(self, method: type) -> str:
        """A hash of a method's code, whose files are read once for all of its runs."""
        if method not in self._codes:
            self._codes[method] = method_code(method)
        return self._codes[method]

    def lists(self, name: str, dataset: Dataset) -> Lists:
        """The full lists of a dataset, read and checked once.

        Raises:
            HarnessError: the data is missing or unusable, with the dataset's name.
        """
        if dataset not in self._lists:
            with blaming(f"{name}.read"):
                self._lists[dataset] = read_lists(name, dataset, self.root)
        return self._lists[dataset]

    def classes(self, name: str, dataset: Dataset) -> Classes:
        """All classes of a dataset: those of its training list, or of its test list."""
        if (name, dataset) not in self._classes:
            lists = self.lists(name, dataset)
            names = tuple(class_names(lists["train"] or lists["test"]))
            ids = dataset.ids(self.root)
            found = Classes(name, names, dataset.template, ids, own=":" in name)
            for given in self.class_texts:
                with suppress(HarnessError):  # those of another dataset: see `unmatched`
                    found = replace(found, descriptions=given.of(names))
                    break
            self._classes[name, dataset] = found
        return self._classes[name, dataset]

    def unmatched(self, classes: Classes) -> str:
        """Why no file of texts describes some classes."""
        reasons = list[str]()
        for given in self.class_texts:
            try:
                given.of(classes.names)
            except HarnessError as error:
                reasons.append(str(error))
        return " ".join(reasons)

    def content(self, name: str, dataset: Dataset) -> str:
        """A dataset's hash of its images, made once."""
        if dataset not in self._contents:
            DIGESTS.disk = self.cache.disk
            if isinstance(dataset, FileDataset) and type(dataset).content is FileDataset.content:
                found = dataset.content_of(self.lists(name, dataset), self.root)
            else:
                found = dataset.content(self.root)
            self._contents[dataset] = found
        return self._contents[dataset]

    def known(self) -> bytes:
        """A pickle of the lists that were drawn, for another process of this command: reading a
        million names again would take it longer than many a fit."""
        return pickle.dumps((self._splits, self._classes, self._contents))

    def learn(self, known: bytes) -> None:
        """What `known` gave; whatever it refers to must have been imported."""
        self._splits, self._classes, self._contents = pickle.loads(known)

    def source(self, dataset: Dataset) -> ImageSource:
        """Where a dataset's images come from."""
        if dataset not in self._sources:
            self._sources[dataset] = ImageSource(dataset, self.root, self.cache.disk)
        return self._sources[dataset]

    def split(self, run: Run, name: str, subset: str, part: Part) -> Split:
        """The few-shot training or validation images, further ones that are neither, or all test
        images, of some of the classes.

        Raises:
            HarnessError: there are none.
        """
        dataset = run.data[name]
        drawn = None if part == "test" else (run.shots, run.seed)
        key = (dataset, name, subset, part, drawn, run.settings.on_bad_image)
        if key not in self._splits:
            self._splits[key] = self._select(run, name, dataset, subset, part)
        return self._splits[key]

    def few_shot(self, run: Run, name: str) -> tuple[list[Item], list[Item]]:
        """The training and validation images of all classes: drawn, or those of the given list.

        Raises:
            HarnessError: no list was given for the run, or it does not fit the dataset.
        """
        dataset = run.data[name]
        key = (name, dataset, run.shots, run.seed)
        if key not in self._drawn:
            lists = self.lists(name, dataset)
            if self.given is None:
                drawn = few_shot(lists["train"], lists["val"], run.shots, run.seed)
            else:
                DIGESTS.disk = self.cache.disk
                listed = self.given.of(name, run.shots, run.seed)
                drawn = listed.items(name, dataset, lists, run.shots, self.root)
            self._drawn[key] = drawn
        return self._drawn[key]

    def _select(self, run: Run, name: str, dataset: Dataset, subset: str, part: Part) -> Split:
        lists = self.lists(name, dataset)
        if part == "test":
            items = lists["test"]
        elif part == "further":
            items = self._further(run, name, subset)
        else:
            train, val = self.few_shot(run, name)
            items = train if part == "training" else val
        chosen = select(
            items, subset, self.classes(name, dataset), self.content(name, dataset), part
        )
        if run.settings.on_bad_image == "error":
            return chosen
        source = self.source(dataset)
        unreadable = source.unreadable(chosen)
        kept = chosen.without(unreadable)
        drawn_here = part in ("training", "validation") and self.given is None
        if unreadable and drawn_here:  # to a given list no image is added
            drawn = {*train, *val}
            if part == "validation" and not lists["val"]:  # what took a training image's place
                drawn |= self._refilled(run, name, subset, lists)
            apart = {i.group for i in (val if part == "training" else train) if i.group}
            spare = [i for i in (lists["val"] if part == "validation" else []) or lists["train"]
                     if i not in drawn and i.group not in apart]  # fmt: skip
            first = items[chosen.positions[0]].label - chosen.items[0].label
            spare = [i._replace(label=i.label - first) for i in spare]
            kept = refilled(chosen, unreadable, spare, run.seed, source.readable)
        gone = {i.label: i.name for i in chosen.items}
        gone = {label: gone[label] for label in gone.keys() - {i.label for i in kept.items}}
        if gone and (part == "training" or not kept.items):
            raise no_image_left(name, part, gone[min(gone)], kept.skipped[0])
        return kept

    def _further(self, run: Run, name: str, subset: str) -> list[Item]:
        """As many images a class as for validation, of those that were drawn for neither part."""
        lists = self.lists(name, run.data[name])
        both: tuple[Part, ...] = ("training", "validation")
        seen = [i for part in both for i in self.split(run, name, subset, part).items]
        paths, groups = {i.path for i in seen}, {i.group for i in seen if i.group}
        others: list[Item] = []
        for part in ("val", "train"):
            others = others or [i for i in lists[part]
                                if i.path not in paths and i.group not in groups]  # fmt: skip
        return few_shot(others, [], min(run.shots, 4), run.seed)[0]

    def _refilled(self, run: Run, name: str, subset: str, lists: Lists) -> set[Item]:
        """The training images of a run, as the dataset lists them."""
        paths = {item.path for item in self.split(run, name, subset, "training").items}
        return {item for item in lists["train"] if item.path in paths}

    def left_out(self, run: Run) -> dict[str, dict[str, int]]:
        """The files that lie among the images of a run and are not read: how many, by suffix."""
        found = {name: dataset.left_out(self.root) for name, dataset in run.datasets}
        return {name: counts for name, counts in found.items() if counts}
