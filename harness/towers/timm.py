"""timm's vision transformers inside of open_clip models as towers."""

import re
from collections import OrderedDict
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.layers import Attention as TimmAttention
from timm.layers import Mlp
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from harness.towers.shared_prefix import Mask
from harness.towers.tower import Attention, Block, EditCall, Site, Sited, Tower, unedited


class OpenedBlock(Block):
    """timm's block with the sites and the names of open_clip's."""

    def __init__(self, block: Any, site: Site) -> None:
        Sited.__init__(self, site)
        self.ln1, self.ln2 = block.norm1, block.norm2
        packed = block.attn
        self.attn = Attention(
            packed.qkv.weight, packed.qkv.bias, packed.proj, packed.num_heads, site
        )
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=block.mlp.fc1, gelu=block.mlp.act, c_proj=block.mlp.fc2)
        )
        self.scale1, self.scale2 = block.ls1, block.ls2


class PartsBlock(Sited):
    """A block of EVA02 or PE: norms, attention and MLP as wholes, since rotations of the positions
    and gates stand between their matrices."""

    points = ("ln1", "attn", "ln2", "mlp")

    def __init__(self, block: Any, site: Site, trunk: Eva) -> None:
        super().__init__(site)
        self.ln1, self.ln2 = block.norm1, block.norm2
        self.attn, self.mlp = block.attn, block.mlp
        self.gamma1, self.gamma2 = block.gamma_1, block.gamma_2
        self._trunk = (trunk,)  # in a tuple: not a submodule

    def forward(self, x: Tensor, mask: Mask, edit: EditCall) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        h = self._shown(edit, "ln1", self.ln1, x, self.ln1(x), x)
        left = self.attn(h, rope=_rotations(self._trunk[0]))
        h = self._shown(edit, "attn", self.attn, h, left, x)
        y = x + (h if self.gamma1 is None else self.gamma1 * h)
        h = self._shown(edit, "ln2", self.ln2, y, self.ln2(y), y)
        h = self._shown(edit, "mlp", self.mlp, h, self.mlp(h), y)
        y = y + (h if self.gamma2 is None else self.gamma2 * h)
        return y if edit is unedited else edit(self.site, self, x, y)


class TimmTower(Tower):
    """A vision transformer of timm, in evaluation: it has dropouts of its own.

    With rotations of the positions no tokens can be added.
    """

    name = "image"
    stem_names = tuple(f"trunk.{part}" for part in (
        "patch_embed.", "cls_token", "reg_token", "pos_embed", "norm_pre."))  # fmt: skip
    block_names = ("trunk.blocks.",)

    def __init__(self, visual: TimmModel) -> None:
        super().__init__()
        self.visual = visual
        trunk = visual.trunk
        self.width = trunk.embed_dim
        self.length = trunk.patch_embed.num_patches + trunk.num_prefix_tokens
        self.rotates = getattr(trunk, "rope", None) is not None
        self.takes_tokens = not self.rotates
        self.first_token = trunk.num_prefix_tokens == 1 and trunk.cls_token is not None
        sites = [f"image.blocks.{i}" for i in range(len(trunk.blocks))]
        if isinstance(trunk, Eva):
            made = [PartsBlock(b, s, trunk) for b, s in zip(trunk.blocks, sites, strict=True)]
            self.blocks = nn.ModuleList(made)
        else:
            opened = [OpenedBlock(b, s) for b, s in zip(trunk.blocks, sites, strict=True)]
            self.blocks = nn.ModuleList(opened)

    def train(self, mode: bool = True) -> "TimmTower":
        return super().train(False)

    def own_parameters(self) -> dict[str, tuple[str, nn.Parameter]]:
        """Those of a tower; norms are named so that they are found where CLIP's are."""
        return {
            re.sub(r"\b(\w*norm\w*)\b", r"ln_\1", name): found
            for name, found in super().own_parameters().items()
        }

    def stem(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        trunk = self.visual.trunk
        x = trunk._pos_embed(trunk.patch_embed(inputs))  # [B, L, D]
        x = x[0] if isinstance(x, tuple) else x
        if self.takes_tokens:
            x = edit("image.tokens", trunk, x, x)
        return trunk.norm_pre(x)

    def head(self, x: Tensor, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        trunk = self.visual.trunk
        pooled = trunk.forward_head(trunk.norm(x))
        return edit("image.features", self.visual, pooled, self.visual.head(pooled), x)


def opens(visual: nn.Module) -> bool:
    """Whether the blocks of an open_clip image model are timm's in a form that is known."""
    trunk = visual.trunk if isinstance(visual, TimmModel) else None
    if type(trunk) is VisionTransformer:
        return all(map(_plain, trunk.blocks))
    return (
        type(trunk) is Eva
        and all(type(block) is EvaBlock for block in trunk.blocks)
        and not getattr(trunk, "rope_mixed", False)
    )


def _plain(block: nn.Module) -> bool:
    """Whether a block is what `OpenedBlock` writes out."""
    if type(block) is not TimmBlock:
        return False
    attn, mlp = block.attn, block.mlp
    within = (attn.q_norm, attn.k_norm, attn.norm, mlp.norm) if type(mlp) is Mlp else ()
    return (
        type(attn) is TimmAttention
        and bool(within)
        and all(isinstance(each, nn.Identity) for each in within)
        and isinstance(mlp.fc1, nn.Linear)
        and attn.gate is None
        and attn.qkv.bias is not None
        and attn.attn_dim == attn.qkv.in_features
    )


def _rotations(trunk: Any) -> torch.Tensor | None:
    """The rotary embedding of the positions of the trunk's grid of patches."""
    if trunk.rope is None:
        return None
    if hasattr(trunk.rope, "feat_shape"):
        return trunk.rope.get_embed()
    return trunk.rope.get_embed(shape=trunk.patch_embed.grid_size)
