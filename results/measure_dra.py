"""What DRA's noise leaves of its importance orders, and how heavy its regulariser is.

    python results/measure_dra.py > results/dra.json

On emoji-mini and emoji_animals, 16 base images and all base classes, at initialisation, averaged
over modules, rows and seeds 1-3. `overlap`: the share of the quarter with the highest scores that
stays the top quarter after noise (chance: 0.25). `gradient_ratio`: the norm of the gradient of the
regulariser (Eq. 19) over that of the cross-entropy, over all parameters that get one.
"""

import json
from collections import defaultdict
from dataclasses import replace
from statistics import mean

import torch
import torch.nn.functional as F

from harness import config, registry
from harness.fitting.inputs import Images
from harness.fitting.step import Batch, gradients
from harness.fitting.texts import texts
from harness.methods.dra import DynamicRank, channel_scores, descending, token_scores
from harness.runs.executors import local as runner


def overlap(scores: torch.Tensor, noisy: torch.Tensor) -> float:
    """Share of the noiseless top quarter [R, N] that is in the noisy one (indices [R, N])."""
    quarter = scores.shape[1] // 4
    kept = torch.zeros_like(scores).scatter_(1, noisy[:, :quarter], 1.0)
    return float(kept.gather(1, scores.topk(quarter, dim=1).indices).mean())


def measure(seed: int) -> dict[str, float]:
    """Overlaps and gradient ratios of one seed."""
    bindings = [*config.profile("emoji-mini")]
    request = runner.Request(
        methods="dra", tasks="base2new", datasets="emoji_animals", backbone="emoji-mini",
        shots=16, seeds=[seed], bindings=bindings,
    )  # fmt: skip
    (run,) = runner.plan(request, registry.load())
    results: dict[str, list[float]] = defaultdict(list)

    def listen(module: DynamicRank, arguments: tuple) -> None:
        x, _, at = arguments
        tower = at.site.partition(".")[0]
        with torch.no_grad():
            inner = F.relu(module.down(x))
            a_t = token_scores(module.tokens(inner), module.divisor)
            a_c = channel_scores(module.channels(inner))
            for noise in ("gumbel", "log_gumbel", "random"):
                order = descending(a_t, noise, at, "tokens")
                results[f"overlap.tokens.{noise}.{tower}"].append(overlap(a_t, order))
            order = descending(a_c, "gumbel", at, "channels")
            results[f"overlap.channels.gumbel.{tower}"].append(overlap(a_c, order))

    norms = {}
    for part in ("ce", "mean", "sum"):
        method = replace(run.method.value, reg_reduction="mean" if part == "ce" else part)
        if part == "ce":
            method = replace(method, lambda_text=0.0, lambda_image=0.0)
        model = replace(run, method=replace(run.method, value=method)).model()
        if part == "ce":
            for edit in model.edits.values():
                edit.register_forward_pre_hook(listen)
        images = Images(
            model, run.bench.source("emoji_animals"), run.train, run.bench.cache,
            run.bench.augmentation(method),
        )  # fmt: skip
        order = torch.arange(16) * (len(run.train.items) // 16)
        (x,) = images.train((seed, 0), [order])
        labels = torch.tensor([run.train.items[int(i)].label for i in order])
        prompts = texts(model, run.train.classes, training=True)
        loss = method.loss if part == "ce" else regulariser
        gradients(Batch(model, x, prompts, labels, (seed, 0)), loss)
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norms[part] = float(torch.cat(grads).norm())
    means = {name: mean(values) for name, values in results.items()}
    ratios = {f"gradient_ratio.{part}": norms[part] / norms["ce"] for part in ("mean", "sum")}
    return means | ratios


def regulariser(output, labels):
    """Eq. 19, without the cross-entropy."""
    return output.auxiliary


if __name__ == "__main__":
    seeds = [measure(seed) for seed in (1, 2, 3)]
    print(json.dumps({name: round(mean(s[name] for s in seeds), 4) for name in seeds[0]}, indent=1))
