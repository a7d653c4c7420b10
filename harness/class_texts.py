"""Texts of classes that the user gives: sentences, attributes or descriptors of a language model.

A file is read as it was published: JSON `{class name: [text, ...]}` (CuPL, CoPrompt, DCLIP), or
ArGue's YAML, whose lists under DATASET.ATTR have no names and follow CoOp's order of the classes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import reason, regular_file, shown

Texts = tuple[str, ...]


@dataclass(frozen=True)
class ClassTexts:
    """The texts of one file: by class name, or in the order of the classes."""

    file: str
    named: Mapping[str, Texts]
    ordered: Sequence[Texts] = ()

    def of(self, names: Sequence[str]) -> tuple[Texts, ...]:
        """The texts of all classes of a dataset, in label order.

        Raises:
            HarnessError: a class without texts, with the names that match none.
        """
        if self.ordered:
            return self._in_order(names)
        exact = {name: texts for name, texts in self.named.items() if name in set(names)}
        loose = dict[str, list[Texts]]()
        for name, texts in self.named.items():
            loose.setdefault(plain(name), []).append(texts)
        found, missing = list[Texts](), list[str]()
        for name in names:
            like = loose.get(plain(name), [])
            if name in exact or len(like) == 1:
                found.append(exact[name] if name in exact else like[0])
            else:
                missing.append(name)
        if missing:
            given = {plain(name) for name in names}
            unused = [name for name in self.named if plain(name) not in given]
            raise HarnessError(
                f"{self.file} has no texts for {len(missing)} of {len(names)} classes: "
                f"{_some(missing)}. Its names that are no class: {_some(unused)}."
            )
        return tuple(found)

    def _in_order(self, names: Sequence[str]) -> tuple[Texts, ...]:
        if len(self.ordered) != len(names):
            raise HarnessError(
                f"{self.file} has texts for {len(self.ordered)} classes in order, and there are "
                f"{len(names)}."
            )
        strange = [
            name
            for name, texts in zip(names, self.ordered, strict=True)
            if not {*plain(name).split()} & {word for text in texts for word in plain(text).split()}
        ]
        if strange:
            raise HarnessError(
                f"{self.file} lists its texts without names, and those in the place of "
                f"{_some(strange)} say nothing of them: is it the file of another dataset?"
            )
        return tuple(self.ordered)


def plain(name: str) -> str:
    """A name without case, underscores, punctuation and repeated spaces."""
    return " ".join(re.sub(r"[\W_]+", " ", name).casefold().split())


def read(path: Path) -> ClassTexts:
    """Raises HarnessError for a file that cannot be read, or holds something else."""
    where = shown(path)
    try:
        text = regular_file(path).read_text(encoding="utf-8-sig")
        content = _yaml(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
    except (OSError, ValueError) as error:
        raise HarnessError(f"{where} cannot be read: {reason(error)}.") from error
    if isinstance(content, list):
        return ClassTexts(where, {}, [_texts(each, where, "a class") for each in content])
    if not isinstance(content, dict) or not content:
        raise HarnessError(
            f"{where} must hold an object {{class name: [text, ...]}}, not "
            f"{type(content).__name__}."
        )
    return ClassTexts(where, {name: _texts(each, where, name) for name, each in content.items()})


def _yaml(text: str) -> Any:
    """The lists of an ArGue file, or a mapping."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    inner = content.get("DATASET") if isinstance(content, dict) else None
    return inner["ATTR"] if isinstance(inner, dict) and "ATTR" in inner else content


def _texts(value: Any, where: str, name: str) -> Texts:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(
        isinstance(text, str) and text.strip() for text in texts
    ):  # fmt: skip
        raise HarnessError(f"{where}: {name!r} must have a list of texts, and none empty.")
    return tuple(text.strip() for text in texts)


def _some(names: Sequence[str]) -> str:
    shown_names = ", ".join(repr(name) for name in names[:5])
    return (shown_names + ", ..." * (len(names) > 5)) or "none"
