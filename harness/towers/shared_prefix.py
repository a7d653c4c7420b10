"""Rows of a causal tower that begin alike pass their beginning once."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SharedPrefix:
    """Rows of a causal tower that begin alike: the beginning passes once, and each row's own rest
    sees it. The same features as those of whole rows.

    shared: P positions; beginnings: G, each of as many rows, in order; mask: the
    tower's [P + S, P + S]. The tokens travel as one row [1, G * P + R * S, D], beginnings first.
    """

    shared: int
    beginnings: int
    mask: Tensor

    def joined(self, x: Tensor) -> Tensor:
        """Whole rows [R, P + S, D] -> [1, G * P + R * S, D]."""
        first = x[:: len(x) // self.beginnings, : self.shared]  # [G, P, D]
        rest = x[:, self.shared :]  # [R, S, D]
        return torch.cat([first.flatten(0, 1), rest.flatten(0, 1)])[None]

    def parted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, G * P + R * S, ...] -> beginnings [G, P, ...] and rests [R, S, ...]."""
        count = self.beginnings * self.shared
        own = len(self.mask) - self.shared
        return x[0, :count].unflatten(0, (-1, self.shared)), x[0, count:].unflatten(0, (-1, own))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v and the result: [1, H, G * P + R * S, D/H]."""
        (q1, q2), (k1, k2), (v1, v2) = (self.parted(each.transpose(1, 2)) for each in (q, k, v))
        first = self._attend(q1, k1, v1, self.mask[: self.shared, : self.shared])
        k, v = (
            torch.cat(
                [one[:, None].expand(-1, len(two) // len(one), -1, -1, -1).flatten(0, 1), two], 1
            )
            for one, two in ((k1, k2), (v1, v2))
        )  # [R, P + S, H, D/H]
        rest = self._attend(q2, k, v, self.mask[self.shared :])
        return torch.cat([first.flatten(0, 1), rest.flatten(0, 1)])[None].transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """[., L, H, D/H]."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


Mask = Tensor | SharedPrefix | None  # which positions an attention sees: additive [L, L]
