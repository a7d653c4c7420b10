"""open_clip's image models as towers, and an image and a text tower as a frozen `Clip`."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from open_clip import transformer as oc
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.towers import timm
from harness.towers.hf import text_tower
from harness.towers.pixels import Pixels
from harness.towers.tower import Block, EditCall, Site, Tower, unedited


class ImageTower(Tower):
    """open_clip's VisionTransformer."""

    name = "image"
    stem_names = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
    first_token = True

    def __init__(self, visual: oc.VisionTransformer) -> None:
        super().__init__()
        self.visual = visual
        self.width = visual.conv1.out_channels
        self.length = visual.positional_embedding.shape[0]
        self.blocks = nn.ModuleList(
            Block(b, f"image.blocks.{i}") for i, b in enumerate(visual.transformer.resblocks)
        )
        self.class_token = (
            visual.pool_type == "tok" and visual.attn_pool is None and visual.proj is not None
        )

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


class FeaturesTower(Tower):
    """An image tower whose insides are not opened: its features alone can be edited.

    It stays in evaluation: BatchNorm would mix the images of a batch else.
    """

    name = "image"
    stem_names = ("",)
    block_names = ()
    takes_tokens = False

    def __init__(self, visual: nn.Module, embedding: int) -> None:
        super().__init__()
        self.visual = visual
        self.width, self.length = embedding, 1
        self.blocks = nn.ModuleList()

    def train(self, mode: bool = True) -> "FeaturesTower":
        return super().train(False)

    def stem(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        """Images [B, 3, H, W] -> features [B, E]."""
        return self.visual(inputs)

    def head(self, x: Tensor, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        return edit("image.features", self.visual, x, x)


def image_tower(visual: nn.Module, embedding: int) -> Tower:
    """The tower with as many sites as are known of an open_clip image model."""
    plain = isinstance(visual, oc.VisionTransformer) and all(
        type(block) is oc.ResidualAttentionBlock for block in visual.transformer.resblocks
    )
    if plain:
        return ImageTower(visual)
    if timm.opens(visual):
        return timm.TimmTower(visual)
    return FeaturesTower(visual, embedding)


class Clip(nn.Module):
    """A frozen two-tower model: `image`, `text`, `logit_scale`, the tokenizer and its pixels.

    `pixels` says what images it takes; `fingerprint` is a hash of its weights, given as `known`
    where they are not there; `kind` is that of its device, or of the one that a plan is made for.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, known: str = "") -> None:
        super().__init__()
        self.embedding = int(getattr(model.visual, "output_dim", model.text.output_dim))
        self.image = image_tower(model.visual, self.embedding)
        self.text = text_tower(model.text, tokenizer.context_length, name)
        self.logit_scale: Tensor = model.logit_scale
        self.tokenizer = tokenizer
        self.name = name
        self.pixels = Pixels.of(model.visual, name)
        if self.text.takes_tokens:
            self.text.takes_tokens = takes_context(tokenizer, self.text.context)
        self.fingerprint = known or fingerprint(model, tokenizer)
        self.planned_for = ""
        self.whole = dict[int, Tensor]()  # by id, the parameters that `cast_once` holds rounded
        self.requires_grad_(False)
        self.train()  # no dropout anywhere: eval would take PyTorch's fused path, 2e-6 away

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def kind(self) -> str:
        return self.planned_for or self.device.type

    def sites(self) -> list[Site]:
        """Every site of both towers."""
        return self.image.sites() + self.text.sites()

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The parameters of both towers: `image.stem.conv1.weight`, `text.blocks.3.ln1.weight`,
        `text.blocks.3.attn.weight` (of queries, keys and values together), `image.head.proj`."""
        return parameters_by_name(self.image, self.text)

    def check_class_token(self, method: str) -> None:
        """Raises HarnessError unless the image feature is made of the class token alone: LayerNorm,
        then the projection (`ln_post` and `proj` of the module at `image.features`)."""
        if not self.image.class_token:
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
        ids = self.tokenizer(list(texts), self.text.context)
        unended = getattr(self.tokenizer, "strip_sep_token", False)  # a cut text ends in 0, too
        for text, row in zip(texts, ids, strict=True):
            whole = (unended or row[-1] != 0) and token_count(self.tokenizer, text)
            if whole > self.text.context:
                raise HarnessError(
                    f"the text {text!r} has more than the {self.text.context - 2} tokens that "
                    f"{self.name} takes. Shorten the class name or the template."
                )
        return ids.to(self.device)


def parameters_by_name(*towers: Tower) -> dict[str, nn.Parameter]:
    """Those of `Clip.parameters_by_name`."""
    return {
        f"{tower.name}.{name}": parameter
        for tower in towers
        for name, (_, parameter) in tower.own_parameters().items()
    }


def token_count(tokenizer: Any, text: str) -> int:
    """How many tokens a text has when nothing is cut off, those at its ends included."""
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(text)) + 2
    text = getattr(tokenizer, "clean_fn", str)(text)
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":
        return len(tokenizer.tokenizer(text, add_special_tokens=False, verbose=False).input_ids) + 3
    return len(tokenizer.tokenizer(text, verbose=False).input_ids)


def takes_context(tokenizer: Any, length: int) -> bool:
    """Whether texts begin with one start token and end with the largest id, then zeros: where
    methods that put vectors after the start find the words and the end."""
    rows = tokenizer(["a", "b c"], length)
    starts = rows[0, 0] == rows[1, 0] and rows[0, 1] != rows[1, 1]
    after = torch.arange(length) > rows.argmax(-1, keepdim=True)
    return bool(starts and (rows.argmax(-1) > 1).all() and ((rows == 0) == after).all())


@contextlib.contextmanager
def cast_once(clip: Clip, dtype: torch.dtype) -> Iterator[None]:
    """Meanwhile the frozen matrices are kept in `dtype`, so that autocast need not cast them at
    every call: the same numbers. Embeddings and norms, which autocast leaves alone, stay."""
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    modules = [m for m in (*clip.image.modules(), *clip.text.modules()) if isinstance(m, kinds)]
    matrices = {id(p): p for module in modules for p in module.parameters(recurse=False)}
    clip.whole = whole = {key: parameter.data for key, parameter in matrices.items()}
    try:
        for parameter in matrices.values():
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for key, parameter in matrices.items():
            parameter.data = whole[key]
        clip.whole = {}


@contextlib.contextmanager
def compiled(clip: Clip) -> Iterator[None]:
    """Meanwhile torch.compile fuses what it can in blocks without edits: other last digits."""
    try:
        clip.image.compiled = clip.text.compiled = True
        yield
    finally:
        clip.image.compiled = clip.text.compiled = False


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
    inner = getattr(tokenizer, "tokenizer", None)  # another library's, with words of its own
    if inner is not None:
        backend = getattr(inner, "backend_tokenizer", None)
        digest.update(repr(sorted(inner.get_vocab().items())).encode())
        digest.update(backend.to_str().encode() if backend is not None else b"")
        pieces = getattr(inner, "sp_model", None)  # of sentencepiece, with scores
        digest.update(pieces.serialized_model_proto() if pieces is not None else b"")
    if isinstance(model.text, HFTextEncoder):
        said = model.text.config.to_dict()
        for where in ("_name_or_path", "transformers_version"):
            said.pop(where, None)
        digest.update(json.dumps(said, sort_keys=True, default=str).encode())
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
