"""The options that say where runs are carried out."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.records.store import Record, Store

if TYPE_CHECKING:
    from harness.runs.executors.ray import Placement
    from harness.runs.plan import Request
    from harness.runs.prepared import PreparedRun

OF_RAY = {
    "address": "--address",
    "gpus_per_run": "--gpus-per-run",
    "cpus_per_run": "--cpus-per-run",
}


def add(parser: argparse.ArgumentParser) -> None:
    """--executor, and the options of Ray."""
    parser.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="local: processes of this "
        "machine; ray: a Ray cluster, which needs the extra [ray] (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="with --executor ray: the cluster, or auto for the "
        "one that this machine belongs to (default: a Ray of its own on this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--gpus-per-run", type=float, metavar="G", help="with --executor ray: cards of a run; with "
        "0.25, four share one (default: 1 on CUDA, else 0)",
    )  # fmt: skip
    parser.add_argument(
        "--cpus-per-run", type=int, metavar="N", help="with --executor ray: CPUs and threads of a "
        "run; equal threads give equal bits (default: as many threads as a run has here)",
    )  # fmt: skip


def placement(arguments: argparse.Namespace) -> "Placement | None":
    """What the runs need on a Ray cluster; None for this machine's processes.

    Raises:
        HarnessError: options of Ray without it, what Ray cannot place, or no Ray.
    """
    given = [option for name, option in OF_RAY.items() if getattr(arguments, name) is not None]
    if arguments.executor == "ray":
        from harness.runs.executors.ray import Placement

        return Placement(*(getattr(arguments, name) for name in OF_RAY)).checked()
    if given:
        raise HarnessError(f"{given[0]} needs --executor ray. Add it, or leave {given[0]} out.")
    return None


def carry_out(
    arguments: argparse.Namespace,
    placement: "Placement | None",
    jobs: int,
    request: "Request",
    store: Store,
    runs: "Sequence[PreparedRun]",
    pending: "Sequence[PreparedRun]",
) -> dict[str, Record]:
    """The records of all pending ones of the runs, by key."""
    asked = (request, arguments.plugin, store, runs, pending, arguments.force)
    if placement:
        from harness.runs.executors import ray

        return ray.carry_out(*asked, placement, arguments.max_hours)
    from harness.runs.executors import local

    return local.carry_out(*asked, jobs, arguments.max_hours)
