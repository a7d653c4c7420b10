"""A CUDA device that is not there: tensors that say `cuda:0`, and compute on the processor.

PyTorch's own FakeTensorMode has no values, and its backward pass asks the driver for a stream. Here
an operation first checks its operands' devices by CUDA's rules, then computes on the values that
lie beneath. To PyTorch's core these tensors are on `meta`, but with CUDA's autocast; every tensor
made on `meta` is one of them.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CUDA, META, CPU = torch.device("cuda:0"), torch.device("meta"), torch.device("cpu")
NAME, MEMORY = "Pretended Card", 80 * 2**30
MOVES = {aten._to_copy.default, aten.copy_.default}
WRITES = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
INDEXED = {aten.index.Tensor, *WRITES}  # a card's tensor, whose indices may lie on the CPU
NO_SCALARS = {  # of these operands not even a number may lie on the CPU
    aten.cat.default, aten.stack.default, aten.gather.default, aten.index_select.default,
    aten.embedding.default, aten.scatter.src, aten.scatter_.src, aten.scatter.value,
    aten.scatter_.value,
}  # fmt: skip

PLAIN = {int, float, bool, type(None), torch.dtype}  # holds no tensor and is no device

# CUDA's autocast: what runs in the lower precision, and what in float32
LOWER = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "baddbmm",
    "einsum", "conv2d", "scaled_dot_product_attention",
}  # fmt: skip
WHOLE = {
    "layer_norm", "group_norm", "linalg_vector_norm", "norm", "exp", "log", "pow", "__pow__",
    "square", "rsqrt", "reciprocal", "logsumexp", "cosine_similarity", "cross_entropy_loss",
    "nll_loss", "kl_div", "mse_loss", "softmax", "log_softmax", "sum", "prod", "cumsum", "cumprod",
    "softplus", "cdist", "dist", "expm1", "log1p", "log2", "log10",
}  # fmt: skip


class OnCard(torch.Tensor):
    """A tensor of the pretended card; `beneath` holds its values."""

    beneath: torch.Tensor

    @staticmethod
    def __new__(cls, beneath: torch.Tensor) -> "OnCard":
        made = torch.Tensor._make_wrapper_subclass(
            cls, beneath.shape, strides=beneath.stride(), storage_offset=beneath.storage_offset(),
            dtype=beneath.dtype, device=META,
        )  # fmt: skip
        made.beneath = beneath
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)

    def untyped_storage(self) -> Any:
        return self.beneath.untyped_storage()

    def data_ptr(self) -> int:
        return self.beneath.data_ptr()

    def tolist(self) -> Any:
        return self.beneath.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self, **_: Any) -> str:
        return f"OnCard({self.beneath!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnCard":
        copied = OnCard(self.beneath.detach().clone()).requires_grad_(self.requires_grad)
        copied.__dict__ |= {k: v for k, v in self.__dict__.items() if k != "beneath"}
        return memo.setdefault(id(self), copied)

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: "OnCard") -> None:
        torch.Tensor.data.__set__(self, value)
        self.beneath = value.beneath

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on a pretended card that is not switched on")


class MixedDevices(RuntimeError):
    """What CUDA says of it: tensors on different devices."""


def check_devices(func: Any, operands: list[torch.Tensor]) -> None:
    """Raises MixedDevices where CUDA would."""
    here = [each for each in operands if type(each) is not OnCard]
    if len(here) in (0, len(operands)) or func in MOVES:
        return
    if func in INDEXED and type(operands[0]) is OnCard:
        here = [each for each in operands[-1:] if func in WRITES and type(each) is not OnCard]
    written = func._schema.is_mutable and type(operands[0]) is not OnCard
    if written or func in NO_SCALARS or any(each.ndim for each in here):
        shapes = [(str(each.device), tuple(each.shape)) for each in operands]
        raise MixedDevices(f"{func}: expected all tensors on the same device, not {shapes}")


class _Computes(TorchDispatchMode):
    """Every operation: devices are checked, values computed, and the result lies where it does."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would go through a wrapper in each call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operands: list[torch.Tensor] = []
        args = [_beneath(each, operands) for each in args]
        kwargs = {name: _beneath(each, operands) for name, each in kwargs.items()} if kwargs else {}
        onto = OnCard in map(type, operands)
        if onto:
            check_devices(func, operands)
        if kwargs.get("device") is not None:
            onto = kwargs["device"].type == "meta"
            kwargs["device"] = CPU
        elif func is aten.copy_.default:
            onto = type(operands[0]) is OnCard
        result = func(*args, **kwargs)
        return _wrapped(result, operands) if onto else result


def _beneath(value: Any, seen: list[torch.Tensor]) -> Any:
    """The values beneath an argument, or those beneath a list's; its tensors are noted."""
    kind = type(value)
    if kind is OnCard:
        seen.append(value)
        return value.beneath
    if kind in PLAIN:
        return value
    if isinstance(value, (list, tuple)):
        return [_beneath(each, seen) for each in value]
    if isinstance(value, torch.Tensor):
        seen.append(value)
    return value


def _wrapped(result: Any, operands: list[torch.Tensor]) -> Any:
    """The result on the card; what was changed in place is the operand itself."""
    if isinstance(result, torch.Tensor):
        for each in operands:
            if type(each) is OnCard and each.beneath is result:
                return each
        return OnCard(result)
    if isinstance(result, (list, tuple)):
        return type(result)(_wrapped(each, operands) for each in result)
    return result


class Generator(torch.Generator):
    """A generator that says where it draws; its numbers are the processor's."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.draws_on = torch.device(device).type


class _Asks(TorchFunctionMode):
    """What is asked of `cuda` is asked of `meta`; a generator draws on its own device alone."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "__get__":  # such as x.shape
            return func(*args)
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            del kwargs["device"]  # these copy to it without asking again
            return func(*args, **kwargs).to(META)
        draws = kwargs.get("generator")
        if isinstance(draws, Generator):
            first = args[0] if args and isinstance(args[0], torch.Tensor) else None
            default = "cpu" if first is None else first.device
            where = torch.device(kwargs.get("device") or default).type
            if where != draws.draws_on:
                raise MixedDevices(f"{func}: a generator of {draws.draws_on} draws on {where}")
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = META
        if name in ("__getitem__", "__setitem__") and type(args[0]) is OnCard:
            args = (args[0], _indices(args[1]), *args[2:])
        args = [META if _is_cuda(each) else each for each in args]
        if (name in LOWER or name in WHOLE) and torch.is_autocast_enabled("cuda"):
            to = torch.get_autocast_dtype("cuda") if name in LOWER else torch.float32
            args = [_cast(each, to) for each in args]
            kwargs = {name: _cast(each, to) for name, each in kwargs.items()}
        return func(*args, **kwargs)


def _indices(index: Any) -> Any:
    """CUDA copies a list of indices to the card."""
    if isinstance(index, list):
        return torch.tensor(index).to(META)
    return tuple(map(_indices, index)) if isinstance(index, tuple) else index


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Autocast casts what lies on the card, but for double precision and integers."""
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(each, dtype) for each in value)
    casts = type(value) is OnCard and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if casts else value


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.Tensor):
        return False
    if isinstance(device, str):
        return device.split(":")[0] == "cuda"
    return isinstance(device, torch.device) and device.type == "cuda"


def _pinned(self: torch.Tensor) -> torch.Tensor:
    if isinstance(self, OnCard):
        raise RuntimeError("cannot pin memory of a card")
    return self


ANSWERS = {  # what the card would say, by the function that is asked
    (torch, "Generator"): Generator,
    (torch.Tensor, "pin_memory"): _pinned,
    (torch.cuda, "synchronize"): lambda device=None: None,
    (torch.cuda, "empty_cache"): lambda: None,
    (torch.cuda, "memory_allocated"): lambda device=None: 2**30,
    (torch.cuda, "max_memory_allocated"): lambda device=None: 2**31,
    (torch.cuda, "reset_peak_memory_stats"): lambda device=None: None,
    (torch.cuda, "get_device_name"): lambda device=None: NAME,
    (torch.cuda, "get_device_properties"): lambda device=None: SimpleNamespace(
        name=NAME, total_memory=MEMORY
    ),
    (torch.cuda, "is_bf16_supported"): lambda including_emulation=True: True,
    (torch.cuda.amp.common, "amp_definitely_not_available"): lambda: False,
}
SEEN_THROUGH = [  # functions written in Python are not asked for, but what they call
    (module, name)
    for module in (torch.nn.functional, torch.functional, torch._tensor, torch.autograd)
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    if hasattr(module, name)
]


@contextlib.contextmanager
def card(monkeypatch: Any) -> Iterator[None]:
    """Meanwhile `cuda` is there."""
    with monkeypatch.context() as patch:
        for (where, name), answer in ANSWERS.items():
            patch.setattr(where, name, answer)
        for where, name in SEEN_THROUGH:
            patch.setattr(where, name, lambda *_: False)
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # shared parameters stay shared
        try:
            with _Computes(), _Asks():
                yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)
