"""The README of an exported folder: what the model is, on what it was fitted, how good it is."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from harness.certainty import samples
from harness.records.labels import conditions, method_label
from harness.records.predictions import Missing
from harness.records.record import Record
from harness.records.tables import harmless, percent

USE = {
    "merged": """An open_clip checkpoint: the fit is merged into the backbone's weights, and costs
nothing more. Other classes can be asked, too. Zero-shot asks the dataset's own texts; those that
the fit asked of its classes are in `texts.json`, for `--methods cupl --class-texts DIR/texts.json`
where no other classes are asked.

    python -m harness run --methods zero_shot --backbone local-dir:DIR --tasks TASK
    model, _, transform = open_clip.create_model_and_transforms("local-dir:DIR")
    tokenizer = open_clip.get_tokenizer("local-dir:DIR")

If the folder has a `bpe_merges.txt.gz`, give its path to `get_tokenizer` as `bpe_path`.""",
    "classifier": """The image features of the plain backbone and this matrix; `image` is what
`preprocessing.json` describes, normalised.

    kept = safetensors.torch.load_file("classifier.safetensors")
    features = torch.nn.functional.normalize(model.encode_image(image), dim=-1)
    logits = torch.nn.functional.linear(features, kept["weight"], kept.get("bias"))""",
    "onnx": """`model.onnx` takes `pixels` [B, 3, S, S] and gives `logits` [B, C] of its
classes alone. `predict.py` needs the other files of the folder, onnxruntime, numpy and pillow.

    python predict.py IMAGE ...""",
    "pt2": """`model.pt2` takes pixels [B, 3, S, S] and gives logits [B, C] of its classes alone.

    logits = torch.export.load("model.pt2").module()(pixels)""",
    "peft": """A folder in the format of Hugging Face peft. Its modules are named by sites of the
backbone, such as `image.blocks.3.q`. `logits` are over the fitted classes, or over class names.

    model = harness.load("DIR")
    logits = model.logits([image], class_names)""",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What is said of a fit.

    run: what it depends on; records: of the runs that scored it, if they are there; licence: of the
    dataset, if it is known.
    """

    run: Mapping[str, Any]
    classes: int
    records: Sequence[Record]
    command: Sequence[str]
    licence: str = ""

    def text(self, form: str, compared: str) -> str:
        """Markdown; `compared`: with what the folder was compared, and the outcome."""
        run, prints = self.run, self.run["fingerprints"]
        fields = _said(run["hyperparameters"])
        settings = {name: each for name, each in run["settings"].items() if name != "split"}
        licence = f" ({self.licence})" if self.licence else ""
        lines = [
            f"# {_cell(method_label(run))} on {_cell(run['dataset'])}",
            "",
            USE[form],
            "",
            "| what | value |",
            "|:--|:--|",
            _row("method", f"{run['method']} (code {run['code']})"),
            _row("hyperparameters", fields),
            _row("engine", _said(settings)),
            _row("backbone", f"{placeless(run['backbone'])} (weights {prints['weights']})"),
            _row("data", f"{run['dataset']}, {run['shots']} images a class, seed {run['seed']} "
                 f"(training images {prints['train']})"),
            _row("classes", f"{self.classes}, in the order of `classes.json`"),
            _row("compared with the fit", compared),
            "",
            "Made by",
            "",
            f"    {harmless(shlex.join(map(placeless, self.command)))}",
            "",
            "## Scores",
            "",
            *self._scores(),
            "",
            "Probabilities are not calibrated. They are shares among the classes: an image of "
            "something else can have a high one, too.",
            "",
            "## Licence",
            "",
            f"The folder holds weights of {_cell(placeless(run['backbone']))}, or refers to them, "
            f"and what was learned from {_cell(run['dataset'])}{licence}. The licences of both "
            "hold for it; see where you got them.",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _scores(self) -> list[str]:
        done = [record for record in self.records if record.scores]
        if not done:
            return ["The record of the run was not beside the fit."]
        lines = ["| task | evaluation | top-1, percent | 95% | images | record |",
                 "|:--|:--|--:|--:|--:|:--|"]  # fmt: skip
        for record in done:
            for name, score in record.scores.items():
                value = percent(score["accuracy"])
                total = f"{score['total']:,}"
                split = {"split": record.run["settings"].get("split", "test")}
                where = f"{record.run['task']}{conditions(split)}"
                lines.append(_row(where, name, value, _interval(record, name), total, record.key))
        said = ["Intervals are for other images like these, with this fit; `-`: not known."]
        checks = dict.fromkeys(check for record in done for check in record.checks)
        said += [f"It looks wrong: {_cell(each)}." for each in checks]
        return [*lines, "", *said]


def placeless(text: str) -> str:
    """A name or an option without the folders on this machine above what it names."""
    found = re.fullmatch(r"((?:-*[\w./-]*[\w-][:=])*?)((?:[/~.\\]|[A-Za-z]:[/\\]).*)", text, re.S)
    return f"{found[1]}{PureWindowsPath(found[2]).name}" if found else text


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """As Markdown shows it whatever it holds."""
    return harmless(text).replace("|", "\\|").replace("<", "&lt;")


def _interval(record: Record, evaluation: str) -> str:
    """In percent, of one fit over other images."""
    try:
        found = samples.of_evaluation(record, evaluation).interval(0)
    except Missing:
        return "-"
    if found.low is None or found.high is None:
        return "-"
    return f"{100 * found.low:.1f}-{100 * found.high:.1f}"
