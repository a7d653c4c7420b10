"""What a user would not expect of the lists of images, in sentences."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.dataset import Classes, Dataset
from harness.files import shown
from harness.images import library
from harness.images.own import UserImages
from harness.method import Method
from harness.records.tables import image_count
from harness.runs.context import Context
from harness.runs.prepared import PreparedRun
from harness.towers.catalogue import gelu_beside, gelu_twin
from harness.towers.layouts import kind_of


def remarks(runs: Sequence[PreparedRun]) -> list[str]:
    """Images and files that are left out or lie in two places, classes with few images, the halves
    of the user's classes, and that the embedded backbone says little of photographs."""
    found, halves = dict[str, None](), dict[tuple[str, Dataset], set[Classes]]()
    for run in runs:
        if run.refusal:
            continue
        splits = {"train": run.train, **({"val": run.val} if run.val else {}), **run.evaluated}
        for name, dataset in run.run.datasets:
            mine = {s.dataset_classes for s in run.evaluated.values() if s.classes.dataset == name}
            halves.setdefault((name, dataset), set()).update(mine)
        for name, split in splits.items():
            if split.skipped:
                found[
                    f"skipped, {split.classes.dataset}, {name}: "
                    f"{image_count(len(split.skipped))} that cannot be read, such as "
                    f"{shown(split.skipped[0])}."
                ] = None
                left = {item.label for item in split.items}
                lost = [each for n, each in enumerate(split.classes.names) if n not in left]
                if lost and name != "val":
                    found[
                        f"not scored, {split.classes.dataset}, {name}: no image of the class "
                        f"{lost[0]!r}{_others(lost)} can be read."
                    ] = None
        count = Counter(item.name for item in run.train.items)
        few = [name for name, number in count.items() if number < run.shots]
        if few and run.summary.parameters:
            classes = "1 class has" if len(few) == 1 else f"{len(few)} classes have"
            found[
                f"few images, {run.train.classes.dataset}: {classes} fewer than {run.shots} "
                f"training images, such as {few[0]!r} with {count[few[0]]}: all are used."
            ] = None
    context = runs[0].context
    found |= dict.fromkeys([*_templates(runs), *_warmups(runs), *_activation(runs[0].run.backbone)])
    own = [each for (name, dataset), parts in halves.items()
           for each in _own_data(name, dataset, parts, context)]  # fmt: skip
    return [*dict.fromkeys(own), *found]


def _activation(backbone: str) -> list[str]:
    """Which GELU is computed, where the weights are in a file that does not say which they had."""
    model, _, path = backbone.partition(":")
    file, twin = Path(path), gelu_twin(model) if path else None
    if file.suffix != ".safetensors" or twin is None:
        return []
    if gelu_beside(file) is not None or kind_of(file) is not None:
        return []  # it was compared
    mine, other = ("QuickGELU", "GELU") if model.endswith("-quickgelu") else ("GELU", "QuickGELU")
    whose = ", as the weights of OpenAI, MetaCLIP and DFN were," * (other == "QuickGELU")
    return [
        f"activation, {model}: {mine} is computed, and {file.name} does not say what it was "
        f"trained with. If it was {other}{whose} choose {twin}, or accuracy is lost."
    ]


def _warmups(runs: Sequence[PreparedRun]) -> list[str]:
    """Which fits are cut so short that a third of their steps or more are warm-up."""
    found: dict[tuple[str, int, int], None] = {}
    for run in runs:
        method, cut = run.method.value, run.schedule
        warm = min(cut.total, method.warmup_epochs * cut.steps)
        usual = type(method).learning_rate is Method.learning_rate
        if usual and cut.total < method.steps(cut.steps) and 3 * warm >= cut.total > 0:
            found[run.method.name, warm, cut.total] = None
    return [
        f"warm-up, {name}: {warm} of {total} steps have the rate of the warm-up, as the limit of "
        f"steps or epochs cuts the fit; `--set {name}.warmup_epochs=0` leaves it out."
        for name, warm, total in found
    ]


def _templates(runs: Sequence[PreparedRun]) -> list[str]:
    """Which methods do not average a dataset's several templates, and what they ask instead."""
    every = dict[str, Sequence[str]]()
    methods = dict[str, dict[str, dict[str, None]]]()
    for run in runs:
        if run.refusal or not run.one_template:
            continue
        for split in (run.train, *run.evaluated.values()):
            every[split.classes.dataset] = split.dataset_classes.template.split("\n")
        asks = "first" if run.asks_template else "other"
        for name in run.one_template:
            methods.setdefault(name, {}).setdefault(asks, {})[run.method.name] = None
    found = []
    for name, of in methods.items():
        said = f"templates, {name}: methods that leave the towers as they are average all "
        said += f"{len(every[name])}"
        for asks, what in (("first", f"the first alone, {every[name][0]!r}"),
                           ("other", "words of their own")):  # fmt: skip
            said += f"; {', '.join(of[asks])}: {what}" if asks in of else ""
        found.append(f"{said}.")
    return found


def _others(names: Sequence[str]) -> str:
    return f" (and of {len(names) - 1} more)" if len(names) > 1 else ""


def _own_data(name: str, dataset: Dataset, halves: set[Classes], context: Context) -> list[str]:
    found = library.unread(name, dataset, context.root)
    found += library.unlike_published(
        name, dataset, context.lists(name, dataset), len(context.classes(name, dataset).names)
    )
    if _unknown_content(dataset):
        found.append(
            f"images, {name}: this plugin does not say what its image files hold (`content`), so "
            "that a changed image makes no other run. A subclass of FileDataset or UserImages does."
        )
    if not isinstance(dataset, UserImages):
        return found
    if ":" not in context.clip.name:
        found.append(
            f"{context.clip.name} was trained on emoji and icons and knows no photographs: its "
            f"accuracy on {name} says little. Choose a CLIP with --backbone."
        )
    every, lists = context.classes(name, dataset), context.lists(name, dataset)
    sizes = ", ".join(f"{len(lists[part]):,} {part}" for part in ("train", "val", "test"))
    found.append(f"images, {name}: {len(every.names)} classes; {sizes}.")
    if halves and every not in halves:
        half = (len(every.names) + 1) // 2
        base, new = (_ends(names) for names in (every.names[:half], every.names[half:]))
        order = "natural" if type(dataset).ordered is UserImages.ordered else "the dataset's"
        found.append(f"halves, {name}, in {order} order: base {base}, new {new}.")
    return found


def _unknown_content(dataset: Dataset) -> bool:
    """Whether a plugin reads image files that no key knows by their contents."""
    cls = type(dataset)
    ours = cls.__module__.startswith("harness.")
    return not ours and cls.content is Dataset.content and cls.stamp is not Dataset.stamp


def _ends(names: Sequence[str]) -> str:
    return f"{names[0]!r} to {names[-1]!r} ({len(names)})"
