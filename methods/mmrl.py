"""MMRL: multi-modal representation learning."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    TRANSFER,
    Classes,
    Clip,
    CosineHead,
    Edit,
    HarnessError,
    HeadContext,
    Method,
    Output,
    Site,
    SiteContext,
    Tower,
    Views,
    adamw,
    blocks_from,
    class_features,
    published,
)

CONFIG = "MMRL trainers/config.py"
WEIGHTS = {  # lambda, by dataset
    "stanford_cars": 7.0, "fgvc_aircraft": 6.0, "sun397": 6.0, "dtd": 6.0, "food101": 5.0,
    "oxford_flowers": 4.0, "ucf101": 3.0, "imagenet": 0.5, "caltech101": 0.5, "oxford_pets": 0.2,
    "eurosat": 0.01,
}  # fmt: skip


class Space(nn.Module):
    """The vectors [K, D_r] that both towers' tokens are maps of."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(0.02 * torch.randn(tokens, width))


class Inserted(Edit):
    """Tokens after the first: inserted before the first of the changed blocks; before the others
    mixed with what the block below has made of them."""

    def __init__(self, space: Space, mapping: nn.Module, share: float, first: bool) -> None:
        super().__init__()
        self.space, self.mapping = space, mapping
        self.share, self.first = share, first

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        tokens = self.mapping(self.space.vectors).to(y.dtype).expand(len(y), -1, -1)  # [R, K, D]
        before, end = y[:, :1], 1
        if not self.first:
            end += tokens.shape[1]
            if self.share < 1:
                tokens = self.share * tokens + (1 - self.share) * y[:, 1:end]
        return torch.cat([before, tokens, y[:, end:]], dim=1)  # [R, L + K, D] of the first


class Removed(Edit):
    """Takes the tokens out of a text again, so that its end is where it was."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        return torch.cat([y[:, :1], y[:, 1 + self.tokens :]], dim=1)  # [R, L, D]


class Projection(nn.Module):
    """From the image tower's width to the embedding, beside CLIP's frozen projection `proj`."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, embedding) / width**0.5)

    def forward(self, x: Tensor, proj: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        return x @ self.weight


class SecondFeature(Edit):
    """Beside the image feature another, of the mean of the inserted tokens: [B, 2, E]."""

    def __init__(self, tokens: int, projection: nn.Module) -> None:
        super().__init__()
        self.tokens, self.projection = tokens, projection

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        normal = at.op.get_submodule("ln_post")(at.stream[:, 1 : 1 + self.tokens])  # [B, K, D]
        second = self.projection(normal.mean(1), at.op.get_parameter("proj"))
        return torch.stack([y, second.to(y.dtype)], dim=1)


class Fused(CosineHead):
    """A mean of the logits of both image features; those of the first alone where classes or images
    are others than the fitted."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def each(self, image: Tensor, text: Tensor, given: HeadContext) -> tuple[Tensor, Tensor]:
        """l and l_r [B, C] of images [B, 2, E]."""
        first, second = (super(Fused, self).forward(f, text, given) for f in image.unbind(1))
        return first, second

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        first, second = self.each(image, text, given)
        if not given.fitted or given.transferred:
            return first
        return self.share * first + (1 - self.share) * second


@dataclass(frozen=True, kw_only=True)
class MMRL(Method):
    """Tokens of a learned space, shared by both towers, beside the texts' and images' own in the
    later blocks, and a second image feature of them.

        before block j = 6 .. 12:  tokens 2 .. K+1 of an image are A_j(R), of a text B_j(R)
        l = cos(f, t_c) / tau,  l_r = cos(f_r, t_c) / tau,  f_r = P_r^T mean_k LN(r_k)
        L = a CE(l) + (1 - a) CE(l_r) + w (1 - mean cos(f, f0)) + w (1 - mean cos(t, t0))

    R [K, D_r]: learned, from N(0, 0.02^2), K = 5; A_j, B_j: learned linear maps with bias, equal at
    the start for all j of a tower; before block 6 the tokens are inserted behind the first one,
    before later blocks they take the place of what the block below has made of them. f [E], t_c
    [E]: image and class feature; r_k: the image's inserted tokens after the last block; LN: the
    frozen last LayerNorm; P_r [D, E]: learned, from N(0, 1/D); f0, t0: frozen features of the same
    view and of the dataset's template, which is the learned texts' prompt, too; a = 0.7. Images of
    the fitted dataset and classes are scored by a l + (1 - a) l_r, all others by l.

    Source: Guo and Gu, MMRL: Multi-Modal Representation Learning for Vision-Language Models,
        section 3 (https://arxiv.org/abs/2503.08497); code yunncheng/MMRL, trainers/mmrl.py,
        clip/model_mmrl.py, trainers/config.py, configs/trainers/MMRL and scripts/mmrl.
    Differs: the logits are scaled by CLIP's own temperature, where the code writes 100, which it is
        in OpenAI's weights. P_r starts at random as in the code, which loads CLIP's weights without
        a value for it. On datasets beside the code's eleven, w is its configuration's. bfloat16
        autocast on CUDA with normalised features and logits in single precision, where the code has
        half-precision autocast with loss scaling.
    """

    frozen_images: ClassVar[bool | Literal["training"]] = "training"

    lr: float = published(0.001, "MMRL configs/trainers/MMRL/vit_b16.yaml")
    epochs: int = published(10, "MMRL configs/trainers/MMRL/vit_b16.yaml")
    batch_size: int = published(4, "MMRL configs/trainers/MMRL/vit_b16.yaml")
    momentum: float = published(0.9, "Dassl defaults, config/defaults.py, AdamW's beta_1")
    tokens: int = published(5, "MMRL configs/trainers/MMRL/vit_b16.yaml, K")
    width: int = published(512, "MMRL configs/trainers/MMRL/vit_b16.yaml, D_r; 2048 on EuroSAT")
    first_block: int = published(6, "MMRL configs/trainers/MMRL/vit_b16.yaml, counted from 1")
    share: float = published(0.7, "MMRL configs/trainers/MMRL/vit_b16.yaml, a")
    weight: float = published(1.0, "MMRL configs/trainers/MMRL, w; by dataset in " + CONFIG)

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """MMRL trainers/config.py (the weight, by dataset), configs/trainers/MMRL (the rest) and
        scripts/mmrl/cross_datasets_train.sh (the weight in transfers)."""
        if task in TRANSFER:
            return {"epochs": 1, "batch_size": 32, "warmup_epochs": 0, "weight": 0.2}
        few = task == "few_shot"
        own = {"weight": WEIGHTS.get(dataset, 0.5 if few else 1.0)}
        if dataset == "eurosat":
            own["width"] = 2048
        if dataset == "imagenet":
            return own | {"epochs": 5, "batch_size": 32}
        return own | ({"epochs": 50, "batch_size": 32} if few else {})

    def views(self) -> Views:
        return Views(scale=(0.5, 1.0))

    def prompts(self, classes: Classes) -> list[list[str]]:
        return classes.texts(classes.template)

    def references(self, classes: Classes) -> Mapping[str, list[list[str]]]:
        return {"template": classes.texts(classes.template)}

    def mappings(self, tower: Tower, count: int) -> list[nn.Module]:
        """A_j or B_j, for so many blocks."""
        start = nn.Linear(self.width, tower.width)
        return [copy.deepcopy(start) for _ in range(count)]

    def mixing(self) -> float:
        """How much of a block's tokens is new before all but the first of the blocks."""
        return 1.0

    def projection(self, clip: Clip) -> nn.Module:
        """P_r: a module (x [B, D], CLIP's projection [D, E]) -> [B, E]."""
        return Projection(clip.image.width, clip.embedding)

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        clip.check_class_token(self.name)
        edits: dict[Site, Edit] = {}
        space = Space(self.tokens, self.width)
        for tower in (clip.image, clip.text):
            blocks = blocks_from(tower, self.first_block)
            mappings = self.mappings(tower, len(blocks))
            for block, mapping in zip(blocks, mappings, strict=True):
                edits[f"{tower.name}.blocks.{block - 1}"] = Inserted(
                    space, mapping, self.mixing(), block == blocks[0]
                )
        edits[f"text.blocks.{len(clip.text.blocks) - 1}"] = Removed(self.tokens)
        return edits | {"image.features": SecondFeature(self.tokens, self.projection(clip))}

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        return Fused(self.share)

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return adamw(self, parameters)

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        head, given = output.head, output.given
        assert isinstance(head, Fused)
        assert given.image is not None
        first, second = head.each(output.image, output.text, given)
        image = F.cosine_similarity(output.image[:, 0], given.image, dim=-1).mean()
        before = class_features(given.references["template"])
        text = F.cosine_similarity(class_features(output.text), before, dim=-1).mean()
        return (
            self.share * F.cross_entropy(first, labels)
            + (1 - self.share) * F.cross_entropy(second, labels)
            + self.weight * ((1 - image) + (1 - text))
            + output.auxiliary
        )

    def check(self) -> None:
        super().check()
        if self.first_block < 2 or self.share > 1:
            raise HarnessError(
                f"{self.name} needs first_block >= 2 and share <= 1, not {self.first_block} and "
                f"{self.share}."
            )
