"""Rows to text: percent and rounding happen here and nowhere else."""

import pandas as pd
from tabulate import tabulate

MISSING = "–"
FORMATS = ("markdown", "csv", "latex")


def laid_out(rows: list[dict[str, str]], form: str, caption: str) -> str:
    """A table, with its caption above but for csv."""
    if form == "csv":
        return pd.DataFrame(rows).to_csv(index=False).rstrip("\n")
    style = {"markdown": "pipe", "latex": "latex_booktabs"}[form]
    align = ["left"] + ["right"] * (len(rows[0]) - 1)
    if form == "markdown":
        rows = [{k: str(v).replace("|", "\\|") for k, v in row.items()} for row in rows]
    else:
        caption = "".join(f"% {line}\n" for line in caption.splitlines())
    table = tabulate(rows, headers="keys", tablefmt=style, colalign=align, disable_numparse=True)
    return f"{caption}\n\n{table}" if form == "markdown" else f"{caption}{table}"


def percent(mean: float | None, deviation: float | None = None) -> str:
    """A fraction in percent, with its deviation."""
    if mean is None or pd.isna(mean):
        return MISSING
    text = f"{100 * mean:.2f}"
    if deviation is not None and not pd.isna(deviation):
        text += f" ± {100 * deviation:.2f}"
    return text


def count(value: float | None) -> str:
    """An integer with separators."""
    return MISSING if value is None or pd.isna(value) else f"{int(value):,}"
