"""What is computed once: in memory for one process, on disk for all methods, seeds and processes.

An entry's name is a hash of everything that it depends on, so that a changed image, weight or code
is another entry. Entries are safetensors files, memory-mapped, written whole or not at all; one
that is damaged is computed again.
"""

import functools
import hashlib
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.code import version
from harness.records.store import atomically

Tensors = Mapping[str, Tensor]
A_DAY = 24 * 3600  # seconds
PATIENCE = 60  # seconds to wait for another process that computes the same entry


@dataclass
class Cache:
    """Tensors by key, the least recently used dropped first when `budget` bytes are exceeded.

    `seconds` is the time spent on computing them, or on reading them from `disk`.
    """

    budget: int = 2 * 2**30
    disk: "Disk | None" = None
    seconds: float = 0.0
    kept: OrderedDict[Hashable, Tensor] = field(default_factory=OrderedDict)

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor under `key`, computed if it is not there."""
        if key not in self.kept:
            started = time.perf_counter()
            self.kept[key] = compute()
            self.seconds += time.perf_counter() - started
        self.kept.move_to_end(key)
        while sum(t.nbytes for t in self.kept.values()) > self.budget and len(self.kept) > 1:
            self.kept.popitem(last=False)
        return self.kept[key]


@dataclass
class Disk:
    """A folder of entries, the least recently used deleted first when `limit` bytes are exceeded.

    It is never needed: what cannot be read is computed, and a folder that cannot be written is left
    alone after one warning. No entry takes more than a quarter of the limit.
    """

    folder: Path
    limit: int = 20 * 2**30
    checked: set[Path] = field(default_factory=set)
    unchecked_bytes: int | None = None  # written since the folder was last measured

    def get(self, kind: str, key: tuple[Hashable, ...], compute: Callable[[], Tensors]) -> Tensors:
        """The tensors under `key`, computed if they are not there.

        Two processes do not compute the same entry: the second one waits, for a minute at most.
        """
        if self.limit <= 0:
            return compute()
        path = self.path(kind, key)
        found = self._read(path)
        if found is not None:
            return found
        try:
            (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".locks" / f"{kind}-{path.stem[:2]}.lock")
            lock.acquire(timeout=PATIENCE, poll_interval=0.1)
        except Timeout:
            return compute()
        except OSError as error:
            self._give_up(error)
            return compute()
        try:
            found = self._read(path)
            return self._write(path, compute()) if found is None else found
        finally:
            lock.release()

    def path(self, kind: str, key: tuple[Hashable, ...]) -> Path:
        """Where the entry of a key lies."""
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        return self.folder / kind / f"{name}.safetensors"

    def kinds(self) -> dict[str, tuple[int, int]]:
        """Number and bytes of the entries, by kind."""
        sizes: dict[str, tuple[int, int]] = {}
        for path, _, size in self._entries():
            count, total = sizes.get(path.parent.name, (0, 0))
            sizes[path.parent.name] = (count + 1, total + size)
        return dict(sorted(sizes.items()))

    def clear(self, most: int = 0) -> int:
        """Deletes the least recently used entries until at most `most` bytes are left; returns the
        number of bytes that were freed."""
        for path in self.folder.glob("*/.*.tmp"):  # of a process that was killed
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > A_DAY:
                    path.unlink()
        entries = sorted(self._entries(), key=lambda entry: entry[1])
        left, freed = sum(size for _, _, size in entries), 0
        for path, _, size in entries:
            if left - freed <= most:
                break
            path.unlink(missing_ok=True)
            freed += size
        self.unchecked_bytes = 0
        return freed

    def _entries(self) -> list[tuple[Path, float, int]]:
        """Path, last use and bytes of every entry."""
        found = []
        for path in self.folder.glob("*/*.safetensors"):
            try:
                status = path.stat()
            except OSError:
                continue  # another process deleted it
            found.append((path, status.st_mtime, status.st_size))
        return found

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        try:
            with safe_open(str(path), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                expected = (file.metadata() or {}).get("sha256")
            if path not in self.checked and checksum(tensors) != expected:
                return None
            self.checked.add(path)
            with suppress(OSError):  # another user's
                os.utime(path)
        except (OSError, SafetensorError):
            return None
        return tensors

    def _write(self, path: Path, tensors: Tensors) -> Tensors:
        """Keeps the tensors; returns them memory-mapped, or as they are if they cannot be kept."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self.limit // 4:
            return tensors
        if self.unchecked_bytes is None or self.unchecked_bytes + size > self.limit // 20:
            self.clear(self.limit - size)
        self.unchecked_bytes = (self.unchecked_bytes or 0) + size
        contents = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about = {"sha256": checksum(contents)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomically(path, lambda p: safetensors.torch.save_file(contents, str(p), about))
        except (OSError, SafetensorError) as error:
            self._give_up(error)
            return tensors
        self.checked.add(path)
        return self._read(path) or tensors

    def _give_up(self, error: Exception) -> None:
        self.limit = 0
        reason = getattr(error, "strerror", None) or error
        warnings.warn(
            f"the cache in {self.folder} cannot be used ({reason}): going on without it. "
            "Give another folder with --cache-dir, or a size with --cache-limit.",
            stacklevel=2,
        )


@functools.cache
def source_hash(*modules: str) -> str:
    """A hash of the source of harness modules and of the packages that take part, for the keys of
    what they compute."""
    folder = Path(__file__).parents[1]
    source = b"".join((folder / f"{module}.py").read_bytes() for module in modules)
    return hashlib.sha256(source + _versions().encode()).hexdigest()[:16]


@functools.cache
def _versions() -> str:
    packages = "torchvision", "open_clip_torch", "timm", "transformers", "pillow-heif"
    return " ".join([torch.__version__, *map(version, packages)])


def checksum(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
