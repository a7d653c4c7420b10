"""The page: the content filled into the template, every text of it escaped."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from harness.leaderboards.costs import seconds
from harness.records.tables import MISSING, count, harmless, percent
from harness.report.datasets import MOST_PICTURES
from harness.report.geometry import AREA, HEIGHT, WIDTH, short, spans

HERE = Path(__file__).parent
GENERATOR = "vlm-peft-harness report"
PARTS = (
    ("board", "Leaderboard"), ("places", "Places"), ("costs", "Accuracy against cost"),
    ("heat", "Methods and datasets"), ("pairs", "Which are told apart"),
    ("losses", "Training losses"), ("mistakes", "Worst classes and mistakes"),
)  # fmt: skip
LETTER = 7.4  # pixels of a letter of a name beside the matrix
LONG = 24  # letters of a name that is broken into lines
ALIKE = 12  # names in a sentence


def page(found: Mapping[str, Any], credits: Sequence[str] = ()) -> str:
    """The report as HTML.

    Args:
        found: see content.report.
        credits: sentences on whose pictures are shown.
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    chapters = [_prepared(each) for each in found["chapters"]]
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            **{**found, "chapters": chapters}, credits=credits, parts=PARTS, generator=GENERATOR,
            most_pictures=MOST_PICTURES,
            width=WIDTH, height=HEIGHT, area=AREA, script_hash=f"sha256-{digest}",
            style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup(script), data=embedded([_data(each) for each in chapters]),
        )
    )  # fmt: skip


def embedded(value: Any) -> Markup:
    """A value as JSON that cannot end the element that it stands in, nor command anything."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _plain(value: Any) -> Any:
    """Texts as they are shown, also as names of values."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, Mapping):
        return {harmless(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
        finalize=lambda v: harmless(v) if isinstance(v, str) and not isinstance(v, Markup) else v,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "count": count, "interval": _interval, "edges": _edges,
        "digit": lambda v: MISSING if v is None else f"{100 * v:.1f}",
        "short": short,
        "seconds": lambda v: MISSING if v is None else seconds(v),
        "long": lambda label: Markup(' class="long"') if len(label) > LONG else "",
        "raw": lambda v: "" if v is None else f"{v:.6g}",
        "level": lambda n: "l0" if not n else f"l{'u' if n > 0 else 'd'}{abs(n)}",
        "breaks": lambda name: escape(harmless(name)).replace("_", Markup("_<wbr>")),
        "capfirst": lambda text: text[:1].upper() + text[1:],
    }  # fmt: skip
    return environment


def _interval(cell: Mapping[str, Any]) -> str:
    if cell["low"] is None:
        return ""
    return f"{100 * cell['low']:.1f}–{100 * cell['high']:.1f}"


def _edges(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The lowest and highest number of a column, with its intervals."""
    values = [cell[name] for cell in cells for name in ("value", "low", "high")]
    there = [value for value in values if value is not None]
    return min(there, default=0.0), max(there, default=0.0)


def _prepared(chapter: Mapping[str, Any]) -> dict[str, Any]:
    """With what the template only writes down."""
    chapter = {**chapter, "family_names": list(dict.fromkeys(chapter["families"].values()))}
    rows = chapter["places"].get("rows", ())
    chapter["place_of"] = {row["label"]: (row["first"], row["last"]) for row in rows}
    for name in ("places", "heat", "losses", "pairs"):
        chapter[name] = {"why": None, **chapter[name]}
    chapter["costs"] = [{"why": None, **chart} for chart in chapter["costs"]]
    chapter["sections"] = [{"why": None, **each} for each in chapter["sections"]]
    if not chapter["pairs"]["why"]:
        chapter["pairs"] |= _matrix(chapter["pairs"])
    return chapter


def _matrix(pairs: Mapping[str, Any]) -> dict[str, Any]:
    labels, marks = pairs["labels"], pairs["marks"]
    cell = 18 if len(labels) <= 40 else 13
    told = []
    for place, label in enumerate(labels):
        alike = [other for other, mark in zip(labels, marks[place], strict=True)
                 if mark == 0]  # fmt: skip
        more = f" and {len(alike) - ALIKE} more" if len(alike) > ALIKE else ""
        told.append((label, marks[place].count(1), f"{', '.join(alike[:ALIKE])}{more}" or "none"))
    return {
        "cell": cell, "told_list": told,
        "left": round(LETTER * max(len(f"{short(label)} {len(labels)}") for label in labels)) + 12,
        "same": spans(marks, 0, cell), "better": spans(marks, 1, cell),
        "worse": spans(marks, -1, cell),
    }  # fmt: skip


def _data(chapter: Mapping[str, Any]) -> dict[str, Any]:
    """What the script needs of a table."""
    scores = {
        name: [[_percent(cell["value"], 2), _percent(cell["low"], 1), _percent(cell["high"], 1),
                cell["finished"], *(_percent(each, 2) for each in cell["others"])]
               for cell in cells]
        for name, cells in chapter["scores"].items()
    }  # fmt: skip
    pairs, losses = chapter["pairs"], chapter["losses"]
    return {
        "id": chapter["id"], "labels": chapter["labels"], "score": chapter["score_name"],
        "families": [chapter["families"][label] for label in chapter["labels"]],
        "scores": scores, "places": chapter["place_of"],
        "pairs": None if pairs["why"] else {
            "labels": pairs["labels"], "values": [round(v, 8) for v in pairs["values"]],
            "p": [[round(p, 4) for p in row] for row in pairs["p"]],
            "told": ["".join("1" if mark else "0" for mark in row[:place])
                     for place, row in enumerate(pairs["marks"])],
        },
        "losses": {} if losses["why"] else {name: losses[name] for name in ("at", "by_dataset")},
    }  # fmt: skip


def _percent(value: float | None, digits: int) -> float | None:
    """As it is shown: Python and JavaScript round halves differently."""
    return None if value is None else float(f"{100 * value:.{digits}f}")
