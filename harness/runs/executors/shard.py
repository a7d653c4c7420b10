"""Shards: each takes whole fits, so that several machines share a plan without talking."""

import heapq
import re
from collections.abc import Mapping, Sequence

from harness.errors import HarnessError
from harness.runs.efficiency import forecast
from harness.runs.prepared import PreparedRun

RATE, OPENING, VIEW = 3e11, 2e-3, 1e-3  # of no machine: every shard must come to the same shares


def parse(text: str) -> tuple[int, int]:
    """`3/8` as numbers.

    Raises:
        HarnessError: it is no such text.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise HarnessError(
            f"--shard {text!r} must be K/N, such as 3/8: the third of eight shards, from 1/8 to "
            "8/8."
        )
    return int(match[1]), int(match[2])


def share(runs: Sequence[PreparedRun], number: int, count: int) -> list[PreparedRun]:
    """The runs of one shard, in the plan's order. Runs that share a fit stay together; the longest
    fits are given out first, each to the shard that has least to do. It depends on the plan alone,
    and neither on the machine nor on what is done already.

    Raises:
        HarnessError: there are fewer fits than shards.
    """
    groups: dict[str, list[PreparedRun]] = {}
    for run in runs:
        groups.setdefault(run.fit_key, []).append(run)
    if len(groups) < count:
        raise HarnessError(
            f"--shard {number}/{count}: the plan has {len(groups)} fits. Ask for as many shards at "
            "most."
        )
    # by places, not by keys: those know of the machine's precision and where its weights lie
    found = shares(dict(enumerate(map(weight, groups.values()))), count)
    shard = {key: found[place] for place, key in enumerate(groups)}
    return [run for run in runs if shard[run.fit_key] == number]


def weight(members: Sequence[PreparedRun]) -> float:
    """How long a fit and its evaluations take, in seconds of an imagined machine."""
    able = [run for run in members if not run.refusal]
    return forecast(able, RATE, (OPENING, VIEW)) if able else 0.0


def shares(weights: Mapping[int, float], count: int) -> dict[int, int]:
    """The shard of each by its place, from 1: the longest first, to the one with least to do."""
    loads = [(0.0, shard) for shard in range(1, count + 1)]
    heapq.heapify(loads)
    found = {}
    for key in sorted(weights, key=lambda key: (-weights[key], key)):
        load, shard = heapq.heappop(loads)
        found[key] = shard
        heapq.heappush(loads, (load + weights[key], shard))
    return found
