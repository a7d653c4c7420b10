"""Where tables of images come from: the Hugging Face Hub, save_to_disk, parquet files. The library
`datasets` is imported here and in `table` alone."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, first_sentence
from harness.files import cache_folder, path_below
from harness.images.contents import DIGESTS
from harness.images.table import Table


def files(path: str, configuration: str) -> list[Path]:
    """The files of a dataset on this disk; none of one of the Hub.

    Raises:
        HarnessError: it is neither a folder of save_to_disk nor parquet files.
    """
    where = Path(path)
    if not where.is_absolute():
        return []
    if configuration:
        raise HarnessError(f"--configuration is for datasets of the Hub, not for {path}.")
    if where.suffix == ".parquet" and where.is_file():
        return [where]
    saved = [name for name in ("dataset_dict.json", "state.json") if (where / name).is_file()]
    found = sorted(where.rglob("*.arrow" if saved else "*.parquet"))
    if saved:
        found += sorted(where.rglob("*.json"))
    if not found:
        scripts = sorted(where.glob("*.py"))
        beside = f" Its {scripts[0].name} is not run." if scripts else ""
        raise HarnessError(
            f"{path} is neither a folder of save_to_disk nor one with parquet files.{beside}"
        )
    for each in found:
        if not os.path.realpath(each).startswith(os.path.realpath(where) + os.sep):
            raise HarnessError(f"{each} is a link that leaves {path}.")
    return found


@functools.lru_cache(maxsize=8)
def opened(path: str, configuration: str, mark: str) -> Table:
    """The dataset at a path or of a name. mark: what changes when its files do.

    Raises:
        HarnessError: it cannot be read, or not be reached.
    """
    import datasets

    datasets.disable_progress_bars()
    there = files(path, configuration)
    try:
        if not there:
            return _of_hub(path, configuration)
        if there[0].suffix == ".parquet":
            return Table(path, _of_parquet(Path(path), there))
        _check_saved(there)
        read = datasets.load_from_disk(path)
    except HarnessError:
        raise
    except Exception as error:  # the library and those below it raise all kinds
        raise HarnessError(f"hf:{path} cannot be read: {first_sentence(error)}.") from error
    parts = dict(read) if isinstance(read, datasets.DatasetDict) else {"train": read}
    return Table(path, parts)


@functools.cache
def _hub_is_reached() -> bool:
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except Exception:  # of whichever library it uses
        return False
    return True


def _of_hub(path: str, configuration: str) -> Table:
    import datasets
    import huggingface_hub

    name, _, revision = path.partition("@")
    if not _hub_is_reached():  # else each request is tried again for half a minute
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        builder = datasets.load_dataset_builder(
            name, configuration or None, revision=revision or None
        )
        resolved = str(builder.hash)
        if re.fullmatch("[0-9a-f]{40}", revision) and resolved != revision:
            raise HarnessError(
                f"hf:{name} is on this disk at the revision {resolved}, not {revision}, and the "
                "Hub is not reached."
            )
        builder.download_and_prepare()
        return Table(path, dict(builder.as_dataset()), f"{resolved} {builder.config.name}")
    except datasets.exceptions.DatasetNotFoundError as error:
        raise HarnessError(
            f"hf:{name} is not on the Hugging Face Hub, or not for everybody; a name is "
            "OWNER/NAME[@REVISION]."
        ) from error
    except (ConnectionError, OSError) as error:
        set_so = "HF_HUB_OFFLINE" in os.environ
        why = "HF_HUB_OFFLINE is set" if set_so else "the Hugging Face Hub cannot be reached"
        raise HarnessError(f"hf:{name} is not on this disk, and {why}.") from error


def _of_parquet(path: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The splits of parquet files; kept by what the files hold."""
    import datasets

    named = _named_splits(path, files)
    _check_parquet(path, named)
    digests = repr([digest.hex() for digest in DIGESTS.of(list(files))])
    place = cache_folder() / "parquet" / hashlib.sha256(digests.encode()).hexdigest()[:16]
    given = {split: [str(each) for each in some] for split, some in named.items()}
    return dict(datasets.load_dataset("parquet", data_files=given, cache_dir=str(place)))


def _named_splits(path: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files are named after their split: test.parquet, train-00000-of-..., train/0.parquet, also
    inside a folder that holds all of them, such as data/. Of one name, or numbered in such a
    folder, they are one split."""
    _check_numbered(path, files)
    found: dict[str, list[Path]] = {}
    top = Path(os.path.commonpath([each.parent for each in files]))
    for each in files:
        word = re.split(r"[-_.0-9]", each.stem)[0] or (each.stem if top == path else "numbered")
        found.setdefault(next(iter(each.parent.relative_to(top).parts), word), []).append(each)
    return {"train": list(files)} if len(found) == 1 else found


def _check_numbered(path: Path, files: Sequence[Path]) -> None:
    """Of files that are numbered, as train-00000-of-00004, all are there."""
    sets: dict[tuple[Path, str, int], set[int]] = {}
    for each in files:
        numbered = re.match(r"(.*)-(\d+)-of-(\d+)", each.stem)
        if numbered:
            start, number, count = numbered.groups()
            sets.setdefault((each.parent, start, int(count)), set()).add(int(number))
    for (_, start, count), there in sets.items():
        missing = sorted(set(range(count)) - there)
        if missing:
            raise HarnessError(
                f"{path} has {len(there)} of {count} files of {start!r}: the one numbered "
                f"{missing[0]} is missing. Complete the download."
            )


def _check_parquet(path: Path, splits: Mapping[str, Sequence[Path]]) -> None:
    """All files name columns and classes alike: the library reads all of them as the first one. No
    split is empty."""
    import pyarrow.parquet

    first = None
    for split, files in splits.items():
        rows = 0
        for each in files:
            try:
                about = pyarrow.parquet.read_metadata(each)
            except (pyarrow.ArrowInvalid, OSError) as error:
                raise HarnessError(f"{each} cannot be read: {first_sentence(error)}.") from error
            rows += about.num_rows
            schema = about.schema.to_arrow_schema()
            features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            found = (dict(zip(schema.names, map(str, schema.types), strict=True)),
                     features.get("info", {}).get("features"))  # fmt: skip
            first = first or (each, found)
            if found != first[1]:
                raise HarnessError(
                    f"{path}: {first[0].name} and {each.name} have other columns, or name the "
                    "classes differently. Store them with the same features."
                )
        if not rows:
            raise HarnessError(f"{path}: {split} has no rows. Fill it, or leave it out.")


def _check_saved(files: Sequence[Path]) -> None:
    """The files that a saved dataset names lie in its folder."""
    for path in files:
        if path.name == "state.json":
            there = json.loads(path.read_text(encoding="utf-8"))["_data_files"]
            if not there:
                raise HarnessError(
                    f"{path.parent.parent}: {path.parent.name} has no rows. Fill it, or leave it "
                    "out."
                )
            for each in there:
                path_below(each["filename"], str(path))
