"""The README of an exported folder: what the model is, on what it was fitted, how good it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.certainty import samples
from harness.records.labels import method_label
from harness.records.predictions import Missing
from harness.records.record import Record
from harness.records.tables import harmless, percent

USE = {
    "merged": """An open_clip checkpoint: the fit is merged into the backbone's weights, and costs
nothing more. Other classes can be asked, too. `texts.json` holds the texts of the fitted ones.

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

    model = harness.load_peft("DIR")
    logits = model.logits([image], class_names)""",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What is said of a fit.

    run: what it depends on; records: of the runs that scored it, if they are there.
    """

    run: Mapping[str, Any]
    classes: int
    records: Sequence[Record]
    command: str

    def text(self, form: str, compared: str) -> str:
        """Markdown; `compared`: with what the folder was compared, and the outcome."""
        run = self.run
        fields = ", ".join(
            f"{name}={value}".replace("|", "\\|") for name, value in run["hyperparameters"].items()
        )
        prints = run["fingerprints"]
        lines = [
            f"# {method_label(run)} on {run['dataset']}",
            "",
            USE[form],
            "",
            "| what | value |",
            "|:--|:--|",
            f"| method | {run['method']} (code {run['code']}) |",
            f"| settings | {fields} |",
            f"| backbone | {run['backbone']} (weights {prints['weights']}) |",
            f"| data | {run['dataset']}, {run['shots']} images a class, seed {run['seed']} "
            f"(training images {prints['train']}) |",
            f"| classes | {self.classes}, in the order of `classes.json` |",
            f"| compared with the fit | {compared} |",
            f"| made by | `{self.command}` |",
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
            f"The folder holds weights of {run['backbone']}, or refers to them, and what was "
            f"learned from {run['dataset']}. The licences of both hold for it; see where you got "
            "them.",
        ]
        return harmless("\n".join(lines), lines=True) + "\n"

    def _scores(self) -> list[str]:
        done = [record for record in self.records if record.scores]
        if not done:
            return ["The record of the run was not beside the fit."]
        lines = ["| task | evaluation | top-1, percent | 95% | images | record |",
                 "|:--|:--|--:|--:|--:|:--|"]  # fmt: skip
        for record in done:
            for name, score in record.scores.items():
                value = percent(score["accuracy"])
                lines.append(
                    f"| {record.run['task']} | {name} | {value} | {_interval(record, name)} | "
                    f"{score['total']:,} | {record.key} |"
                )
        said = "Intervals are for other images like these, with this fit; `-`: not known."
        return [*lines, "", said]


def _interval(record: Record, evaluation: str) -> str:
    """In percent, of one fit over other images."""
    try:
        found = samples.of_evaluation(record, evaluation).interval(0)
    except Missing:
        return "-"
    if found.low is None or found.high is None:
        return "-"
    return f"{100 * found.low:.1f}-{100 * found.high:.1f}"
