"""Pretrain the embedded backbone emoji-mini on icons and emoji, on a processor alone.

    python -m harness.backbones.pretrain_emoji_mini prepare --work DIR
    python -m harness.backbones.pretrain_emoji_mini image --work DIR --seconds 5400
    python -m harness.backbones.pretrain_emoji_mini text --work DIR --seconds 600

The image tower learns to name the words and the captions of views; then the text tower learns
to match the frozen image features. The image stage writes checkpoints into the work folder, and
goes on from them when it is started again with the same budget. Schedules follow the clock. The
first part of both stages trains four of the twelve blocks, which learn much faster; the others
start as blocks that do nothing.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from harness.backbones import pretrain_emoji_mini_data as data
from harness.backbones.pretrain_emoji_mini_bpe import learn_merges, word_counts, write_merges
from harness.backbones.pretrain_emoji_mini_model import (
    NamingHead,
    image_features,
    silence_blocks,
    text_features,
)
from harness.tasks.datasets.emoji.build import fetch_packages

OUTPUT = Path(__file__).parent / "emoji-mini"
CONTEXT = 32
VOCABULARY_MERGES = 2500


def build_model(output: Path) -> Any:
    """The model that the configuration in the output folder describes."""
    config = json.loads((output / "open_clip_config.json").read_text(encoding="utf-8"))
    return open_clip.CustomTextCLIP(**config["model_cfg"])


def learning_rate(progress: float, peak: float) -> float:
    """Cosine schedule with a short linear warm-up."""
    warm = min(1.0, (progress + 1e-3) / 0.02)
    return peak * warm * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0))) + 1e-6


def save_atomically(state: dict, path: Path) -> None:
    """Write a checkpoint beside its place and move it there."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def optimiser(modules: list[nn.Module], peak: float, decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)


def average_gradients(parameters: list[nn.Parameter], numbers: Tensor) -> Tensor:
    """Average the gradients and a few numbers over the processes; returns the numbers."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [numbers])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()
    return flat[start:]


def meet(rank: int, arguments: argparse.Namespace) -> None:
    """Join the processes of a stage; each computes with one thread."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{arguments.work.absolute() / arguments.meeting}",
        rank=rank,
        world_size=arguments.processes,
    )
    torch.manual_seed(0)


def train_image(rank: int, arguments: argparse.Namespace) -> None:
    """Train the image tower to name views until the budget of seconds is spent."""
    meet(rank, arguments)
    pool = data.load_pool(arguments.work)
    visual = build_model(arguments.output).visual.train()
    silence_blocks(visual)
    head = NamingHead(pool.captions, pool.caption_rows, pool.emoji, visual.output_dim)
    adam = optimiser([visual, head], arguments.rate, 0.05)
    state = {"elapsed": 0.0, "steps": 0, "samples": 0}
    checkpoint = arguments.work / "image.pt"
    if checkpoint.is_file():
        saved = torch.load(checkpoint)
        visual.load_state_dict(saved["visual"])
        head.load_state_dict(saved["head"])
        adam.load_state_dict(saved["adam"])
        state = saved["state"]
    torch.manual_seed(1 + rank + 1000 * state["steps"])
    parameters = [*visual.parameters(), *head.parameters()]
    if rank == 0:
        print(f"{len(pool.sprites)} sprites, {pool.emoji} emoji, {state}", flush=True)
    last = saved_at = shown_at = time.monotonic()
    running, weight = torch.zeros(2), 0.0
    while state["elapsed"] < arguments.seconds:
        progress = state["elapsed"] / arguments.seconds
        rate = learning_rate(progress, arguments.rate)
        for group in adam.param_groups:
            group["lr"] = rate
        rows, captions = pool.sample(arguments.batch // arguments.processes)
        strength = min(1.0, 0.1 + 0.9 * progress / arguments.strong_from)
        views = pool.views(rows, visual.image_size[0], strength)
        features = image_features(visual, views, progress < arguments.shallow_until)
        losses = torch.stack(head(features, captions))
        losses.sum().backward()
        now = time.monotonic()
        numbers = torch.cat([losses.detach(), torch.tensor([now - last])])
        last = now
        numbers = average_gradients(parameters, numbers)
        nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=False)
        state["elapsed"] += float(numbers[2])
        state["steps"] += 1
        state["samples"] += arguments.batch
        running, weight = running * 0.98 + numbers[:2] * 0.02, weight * 0.98 + 0.02
        if rank == 0 and now - shown_at > 60:
            shown_at = now
            print(
                f"{state['elapsed']:.0f} s, {state['samples']} samples, rate {rate:.2e}, "
                f"losses {running[0] / weight:.3f} {running[1] / weight:.3f}",
                flush=True,
            )
        if rank == 0 and (now - saved_at > 300 or state["elapsed"] >= arguments.seconds):
            saved_at = now
            parts = {"visual": visual, "head": head, "adam": adam}
            saved = {name: part.state_dict() for name, part in parts.items()}
            save_atomically(saved | {"state": state}, checkpoint)
    if rank == 0:
        print(f"image tower done: {state}", flush=True)


def start_processes(arguments: argparse.Namespace) -> None:
    """Start the processes of a stage."""
    (arguments.work / arguments.meeting).unlink(missing_ok=True)
    torch.multiprocessing.spawn(arguments.train, (arguments,), arguments.processes)


def build_bank(pool: data.SpritePool, visual: Any, number: int) -> tuple[Tensor, Tensor]:
    """Normalised image features of random views, and the sprites they belong to."""
    features, sprites = [], []
    with torch.no_grad():
        for _ in range(-(-number // 256)):
            rows, _ = pool.sample(256)
            batch = image_features(visual, pool.views(rows, visual.image_size[0], 0.5))
            features.append(functional.normalize(batch, dim=-1))
            sprites.append(rows)
    return torch.cat(features), torch.cat(sprites)


def sample_prompt(caption: str) -> str:
    """A caption in a template, most of the time the one that evaluation uses."""
    return random.choice((data.TEMPLATES[0], random.choice(data.TEMPLATES))).format(caption)


def matching_loss(images: Tensor, texts: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    """Contrastive loss in both directions where a row may have several positives."""
    logits = scale.exp().clamp(max=100) * images @ functional.normalize(texts, dim=-1).T
    share = positive.float()
    by_image = share / share.sum(1, keepdim=True).clamp(min=1)
    by_text = (share / share.sum(0, keepdim=True).clamp(min=1)).T
    return (
        functional.cross_entropy(logits, by_image) + functional.cross_entropy(logits.T, by_text)
    ) / 2


def train_text(rank: int, arguments: argparse.Namespace) -> None:
    """Train the text tower against the frozen image tower, then write the model folder."""
    meet(rank, arguments)
    pool = data.load_pool(arguments.work)
    model = build_model(arguments.output)
    model.visual.load_state_dict(torch.load(arguments.work / "image.pt")["visual"])
    silence_blocks(model.text)
    tokenizer = SimpleTokenizer(str(arguments.output / "bpe_merges.txt.gz"), context_length=CONTEXT)
    written = data.written_names(arguments.work)
    torch.manual_seed(1 + rank)
    random.seed(1 + rank)
    started = time.monotonic()
    features, sprites = build_bank(pool, model.visual, arguments.views // arguments.processes)
    if rank == 0:
        print(f"bank of {arguments.views} views: {time.monotonic() - started:.0f} s", flush=True)
    owners: dict[int, list[int]] = {}
    for view, captions in enumerate(pool.caption_rows[sprites].tolist()):
        for caption in set(captions):
            owners.setdefault(caption, []).append(view)
    emoji = set(pool.caption_rows[: pool.emoji].flatten().tolist())
    kinds = [[c for c in owners if c in emoji], [c for c in owners if c not in emoji]]
    share = round(data.EMOJI_SHARE * arguments.batch / arguments.processes)
    sizes = [share, arguments.batch // arguments.processes - share]
    model.logit_scale.data.fill_(math.log(1 / 0.07))
    adam = optimiser([model.text], arguments.rate, 0.05)
    adam.add_param_group({"params": [model.logit_scale], "weight_decay": 0.0})
    parameters = [*model.text.parameters(), model.logit_scale]
    started = shown_at = time.monotonic()
    steps, progress, running = 0, 0.0, 0.0
    while progress < 1:
        rate = learning_rate(progress, arguments.rate)
        for group in adam.param_groups:
            group["lr"] = rate
        captions = [
            c for kind, size in zip(kinds, sizes, strict=True) for c in random.sample(kind, size)
        ]
        chosen = [view for c in captions for view in random.choices(owners[c], k=4)]
        names = [written.get(pool.captions[c], pool.captions[c]) for c in captions]
        numbers = tokenizer([sample_prompt(name) for name in names])
        positive = pool.caption_rows[sprites[chosen]].unsqueeze(2) == torch.tensor(captions)
        texts = text_features(model.text, numbers, progress < arguments.shallow_until)
        loss = matching_loss(features[chosen], texts, model.logit_scale, positive.any(1))
        loss.backward()
        elapsed = time.monotonic() - started
        mean, elapsed = average_gradients(parameters, torch.tensor([loss.item(), elapsed])).tolist()
        nn.utils.clip_grad_norm_(model.text.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=False)
        steps += 1
        progress = elapsed / arguments.seconds
        running += (mean - running) * max(0.02, 1 / steps)
        if rank == 0 and time.monotonic() - shown_at > 30:
            shown_at = time.monotonic()
            print(f"{elapsed:.0f} s, {steps} steps, loss {running:.3f}", flush=True)
    if rank == 0:
        write_weights(model, arguments.output)
        print(f"text tower done: {steps} steps, {steps * arguments.batch} captions", flush=True)


def write_weights(model: Any, output: Path) -> None:
    """Write the weights of a model in half precision."""
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    partial = output / "open_clip_model.partial"
    partial.write_bytes(save(weights, metadata={"format": "pt"}))
    partial.replace(output / "open_clip_model.safetensors")


def prepare(arguments: argparse.Namespace) -> None:
    """Fetch the packages, render the icons, learn the BPE merges and list the icon sets."""
    fetch_packages(arguments.work)
    data.render_all(arguments.work, arguments.processes)
    merges = learn_merges(word_counts(arguments.work), VOCABULARY_MERGES)
    write_merges(merges, arguments.output / "bpe_merges.txt.gz")
    (arguments.output / "DATA.md").write_text(data.describe_sets(arguments.work), encoding="utf-8")


def main() -> None:
    """Read the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stages = parser.add_subparsers(required=True)
    image = stages.add_parser("image", help="train the image tower")
    image.add_argument("--seconds", type=float, default=5400)
    image.add_argument("--batch", type=int, default=128, help="views a step, all processes")
    image.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate")
    image.add_argument("--shallow-until", type=float, default=0.6, help="first part: four blocks")
    image.add_argument("--strong-from", type=float, default=0.4, help="end of the easier views")
    image.set_defaults(run=start_processes, train=train_image, meeting="image.meeting")
    text = stages.add_parser("text", help="train the text tower and write the model folder")
    text.add_argument("--seconds", type=float, default=480)
    text.add_argument("--batch", type=int, default=512, help="captions a step, all processes")
    text.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    text.add_argument("--shallow-until", type=float, default=0.6, help="first part: four blocks")
    text.add_argument("--views", type=int, default=36_000, help="views in the feature bank")
    text.set_defaults(run=start_processes, train=train_text, meeting="text.meeting")
    first = stages.add_parser("prepare", help="fetch packages, render icons, learn merges")
    first.set_defaults(run=prepare)
    for stage in (first, image, text):
        stage.add_argument("--output", type=Path, default=OUTPUT, help="model folder")
        stage.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints")
        stage.add_argument("--processes", type=int, default=2, help="processes or threads")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
