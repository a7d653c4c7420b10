"""Source code as hashes for keys: syntax trees, in which comments and docstrings are no code."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

INSTALLED = {"site-packages", "dist-packages"}
_read = dict[str, tuple[object, str]]()  # of imported modules: as what, and with which code
STANDARD = Path(ast.__file__).parent


def code_hash(cls: type, base: type, package: str) -> str:
    """Sixteen hex digits of a hash of the modules that define a class: its own, those of the
    classes between it and `base`, and what these import, as far as it is `package`, part of the
    same package, or lies outside the installed ones. Other modules of the harness are left out.

    Raises:
        HarnessError: the class is not defined in a file, so that a change of it goes unnoticed; or
            a file was changed since it was hashed first in this process, which runs the code as it
            was imported.
    """
    found: dict[str, str] = {}
    for each in cls.mro():
        name = each.__module__
        ours = name.startswith("harness.") and not name.startswith(f"{package}.")
        if issubclass(each, base) and not ours:
            file = getattr(sys.modules.get(name), "__file__", None)
            if file is None or "<locals>" in each.__qualname__:
                raise HarnessError(
                    f"{each.__qualname__} must be defined in a file, outside of functions: else a "
                    "change of its code, or of what it refers to, would go unnoticed."
                )
            _add(name, Path(file), package, found)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def version(package: str) -> str:
    """Of an installed package; of one that is not, that it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _add(name: str, file: Path, package: str, found: dict[str, str]) -> None:
    if name in found or file.suffix != ".py":
        return
    tree = ast.parse(file.read_bytes())
    found[name] = repr(_plain(tree))
    _check_unchanged(name, file, found[name])
    for imported in _imported(tree, name, file):
        other = _file_of(imported)
        if other is not None and _belongs(imported, other, name, package):
            _add(imported, other, package, found)


def _check_unchanged(name: str, file: Path, code: str) -> None:
    spec = getattr(sys.modules.get(name), "__spec__", None)  # another one after a reload
    if spec is None:
        return
    imported, before = _read.setdefault(name, (spec, code))
    if imported is not spec:
        _read[name] = spec, code
    elif before != code:
        raise HarnessError(
            f"{file} has been changed since this process imported it, which still runs the code as "
            "it was. Start Python anew."
        )


def _imported(tree: ast.AST, name: str, file: Path) -> Iterator[str]:
    """Names of all modules that a syntax tree may import."""
    package = name.split(".") if file.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _file_of(name: str) -> Path | None:
    """The file of a module, whether or not it has been imported yet."""
    module = sys.modules.get(name)
    parent, _, last = name.rpartition(".")
    if module is None and parent:
        beside = (each for folder in _folders(parent)
                  for each in (folder / f"{last}.py", folder / last / "__init__.py"))  # fmt: skip
        return next((path for path in beside if path.is_file()), None)
    if module is None:
        spec = _spec(name)
        file = spec.origin if spec else None
    else:
        file = getattr(module, "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


def _folders(name: str) -> list[Path]:
    """Where the modules of a package lie, which may have no file of its own."""
    module, (parent, _, last) = sys.modules.get(name), name.rpartition(".")
    if module is not None:
        return [Path(each) for each in getattr(module, "__path__", ())]
    if parent:
        return [folder / last for folder in _folders(parent) if (folder / last).is_dir()]
    spec = _spec(name)
    return [Path(each) for each in (spec and spec.submodule_search_locations) or ()]


def _spec(name: str) -> Any:
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(name)
    return None


def _belongs(name: str, file: Path, mine: str, package: str) -> bool:
    """Whether a module is part of what defines a class: of the harness `package` alone, of others
    the same package, and whatever is not installed."""
    if name == "harness" or name.startswith("harness."):
        return name.startswith(f"{package}.")
    if name.partition(".")[0] == mine.partition(".")[0]:
        return True
    return not INSTALLED & {*file.parts} and not file.is_relative_to(STANDARD)


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
