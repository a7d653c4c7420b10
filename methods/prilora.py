"""PRILoRA: low-rank updates whose rank grows with depth."""

from dataclasses import dataclass, replace

from harness.method import Classes, Clip, Edit, HarnessError, Site, Tower, published
from harness.methods.lora import LoRA


@dataclass(frozen=True, kw_only=True)
class PRILoRA(LoRA):
    """CLIP-LoRA with ranks that grow linearly from the first block to the last.

        r_i = round(r_first + (r_last - r_first) i / (N - 1)),  i = 0 .. N - 1

    N: blocks of a tower. Ranks of 4 to 12 have the mean 8.

    Source: Benedek and Wolf, PRILoRA: Pruned and Rank-Increasing Low-Rank Adaptation
        (https://arxiv.org/abs/2401.11316), section on ranks; sites and recipe of CLIP-LoRA (see
        `lora`).
    Differs: the ranks alone, each with CLIP-LoRA's scale alpha / sqrt(r_i), which falls with depth.
        The paper also prunes A by the size of its inputs during training, and was not published for
        CLIP.
    """

    rank: int = published(4, "PRILoRA, rank of the first block")
    last_rank: int = published(12, "PRILoRA, rank of the last block")

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        return {
            f"{tower.name}.blocks.{i}.{part}": replace(self, rank=rank).module(
                getattr(block.attn, part).weight
            )
            for tower in (clip.image, clip.text)
            for i, (block, rank) in enumerate(zip(tower.blocks, self.ranks(tower), strict=True))
            for part in ("q", "k", "v")
        }

    def ranks(self, tower: Tower) -> list[int]:
        """The rank in each block of a tower."""
        count = len(tower.blocks)
        growth = (self.last_rank - self.rank) / max(1, count - 1)
        return [int(self.rank + growth * i + 0.5) for i in range(count)]

    def check(self) -> None:
        super().check()
        if self.last_rank < 1:
            raise HarnessError(f"{self.name}.last_rank must be at least 1, not {self.last_rank}.")
