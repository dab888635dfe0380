"""Memory of a Program's outputs: big ones come from recycled blocks whose pages are warm.

A fresh 64 MB tensor costs more in page faults than the arithmetic that fills it. The pool keeps a
reference to the storage of each big output that it made, and hands the storage out again when nobody
else holds it any more. "Nobody else" is decided by two counts that together see every holder:

* the C++ use count of the storage: every tensor or view, autograd graph, numpy array or DLPack
  capsule over it;
* the Python reference count of the storage object, of which there is one for each storage: somebody
  who kept ``tensor.untyped_storage()`` and dropped the tensor.

A block whose memory was moved or resized (``share_memory_``, ``resize_``) is forgotten. What idle
counts are is found by a trial at start-up; if they do not behave as described, nothing is recycled.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from lazyc.forks import renew_in_child
from lazyc.ir.types import storage_extent
from lazyc.runtime.memory import HUGE_PAGE, advise_huge_pages

_PROBES = 4  # blocks looked at before a new one is made
_TRIM_EVERY = 256  # allocations between two looks for old blocks

_use_count: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


def _empty_strided(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
) -> torch.Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")


def _fast_empty_strided() -> Callable[..., torch.Tensor]:
    """torch's shorter way to an uninitialised CPU tensor, where this version has it."""
    guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
    return getattr(guards, "_empty_strided_cpu", _empty_strided)


empty_strided_cpu = _fast_empty_strided()


class _Block:
    """A storage that the pool may hand out, and the template tensor that its users are copied from."""

    __slots__ = ("address", "cdata", "nbytes", "spec", "storage", "template", "used_at")

    def __init__(self, template: torch.Tensor, spec: Any) -> None:
        self.storage = template.untyped_storage()
        self.cdata = self.storage._cdata
        self.address = self.storage.data_ptr()
        self.nbytes = self.storage.nbytes()
        self.template = template
        self.spec = spec
        self.used_at = time.monotonic()


def _counts(block: _Block) -> tuple[int, int]:
    assert _use_count is not None
    return _use_count(block.cdata), sys.getrefcount(block.storage)


def _idle_counts() -> tuple[int, int] | None:
    """The counts of a block that only the pool holds; None if they do not tell holders apart."""
    if _use_count is None:
        return None
    with torch.inference_mode(False):
        block = _Block(torch.empty(16, device="cpu"), None)
    idle = _counts(block)

    def seen(hold: Callable[[torch.Tensor], Any]) -> bool:
        held = hold(block.template.data)
        busy = _counts(block) != idle
        del held
        return busy and _counts(block) == idle

    holds: tuple[Callable[[torch.Tensor], Any], ...] = (
        lambda t: t,
        lambda t: t[3:],
        lambda t: t.numpy(),
        lambda t: t.untyped_storage(),
        torch.to_dlpack,
    )
    return idle if all(seen(hold) for hold in holds) else None


class OutputPool:
    """Makes the output tensors of Programs.

    ``min_bytes``: smaller ones are plain fresh tensors. ``max_bytes``: most that the pool keeps hold
    of, idle or in use; past it the oldest blocks are let go (a user's tensor lives on, it is just
    not recycled). ``max_idle_seconds``: a block idle for longer is freed at a later allocation.

    Takes no lock on the way that a warm call goes: a block is looked at and handed out while it is
    popped from its deque, so by one thread only.
    """

    def __init__(
        self,
        min_bytes: int = 256 << 10,
        max_bytes: int = 1 << 30,
        max_idle_seconds: float = 60.0,
    ) -> None:
        self.min_bytes = min_bytes
        self.max_bytes = max_bytes
        self.max_idle_seconds = max_idle_seconds
        self.recycled_bytes = 0
        self.allocated_bytes = 0
        self._takes = 0
        self._idle = _idle_counts()
        # A deque and its idle blocks go when the last allocator of that size does.
        self._blocks: weakref.WeakValueDictionary[int, deque[_Block]] = (
            weakref.WeakValueDictionary()
        )
        self._lock = threading.Lock()
        renew_in_child(self)

    @property
    def recycles(self) -> bool:
        """Whether holders can be told apart in this version of torch."""
        return self._idle is not None

    def allocator(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
    ) -> Callable[[], torch.Tensor]:
        """A function that makes an uninitialised CPU tensor of this layout at each call."""
        nbytes = storage_extent(shape, strides) * dtype.itemsize
        if nbytes < self.min_bytes or self._idle is None or nbytes > self.max_bytes:
            return partial(empty_strided_cpu, shape, strides, dtype)
        with self._lock:
            queue = self._blocks.get(nbytes)
            if queue is None:
                queue = self._blocks[nbytes] = deque()
        return partial(self._take, queue, (shape, strides, dtype), nbytes)

    def _take(self, queue: deque[_Block], spec: Any, nbytes: int) -> torch.Tensor:
        self._takes += 1
        if self._takes % _TRIM_EVERY == 0:
            self.trim()
        for _ in range(_PROBES):
            try:
                block = queue.popleft()
            except IndexError:
                break
            if block.storage.data_ptr() != block.address or block.storage.nbytes() != block.nbytes:
                continue  # moved or resized by its user: no longer ours to reuse
            if _counts(block) != self._idle:
                queue.append(block)
                continue
            inference = torch.is_inference_mode_enabled()
            if block.spec != spec or block.template.is_inference() != inference:
                self._reshape(block, spec)
            tensor = block.template.data
            block.used_at = time.monotonic()
            queue.append(block)
            self.recycled_bytes += nbytes
            return tensor
        return self._fresh(queue, spec, nbytes)

    @staticmethod
    def _reshape(block: _Block, spec: Any) -> None:
        shape, strides, dtype = spec
        empty = torch.empty(0, dtype=dtype, device="cpu")
        block.template = empty.set_(block.storage, 0, shape, strides)
        block.spec = spec

    def _fresh(self, queue: deque[_Block], spec: Any, nbytes: int) -> torch.Tensor:
        template = empty_strided_cpu(*spec)
        if nbytes >= 2 * HUGE_PAGE:
            advise_huge_pages(template.data_ptr(), nbytes)
        block = _Block(template, spec)
        tensor = template.data
        with self._lock:
            self.allocated_bytes += nbytes
            self._shrink(self.max_bytes - nbytes)
            queue.append(block)
        return tensor

    @property
    def held_bytes(self) -> int:
        """Bytes of all blocks that the pool knows, idle or in use."""
        return sum(b.nbytes for queue in list(self._blocks.values()) for b in list(queue))

    @property
    def idle_bytes(self) -> int:
        """Bytes of the blocks that nobody uses."""
        blocks = [b for queue in list(self._blocks.values()) for b in list(queue)]
        return sum(b.nbytes for b in blocks if self._is_idle(b))

    def _is_idle(self, block: _Block) -> bool:
        """Like the check in _take, from a caller that holds one more reference to the block only."""
        return _counts(block) == self._idle

    def _shrink(self, limit: int) -> None:
        """Lets go of the blocks handed out longest ago until at most ``limit`` bytes are held."""
        excess = self.held_bytes - limit
        while excess > 0:
            queues = [q for q in self._blocks.values() if q]
            if not queues:
                return
            try:
                oldest = min(queues, key=lambda q: q[0].used_at).popleft()
            except IndexError:  # another thread took it between the two looks
                continue
            excess -= oldest.nbytes

    def trim(self, max_idle_seconds: float | None = None) -> None:
        """Frees the blocks idle for longer than ``max_idle_seconds`` (default: the pool's)."""
        limit = self.max_idle_seconds if max_idle_seconds is None else max_idle_seconds
        before = time.monotonic() - limit
        for queue in list(self._blocks.values()):
            for _ in range(len(queue)):
                try:
                    block = queue.popleft()
                except IndexError:
                    break
                if block.used_at > before or _counts(block) != self._idle:
                    queue.append(block)
