"""The bytes of fake tensors, counted while operations make them and let them go."""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """The bytes of all fake storages that operations have made and that are still there, by kind.

    made: of what kind a new storage is; peak: the bytes at the moment with the most of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = "workspace"
        self.now, self.peak = Counter[str](), Counter[str]()
        self.total = self.most = 0
        self.alive = dict[int, tuple[str, int, Any]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in VALUES:
            result = VALUES[func](*args)
        else:
            result = func(*map(_numbered, args), **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, FakeTensor) and not each.is_sparse:
                self.count(each)
        return result

    def count(self, tensor: Tensor, kind: str | None = None) -> None:
        """Counts a tensor's storage, once; of another kind from now on, if one is given."""
        storage = tensor.untyped_storage()
        place = storage._cdata
        there = self.alive.get(place)
        if there is None:
            freed = weakref.ref(storage, lambda _: self._gone(place))
            there = self.alive[place] = (kind or self.made, storage.nbytes(), freed)
            self._add(there[0], there[1])
        elif kind and there[0] != kind:
            self._add(there[0], -there[1])
            self.alive[place] = (kind, *there[1:])
            self._add(kind, there[1])

    def saved(self, tensor: Tensor) -> Tensor:
        """Of what the graph keeps: it was made on the way."""
        for part in (tensor._values(), tensor._indices()) if tensor.is_sparse else (tensor,):
            known = self.alive.get(part.untyped_storage()._cdata)
            if known is None or known[0] == "workspace":
                self.count(part, "activations")
        return tensor

    def restart(self) -> None:
        """The peak is that of what comes."""
        self.most, self.peak = self.total, self.now.copy()

    def _gone(self, place: int) -> None:
        kind, size, _ = self.alive.pop(place)
        self._add(kind, -size)

    def _add(self, kind: str, size: int) -> None:
        self.now[kind] += size
        self.total += size
        if self.total > self.most:
            self.restart()


def _numbered(argument: Any) -> Any:
    """Of a list of indices, masks as the numbers that they choose."""
    if not isinstance(argument, (list, tuple)):
        return argument
    masks = [isinstance(each, Tensor) and each.dtype == torch.bool for each in argument]
    if not any(masks):
        return argument
    return [
        part
        for each, mask in zip(argument, masks, strict=True)
        for part in (_places(each).unbind(1) if mask else (each,))
    ]


def _scalar(tensor: Tensor) -> bool | int | float:
    """A number that is asked for: true, or one."""
    if not isinstance(tensor, FakeTensor):
        return tensor.item()
    return True if tensor.dtype == torch.bool else 1.0 if tensor.is_floating_point() else 1


def _places(tensor: Tensor) -> Tensor:
    """Those that are not zero: all of them, where that is not known."""
    if not isinstance(tensor, FakeTensor):
        return tensor.nonzero()
    return torch.ones(tensor.shape).nonzero()


VALUES: Mapping[Any, Callable[[Tensor], Any]] = {
    torch.ops.aten._local_scalar_dense.default: _scalar,
    torch.ops.aten.nonzero.default: _places,
}
