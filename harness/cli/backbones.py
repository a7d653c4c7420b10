"""Backbones as `list` and `show` print them: towers, pixels, and the methods that they carry."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from harness.cli import options
from harness.dataset import Classes
from harness.errors import HarnessError
from harness.fitting.needs import described, kinds, lacking
from harness.method import Method
from harness.records.tables import harmless, plain_table, width
from harness.towers import backbone
from harness.towers.catalogue import Unloaded, closest, listed, of_transformers, other_gelu

CLASSES = Classes("any", ("a", "b"), "a photo of a {}.")
LOADED = ("local-dir", "hf-hub")


def every(plugin: Sequence[str], as_json: bool) -> str:
    """All pairs of open_clip's list, those that are refused below the others."""
    methods, seen = _methods(plugin), dict[object, int]()
    rows, refused = list[dict[str, Any]](), list[dict[str, Any]]()
    pairs = tqdm(listed(), desc="building towers", unit="pair", leave=False, disable=None, delay=2)
    for name, it in pairs:
        if not isinstance(it, Unloaded):
            refused.append({"backbone": name, "refused": it})
            continue
        # what is refused depends on these alone
        able = (kinds(it.sites()), it.image.class_token, it.image.first_token, it.text.pooling,
                it.text.context, len(it.image.blocks), len(it.text.blocks))  # fmt: skip
        if able not in seen:
            seen[able] = sum(not _lacks(it, method) for method in methods.values())
        said = it.about() if as_json else it.brief()
        rows.append({"backbone": name, **said, "methods": seen[able]})
    if as_json:
        return json.dumps(rows + refused, indent=2)
    return "\n\n".join([
        plain_table(rows),
        *_refusals(refused),
        textwrap.fill(
            f"{len(rows)} of {len(rows + refused)} pairs are accepted, and {len(refused)} are "
            f"refused. image, text: blocks x width, and which sites are open or what a token sees. "
            f"methods: how many of {len(methods)} a backbone carries; `show BACKBONE` says which.",
            width(),
        ),
    ])  # fmt: skip


def _refusals(refused: Sequence[Mapping[str, str]]) -> list[str]:
    """Tables: the pairs that would compute another GELU than their weights were trained with, and
    those that are refused for other reasons."""
    gelu, other = list[dict[str, str]](), list[Mapping[str, str]]()
    for row in refused:
        twin = other_gelu(*row["backbone"].split(":"))
        if twin is None:
            other.append(row)
        else:
            name = {"refused: weights of the other GELU": row["backbone"]}
            gelu.append(name | {"use": twin or "no model of open_clip has theirs"})
    return [plain_table(rows) for rows in (gelu, other) if rows]


def shown(name: str, plugin: Sequence[str], as_json: bool) -> str:
    """One backbone, or all pairs of a model: towers, and which methods they carry.

    Raises:
        HarnessError: an unknown name, or a folder that cannot be loaded.
    """
    schema, _, rest = name.partition(":")
    if schema in LOADED or rest.endswith(".safetensors"):
        clip = backbone.load(name, weights=False)
        found: dict[str, Unloaded | str] = {name: Unloaded.of(clip)}
    else:
        found = dict(listed(name.removesuffix(":random").rstrip(":")))
    if not found:
        close = closest(name)
        hint = f" Did you mean {close!r}?" if close else ""
        raise HarnessError(
            f"{name!r} is no pair of open_clip's list.{hint} `list backbones --all` shows all of "
            "them; a folder is named local-dir:FOLDER, a repository hf-hub:OWNER/NAME."
        )
    methods = _methods(plugin)
    cards = [_card(each, it, methods) for each, it in found.items()]
    if as_json:
        return json.dumps(cards, indent=2)
    return "\n\n".join(_text(card) for card in cards)


def _methods(plugin: Sequence[str]) -> dict[str, Method]:
    """Every method as it is by default."""
    entries = options.plugins(list(plugin)).plugins["methods"]
    return {name: entry.cls(**entry.fixed) for name, entry in sorted(entries.items())
            if not entry.by_name_only}  # fmt: skip


def _lacks(it: Unloaded, method: Method) -> str:
    """Why a backbone does not carry a method, in a clause; empty if it does."""
    try:
        missing = lacking(it, method, CLASSES)
    except HarnessError as error:
        return str(error).rstrip(".")
    return described(it, missing) if missing else ""


def _card(name: str, it: Unloaded | str, methods: dict[str, Method]) -> dict[str, Any]:
    if not isinstance(it, Unloaded):
        return {"backbone": name, "refused": it}
    lacks = {method: _lacks(it, value) for method, value in methods.items()}
    reasons = dict[str, list[str]]()
    for method, reason in lacks.items():
        reasons.setdefault(reason, []).append(method)
    carried = reasons.pop("", [])
    foreign = of_transformers(name.partition(":")[0])
    needs = {"needs": f"the extra [hf], for its {' and '.join(foreign)}"} if foreign else {}
    return {"backbone": name, **it.about(), **needs, "methods": carried, "not carried": reasons}


def _text(card: dict[str, Any]) -> str:
    name = harmless(card["backbone"])
    if "refused" in card:
        return textwrap.fill(f"{name} is refused: {harmless(card['refused'])}", width())
    plain = {key: value for key, value in card.items() if isinstance(value, str)}
    rows = [{"": key, "what": value} for key, value in plain.items() if key != "backbone"]
    carried, reasons = card["methods"], card["not carried"]
    total = len(carried) + sum(map(len, reasons.values()))
    lines = [f"methods that run ({len(carried)} of {total}): " + (", ".join(carried) or "none")]
    lines += [f"not carried, because {harmless(reason)} ({len(names)}): {', '.join(names)}"
              for reason, names in reasons.items()]  # fmt: skip
    filled = "\n".join(textwrap.fill(line, width(), break_on_hyphens=False) for line in lines)
    return f"{name}\n\n{plain_table(rows)}\n\n{filled}"
