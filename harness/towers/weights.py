"""What a user's files of a model must be: whole, readable, of numbers, and all of them used."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from open_clip.factory import load_checkpoint
from torch import nn

from harness.errors import HarnessError, one_line

T = TypeVar("T")
FLOATS = ("F16", "BF16", "F32", "F64")
POSITIONS = "positional_embedding"


def made(failure: str, make: Callable[[], T]) -> T:
    """What `make` returns; whatever it raises is a HarnessError of one sentence."""
    try:
        return make()
    except HarnessError:
        raise
    except Exception as error:  # open_clip, transformers, safetensors and gzip raise all kinds
        said = one_line(error)
        said = said.rstrip(".") if len(said) < 300 else f"{said[:300]} ..."
        raise HarnessError(f"{failure}: {said}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        HarnessError: it cannot be read, or holds something else.
    """
    read = made(
        f"{path} cannot be read as JSON", lambda: json.loads(path.read_text(encoding="utf-8"))
    )
    if not isinstance(read, dict):
        raise HarnessError(f"{path} must hold one object, in braces.")
    return read


def check_file(file: Path) -> None:
    """Raises HarnessError for a file that is damaged or no safetensors file."""
    made(
        f"{file} is damaged or no safetensors file",
        lambda: safetensors.safe_open(str(file), "pt").keys(),
    )


def load_weights(model: nn.Module, file: Path) -> None:
    """Gives a model of open_clip the weights of a file in open_clip's layout, all of them.

    Raises:
        HarnessError: numbers that are no floats would be cast, positions be interpolated to another
            size of images or texts, or a number is not finite; anything else: other weights than
            the model's.
    """
    own = model.state_dict()
    with safetensors.safe_open(str(file), "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            held = opened.get_slice(name)
            shape, kind = held.get_shape(), held.get_dtype()
            there = own.get(name, own.get(f"text.{name}"))
            if there is not None and there.is_floating_point() and kind not in FLOATS:
                raise HarnessError(
                    f"{file} holds {name} as {kind}; weights must be floats of 16 bits or more."
                )
            if there is not None and name.endswith(POSITIONS) and shape != list(there.shape):
                raise HarnessError(
                    f"{file} has {name} of {shape}, and the model's is {list(there.shape)}: they "
                    "are of another size of images or length of texts. Choose the model whose "
                    "sizes are those of the weights."
                )
    load_checkpoint(model, str(file))
    check_finite(model, file)


def check_finite(model: nn.Module, file: Path) -> None:
    """Raises HarnessError if a number that a model took from a file is not finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise HarnessError(f"{file} holds numbers that are not finite, such as in {name}.")


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Meanwhile open_clip does not log that a model has no weights yet, or is to have none."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
