"""What `list` and `show` say of every name, kept so that nothing heavy is imported for it.

The kept pages are known by the bytes of all files that they are made of; if one changes, or
--plugin or an installed package adds names, they are made anew.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import harness
from harness import config, registry
from harness.cli import options
from harness.files import cache_folder
from harness.literature import published
from harness.literature.cards import card
from harness.records.tables import harmless

HERE = Path(harness.__file__).parent


@dataclass(frozen=True)
class Page:
    """A registered name: its docstring, settings (rows of a table) and further lines."""

    kind: str
    name: str
    summary: str
    source: str
    doc: str
    settings: Sequence[dict[str, str]]
    lines: Sequence[str]


def pages(plugins: Sequence[str]) -> list[Page]:
    """Of every method, task and dataset; a warning for a plugin that is broken."""
    installed = any(entry_points(group=f"harness.{kind}") for kind in registry.KINDS)
    if plugins or installed:
        return [*_made(options.plugins([*plugins]))]
    path = cache_folder() / "pages" / f"{_key()}.json"
    try:
        return [Page(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        found = [*_made(options.plugins([]))]
    _keep(path, [asdict(each) for each in found])
    return found


def engine() -> Page:
    """Of the engine's settings."""
    return _page("engine", "engine", config.Engine, {}, "what it does", "", "", [])


def _made(known: registry.Registry) -> Iterable[Page]:
    for kind, plugins in known.plugins.items():
        for plugin in plugins.values():
            yield _page(kind, plugin.name, plugin.cls, plugin.fixed, "where it comes from",
                        plugin.summary, plugin.source,
                        ["", *_card(plugin), f"defined in {plugin.origin}"])  # fmt: skip


def _card(plugin: registry.Plugin) -> list[str]:
    """What is known of a method that comes with the harness."""
    found = card(plugin.name) if plugin.cls.__module__.startswith("harness.methods.") else None
    return [f"{heading}: {text}" for heading, text in found.lines()] if found else []


def _page(
    kind: str,
    name: str,
    cls: type,
    fixed: Any,
    column: str,
    summary: str,
    source: str,
    lines: Sequence[str],
) -> Page:
    family = str(vars(cls).get("name", name)).replace("_", "-")
    rows = [
        {
            "setting": field,
            "default": repr(fixed.get(field, default)),
            column: "this variant" if field in fixed else origin,
        }
        for field, default, origin in config.describe(cls)
    ]
    profile = [
        f"on {options.DEFAULT_BACKBONE}: {each.name} = {each.value!r} ({each.origin})"
        for each in config.profile(options.DEFAULT_BACKBONE)
        if each.target.replace("_", "-") in (name.replace("_", "-"), family)
    ]
    return Page(kind, name, summary, source, inspect.getdoc(cls) or "", rows, [*profile, *lines])


def _key() -> str:
    """Of the bytes and places of all Python files and profiles, and of the Python that reads."""
    folders = [HERE, *(Path(each) for each in harness.__path__)]
    files = sorted({
        path
        for folder in folders
        for part in ("*.py", "methods/**/*.py", "tasks/**/*.py", "records/*.py", "cli/*.py",
                     "configs/*.gin", "towers/*.py", "images/*.py", "literature/*")
        for path in folder.glob(part)
        if path.is_file()
    } | {*published.folder().glob("*.csv")})  # fmt: skip
    digest = hashlib.sha256(sys.version.encode())
    for path in files:
        digest.update(f"{path}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _keep(path: Path, content: Any) -> None:
    """Only the newest pages stay; where they cannot be kept, they are made again next time."""
    from harness.records.store import atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            old.unlink(missing_ok=True)
        text = json.dumps(content)
        atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    except OSError as error:
        print(harmless(f"warning: {path} cannot be written: {error.strerror}"), file=sys.stderr)
