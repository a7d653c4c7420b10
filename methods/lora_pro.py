"""LoRA-Pro: low-rank updates that follow Adam on the whole matrix."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.methods.lora import LoRA

DELTA = 1e-8  # LoRA-Pro deepspeed/runtime/zero/stage_1_and_2.py


class EquivalentAdam(torch.optim.Optimizer):
    """Adam on the gradient of the product s B A that the gradients of A and B amount to.

    Parameters come in pairs, A [r, n] before its B [m, r]; pairs of one shape are updated together.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        scale: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        defaults = {"lr": lr, "scale": scale, "betas": betas, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            factors = group["params"]
            alike = dict[tuple[torch.Size, torch.Size], list[tuple[nn.Parameter, nn.Parameter]]]()
            for a, b in zip(factors[::2], factors[1::2], strict=True):
                alike.setdefault((a.shape, b.shape), []).append((a, b))
            for pairs in alike.values():
                self._update(pairs, group)

    def _update(self, pairs: list[tuple[nn.Parameter, nn.Parameter]], group: Any) -> None:
        """One step of K pairs."""
        state, scale, rate = self.state[pairs[0][0]], group["scale"], group["lr"]
        a, b = (torch.stack(each) for each in zip(*pairs, strict=True))  # [K, r, n], [K, m, r]
        of_a, of_b = (
            torch.stack([factor.grad for factor in each if factor.grad is not None])
            for each in zip(*pairs, strict=True)
        )
        first = not state
        if first:
            state["steps"] = 0
            state["mean"] = torch.zeros_like(b @ a)  # [K, m, n]
            state["square"] = torch.zeros_like(state["mean"])
        state["steps"] += 1
        down, up = nearest(a, b, of_a, of_b, scale, first)
        whole = scale * (b @ down + up @ a)
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(whole, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(whole, whole, value=1 - beta2)
        root = state["square"].sqrt() / math.sqrt(1 - beta2 ** state["steps"])
        wanted = state["mean"] / (1 - beta1 ** state["steps"]) / (root + 1e-8)
        of_a, of_b = scale * b.mT @ wanted, scale * wanted @ a.mT
        down, up = nearest(a, b, of_a, of_b, scale, first)
        if not first:
            free = balance(a, b, of_a, scale)
            down, up = down + free @ a, up - b @ free
        kept = math.sqrt(1 - rate * group["weight_decay"])
        for i, (one, other) in enumerate(pairs):
            one.mul_(kept).sub_(down[i], alpha=rate)
            other.mul_(kept).sub_(up[i], alpha=rate)


def nearest(
    a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, scale: float, first: bool
) -> tuple[Tensor, Tensor]:
    """Changes of A and B that together change s B A as the gradient of the whole matrix would, as
    nearly as they can; `of_a` and `of_b` are the factors' gradients. While B is zero (`first`), A
    keeps its own."""
    up = of_b @ inverse(a @ a.mT) / scale**2
    if first:
        return of_a, up
    gram = inverse(b.mT @ b)
    return gram @ of_a / scale**2, up - b @ (gram @ (b.mT @ up))


def balance(a: Tensor, b: Tensor, of_a: Tensor, scale: float) -> Tensor:
    """X [K, r, r] with B^T B X + X A A^T = -(B^T B)^-1 g_A A^T / s^2."""
    right = -inverse(b.mT @ b) @ of_a @ a.mT / scale**2
    left_values, left = torch.linalg.eigh(_exact(b.mT @ b))
    right_values, turn = torch.linalg.eigh(_exact(a @ a.mT))
    turned = left.mT @ _exact(right) @ turn
    sums = left_values[:, :, None] + right_values[:, None]
    return (left @ (turned / sums) @ turn.mT).to(a.dtype)


def inverse(gram: Tensor) -> Tensor:
    """(gram + delta I)^-1 [K, r, r]."""
    eye = torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)
    return torch.linalg.inv(_exact(gram) + DELTA * eye).to(gram.dtype)


def _exact(small: Tensor) -> Tensor:
    return small.to(torch.float64)


@dataclass(frozen=True, kw_only=True)
class LoRAPro(LoRA):
    """CLIP-LoRA whose factors move so that their product follows Adam on the whole matrix.

        G = s (B g_A' + g_B' A),  g = Adam(G)
        g_A' = (1/s^2) (B^T B)^-1 g_A,  g_B' = (1/s^2) (I - B (B^T B)^-1 B^T) g_B (A A^T)^-1
        A <- A - eta (g_A'' + X A),  B <- B - eta (g_B'' - B X)
        B^T B X + X A A^T = -(1/s^2) (B^T B)^-1 s B^T g A^T

    W' = W + s B A, s = alpha / sqrt(r); g_A, g_B: gradients of the factors; G: the gradient of W'
    that they amount to; Adam(G): its mean over the root of its mean square, both of all steps;
    g_A'', g_B'': as g_A', g_B', of s B^T g and s g A^T in the place of g_A and g_B; X [r, r]: the
    choice that leaves A and B nearest to their own gradients; eta: the rate. Before an inverse
    10^-8 is added to the diagonal. In the first step, where B is zero, g_A' = g_A and X = 0.

    Source: Wang et al., LoRA-Pro: Are Low-Rank Adapters Properly Optimized?, Eq. 9-11 and
        Algorithm 1 (https://arxiv.org/abs/2407.18242); code mrflogs/LoRA-Pro,
        deepspeed/runtime/zero/stage_1_and_2.py and peta/optim.py, "full".
    Differs: it was not published for CLIP: sites, rank, scale, dropout and recipe are CLIP-LoRA's
        (see `lora`). Weight decay shrinks B A as in the code's peta/optim.py, but not the frozen
        matrix, too. Small inverses are in double precision, and Adam's means in that of the
        factors, where the code has bfloat16.
    """

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        scale, betas = self.alpha / math.sqrt(self.rank), (self.momentum, 0.999)
        return EquivalentAdam(parameters, self.lr, scale, betas, self.weight_decay)
