"""The GPU that Programs run on: its stream, and its memory from torch's caching allocator.

A Program's kernels are launched on torch's current stream, after what is in it and before what comes
later. Memory that was taken for one call may be given back as soon as the kernels are queued: torch's
allocator hands it out again on the same stream only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from lazyc.ir.types import storage_extent
from lazyc.runtime.memory import Arena

ALIGNMENT = 16  # bytes, of every address that a kernel is given (codegen/triton/compile.py)


class Device(Protocol):
    """Where a Program runs, if not on the CPU. ``name``: of its tensors' device."""

    @property
    def name(self) -> str: ...

    @property
    def hardware(self) -> str:
        """What it is, and its driver: all besides code that decides how fast code is."""
        ...

    def stream(self) -> int:
        """The handle of torch's current stream."""
        ...

    def current(self) -> AbstractContextManager[Any]:
        """Makes the device torch's current one."""
        ...

    def mark(self) -> Callable[[], None]:
        """A function that has torch's current stream, when it is called, wait for what the one that is current
        now was given so far. It does not wait itself."""
        ...

    def use(self, tensors: Iterable[torch.Tensor]) -> None:
        """Keeps the memory of tensors, made on another stream, until the current one is done with them, even
        if they die before."""
        ...

    def is_capturing(self) -> bool:
        """Whether the caller captures torch's current stream."""
        ...

    def seconds(self, run: Callable[[], None]) -> float:
        """How long the device takes for what ``run`` queues on torch's current stream. Waits for it."""
        ...

    def copy_of(self, address: int, nbytes: int) -> torch.Tensor:
        """A copy of memory there, as bytes."""
        ...

    def capture(self, run: Callable[[], list[Any]]) -> tuple[list[Any], Callable[[], None]]:
        """What ``run`` returns, and what does again all that it queued. Nothing of it is done yet."""
        ...


class _Bytes:
    """Memory of a GPU as torch takes it from others (Numba, "CUDA Array Interface (Version 3)")."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class CudaGpu:
    """GPU number ``index`` of torch's."""

    index: int

    @property
    def name(self) -> str:
        return f"cuda:{self.index}"

    @property
    def hardware(self) -> str:
        driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # CUDA builds have it
        return f"{torch.cuda.get_device_name(self.index)}, driver {driver}"

    def stream(self) -> int:
        return torch._C._cuda_getCurrentRawStream(self.index)

    def current(self) -> AbstractContextManager[Any]:
        if torch.cuda.current_device() == self.index:
            return nullcontext()
        return torch.cuda.device(self.index)

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.index))
        return lambda: torch.cuda.current_stream(self.index).wait_event(event)

    def use(self, tensors: Iterable[torch.Tensor]) -> None:
        stream = torch.cuda.current_stream(self.index)
        for tensor in tensors:
            tensor.record_stream(stream)

    def is_capturing(self) -> bool:
        with self.current():
            return torch.cuda.is_current_stream_capturing()

    def seconds(self, run: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def copy_of(self, address: int, nbytes: int) -> torch.Tensor:
        if not nbytes:
            return torch.empty(0, dtype=torch.uint8, device=self.name)
        return torch.as_tensor(_Bytes(address, nbytes), device=self.name).clone()

    def capture(self, run: Callable[[], list[Any]]) -> tuple[list[Any], Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
        return results, graph.replay


class Shared:
    """Tensors that torch's current stream was given to make, for calls on any stream to read."""

    def __init__(self, device: Device, tensors: Sequence[torch.Tensor]) -> None:
        self._device = device
        self._tensors = tensors
        self._stream = device.stream()
        self._join = device.mark()

    def use(self) -> None:
        """To be called before each call that reads them."""
        if self._device.stream() != self._stream:
            self._join()
            self._device.use(self._tensors)


class DeviceArenas:
    """Like ``memory.ArenaPool``, of torch's allocator: a call takes memory and gives it back to torch."""

    idle_bytes = 0

    def __init__(self, device: Device) -> None:
        self._device = device.name
        self.allocated = 0
        self.allocated_bytes = 0
        self.recycled_bytes = 0

    def take(self, nbytes: int) -> Arena:
        self.allocated += 1
        self.allocated_bytes += nbytes
        return Arena(nbytes, self._device)

    def give(self, arena: Arena) -> None:
        """Nothing holds an arena but the call that took it."""

    def clear(self) -> None:
        """There are no idle arenas."""


class DeviceOutputs:
    """Like ``outputs.OutputPool``, of torch's allocator."""

    def __init__(self, device: Device) -> None:
        self._device = device.name
        self.allocated_bytes = 0
        self.recycled_bytes = 0

    def allocator(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
    ) -> Callable[[], torch.Tensor]:
        """A function that makes an uninitialised tensor of this layout at each call."""
        nbytes = storage_extent(shape, strides) * dtype.itemsize
        return partial(self._make, nbytes, shape, strides, dtype)

    def _make(
        self, nbytes: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        self.allocated_bytes += nbytes
        return torch.empty_strided(shape, strides, dtype=dtype, device=self._device)
