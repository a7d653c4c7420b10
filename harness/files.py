"""Files of datasets: which are read, which are hidden, how a path and a changed file are known."""

import os
import re
import stat
from pathlib import Path, PurePath

from harness.errors import HarnessError

ARCHIVES = (".tgz", ".gz", ".tar", ".zip")
# what Windows, macOS's archives and Synology's disks write into folders of images
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin")


def regular_file(path: Path) -> Path:
    """`path`, if it is a regular file: a pipe, a socket or a device could wait for ever.

    Raises:
        OSError: it is something else, or not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    return path


def read_text(path: Path, dataset: str) -> str:
    """What a text file holds, without a byte order mark.

    Raises:
        HarnessError: it cannot be read.
    """
    try:
        return regular_file(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # not UTF-8, a NUL in its name
        needs = "" if dataset == str(path) else f"{dataset} needs "
        raise HarnessError(f"{needs}{shown(path)}: {reason(error)}.") from error


def stamp(path: Path) -> str:
    """Inode, size and times of a file, or nothing if it is not there: another file under the same
    name has another stamp, even of the same size and age."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: .DS_Store, ._x, Thumbs.db, @eaDir."""
    return name.startswith(".") or name.lower() in SYSTEM


def path_below(path: str, dataset: str) -> str:
    """`path`, if it stays below the folder that it is relative to.

    Raises:
        HarnessError: it does not, it is empty, or no file can have such a name.
    """
    if "\0" in path:
        raise HarnessError(f"{dataset}: the path {path!r} has a NUL character.")
    parts = re.split(r"[\\/]", path)
    if not any(parts) or ".." in parts or PurePath(path).anchor or parts[0] == "":
        raise HarnessError(f"{dataset}: the path {path!r} leaves the dataset's folder.")
    return path


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that every terminal can print: what is not printable is escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in os.fspath(path)
    )


def reason(error: Exception) -> str:
    """What an exception says, without the name of the file."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def cache_folder() -> Path:
    """Where decoded images and frozen features are kept: $HARNESS_CACHE, or in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HARNESS_CACHE") or Path(home) / "vlm-peft-harness").absolute()
