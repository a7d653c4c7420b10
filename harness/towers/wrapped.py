"""Layers of another library at the sites of the towers.

Such a layer wraps a linear module: it calls it, reads its weight, and keeps it as `base_layer`.
Here that module is a `Proxy`, and the layer becomes an edit.
"""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from harness.errors import HarnessError, blaming
from harness.randomness import generator
from harness.towers.edit import Edit, Rows, SiteContext
from harness.towers.tower import Site, Tower

NORMS, PROJECTIONS, MLP = ("ln1", "ln2"), ("q", "k", "v", "o"), ("fc1", "fc2")


class Proxy(nn.Linear):
    """A frozen linear module as another library sees it: its weights, but no parameters.

    Until `built` is called it shows copies, so that what builds the layers cannot reach the tower.
    """

    def __init__(self, op: Any) -> None:
        nn.Module.__init__(self)
        self._op = (op,)  # in a tuple: no submodule
        self.out_features, self.in_features = op.weight.shape
        weight, bias = self.frozen()
        self.copies: tuple[Tensor, Tensor] | None = (weight.clone(), bias.clone())
        self.passed: tuple[Tensor, Tensor] | None = None  # what entered and left the module

    def frozen(self) -> tuple[Tensor, Tensor]:
        """The module's weight [out, in] and bias [out]."""
        return self._op[0].weight.detach(), self._op[0].bias.detach()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out, in]."""
        return (self.copies or self.frozen())[0]

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        """[out]."""
        return (self.copies or self.frozen())[1]

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """The weight, which is asked for its device and precision."""
        yield self.weight

    def __deepcopy__(self, memo: Any) -> "Proxy":
        made = Proxy(self._op[0])
        made.built()
        return made

    def built(self) -> bool:
        """Drops the copies; whether nothing was written into them, as far as they have numbers."""
        copies, self.copies = self.copies, None
        if copies is None or isinstance(copies[0], FakeTensor):
            return True
        return all(map(torch.equal, copies, self.frozen()))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]: what left the module if x is what entered it, computed else.
        Never that tensor itself, since a layer may add to it in place."""
        if self.passed is not None and x is self.passed[0]:
            return self.passed[1].clone()
        return F.linear(x, self.weight, self.bias)


class Dropout(nn.Module):
    """Dropout inside a layer, with the step's mask and not one of the global generator."""

    def __init__(self, rate: float, purpose: str) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise HarnessError(f"{purpose} must be at least 0 and below 1, not {rate}.")
        self.rate, self.purpose = rate, purpose
        self.at: SiteContext | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[R, L, .] -> the same shape."""
        if self.at is None or x.ndim != 3 or len(x) != len(self.at.rows.numbers):
            raise HarnessError(f"{self.purpose} would drop parts of {tuple(x.shape)}, which is not "
                               "[rows, tokens, width]. Set it to 0.")  # fmt: skip
        return self.at.dropout(x, self.rate, self.purpose)


class Wrapped(Edit):
    """A layer as an edit. What the layer does not train becomes buffers, so that it is saved and
    not counted; what it wraps is no part of the edit."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        vars(layer)["base_layer"] = layer._modules.pop("base_layer")
        self.dropouts = list[Dropout]()
        for name, module in [*layer.named_modules()]:
            for each, parameter in [*module._parameters.items()]:
                if parameter is not None and not parameter.requires_grad:
                    del module._parameters[each]
                    module.register_buffer(each, parameter.detach())
            for each, inner in [*module._modules.items()]:
                if isinstance(inner, nn.modules.dropout._DropoutNd):
                    self.dropouts.append(Dropout(inner.p, f"{name}.{each}"))
                    module._modules[each] = self.dropouts[-1]

    def forward(self, x: Tensor, y: Tensor, at: SiteContext) -> Tensor:
        # without dropout nothing may differ in training (`check` asks), and some layers would draw
        self.layer.train(at.training and bool(self.dropouts))
        for dropout in self.dropouts:
            dropout.at = at
        base = vars(self.layer)["base_layer"]
        base.passed = x, y
        try:
            return self.layer(x)
        finally:
            base.passed = None

    @torch.no_grad()
    def check(self, site: Site, op: Any) -> None:
        """Raises HarnessError for a layer that would be wrong in micro-batches or in cropped texts:
        one that draws at random in training, or whose result for a token depends on others."""
        draws, edit = generator("a layer's check", site), copy.deepcopy(self)
        for parameter in edit.parameters():  # a start at zero would hide what it does
            parameter.add_(torch.randn(parameter.shape, generator=draws).to(parameter), alpha=0.05)
        x = torch.randn((3, 4, op.weight.shape[-1]), generator=draws).to(op.weight)
        numbers = torch.arange(3, device=x.device)
        at = SiteContext(site, op, Rows(numbers, 3, True, (0, 0)), 4)
        y, before = op(x), _generators(x)
        whole = edit(x, y, at)
        drew = not all(map(torch.equal, before, _generators(x)))
        if not edit.dropouts:
            again = edit.layer.train()(x)
            drew |= bool((again - whole).abs().max() > 1e-5 * whole.abs().max())
        name = type(edit.layer).__name__
        if drew:
            raise HarnessError(
                f"{name} draws from a global generator in training, so that gradients of "
                "micro-batches would be wrong. Set its dropouts to 0, or choose another type."
            )
        fewer = dataclasses.replace(at, rows=Rows(numbers[1:], 3, True, (0, 0)))
        part = edit(x[1:, :2], y[1:, :2], fewer)
        if (whole[1:, :2] - part).abs().max() > 1e-4 * whole.abs().max():
            raise HarnessError(
                f"{name} makes what leaves for a token depend on other tokens or rows, so that "
                "micro-batches and cropped texts would be wrong. Choose another type."
            )


def wrapped_layers(
    towers: Iterable[Tower], build: Callable[[nn.Module], object], kind: type
) -> dict[Site, Edit]:
    """The layers that `build` puts into a tree of the towers' linear modules and norms, as edits.

    Args:
        build: replaces modules of the tree, whose names are sites, by layers.
        kind: the layers' class.

    Raises:
        HarnessError: `build` fails or writes into the frozen weights, or a layer would be wrong in
            micro-batches.
    """
    ops = {site: op for tower in towers for site, op in wrappable(tower).items()}
    with blaming("the layers that were asked for"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # in copies
        given = {site: shown(op) for site, op in ops.items()}
        root = tree(given)
        build(root)
        written = [s for s, op in given.items() if isinstance(op, Proxy) and not op.built()]
        if written:
            raise HarnessError(
                f"these layers write into the frozen weights (at first {written[0]}), which all "
                "methods share. Choose another start or type."
            )
        layers = {site: root.get_submodule(site) for site in ops}
        edits = {site: Wrapped(each) for site, each in layers.items() if isinstance(each, kind)}
        for site, edit in edits.items():
            if not isinstance(ops[site].weight, FakeTensor):  # a run has numbers to compare
                edit.check(site, ops[site])
    return dict(edits)


def wrappable(tower: Tower) -> dict[Site, nn.Module]:
    """The frozen modules of a tower that another library may wrap, by site."""
    found = dict[Site, nn.Module]()
    for block in tower.blocks:
        linear = [
            each for each in block.get_submodule("mlp").children() if isinstance(each, nn.Linear)
        ]
        found |= {f"{block.site}.{point}": getattr(block, point) for point in NORMS}
        found |= {f"{block.site}.{point}": getattr(block.attn, point) for point in PROJECTIONS}
        found |= {f"{block.site}.{p}": op for p, op in zip(MLP, linear, strict=True)}
    return found


def shown(op: nn.Module) -> nn.Module:
    """What another library sees in the place of a frozen module: of a norm a copy."""
    return copy.deepcopy(op) if isinstance(op, nn.LayerNorm) else Proxy(op)


def tree(modules: Mapping[Site, nn.Module]) -> nn.Module:
    """A module that holds `modules` under the names of their sites."""
    root = nn.Module()
    root.register_parameter("none", nn.Parameter(torch.zeros(0)))  # whose device may be asked for
    for site, module in modules.items():
        *above, last = site.split(".")
        holder = root
        for part in above:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.add_module(last, module)
    return root


def _generators(x: Tensor) -> list[Tensor]:
    """States of the global generators that a layer on x could draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(x.device)] if x.is_cuda else states
