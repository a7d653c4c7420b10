"""DRA: dynamic rank adaptation, its ablations and the controls that its paper lacks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.method import Edit, HarnessError, SiteContext, Tower, published
from harness.methods.adapter import Adapter, Bottleneck, initialised

Noise = Literal["gumbel", "log_gumbel", "none", "random"]


def gumbel(at: SiteContext, purpose: str, count: int) -> Tensor:
    """Gumbel(0, 1) noise [R, count]."""
    return -torch.log(-torch.log(at.noise(purpose, count)))


def descending(scores: Tensor, noise: Noise, at: SiteContext, purpose: str) -> Tensor:
    """Indices [R, count] by descending noisy score [R, count] (Eq. 11 and 13)."""
    if noise == "random":
        scores = at.noise(purpose, scores.shape[1])
    elif noise == "gumbel":
        scores = scores + gumbel(at, purpose, scores.shape[1])
    elif noise == "log_gumbel":
        scores = scores.log() + gumbel(at, purpose, scores.shape[1])
    return scores.argsort(dim=1, descending=True, stable=True)


def token_scores(projected: Tensor, scale: float) -> Tensor:
    """Eq. 10: the attention that each token receives, averaged over the N that give it.

    projected = X' W_t [R, N, r] -> [R, N], each row sums to 1.
    """
    attention = (projected @ projected.transpose(1, 2) / scale).softmax(dim=-1)  # [R, N, N]
    return attention.mean(dim=1)


def channel_scores(projected: Tensor) -> Tensor:
    """Eq. 12: the variance of each channel over the tokens. X' W_c [R, N, r] -> [R, r]."""
    return projected.var(dim=1)


def rank_mask(
    tokens: Tensor,
    channels: Tensor | None,
    ratios: tuple[float, ...],
    rank: int,
    dtype: torch.dtype,
) -> Tensor:
    """Eq. 14 and 15, in the tokens' own order: M' [R, N, r].

    tokens [R, N]: indices by descending importance, cut into K groups (sizes as tensor_split's);
    channels [R, r] likewise, or None to keep the first channels.
    """
    device, count = tokens.device, tokens.shape[1]
    groups = torch.arange(count).tensor_split(len(ratios))
    group = torch.cat([torch.full_like(part, i) for i, part in enumerate(groups)]).to(device)  # [N]
    group = torch.empty_like(tokens).scatter_(1, tokens, group.expand_as(tokens))  # of each token
    place = torch.arange(rank, device=device)
    if channels is not None:  # place [R, 1, r] of each channel in the order c
        place = torch.empty_like(channels).scatter_(1, channels, place.expand_as(channels))[:, None]
    kept = torch.tensor([math.floor(e * rank + 1e-9) for e in ratios], device=device)
    e = torch.tensor(ratios, device=device, dtype=dtype)
    return (place < kept[group][:, :, None]) / e[group][:, :, None]  # [R, N, r]


class DynamicRank(Bottleneck):
    """One DRA module: W_d, W_t, W_c, W_p, W_u with biases."""

    mixes_tokens = True

    def __init__(self, width: int, method: "DRA", weight: float) -> None:
        super().__init__(width, method.rank, method.scale, method.gradient_rescale)
        self.tokens = initialised(method.rank, method.rank)  # W_t
        self.channels = (
            initialised(method.rank, method.rank) if method.channel_response else None
        )  # W_c
        self.mix = initialised(method.rank, method.rank)  # W_p
        self.method, self.weight = method, weight
        self.divisor = math.sqrt(width if method.attention_scale == "width" else method.rank)

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        inner = F.relu(self.down(self.enter(x)))  # Eq. 9: X' [R, N, r]
        if not at.training:
            return y + self.scale * self.expand(inner)  # Eq. 18
        adapted = self.leave(self.expand(inner * self.mask(inner, at)))  # Eq. 16
        if self.weight:
            plain = self.leave(self.expand(inner))
            distance = (self.scale * (adapted - plain)).abs()  # Eq. 19: X~ - X-
            promoted = torch.promote_types(distance.dtype, torch.float32)
            reduce = torch.mean if self.method.reg_reduction == "mean" else torch.sum
            at.loss("reg", self.weight * reduce(distance, dim=(1, 2), dtype=promoted))
        return y + self.scale * adapted  # Eq. 17

    def expand(self, inner: Tensor) -> Tensor:
        """sigma(sigma(X W_p) W_u) of Eq. 17 and 18: [R, N, r] -> [R, N, d]."""
        return F.relu(self.up(F.relu(self.mix(inner))))

    def mask(self, inner: Tensor, at: SiteContext) -> Tensor:
        """M' [R, N, r], with no gradient or the straight-through one."""
        method, dtype = self.method, inner.dtype
        inner = inner.to(torch.promote_types(dtype, torch.float32))  # bfloat16 ties decide orders
        taught = torch.is_grad_enabled() and method.gradient != "none"
        with torch.set_grad_enabled(taught), torch.autocast(inner.device.type, enabled=False):
            a_t = token_scores(self.tokens(inner), self.divisor)
            a_c = None if self.channels is None else channel_scores(self.channels(inner))
        with torch.no_grad():
            t = descending(a_t, method.noise, at, "tokens")
            c = None if a_c is None else descending(a_c, method.channel_noise, at, "channels")
            mask = rank_mask(t, c, method.ratios, method.rank, inner.dtype)
        if method.gradient == "straight_through":
            soft = (a_t * a_t.shape[1])[:, :, None]  # both scores with mean 1
            if a_c is not None:
                soft = soft + (a_c / a_c.mean(1, keepdim=True).detach())[:, None]
            mask = mask + (soft - soft.detach())
        return mask.to(dtype)


@dataclass(frozen=True, kw_only=True)
class DRA(Adapter):
    """An adapter that gives important tokens a higher rank than others during training.

        X' = sigma(X W_d)                                                                   (Eq. 9)
        a_t = column mean of softmax(X'W_t (X'W_t)^T / sqrt(d)),  t = argsort(a_t + g)     (10, 11)
        a_c = variance over tokens of X'W_c,                      c = argsort(a_c + g)     (12, 13)
        G_1 .. G_K: the tokens in the order t, cut evenly                                      (14)
        M_ij = 1/e_i if channel j is among the first floor(e_i r) of c, else 0                 (15)
        X* = X' * M, each token with its group's row                                           (16)
        training:  X~ = OP(X) + s sigma(sigma(X* W_p) W_u)                                     (17)
        inference: X- = OP(X) + s sigma(sigma(X' W_p) W_u)                                     (18)
        L = CE + lambda_T sum |X~ - X-|_1 (text) + lambda_V sum |X~ - X-|_1 (image)        (19, 20)

    X [N, d]: what the attention module receives (the first LayerNorm's output), class token
    included; OP(X): its output; g: Gumbel(0, 1); e_i: the rank ratio of group i; sigma: ReLU. One
    module beside each attention module from block h on, in both towers; all five linears have
    biases. K is the number of `ratios`. Token and channel orders are each sample's own.

    Source: Wang et al., Dynamic Rank Adaptation for Vision-Language Models, Eq. 9-20 and section
        4.1.2 (https://arxiv.org/abs/2507.05668); no code is public, MMA's recipe and released code
        fill the gaps.
    Differs: (1) the d under the root of Eq. 10 is read as the model width (`attention_scale`). (2)
        argsort passes no gradient, so as printed W_t and W_c never learn; they are counted, as the
        paper counts them. `gradient="straight_through"` gives the mask the gradient of both scores,
        scaled to mean 1. (3) Eq. 19 sums over N x d elements; the default takes the mean over
        batch, tokens and channels, and sums over modules (`reg_reduction`). (4) Gradients are
        rescaled as in MMA's code, the regulariser's too (`gradient_rescale`). (5) Initialisation as
        MMA's. (6) When K does not divide N, the first groups are one token larger. (7) Without
        channel response there is no W_c and the first floor(e_i r) channels are kept. (8) The class
        token is one of the N tokens. (9) Eq. 11 adds Gumbel noise to scores of about 1/N, which
        leaves little of their order: `noise` and `channel_noise` switch it (`log_gumbel`: added to
        log a_t; `random`: the scores play no part). (10) few_shot takes the settings of
        base-to-new.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dra-t": {"image": "adapter"},
        "dra-v": {"text": "adapter"},
        "dra-none": {"channel_response": False, "lambda_text": 0.0, "lambda_image": 0.0},
        "dra-cr": {"lambda_text": 0.0, "lambda_image": 0.0},
        "dra-reg": {"channel_response": False},
        "dra-nonoise": {"noise": "none", "channel_noise": "none"},
        "dra-loggumbel": {"noise": "log_gumbel"},
        "dra-random": {"noise": "random", "channel_noise": "random"},
    }

    ratios: tuple[float, ...] = published((1.0, 0.8, 0.6, 0.4), "DRA section 4.1.2, e_1 .. e_K")
    image: Literal["dra", "adapter"] = published("dra", "DRA Table 4, DRA-T&V")
    text: Literal["dra", "adapter"] = published("dra", "DRA Table 4, DRA-T&V")
    channel_response: bool = published(True, "DRA section 3.2.2 and Table 4, CR")
    lambda_text: float = published(1.0, "DRA section 4.1.2")
    lambda_image: float = published(1.0, "DRA section 4.1.2")
    noise: Noise = published("gumbel", "DRA Eq. 11")
    channel_noise: Literal["gumbel", "none", "random"] = published("gumbel", "DRA Eq. 13")
    gradient: Literal["none", "straight_through"] = published("none", "argsort in DRA Eq. 11, 13")
    attention_scale: Literal["width", "rank"] = published("width", "DRA Eq. 10, our reading of d")
    reg_reduction: Literal["mean", "sum"] = published("mean", "our reading of DRA Eq. 19")

    def module(self, tower: Tower) -> Edit:
        kind, weight = {
            "image": (self.image, self.lambda_image),
            "text": (self.text, self.lambda_text),
        }[tower.name]
        return (
            super().module(tower) if kind == "adapter" else DynamicRank(tower.width, self, weight)
        )

    def untrained(self) -> tuple[str, ...]:
        if self.gradient != "none":
            return ()
        return ("tokens.weight", "tokens.bias", "channels.weight", "channels.bias")

    def check(self) -> None:
        super().check()
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise HarnessError(f"{self.name}.ratios must be numbers in (0, 1], not {self.ratios}.")
