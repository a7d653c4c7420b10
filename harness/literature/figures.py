"""A paper's figures: accuracy over a setting, and the importance and rank of tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from harness.literature.paper_tables import Filled
from harness.literature.picture import FAINT, GRID, INK, Picture

DARK, LIGHT = (45, 27, 80), (255, 232, 150)  # of the lowest and the highest value
LINES = {"base": ("Base", "#0969da"), "new": ("New", "#bc4c00"), "hm": ("HM", "#1a7f37")}
AXES = {"dra.rank": "r, the intermediate dimension", "dra.first_block": "h, the first block"}
SIDE, GAP, BAR = 210, 20, 120  # of an image's panel, between panels, of a bar's room
LETTERS = 16  # of a word below its bar


@dataclass(frozen=True)
class Tokens:
    """The N tokens of an image or a text in one module.

    importance: a_t; ranks: how many channels each token keeps in the order of a_t without noise;
    expected: the mean rank over draws of the training's noise. words: of a text; picture: of an
    image what the model sees of it, whose tokens are the class token and then patches by rows.
    """

    name: str
    importance: Sequence[float]
    ranks: Sequence[int]
    expected: Sequence[float]
    words: Sequence[str] = ()
    picture: Image.Image | None = None


def curves(tables: Sequence[Filled]) -> Picture:
    """Base, new and HM over the values of each sweep, side by side."""
    width, height, left, top, bottom = 430, 320, 60, 50, 260
    picture = Picture(width * len(tables), height, tables[0].exhibit.title)
    for number, table in enumerate(tables):
        start = number * width + left
        lines = {column.evaluation: [cells[column].value for _, cells in table.rows]
                 for column in table.columns if column.evaluation in LINES}  # fmt: skip
        values = [100 * v for each in lines.values() for v in each if v is not None]
        if not values:
            picture.text(start, top, "no finished runs", fill=FAINT)
            continue
        low, high = _limits(values)
        across = (width - left - 30) / max(1, len(table.rows) - 1)
        for tick in range(5):
            value = low + tick * (high - low) / 4
            y = bottom - (bottom - top) * tick / 4
            picture.line([(start, y), (start + width - left - 30, y)])
            picture.text(start - 8, y + 4, f"{value:g}", 11, FAINT, "end")
        for place, (line, _) in enumerate(table.rows):
            picture.text(start + place * across, bottom + 18, line.label, 11, FAINT, "middle")
        for place, (name, each) in enumerate(lines.items()):
            words, colour = LINES[name]
            picture.text(start + 60 * place, 28, words, 13, colour)
            points = [(start + i * across, bottom - (bottom - top) * (100 * v - low) / (high - low))
                      for i, v in enumerate(each) if v is not None]  # fmt: skip
            if len(points) > 1:
                picture.line(points, colour, 2)
            for x, y in points:
                picture.rectangle(x - 3, y - 3, 6, 6, colour)
        axis = AXES.get(table.part.sweep, table.part.sweep)
        picture.text(start, height - 16, f"({'abcd'[number]}) {axis}", 12)
    return picture


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Whole numbers below the least and above the most."""
    return math.floor(min(values) - 0.25), math.ceil(max(values) + 0.25)


def tokens(images: Sequence[Tokens], texts: Sequence[Tokens], block: str) -> Picture:
    """A row for each image (the image, importance, rank, mean rank), then one for each text."""
    longest = max((len(each.words) for each in texts), default=0)
    letters = max((len(word[:LETTERS]) for each in texts for word in each.words), default=0)
    width = max(4 * (SIDE + GAP) + GAP if images else 0, 11 * longest + 7 * GAP, 640)
    row, below = SIDE + 70, BAR + 70 + 6 * letters
    title = f"Token importance and rank, {block}"
    picture = Picture(width, 60 + row * len(images) + below * len(texts), title)
    picture.text(GAP, 28, title, 15)
    ranks = sorted({rank for each in (*images, *texts) for rank in each.ranks}, reverse=True)
    for place, rank in enumerate(ranks):
        x = GAP + 70 * place
        picture.rectangle(x, 38, 12, 12, shade(rank, ranks))
        picture.text(x + 16, 48, f"rank {rank}", 11, FAINT)
    for place, each in enumerate(images):
        _image_row(picture, each, 60 + place * row, ranks)
    for place, each in enumerate(texts):
        _text_row(picture, each, 60 + len(images) * row + place * below, ranks)
    return picture


def _image_row(picture: Picture, each: Tokens, top: float, ranks: Sequence[int]) -> None:
    assert each.picture is not None
    grid = math.isqrt(len(each.ranks) - 1)
    scores = each.importance[1:]
    panels = {
        f"importance, {min(scores):.2g} to {max(scores):.2g}": (scores, scores),
        "rank in the order of importance": (each.ranks[1:], ranks),
        "mean rank under the noise": (each.expected[1:], ranks),
    }
    picture.image(GAP, top + 20, SIDE, each.picture)
    picture.text(GAP, top + 12, each.name[:34])
    for number, (name, (values, span)) in enumerate(panels.items(), 1):
        left, cell = GAP + number * (SIDE + GAP), SIDE / grid
        picture.text(left, top + 12, name, 11, FAINT)
        for i, value in enumerate(values):
            x, y = left + i % grid * cell, top + 20 + i // grid * cell
            picture.rectangle(x, y, cell, cell, shade(value, span))
    first = f"class token: importance {each.importance[0]:.2g}, rank {each.ranks[0]}, mean rank "
    picture.text(GAP, top + SIDE + 38, f"{first}{each.expected[0]:.1f}", 11, FAINT)


def _text_row(picture: Picture, each: Tokens, top: float, ranks: Sequence[int]) -> None:
    """Bars of importance in the colour of the rank; the start token's is cut off, as its score is
    far above the others."""
    picture.text(GAP, top + 14, each.name[:100])
    most = max(each.importance[1:], default=1.0) * 1.1 or 1.0
    floor, left, bar = top + 30 + BAR, 3 * GAP, 10
    for value, y in ((0, floor), (most, top + 30)):
        picture.line([(left, y), (left + 11 * len(each.ranks), y)], GRID)
        picture.text(left - 4, y + 4, f"{value:.2g}", 10, FAINT, "end")
    for i, score in enumerate(each.importance):
        x, height = left + 11 * i, BAR * min(1.0, score / most)
        picture.rectangle(x, floor - height, bar, height, shade(each.ranks[i], ranks))
        picture.rectangle(x, floor + 4, bar, 10, shade(each.expected[i], ranks))
        if score > most:
            picture.text(x, top + 27, f"{score:.2g}", 10, INK)
        if each.words[i]:
            picture.text(x + 8, floor + 20, each.words[i][:LETTERS], 10, upright=True)
    picture.text(left + 11 * len(each.ranks) + 4, floor + 13, "mean rank", 10, FAINT)


def shade(value: float, span: Sequence[float]) -> str:
    """A colour, lighter for a higher value among those of `span`."""
    low, high = min(span), max(span)
    share = (value - low) / (high - low) if high > low else 1.0
    parts = (round(a + (b - a) * share) for a, b in zip(DARK, LIGHT, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)
