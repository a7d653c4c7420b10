"""Two frozen towers over an open_clip model, with every point where a method may step in.

A tower is stem -> blocks -> head. At each site it calls `edit(site, op, x, y)`, where x entered the
frozen module `op` and y left it; what that returns travels on. `unedited` returns y.

Shapes: B images, R text rows, L tokens, D width, E embedding, H heads.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import transformer as oc
from torch import Tensor, nn

from harness.errors import HarnessError

Site = str  # "image.blocks.11.attn", "text.tokens", "image.features": tower, optional block, point
EditCall = Callable[[Site, nn.Module, Tensor, Tensor], Tensor]

POINTS = ("ln1", "attn", "q", "k", "v", "o", "ln2", "mlp", "fc1", "act", "fc2")


def unedited(site: Site, op: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The frozen tower: what left the module travels on."""
    return y


class Projection(nn.Module):
    """q, k or v of an attention, as a linear layer over its part of the packed weights."""

    def __init__(self, attention: "Attention", part: int) -> None:
        super().__init__()
        self._packed = (attention,)  # in a tuple: not a submodule, and no second copy of weights
        self.part = part

    @property
    def weight(self) -> Tensor:
        """[D, D]."""
        return self._packed[0].weight.chunk(3)[self.part]

    @property
    def bias(self) -> Tensor:
        """[D]."""
        return self._packed[0].bias.chunk(3)[self.part]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Branches:
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


Mask = Tensor | Branches | None  # which positions an attention sees: additive [L, L]


class Sited(nn.Module):
    """A part of a tower with points of its own: `image.blocks.3` has `image.blocks.3.ln1`."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    def _shown(self, edit: EditCall, point: str, op: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What travels on; without edits the site is not looked at, so that all blocks are one
        program to torch.compile."""
        return y if edit is unedited else edit(f"{self.site}.{point}", op, x, y)


class Attention(Sited):
    """open_clip's nn.MultiheadAttention with q, k, v and o as sites.

    The projections stay packed and tokens [B, L, D], so that each projection is one product of
    matrices. nn.MultiheadAttention turns tokens to (L, B, D), where the packed one is L small
    products: other last bits, and about a tenth more time for a tower.
    """

    def __init__(self, attention: nn.MultiheadAttention, site: Site) -> None:
        super().__init__(site)
        self.heads = attention.num_heads
        self.weight, self.bias = attention.in_proj_weight, attention.in_proj_bias
        self.q, self.k, self.v = (Projection(self, i) for i in range(3))
        self.o = attention.out_proj

    def forward(self, x: Tensor, mask: Mask, edit: EditCall) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        packed = F.linear(x, self.weight, self.bias)  # [B, L, 3D]
        heads = []
        for op, name, y in zip((self.q, self.k, self.v), "qkv", packed.chunk(3, -1), strict=True):
            y = self._shown(edit, name, op, x, y)
            heads.append(y.unflatten(-1, (self.heads, -1)).transpose(1, 2))  # [B, H, L, D/H]
        q, k, v = heads
        if isinstance(mask, Branches):
            y = mask.attend(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).flatten(2)  # [B, L, D]
        return self._shown(edit, "o", self.o, y, self.o(y))


class Block(Sited):
    """One residual attention block: open_clip's modules, its sums written out to open the sites."""

    def __init__(self, block: oc.ResidualAttentionBlock, site: Site) -> None:
        super().__init__(site)
        self.ln1, self.ln2 = block.ln_1, block.ln_2
        self.attn = Attention(block.attn, site)
        self.mlp = block.mlp
        self.scale1, self.scale2 = block.ls_1, block.ls_2

    def forward(self, x: Tensor, mask: Mask, edit: EditCall) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        h = self._shown(edit, "ln1", self.ln1, x, self.ln1(x))
        h = self._shown(edit, "attn", self.attn, h, self.attn(h, mask, edit))
        y = x + self.scale1(h)
        h = self._shown(edit, "ln2", self.ln2, y, self.ln2(y))
        h = self._shown(edit, "mlp", self.mlp, h, self._mlp(h, edit))
        y = y + self.scale2(h)
        return y if edit is unedited else edit(self.site, self, x, y)

    def _mlp(self, x: Tensor, edit: EditCall) -> Tensor:
        for op, point in zip(self.mlp, ("fc1", "act", "fc2"), strict=True):
            x = self._shown(edit, point, op, x, op(x))
        return x


class Tower(nn.Module):
    """stem -> blocks -> head; `width` is D, `length` the number of positions."""

    name: str
    width: int
    length: int
    blocks: nn.ModuleList
    compiled = False  # whether blocks without edits run through torch.compile

    def stem(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        """Images [B, 3, S, S] or token ids [R, L] -> tokens [., L, D] that enter block 0."""
        raise NotImplementedError

    def head(self, x: Tensor, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        """Tokens [., L, D] that left the last block -> features [., E], not normalised."""
        raise NotImplementedError

    def mask(self, length: int) -> Tensor | None:
        """The additive attention mask [L, L], or None."""
        return None

    def block(
        self, index: int, x: Tensor, edit: EditCall = unedited, branches: Branches | None = None
    ) -> Tensor:
        """Block `index` (from 0) on tokens [., L, D], or on those of rows that begin alike."""
        block, mask = self.blocks[index], branches or self.mask(x.shape[1])
        if edit is unedited and self.compiled:
            return _compiled()(block, x, mask)
        return block(x, mask, edit)

    def forward(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        """Features [., E], not normalised: open_clip's encode_image or encode_text."""
        x = self.stem(inputs, edit)
        for index in range(len(self.blocks)):
            x = self.block(index, x, edit)
        return self.head(x, inputs, edit)

    def sites(self) -> list[Site]:
        """Every site of this tower, in the order in which they run."""
        blocks = [f"{self.name}.blocks.{i}" for i in range(len(self.blocks))]
        points = [f"{block}.{point}" for block in blocks for point in POINTS]
        return [f"{self.name}.tokens", *blocks, *points, f"{self.name}.features"]


class ImageTower(Tower):
    """open_clip's VisionTransformer."""

    name = "image"

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
        return edit("image.features", self.visual, pooled, y)


class TextTower(Tower):
    """open_clip's causal TextTransformer, pooled at the end-of-text token (the largest id)."""

    name = "text"

    def __init__(self, text: oc.TextTransformer) -> None:
        super().__init__()
        self.text = text
        self.width = text.width
        self.length = text.context_length
        self.blocks = _blocks(text.transformer.resblocks, self.name)

    def mask(self, length: int) -> Tensor:
        return self.text.attn_mask[:length, :length]

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


@functools.cache
def _compiled() -> Callable[[nn.Module, Tensor, Mask], Tensor]:
    return torch.compile(_plain)


def _plain(block: nn.Module, x: Tensor, mask: Mask) -> Tensor:
    return block(x, mask, unedited)


def needed(ids: Tensor) -> Tensor:
    """Positions [R] of token ids [R, L] up to the end-of-text token, on the CPU. The others change
    no feature of a causal tower pooled there if every edit is token-wise or causal."""
    return ids.argmax(-1).cpu() + 1


def _blocks(blocks: nn.ModuleList, tower: str) -> nn.ModuleList:
    return nn.ModuleList(Block(b, f"{tower}.blocks.{i}") for i, b in enumerate(blocks))


def fingerprint(model: Any, tokenizer: Any) -> str:
    """Sixteen hex digits of a hash over all that the features depend on: weights, activation,
    heads, pixel statistics and vocabulary."""
    digest = hashlib.sha256()
    blocks = (model.visual.transformer.resblocks[0], model.text.transformer.resblocks[0])
    shape = [(type(b.mlp.gelu).__name__, b.attn.num_heads) for b in blocks]
    pixels = model.visual.preprocess_cfg
    vocabulary = sorted(getattr(tokenizer, "encoder", {}))
    merges = list(getattr(tokenizer, "bpe_ranks", {}))
    digest.update(repr((shape, sorted(pixels.items()), vocabulary, merges)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
