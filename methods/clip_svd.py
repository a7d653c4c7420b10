"""CLIP-SVD: the singular values of the frozen matrices, trained."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.method import (
    TRANSFER,
    Classes,
    Clip,
    Edit,
    HarnessError,
    Method,
    Site,
    SiteContext,
    Views,
    adamw,
    cosine_decay,
    published,
)

# of the frozen matrices, as long as their backbone is there
DECOMPOSED: WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor, Tensor]] = WeakKeyDictionary()
FEWER_EPOCHS = ("imagenet", "food101", "sun397", "stanford_cars", "ucf101")


class SingularValues(Edit):
    """y + U ((s' - s) * (V^T x)) of a frozen matrix U diag(s) V^T.

    U, s and V follow from the matrix and are not saved; models of one backbone share them.
    """

    left: Tensor
    right: Tensor
    start: Tensor

    def __init__(self, op: nn.Module, share: float) -> None:
        super().__init__()
        left, values, right = decomposed(op)
        kept = math.ceil(round(share * len(values), 9))
        self.register_buffer("left", left[:, :kept], persistent=False)
        self.register_buffer("right", right[:kept], persistent=False)
        self.register_buffer("start", values[:kept], persistent=False)
        self.values = nn.Parameter(values[:kept].clone())

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        return y + ((self.values - self.start) * (x @ self.right.T)) @ self.left.T


def decomposed(op: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """U [outputs, k], s [k] and V^T [k, inputs] of a frozen matrix, found once."""
    weight = op.weight
    assert isinstance(weight, Tensor)
    known = DECOMPOSED.get(op)
    if known is None or (known[0].dtype, known[0].device) != (weight.dtype, weight.device):
        known = tuple(torch.linalg.svd(weight.detach(), full_matrices=False))
        DECOMPOSED[op] = known
    return known


@dataclass(frozen=True, kw_only=True)
class CLIPSVD(Method):
    """The singular values of the attention and MLP matrices of every block of both towers.

        W = U diag(s) V^T,  W' = U diag(s') V^T

    U, V: frozen; s': learned, s at the start. W: query, key, value, output and both MLP matrices.

    Source: Koleilat et al., Singular Value Few-shot Adaptation of Vision-Language Models (2025);
        code HealthX-Lab/CLIP-SVD, svf_utils/svf_torch.py, main.py and configs.
    Differs: logits take the backbone's own scale; the code fixes 100, which is OpenAI's. The shots
        are the field's. The rate is the code's: a cosine between `lr` and 10^-6 that moves on with
        each step, though everywhere but in few_shot it is made for as many steps as there are
        epochs; so it falls and rises many times. A change of the singular values is added to the
        frozen product, where the code multiplies three matrices anew: the same but for rounding. On
        CUDA bfloat16 autocast, in the code half precision without loss scaling.
    """

    lr: float = published(4e-4, "CLIP-SVD configs/base2new")
    epochs: int = published(20, "CLIP-SVD configs/base2new")
    iterations: int = published(0, "CLIP-SVD main.py, n_iters in few_shot; 0: `epochs` count")
    batch_size: int = published(32, "CLIP-SVD main.py")
    momentum: float = published(0.9, "CLIP-SVD main.py, AdamW's beta_1")
    weight_decay: float = published(1e-2, "CLIP-SVD main.py, AdamW")
    warmup_epochs: int = published(0, "CLIP-SVD main.py")
    own_templates: bool = published(False, "CLIP-SVD main.py, of the datasets; True in few_shot")
    rank: float = published(1.0, "CLIP-SVD main.py, the share of singular values that is trained")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """CLIP-SVD configs/*/*.yaml."""
        if task == "few_shot":
            return {"lr": 5e-4, "iterations": 200 * shots, "own_templates": True}
        if task in TRANSFER:
            return {"lr": 5e-4, "epochs": 10 if task == "cross_dataset" else 1}
        return {"epochs": 10} if dataset in FEWER_EPOCHS else {}

    def prompts(self, classes: Classes) -> list[list[str]]:
        special = {"food101": "a photo of {}, a type of food.",
                   "oxford_pets": "a photo of a {}, a type of pet."}  # fmt: skip
        if self.own_templates:
            return classes.texts(classes.template)
        return classes.texts(special.get(classes.dataset, "a photo of a {}."))

    def views(self) -> Views:
        return Views(drop_last=False)

    def edits(self, clip: Clip, classes: Classes) -> dict[Site, Edit]:
        edits = dict[Site, Edit]()
        for tower in (clip.image, clip.text):
            for i, block in enumerate(tower.blocks):
                first, _, second = block.get_submodule("mlp").children()
                parts = {part: getattr(block.attn, part) for part in "qkvo"}
                for part, op in (parts | {"fc1": first, "fc2": second}).items():
                    edits[f"{tower.name}.blocks.{i}.{part}"] = SingularValues(op, self.rank)
        return edits

    def check(self) -> None:
        super().check()
        if not 0 < self.rank <= 1:
            raise HarnessError(f"{self.name}.rank is a share in (0, 1], not {self.rank}.")

    def steps(self, steps_an_epoch: int) -> int:
        return self.iterations or self.epochs * steps_an_epoch

    def optimiser(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return adamw(self, parameters)

    def learning_rate(self, step: int, steps_an_epoch: int, total: int) -> float:
        half = total if self.iterations else self.epochs
        return cosine_decay(self.lr, step, half, floor=1e-6)
