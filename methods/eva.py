"""EVA: low-rank updates that start along the directions in which their inputs vary most."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.method import Edit, HarnessError, Site, Support, published
from harness.methods.lora import LoRA, LowRank


class Redistributed(LowRank):
    """A low-rank update that may start anew with another rank, and keeps its scale."""

    def start(self, rows: Tensor) -> None:
        """Puts `rows` [rank, inputs] into the place of A, and zeros into that of B."""
        self.a = nn.Parameter(rows.to(self.a).clone())
        self.b = nn.Parameter(self.b.new_zeros(len(self.b), len(rows)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        kept = state_dict.get(f"{prefix}a")
        if isinstance(kept, Tensor) and kept.shape[1:] == self.a.shape[1:]:
            self.start(kept)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Moments:
    """Mean and covariance of what enters a site, gathered in double precision."""

    def __init__(self) -> None:
        self.count, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """x [tokens, D]."""
        x = x.double()
        self.count += len(x)
        self.total = self.total.to(x) + x.sum(0)
        self.products = self.products.to(x) + x.T @ x

    def components(self, most: int) -> tuple[Tensor, list[float]]:
        """The first principal components [k, D], largest entries positive, and the shares of the
        variance that they explain."""
        mean = self.total / self.count
        values, vectors = torch.linalg.eigh(self.products / self.count - torch.outer(mean, mean))
        rows = vectors.T.flip(0)[:most]
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        shares = values.flip(0)[:most] / values.sum().clamp_min(1e-300)
        return rows * largest.sign(), shares.tolist()


def ranks(shares: Mapping[Site, list[float]], budget: int) -> dict[Site, int]:
    """How many components each site takes, if the `budget` goes to those that explain most of the
    variance at their sites; of equal ones the earlier."""
    each = [(share, site) for site, found in shares.items() for share in found]
    taken = [site for _, site in sorted(each, key=lambda pair: -pair[0])[:budget]]
    return {site: taken.count(site) for site in shares}


@dataclass(frozen=True, kw_only=True)
class EVA(LoRA):
    """CLIP-LoRA that starts at the principal components of what enters each matrix, with more rank
    where they explain more.

        W' = W + (alpha / sqrt(r)) B A,  A = first r_i principal components,  B = 0 at the start
        r_i: how many of the first rho r components of site i are among the N r components of all N
        sites with the largest shares of explained variance

    The principal components are those of the tokens that enter the site for one view of each shot
    and for the prompts. With rho = 1 each site has the rank r.

    Source: Paischer et al., One Initialization to Rule them All: Fine-tuning via Explained Variance
        Adaptation, Algorithm 1 (https://arxiv.org/abs/2410.07170); code ml-jku/EVA, src/svd.py.
    Differs: it was not published for CLIP: sites, rank, dropout and recipe are CLIP-LoRA's (see
        `lora`), and both towers share one budget of ranks. The components are those of all shots
        and prompts, where the code finds them batch by batch until they turn by less than a cosine
        of 0.99. The scale is that of rank r at each site, as in Hugging Face's peft. The number of
        parameters depends on the data, since a rank costs more in the wider tower.
    """

    rho: float = published(2.0, "EVA svd_precompute.py")

    def module(self, weight: Tensor) -> Edit:
        outputs, inputs = weight.shape
        return Redistributed(inputs, outputs, self.rank, self.alpha, self.dropout)

    def prepare(self, head: nn.Module, support: Support) -> None:
        sources = {site: f"{site.rpartition('.')[0]}.q" for site in support.edits}  # q, k, v: one x
        moments = {source: Moments() for source in sources.values()}
        support.inputs(moments, lambda site, x: moments[site].add(x))
        most = round(self.rank * self.rho)
        found = {source: gathered.components(most) for source, gathered in moments.items()}
        shares = {site: found[source][1] for site, source in sources.items()}
        for site, rank in ranks(shares, self.rank * len(shares)).items():
            edit = support.edits[site]
            assert isinstance(edit, Redistributed)
            edit.start(found[sources[site]][0][:rank])

    def check(self) -> None:
        super().check()
        if self.rho < 1:
            raise HarnessError(f"{self.name}.rho must be at least 1, not {self.rho}.")
