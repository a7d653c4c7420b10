"""The texts of some classes on their way through the text tower, and what is spared there.

Texts are cut to the tokens that they need, pass in groups of like lengths, and what all of them
begin with passes once: the same features as those of whole texts, one by one.
"""

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.dataset import Classes
from harness.fitting.model import Model
from harness.images.cache import Cache, source_hash
from harness.images.source import PIXELS
from harness.randomness import generator
from harness.towers.edit import Rows, SiteContext
from harness.towers.openclip import Clip
from harness.towers.tower import Site

SOURCES = (  # what the bits of a frozen feature depend on
    "towers/tower", "towers/openclip", "towers/text", "towers/hf", "towers/timm", "towers/pixels",
    "towers/shared_prefix", "fitting/model", "fitting/texts", "fitting/inputs", *PIXELS,
)  # fmt: skip
CHUNK_TEXTS = 1024  # texts a forward pass while nothing is trained
PASS = {"cuda": 4096, "cpu": 256}  # tokens that take as long as a pass through a tower by itself


class MicroBatch(NamedTuple):
    """What passes a tower together: numbers [r] of images or text rows; positions of each text, and
    of how many images the texts are, in order (1 where they are everybody's)."""

    numbers: Tensor
    length: int = 0
    copies: int = 1


@dataclass(frozen=True)
class Texts:
    """The texts of some classes.

    ids [R, L]: token ids; x: what `start` made of them; lengths [R], on the CPU: the positions that
    each needs; shared: how many at the beginning are the same in all rows (of an image) and pass
    once; per_class: T; kinds [R]: which of its class's T texts each row is; references: frozen
    features [C, T, E] of the classes, by name; fixed: what a pass by itself costs, see `PASS`.
    """

    ids: Tensor
    x: Tensor
    lengths: Tensor
    shared: int
    per_class: int
    kinds: Tensor
    references: Mapping[str, Tensor]
    fixed: int = 0
    _groups: dict[int, list[MicroBatch]] = field(default_factory=dict, init=False, repr=False)

    def groups(self, copies: int = 1) -> list[MicroBatch]:
        """The rows in groups of similar lengths, each to be cut to its longest: those with which
        the fewest tokens pass, of so many copies of the rows, counting a `PASS` for each group."""
        if copies not in self._groups:
            self._groups[copies] = self._grouped(copies)
        return self._groups[copies]

    def _grouped(self, copies: int) -> list[MicroBatch]:
        order = self.lengths.argsort(stable=True)
        sizes, counts = self.lengths.unique(return_counts=True)
        ends = [0, *counts.cumsum(0).tolist()]
        fixed = self.fixed + copies * self.shared
        best = [(0, 0)]  # of the rows up to each end: tokens, and where their last group begins
        for j, size in enumerate(sizes.tolist(), 1):
            own = copies * (size - self.shared)
            tokens = [best[i][0] + own * (ends[j] - ends[i]) + fixed for i in range(j)]
            best.append(min(zip(tokens, range(j), strict=True)))
        groups, end = list[MicroBatch](), len(sizes)
        while end:
            start = best[end][1]
            rows = order[ends[start] : ends[end]].sort().values
            groups.append(MicroBatch(rows.to(self.ids.device), int(sizes[end - 1])))
            end = start
        return groups

    def micro_batches(self, most: int, copies: int = 1) -> list[MicroBatch]:
        """All rows, of each of so many images, in parts of at most `most` and of similar lengths:
        of several images whole groups, or a part of one image's."""
        found = list[MicroBatch]()
        for rows, length, _ in self.groups(copies):
            at_once = max(1, most // len(rows))
            for some in torch.arange(copies, device=rows.device).split(at_once):
                parts = (len(self.ids) * some[:, None] + rows).flatten().split(most)
                found += [MicroBatch(each, length, len(some)) for each in parts]
        return found

    def of_classes(self, classes: Tensor) -> "Texts":
        """The texts of some of the classes, in that order."""
        kinds = torch.arange(self.per_class, device=classes.device)
        rows = (classes[:, None] * self.per_class + kinds).flatten()
        references = {name: each[classes] for name, each in self.references.items()}
        return replace(self._of(rows), references=references)

    def chosen(self, numbers: Tensor) -> "Texts":
        """Some of the texts, in rows [R', T'] of their numbers; `numbers` on the CPU."""
        return replace(self._of(numbers.flatten()), per_class=numbers.shape[1])

    def _of(self, rows: Tensor) -> "Texts":
        lengths, rows = self.lengths[rows.cpu()], rows.to(self.ids.device)
        return replace(self, ids=self.ids[rows], x=self.x[rows], kinds=self.kinds[rows],
                       lengths=lengths)  # fmt: skip

    def rows(
        self,
        micro_batch: MicroBatch,
        images: Tensor | None = None,
        training: bool = False,
        key: tuple[object, ...] = (),
    ) -> tuple[Tensor, Tensor, Rows]:
        """Inputs, token ids and description of some text rows; with `images` [B, E] row r is text
        r % R of image r // R."""
        numbers, length, copies = micro_batch
        count = len(self.ids)
        of = numbers % count
        references = {  # [r, T, E]
            name: each[(of // self.per_class).clamp(max=len(each) - 1)]
            for name, each in self.references.items()
        }
        total = count if images is None else count * len(images)
        image = None if images is None else images[numbers // count]
        ids, kinds, x = self.ids[of, :length], self.kinds[of], self.x[of]
        rows = Rows(
            numbers, total, training, key, ids, kinds, references, image, self.shared, copies
        )
        features = x.ndim == 2 and x.is_floating_point()  # of a tower that is never changed
        whole = features or length == self.ids.shape[1]  # a class token may follow
        return (x if whole else x[:, :length]), ids, rows


def texts(model: Model, classes: Classes, training: bool, cache: Cache | None = None) -> Texts:
    """The prompts of `classes`, cropped to the longest where that is exact, and the frozen features
    of the method's references."""
    prompts, clip = model.method.prompts(classes), model.clip
    ids = clip.tokenize([text for each in prompts for text in each])
    lengths = clip.text.needed(ids)
    if training and model.mixes_text():
        lengths = torch.full_like(lengths, ids.shape[1])
    ids = ids[:, : int(lengths.max())]
    x = torch.cat([model.prefix(clip.text, part) for part in ids.split(CHUNK_TEXTS)])
    kinds = torch.arange(len(prompts[0]), device=ids.device).repeat(len(prompts))
    references = {
        name: frozen_texts(model.clip, each, cache or Cache())
        for name, each in model.method.references(classes).items()
    }
    fixed = PASS.get(clip.kind, 0)
    made = Texts(ids, x, lengths, 0, len(prompts[0]), kinds, references, fixed)
    if model.cut(clip.text) is None or (training and draws_noise(model, made)):
        return replace(made, lengths=torch.full_like(lengths, ids.shape[1]))
    return replace(made, shared=shared_prefix_length(model, made, training))


@torch.no_grad()
def draws_noise(model: Model, prompts: Texts) -> bool:
    """Whether an edit draws at random for texts in training. Each pass draws for all rows, so that
    they had better pass together."""
    few = prompts.of_classes(torch.zeros(1, dtype=torch.long, device=prompts.ids.device))
    micro_batch = MicroBatch(torch.arange(len(few.ids), device=few.ids.device), few.ids.shape[1])
    x, ids, rows = few.rows(micro_batch, _any_image(model), True, (0, 0))
    model.rest(model.clip.text, x, ids, rows)
    return rows.drawn


@torch.no_grad()
def shared_prefix_length(model: Model, prompts: Texts, training: bool) -> int:
    """How many positions from the first are the same in all rows (of an image) to every block,
    whatever the parameters are: found with random ones. 0 if blocks are edited, or if that spares
    too few tokens, or start-of-text alone."""
    sites, clip, ids = model.edits_of(model.clip.text), model.clip, prompts.ids
    if not clip.text.ends_early:
        return 0
    if "text.tokens" not in sites or any(".blocks." in site for site in sites):
        return 0
    edit, random = copy.deepcopy(sites["text.tokens"]), generator("beginning")
    for parameter in edit.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    micro_batch = MicroBatch(torch.arange(len(ids), device=ids.device), ids.shape[1])
    x, _, rows = prompts.rows(micro_batch, _any_image(model), training, (0, 0))

    def edited(site: Site, op: nn.Module, entered: Tensor, left: Tensor, *_: object) -> Tensor:
        return edit(entered, left, SiteContext(site, op, rows, clip.text.length))

    with torch.autocast(ids.device.type, enabled=False):
        x = clip.text.stem(x, edited)  # [R, L, D]
    same = torch.isclose(x, x[:1], rtol=1e-5, atol=1e-6).all(-1).all(0).int().cumprod(0)
    shared = min(int(same.sum()), int(prompts.lengths.min()) - 1)
    copies = 1
    if model.method.text_per_image:
        copies = model.method.batch_size if training else max(1, CHUNK_TEXTS // len(ids))
    spared = copies * (len(ids) - 1) * shared
    return shared if shared > 1 and spared > PASS.get(clip.kind, 0) else 0


def _any_image(model: Model) -> Tensor | None:
    """A feature [1, E], for a method whose texts are of images."""
    scale = model.clip.logit_scale
    size = model.clip.embedding
    one = torch.linspace(-1, 1, size, dtype=scale.dtype, device=scale.device)
    return one[None] if model.method.text_per_image else None


@torch.no_grad()
def frozen_texts(clip: Clip, prompts: Sequence[Sequence[str]], cache: Cache) -> Tensor:
    """Features [C, T, E] of texts on the frozen tower, not normalised; zero in the places that a
    class with fewer texts than others leaves."""
    flat = [text for each in prompts for text in each]
    key = ("texts", *arithmetic_key(clip), tuple(flat))

    def live() -> dict[str, Tensor]:
        ids = clip.tokenize(flat)
        ids = ids[:, : int(clip.text.needed(ids).max())]
        return {"x": torch.cat([clip.text(part) for part in ids.split(CHUNK_TEXTS)])}

    def compute() -> Tensor:
        kept = cache.disk.get("texts", key, live) if cache.disk else live()
        return kept["x"].to(clip.device)

    features, counts = cache.get(key, compute), [len(each) for each in prompts]
    if len({*counts}) == 1:
        return features.unflatten(0, (len(prompts), -1))
    return nn.utils.rnn.pad_sequence(features.split(counts), batch_first=True)


def arithmetic_key(clip: Clip) -> tuple[Hashable, ...]:
    """What the bits of a frozen feature depend on, beside its input: weights, precision, code,
    kind of device and threads."""
    kind = clip.device.type
    computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    code = source_hash(*SOURCES)
    name = torch.cuda.get_device_name(clip.device) if kind == "cuda" else torch.get_num_threads()
    how = (computed, clip.image.compiled)
    return (clip.fingerprint, clip.logit_scale.dtype, *how, code, kind, name)


@torch.no_grad()
def text_features(model: Model, prompts: Texts, images: Tensor | None = None) -> Tensor:
    """Features of every prompt, before normalisation: [C, T, E], or [B, C, T, E] for each of
    `images` [B, E]. At most CHUNK_TEXTS prompts are held at once."""
    micro_batches, features = (
        prompts.micro_batches(CHUNK_TEXTS, 1 if images is None else len(images)),
        [],
    )
    for micro_batch in micro_batches:
        x, ids, rows = prompts.rows(micro_batch, images)
        features.append(model.rest(model.clip.text, x, ids, rows))
    shape = (-1, prompts.per_class) if images is None else (len(images), -1, prompts.per_class)
    return in_order(features, micro_batches).unflatten(0, shape)


def in_order(features: Sequence[Tensor], micro_batches: Sequence[MicroBatch]) -> Tensor:
    """Features [r, E] of each micro-batch as those of all rows [R, E]."""
    if len(micro_batches) == 1:
        return features[0]
    numbers = torch.cat([micro_batch.numbers for micro_batch in micro_batches])
    return torch.cat(list(features))[numbers.argsort()]
