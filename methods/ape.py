"""APE: a few-shot cache on the channels that tell classes apart, as it is or trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.method import (
    Classes,
    Clip,
    CosineHead,
    HarnessError,
    HeadContext,
    Support,
    class_features,
    published,
)
from harness.methods.tip_adapter import Cached, TipAdapter, grid
from harness.methods.tip_x import correct

CHANNELS = 1024  # of the authors' RN50, by which their numbers of channels are meant
CONFIGS = {  # channels, of ape_t, alpha, most beta, most alpha, most gamma, w_1, epochs of ape_t
    "caltech101": (800, 900, 1.0, 7.0, 7.0, 1.0, 0.5, 30),
    "dtd": (800, 800, 3.0, 7.0, 7.0, 1.0, 0.7, 20),
    "eurosat": (700, 900, 1.0, 30.0, 5.0, 1.5, 0.9, 200),
    "fgvc_aircraft": (800, 900, 5.0, 20.0, 10.0, 1.0, 0.1, 30),
    "food101": (700, 900, 0.8, 7.0, 7.0, 1.0, 0.3, 30),
    "imagenet": (500, 500, 2.0, 7.0, 7.0, 0.5, 0.7, 20),
    "oxford_flowers": (700, 800, 3.0, 7.0, 7.0, 1.0, 0.4, 60),
    "oxford_pets": (800, 800, 2.0, 7.0, 7.0, 1.0, 0.7, 30),
    "stanford_cars": (500, 500, 1.0, 7.0, 7.0, 1.0, 0.7, 30),
    "sun397": (800, 800, 1.0, 10.0, 7.0, 1.0, 0.7, 30),
    "ucf101": (700, 800, 2.0, 10.0, 7.0, 1.5, 0.3, 30),
}
EPS = {  # with up to two shots, and with more
    "food101": (1e-2, 1e-3), "oxford_pets": (2e-3, 2e-3), "ucf101": (2e-3, 2e-3),
}  # fmt: skip
SLOW = ("imagenet", "food101", "oxford_pets", "sun397")  # ape_t's rate is a tenth


class Refined(Cached):
    """A cache on some channels [q] of the features.

    divergence [N]: how far each key's label is from what the texts say of the key.
    """

    channels: Tensor
    divergence: Tensor
    gamma: Tensor

    def __init__(self, images: int, embedding: int, classes: int, channels: int) -> None:
        super().__init__(images, embedding, classes, trained=False)
        self.register_buffer("channels", torch.arange(channels))
        self.register_buffer("divergence", torch.zeros(images))
        self.register_buffer("gamma", torch.zeros(()))

    def refined(self, features: Tensor) -> Tensor:
        """The chosen channels [., q] of features [., E], normalised."""
        return F.normalize(F.normalize(features, dim=-1)[:, self.channels], dim=-1)

    def cached(self, image: Tensor, beta: Tensor | float) -> Tensor:
        return self.affinity(image, beta) @ self.soft_values(self.gamma)

    def affinity(self, image: Tensor, beta: Tensor | float) -> Tensor:
        """exp(-beta (1 - f_q F_q^T)) [B, N]."""
        return (beta * (self.refined(image) @ self.refined(self.keys).T) - beta).exp()

    def soft_values(self, gamma: Tensor | float) -> Tensor:
        """L exp(gamma D) [N, C]."""
        return self.values * (gamma * self.divergence).exp()[:, None]


class Residual(Cached):
    """A cache; its keys and the texts have a learned residual for each class on some channels."""

    channels: Tensor

    def __init__(self, images: int, embedding: int, classes: int, channels: int) -> None:
        super().__init__(images, embedding, classes, trained=False)
        self.register_buffer("channels", torch.arange(channels))
        self.residual = nn.Parameter(torch.zeros(classes, channels))
        self.weights = nn.Parameter(torch.ones(images))

    def forward(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        return self.texts(image, text, given) + self.alpha * self.cached(image, self.beta)

    def texts(self, image: Tensor, text: Tensor, given: HeadContext) -> Tensor:
        """f^ t'_c / tau [B, C]."""
        return given.scale * F.normalize(image, dim=-1) @ self.moved(class_features(text)).T

    def moved(self, rows: Tensor, classes: Tensor | None = None) -> Tensor:
        """Rows [., E] plus the residuals of their classes (one-hot); without, they are one each."""
        residual = self.residual if classes is None else classes @ self.residual
        return rows.index_add(1, self.channels, residual.to(rows))

    def cached(self, image: Tensor, beta: Tensor | float) -> Tensor:
        affinity = F.normalize(image, dim=-1) @ self.moved(self.keys, self.values).T
        return (beta * affinity - beta).exp() @ (self.values * self.weights[:, None])


@dataclass(frozen=True, kw_only=True)
class APE(TipAdapter):
    """Tip-Adapter's cache on the channels that differ most between classes, its labels weighted by
    how well the texts know each shot; nothing is trained.

        logits = cos(f, t) / tau + alpha exp(-beta (1 - f_q F_q^T)) (L exp(gamma D))
        D_n = sum_c L_nc log2 (L_nc / softmax_c(F_q t_q^T)_n)
        q: the channels d with the largest -w_1 S_d + (1 - w_1) Var_c(t_cd)

    f [E]: image feature; t_c [E]: class feature; F [N, E], L [N, C]: keys and one-hot labels as in
    `tip_adapter`; f_q, F_q, t_q: the normalised features' channels q, normalised again; S_d: the
    mean of x_d y_d over texts and keys x, y of different classes. The logarithm's ratio has 1e-6
    added above and below. alpha, beta and gamma are the best of a 20 x 200 x 20 grid on the val
    images, of equal ones the first.

    `ape_t` trains a residual [C, q'] that is added to the channels q' of both texts and keys, and a
    weight for each key, of S_d of the texts alone with w_1 = 0.2, without gamma:

        logits = f^ t'^T / tau + alpha exp(-beta (1 - f^ F'^T)) (L v),  t' = t^ + r, F' = F + L r

    and searches alpha and beta afterwards.

    Source: Zhu et al., Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior
        Refinement, Eq. 3-16 (https://arxiv.org/abs/2304.01195); code yangyangyang127/APE, main.py,
        utils.py and configs.
    Differs: the authors publish numbers of channels for RN50, with 1,024; here the same share of
        the backbone's. Texts are `tip_adapter`'s templates; the code has CuPL's sentences, too.
        `ape_t` is scored after the last epoch, where the code takes the epoch that is best on the
        val images. The search never sees test images, where the code uses them on ImageNet; val has
        min(shots, 4) images a class, where the code has the whole val split. The code keeps the
        criterion of `ape`, of texts alone here, for `ape_t` if it runs after it. That datasets
        without a configuration take DTD's, the field's defaults, is our choice. CLIP's logits take
        the backbone's scale, where the code fixes 100, which is OpenAI's. On CUDA the towers run in
        bfloat16 autocast and the cache in single precision, in the code both in half precision.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ape_t": {"trained": True}}

    weight_decay: float = published(0.1, "APE main.py, AdamW")
    eps: float = published(1e-3, "APE configs")
    trained: bool = published(False, "APE-T")
    alpha: float = published(3.0, "APE configs, init_alpha")
    most_alpha: float = published(7.0, "APE configs, search_scale")
    most_beta: float = published(7.0, "APE configs, search_scale")
    most_gamma: float = published(1.0, "APE configs, search_scale")
    steps_gamma: int = published(20, "APE configs, search_step")
    channels: int = published(800, "APE configs, training_free_feat_num, of 1,024")
    channels_trained: int = published(800, "APE configs, training_feat_num, of 1,024")
    overlap: float = published(0.7, "APE configs, w_training_free, w_1")
    overlap_trained: float = published(0.2, "APE configs, w_training, w_1")

    @classmethod
    def recipe(cls, task: str, dataset: str, shots: int) -> Mapping[str, Any]:
        """APE configs/*.yaml."""
        names = ("channels", "channels_trained", "alpha", "most_beta", "most_alpha", "most_gamma",
                 "overlap", "epochs")  # fmt: skip
        own = dict(zip(names, CONFIGS.get(dataset, CONFIGS["dtd"]), strict=True))
        few, many = EPS.get(dataset, (1e-3, 1e-3))
        return own | {
            "shots": shots,
            "lr": 1e-4 if dataset in SLOW else 1e-3,
            "eps": few if shots <= 2 else many,
            "steps_gamma": 5 if dataset == "imagenet" else 20,
        }

    def head(self, clip: Clip, classes: Classes) -> nn.Module:
        asked = self.channels_trained if self.trained else self.channels
        channels, count = max(1, round(asked * clip.embedding / CHANNELS)), len(classes.names)
        kind = Residual if self.trained else Refined
        return kind(count * self.shots, clip.embedding, count, channels)

    @torch.no_grad()
    def prepare(self, head: nn.Module, support: Support) -> None:
        super().prepare(head, support)
        assert isinstance(head, (Refined, Residual))
        text, count = class_features(support.text), len(support.labels)
        keys, values = head.keys[:count], head.values[:count]
        share = self.overlap_trained if self.trained else self.overlap
        of_class = torch.ones(len(text)).to(text)[:, None]  # how many features a class has
        sums = text
        if not self.trained:
            sums, of_class = sums + values.T @ keys, of_class + values.sum(0)[:, None]
        pairs = of_class.sum() ** 2 - of_class.square().sum()
        similarity = (sums.sum(0).square() - sums.square().sum(0)) / pairs  # S [E]
        criterion = (1 - share) * text.var(0) - share * similarity
        head.channels.copy_(criterion.topk(len(head.channels)).indices)
        if isinstance(head, Refined):
            said = (head.refined(keys) @ head.refined(text).T).softmax(-1)
            ratio = (values + 1e-6) / (said + 1e-6)
            head.divergence.zero_()
            head.divergence[:count] = (values * ratio.log2()).sum(-1)

    @torch.no_grad()
    def finish(self, head: nn.Module, support: Support) -> None:
        (image, labels), text, given = support.val(), support.text, HeadContext(support.scale)
        betas, alphas = grid(self.most_beta, 200), grid(self.most_alpha, 20)
        if isinstance(head, Residual):
            gammas = [0.0]
            frozen = head.texts(image, text, given)
            found = [correct(frozen, head.cached(image, b), alphas, labels)[:, None] for b in betas]
        else:
            assert isinstance(head, Refined)
            gammas = [i * self.most_gamma / self.steps_gamma for i in range(self.steps_gamma)]
            frozen, soft = CosineHead()(image, text, given), [head.soft_values(g) for g in gammas]
            affinities = (head.affinity(image, beta) for beta in betas)
            found = [
                torch.stack([correct(frozen, a @ each, alphas, labels) for each in soft], 1)
                for a in affinities
            ]
        right = torch.stack(found)  # [betas, alphas, gammas]
        pair, gamma = divmod(int(right.flatten().argmax()), len(gammas))
        beta, alpha = divmod(pair, len(alphas))
        head.alpha.fill_(alphas[alpha])
        head.beta.fill_(betas[beta])
        if isinstance(head, Refined):
            head.gamma.fill_(gammas[gamma])

    def check(self) -> None:
        super().check()
        if max(self.channels, self.channels_trained) > CHANNELS:
            raise HarnessError(f"{self.name} takes at most {CHANNELS:,} channels, of {CHANNELS:,}.")
        if max(self.overlap, self.overlap_trained) > 1:
            raise HarnessError(f"{self.name} needs overlap and overlap_trained of at most 1.")
