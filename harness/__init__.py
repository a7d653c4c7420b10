"""One protocol for parameter-efficient fine-tuning methods of vision-language models.

    import harness

    results = harness.run(methods=["zero_shot", "adapter"], tasks=["base2new"], seeds=[1, 2, 3])
    print(results.leaderboard())
    model = harness.load(results.records[-1])
    model.logits(["cat.jpg"])

The command line (`python -m harness`) does the same. Nothing heavy is imported until it is needed.
"""

import inspect
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from harness.certainty.comparison import Comparison
    from harness.dataset import Dataset
    from harness.fitting.fitted import FittedModel
    from harness.leaderboards.leaderboard import Leaderboard
    from harness.method import Method
    from harness.records.store import Record
    from harness.task import Task

__all__ = ["Results", "compare", "leaderboard", "load", "load_peft", "run"]
__version__ = "0.1.0"

_HERE = Path(__file__).parent
if not (_HERE / "methods").is_dir():  # a checkout: methods/ and tasks/ lie beside this folder
    __path__.append(str(_HERE.parent))


@dataclass(frozen=True)
class Results:
    """The records of a request, in its order."""

    records: "Sequence[Record]"

    def frame(self) -> "pd.DataFrame":
        """One row for each run and evaluation, raw numbers."""
        from harness.records.summary import frame

        return frame(self.records)

    def leaderboard(self, **options: Any) -> "Leaderboard":
        """The tables; prints as Markdown, and shows itself in a notebook.

        Args:
            options: `task`, `by_dataset`, `pareto`, as of the command `leaderboard`.
        """
        from harness.leaderboards.leaderboard import Leaderboard

        return Leaderboard(self.records, **options)

    def _repr_html_(self) -> str:
        return self.leaderboard()._repr_html_()


def run(
    methods: "str | Sequence[str | type | Method]",
    tasks: "str | Sequence[str | type | Task]",
    datasets: "str | Sequence[str | type | Dataset] | None" = None,
    *,
    backbone: str = "emoji-mini",
    shots: int | Iterable[int] = 16,
    seeds: int | Iterable[int] = 1,
    results: str | Path = "results/runs",
    data_root: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    device: str | None = None,
    jobs: int | None = None,
    cache_dir: str | Path | None = None,
    cache_limit: float = 20,
    force: bool = False,
    template: str | Sequence[str] | None = None,
    class_names: str | Path | None = None,
    class_texts: Sequence[str | Path] = (),
    lists: str | Path | None = None,
) -> Results:
    """Runs every method on every task and dataset, once per seed, with progress on standard error.

    Finished runs are kept in `results`: the same call goes on where it stopped, and so does the
    command line.

    Args:
        methods, tasks, datasets: names with wildcards, classes that are defined in a file, or
            objects of them, which are taken with all their settings as they are. Datasets may be
            `folder:PATH` or `csv:FILE`.
        backbone: see `python -m harness list backbones`.
        shots, seeds: one number, or several.
        data_root: the folder that holds every dataset in CoOp's layout.
        settings: `{"adapter.rank": 8, "engine.max_steps": 100}`.
        plugins: modules or .py files that define methods, tasks or datasets.
        jobs: processes that share the runs; one if a class or an object is given.
        cache_dir: for decoded images and frozen features (default: $HARNESS_CACHE or the user's
            cache folder); cache_limit: its size in GB, 0 for none.
        force: run again what is done.
        template, class_names: of datasets that are given by their paths or names: the prompt, with
            {} for the class name, or several, which methods that leave the towers as they are
            average, while those without words of their own take the first; and a csv file that
            renames classes.
        class_texts: files of texts of each class, for methods that read them.
        lists: a folder of few-shot lists to train on, instead of drawing.

    Raises:
        HarnessError: a request that cannot be met, before anything is computed.
    """
    call = _call(locals())
    import torch

    from harness import config, registry
    from harness.class_texts import read
    from harness.files import cache_folder
    from harness.images import list_files
    from harness.images.cache import Disk
    from harness.records.store import Store
    from harness.records.tables import harmless
    from harness.runs import provenance
    from harness.runs.executors import local
    from harness.runs.plan import Request, plan
    from harness.runs.remarks import remarks

    methods, tasks = _listed(methods), _listed(tasks)
    plugins = [plugins] if isinstance(plugins, str) else plugins
    datasets = None if datasets is None else _listed(datasets)
    bindings = [
        config.bind(name, value, f"settings[{name!r}]") for name, value in (settings or {}).items()
    ]
    bindings += config.of_own_images(template, class_names)
    if jobs is not None:
        bindings.append(config.Binding("engine", "jobs", jobs, "jobs"))
    config.once(bindings)
    request = Request(
        methods=methods,
        tasks=tasks,
        datasets=datasets,
        backbone=backbone,
        shots=_numbers("shots", shots),
        seeds=_numbers("seeds", seeds),
        root=Path(data_root) if data_root else None,
        bindings=bindings,
        device=device,
        disk=Disk(Path(cache_dir or cache_folder()), int(cache_limit * 2**30)),
        class_texts=[read(Path(each)) for each in _listed(class_texts)],
        lists=list_files.read(Path(lists)) if lists else None,
    )
    threads = torch.get_num_threads()  # a plan takes as many as its processes share
    provenance.state(call)
    try:
        runs, store = plan(request, registry.load(plugins)), Store(Path(results))
        for remark in remarks(runs):
            print(harmless(remark), file=sys.stderr)
        done, pending = local.done_and_pending(runs, store, force)
        seconds = local.estimated_seconds(pending) if request.travels else 0.0
        count = local.process_count(pending, seconds) if request.travels else 1
        ended = {**done, **local.carry_out(request, plugins, store, runs, pending, force, count)}
    finally:
        provenance.state(None)
        torch.set_num_threads(threads)
    records = [ended[each.key] for each in runs]
    return Results(
        [replace(r, folder=store.folder, file=store.path(r.run, r.key)) for r in records]
    )


_USUAL = inspect.signature(run).parameters


def _call(given: Mapping[str, Any]) -> str:
    """A call of `run` as records state it, without where this machine keeps what it makes, and
    without what is as by default."""
    said = [
        f"{name}={_written(value)}"
        for name, value in given.items()
        if name not in ("results", "cache_dir") and repr(value) != repr(_USUAL[name].default)
    ]
    return f"harness.run({', '.join(said)})"


def _written(value: Any) -> str:
    """An argument as in Python; a class by its name."""
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def _numbers(name: str, given: Any) -> list[int]:
    """One whole number, of whatever kind, or several.

    Raises:
        HarnessError: they are none.
    """
    from harness.errors import HarnessError

    try:
        every = list(given) if hasattr(given, "__iter__") else [given]
        if any(isinstance(each, bool) for each in every):
            raise TypeError
        return [operator.index(each) for each in every]
    except TypeError:
        raise HarnessError(
            f"{name} must be whole numbers, one or a list of them, not {given!r}."
        ) from None


def _listed(given: Any) -> Any:
    """One class or object as a list of one; a text may be a list of names."""
    return given if isinstance(given, (str, list, tuple)) else [given]


def leaderboard(*results: str | Path, **options: Any) -> "Leaderboard":
    """The tables of all records in results folders; see `Results.leaderboard`.

    Raises:
        HarnessError: a folder cannot be read, or holds no records.
    """
    from harness.leaderboards.leaderboard import Leaderboard
    from harness.records.store import read_all

    return Leaderboard(read_all(map(Path, results or ("results/runs",))), **options)


def compare(
    first: str, second: str, *results: str | Path, task: str | None = None
) -> "list[Comparison]":
    """How much one row of the tables exceeds another, and how sure that is, in each table of
    results folders that has both.

    Raises:
        HarnessError: a folder cannot be read, or no table has both.
    """
    from harness.certainty import comparison
    from harness.records.store import read_all

    return comparison.compare(
        read_all(map(Path, results or ("results/runs",))), first, second, task
    )


def load(
    fit: "Record | str | Path", *, plugins: Sequence[str | type] = (), device: str | None = None
) -> "FittedModel":
    """The fitted model of a record, of a record's file, of a file of weights, or of a folder that
    `export --form peft` wrote. It computes in float32, also where the run was in bfloat16.

    Args:
        plugins: as of `run`, where the method is defined in one; or the method's class itself.

    Raises:
        HarnessError: it has no weights, they are damaged, or method or backbone are unknown.
    """
    from harness.fitting.fitted import load_fit

    if isinstance(fit, (str, Path)) and Path(fit).is_dir():
        return load_peft(fit, device=device)
    return load_fit(fit, plugins, device)


def load_peft(
    folder: str | Path,
    class_names: Sequence[str] | None = None,
    backbone: str | None = None,
    *,
    device: str | None = None,
) -> "FittedModel":
    """The fitted model of a folder in the format of Hugging Face peft, whose modules are named by
    sites, such as `image.blocks.3.q`. It needs the extra [peft].

    Args:
        class_names, backbone: of a folder that `export` did not write; its own says them. A class
            is then asked as "a photo of a {}.", since such a folder states no template.

    Raises:
        HarnessError: a folder that is damaged, or does not fit the backbone.
    """
    from harness.deploy.peft_folder import load

    return load(Path(folder), class_names, backbone, device)
