"""Source code as hashes for keys: syntax trees, in which comments and docstrings are no code."""

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from harness.errors import HarnessError


def code_hash(cls: type, base: type, package: str) -> str:
    """Sixteen hex digits of a hash of the modules that define a class: its own, those of the
    classes between it and `base`, and the modules of `package`, or of its plugin, that these
    import. Other modules of the harness are left out."""
    found: dict[str, str] = {}
    for each in cls.mro():
        module = sys.modules[each.__module__]
        ours = module.__name__.startswith("harness.")
        if issubclass(each, base) and (not ours or module.__name__.startswith(f"{package}.")):
            if getattr(module, "__file__", None):
                _add(module, package, found)
            elif each is not base:  # in a notebook
                found[each.__qualname__] = repr(_plain(ast.parse(_source(each))))
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def _source(cls: type) -> str:
    try:
        return textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError) as error:
        raise HarnessError(
            f"the source of {cls.__name__} cannot be read, so that a change of it would go "
            "unnoticed. Define it in a file."
        ) from error


def _add(module: ModuleType, package: str, found: dict[str, str]) -> None:
    file = getattr(module, "__file__", None)
    if module.__name__ in found or file is None or not file.endswith(".py"):
        return
    tree = ast.parse(Path(file).read_bytes())
    found[module.__name__] = repr(_plain(tree))
    for name in _imported(tree, module):
        other = sys.modules.get(name)
        if other is not None and _belongs(other, module, package):
            _add(other, package, found)


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


def _belongs(other: ModuleType, module: ModuleType, package: str) -> bool:
    """Whether a module is part of what defines a class: of the same package (of the harness: of
    `package`), or a file beside a plugin's file."""
    name, mine = other.__name__, module.__name__
    if name.startswith("harness."):
        return name.startswith(f"{package}.")
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
