"""Files of a hub, fetched once: what is on this machine is used without asking for it again."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from harness.errors import HarnessError, one_line

TIMEOUT = 10.0  # seconds to learn what a repository holds


class NotHereError(HarnessError):
    """Something is not on this machine, and nothing is to be fetched."""


def cached(repository: str, names: Iterable[str]) -> Path | None:
    """The first of some files that is on this machine.

    Raises:
        HarnessError: a repository that cannot be.
    """
    try:
        found = (huggingface_hub.try_to_load_from_cache(repository, name) for name in names)
        return next((Path(path) for path in found if isinstance(path, str)), None)
    except HFValidationError as error:
        raise HarnessError(
            f"{repository!r} is no repository of a hub: two names are expected, OWNER/NAME."
        ) from error


def held(repository: str) -> set[str]:
    """The names of a repository's files.

    Raises:
        HarnessError: there is no such repository, or the hub cannot be reached.
    """
    try:
        found = huggingface_hub.HfApi().model_info(repository, timeout=TIMEOUT)
    except RepositoryNotFoundError as error:
        raise HarnessError(
            f"the hub has no repository {repository!r} that is open to you. Check its name; for a "
            "closed one, set HF_TOKEN."
        ) from error
    except Exception as error:  # of whichever library its version speaks HTTP with
        raise _unreached(repository, error) from error
    return {each.rfilename for each in found.siblings or ()}


def first(repository: str, names: Sequence[str], fetch: bool = True) -> Path:
    """The first of some files that is on this machine, or else that the repository has: fetched.

    Raises:
        HarnessError: it has none of them, or the hub cannot be reached.
    """
    there = cached(repository, names)
    if there is not None:
        return there
    if not fetch:
        raise NotHereError(f"{repository} is not on this machine, and --dry-run downloads nothing.")
    some = held(repository)
    wanted = [name for name in names if name in some][:1]
    if not wanted:
        raise HarnessError(f"the hub's repository {repository!r} has no {' or '.join(names)}.")
    return fetched(repository, wanted)[0]


def fetched(repository: str, names: Iterable[str]) -> list[Path]:
    """Files on this machine, after those that are missing are fetched. Standard error says which
    one is, in a terminal with a bar; one that broke off is resumed.

    Raises:
        HarnessError: the hub cannot be reached, or the disk is full.
    """
    paths = list[Path]()
    try:
        for name in names:
            print(f"fetching {name} of {repository}", file=sys.stderr)
            paths.append(Path(huggingface_hub.hf_hub_download(repository, name)))
    except Exception as error:
        raise _unreached(repository, error) from error
    return paths


def _unreached(repository: str, error: Exception) -> HarnessError:
    said = one_line(error).rstrip(".")
    return HarnessError(
        f"{repository} is not on this machine and cannot be fetched ({said[:200]}). Check the "
        "network and ask again, or give weights that are here: MODEL:FILE.safetensors or "
        "local-dir:FOLDER."
    )
