"""Few-shot lists as files: written for others, and read as others publish them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.dataset import Dataset
from harness.errors import HarnessError
from harness.files import read_text, reason, shown
from harness.images.lists import FewShotList, ListedImage, ListFolder, file_name, fingerprints, stem
from harness.splits import few_shot, read_lists

NAME = re.compile(r"(?:(?P<dataset>.+)-)?shot_(?P<shots>\d+)-seed_(?P<seed>\d+)\.jsonl?")
LARGEST = 10**9  # of labels


def read(folder: Path) -> ListFolder:
    """The lists of a folder: DATASET-shot_K-seed_S.jsonl as `data lists` writes them, or .json as
    cross_modal_adaptation publishes them; the dataset may also be the name of a subfolder.

    Raises:
        HarnessError: there are none, two of one run, or one cannot be read.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise HarnessError(f"--lists {folder} is not a folder.")
    found = dict[tuple[str, int, int], FewShotList]()
    for path in sorted(each for each in folder.rglob("*.json*") if each.is_file()):
        match = NAME.fullmatch(path.name)
        if match is None:
            continue
        dataset = match["dataset"] or path.parent.name
        key = (file_name(dataset), int(match["shots"]), int(match["seed"]))
        if key in found:
            raise HarnessError(
                f"{found[key].file} and {path} are both lists of {dataset} with {key[1]} shots and "
                f"seed {key[2]}. Keep one."
            )
        found[key] = FewShotList(path, tuple(_images(path)))
    if not found:
        raise HarnessError(
            f"{folder} has no lists. They are called DATASET-shot_K-seed_S.jsonl (or .json), as "
            "`python -m harness data lists` writes them."
        )
    return ListFolder(folder, found)


def write(
    name: str, dataset: Dataset, root: Path | None, shots: Sequence[int], seeds: Sequence[int],
    out: Path,
) -> list[Path]:  # fmt: skip
    """Writes the list that is drawn for each number of shots and seed; returns the files.

    Raises:
        HarnessError: the dataset cannot be read, the folder not written, or a file lists others.
    """
    lists, written = read_lists(name, dataset, root), []
    for count in shots:
        for seed in seeds:
            train, val = few_shot(lists["train"], lists["val"], count, seed)
            parts = ["train"] * len(train) + ["val"] * len(val)
            items = [*train, *val]
            lines = [
                {"path": i.path, "label": i.label, "class": i.name, "split": part, "fingerprint": f}
                for part, i, f in zip(parts, items, fingerprints(dataset, items, root), strict=True)
            ]
            path = out / f"{stem(name, count, seed)}.jsonl"
            text = "".join(json.dumps(line) + "\n" for line in lines)
            try:
                out.mkdir(parents=True, exist_ok=True)
                if path.exists() and path.read_bytes() != text.encode():
                    raise HarnessError(
                        f"{path} lists other images than are drawn now, and is not replaced. Name "
                        "another --out, or remove it."
                    )
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise HarnessError(f"{path} cannot be written: {reason(error)}.") from error
            written.append(path)
    return written


def _images(path: Path) -> Iterator[ListedImage]:
    text = read_text(path, "--lists")
    try:
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
            rows = [(line["split"], line) for line in lines]
        else:
            parts = json.loads(text)
            rows = [(part, row) for part in ("train", "val") if part in parts
                    for row in parts[part]["data"]]  # fmt: skip
        images = [_image(part, row) for part, row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HarnessError(
            f"{shown(path)} is no few-shot list: {error!r}. A line has path, label, class and "
            "split (train or val); a .json file train and val with impath, label and classname."
        ) from error
    if not any(image.part == "train" for image in images):
        raise HarnessError(f"{shown(path)} lists no training images.")
    yield from images


def _image(part: Any, row: Mapping[str, Any]) -> ListedImage:
    path = row["path"] if "path" in row else row["impath"]
    name = row["class"] if "class" in row else row["classname"]
    label, fingerprint = row["label"], row.get("fingerprint", "")
    if part not in ("train", "val"):
        raise ValueError(f"the split {part!r}")
    texts = all(isinstance(each, str) for each in (path, name, fingerprint))
    if not texts or type(label) is not int or not 0 <= label <= LARGEST:
        raise TypeError(f"the types of {row!r}")
    return ListedImage(part, path, label, name, fingerprint)
