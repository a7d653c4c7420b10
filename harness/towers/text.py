"""open_clip's text transformer as a tower: what differs between kinds is read from its settings."""

import torch
from open_clip import transformer as oc
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.towers.tower import Block, EditCall, Tower, unedited

POOLINGS = ("argmax", "eos", "last", "first")


class TextTower(Tower):
    """open_clip's TextTransformer.

    pooling: the position that the feature is made of: `argmax` (the largest id), `eos` (the first
    `end` id), `last`, `first`, or `class` (a learned token after all others, as in CoCa).
    causal: whether a position sees those before it alone. The class token sees no padding, so that
    what a row's positions see depends on the row.
    """

    name = "text"
    stem_names: tuple[str, ...] = ("token_embedding.", "positional_embedding", "cls_emb")

    def __init__(self, text: oc.TextTransformer) -> None:
        super().__init__()
        self.text = text
        self.width = text.width
        self.context = text.context_length  # token ids of a text
        self.length = text.num_pos  # and the class token's place
        self.blocks = nn.ModuleList(
            Block(block, f"text.blocks.{i}") for i, block in enumerate(text.transformer.resblocks)
        )
        self.causal = text.attn_mask is not None
        self.pooling = "class" if text.cls_emb is not None else text.pool_type

    @property
    def ends_early(self) -> bool:
        """Whether the positions after the one that is pooled change no feature: texts may be cut
        behind it, and what several begin with passes once."""
        return self.causal and self.pooling in ("argmax", "eos")

    def needed(self, ids: Tensor) -> Tensor:
        """How many positions from the first the feature of each text depends on: [R] of token ids
        [R, L], on the CPU, if every edit is token-wise or causal."""
        if self.ends_early:
            return self._pooled(ids).cpu() + 1
        return torch.full((len(ids),), ids.shape[1])

    def _pooled(self, ids: Tensor) -> Tensor:
        """The position [R] of token ids [R, L] that is pooled, if the ids say which."""
        return (
            ids.argmax(-1)
            if self.pooling == "argmax"
            else (ids == self.text.eos_id).int().argmax(-1)
        )

    def mask(self, length: int, inputs: Tensor | None = None) -> Tensor | None:
        """[L, L], larger than the tower's own where a method inserts tokens between blocks; None
        where all see all; [R, 1, L, L] of token ids with a class token.

        Raises:
            HarnessError: tokens were inserted, and there is a class token.
        """
        own = self.text.attn_mask
        if own is None:
            causal = None
        elif length <= len(own):
            causal = own[:length, :length]
        else:
            causal = own.new_full((length, length), -torch.inf).triu_(1)
        return causal if self.pooling != "class" else self._class_mask(length, inputs, causal)

    def _class_mask(self, length: int, ids: Tensor | None, causal: Tensor | None) -> Tensor:
        if ids is None or length != ids.shape[1] + 1:
            raise HarnessError(
                "tokens were inserted between the blocks of a text tower that ends with a class "
                "token, which is not supported. Choose a CLIP backbone such as ViT-B-16."
            )
        words = ids != self.text.pad_id  # [R, L - 1]
        always = words.new_ones(len(words), 1)
        # CoCa's weights were trained with the class token's own place before the others
        parts = [words, always] if self.text.correct_cls_mask else [always, words]
        hidden = ~torch.cat(parts, dim=1)[:, None, None]  # [R, 1, 1, L]
        seen = self.text.positional_embedding.new_zeros(hidden.shape)
        seen = seen.masked_fill(hidden, -torch.inf)
        return seen.expand(-1, -1, length, -1) if causal is None else causal + seen

    def stem(self, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        embedding = self.text.token_embedding
        y = embedding(inputs)  # [R, L, D]
        y = edit("text.tokens", embedding, y, y)
        if self.pooling == "class":
            last = self.text.cls_emb.to(y.dtype).expand(len(y), 1, -1)
            y = torch.cat([y, last], dim=1)  # [R, L + 1, D]
        return y + self.text.positional_embedding[: y.shape[1]]

    def head(self, x: Tensor, inputs: Tensor, edit: EditCall = unedited) -> Tensor:
        if self.pooling == "class":
            pooled = self.text.ln_final(x[:, -1])  # [R, D]
        elif self.pooling in ("first", "last"):
            pooled = self.text.ln_final(x)[:, 0 if self.pooling == "first" else -1]
        else:
            rows = torch.arange(len(x), device=x.device)
            pooled = self.text.ln_final(x)[rows, self._pooled(inputs)]
        projection = self.text.text_projection
        if projection is None:
            y = pooled
        elif isinstance(projection, nn.Linear):
            y = projection(pooled)
        else:
            y = pooled @ projection
        return edit("text.features", self.text, pooled, y)


def check_text_tower(text: object, name: str) -> None:
    """Raises HarnessError for a text tower of another kind."""
    if not isinstance(text, oc.TextTransformer):
        raise HarnessError(
            f"the text tower of {name!r} is a {type(text).__name__}; only open_clip's "
            "TextTransformer is supported. Choose another backbone, such as ViT-B-16."
        )
    if text.cls_emb is None and text.pool_type not in POOLINGS:
        raise HarnessError(
            f"the text tower of {name!r} pools {text.pool_type!r}; allowed are "
            f"{', '.join(POOLINGS)}. Choose another backbone, such as ViT-B-16."
        )
    for block in text.transformer.resblocks:
        if type(block) is not oc.ResidualAttentionBlock:
            raise HarnessError(
                f"{name!r} has text blocks of type {type(block).__name__}; only open_clip's "
                "ResidualAttentionBlock is supported."
            )
