"""Names to plugins: methods, tasks and datasets, found in their folders, entry points or --plugin.

A plugin is a module that defines one public subclass of `Method`, `Task` or `Dataset`. Its name is
the file's (or the entry point's); `variants` on the class adds names that fix some of its fields.
"""

import fnmatch
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import HarnessError, unknown

KINDS = {"methods": "Method", "tasks": "Task", "datasets": "Dataset"}
FOLDERS = {
    "methods": "harness.methods",
    "tasks": "harness.tasks",
    "datasets": "harness.tasks.datasets",
}
FOREIGN: list[str] = []  # whose code has run in this process and is not ours


class Collision(HarnessError):
    """Two plugins of one name: an error that stops the command, unlike a plugin that is broken."""


@dataclass(frozen=True)
class Plugin:
    """A registered name: the class behind it and the fields that the name fixes."""

    name: str
    cls: type
    fixed: Mapping[str, Any]
    origin: str
    instance: Any = None  # an object that was given instead of a name: it is taken as it is

    @property
    def family(self) -> str:
        """The name of the class itself, of which a variant is a special case."""
        return str(vars(self.cls)["name"])

    @property
    def lacks_path(self) -> bool:
        """Whether it stands for data of the user's, whose path follows its name and a colon."""
        return "path" in {f.name for f in fields(self.cls)} and "path" not in self.fixed

    @property
    def requires(self) -> str:
        """A package that it needs and that is not installed with this one."""
        return str(getattr(self.cls, "requires", ""))

    def matches(self, pattern: str) -> bool:
        """Whether a name or wildcard selects it."""
        if self.lacks_path or (self.by_name_only and not pattern.startswith(self.family)):
            return pattern == self.name
        return fnmatch.fnmatch(self.name, pattern)

    @property
    def by_name_only(self) -> bool:
        """Whether a wildcard selects it only if it begins with the family's name."""
        return bool(getattr(self.cls, "by_name_only", False))

    def needed(self) -> None:
        """Raises HarnessError if a package that it needs is not installed."""
        if self.requires and importlib.util.find_spec(self.requires) is None:
            raise HarnessError(
                f"{self.name} needs the package {self.requires}, which is not installed: "
                f"pip install 'vlm-peft-harness[{self.requires}]'."
            )

    @property
    def summary(self) -> str:
        """The first line of the docstring; of a variant, what it fixes."""
        line = (inspect.getdoc(self.cls) or "").partition("\n")[0]
        fixed = ", ".join(f"{k}={v!r}" for k, v in self.fixed.items())
        return f"{self.family} with {fixed}" if fixed and self.name != self.family else line

    @property
    def source(self) -> str:
        """What follows `Source:` in the docstring, as one line; of a variant, whose it shares."""
        if self.name != self.family:
            return f"as {self.family}"
        found = re.search(r"Source:\s*(.+?)(?=\n\s*\n|\n\s*\w+:|\Z)", self.cls.__doc__ or "", re.S)
        return " ".join(found[1].split()) if found else ""


@dataclass
class Registry:
    """All plugins by kind and name; `broken` holds the reasons of those that failed to import."""

    plugins: dict[str, dict[str, Plugin]] = field(default_factory=lambda: {k: {} for k in KINDS})
    broken: dict[str, str] = field(default_factory=dict)

    def find(self, kind: str, patterns: str | Iterable[Any]) -> list[Plugin]:
        """The plugins that a comma list of names and wildcards selects, in its order, once each;
        in a list also classes and objects, which become known by their names.

        Raises:
            HarnessError: a name or wildcard that matches nothing.
        """
        known = self.plugins[kind]
        parts = _parts(patterns, known) if isinstance(patterns, str) else patterns
        chosen, missing = dict[str, Plugin](), list[str]()
        for part in filter(None, (p.strip() if isinstance(p, str) else p for p in parts)):
            if not isinstance(part, str):
                plugin = self._given(kind, part)
                plugin.needed()
                same = [each for each in chosen.values() if each.name == plugin.name]
                if kind != "methods" and any(each != plugin for each in same):
                    raise HarnessError(
                        f"two {kind} are called {plugin.name!r}: give them in a call each."
                    )
                key = plugin.name if plugin.instance is None else f"{plugin.name} {part!r}"
                chosen[key] = plugin
                continue
            if ":" in part and part not in known:
                plugin = self._with_path(kind, part)
                chosen[plugin.name] = plugin
                continue
            names = [name for name, plugin in known.items() if plugin.matches(part)]
            if not names:
                broken = [f"{n}: {why}" for n, why in self.broken.items() if n.endswith("." + part)]
                if broken:
                    raise HarnessError(f"{part!r} failed to import: {broken[0]}")
                missing.append(part)
            for name in names:
                known[name].needed()
            chosen |= {name: known[name] for name in names}
            if len(names) == 1 and known[names[0]].lacks_path:
                raise HarnessError(f"{part} needs a path: write {part}:PATH.")
        if missing:
            raise HarnessError(" ".join(self._unknown(kind, part) for part in missing))
        if not chosen:
            raise HarnessError(f"no {kind} given. Known: {', '.join(known)}.")
        return list(chosen.values())

    def _unknown(self, kind: str, part: str) -> str:
        """What is said of a name that nobody registered; of a path, how it is given."""
        paths = [name for name, plugin in self.plugins[kind].items() if plugin.lacks_path]
        if os.sep in part or part.endswith(".csv") or Path(part).exists():
            family = "csv" if part.endswith(".csv") and "csv" in paths else "folder"
            if family in paths:
                return f"unknown {kind.rstrip('s')} {part!r}. Did you mean '{family}:{part}'?"
        said = str(unknown(kind.rstrip("s"), part, self.plugins[kind]))
        return said if "Did you mean" in said else f"{said} One of your own needs --plugin FILE.py."

    def _given(self, kind: str, given: Any) -> Plugin:
        """The plugin of a class or an object that is none of the registered ones by name."""
        cls = given if isinstance(given, type) else type(given)
        if not any(c.__name__ == KINDS[kind] for c in cls.mro()[1:]):
            raise HarnessError(f"{given!r} is neither a name nor a {KINDS[kind]}.")
        if self.plugins[kind].get(vars(cls).get("name", ""), None) is None:
            self.add(kind, cls, _snake_case(cls.__name__), cls.__module__)
        plugin = self.plugins[kind][vars(cls)["name"]]
        if plugin.cls is not cls:
            raise Collision(f"{cls.__module__}.{cls.__name__} would be called {plugin.name!r}, as "
                            f"{plugin.origin} is. Rename it.")  # fmt: skip
        return plugin if isinstance(given, type) else replace(plugin, instance=given)

    def _with_path(self, kind: str, part: str) -> Plugin:
        """The plugin of `NAME:PATH`, registered as NAME and the last part of PATH."""
        family, _, path = part.partition(":")
        base = self.plugins[kind].get(family)
        if base is None or not base.lacks_path or not path:
            allowed = [f"{name}:PATH" for name, p in self.plugins[kind].items() if p.lacks_path]
            raise HarnessError(f"{part!r} is no {kind.rstrip('s')}. Allowed: {', '.join(allowed)}.")
        base.needed()
        where = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - keeps links
        named = {"path": str(where)}
        only = getattr(base.cls, "names_only", False)
        if hasattr(base.cls, "remote") and (only or not where.exists()):  # not on this disk
            named = {"path": base.cls.remote(path)}
        called = where.name if where.is_dir() else where.stem
        called = called if named["path"] == str(where) else named["path"]
        plugin = Plugin(f"{family}:{called}", base.cls, named, base.origin)
        there = self.plugins[kind].setdefault(plugin.name, plugin)
        if there.fixed != plugin.fixed:
            raise Collision(
                f"{there.fixed['path']} and {where} would both be called {plugin.name}. Rename one."
            )
        return there

    def add(self, kind: str, cls: type, name: str, origin: str) -> None:
        """Registers `cls` under `name` and its variants under theirs.

        Raises:
            HarnessError: a name that is taken, with both origins.
        """
        decorated = "__dataclass_fields__" in vars(cls)  # its own, none that it inherits
        if not decorated or inspect.isabstract(cls) or cls.__hash__ is None:
            missing = ", ".join(getattr(cls, "__abstractmethods__", ())) or "nothing"
            raise HarnessError(
                f"{cls.__name__} must be a frozen, keyword-only dataclass that defines every "
                f"abstract method; not defined: {missing}."
            )
        cls.name = name  # type: ignore[attr-defined]
        names = {name: {}, **getattr(cls, "variants", {})}
        for each, fixed in names.items():
            there = self.plugins[kind].get(each)
            if there is not None and there.origin != origin:
                raise Collision(
                    f"two {kind} are named {each!r}: {there.origin} and {origin}. Rename one."
                )
            self.plugins[kind][each] = Plugin(each, cls, fixed, origin)

    def add_module(self, module: ModuleType, name: str, kinds: Iterable[str] = tuple(KINDS)) -> int:
        """Registers what `module` defines; returns how many plugins that were."""
        found = 0
        for kind in kinds:
            classes = [c for c in vars(module).values() if _defined_here(c, module, KINDS[kind])]
            if len(classes) > 1:
                names = ", ".join(c.__name__ for c in classes)
                raise HarnessError(
                    f"{module.__name__} defines {names}: one {KINDS[kind]} a file; use `variants`."
                )
            for cls in classes:
                self.add(kind, cls, name, getattr(module, "__file__", None) or module.__name__)
                found += 1
        return found

    def add_plugin(self, reference: str) -> None:
        """Registers the module that --plugin names: dotted, or a path to a .py file.

        Raises:
            HarnessError: it cannot be imported, or defines no plugin.
        """
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # last: nothing there shadows an installed module
        FOREIGN.append(reference)
        file = Path(reference) if reference.endswith(".py") else None
        stem = file.stem if file else reference.rpartition(".")[2]
        try:
            module = _import_file(file) if file else importlib.import_module(reference)
        except Exception as error:
            raise HarnessError(f"--plugin {reference} failed to import: {_why(error)}") from error
        if not self.add_module(module, stem):
            raise HarnessError(
                f"--plugin {reference} defines no Method, Task or Dataset of its own."
            )


def load(plugins: Iterable[str] = ()) -> Registry:
    """The registry of this repository's folders, the installed entry points and `plugins`.

    A plugin that fails to import is kept out, with its reason in `broken`; the others go on.
    """
    registry = Registry()
    for kind, package in FOLDERS.items():
        folder = importlib.import_module(package)
        for info in pkgutil.iter_modules(folder.__path__):
            name = f"{package}.{info.name}"
            if name not in FOLDERS.values():
                with _reported(registry, name):
                    if not registry.add_module(importlib.import_module(name), info.name, [kind]):
                        raise HarnessError(f"it defines no {KINDS[kind]}.")
        for entry in entry_points(group=f"harness.{kind}"):
            FOREIGN.append(entry.value)
            with _reported(registry, f"{entry.value}.{entry.name}"):
                loaded = entry.load()
                if isinstance(loaded, ModuleType):
                    registry.add_module(loaded, entry.name, [kind])
                else:
                    registry.add(kind, loaded, entry.name, entry.value)
    for reference in plugins:
        registry.add_plugin(reference)
    return registry


@contextmanager
def _reported(registry: Registry, name: str) -> Iterator[None]:
    try:
        yield
    except Collision:
        raise
    except Exception as error:
        registry.broken[name] = _why(error)


def _defined_here(value: object, module: ModuleType, base: str) -> bool:
    return (
        inspect.isclass(value)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
        and any(c.__name__ == base and c.__module__.startswith("harness.") for c in value.mro()[1:])
    )


def _parts(text: str, known: Mapping[str, Plugin]) -> list[str]:
    """The parts of a comma list; a path that is there keeps its commas."""
    parts, found = text.split(","), list[str]()
    while parts:
        taken = 1
        for count in range(len(parts), 1, -1):
            family, colon, path = ",".join(parts[:count]).strip().partition(":")
            if not colon or family not in known:
                continue
            there = os.path.exists(Path(path).expanduser())  # noqa: PTH110 - false if too long
            if there or f"{family}:{path}" in known:
                taken = count
                break
        found.append(",".join(parts[:taken]))
        parts = parts[taken:]
    return found


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _import_file(path: Path) -> ModuleType:
    name = f"harness_plugin_{path.stem}"  # a prefix: a plugin may be called like another module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise HarnessError(f"there is no Python file {path}")
    content, there = path.read_bytes(), sys.modules.get(name)
    if there is not None and vars(there).get("_executed") == (path.resolve(), content):
        return there  # its classes stay the same objects, as pickle wants them
    module = importlib.util.module_from_spec(spec)
    vars(module)["_executed"] = (path.resolve(), content)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
