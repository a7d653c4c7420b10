"""What a user's files of a model must be: whole, readable, of numbers, and all of them used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from torch import nn

from harness.errors import HarnessError

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
        said = " ".join(str(error).split())
        said = said if len(said) < 300 else f"{said[:300]} ..."
        raise HarnessError(f"{failure}: {said or type(error).__name__}.") from error


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


def check_loaded(model: nn.Module, file: Path) -> None:
    """Checks that what a model took from a file is what the file holds.

    Raises:
        HarnessError: numbers that are no floats were cast, positions were interpolated to another
            size of images or texts, or a number is not finite.
    """
    own = model.state_dict()
    with safetensors.safe_open(str(file), "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            held = opened.get_slice(name)
            shape, kind = tuple(held.get_shape()), held.get_dtype()
            there = own.get(name, own.get(f"text.{name}"))
            if there is not None and there.is_floating_point() and kind not in FLOATS:
                raise HarnessError(
                    f"{file} holds {name} as {kind}; weights must be floats of 16 bits or more."
                )
            if there is not None and name.endswith(POSITIONS) and shape != tuple(there.shape):
                raise HarnessError(
                    f"{file} has {name} of {list(shape)}, and the model's is {list(there.shape)}: "
                    "they are of another size of images or length of texts. Choose the model whose "
                    "sizes are those of the weights."
                )
    for name, tensor in own.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise HarnessError(f"{file} holds numbers that are not finite, such as in {name}.")
