"""Which code a run depends on, as hashes for its key."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from harness.method import Method

# The version of the engine's arithmetic: part of every key. Raise it when a change of the engine
# moves a number; the golden values of tests/golden.json, which state it, show whether one does.
ENGINE = 1


def code_hash(cls: type) -> str:
    """Sixteen hex digits of a hash of the modules that define a method: its own, those of the
    classes that it extends, and the methods' modules, or its plugin's, that these import.

    Modules count as syntax trees without docstrings: comments and layout change nothing. The
    harness itself is covered by `ENGINE`.
    """
    starts = [c for c in cls.mro() if issubclass(c, Method) and c is not Method]
    found: dict[str, str] = {}
    for start in starts:
        _add(sys.modules[start.__module__], found)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def _add(module: ModuleType, found: dict[str, str]) -> None:
    file = getattr(module, "__file__", None)
    if module.__name__ in found or file is None or not file.endswith(".py"):
        return
    tree = ast.parse(Path(file).read_bytes())
    found[module.__name__] = repr(_plain(tree))
    for name in _imported(tree, module):
        other = sys.modules.get(name)
        if other is not None and _belongs(other, module):
            _add(other, found)


def _imported(tree: ast.AST, module: ModuleType) -> Iterator[str]:
    """Names of all modules that a syntax tree may import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = (module.__package__ or "").split(".")
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _belongs(other: ModuleType, module: ModuleType) -> bool:
    """Whether a module is part of what defines a method: of the same package (of the harness: of
    `harness.methods`), or a file beside a plugin's file."""
    name, mine = other.__name__, module.__name__
    if name.startswith("harness."):
        return name.startswith("harness.methods.")
    if "." in mine or not mine.startswith("harness_plugin_"):
        return name.partition(".")[0] == mine.partition(".")[0]
    file = getattr(other, "__file__", None)
    return file is not None and Path(file).is_relative_to(Path(module.__file__ or "").parent)


def _plain(node: object) -> object:
    """A syntax tree as nested tuples: the same on every version of Python."""
    if isinstance(node, list):
        return tuple(map(_plain, node))
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    body = fields.get("body")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and body and ast.get_docstring(node) is not None:
        fields["body"] = body[1:]
    left_out = ("kind", "type_comment", "type_ignores", "ctx")
    kept = tuple((name, _plain(value)) for name, value in fields.items() if name not in left_out)
    return type(node).__name__, kept
