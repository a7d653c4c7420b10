"""Frozen towers over an open_clip model, with every point where a method may step in.

A tower is stem -> blocks -> head. At each site it calls `edit(site, op, x, y, stream)`, where x
entered the frozen module `op` and y left it; what that returns travels on. `unedited` returns y.
`stream` is the residual stream beside a point of a block (`ln1`, `attn`, `ln2`, `mlp`), and at
`image.features` what left the last block; elsewhere it is None.

Shapes: B images, R text rows, L tokens, D width, E embedding, H heads.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from open_clip import transformer as oc
from torch import Tensor, nn
from torch.func import functional_call

from harness.towers.shared_prefix import Mask, SharedPrefix

Site = str  # "image.blocks.11.attn", "text.tokens", "image.features": tower, optional block, point
POINTS = ("ln1", "attn", "q", "k", "v", "o", "ln2", "mlp", "fc1", "act", "fc2")


class EditCall(Protocol):
    """What a tower calls at its sites."""

    def __call__(
        self, site: Site, op: nn.Module, x: Tensor, y: Tensor, stream: Tensor | None = None, /
    ) -> Tensor: ...


def unedited(
    site: Site, op: nn.Module, x: Tensor, y: Tensor, stream: Tensor | None = None
) -> Tensor:
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


class Sited(nn.Module):
    """A part of a tower with points of its own: `image.blocks.3` has `image.blocks.3.ln1`."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    def _shown(
        self,
        edit: EditCall,
        point: str,
        op: nn.Module,
        x: Tensor,
        y: Tensor,
        stream: Tensor | None = None,
    ) -> Tensor:
        """What travels on; without edits the site is not looked at, so that all blocks are one
        program to torch.compile."""
        return y if edit is unedited else edit(f"{self.site}.{point}", op, x, y, stream)


class Attention(Sited):
    """An attention whose weights of q, k and v are packed, with q, k, v and o as sites.

    The projections stay packed and tokens [B, L, D], so that each projection is one product of
    matrices. nn.MultiheadAttention turns tokens to (L, B, D), where the packed one is L small
    products: other last bits, and about a tenth more time for a tower.
    """

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter, o: nn.Linear, heads: int, site: Site
    ) -> None:
        super().__init__(site)
        self.heads = heads
        self.weight, self.bias = weight, bias
        self.q, self.k, self.v = (Projection(self, i) for i in range(3))
        self.o = o

    def forward(self, x: Tensor, mask: Mask, edit: EditCall) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        packed = F.linear(x, self.weight, self.bias)  # [B, L, 3D]
        heads = []
        for op, name, y in zip((self.q, self.k, self.v), "qkv", packed.chunk(3, -1), strict=True):
            y = self._shown(edit, name, op, x, y)
            heads.append(y.unflatten(-1, (self.heads, -1)).transpose(1, 2))  # [B, H, L, D/H]
        q, k, v = heads
        if isinstance(mask, SharedPrefix):
            y = mask.attend(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).flatten(2)  # [B, L, D]
        return self._shown(edit, "o", self.o, y, self.o(y))


class Block(Sited):
    """One residual attention block: open_clip's modules, its sums written out to open the sites."""

    points: tuple[str, ...] = POINTS

    def __init__(self, block: oc.ResidualAttentionBlock, site: Site) -> None:
        super().__init__(site)
        self.ln1, self.ln2 = block.ln_1, block.ln_2
        packed = block.attn
        self.attn = Attention(
            packed.in_proj_weight, packed.in_proj_bias, packed.out_proj, packed.num_heads, site
        )
        self.mlp = block.mlp
        self.scale1, self.scale2 = block.ls_1, block.ls_2

    def forward(self, x: Tensor, mask: Mask, edit: EditCall) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        h = self._shown(edit, "ln1", self.ln1, x, self.ln1(x), x)
        h = self._shown(edit, "attn", self.attn, h, self.attn(h, mask, edit), x)
        y = x + self.scale1(h)
        h = self._shown(edit, "ln2", self.ln2, y, self.ln2(y), y)
        h = self._shown(edit, "mlp", self.mlp, h, self._mlp(h, edit), y)
        y = y + self.scale2(h)
        return y if edit is unedited else edit(self.site, self, x, y)

    def _mlp(self, x: Tensor, edit: EditCall) -> Tensor:
        for op, point in zip(self.mlp, ("fc1", "act", "fc2"), strict=True):
            x = self._shown(edit, point, op, x, op(x))
        return x


class Tower(nn.Module):
    """stem -> blocks -> head; `width` is D, `length` the number of positions.

    Without blocks the stem gives the features [., E] themselves.
    """

    name: str
    width: int
    length: int
    blocks: nn.ModuleList
    stem_names: tuple[str, ...]  # what the parameters outside of the blocks that it has begin with
    block_names: tuple[str, ...] = ("transformer.",)  # and those that its blocks hold, too
    takes_tokens = True  # whether it has the site `tokens`
    class_token = False  # whether the feature is LayerNorm and projection of the first token alone
    first_token = False  # whether a class token, and no other, comes before the patches
    compiled = False  # whether blocks without edits run through torch.compile

    def stem(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        """Images [B, 3, S, S] or token ids [R, L] -> tokens [., L, D] that enter block 0."""
        raise NotImplementedError

    def head(self, x: Tensor, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        """Tokens [., L, D] that left the last block -> features [., E], not normalised."""
        raise NotImplementedError

    def mask(self, length: int, inputs: Tensor | None = None) -> Tensor | None:
        """The additive attention mask [L, L], or [., 1, L, L] where it depends on the inputs, or
        None."""
        return None

    def block(
        self,
        index: int,
        x: Tensor,
        edit: EditCall = unedited,
        branches: SharedPrefix | None = None,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """Block `index` (from 0) on tokens [., L, D] of `inputs`, or on those of rows that begin
        alike."""
        block, mask = self.blocks[index], branches or self.mask(x.shape[1], inputs)
        if edit is unedited and self.compiled:
            return _compiled()(block, x, mask)
        return block(x, mask, edit)

    def forward(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        """Features [., E], not normalised: open_clip's encode_image or encode_text."""
        x = self.stem(inputs, edit)
        for index in range(len(self.blocks)):
            x = self.block(index, x, edit, inputs=inputs)
        return self.head(x, inputs, edit)

    def own_parameters(self) -> dict[str, tuple[str, nn.Parameter]]:
        """Every parameter by a name that begins with its part (`stem`, `blocks.3`, `head`), beside
        the name that it has in this module."""
        found = dict[str, tuple[str, nn.Parameter]]()
        for name, parameter in self.named_parameters(remove_duplicate=False):
            rest = name.partition(".")[2]  # without `blocks` or open_clip's module
            if name.startswith("blocks."):
                found[name] = name, parameter
            elif not rest.startswith(self.block_names):
                part = "stem" if rest.startswith(self.stem_names) else "head"
                found[f"{part}.{rest}"] = name, parameter
        return found

    def call(self, part: str, own: Mapping[str, Tensor], *arguments: Any) -> Tensor:
        """`stem`, `block` or `head` with other tensors in the place of some parameters, by the
        names that these have in this module."""
        if not own:
            return getattr(self, part)(*arguments)
        named = {f"tower.{name}": tensor for name, tensor in own.items()}
        return functional_call(_Part(self, part), named, arguments, tie_weights=False)

    def sites(self) -> list[Site]:
        """Every site of this tower, in the order in which they run."""
        tokens = [f"{self.name}.tokens"] if self.takes_tokens else []
        blocks = [f"{self.name}.blocks.{i}" for i in range(len(self.blocks))]
        points = [
            f"{site}.{point}"
            for i, site in enumerate(blocks)
            for point in getattr(self.blocks[i], "points", ())
        ]
        return [*tokens, *blocks, *points, f"{self.name}.features"]


class _Part(nn.Module):
    """A method of a tower, as the module that `functional_call` asks for."""

    def __init__(self, tower: Tower, part: str) -> None:
        super().__init__()
        self.tower, self.part = tower, part

    def forward(self, *arguments: Any) -> Tensor:
        return getattr(self.tower, self.part)(*arguments)


@functools.cache
def _compiled() -> Callable[[nn.Module, Tensor, Mask], Tensor]:
    return torch.compile(_plain)


def _plain(block: nn.Module, x: Tensor, mask: Mask) -> Tensor:
    return block(x, mask, unedited)
