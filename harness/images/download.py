"""Downloads of the datasets that torchvision knows, laid out as CoOp's users have them."""

import contextlib
import http.client
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from platform import python_version
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from harness.dataset import FileDataset
from harness.errors import HarnessError, one_line
from harness.files import ARCHIVES
from harness.registry import Plugin

COOP = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
DOWNLOADED = (*ARCHIVES, ".mat", ".part")
TRIES = 5  # of a download that ends early


class DownloadError(HarnessError, RuntimeError):
    """A download that failed: torchvision tries the next mirror, if it knows one."""


def prepare(plugin: Plugin, root: Path | None) -> str:
    """Downloads a dataset's images through torchvision and lays them out as CoOp's users have them.

    It is built beside its place and moved there when whole; a second call goes on where the first
    one stopped.

    Raises:
        HarnessError: there is no download, it failed, or another process is at it.
    """
    dataset = plugin.cls(**plugin.fixed)
    about = dataset.published
    if hasattr(dataset, "fetch"):  # of the Hugging Face Hub, whose library keeps it
        return f"{plugin.name} is in {dataset.fetch()}."
    own = getattr(dataset, "download", None)  # torchvision:NAME lays itself out
    if not own and (not isinstance(dataset, FileDataset) or about is None):
        raise HarnessError(f"{plugin.name} needs no download.")
    if not own and not about.torchvision:
        raise HarnessError(
            f"{plugin.name} cannot be downloaded by a command. Images: {about.home} "
            f"({about.licence}); lists and layout: {COOP}"
        )
    if root is None:
        raise HarnessError("give --data-root DIR, the folder that will hold every dataset.")
    home = dataset.home(root) if own else root / dataset.folder
    if (home if own else home / about.images_folder).is_dir():
        return f"the images of {plugin.name} are in {home} already."
    staging = home.parent / f".{home.name}.preparing"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with FileLock(staging / ".lock", blocking=False):
            _build(dataset, staging, home)
    except Timeout as error:
        raise HarnessError(f"another process is preparing {plugin.name}.") from error
    except (OSError, RuntimeError, ValueError, ImportError, tarfile.TarError) as error:
        kept = f" What is there is kept in {staging}." if _files(staging) else ""
        raise HarnessError(
            f"{plugin.name} could not be downloaded: {_said(error)}.{kept} The same command goes "
            "on where it stopped."
        ) from error
    return f"the images of {plugin.name} are in {home}."


def _build(dataset: Any, staging: Path, home: Path) -> None:
    """Downloads and extracts a dataset in `staging`, and moves it to its place when it is whole."""
    import torchvision.datasets

    try:
        _forget_extracted(staging)
        with _resumed_downloads(), _kept_below():
            if hasattr(dataset, "download"):
                dataset.download(staging)
            else:
                read = getattr(torchvision.datasets, dataset.published.torchvision)
                read(root=str(staging), download=True)
        if hasattr(dataset, "download"):
            _forget_archives(staging)
            staging.replace(home)
            home.joinpath(".lock").unlink(missing_ok=True)
        else:
            _lay_out(staging, home, dataset.published.layout)
            shutil.rmtree(staging)
    finally:
        if not _files(staging):
            shutil.rmtree(staging, ignore_errors=True)


def _files(staging: Path) -> bool:
    """Whether anything was downloaded."""
    return any(path.is_file() and path.name != ".lock" for path in staging.rglob("*"))


def _said(error: Exception) -> str:
    """What an exception says, on one line."""
    text = one_line(error).rstrip(".")
    return re.sub(r"<urlopen error (?:\[Errno -?[0-9]+\] )?(.+?)>", r"\1", text)


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
    """Deletes folders without an archive, and what lies unpacked beside its archive: an extraction
    that was interrupted looks whole."""
    for here, folders, files in os.walk(staging, topdown=False):
        for name in files:
            if f"{name}.gz" in files:
                Path(here, name).unlink()
        archives = any(name.endswith(DOWNLOADED) for name in files)
        if not archives and not any(Path(here, name).exists() for name in folders):
            shutil.rmtree(here) if Path(here) != staging else None


def _forget_archives(staging: Path) -> None:
    for path in staging.rglob("*"):
        if path.name.endswith(ARCHIVES) and path.is_file():
            path.unlink()


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


@contextlib.contextmanager
def _kept_below() -> Iterator[None]:
    """Meanwhile archives are extracted under Python's filter for data, as it does by itself from
    3.14 on: nothing is written beside the folder, as far as this Python's filter goes.

    Raises:
        HarnessError: this Python has none.
    """
    if not hasattr(tarfile, "data_filter"):
        raise HarnessError(
            f"archives are extracted with care from Python 3.11.4 on; this is {python_version()}. "
            "Take a newer one, or extract the archive yourself."
        )
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


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
    raise DownloadError(f"{url}: {reason}")


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
