"""Every random draw comes from a generator made from (seed, purpose, ...)."""

import hashlib

import torch
from torch import Tensor


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


def normal(shape: tuple[int, ...], *key: object, like: Tensor) -> Tensor:
    """Standard normal draws in the precision and on the device of `like`: a function of `key`,
    `shape`, that precision and the kind of device."""
    draws = torch.Generator(like.device).manual_seed(seed_of(*key))
    return torch.randn(shape, generator=draws, dtype=like.dtype, device=like.device)
