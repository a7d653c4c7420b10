"""A training step's gradients as a CUDA graph: recorded once, then replayed.

Small steps are bound by the time in which the processor launches kernels one by one. A replay
launches all of them at once: the same kernels on the same numbers. What a step draws, and what it
is given, lies in tensors that keep their place and are filled anew before each replay. A step that
cannot be recorded, or whose replay differs in a bit from what it should be, is taken kernel by
kernel; replays are compared with it at first, and then ever more seldom.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.errors import HarnessError
from harness.fitting import step
from harness.fitting.step import Batch, Chunks

MOST = 0.4  # of the card's memory that a process may use and still record: it keeps a step's own
WARM, CHECKED = 3, 2  # steps that are taken one by one, then those whose replay is compared


class NotRecordable(Exception):
    """Why a step cannot be a graph."""


class ReplayDiffers(HarnessError):
    """Steps were replayed that should not have been."""


class Untold:
    """Stands for what is another in each step: nothing can be computed of it."""

    def __iter__(self) -> Iterator[object]:
        raise NotRecordable("it computes with the number of the step")

    __getitem__ = __bool__ = __float__ = __repr__ = __iter__  # type: ignore[assignment]


class Draws:
    """What the edits of a step draw, by site and purpose, in tensors that keep their place."""

    def __init__(self) -> None:
        self.made = dict[Hashable, tuple[Tensor, Callable[[tuple[object, ...]], Tensor]]]()
        self.complete = False

    def get(
        self,
        name: Hashable,
        key: tuple[object, ...],
        draw: Callable[[tuple[object, ...]], Tensor],
    ) -> Tensor:
        """What was drawn for this step."""
        if name not in self.made:
            if self.complete:
                raise NotRecordable(f"{name} was not drawn in the steps before")
            self.made[name] = draw(key), draw
        return self.made[name][0]

    def renew(self, key: tuple[object, ...]) -> None:
        """Draws all of them for a step."""
        for kept, draw in self.made.values():
            kept.copy_(draw(key))


class Constants(TorchFunctionMode):
    """What a step makes on the processor and moves to the card, such as a list of numbers. A graph
    cannot move it; what is the same in every step is kept on the card instead."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = list[tuple[Tensor, Tensor]]()
        self.place, self.recording = 0, False

    def start(self, recording: bool = False) -> "Constants":
        """Before a step: what it moves is noted, or compared with what is known."""
        self.place, self.recording = 0, recording
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            func, args, kwargs = Tensor.to, (func(*args, **kwargs), device), {}
        elif func not in (Tensor.to, Tensor.cuda):
            return func(*args, **kwargs)
        value = args[0]
        if value.is_cuda or not self._onto_card(func, args[1:], kwargs):
            return func(*args, **kwargs)
        self.place += 1
        if self.place > len(self.kept):
            if self.recording:
                raise NotRecordable("it moves tensors that no step before has moved")
            self.kept.append((value.clone(), func(*args, **kwargs)))
        known, moved = self.kept[self.place - 1]
        if not (known.dtype == value.dtype and torch.equal(known, value)):
            raise NotRecordable("it moves other numbers to the card in each step")
        return moved.clone()

    def _onto_card(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        if func is Tensor.cuda:
            return True
        asked = [*args, kwargs.get("device"), kwargs.get("other")]
        return any(
            (isinstance(each, Tensor) and each.is_cuda)
            or (isinstance(each, str) and each.startswith("cuda"))
            or (isinstance(each, torch.device) and each.type == "cuda")
            for each in asked
        )


class Recorder:
    """The gradients of the method's own loss on whole batches of one size, for one fit.

    why: why steps are not replayed; empty while they are, or while nothing speaks against it.
    """

    def __init__(self) -> None:
        self.why, self.calls, self.given = "", 0, tuple[object, ...]()
        self.draws, self.constants = Draws(), Constants()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.held: Batch | None = None
        self.gradients = list[Tensor | None]()

    def __call__(self, batch: Batch) -> Tensor:
        """As `step.gradients`: adds them to the trained parameters, which have none; the loss."""
        if self.why or not self._fits(batch):
            return step.gradients(batch)
        self.calls += 1
        try:
            if self.calls < WARM:
                return self._warm(batch)
            if self.calls == WARM:
                return self._rehearsed(batch)
            if self.graph is None:
                self._record()
            compared = self.calls <= WARM + CHECKED or self.calls.bit_count() == 1
            return self._checked(batch) if compared else self._replay(batch)
        except Exception as error:
            known = isinstance(error, torch.OutOfMemoryError) and self.calls <= WARM
            if known or isinstance(error, ReplayDiffers):
                raise
            self._give_up(str(error).strip().partition("\n")[0] or type(error).__name__)
            for parameter in batch.model.parameters():
                parameter.grad = None
            return step.gradients(batch)

    def ready(self, one: Callable[[], object]) -> None:
        """Takes steps until they are replayed, if they are ever."""
        for _ in range(WARM + CHECKED + 1):
            one()

    def _fits(self, batch: Batch) -> bool:
        if batch.chunks != Chunks() or batch.drawn() is not batch:
            return False
        if torch.cuda.current_stream() == torch.cuda.default_stream():
            return False
        places = tuple(parameter.data_ptr() for parameter in batch.model.parameters())
        given = id(batch.model), id(batch.texts), batch.x.shape, places
        self.given = self.given or given
        return given == self.given

    def _warm(self, batch: Batch) -> Tensor:
        """A step as before, of which is noted what it draws and then what it moves."""
        self.draws.renew(batch.key)
        noted = self.constants.start() if self.calls > 1 else contextlib.nullcontext()
        with noted:
            return step.gradients(replace(batch, draws=self.draws))

    def _rehearsed(self, batch: Batch) -> Tensor:
        """A step on what the graph will read, which raises what a recording would stumble over: to
        fail while recording may leave the card's generator unusable."""
        self.draws.renew(batch.key)
        self.draws.complete = True
        unknown: Any = Untold()
        kept: dict[str, Any] = {name: part.clone() for name, part in _of_images(batch).items()}
        self.held = replace(batch, **kept, key=unknown, progress=unknown, draws=self.draws)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with self.constants.start(recording=True):
                return step.gradients(self.held)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def _record(self) -> None:
        assert self.held is not None
        device = self.held.x.device
        whole = torch.cuda.get_device_properties(device).total_memory
        if torch.cuda.memory_reserved(device) > MOST * whole:
            raise NotRecordable("the memory of a recording would not leave enough for a step")
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with (
            self.constants.start(recording=True),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self.value = step.gradients(self.held)
        self.graph = graph
        self.gradients = [parameter.grad for parameter in self.held.model.parameters()]

    def _replay(self, batch: Batch) -> Tensor:
        assert self.graph is not None
        assert self.held is not None
        given = _of_images(batch)
        for name, kept in _of_images(self.held).items():
            kept.copy_(given[name])
        self.draws.renew(batch.key)
        self.graph.replay()
        for parameter, gradient in zip(batch.model.parameters(), self.gradients, strict=True):
            parameter.grad = gradient
        return self.value.clone()

    def _checked(self, batch: Batch) -> Tensor:
        """A replay that is compared with the step, to the bit.

        Raises:
            NotRecordable: they differ, and no replay was trusted before, or the step itself comes
                to other bits each time.
            ReplayDiffers: they differ after replays that were trusted.
        """
        value, parameters = self._replay(batch), batch.model.parameters()
        replayed = [value, *(each.clone() for each in self.gradients if each is not None)]

        def alone() -> list[Tensor]:
            for parameter in parameters:
                parameter.grad = None
            return [step.gradients(batch), *(p.grad for p in parameters if p.grad is not None)]

        expected = alone()
        if not _equal(replayed, expected):
            if self.calls <= WARM + CHECKED or not _equal(alone(), expected):
                raise NotRecordable("a replay is not equal to the step")
            raise ReplayDiffers(
                f"{batch.model.method.name}: what is the same in the first steps changes later, so "
                "that replayed steps were wrong. Fit it with --set engine.graphs=False."
            )
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return value

    def _give_up(self, why: str) -> None:
        self.why, self.graph, self.held = why, None, None
        self.draws, self.constants, self.gradients = Draws(), Constants(), []


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def _of_images(batch: Batch) -> dict[str, Tensor]:
    """What a step is given of its images."""
    found = {"x": batch.x, "labels": batch.labels}
    return found if batch.frozen is None else found | {"frozen": batch.frozen}


def recorder(device: torch.device, wanted: bool = True) -> Recorder | None:
    """For a fit on this device; None where nothing can be recorded."""
    return Recorder() if wanted and device.type == "cuda" and torch.cuda.is_available() else None


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def recordable(device: torch.device) -> Iterator[None]:
    """Meanwhile work goes to a stream that can be recorded, one for each card of a process."""
    if device.type != "cuda" or not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.current_stream(device)
    stream = _aside(device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)
