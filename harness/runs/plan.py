"""From a request to its runs: names resolved, settings typed, everything checked beforehand."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness import config
from harness.class_texts import ClassTexts
from harness.config import Binding
from harness.dataset import Dataset
from harness.errors import HarnessError, blaming, unknown
from harness.images.cache import Cache, Disk
from harness.images.lists import ListFolder
from harness.measure import THREADS
from harness.method import Method
from harness.registry import Plugin, Registry
from harness.runs.context import Context
from harness.runs.executors.cards import most_processes
from harness.runs.prepared import PreparedRun
from harness.runs.run import Configured, Run
from harness.task import Task, Transfer
from harness.towers import backbone as backbones

LARGEST = 10**9  # of shots and seeds
BENCHMARKS = (
    "emoji_animals,emoji_food,emoji_travel,emoji_objects,emoji_activities,emoji_smileys,"
    "emoji_people,emoji_symbols"
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; names may be comma lists with wildcards.

    An object is a method, task or dataset with all its settings: no recipe or profile changes it.
    """

    methods: str | Sequence[str | type | Method]
    tasks: str | Sequence[str | type | Task]
    datasets: str | Sequence[str | type | Dataset] | None  # None: each task's own
    backbone: str
    shots: Sequence[int]
    seeds: Sequence[int]
    root: Path | None = None
    bindings: Sequence[Binding] = ()  # --config, then --set: later ones win
    sweeps: Sequence[Sequence[Binding]] = field(default_factory=lambda: [[]])
    device: str | None = None
    disk: Disk | None = None
    class_texts: Sequence[ClassTexts] = ()
    lists: ListFolder | None = None  # few-shot lists to train on, instead of drawing
    dry: bool = False  # nothing will be run: weights that are not here yet are not downloaded
    numbers: bool = True  # else shapes alone are asked for, and no weights of open_clip are loaded
    card: bool = False  # the plan is for a card that is not here

    @property
    def travels(self) -> bool:
        """Whether another process understands it: all is given by name."""
        given = (self.methods, self.tasks, self.datasets or "")
        return all(isinstance(part, str) for each in given for part in each)


def plan(
    request: Request,
    registry: Registry,
    drawn: bytes | None = None,
    context: Context | None = None,
) -> list[PreparedRun]:
    """Every run of the request, each checked as far as that is possible without computing.

    Args:
        drawn: what another process knows (Context.known), whose lists are taken over.
        context: of an earlier plan with the same backbone, root and device, to load nothing twice.

    Raises:
        HarnessError: unknown names, settings nobody reads, missing data, impossible combinations.
    """
    methods = registry.find("methods", request.methods)
    tasks = registry.find("tasks", request.tasks)
    for name, numbers in (("shots", request.shots), ("seeds", request.seeds)):
        wrong = [n for n in numbers if type(n) is not int or not 0 <= n <= LARGEST]
        if wrong or not numbers:
            shown = repr(wrong[0]) if wrong else "nothing"
            raise HarnessError(f"{name} must be whole numbers up to {LARGEST:,}, not {shown}.")
    swept = [binding for combination in request.sweeps for binding in combination]
    profile = config.profile(request.backbone)
    known = [name for kind in registry.plugins.values() for name in kind]
    config.check_targets([*profile, *request.bindings, *swept], known)
    if request.datasets:
        registry.find("datasets", request.datasets)  # those with a path become known
    device, cache = torch.device(usable_device(request.device)), Cache(disk=request.disk)
    load = partial(backbones.load, request.backbone, device, not request.dry, request.numbers)
    context = context or Context(load, request.root, cache, request.class_texts,
                                 request.lists)  # fmt: skip
    if drawn is not None:
        context.learn(drawn)
    every: list[PreparedRun] = []
    chosen: dict[str, Plugin] = {}
    for combination in request.sweeps:
        bindings = [*profile, *request.bindings, *combination]
        settings = config.build_engine(bindings)
        if settings.precision == "auto":
            cuda = device.type == "cuda" or request.card
            settings = replace(settings, precision="bf16" if cuda else "fp32")
        context.cache.budget = settings.cache_bytes
        if device.type == "cpu":  # never by how many there are: threads change the last bits
            torch.set_num_threads(max(1, THREADS // most_processes(settings, device)))
        known_datasets = registry.plugins["datasets"].values()  # a task may evaluate on others too
        for p in tasks:
            task, changed = config.build(p, bindings)
            task = _with_source(task, registry)
            usual = ",".join(task.datasets()) or BENCHMARKS
            datasets = registry.find("datasets", request.datasets or usual)
            chosen |= {plugin.name: plugin for plugin in datasets}
            names = [plugin.name for plugin in datasets]
            plugins = [*known_datasets, *datasets]  # an object wins over its class
            readable = {each.name: config.build(each, bindings)[0] for each in plugins}
            protocol = Configured(p.name, task.with_datasets(names), changed)
            if min(request.shots) < 1:
                raise HarnessError(f"--shots must be at least 1, not {min(request.shots)}.")
            for shots, name, seed in itertools.product(request.shots, names, request.seeds):
                with blaming(f"the task {p.name}"):
                    needed = _datasets_of(protocol.value, name, readable)
                    fitted, like = protocol.value.fit(name).dataset, task.recipe_task(p.name)
                for m in methods:
                    with blaming(f"the method {m.name}"):
                        built = config.build(m, bindings, recipe(m, like, fitted, shots))
                        method = Configured(m.name, *built, config.given(m, bindings))
                        method.value.check()
                    run = Run(method, protocol, name, request.backbone, shots, seed, settings,
                              needed)  # fmt: skip
                    with blaming(f"{run} is no value that can be hashed, and"):
                        every.append(context.prepare(run))
    _check_used([*request.bindings, *swept], [*methods, *tasks, *chosen.values()])
    return _checked(every)


def _checked(every: Sequence[PreparedRun]) -> list[PreparedRun]:
    """The runs, once each, after everything that can be refused was looked at: first what needs no
    backbone, which may have to be downloaded."""
    for run in every:
        _ = run.train, run.val, run.evaluated, run.refusal
        run.check_class_texts()
    _check_read(every)
    runs = {run.key: run for run in reversed(every)}  # of equal runs the first
    for run in every:
        if not run.refusal:
            _ = run.summary  # refuses what the backbone cannot carry
            run.check_texts()
    return list({run.key: runs[run.key] for run in every}.values())


def _check_read(every: Sequence[PreparedRun]) -> None:
    """Texts of classes that no method reads are a mistake."""
    given = every[0].context.class_texts if every else ()
    if given and not any(run.method.value.class_texts for run in every):
        raise HarnessError(
            f"none of the methods reads {given[0].file} (--class-texts); `show NAME` says which do."
        )


def _datasets_of(
    task: Task, name: str, readable: Mapping[str, Dataset]
) -> tuple[tuple[str, Dataset], ...]:
    """The datasets that a run of the task on `name` is fitted and evaluated on.

    Raises:
        HarnessError: the task names one that does not exist.
    """
    names = dict.fromkeys([task.fit(name).dataset, *(e.dataset for e in task.evaluations(name))])
    for each in names:
        if each not in readable:
            raise unknown("dataset", each, readable)
    return tuple((each, readable[each]) for each in names)


def _with_source(task: Task, registry: Registry) -> Task:
    """The task; a source given with its path becomes a known dataset."""
    if not isinstance(task, Transfer):
        return task
    (source,) = registry.find("datasets", task.source)
    return replace(task, source=source.name)


def recipe(method: Plugin, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
    """The published settings of a method that differ from its defaults there."""
    assert issubclass(method.cls, Method)
    return method.cls.recipe(task, dataset, shots)


def _check_used(given: Iterable[Binding], chosen: Sequence[Plugin]) -> None:
    """A setting of --set or --sweep that this request does not read is a mistake."""
    given = list(given)
    for binding in given:
        origins = [b for b in given if b.origin == binding.origin]  # of one option
        read = binding.target == "engine" or any(
            config.applies(each, p) for p in chosen for each in origins
        )
        if binding.origin.startswith(("--", "settings[")) and not read:
            raise HarnessError(
                f"{binding.origin} sets {binding.target}.{binding.name}, which nothing here reads: "
                "no method, task or dataset of this command has it, or what has it fixes its value."
            )


def usable_device(given: str | None) -> str:
    """The device of that name, or CUDA where it is there.

    Raises:
        HarnessError: it cannot be used, with the reason.
    """
    if given is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=given)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise HarnessError(f"--device {given!r} cannot be used here: {reason}") from error
    return given
