"""Zero-shot accuracy of the embedded backbone on the embedded emoji datasets.

    python -m harness.backbones.evaluate_emoji_mini [--styles noto noto-v1 twemoji] [--views 10]

For each style and dataset it prints the top-1 accuracy, in percent, over the base half and over
the new half of the classes, each as a closed set. The shifted styles draw the classes of the mixed
source only.
"""

import argparse
import json
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor
from torch.nn import functional

from harness.tasks.datasets.emoji.views import view

FOLDER = Path(__file__).resolve().parent / "emoji-mini"
DATASETS = Path(__file__).resolve().parents[2] / "tasks" / "datasets" / "emoji"
PROMPT = "a photo of a {}."


def sprites(style: str, names: list[str], table: dict) -> list[Image.Image]:
    """Cells of some classes, cut out of the sheet of a style."""
    sheet = Image.open(DATASETS / "sheets" / f"{style}.webp").convert("RGBA")
    side, columns = table["cell"], table["columns"]
    corners = [divmod(table["cells"][style][name], columns) for name in names]
    return [
        sheet.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
        for row, column in corners
    ]


def top1(images: Tensor, labels: Tensor, texts: Tensor) -> float:
    """Share of images, in percent, whose nearest text is that of their class."""
    return 100 * float(((images @ texts.T).argmax(1) == labels).float().mean())


@torch.no_grad()
def evaluate(folder: Path, styles: list[str], views: int) -> dict[str, dict[str, tuple]]:
    """Accuracy over the base and the new half of each dataset in each style."""
    table = json.loads((DATASETS / "classes.json").read_text(encoding="utf-8"))
    model, preprocess = open_clip.create_model_from_pretrained(
        f"local-dir:{folder}", force_custom_text=True
    )
    model.eval()
    tokenizer = SimpleTokenizer(str(folder / "bpe_merges.txt.gz"), context_length=32)
    accuracy: dict[str, dict[str, tuple]] = {}
    for style in styles:
        accuracy[style] = {}
        for group, names in (table["groups"] | {"source": table["source"]}).items():
            if not set(names) <= set(table["cells"][style]):
                continue
            prompts = tokenizer([PROMPT.format(name) for name in names])
            texts = functional.normalize(model.encode_text(prompts), dim=-1)
            pictures = [
                view(sprite, f"{style}/{name}/{index}")
                for name, sprite in zip(names, sprites(style, names, table), strict=True)
                for index in range(views)
            ]
            batch = torch.stack([preprocess(picture) for picture in pictures])
            images = functional.normalize(model.encode_image(batch), dim=-1)
            labels = torch.arange(len(names)).repeat_interleave(views)
            middle = -(-len(names) // 2)
            base = labels < middle
            accuracy[style][group] = (
                top1(images[base], labels[base], texts[:middle]),
                top1(images[~base], labels[~base] - middle, texts[middle:]),
            )
    return accuracy


def as_table(accuracy: dict[str, dict[str, tuple]]) -> str:
    """The accuracies as a table in Markdown, base / new in each cell."""
    styles = list(accuracy)
    groups = list(dict.fromkeys(group for cells in accuracy.values() for group in cells))
    lines = ["| dataset | " + " | ".join(styles) + " |", "|---" * (len(styles) + 1) + "|"]
    for group in groups:
        pairs = [accuracy[style].get(group) for style in styles]
        cells = [f"{pair[0]:.1f} / {pair[1]:.1f}" if pair else "" for pair in pairs]
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    means = []
    for scores in accuracy.values():
        known = [pair for group, pair in scores.items() if group != "source"]
        means.append([sum(half) / len(known) for half in zip(*known, strict=True)])
    cells = [f"{mean[0]:.1f} / {mean[1]:.1f}" if mean else "" for mean in means]
    lines.append("| mean of the eight | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--styles", nargs="+", default=["noto", "noto-v1", "twemoji"])
    parser.add_argument("--views", type=int, default=10, help="views of each class and style")
    arguments = parser.parse_args()
    print(as_table(evaluate(arguments.folder, arguments.styles, arguments.views)))


if __name__ == "__main__":
    main()
