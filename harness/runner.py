"""From a request to its runs, and from runs to records: shared by processes, safe to interrupt."""

import _thread
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from harness import backbone as backbones
from harness import config
from harness.cache import Cache, Disk
from harness.config import Binding
from harness.efficiency import forecast, forward_rate
from harness.engine import execute
from harness.errors import HarnessError
from harness.measure import THREADS
from harness.method import Method
from harness.plan import Bench, Named, Run, product
from harness.registry import Plugin, Registry
from harness.results import Record, Store, label
from harness.task import Measurement, Task, Transfer

BENCHMARKS = (
    "emoji_animals,emoji_food,emoji_travel,emoji_objects,emoji_activities,emoji_smileys,"
    "emoji_people,emoji_symbols"
)
START = 15  # seconds of work that repay the start of a process


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; names are comma lists with wildcards."""

    methods: str
    tasks: str
    datasets: str | None  # None: each task's own
    backbone: str
    shots: Sequence[int]
    seeds: Sequence[int]
    root: Path | None = None
    bindings: Sequence[Binding] = ()  # --config, then --set: later ones win
    sweeps: Sequence[Sequence[Binding]] = field(default_factory=lambda: [[]])
    device: str | None = None
    disk: Disk | None = None


def plan(request: Request, registry: Registry) -> list[Run]:
    """Every run of the request, each checked as far as that is possible without computing.

    Raises:
        HarnessError: unknown names, settings nobody reads, missing data, impossible combinations.
    """
    methods = registry.find("methods", request.methods)
    tasks = registry.find("tasks", request.tasks)
    swept = [binding for combination in request.sweeps for binding in combination]
    profile = config.profile(request.backbone)
    known = [name for kind in registry.plugins.values() for name in kind]
    config.check_targets([*profile, *request.bindings, *swept], known)
    if request.datasets:
        registry.find("datasets", request.datasets)  # those with a path become known
    device = usable(request.device)
    clip, cache = backbones.load(request.backbone, device), Cache(disk=request.disk)
    runs: dict[str, Run] = {}
    chosen: dict[str, Plugin] = {}
    for combination in request.sweeps:
        bindings = [*profile, *request.bindings, *combination]
        engine = config.build_engine(bindings)
        if engine.precision == "auto":
            cuda = clip.device.type == "cuda"
            engine = replace(engine, precision="bf16" if cuda else "fp32")
        cache.budget = engine.cache_bytes
        if clip.device.type == "cpu":  # never by how many there are: threads change the last bits
            torch.set_num_threads(max(1, THREADS // (engine.jobs or THREADS)))
        protocols = [
            Named(p.name, _with_source(task, registry), changed)
            for p in tasks
            for task, changed in [config.build(p, bindings)]
        ]
        everything = registry.plugins["datasets"].values()  # a task may evaluate on others too
        read = {plugin.name: config.build(plugin, bindings)[0] for plugin in everything}
        bench = Bench(clip, read, request.root, engine, cache)

        def built(
            task: str, dataset: str, shots: int, bindings: list[Binding] = bindings
        ) -> list[Named]:
            return [
                Named(p.name, *config.build(p, bindings, recipe(p, task, dataset, shots)))
                for p in methods
            ]

        for protocol in protocols:
            usual = ",".join(protocol.value.datasets()) or BENCHMARKS
            datasets = registry.find("datasets", request.datasets or usual)
            chosen |= {plugin.name: plugin for plugin in datasets}
            names = [plugin.name for plugin in datasets]
            protocol = replace(protocol, value=protocol.value.among(names))
            for shots in request.shots:
                for run in product(bench, built, protocol, names, shots, request.seeds):
                    run.method.value.check()
                    runs.setdefault(run.key, run)
    _check_used([*request.bindings, *swept], [*methods, *tasks, *chosen.values()])
    for run in runs.values():
        _ = run.refusal or run.shape  # refuses what the backbone cannot carry
    return list(runs.values())


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


def estimate(pending: Sequence[Run]) -> float:
    """Seconds that the runs may take in one process."""
    pending = [run for run in pending if not run.refusal]
    return forecast(pending, forward_rate(pending[0].bench.clip)) if pending else 0.0


def processes(pending: Sequence[Run], seconds: float) -> int:
    """How many processes share the runs: engine.jobs, or as many as there are threads and the work
    repays; one on CUDA if the user says nothing."""
    if not pending or any(isinstance(run.task.value, Measurement) for run in pending):
        return 1  # what is measured has nothing beside it
    bench = pending[0].bench
    each = THREADS if bench.clip.device.type == "cpu" else 1
    most = bench.engine.jobs or min(each, 1 + int(seconds / START))
    return min(most, len({run.fit_key for run in pending}))


@contextmanager
def helped(count: int, work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Meanwhile `count` other processes do work(*arguments, number), with numbers from 1."""
    spawn = multiprocessing.get_context("spawn")
    numbers = range(1, count + 1)
    helpers = [
        spawn.Process(target=_follow, args=(work, *arguments, i), daemon=True) for i in numbers
    ]
    for helper in helpers:
        helper.start()
    try:
        yield
    finally:
        for helper in helpers:  # all is done, or the user stopped it
            if helper.is_alive() and helper.pid:
                os.kill(helper.pid, signal.SIGINT)
        for helper in helpers:
            helper.join(10)


def _follow(work: Callable[..., None], *arguments: Any) -> None:
    """Work in another process, that stops when the first one ends, however that comes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
    first = multiprocessing.parent_process()
    assert first is not None

    def watch() -> None:
        first.join()
        _thread.interrupt_main()

    threading.Thread(target=watch, daemon=True).start()
    with suppress(KeyboardInterrupt):
        work(*arguments)


def execute_all(
    store: Store, pending: Sequence[Run], since: float, force: bool = False, first: float = 0.0
) -> dict[str, Record]:
    """Runs what no other process is running; waits for the rest, and takes over what crashed.

    Args:
        since: what another process wrote after this time is not run again, even with `force`.
        first: the share of the runs to begin after, so that processes start apart.

    Raises:
        KeyboardInterrupt: with a sentence on what is kept and how to go on.
    """
    ended: dict[str, Record] = {}
    start = int(first * len(pending))
    queue = [*pending[start:], *pending[:start]]
    with tqdm(total=len(queue), desc="runs", unit="run", disable=None) as bar:
        try:
            while queue:
                waiting = []
                for run in queue:
                    with store.claim(run.fit_key) as mine:
                        if not mine:
                            waiting.append(run)
                            continue
                        record = store.ended(run.identity, run.key, since, force)
                        elsewhere = record is not None
                        if record is None:
                            bar.set_postfix_str(str(run))
                            known = None if force else store.weights(run.fit_key)
                            record, predictions, model = execute(run, known)
                            store.write(record, predictions, model)
                        if not run.refusal:
                            tqdm.write(_outcome(run, record, elsewhere))
                        ended[run.key] = record
                        bar.update()
                if len(waiting) == len(queue):
                    bar.set_postfix_str("waiting for another process")
                    time.sleep(1)
                queue = waiting
        except KeyboardInterrupt:
            kept = sum(store.ended(r.identity, r.key, since, force) is not None for r in pending)
            raise KeyboardInterrupt(
                f"{kept} of {len(pending)} runs are finished and kept in {store.folder}.\n"
                "The same command goes on with the rest."
            ) from None
    return ended


def _outcome(run: Run, record: Record, elsewhere: bool) -> str:
    name = f"{label(record.run)} {run.task.name} {run.dataset} seed {run.seed}"
    if record.status != "done":
        return f"{name}: {record.status}, {record.reason}"
    if isinstance(run.task.value, Measurement):
        return f"{name}: measured"
    scores = ", ".join(f"{name} {100 * s['accuracy']:.2f}" for name, s in record.scores.items())
    seconds = sum(value for name, value in record.cost.items() if name.endswith("_seconds"))
    took = f"{seconds:.1f} s" + ", another process" * elsewhere
    return "; ".join([f"{name}: {scores} ({took})", *record.checks])


def _check_used(given: Iterable[Binding], chosen: Sequence[Plugin]) -> None:
    """A setting of --set or --sweep that this request does not read is a mistake."""
    given = list(given)
    for binding in given:
        origins = [b for b in given if b.origin == binding.origin]  # of one option
        read = binding.target == "engine" or any(
            config.applies(each, p) for p in chosen for each in origins
        )
        if binding.origin.startswith("--") and not read:
            raise HarnessError(
                f"{binding.origin} sets {binding.target}.{binding.name}, which nothing that this "
                "command runs leaves open."
            )


def usable(given: str | None) -> str:
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
