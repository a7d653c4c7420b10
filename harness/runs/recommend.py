"""Which method for somebody's own images: looks at folds of their training images, within a budget.

Every fit is a run of the task few_shot on a fold, planned, carried out and recorded like any other,
so that the same call goes on where it stopped. The test images are not scored; their files may be
compared with the training images, to find copies.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace

from harness.certainty.samples import of_table
from harness.errors import HarnessError
from harness.records.record import Record
from harness.records.store import Store
from harness.records.summary import tables
from harness.records.tables import duration
from harness.registry import Registry
from harness.runs.budget import Spending, written
from harness.runs.context import Context
from harness.runs.efficiency import forecast, forward_rate
from harness.runs.executors import local
from harness.runs.folds import Folded, folded
from harness.runs.ladder import Climb, Measured, Rung, climb, rungs
from harness.runs.plan import Request, plan
from harness.runs.prepared import PreparedRun

# One of each kind that a practitioner would try, where the published settings hold for any dataset.
# Few, because every pair takes its share of the error.
CANDIDATES = {
    "zero_shot": "nothing is trained: what any other method must beat",
    "tip_adapter": "compares with the training images: a search instead of a fit",
    "linear_probe": "logistic regression on image features: the classical answer",
    "tip_adapter_f": "tip_adapter, then trained",
    "lfa": "maps image features to text features",
    "tcp": "learned prompts that know the class",
    "lora": "low-rank changes of both towers: the most costly one",
}
NO_VAL = "settings are chosen on val images, and there are none to spare"
RESERVE = 1.2  # of a budget that is advised


@dataclass(frozen=True)
class Spent:
    """What was forecast and taken for a look; how many runs it has, and how many were there."""

    rung: Rung
    forecast: float
    seconds: float
    runs: int
    kept: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Recommendation:
    """What the looks say of one dataset; the command `recommend` puts it into words.

    refused: candidates that cannot be used here, and why; records: of the last look, by method;
    prepared: seconds before the first look;
    needs: of the look that there was no time for; uses_val: whether the method to take
    chooses its settings on val images.
    """

    data: Folded
    backbone: str
    climb: Climb
    records: Mapping[str, Sequence[Record]]
    refused: Mapping[str, str]
    budget: float
    spent: float
    prepared: float
    looks: Sequence[Spent]
    needs: float | None
    uses_val: bool


def recommend(
    request: Request,
    registry: Registry,
    store: Store,
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Recommendation:
    """Takes looks until one method is told apart from all others or the budget is spent.

    Args:
        request: one dataset, the methods (or "" for CANDIDATES), the most shots; its bindings are
            settings of the dataset, and engine.on_bad_image.
        budget: seconds.

    Raises:
        HarnessError: data or methods cannot be used, or the budget is too small for the first look.
        KeyboardInterrupt: with a sentence on what is kept and how to go on.
    """
    spending = Spending(budget, clock)
    with redirect_stdout(sys.stderr):  # what runs say on their way is no answer
        data = folded(request, registry)
        work = _Work(data, request, registry, store, spending)
        ladder = rungs(data.shots, len(data.folds))
        try:
            candidates = work.candidates(ladder[0])
            prepared = spending.spent
            found = climb(ladder, candidates, work.measure)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{work.finished()} runs are finished and kept in {store.folder}.\n"
                "The same command goes on with the rest."
            ) from None
    if isinstance(found, str):
        raise HarnessError(found)
    return Recommendation(
        data=data, backbone=request.backbone, climb=found,
        records={m: work.records[m] for m in found.last.look.labels}, refused=work.refused,
        budget=budget, spent=spending.spent, prepared=prepared, looks=work.looks, needs=work.needs,
        uses_val=registry.plugins["methods"][found.best[0]].cls.uses_val,  # type: ignore[attr-defined]
    )  # fmt: skip


@dataclass(eq=False)
class _Work:
    """The runs of the looks: planned, forecast, carried out."""

    data: Folded
    request: Request
    registry: Registry
    store: Store
    spending: Spending
    looks: list[Spent] = field(default_factory=list)
    records: dict[str, list[Record]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    needs: float | None = None
    context: Context | None = None
    rate: float = 0.0
    planned: dict[str, PreparedRun] = field(default_factory=dict)
    ended: dict[str, Record] = field(default_factory=dict)

    def candidates(self, first: Rung) -> list[str]:
        """The methods that can be used here, from the cheapest on.

        Raises:
            HarnessError: one that was named cannot be used, or there are less than two.
        """
        given = self.request.methods
        found = self.registry.find("methods", given or ",".join(CANDIDATES))
        names = [plugin.name for plugin in found]
        for plugin in found:
            if plugin.cls.class_texts:  # type: ignore[attr-defined]
                raise HarnessError(
                    f"{plugin.name} reads texts of the classes, which recommend does not take. "
                    "Compare it with `run --class-texts FILE`."
                )
        cost = dict[str, float]()
        for name in names:
            try:
                _ = self._plan(name, replace(first, shots=self.data.shots))
                cost[name] = self._forecast(self._plan(name, first))
            except HarnessError as error:
                if given or name == names[0]:  # what is wrong with the data is wrong for all
                    raise
                no_val = self.registry.plugins["methods"][name].cls.uses_val  # type: ignore[attr-defined]
                no_val = no_val and not self.data.has_val
                self.refused[name] = NO_VAL if no_val else str(error).rstrip(".")
        if len(cost) < 2:
            why = "".join(f" {name}: {each}." for name, each in self.refused.items())
            raise HarnessError(
                f"recommend compares at least two methods, not {', '.join(cost)} alone.{why}"
            )
        return sorted(cost, key=lambda name: cost[name])

    def measure(self, rung: Rung, must: Sequence[str], may: Sequence[str]) -> Measured:
        """Runs a look as far as there is time: who must be in it and one more at least, or
        nothing."""
        spending, started = self.spending, self.spending.spent
        runs = {name: self._plan(name, rung) for name in [*must, *may]}
        self.planned |= {run.key: run for each in runs.values() for run in each}
        todo = {name: self._todo(each) for name, each in runs.items()}
        chosen, expected = list[str](), 0.0
        for name in [*must, *may]:
            so_far = [run for each in [*chosen, name] for run in todo[each]]
            seconds = spending.corrected(self._forecast(so_far))
            if not todo[name] or name in must or seconds <= spending.left:
                chosen, expected = [*chosen, name], seconds
        if len(chosen) < 2:
            cheapest = min(may, key=lambda name: self._forecast(todo[name]))
            chosen = [*must, cheapest]
            expected = spending.corrected(self._forecast([*todo[must[0]], *todo[cheapest]]))
        if expected > spending.left and any(todo[name] for name in chosen):
            self.needs = expected
            return Measured(None, self._too_little(rung, chosen, expected))
        _say(f"look {len(self.looks) + 1}: {rung}; {', '.join(chosen)}; about "
             f"{duration(expected)}, and {duration(spending.left)} are left")  # fmt: skip
        for name in list(chosen):
            seconds = spending.corrected(self._forecast(todo[name]))
            if not todo[name] or seconds <= spending.left:
                self._carry_out(runs[name], todo[name])
            elif name in must or len(chosen) == 2:
                self.needs = seconds
                return Measured(None, self._too_little(rung, [name], seconds))
            else:
                chosen.remove(name)
        behind = [run for name in runs if name not in chosen for run in todo[name]]
        self.needs = spending.corrected(self._forecast(behind)) if behind else None
        made = sum(len(todo[name]) for name in chosen)
        every = sum(len(runs[name]) for name in chosen)
        self.looks.append(Spent(rung, expected, spending.spent - started, every, every - made))
        return self._sampled({name: runs[name] for name in chosen})

    def finished(self) -> int:
        """How many of the runs that were asked for are there."""
        return len(self.planned) - len(self._todo(list(self.planned.values())))

    def _plan(self, method: str, rung: Rung) -> list[PreparedRun]:
        request: Request = replace(
            self.request, methods=[method], tasks="few_shot", bindings=(), shots=[rung.shots],
            datasets=self.data.folds[: rung.folds], seeds=range(1, rung.seeds + 1),
        )  # fmt: skip
        runs = plan(request, self.registry, context=self.context)
        self.context = runs[0].context
        return runs

    def _todo(self, runs: Sequence[PreparedRun]) -> list[PreparedRun]:
        """The runs that have no finished record."""
        for run in runs:
            if run.key not in self.ended:
                version = self.store.version(run.identity, run.key)
                record = self.store.ended(run.identity, run.key, version, False)
                self.ended |= {run.key: record} if record else {}
        return [run for run in runs if run.key not in self.ended]

    def _forecast(self, runs: Sequence[PreparedRun]) -> float:
        if not runs:
            return 0.0
        self.rate = self.rate or forward_rate(runs[0].context.clip)
        return forecast(runs, self.rate)

    def _carry_out(self, runs: Sequence[PreparedRun], todo: Sequence[PreparedRun]) -> None:
        before, expected = self.spending.spent, self._forecast(todo)
        self.ended |= local.carry_out(self.request, (), self.store, runs, todo, False, 1)
        if todo:
            self.spending.learn(expected, self.spending.spent - before)

    def _sampled(self, runs: Mapping[str, Sequence[PreparedRun]]) -> Measured:
        """The statistics of a look's records; of methods that failed, why."""
        failed, records = dict[str, str](), dict[str, list[Record]]()
        for name, each in runs.items():
            found = [self.ended[run.key] for run in each]
            bad = [record for record in found if record.status != "done"]
            if bad:
                failed[name] = bad[0].reason
                continue
            records[name] = [
                replace(r, folder=self.store.folder, file=self.store.path(r.run, r.key))
                for r in found
            ]
        if len(records) < 2:
            said = "; ".join(f"{name}: {why}" for name, why in failed.items())
            return Measured(None, f"less than two methods have a result ({said})", failed)
        (table,) = tables(record for each in records.values() for record in each).values()
        sampled = of_table(table)
        if sampled.sample is not None:
            self.records |= records
        return Measured(sampled.sample, sampled.why, failed | dict(sampled.left_out or {}))

    def _too_little(self, rung: Rung, methods: Sequence[str], seconds: float) -> str:
        """Why there is no time for the methods at a rung, as a sentence without its end."""
        left = duration(self.spending.left)
        needs = f"({rung}; {', '.join(methods)}) needs about {duration(seconds)}"
        if self.looks:
            return f"the next look {needs}, and {left} of the budget are left"
        advised = written(RESERVE * (seconds + self.spending.spent))
        return (
            f"the first look {needs}, and {left} of --budget are left. Give --budget {advised} or "
            "more; finished runs are kept."
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
