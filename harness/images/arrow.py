"""Tables of images that the library `datasets` reads: memory-mapped, by row. It is imported here
alone."""

import functools
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import cache_folder, path_below, reason, regular_file
from harness.images.contents import DIGESTS

LABELS = ("label", "labels", "class", "target")


@dataclass(frozen=True, eq=False)
class Table:
    """The splits of a dataset. revision: of the Hub, the commit that was read; else nothing."""

    path: str
    parts: Mapping[str, Any]
    revision: str = ""

    @property
    def splits(self) -> list[str]:
        """The names of its splits."""
        return list(self.parts)

    def columns(self, image: str, label: str) -> tuple[str, str]:
        """The columns of images and of labels: those that are given, or that their types tell.

        Raises:
            HarnessError: none or several, with what there is.
        """
        import datasets

        features = next(iter(self.parts.values())).features
        for split, part in self.parts.items():
            if part.features.keys() != features.keys():
                raise HarnessError(f"{self.path}: the split {split!r} has other columns.")
        for given in filter(None, (image, label)):
            if given not in features:
                raise HarnessError(
                    f"{self.path} has no column {given!r}. It has {', '.join(features)}."
                )
        images = [n for n, each in features.items() if isinstance(each, datasets.Image)]
        images = images or [n for n, each in features.items() if _holds_bytes(each)]
        classes = [n for n, each in features.items() if isinstance(each, datasets.ClassLabel)]
        values = [n for n, each in features.items() if _holds_values(each)]
        classes = classes or [n for n in values if n in LABELS] or values
        return (
            image or self._only("image", images, features),
            label or self._only("label", classes, features),
        )

    def _only(self, what: str, found: Sequence[str], features: Mapping[str, Any]) -> str:
        if len(found) != 1:
            some = "several columns" if found else "no column"
            raise HarnessError(
                f"{self.path} has {some} of {what}s ({', '.join(found or features)}). Say which "
                f"with --{what}-column."
            )
        return found[0]

    def class_names(self, column: str) -> list[str]:
        """The names of ClassLabel, in its order; none of another column."""
        every = [getattr(part.features[column], "names", None) for part in self.parts.values()]
        if any(names != every[0] for names in every):
            raise HarnessError(
                f"{self.path}: the splits name the classes of {column!r} differently. Store them "
                "with one ClassLabel."
            )
        return list(every[0] or [])

    def labels(self, split: str, column: str) -> list[str | None]:
        """The class of every row; None of one that has none.

        Raises:
            HarnessError: the column holds something else.
        """
        names = self.class_names(column)
        part = self.parts[split].select_columns([column]).with_format("arrow")
        values = part[:].column(column).to_pylist() if len(part) else []
        if names:
            if any(value is not None and value >= len(names) for value in values):
                raise HarnessError(f"{self.path}: {column!r} has labels that have no name.")
            return [None if value is None or value < 0 else names[value] for value in values]
        kinds = Counter(map(type, values)).keys() - {type(None)}
        if not kinds <= {int, str}:
            raise HarnessError(
                f"{self.path}: {column!r} holds {', '.join(sorted(k.__name__ for k in kinds))}; "
                "labels are text or whole numbers. Give another --label-column."
            )
        texts = {value: str(value).strip() or None for value in set(values) - {None}}
        return [texts.get(value) for value in values]

    def image(self, split: str, row: int, column: str) -> bytes:
        """The bytes of an image as they are stored.

        Raises:
            HarnessError: there are none.
        """
        value = self._encoded(column)[split][row][column]
        value = value if isinstance(value, Mapping) else {"bytes": value}
        if isinstance(value.get("bytes"), bytes):
            return value["bytes"]
        where, name = value.get("path"), f"{self.path}: row {row} of {split}"
        if not where:
            raise HarnessError(f"{name} has no image in {column!r}.")
        inside = [os.path.realpath(each) for each in self._homes()]
        real = os.path.realpath(where)
        if not any(os.path.commonpath([home, real]) == home for home in inside):
            raise HarnessError(f"{name} refers to {where}, which is outside of the dataset.")
        try:
            return regular_file(Path(real)).read_bytes()
        except OSError as error:
            raise HarnessError(f"{name}: {where} cannot be read: {reason(error)}.") from error

    def _homes(self) -> list[str]:
        """The folders that may hold images in files of their own."""
        import datasets

        return [str(datasets.config.HF_CACHE_HOME)] if self.revision else [self.path]

    @functools.lru_cache(maxsize=4)  # noqa: B019 - few tables, and each for as long as the process
    def _encoded(self, column: str) -> dict[str, Any]:
        import datasets

        parts = {split: part.select_columns([column]) for split, part in self.parts.items()}
        if isinstance(next(iter(parts.values())).features[column], datasets.Image):
            undecoded = datasets.Image(decode=False)
            parts = {split: part.cast_column(column, undecoded) for split, part in parts.items()}
        return parts


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
        what = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise HarnessError(f"hf:{path} cannot be read: {what or type(error).__name__}.") from error
    parts = dict(read) if isinstance(read, datasets.DatasetDict) else {"train": read}
    return Table(path, parts)


def _of_hub(path: str, configuration: str) -> Table:
    import datasets

    name, _, revision = path.partition("@")
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
        raise HarnessError(
            f"hf:{name} is not on this disk, and the Hugging Face Hub cannot be reached."
        ) from error


def _of_parquet(path: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The splits of parquet files, which are named after them: test.parquet, train-00000-of-...,
    train/0.parquet; of other names, one split. Kept by what the files hold."""
    import datasets

    named: dict[str, list[Path]] = {}
    for each in files:
        words = each.relative_to(path).parts[:-1] if each != path else ()
        stem = re.split(r"[-_.0-9]", each.stem)[0] or each.stem
        named.setdefault(words[0] if words else stem, []).append(each)
    if path in files or len(named) == 1:
        named = {"train": list(files)}
    _check_features(path, files)
    digests = repr([digest.hex() for digest in DIGESTS.of(list(files))])
    place = cache_folder() / "parquet" / hashlib.sha256(digests.encode()).hexdigest()[:16]
    given = {split: [str(each) for each in some] for split, some in named.items()}
    return dict(datasets.load_dataset("parquet", data_files=given, cache_dir=str(place)))


def _check_features(path: Path, files: Sequence[Path]) -> None:
    """All files name columns and classes alike: the library reads all of them as the first one."""
    import pyarrow.parquet

    first = None
    for each in files:
        schema = pyarrow.parquet.read_schema(each)
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        found = (dict(zip(schema.names, map(str, schema.types), strict=True)),
                 about.get("info", {}).get("features"))  # fmt: skip
        first = first or (each, found)
        if found != first[1]:
            raise HarnessError(
                f"{path}: {first[0].name} and {each.name} have other columns, or name the classes "
                "differently. Store them with the same features."
            )


def _check_saved(files: Sequence[Path]) -> None:
    """The files that a saved dataset names lie in its folder."""
    for path in files:
        if path.name == "state.json":
            for each in json.loads(path.read_text(encoding="utf-8"))["_data_files"]:
                path_below(each["filename"], str(path))


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return getattr(feature.get("bytes"), "dtype", "") in ("binary", "large_binary")
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _holds_values(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return kind in ("string", "large_string") or kind.startswith(("int", "uint"))
