"""A method on a backbone: the frozen towers, what the method inserts, and what follows from it."""

import contextlib
import difflib
import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.errors import HarnessError, blaming, one_line
from harness.fitting.needs import check_needs
from harness.images.cache import checksum
from harness.method import Classes, HeadContext, Method, Output
from harness.randomness import initialising
from harness.towers.edit import Edit, Rows, SiteContext
from harness.towers.openclip import Clip
from harness.towers.shared_prefix import SharedPrefix
from harness.towers.tower import Site, Tower, unedited


class Model:
    """`method` grafted on `clip`. The towers stay shared and untouched: edits are looked up by site
    while a tower runs, so nothing has to be undone.

    `trained` holds the inserted modules, and only them: its parameters are what is optimised and
    counted, its state is what is saved.
    """

    def __init__(self, clip: Clip, method: Method, classes: Classes, seed: int) -> None:
        """Raises HarnessError if the backbone lacks something that the method changes."""
        self.clip, self.method, self.classes = clip, method, classes
        check_needs(clip, method, classes)
        with initialising(seed):
            edits, head = method.edits(clip, classes), method.head(clip, classes)
        check_sites(clip, method, edits)
        self.unfrozen = _copies(clip, method)
        if method.text_per_image and any(site.startswith("image.") for site in edits):
            raise HarnessError(f"{method.name} has texts for each image: it may not edit images.")
        self.edits = edits
        self.trained = nn.ModuleDict(
            {"edits": nn.ModuleDict({site.replace(".", "/"): e for site, e in edits.items()})}
        )
        self.trained["head"] = head
        if self.unfrozen:
            named = {name.replace(".", "/"): copy for name, copy in self.unfrozen.items()}
            self.trained["unfrozen"] = nn.ParameterDict(named)
        held = (*self.trained.parameters(), *self.trained.buffers())
        if any(each.device != clip.device for each in held):
            self.trained.to(clip.device)  # PyTorch moves no fake tensors, even to where they are
        self.checkpointing = False
        self._own = {t.name: _by_part(t, self.unfrozen) for t in (clip.image, clip.text)}

    @property
    def head(self) -> nn.Module:
        return self.trained["head"]

    def parameters(self) -> list[nn.Parameter]:
        """What is optimised; a parameter that several edits share appears once."""
        return list(self.trained.parameters())

    def optimiser(self) -> torch.optim.Optimizer:
        """The method's own; parameters with a `rate_factor` are in groups that hold it."""
        groups = dict[float, list[nn.Parameter]]()
        for name, parameter in self.trained.named_parameters():
            groups.setdefault(self.method.rate_factor(name), []).append(parameter)
        if groups.keys() <= {1.0}:
            # PyTorch refuses an optimiser of nothing
            return self.method.optimiser(self.parameters() or [nn.Parameter(torch.zeros(()))])
        grouped: Any = [{"params": group, "factor": factor} for factor, group in groups.items()]
        return self.method.optimiser(grouped)

    def stored_bytes(self) -> int:
        """Of the trained modules' state, what is shared counted once."""
        state = self.trained.state_dict().values()
        return sum({t.data_ptr(): t.nbytes for t in state if t.numel()}.values())

    def edits_of(self, tower: Tower) -> dict[Site, Edit]:
        return {s: e for s, e in self.edits.items() if s.startswith(f"{tower.name}.")}

    def cut(self, tower: Tower) -> int | None:
        """How much of a tower never changes: -1 nothing (its tokens are edited), n its stem and its
        first n blocks, None all of it."""
        sites, own = self.edits_of(tower), self._own[tower.name]
        if not sites and not own:
            return None
        if f"{tower.name}.tokens" in sites or "stem" in own:
            return -1
        return min(self._blocks(tower), default=len(tower.blocks))

    def _blocks(self, tower: Tower) -> set[int]:
        """The blocks that the method changes, from 0."""
        edited = {int(s.split(".")[2]) for s in self.edits_of(tower) if ".blocks." in s}
        own = {int(part.split(".")[1]) for part in self._own[tower.name] if "." in part}
        return edited | own

    def mixes_text(self) -> bool:
        """Whether training looks across text positions, so that texts may not be cropped."""
        return any(edit.mixes_tokens for edit in self.edits_of(self.clip.text).values())

    @torch.no_grad()
    def prefix(self, tower: Tower, inputs: Tensor) -> Tensor:
        """The part of a tower before the cut, without gradients: its features if it is untouched,
        the tokens that enter the first changed block, or the inputs themselves."""
        cut = self.cut(tower)
        if cut is None:
            return tower(inputs)
        if cut < 0:
            return inputs
        x = tower.stem(inputs)
        for index in range(cut):
            x = tower.block(index, x, inputs=inputs)
        return x

    def rest(self, tower: Tower, x: Tensor, inputs: Tensor, rows: Rows) -> Tensor:
        """The rest of the tower after `prefix`: features [., E], not normalised, or what an edit
        at its `features` returns instead."""

        def edit(
            site: Site, op: nn.Module, entered: Tensor, left: Tensor, stream: Tensor | None = None
        ) -> Tensor:
            inserted = self.edits.get(site)
            if inserted is None:
                return left
            at = SiteContext(site, op, rows, tower.length, stream)
            return _inserted(inserted, entered, left, at)

        cut = self.cut(tower)
        if cut is None:
            return x
        own = self._own[tower.name]
        if cut < 0:
            x = tower.call("stem", own.get("stem", {}), x, edit)
        branches = None
        if rows.shared:
            mask = self.clip.text.mask(x.shape[1])
            assert mask is not None  # only causal towers share beginnings
            branches = SharedPrefix(rows.shared, rows.copies, mask)
            x, inputs = branches.joined(x), inputs[:, rows.shared :]
        edited = self._blocks(tower)
        for index in range(max(cut, 0), len(tower.blocks)):
            given = index, x, edit if index in edited else unedited, branches, inputs
            run = partial(tower.call, "block", own.get(f"blocks.{index}", {}))
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(run, *given, use_reentrant=False)
            else:
                x = run(*given)
        if branches:
            _, x = branches.parted(x)
        return tower.call("head", own.get("head", {}), x, inputs, edit)

    def output(
        self,
        image: Tensor,
        text: Tensor,
        given: HeadContext,
        auxiliary: Tensor | float = 0.0,
        statistics: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Output:
        """The head on features [B, E] (or [B, K, E]) and [C, T, E], in float32 at least: bfloat16
        has steps of 0.125 at CLIP's logits.

        Raises:
            HarnessError: what the head gives is not one row of logits an image.
        """
        image, text = at_least_float32(image), at_least_float32(text)
        references = {
            name: at_least_float32(features) for name, features in given.references.items()
        }
        seen = None if given.image is None else at_least_float32(given.image)
        given = replace(
            given, scale=at_least_float32(given.scale), references=references, image=seen
        )
        with torch.autocast(image.device.type, enabled=False):
            logits = self.head(image, text, given)
        if logits.ndim != 2 or len(logits) != len(image):
            raise HarnessError(
                f"the head of {self.method.name} gives {list(logits.shape)} for image features "
                f"{list(image.shape)}; logits must be [images, classes]."
            )
        return Output(logits, image, text, auxiliary, given, self.head, statistics)

    def save(self, path: Path, about: dict[str, str] | None = None) -> None:
        """The trained modules' state as safetensors, with what the image tower takes, and with a
        checksum of all that and of `about`; shared tensors are stored once."""
        about = {"pixels": json.dumps(self.clip.pixels.as_json()), **(about or {})}
        about["sha256"] = self._checksum(about)
        safetensors.torch.save_model(self.trained, str(path), metadata=about)

    def _checksum(self, about: dict[str, str]) -> str:
        """Of the trained modules' state and what is said of it."""
        state = {name: value.cpu() for name, value in self.trained.state_dict().items()}
        left_out = {"sha256", "format", *state}  # safetensors notes names that share a tensor
        said = repr(sorted((k, v) for k, v in about.items() if k not in left_out))
        return hashlib.sha256((checksum(state) + said).encode()).hexdigest()

    def load(self, path: Path) -> None:
        """What `save` wrote.

        Raises:
            HarnessError: the file belongs to other modules, or is damaged.
        """
        try:
            safetensors.torch.load_model(self.trained, str(path), strict=True)
            with safetensors.safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
        except (RuntimeError, OSError, safetensors.SafetensorError) as error:
            said = one_line(error)
            raise HarnessError(
                f"{path} does not hold the weights of {self.method.name} on {self.clip.name}: "
                f"{said[:300]}{' ...' * (len(said) > 300)}"
            ) from error
        if about.get("sha256") != self._checksum(about):
            raise HarnessError(f"{path} is damaged: its checksum does not fit what it holds.")


def _copies(clip: Clip, method: Method) -> dict[str, nn.Parameter]:
    """Copies of the backbone's parameters that the method trains, by name."""
    chosen = list(method.unfrozen(clip))
    known = clip.parameters_by_name() if chosen else {}
    for name in chosen:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise HarnessError(
                f"{method.name} trains {name!r}, and {clip.name} has no such parameter.{hint}"
            )
    return {name: nn.Parameter(known[name].detach().clone()) for name in chosen}


def _by_part(tower: Tower, copies: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    """The copies of a tower's parameters by part (`stem`, `blocks.3`, `head`) and by the names that
    they have in the tower."""
    parts = dict[str, dict[str, Tensor]]()
    for name, (here, _) in tower.own_parameters().items() if copies else ():
        copy = copies.get(f"{tower.name}.{name}")
        if copy is not None:
            part = re.match(r"stem|head|blocks\.\d+", name)
            assert part is not None
            parts.setdefault(part[0], {})[here] = copy
    return parts


def _inserted(edit: Edit, entered: Tensor, left: Tensor, at: SiteContext) -> Tensor:
    """What leaves an edit: as many rows as entered, as wide as the frozen module's output."""
    what = f"{type(edit).__name__} at {at.site}"
    with blaming(what):
        x = edit(entered, left, at)
    if not isinstance(x, Tensor) or (len(x), x.shape[-1]) != (len(left), left.shape[-1]):
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise HarnessError(f"{what} returned {shape} in the place of {tuple(left.shape)}.")
    return x


def at_least_float32(features: Tensor) -> Tensor:
    """At least float32."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def surrounding(device: torch.device) -> Callable[[], torch.autocast]:
    """The autocast that is on now, to be entered again where it has been turned off."""
    kind = device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return partial(torch.autocast, kind, dtype, enabled, cache_enabled=False)


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Meanwhile float32 is computed as it is, not in TF32 or less, whatever the process was told in
    PyTorch's older or newer way; and cuDNN comes to the same bits each time."""
    cudnn = torch.backends.cudnn
    kept = cudnn.benchmark, cudnn.deterministic
    newer = {op: op.fp32_precision for op in _operations()}
    convolutions = products = None
    with contextlib.suppress(RuntimeError):  # it was told in the newer way
        convolutions = cudnn.allow_tf32
    with contextlib.suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, True, False
    torch.set_float32_matmul_precision("highest")
    for op in newer:
        op.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = kept
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for op, value in newer.items():
            if op.fp32_precision != value:
                op.fp32_precision = value


def _operations() -> list[Any]:
    """What has a precision of its own in this PyTorch."""
    names = ("cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn.conv", "mkldnn.matmul")
    found = []
    for name in names:
        with contextlib.suppress(AttributeError):  # before 2.9
            op = operator.attrgetter(name)(torch.backends)
            found += [op] if hasattr(op, "fp32_precision") else []
    return found


def check_sites(clip: Clip, method: Method, sites: Sequence[Site] | dict[Site, Edit]) -> None:
    """Raises HarnessError for sites that a backbone lacks."""
    missing = sorted(set(sites) - set(clip.sites()))
    if missing:
        close = difflib.get_close_matches(missing[0], clip.sites(), n=1, cutoff=0.6)
        number = re.compile(r"\d+")
        if close and number.sub("", close[0]) != number.sub("", missing[0]):
            raise HarnessError(
                f"{method.name} edits {missing[0]!r}, and there is no such site. Did you mean "
                f"{close[0]!r}?"
            )
        raise HarnessError(
            f"{method.name} edits {missing[0]!r}, which {clip.name} lacks: its image tower has "
            f"{len(clip.image.blocks)} blocks and its text tower {len(clip.text.blocks)}. Choose "
            "another backbone, or set the method's block fields (see `show " + method.name + "`)."
        )
