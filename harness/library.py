"""The datasets on disk: what is there, what is missing, downloads, and a check of every image."""

import contextlib
import hashlib
import http.client
import os
import shutil
import textwrap
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tabulate import tabulate
from tqdm import tqdm

from harness.dataset import Dataset, Files, Item, Published, class_names
from harness.errors import HarnessError
from harness.registry import Plugin

COOP = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
ARCHIVES = (".tgz", ".gz", ".tar", ".zip", ".mat", ".part")
TRIES = 5  # of a download that ends early
THREADS = 8


def status(plugins: Sequence[Plugin], root: Path | None) -> str:
    """A table of what is found of each dataset, and for what is not: where it is expected and where
    to get it."""
    rows, missing = [], []
    for plugin in plugins:
        dataset: Dataset = plugin.cls(**plugin.fixed)
        found, problem = _found(dataset, root)
        about = dataset.published
        rows.append(
            {
                "dataset": plugin.name,
                "found": found,
                "where": _place(dataset),
                "download": about.size if about else "–",
                "licence": about.licence if about else "–",
            }
        )
        if problem:
            missing.append(f"{plugin.name}: {problem} {_where(plugin.name, about)}")
    table = tabulate(rows, headers="keys", tablefmt="simple", maxcolwidths=[None] * 4 + [34])
    notes = [textwrap.fill(each, 100, break_long_words=False, break_on_hyphens=False)
             for each in missing]  # fmt: skip
    notes += [f"Lists (split files, class names) and layout: {COOP}"] if missing else []
    title = f"datasets below {root}" if root else "no --data-root was given, nor $DATA set"
    return "\n\n".join([title, table, "\n".join(notes)]).rstrip()


def _place(dataset: Dataset) -> str:
    if isinstance(dataset, Files):
        return dataset.folder
    return str(getattr(dataset, "path", "") or "embedded")


def _found(dataset: Dataset, root: Path | None) -> tuple[str, str]:
    """What is there in a word or two, and a sentence on what is not."""
    try:
        lists = dataset.read(root)
    except HarnessError as error:
        if not isinstance(dataset, Files):
            return "unusable", str(error)
        expected = (root or Path("DATA_ROOT")) / dataset.folder
        there = expected.is_dir()
        return ("incomplete", str(error)) if there else ("missing", f"expected in {expected}.")
    items = [item for part in lists.values() for item in part]
    if isinstance(dataset, Files):
        absent = [item for item in items if not dataset.file(item, root).is_file()]
        if absent:
            first = dataset.file(absent[0], root)
            return (
                "incomplete",
                f"{len(absent):,} of {len(items):,} images are missing, such as {first}.",
            )
    return f"{len(items):,} images", ""


def _where(name: str, about: Published | None) -> str:
    if about is None:
        return ""
    if about.torchvision:
        return f"Images: `python -m harness data prepare {name}`."
    return f"Images: {about.home}."


@dataclass
class Findings:
    """What `verify` found in a dataset: a table, and sentences on what is wrong."""

    table: str
    problems: list[str] = field(default_factory=list)


def verify(plugin: Plugin, root: Path | None) -> Findings:
    """Counts the images per class and split, opens each of them, and looks for images that are in
    train and in test.

    Raises:
        HarnessError: the lists cannot be read.
    """
    dataset: Dataset = plugin.cls(**plugin.fixed)
    lists = {part: items for part, items in dataset.read(root).items() if items}
    about, rows, problems = dataset.published, [], []
    classes = len(class_names(lists.get("train") or lists["test"]))
    if about and classes != about.classes:
        problems.append(f"{classes} classes instead of {about.classes}.")
    for part, items in lists.items():
        each = Counter(item.label for item in items).values()
        expected = about.images[part] if about and part in about.images else None
        rows.append([part, len(items), expected or "–", classes, f"{min(each)}-{max(each)}"])
        if expected not in (None, len(items)):
            problems.append(f"{len(items):,} {part} images instead of {expected:,}.")
    headers = ["split", "images", "published", "classes", "images a class"]
    digests, bad = _digests(plugin.name, dataset, root, lists)
    problems += bad
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        here, there = digests.get(one, {}), digests.get(other, {})
        problems += [
            f"{path} of {one} shows the same pixels as {there[digest]} of {other}."
            for digest, path in here.items()
            if digest in there
        ]
    return Findings(tabulate(rows, headers=headers, tablefmt="simple"), problems)


def _digests(
    name: str, dataset: Dataset, root: Path | None, lists: Mapping[str, Sequence[Item]]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The path of each image by a hash of its pixels, by part; and what cannot be opened."""

    def digest(item: Item) -> tuple[str, str]:
        try:
            image = dataset.open(item, root)
        except HarnessError as error:
            return "", str(error)
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest(), ""

    found: dict[str, dict[str, str]] = {}
    bad = []
    total = sum(map(len, lists.values()))
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=total, desc=f"opening {name}", unit="image", disable=None) as bar,
    ):
        for part, items in lists.items():
            for start in range(0, len(items), 1000):
                some = items[start : start + 1000]
                for item, (value, error) in zip(some, pool.map(digest, some), strict=True):
                    bar.update()
                    if error:
                        bad.append(error.partition(" `python")[0])
                    else:
                        found.setdefault(part, {})[value] = item.path
    return found, bad


def prepare(plugin: Plugin, root: Path | None) -> str:
    """Downloads a dataset's images through torchvision and lays them out as CoOp's users have them.

    It is built beside its place and moved there when whole; a second call goes on where the first
    one stopped.

    Raises:
        HarnessError: there is no download, it failed, or another process is at it.
    """
    dataset = plugin.cls(**plugin.fixed)
    about = dataset.published
    if not isinstance(dataset, Files) or about is None:
        raise HarnessError(f"{plugin.name} needs no download.")
    if not about.torchvision:
        raise HarnessError(
            f"{plugin.name} cannot be downloaded by a command. Images: {about.home} "
            f"({about.licence}); lists and layout: {COOP}"
        )
    if root is None:
        raise HarnessError("give --data-root DIR, the folder that will hold every dataset.")
    home = root / dataset.folder
    if home.joinpath(about.images_folder).is_dir():
        return f"the images of {plugin.name} are in {home} already."
    staging = root / f".{dataset.folder}.preparing"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / ".lock", blocking=False):
            _forget_extracted(staging)
            _download(about.torchvision, staging)
            _lay_out(staging, home, about.layout)
            shutil.rmtree(staging)
    except Timeout as error:
        raise HarnessError(f"another process is preparing {plugin.name}.") from error
    except OSError as error:
        raise HarnessError(
            f"{plugin.name} could not be prepared: {error}. What was downloaded is kept in "
            f"{staging}; the same command goes on."
        ) from error
    return f"the images of {plugin.name} are in {home}."


def _download(name: str, staging: Path) -> None:
    import torchvision.datasets

    with _resumed_downloads():
        try:
            getattr(torchvision.datasets, name)(root=str(staging), download=True)
        except (RuntimeError, ValueError) as error:
            raise HarnessError(
                f"the download failed: {error} What is there is kept in {staging}; the same "
                "command goes on."
            ) from error


def _lay_out(staging: Path, home: Path, layout: Mapping[str, str]) -> None:
    """Moves the entries of `layout` (pattern in the download: name in the dataset's folder, empty
    for its own), each by a rename; folders, which make a dataset look whole, last."""
    home.mkdir(exist_ok=True)
    entries = [
        (path, new or path.name) for old, new in layout.items() for path in staging.glob(old)
    ]
    for path, name in sorted(entries, key=lambda entry: entry[0].is_dir()):
        if not (home / name).exists():
            path.replace(home / name)


def _forget_extracted(staging: Path) -> None:
    """Deletes folders without an archive: an extraction that was interrupted looks whole."""
    for here, folders, files in os.walk(staging, topdown=False):
        archives = any(name.endswith(ARCHIVES) for name in files)
        if not archives and not any(Path(here, name).exists() for name in folders):
            shutil.rmtree(here) if Path(here) != staging else None


@contextlib.contextmanager
def _resumed_downloads() -> Iterator[None]:
    """Torchvision's downloads, but going on where they were interrupted."""
    from torchvision.datasets import utils  # all its datasets download through one function

    original: Callable[..., Any] = utils._urlretrieve
    utils._urlretrieve = _fetch
    try:
        yield
    finally:
        utils._urlretrieve = original


def _fetch(url: str, filename: str, chunk_size: int = 2**20) -> None:
    """Downloads `url` to `filename`, through a .part file that a later call goes on with."""
    part, reason = Path(f"{filename}.part"), "the connection ends early"
    for _ in range(TRIES):
        try:
            if _fetch_rest(url, part, chunk_size):
                part.replace(filename)
                return
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as error:
            reason = str(error)
    raise HarnessError(
        f"{url} cannot be downloaded: {reason}. The same command goes on where it stopped."
    )


def _fetch_rest(url: str, part: Path, chunk_size: int) -> bool:
    """Appends what `part` lacks; whether it is whole then."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "vlm-peft-harness", "Range": f"bytes={start}-"}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left: it was whole
            return True
        raise
    start = start if response.status == 206 else 0
    rest = response.headers.get("Content-Length")
    total = start + int(rest) if rest else None
    bar = tqdm(total=total, initial=start, desc=Path(url).name, unit="B", unit_scale=True,
               disable=None)  # fmt: skip
    early = contextlib.suppress(ConnectionError, TimeoutError)
    with response, bar, part.open("ab" if start else "wb") as file, early:
        while chunk := response.read(chunk_size):
            file.write(chunk)
            bar.update(len(chunk))
    return total is None or part.stat().st_size == total
