"""Settings: gin files, --set and --sweep to typed fields. The only module that knows gin.

A gin file binds one literal a line, `name.field = value`: name is a plugin or `engine`. gin's names
have no hyphens: write `dra_t` for `dra-t`. Scopes, macros, references and imports are refused.
"""

import ast
import contextlib
import functools
import itertools
import json
import math
import tokenize
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

from gin import config_parser

from harness.errors import HarnessError, unknown
from harness.registry import Plugin

PROFILES = Path(__file__).parent / "configs"
T = TypeVar("T")


def setting(default: Any, meaning: str) -> Any:
    """An engine setting's default and what it does (`show engine` prints both)."""
    return field(default=default, metadata={"source": meaning})


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What every run shares: caps, augmentation, precision, what is scored, memory.

    Set with `--set engine.FIELD=VALUE`, or `engine.FIELD = VALUE` in a --config file.
    """

    max_epochs: int | None = setting(None, "cap on a method's epochs")
    max_steps: int | None = setting(None, "cap on its optimiser steps, in whole epochs")
    crop_scale: tuple[float, float] = setting((0.08, 1.0), "area of the random resized crop")
    views: int = setting(0, "views of each training image, reused; 0: a fresh one every epoch")
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", "bf16 on CUDA, else fp32")
    split: Literal["test", "val"] = setting("test", "what is scored; choose settings on val only")
    graphs: bool = setting(True, "on CUDA, record a training step once and replay it")
    compile: bool = setting(False, "torch.compile of blocks without edits, for long runs")
    on_bad_image: Literal["error", "skip"] = setting("error", "of images that cannot be read")
    memory: float = setting(0.0, "GiB a training step may take; 0: a share of the device's")
    image_chunk: int = setting(0, "micro-batch of images; 0: what the memory allows")
    text_chunk: int = setting(0, "micro-batch of texts; 0: what the memory allows")
    checkpointing: bool = setting(False, "recompute activations in the backward pass")
    cache_bytes: int = setting(2 * 2**30, "for frozen activations and features")
    jobs: int | None = setting(None, "processes that share the runs; 0: one for each thread")
    jobs_per_gpu: int = setting(1, "processes on each card, where jobs does not say how many")

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds what differs from the defaults."""
        usual = Engine()
        given = {n: v for n, v in asdict(self).items() if v != getattr(usual, n)}
        return functools.partial(Engine, **given), ()

    def identity(self, measured: bool = False) -> dict[str, Any]:
        """The fields that a result depends on; the others change memory and time only, or show in
        the lists of images. With `measured` also those of memory and time that are not as usual."""
        memory = {"memory", "image_chunk", "text_chunk", "checkpointing", "cache_bytes", "graphs",
                  "jobs_per_gpu"}  # fmt: skip
        beside = {"jobs", "on_bad_image"}
        usual = asdict(Engine())
        given = {
            name: value for name, value in asdict(self).items()
            if name not in beside
            and (name not in memory or (measured and value != usual[name]))
        }  # fmt: skip
        return {k: v for k, v in given.items() if v or k not in ("views", "compile")}


@dataclass(frozen=True)
class Binding:
    """One setting and where it was given."""

    target: str
    name: str
    value: Any
    origin: str
    user: bool = True  # given by the user, not by the backbone's profile

    @property
    def setting(self) -> str:
        """What it sets, in one spelling."""
        return f"{self.target}.{self.name}".replace("-", "_")


UNUSED, UNTRAINED = "not used", "nothing is trained"  # begin the source of a method's field
TRAINING = ("epochs", "lr", "batch_size", "momentum", "weight_decay", "warmup_epochs", "warmup_lr")


class _Literals(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> NoReturn:
        raise HarnessError(f"@{scoped_configurable_name}: only literals can be bound.")

    def macro(self, macro_name: str) -> NoReturn:
        raise HarnessError(f"%{macro_name}: only literals can be bound.")


def read_gin(path: Path, user: bool = True) -> list[Binding]:
    """The bindings of a gin file, in its order.

    Raises:
        HarnessError: the file is missing, is not gin, or holds anything but literal bindings.
    """
    if not path.is_file():
        raise HarnessError(f"the configuration file {path} does not exist.")
    bindings = []
    try:
        text = path.read_text(encoding="utf-8")
        for statement in config_parser.ConfigParser(text, _Literals()):
            if (
                not isinstance(statement, config_parser.BindingStatement)
                or statement.scope
                or "." in statement.selector  # it would hold for all tasks, whatever stands there
            ):
                raise HarnessError("only `name.field = literal` lines are allowed.")
            origin = f"{path.name}:{statement.location.line_num}"
            target = statement.selector
            bindings.append(Binding(target, statement.arg_name, statement.value, origin, user))
        once(bindings)
    except (HarnessError, SyntaxError, ValueError, OSError, tokenize.TokenError) as error:
        raise HarnessError(f"{path}: {error}") from error
    return bindings


def profile(backbone: str) -> list[Binding]:
    """The bindings that come with an embedded backbone, and with no other."""
    known = profiles()
    return read_gin(known[backbone], user=False) if backbone in known else []


def profiles() -> dict[str, Path]:
    """The files of bindings that come with a backbone, by its name."""
    return {path.stem: path for path in PROFILES.glob("*.gin")}


def bind(name: str, value: Any, origin: str) -> Binding:
    """A setting `name.field` with its value.

    Raises:
        HarnessError: the name has no dot.
    """
    target, _, field_name = name.rpartition(".")
    if not target or not field_name:
        raise HarnessError(f"{origin}: a setting is called name.field, not {name!r}.")
    return Binding(target, field_name, value, origin)


def of_own_images(
    template: str | Sequence[str] | None,
    class_names: str | Path | None,
    **columns: str | None,
) -> list[Binding]:
    """The settings of datasets that are given by their paths; of several templates one setting, a
    line for each. `columns` are those of hf: alone.

    Raises:
        HarnessError: a template that names no class, has several lines, or is given twice.
    """
    templates = [template] if isinstance(template, str) else list(template or ())
    for each in templates:
        if "{}" not in each:
            raise HarnessError(f"template {each!r} has no {{}} for the class name.")
        if len(each.splitlines()) > 1:
            raise HarnessError(f"template {each!r} has several lines: give each as a template.")
        if templates.count(each) > 1:
            raise HarnessError(f"template {each!r} is given twice.")
    lines = "\n".join(templates) or None
    given = {"template": lines, "class_names": str(class_names) if class_names else None}
    return [
        Binding(kind, name, value, f"--{name.replace('_', '-')}")
        for kind, own in {
            **dict.fromkeys(("folder", "csv", "wds"), given),
            "hf": given | columns,
            "torchvision": {"template": lines},
        }.items()
        for name, value in own.items()
        if value is not None
    ]


def read_set(text: str) -> Binding:
    """`name.field=value`: a Python literal, or else a string."""
    name, value = _split_setting("--set", text)
    return Binding(*name, _literal(value), f"--set {text}")


def read_sweeps(texts: Sequence[str]) -> list[list[Binding]]:
    """Every combination of `name.field=v1,v2,...` settings; one empty combination for none."""
    axes = []
    for text in texts:
        name, values = _split_setting("--sweep", text)
        literal = _literal(f"[{values}]")
        each = literal if isinstance(literal, list) else [_literal(v) for v in values.split(",")]
        axes.append([Binding(*name, value, f"--sweep {text}") for value in each])
    return [list(combination) for combination in itertools.product(*axes)]


def once(bindings: Iterable[Binding]) -> None:
    """Raises HarnessError if two bindings are of one setting."""
    first = dict[str, Binding]()
    for each in bindings:
        before = first.setdefault(each.setting, each)
        if before is not each:
            raise HarnessError(
                f"{each.target}.{each.name} is set twice: by {before.origin} and by "
                f"{each.origin}. Leave one out."
            )


def build(
    plugin: Plugin, bindings: Sequence[Binding], recipe: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """The plugin's object, and the fields whose values differ from those that it has without the
    user's settings.

    What a variant fixes wins over `recipe` (a method's settings for the task), a setting over both.
    A setting of a family's name holds for its variants too, except for what a variant fixes.

    A run's label shows what the user set (`given`), whatever default, recipe or profile say, so
    that it is the same for all datasets and seeds of a request. The differences that are returned
    here tell whether the run is also what the method gives without settings: then it belongs to
    both rows of a table (records.labels.rows), and the key of the run is the same.

    Raises:
        HarnessError: an unknown field or a value of the wrong type.
    """
    if plugin.instance is not None:
        usual = plugin.cls()
        changed = {f.name: getattr(plugin.instance, f.name) for f in fields(usual)}
        changed = {k: v for k, v in changed.items() if getattr(usual, k) != v}
        return plugin.instance, changed
    given = {**(recipe or {}), **_values(plugin, [b for b in bindings if not b.user])}
    values = {**(recipe or {}), **_values(plugin, bindings)}
    before, after = plugin.cls(**given), plugin.cls(**values)
    changed = {name: value for name, value in values.items() if getattr(before, name) != value}
    return after, changed


def given(plugin: Plugin, bindings: Iterable[Binding]) -> tuple[str, ...]:
    """The fields of a plugin that the user sets, whether or not their values change anything."""
    if plugin.instance is not None:
        return tuple(build(plugin, [])[1])
    names = {b.name for b in bindings if b.user and applies(b, plugin)}
    return tuple(f.name for f in fields(plugin.cls) if f.name in names)


def restore(plugin: Plugin, recorded: Mapping[str, Any]) -> Any:
    """The plugin's object with the settings of a record.

    Raises:
        HarnessError: the plugin has other fields now, or takes other values.
    """
    bindings = [Binding(plugin.name, n, v, "the record") for n, v in recorded.items()]
    return plugin.cls(**{b.name: typed(plugin.cls, plugin.name, b) for b in bindings})


def applies(binding: Binding, plugin: Plugin) -> bool:
    """Whether a setting reaches a plugin."""
    if _same(binding.target, plugin.name):
        return True
    return _same(binding.target, plugin.family) and binding.name not in plugin.fixed


def _values(plugin: Plugin, bindings: Iterable[Binding]) -> dict[str, Any]:
    mine = [binding for binding in bindings if applies(binding, plugin)]
    values = {b.name: typed(plugin.cls, plugin.name, b) for b in mine}
    for binding in mine:
        if binding.user:
            _check_used(binding, plugin, values[binding.name])
    return dict(plugin.fixed) | values


def _check_used(binding: Binding, plugin: Plugin, value: Any) -> None:
    """Raises HarnessError for a setting that a method says it does not use."""
    every = {each.name: each for each in fields(plugin.cls)}
    sources = {name: each.metadata.get("source", "") for name, each in every.items()}
    why = sources[binding.name].removeprefix(UNUSED) if UNUSED in sources[binding.name] else ""
    if sources.get("epochs") == UNTRAINED and binding.name in TRAINING:
        why = UNTRAINED
    if why and value != every[binding.name].default:
        raise HarnessError(
            f"{binding.origin}: {plugin.name}.{binding.name} would have no effect: "
            f"{why.strip(': ')}. Leave it out."
        )


def build_engine(bindings: Iterable[Binding]) -> Engine:
    """The engine's settings; the last binding of a field counts.

    Raises:
        HarnessError: an unknown field, or a value of the wrong type or out of range.
    """
    mine = [b for b in bindings if b.target == "engine"]
    engine = Engine(**{b.name: typed(Engine, "engine", b) for b in mine})
    for name in ("max_epochs", "max_steps"):
        if getattr(engine, name) is not None and getattr(engine, name) < 1:
            raise HarnessError(f"engine.{name} must be at least 1, or None for no cap.")
    for name, zero in (
        ("views", "a fresh view every epoch"),
        ("jobs", "as many as there are threads"),
        ("image_chunk", "what the memory allows"),
        ("text_chunk", "what the memory allows"),
        ("memory", "a share of the device's"),
        ("cache_bytes", "nothing is kept"),
    ):
        value = getattr(engine, name)
        if value is not None and not 0 <= value < math.inf:
            raise HarnessError(f"engine.{name} must be 0 ({zero}) or more, not {value}.")
    if engine.jobs_per_gpu < 1:
        raise HarnessError(f"engine.jobs_per_gpu must be at least 1, not {engine.jobs_per_gpu}.")
    low, high = engine.crop_scale
    if not 0 < low <= high <= 1:
        raise HarnessError(f"engine.crop_scale must be 0 < low <= high <= 1, not {low}, {high}.")
    return engine


def check_targets(bindings: Iterable[Binding], known: Iterable[str]) -> None:
    """Raises HarnessError for a setting of a name that does not exist."""
    names = {*known, "engine"}
    for binding in bindings:
        if not any(_same(binding.target, name) for name in names):
            raise HarnessError(f"{binding.origin}: {unknown('name', binding.target, names)}")


def typed(cls: type[T], name: str, binding: Binding) -> Any:
    """The binding's value as the field's type.

    Raises:
        HarnessError: an unknown field or a value of another type, with what is allowed.
    """
    hints = typing.get_type_hints(cls)
    allowed = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if binding.name not in allowed:
        raise HarnessError(
            f"{binding.origin}: {unknown(f'setting of {name}', binding.name, allowed)}"
        )
    try:
        return _as(hints[binding.name], binding.value)
    except TypeError:
        shown = getattr(hints[binding.name], "__name__", None)
        expected = shown if shown not in (None, "Literal", "Union", "tuple") else ""
        expected = expected or str(hints[binding.name]).replace("typing.", "")
        if typing.get_origin(hints[binding.name]) is Literal:
            expected = " or ".join(map(repr, typing.get_args(hints[binding.name])))
        raise HarnessError(
            f"{binding.origin}: {name}.{binding.name} must be {expected}, not {binding.value!r}."
        ) from None


def describe(cls: type) -> list[tuple[str, Any, str]]:
    """(field, default, where the default was published) of each hyperparameter."""
    return [
        (f.name, None if f.default is MISSING else f.default, f.metadata.get("source", ""))
        for f in fields(cls)
    ]


def _as(hint: Any, value: Any) -> Any:
    """`value` if it has type `hint` (an int may stand for a float, a list for a tuple)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin in (Union, types.UnionType):
        for option in arguments:
            try:
                return _as(option, value)
            except TypeError:
                continue
    elif origin is tuple and isinstance(value, (tuple, list)):
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(_as(h, v) for h, v in zip(inner, value, strict=True))
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is str and isinstance(value, dict):  # JSON, which was read as Python
        with contextlib.suppress(TypeError, ValueError):
            return json.dumps(value, allow_nan=False)
    elif type(value) is hint or (hint is type(None) and value is None):
        return value
    raise TypeError


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _same(a: str, b: str) -> bool:
    return a.replace("-", "_") == b.replace("-", "_")


def _split_setting(option: str, text: str) -> tuple[tuple[str, str], str]:
    left, equals, value = text.partition("=")
    target, dot, name = left.strip().rpartition(".")
    if not (equals and dot and target and name and value):
        raise HarnessError(f"{option} {text!r} is not of the form name.field=value.")
    return (target, name), value.strip()
