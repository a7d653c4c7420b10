"""`export`: a fit as a folder that is used without this harness."""

import argparse
import sys
from pathlib import Path
from typing import Any

from harness.cli import chosen, options
from harness.cli.verbs import predict
from harness.files import shown

FORMS = ("merged", "classifier", "onnx", "pt2", "peft")


def add(verbs: Any) -> None:
    """Adds the command to the parser."""
    export = verbs.add_parser(
        "export",
        help="write a fitted model as a folder that needs nothing of this harness",
        description="Write a fitted model as a folder with its class names, preprocessing and a "
        "model card. 64 images are compared with the fit; if a label or a logit differs, nothing "
        "is written.",
    )
    export.add_argument(
        "fit", metavar="FIT", help="a method as the leaderboard names it, the key of a record, a "
        "record's file, or a file of weights in RESULTS/fits",
    )  # fmt: skip
    export.add_argument(
        "--form", choices=FORMS, required=True, help="merged: an open_clip checkpoint, of methods "
        "that change weights (LoRA's family, full); classifier: a matrix for the plain backbone's "
        "features, of methods that leave the image tower alone; onnx: with a predict.py (needs the "
        "extra [export]); pt2: for torch.export.load; peft: in the format of Hugging Face peft, of "
        "`peft` and `peft-*`",
    )  # fmt: skip
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    export.add_argument(
        "--data", metavar="DATASET", help="the dataset that it was fitted on, whose images are "
        "compared; folder: and csv: datasets have to be named (else random pixels are compared)",
    )  # fmt: skip
    chosen.add(export)
    options.root(export)
    options.plugin(export)
    export.set_defaults(does=write, device="cpu")


def write(arguments: argparse.Namespace) -> int:
    """The exit code."""
    from harness.deploy.card import Card
    from harness.deploy.export import check_new, compared, export

    check_new(arguments.out)
    fitted = predict.load(arguments)
    registry = options.plugins(arguments.plugin)
    images = compared(fitted, arguments.data, arguments.data_root, registry)
    plugin = registry.plugins["datasets"].get(fitted.run["dataset"])
    known = plugin.cls.published if plugin else None  # type: ignore[attr-defined]
    card = Card(
        fitted.run, len(fitted.class_names), predict.records(arguments),
        ["python", "-m", "harness", *sys.argv[1:]], known.licence if known else "",
    )  # fmt: skip
    difference = export(fitted, arguments.form, arguments.out, card, images)
    print(f"{shown(arguments.out)}: compared with the fit on {images.source}; logits differ by at "
          f"most {difference:.1e}, and no label differs.")  # fmt: skip
    return 0
