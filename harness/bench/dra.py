"""What DRA's noise leaves of its importance orders, and how heavy its regulariser is.

On emoji-mini and emoji_animals, 16 base images and all base classes, at initialisation, averaged
over modules, rows and seeds 1-3. `overlap`: the share of the quarter with the highest scores that
stays the top quarter after noise (chance: 0.25). `gradient_ratio`: the norm of the gradient of the
regulariser (Eq. 19) over that of the cross-entropy, over all parameters that get one.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import registry
from harness.fitting.inputs import Images
from harness.fitting.model import Model
from harness.fitting.step import Batch, gradients
from harness.fitting.texts import texts
from harness.method import Output
from harness.methods.dra import DRA, DynamicRank, channel_scores, descending, token_scores
from harness.records.tables import plain_table
from harness.runs.plan import Request, plan
from harness.runs.prepared import PreparedRun

SEEDS = (1, 2, 3)


def measured() -> dict[str, float]:
    """Mean overlaps and gradient ratios, by name."""
    seeds = [of_seed(seed) for seed in SEEDS]
    return {name: round(mean(each[name] for each in seeds), 4) for name in seeds[0]}


def table(values: Mapping[str, float]) -> str:
    """The means as a table."""
    rows: list[dict[str, object]] = [
        {"of dra, at initialisation": name, "mean of seeds 1-3": value}
        for name, value in values.items()
    ]
    return plain_table(rows, numbers=True)


def of_seed(seed: int) -> dict[str, float]:
    """Overlaps and gradient ratios of one seed."""
    request = Request(methods="dra", tasks="base2new", datasets="emoji_animals",
                      backbone="emoji-mini", shots=[16], seeds=[seed])  # fmt: skip
    (run,) = plan(request, registry.load())
    overlaps: dict[str, list[float]] = defaultdict(list)
    norms = {
        "ce": norm(run, replace(run.method.value, lambda_text=0.0, lambda_image=0.0), overlaps),
        "mean": norm(run, replace(run.method.value, reg_reduction="mean")),
        "sum": norm(run, replace(run.method.value, reg_reduction="sum")),
    }
    means = {name: mean(values) for name, values in overlaps.items()}
    return means | {f"gradient_ratio.{part}": norms[part] / norms["ce"] for part in ("mean", "sum")}


def norm(run: PreparedRun, method: DRA, overlaps: dict[str, list[float]] | None = None) -> float:
    """The norm of the cross-entropy's gradient, while `overlaps` listens; or of the regulariser's,
    without them."""
    model = Model(run.context.clip, method, run.train.classes, run.seed)
    images = Images(model, run.source(run.train), run.train, run.context.cache,
                    run.augmentation(method))  # fmt: skip
    order = torch.arange(16) * (len(run.train.items) // 16)
    (x,) = images.train((run.seed, 0), [order])
    prompts = texts(model, run.train.classes, training=True)
    if overlaps is not None:  # after the texts, which try the model on one of them
        for edit in model.edits.values():
            edit.register_forward_pre_hook(partial(hear, overlaps))
    batch = Batch(model, x, prompts, images.labels[order], (run.seed, 0))
    gradients(batch, regulariser if overlaps is None else method.loss)
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(torch.cat(grads).norm())


@torch.no_grad()
def hear(overlaps: dict[str, list[float]], module: nn.Module, given: tuple[Any, ...]) -> None:
    """Notes, for a module that is about to run, what each kind of noise would leave."""
    assert isinstance(module, DynamicRank)
    assert module.channels is not None
    x, _, at = given
    tower = at.site.partition(".")[0]
    inner = F.relu(module.down(x))
    tokens = token_scores(module.tokens(inner), module.divisor)
    channels = channel_scores(module.channels(inner))
    for noise in ("gumbel", "log_gumbel", "random"):
        order = descending(tokens, noise, at, "tokens")
        overlaps[f"overlap.tokens.{noise}.{tower}"].append(overlap(tokens, order))
    order = descending(channels, "gumbel", at, "channels")
    overlaps[f"overlap.channels.gumbel.{tower}"].append(overlap(channels, order))


def overlap(scores: Tensor, noisy: Tensor) -> float:
    """Share of the noiseless top quarter of scores [R, N] that is in the noisy one (indices
    [R, N])."""
    quarter = scores.shape[1] // 4
    kept = torch.zeros_like(scores).scatter_(1, noisy[:, :quarter], 1.0)
    return float(kept.gather(1, scores.topk(quarter, dim=1).indices).mean())


def regulariser(output: Output, labels: Tensor) -> Tensor:
    """Eq. 19, without the cross-entropy."""
    return torch.as_tensor(output.auxiliary)
