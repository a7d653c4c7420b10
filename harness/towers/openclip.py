"""open_clip's ViT and text transformer as towers, and both together as a frozen `Clip`."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from open_clip import transformer as oc
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.towers.tower import Block, EditCall, Site, Tower, unedited


class ImageTower(Tower):
    """open_clip's VisionTransformer."""

    name = "image"
    stem_names = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")

    def __init__(self, visual: oc.VisionTransformer) -> None:
        super().__init__()
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.length = visual.positional_embedding.shape[0]
        self.blocks = _blocks(visual.transformer.resblocks, self.name)

    def stem(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        visual = self.visual
        x = visual.conv1(inputs).flatten(2).permute(0, 2, 1)  # [B, grid^2, D]
        x = x.to(visual.class_embedding.dtype)  # autocast leaves bfloat16: the residuals stay whole
        first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1)  # [B, grid^2 + 1, D]
        y = x + visual.positional_embedding.to(x.dtype)
        return visual.ln_pre(edit("image.tokens", visual, x, y))

    def head(self, x: Tensor, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        pooled, _ = self.visual._pool(x)  # [B, D]
        y = pooled if self.visual.proj is None else pooled @ self.visual.proj
        return edit("image.features", self.visual, pooled, y, x)


class TextTower(Tower):
    """open_clip's causal TextTransformer, pooled at the end-of-text token (the largest id)."""

    name = "text"
    stem_names = ("token_embedding.", "positional_embedding", "cls_emb")

    def __init__(self, text: oc.TextTransformer) -> None:
        super().__init__()
        self.text = text
        self.width = text.width
        self.length = text.context_length
        self.blocks = _blocks(text.transformer.resblocks, self.name)

    def mask(self, length: int) -> Tensor:
        """Causal, and larger than the tower's own where a method inserts tokens between blocks."""
        own = self.text.attn_mask
        if length <= len(own):
            return own[:length, :length]
        return own.new_full((length, length), -torch.inf).triu_(1)

    def stem(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        embedding = self.text.token_embedding
        y = embedding(inputs)  # [R, L, D]
        y = edit("text.tokens", embedding, y, y)
        return y + self.text.positional_embedding[: inputs.shape[1]]

    def head(self, x: Tensor, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        x = self.text.ln_final(x)
        pooled = x[torch.arange(len(x), device=x.device), inputs.argmax(-1)]  # [R, D]
        projection = self.text.text_projection
        if projection is None:
            y = pooled
        elif isinstance(projection, nn.Linear):
            y = projection(pooled)
        else:
            y = pooled @ projection
        return edit("text.features", self.text, pooled, y)


class Clip(nn.Module):
    """A frozen two-tower model: `image`, `text`, `logit_scale`, the tokenizer and its pixels.

    `size`, `mean` and `std` describe the images it takes; `fingerprint` is a hash of its weights.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.image = ImageTower(model.visual)
        self.text = TextTower(model.text)
        self.logit_scale: Tensor = model.logit_scale
        self.tokenizer = tokenizer
        self.name = name
        pixels = model.visual.preprocess_cfg
        self.size = int(model.visual.image_size[0])
        self.mean, self.std = tuple(pixels["mean"]), tuple(pixels["std"])
        self.embedding = int(model.visual.output_dim)
        self.fingerprint = fingerprint(model, tokenizer)
        self.requires_grad_(False)
        self.train()  # no dropout anywhere: eval would take PyTorch's fused path, 2e-6 away

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def sites(self) -> list[Site]:
        """Every site of both towers."""
        return self.image.sites() + self.text.sites()

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The parameters of both towers: `image.stem.conv1.weight`, `text.blocks.3.ln1.weight`,
        `text.blocks.3.attn.weight` (of queries, keys and values together), `image.head.proj`."""
        return {
            f"{tower.name}.{name}": parameter
            for tower in (self.image, self.text)
            for name, (_, parameter) in tower.own_parameters().items()
        }

    def check_class_token(self, method: str) -> None:
        """Raises HarnessError unless the image feature is made of the class token alone: LayerNorm,
        then the projection (`ln_post` and `proj` of the module at `image.features`)."""
        visual = self.image.visual
        if visual.pool_type != "tok" or visual.attn_pool is not None or visual.proj is None:
            raise HarnessError(
                f"{method} makes features of single image tokens as CLIP makes one of the class "
                f"token, and {self.name} does not project its class token. Choose a CLIP backbone "
                "such as ViT-B-16."
            )

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [R, L] on this model's device.

        Raises:
            HarnessError: a text that does not fit into the tower's positions.
        """
        ids = self.tokenizer(list(texts), self.text.length)
        for text, row in zip(texts, ids, strict=True):
            if row[-1] != 0 and len(self.tokenizer.encode(text)) + 2 > self.text.length:
                raise HarnessError(
                    f"the text {text!r} has more than the {self.text.length - 2} tokens that "
                    f"{self.name} takes. Shorten the class name or the template."
                )
        return ids.to(self.device)


@contextlib.contextmanager
def cast_once(clip: Clip, dtype: torch.dtype) -> Iterator[None]:
    """Meanwhile the frozen matrices are kept in `dtype`, so that autocast need not cast them at
    every call: the same numbers. Embeddings and norms, which autocast leaves alone, stay."""
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    modules = [m for m in (*clip.image.modules(), *clip.text.modules()) if isinstance(m, kinds)]
    matrices = {id(p): p for module in modules for p in module.parameters(recurse=False)}
    whole = {key: parameter.data for key, parameter in matrices.items()}
    try:
        for parameter in matrices.values():
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for key, parameter in matrices.items():
            parameter.data = whole[key]


@contextlib.contextmanager
def compiled(clip: Clip) -> Iterator[None]:
    """Meanwhile torch.compile fuses what it can in blocks without edits: other last digits."""
    try:
        clip.image.compiled = clip.text.compiled = True
        yield
    finally:
        clip.image.compiled = clip.text.compiled = False


def text_lengths(ids: Tensor) -> Tensor:
    """Positions [R] of token ids [R, L] up to the end-of-text token, on the CPU. The others change
    no feature of a causal tower pooled there if every edit is token-wise or causal."""
    return ids.argmax(-1).cpu() + 1


def _blocks(blocks: nn.ModuleList, tower: str) -> nn.ModuleList:
    return nn.ModuleList(Block(b, f"{tower}.blocks.{i}") for i, b in enumerate(blocks))


def fingerprint(model: Any, tokenizer: Any) -> str:
    """Sixteen hex digits of a hash over all that the features depend on: weights, every setting of
    the modules (activations, heads, epsilons, pooling), pixel statistics, and the tokenizer."""
    digest = hashlib.sha256()
    modules = [
        (name, type(module).__name__, _settings(module)) for name, module in model.named_modules()
    ]
    pixels = sorted(model.visual.preprocess_cfg.items())
    words = _settings(tokenizer), getattr(getattr(tokenizer, "clean_fn", None), "__name__", None)
    vocabulary = sorted(getattr(tokenizer, "encoder", {}))
    merges = list(getattr(tokenizer, "bpe_ranks", {}))
    digest.update(repr((modules, pixels, words, vocabulary, merges)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _settings(thing: Any) -> list[tuple[str, Any]]:
    """Plain values among an object's attributes."""
    plain = (bool, int, float, str, tuple, type(None))
    return sorted(
        (name, repr(value))
        for name, value in vars(thing).items()
        if isinstance(value, plain) and not name.startswith("_") and name != "training"
    )
