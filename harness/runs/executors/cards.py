"""The cards of a machine: which a process may use, and how many processes share one.

A process is given its card through its environment before torch starts, and sees no other.
"""

import os
from collections.abc import Sequence

import torch

from harness.config import Engine
from harness.measure import THREADS

VISIBLE = "CUDA_VISIBLE_DEVICES"


def cards(device: torch.device) -> list[str]:
    """What the environment of a process calls each card that `device` may mean: all that are
    visible, or the one that was named; none of a CPU."""
    if device.type != "cuda":
        return []
    given = [each.strip() for each in os.environ.get(VISIBLE, "").split(",") if each.strip()]
    every = given or [str(number) for number in range(torch.cuda.device_count())]
    return every if device.index is None else every[device.index : device.index + 1]


def most_processes(settings: Engine, device: torch.device) -> int:
    """How many processes share the runs, unless there is too little to do: what the user says,
    else `jobs_per_gpu` for each card; on a CPU one, or with `jobs=0` one for each thread."""
    if settings.jobs:
        return settings.jobs
    if device.type == "cuda":
        return max(1, len(cards(device))) * settings.jobs_per_gpu
    return THREADS if settings.jobs == 0 else 1


def on_one_device(settings: Engine, device: torch.device) -> int:
    """How many processes share the memory of one device at most."""
    processes = most_processes(settings, device)
    return -(-processes // max(1, len(cards(device))))


def environment(number: int, every: Sequence[str]) -> dict[str, str]:
    """What the process of that number, from 0, has in its environment."""
    return {VISIBLE: every[number % len(every)]} if every else {}


def answers(device: torch.device) -> bool:
    """Whether it still computes: after some errors a process cannot use its card again."""
    try:
        return float(torch.zeros(1, device=device) + 1) == 1
    except Exception:
        return False
