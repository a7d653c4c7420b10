"""`predict`: what a fitted model says of images."""

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli import chosen, options
from harness.errors import HarnessError
from harness.files import reason, shown
from harness.records.tables import csv_cell, harmless, plain_table, wrapped

if TYPE_CHECKING:
    from torch import Tensor

    from harness.deploy.predict import Batch
    from harness.fitting.fitted import FittedModel
    from harness.records.record import Record

NONE = "none of these"


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    predict = verbs.add_parser(
        "predict",
        help="name the images in files and folders with a fitted model",
        description="Name images with a fitted model: the most probable classes of each, with "
        "their probabilities.",
    )
    predict.add_argument(
        "fit", metavar="FIT", help="a method as the leaderboard names it, the key of a record, a "
        "record's file, or a file of weights in RESULTS/fits",
    )  # fmt: skip
    predict.add_argument(
        "images", nargs="+", metavar="IMAGES", help="files, folders with all that is below them, "
        "or patterns in quotes such as 'photos/*.jpg'",
    )  # fmt: skip
    predict.add_argument(
        "--top", type=int, default=1, metavar="N", help="classes of each image (default: 1)"
    )
    predict.add_argument(
        "--out", type=Path, metavar="FILE.csv", help="write the table there instead of printing it"
    )
    predict.add_argument(
        "--classes", type=Path, metavar="FILE", help="a text file with other class names, one a "
        "line, of methods that can tell them apart by their names",
    )  # fmt: skip
    predict.add_argument(
        "--calibrate", nargs="?", const="", metavar="DATASET", help="scale the probabilities so "
        "that they fit the validation images of the dataset that the model was fitted on; "
        "folder: and csv: datasets have to be named",
    )  # fmt: skip
    predict.add_argument(
        "--threshold", type=float, metavar="M", help=f"answer {NONE!r} where the zero-shot margin "
        "is below M: the backbone before the fit is unsure between its two most probable classes. "
        "No M tells all images of other things from those of the classes: try it on some of both",
    )  # fmt: skip
    predict.add_argument("--device", metavar="NAME", help="cuda or cpu (default: cuda if present)")
    chosen.add(predict)
    options.root(predict)
    options.plugin(predict)
    predict.set_defaults(does=show)


def show(arguments: argparse.Namespace) -> int:
    """The exit code: 1 if an image could not be read."""
    from tqdm import tqdm

    from harness.deploy import predict

    _check(arguments)
    left_out = predict.unreadable_here(arguments.images)
    if left_out:
        print(f"left out: {left_out:,} HEIC image{'s' * (left_out > 1)}. "
              "pip install 'vlm-peft-harness[heic]' reads them.", file=sys.stderr)  # fmt: skip
    paths = predict.images_of(arguments.images)
    names = _names(arguments.classes) if arguments.classes else None
    fitted = load(arguments)
    classes = fitted.classes(names).names
    temperature = _temperature(arguments, fitted) if arguments.calibrate is not None else 1.0
    if arguments.calibrate is not None and classes != fitted.class_names:
        print("These are other classes than it was fitted on: their probabilities stay "
              "uncalibrated.", file=sys.stderr)  # fmt: skip
        temperature = 1.0
    unread = 0
    rows = list[Mapping[str, object]]()
    with (
        _written(arguments.out) as write,
        tqdm(total=len(paths), unit="image", disable=None, delay=1) as bar,
    ):
        for batch in predict.batches(fitted, paths, names, arguments.threshold is not None):
            told = _rows(batch, batch.logits / temperature, classes, arguments)
            if write is None:
                rows += told
            else:
                write(told)
            for path, why in batch.unreadable.items():
                tqdm.write(harmless(f"{shown(path)} cannot be read as an image: {why}"),
                           file=sys.stderr)  # fmt: skip
            unread += len(batch.unreadable)
            bar.update(len(batch.paths) + len(batch.unreadable))
    if rows:
        print(_table(rows))
    if unread:
        print(f"{unread:,} of {len(paths):,} images could not be read.", file=sys.stderr)
    return 1 if unread or left_out else 0


def load(arguments: argparse.Namespace) -> "FittedModel":
    """The fitted model that `arguments.fit` means."""
    import harness

    given = _given(arguments)
    return harness.load(given, plugins=arguments.plugin, device=arguments.device)


def records(arguments: argparse.Namespace) -> "list[Record]":
    """The records of the runs that scored the fit, as far as they are beside it."""
    from harness.records.store import Store, read_all

    given = _given(arguments)
    if not isinstance(given, str):
        key, folder, alone = given.fit, given.folder, list["Record"]()
    elif given.endswith(".json"):
        path, record = Path(given).absolute(), chosen.of_file(Path(given))
        own = Store(Path()).path(record.run, record.key).parts
        key, alone = record.fit, [record]
        folder = path.parents[2] if path.parts[-3:] == own else None
    else:
        path = Path(given).absolute()
        key, alone = path.name.split(".")[0], []
        folder = path.parents[1] if path.parent.name == "fits" else None
    if folder is None:  # a file that was moved: what lies around it is none of ours
        return alone
    return [each for each in read_all([folder]) if each.fit is not None and each.fit == key]


def _given(arguments: argparse.Namespace) -> "Record | str":
    """The fit's file, or the record that is meant by a name."""
    fit: str = arguments.fit
    arguments.run = fit
    if not chosen.is_file(fit):
        return chosen.chosen(arguments)
    given = [f"--{name}" for name in chosen.CHOICES if getattr(arguments, name) is not None]
    if given:
        raise HarnessError(
            f"{shown(fit)} is a file, and so one fit: leave out {' and '.join(given)}."
        )
    return fit


def _check(arguments: argparse.Namespace) -> None:
    if arguments.top < 1:
        raise HarnessError(f"--top must be at least 1, not {arguments.top}.")
    if arguments.threshold is not None and not 0 < arguments.threshold < 1:
        raise HarnessError(f"--threshold is a difference of probabilities between 0 and 1, not "
                           f"{arguments.threshold}.")  # fmt: skip


def _names(file: Path) -> list[str]:
    """The class names of a file, one a line."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"--classes {shown(file)} cannot be read: {reason(error)}.") from error
    return [line.strip() for line in lines if line.strip()]


def _temperature(arguments: argparse.Namespace, fitted: "FittedModel") -> float:
    from harness.deploy.calibration import calibrated

    registry = options.plugins(arguments.plugin)
    found = calibrated(fitted, arguments.calibrate or None, arguments.data_root, registry)
    said = (
        f"Logits are divided by {found.temperature:.3g}. On {found.images} validation images the "
        f"expected calibration error goes from {100 * found.before:.1f} to "
        f"{100 * found.after:.1f} points (each half judged with the other's temperature)."
    )
    print("\n".join(wrapped([said])), file=sys.stderr)
    return found.temperature


def _rows(
    batch: "Batch", logits: "Tensor", classes: Sequence[str], arguments: argparse.Namespace
) -> list[Mapping[str, object]]:
    """A row for each image: its path, and the classes with the highest probabilities."""
    best = logits.sort(descending=True, stable=True).indices[:, : arguments.top]
    probabilities = logits.softmax(-1).gather(1, best)
    rows = list[Mapping[str, object]]()
    margins = [None] * len(batch.paths) if batch.margins is None else batch.margins.tolist()
    given = zip(batch.paths, margins, probabilities.tolist(), best.tolist(), strict=True)
    for path, margin, values, labels in given:
        row: dict[str, object] = {"image": path}
        if margin is not None:
            row["answer"] = NONE if margin < arguments.threshold else classes[labels[0]]
            row["margin"] = f"{margin:.4f}"
        for place, (value, label) in enumerate(zip(values, labels, strict=True), 1):
            number = f"_{place}" * (place > 1)
            row |= {f"class{number}": classes[label], f"probability{number}": f"{value:.4f}"}
        rows.append(row)
    return rows


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows, with the folder that all images are in above."""
    images = [Path(str(row["image"])).absolute() for row in rows]
    folder = Path(os.path.commonpath([image.parent for image in images]))
    named = [
        {**row, "image": image.relative_to(folder)} for row, image in zip(rows, images, strict=True)
    ]
    shown_rows = [{name: harmless(str(cell)) for name, cell in row.items()} for row in named]
    return f"{harmless(shown(folder))}\n\n{plain_table(shown_rows)}"


@contextlib.contextmanager
def _written(file: Path | None) -> Iterator[Any]:
    """A function that appends rows to a csv file, which has its name once it is complete."""
    if file is None:
        yield None
        return
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)

            def write(rows: Sequence[Mapping[str, object]]) -> None:
                if rows and not stream.tell():
                    writer.writerow(rows[0])
                writer.writerows([csv_cell(cell) for cell in row.values()] for row in rows)
                stream.flush()

            yield write
        part.replace(file)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"What was done is in {part}.") from None
    except OSError as error:
        raise HarnessError(f"{shown(file)} cannot be written: {reason(error)}.") from error
