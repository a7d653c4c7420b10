"""The plan as text: what will run, what is done, what a user would not expect."""

import inspect
import textwrap
from collections.abc import Iterable, Sequence

import torch

from harness.fitting.trainer import Schedule
from harness.measure import device_name
from harness.records.labels import method_label
from harness.records.tables import duration, harmless, in_shots, plain_table, width
from harness.runs.executors.cards import cards
from harness.runs.prepared import PreparedRun
from harness.runs.remarks import remarks
from harness.towers.backbone import NOT_HERE


def describe(
    runs: Sequence[PreparedRun],
    done: Iterable[str],
    seconds: float | None,
    jobs: int,
    recipes: bool = False,
) -> str:
    """The plan as text: what will run, what is done, trainable parameters, a forecast, if
    there is one; with `recipes` also the settings that methods change for a task."""
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
    given = [run.identity.get("lists") for run in runs]
    lists = [harmless(each) for each in dict.fromkeys(given) if each]
    missing, forecast = "", ""
    if seconds is not None:
        forecast = f"; estimated time: {duration(seconds / jobs)}"
    if clip.fingerprint == NOT_HERE:
        where = "are not on this machine and are not downloaded by a dry run"
        where = "are not loaded for a plan of memory" if seconds is None else where
        missing = textwrap.fill(
            f"the weights of {clip.name} {where}: which runs are done already is not known.",
            width(),
        ) + "\n"  # fmt: skip
    return (
        f"{len(runs)} run{'s' * (len(runs) > 1)} on {harmless(clip.name)} ({clip.device}, "
        f"{settings.precision}), {in_shots(shots)}, seed{'s' * (',' in seeds)} {seeds}\n"
        + textwrap.fill(harmless(f"datasets: {datasets}"), width())
        + (f"\nfew-shot lists: {', '.join(lists)}, instead of drawn ones" if lists else "")
        + "\n\n"
        + f"{plain_table(rows)}\n\n"
        + "".join(
            textwrap.fill(harmless(f"not applicable: {each}."), width()) + "\n" for each in refusals
        )
        + ("\n" if refusals else "")
        + "".join(
            textwrap.fill(harmless(each), width(), break_on_hyphens=False, break_long_words=False)
            + "\n"
            for each in [*remarks(runs), *(_recipes(runs) if recipes else [])]
        )
        + missing
        + f"to run: {len(pending)} of {len(runs)}{forecast}"
        + f" in {jobs} processes" * (jobs > 1)
        + _on_cards(clip.device, jobs)
        + "\n"
    )


def _on_cards(device: torch.device, jobs: int) -> str:
    """Which cards the processes are on."""
    used = cards(device)[:jobs]
    named = f"{'s' * (len(used) > 1)} {', '.join(used)} ({device_name(device)})" if used else ""
    return f" on card{named}" if used else ""


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
            key = (run.method.name, run.task.name, in_shots(run.shots), changed, source)
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
