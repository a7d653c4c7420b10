"""Every random draw comes from a generator made from (seed, purpose, ...)."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def seed_of(*key: object) -> int:
    """A 63-bit seed that is a function of `key` alone (its parts' `repr`)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded by `key`; draws are the same on every device they are moved to."""
    return torch.Generator().manual_seed(seed_of(*key))


def uniform(shape: tuple[int, ...], *key: object, device: torch.device | str = "cpu") -> Tensor:
    """Draws from the open interval (0, 1), float32, a function of `key`, `shape` and the kind of
    device that draws."""
    draws = torch.Generator(device).manual_seed(seed_of(*key))
    tiny = torch.finfo(torch.float32).tiny
    return torch.rand(shape, generator=draws, device=device).clamp_min_(tiny)


class OnProcessor(TorchDispatchMode):
    """Meanwhile what a global generator would draw on another device is drawn by the processor's
    and moved there, so that initial values are the same on every device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if args and isinstance(args[0], Tensor) and device is None:
            device = args[0].device
        elsewhere = device is not None and torch.device(device).type != "cpu"
        if torch.Tag.nondeterministic_seeded not in func.tags or not elsewhere:
            return func(*args, **kwargs)
        here = tree_map_only(Tensor, Tensor.cpu, args)
        given = kwargs | ({"device": torch.device("cpu")} if "device" in kwargs else {})
        drawn = func(*here, **given)
        if "device" in kwargs:
            return drawn.to(device)
        there = args[0] if func._schema.is_mutable else args[0].new_empty(drawn.shape)
        return there.copy_(drawn)


@contextlib.contextmanager
def initialising(seed: int) -> Iterator[None]:
    """Meanwhile the global generator gives the initial values of a seed, the same on every device;
    afterwards it is where it was."""
    with torch.random.fork_rng(devices=[]), OnProcessor():
        torch.manual_seed(seed_of("initialisation", seed))
        yield


def normal(shape: tuple[int, ...], *key: object, like: Tensor) -> Tensor:
    """Standard normal draws in the precision and on the device of `like`: a function of `key`,
    `shape`, that precision and the kind of device."""
    draws = torch.Generator(like.device).manual_seed(seed_of(*key))
    return torch.randn(shape, generator=draws, dtype=like.dtype, device=like.device)
