"""Where, when, with what and by which command a record was made."""

import datetime
import functools
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from harness.code import version
from harness.measure import device_name

SOURCES = ("harness", "methods", "tasks", "pyproject.toml")


PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")

_stated: str | None = None  # see `state`


def provenance_of(device: torch.device, requires: str = "") -> dict[str, Any]:
    """Where, when, with what (also a package that the method requires) and by which command; no
    host name."""
    changes = _git("status", "--porcelain", "--", *SOURCES)
    return {
        "time": _now().isoformat(timespec="seconds"),
        "command": command(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions(*filter(None, [requires])),
    }


def versions(*more: str) -> dict[str, str]:
    """Of the packages that make the numbers, and of others."""
    return {name: version(name) for name in (*PACKAGES, *more)}


def state(command: str | None) -> None:
    """Records state this instead of the arguments of this process: a call from a script, or the
    command that a worker serves. None: the arguments again."""
    global _stated
    _stated = command


def command() -> str:
    """What makes the record again: what was stated, or the command line of this process."""
    return _command(sys.argv[1:]) if _stated is None else _stated


def _command(arguments: list[str]) -> str:
    """The command line, without where this machine keeps what it makes, and without the address of
    a cluster."""
    places = ("--cache-dir", "--results", "--address")
    kept, rest = list[str](), iter(arguments)
    for argument in rest:
        if argument in places:
            next(rest, None)
        elif argument.partition("=")[0] not in places:
            kept.append(argument)
    return shlex.join(["python", "-m", "harness", *kept])


@functools.cache
def _git(*arguments: str) -> str | None:
    """What git says of this repository, or None where the harness is not run from one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
