"""Edits: what a method inserts at a site of a tower, and what an edit may know about where it runs.

Shapes: R rows of images or texts, C classes, T texts a class, L tokens, D width, E embedding.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.randomness import normal, uniform
from harness.towers.tower import Site


@dataclass
class Rows:
    """The rows that go through a tower in one pass, and what the edits leave behind.

    A micro-batch is a part of a step's rows: `numbers` [R] says which of its `total` rows.
    """

    numbers: Tensor
    total: int
    training: bool
    key: tuple[object, ...]  # (seed, step): what noise is drawn from
    ids: Tensor | None = None  # token ids [R, L] of text rows
    kinds: Tensor | None = None  # which of its class's T texts each text row is [R]
    references: Mapping[str, Tensor] = field(default_factory=dict)  # of each row's class [R, T, E]
    image: Tensor | None = None  # frozen features of each text row's image [R, E]
    shared: int = 0  # positions at the beginning that are the same in all text rows of an image
    copies: int = 1  # how many images these rows belong to, in order
    progress: float = 0.0  # share of the fit's steps that are done
    drawn: bool = False  # whether an edit drew for them
    draws: Any = None  # where what they draw is kept (`fitting.recorded.Draws`), or None
    mode: str = ""  # of a step that passes the towers in several ways, which this is
    losses: dict[tuple[Site, str], Tensor] = field(default_factory=dict)
    sums: dict[tuple[Site, str], tuple[Tensor, int]] = field(default_factory=dict)

    def auxiliary(self) -> Tensor | float:
        """The edits' auxiliary losses: mean over all rows of the step (this part's share), summed
        over sites and names."""
        return sum((loss.sum() / self.total for loss in self.losses.values()), start=0.0)

    def totals(self) -> dict[str, tuple[Tensor, int]]:
        """Sum and count of what the edits left for each statistic, over all sites."""
        return added((name, part) for (_, name), part in self.sums.items())


def added(parts: Iterable[tuple[str, tuple[Tensor, int]]]) -> dict[str, tuple[Tensor, int]]:
    """Sums and counts of the same name, added up."""
    totals = dict[str, tuple[Tensor, int]]()
    for name, (total, count) in parts:
        before = totals.get(name)
        totals[name] = (before[0] + total, before[1] + count) if before else (total, count)
    return totals


@dataclass
class SiteContext:
    """What an edit may know about where it runs: the site, the frozen module there, its rows."""

    site: Site
    op: nn.Module
    rows: Rows
    length: int = 0  # positions of the tower; texts may be cropped below it
    passing: Tensor | None = None

    @property
    def training(self) -> bool:
        return self.rows.training

    @property
    def mode(self) -> str:
        """What `Step.gradients` was told; empty if nothing, and outside of training."""
        return self.rows.mode

    @property
    def stream(self) -> Tensor:
        """The tokens [R, L, D] of the residual stream: at `ln1`, `attn`, `ln2` and `mlp` those that
        this branch of the block reads and is added to; at `image.features` those that left the last
        block.

        Raises:
            ValueError: at another site.
        """
        if self.passing is None:
            raise ValueError(f"{self.site} has no residual stream beside what enters and leaves it")
        return self.passing

    @property
    def progress(self) -> float:
        """Which share of the fit's steps is done, from 0 to below 1."""
        return self.rows.progress

    @property
    def ids(self) -> Tensor:
        """Token ids [R, L] of the text rows.

        Raises:
            ValueError: at a site of the image tower.
        """
        return self._text(self.rows.ids, "token ids")

    @property
    def kinds(self) -> Tensor:
        """Which of its class's T texts each row is, from 0 [R]."""
        return self._text(self.rows.kinds, "texts")

    @property
    def image(self) -> Tensor:
        """Frozen features [R, E] of each row's image, of a method with `text_per_image`."""
        return self._text(self.rows.image, "image")

    def reference(self, name: str) -> Tensor:
        """Frozen features [R, T, E] of `Method.references` for each row's class."""
        return self._text(self.rows.references.get(name), f"reference {name!r}")

    def noise(self, purpose: str, *shape: int) -> Tensor:
        """Uniform draws in (0, 1), float32 [R, *shape]: a function of (seed, step, site, purpose).

        They are drawn for all rows of the step and then taken for these, so that they do not depend
        on micro-batching or recomputation.
        """
        site, whole, numbers = self.site, (self.rows.total, *shape), self.rows.numbers
        device = numbers.device

        def draw(key: tuple[object, ...]) -> Tensor:
            drawn = uniform(whole, *key, site, purpose)
            if device.type == "cuda":  # pinned: nothing waits for the device
                drawn = drawn.pin_memory()
            return drawn.to(device, non_blocking=True)

        return self._drawn((purpose, whole), draw)[numbers]

    def dropout(self, x: Tensor, rate: float, purpose: str = "dropout") -> Tensor:
        """x [R, L, D] with a fraction `rate` of its numbers dropped in training, the rest scaled.

        The mask is a function of (seed, step, site, purpose) on a kind of device, whatever the
        micro-batch and however far the texts are cropped.
        """
        if not self.training or not rate:
            return x
        shape = (max(self.length, x.shape[1]), self.rows.total, x.shape[2])
        site, device = self.site, x.device

        def draw(key: tuple[object, ...]) -> Tensor:
            return uniform(shape, *key, site, purpose, device=device)

        kept = self._drawn((purpose, shape), draw)[: x.shape[1], self.rows.numbers] >= rate
        return x * kept.transpose(0, 1) / (1 - rate)

    def normal(self, purpose: str, *shape: int, like: Tensor) -> Tensor:
        """Standard normal draws [*shape], in the precision and on the device of `like`, the same
        for all rows of the step: a function of (seed, step, site, purpose) on a kind of device."""
        site, like = self.site, like.detach().new_empty(0)  # its precision and device

        def draw(key: tuple[object, ...]) -> Tensor:
            return normal(shape, *key, site, purpose, like=like)

        return self._drawn((purpose, shape), draw)

    def _drawn(self, what: Hashable, draw: Callable[[tuple[object, ...]], Tensor]) -> Tensor:
        """What `draw` makes of the step's key, or what was drawn for a recorded step."""
        rows = self.rows
        rows.drawn = True
        if rows.draws is None:
            return draw(rows.key)
        return rows.draws.get((self.site, what), rows.key, draw)

    def loss(self, name: str, per_row: Tensor) -> None:
        """Adds an auxiliary loss [R]; the total is its mean over the step's rows, over all sites.

        Assigned by (site, name), so that recomputation does not count it twice.
        """
        self.rows.losses[self.site, name] = per_row

    def statistic(self, name: str, values: Tensor) -> None:
        """Adds values [R, ...] to a statistic: `Output.statistics[name]` is the mean of all values
        of the step's rows and of all sites, for a loss that is a function of such a mean.

        Assigned by (site, name), so that recomputation does not count them twice.

        Raises:
            ValueError: of texts, values of each position: how many there are is the engine's.
        """
        if self.rows.ids is not None and values.ndim > 1:
            raise ValueError(f"{self.site}: a statistic of texts takes one number of each text [R]")
        whole = torch.promote_types(values.dtype, torch.float32)
        self.rows.sums[self.site, name] = values.sum(dtype=whole), values.numel()

    def _text(self, value: Tensor | None, what: str) -> Tensor:
        if value is None:
            raise ValueError(f"{self.site} has no {what}: the method or the tower gives none there")
        return value


class Edit(nn.Module):
    """What is inserted at a site: sees what entered and what left the frozen module there."""

    # in training it looks across positions, so that the text may not be cropped; evaluation is
    # always token-wise or causal
    mixes_tokens: ClassVar[bool] = False

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        """x entered, y left; returns what leaves instead. Tokens are [R, L, D]. Never in place."""
        raise NotImplementedError
