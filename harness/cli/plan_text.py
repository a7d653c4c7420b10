"""The plan as text: what will run, what is done, what a user would not expect."""

import inspect
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from harness.files import shown
from harness.fitting.trainer import Schedule
from harness.images import library
from harness.images.own import UserImages
from harness.records.labels import method_label
from harness.records.tables import harmless, plain_table, width
from harness.runs.budget import duration as _duration
from harness.runs.context import PreparedRun
from harness.towers.backbone import NOT_HERE


def describe(
    runs: Sequence[PreparedRun],
    done: Iterable[str],
    seconds: float,
    jobs: int,
    recipes: bool = False,
) -> str:
    """The plan as text: what will run, what is done, trainable parameters, a forecast; with
    `recipes` also the settings that methods change for a task."""
    done, groups = set(done), dict[tuple[str, str], list[PreparedRun]]()
    for run in runs:
        groups.setdefault((method_label(run.identity), run.task.name), []).append(run)
    rows: list[dict[str, object]] = []
    for (method, task), members in groups.items():
        if members[0].refusal:
            rows.append({"method": method, "task": task, "runs": "n/a"})
            continue
        trained = members[0].summary.parameters
        epochs = {run.schedule.epochs for run in members}
        steps = {run.schedule.total for run in members}
        rows.append(
            {
                "method": method,
                "task": task,
                "runs": len(members),
                "done": sum(run.key in done for run in members),
                "params": f"{trained:,}",
                "epochs": _range(epochs) if trained and max(steps) else "–",
                "steps": _steps(members) if trained and max(steps) else "–",
                "batch": members[0].method.value.batch_size if trained and max(steps) else "–",
            }
        )
    refusals = dict.fromkeys(filter(None, (run.refusal for run in runs)))
    clip, settings = runs[0].context.clip, runs[0].run.settings
    pending = [run for run in runs if run.key not in done and not run.refusal]
    datasets = ", ".join(dict.fromkeys(run.dataset for run in runs))
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    shots = ", ".join(map(str, sorted({run.shots for run in runs})))
    missing = ""
    if clip.fingerprint == NOT_HERE:
        missing = textwrap.fill(
            f"the weights of {clip.name} are not on this machine and are not downloaded by a dry "
            "run: which runs are done already is not known.", width()
        ) + "\n"  # fmt: skip
    return (
        f"{len(runs)} run{'s' * (len(runs) > 1)} on {harmless(clip.name)} ({clip.device}, "
        f"{settings.precision}), {shots} shots, seeds {seeds}\n"
        + textwrap.fill(harmless(f"datasets: {datasets}"), width())
        + "\n\n"
        + f"{plain_table(rows)}\n\n"
        + "".join(
            textwrap.fill(harmless(f"not applicable: {each}."), width()) + "\n" for each in refusals
        )
        + ("\n" if refusals else "")
        + "".join(
            textwrap.fill(harmless(each), width(), break_on_hyphens=False, break_long_words=False)
            + "\n"
            for each in _remarks(runs, recipes)
        )
        + missing
        + f"to run: {len(pending)} of {len(runs)}; estimated time: {_duration(seconds / jobs)}"
        + f" in {jobs} processes" * (jobs > 1)
        + "\n"
    )


def _remarks(runs: Sequence[PreparedRun], recipes: bool) -> list[str]:
    """Sentences on what a user would not expect of the lists, and on the methods' recipes."""
    found = dict[str, None]()
    for run in runs:
        if run.refusal:
            continue
        found |= dict.fromkeys(_own_data(run))
        splits = {"train": run.train, **run.evaluated}
        for name, split in splits.items():
            if split.skipped:
                found[
                    f"skipped, {split.classes.dataset}, {name}: {len(split.skipped)} images that "
                    f"cannot be read, such as {shown(split.skipped[0])}."
                ] = None
        count = Counter(item.name for item in run.train.items)
        few = [name for name, number in count.items() if number < run.shots]
        if few and run.summary.parameters:
            found[
                f"few images, {run.train.classes.dataset}: {len(few)} classes have fewer than "
                f"{run.shots} training images, such as {few[0]!r} with {count[few[0]]}: all are "
                "used."
            ] = None
    return [*found, *(_recipes(runs) if recipes else [])]


def _own_data(run: PreparedRun) -> list[str]:
    """Sentences on images of the user's own: what is not read, which classes are the base half, and
    that the embedded backbone says little of them."""
    found, context = list[str](), run.context
    for name, dataset in run.run.datasets:
        found += library.unread(name, dataset, context.root)
        if not isinstance(dataset, UserImages):
            continue
        if ":" not in context.clip.name:
            found.append(
                f"{context.clip.name} was trained on emoji alone and knows no photographs: its "
                f"accuracy on {name} says little. Choose a CLIP with --backbone."
            )
        halves = {s.classes for s in run.evaluated.values() if s.classes.dataset == name}
        every = context.classes(name, dataset)
        if halves and every not in halves:
            half = (len(every.names) + 1) // 2
            base, new = (_ends(names) for names in (every.names[:half], every.names[half:]))
            found.append(f"halves, {name}, in natural order: base {base}, new {new}.")
    return found


def _ends(names: Sequence[str]) -> str:
    return f"{names[0]!r} to {names[-1]!r} ({len(names)})"


def _recipes(runs: Sequence[PreparedRun]) -> list[str]:
    """The settings that methods change for a task, with their source."""
    found: dict[tuple[str, ...], set[str]] = {}
    every: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        method, dataset = type(run.method.value), run.fit.dataset
        task = run.task.value.recipe_task(run.task.name)
        usual, recipe = method(), method.recipe(task, dataset, run.shots)
        changed = ", ".join(
            f"{name}={value!r}"
            for name, value in recipe.items()
            if getattr(run.method.value, name) == value != getattr(usual, name)
        )
        every.setdefault((run.method.name, run.task.name), set()).add(dataset)
        if changed:
            source = " ".join((inspect.getdoc(method.recipe) or "").split()).rstrip(".")
            key = (run.method.name, run.task.name, f"{run.shots} shots", changed, source)
            found.setdefault(key, set()).add(dataset)
    return [
        f"recipe, {method}, {task}{_only(datasets, every[method, task])}, {shots}: {changed} "
        f"({source})"
        for (method, task, shots, changed, source), datasets in found.items()
    ]


def _only(some: set[str], every: set[str]) -> str:
    return "" if some == every else f" on {', '.join(sorted(some))}"


def _steps(runs: Sequence[PreparedRun]) -> str:
    """Steps; where a cap of the engine cuts them also those of the recipe, and the cap's name."""
    steps = _range({run.schedule.total for run in runs})
    caps = {"engine.max_epochs": "max_epochs", "engine.max_steps": "max_steps"}
    whole, cutting = set[int](), dict[str, None]()
    for run in runs:
        count, method = len(run.train.items), run.method.value
        free = Schedule.of(method, count, None, None).total
        whole.add(free)
        for cap, name in caps.items():
            only = {"max_epochs": None, "max_steps": None, name: getattr(run.settings, name)}
            if run.schedule.total == Schedule.of(method, count, **only).total < free:
                cutting[cap] = None
    return f"{steps} of {_range(whole)} ({', '.join(cutting)})" if cutting else steps


def _range(values: set[int]) -> str:
    least, most = min(values), max(values)
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"
