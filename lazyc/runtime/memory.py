"""The arena of a Program: where its temporaries lie, and the memory that they lie in.

``plan_arena`` is the greedy-by-size offset assignment of Pisarchyk and Lee, "Efficient Memory
Management for Deep Neural Net Inference" (2020). An ``ArenaPool`` serves every Program of the process:
a call takes one arena, alone, and gives it back, so two threads (or a call made from inside an eager
step) never share one, and memory is the largest need and not the sum.
"""

from __future__ import annotations

import bisect
import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

ALIGNMENT = 64
PAGE = 4096
HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14


@dataclass(frozen=True, slots=True)
class Interval:
    """A temporary of ``nbytes`` in use from step ``first`` to step ``last``, both included."""

    nbytes: int
    first: int
    last: int


def plan_arena(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Offset of each interval, a multiple of 64, and the bytes of the whole arena.

    Intervals that share a step never overlap in memory. Largest first, each into the smallest gap
    between those placed before that live at the same time.
    """
    offsets = [0] * len(intervals)
    placed: list[tuple[int, int, int]] = []  # (offset, end, index), sorted
    total = 0
    order = sorted(range(len(intervals)), key=lambda i: (-intervals[i].nbytes, intervals[i].first))
    for index in order:
        wanted = intervals[index]
        size = -(-wanted.nbytes // ALIGNMENT) * ALIGNMENT
        best, best_gap, end = -1, -1, 0
        for offset, stop, k in placed:
            other = intervals[k]
            if other.first > wanted.last or other.last < wanted.first:
                continue
            gap = offset - end
            if gap >= size and (best < 0 or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, stop)
        start = best if best >= 0 else end
        offsets[index] = start
        bisect.insort(placed, (start, start + size, index))
        total = max(total, start + size)
    return offsets, total


def advise_huge_pages(address: int, nbytes: int) -> None:
    """Asks for huge pages in the whole 2 MiB pieces of a fresh range (halves its first-touch cost).

    A hint: does nothing where the kernel has none.
    """
    start = -(-address // HUGE_PAGE) * HUGE_PAGE
    end = (address + nbytes) // HUGE_PAGE * HUGE_PAGE
    if _madvise is not None and end > start:
        _madvise(start, end - start, _MADV_HUGEPAGE)


def _find_madvise() -> Any:
    try:
        function = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


_madvise = _find_madvise()


class Arena:
    """Page-aligned memory of at least ``nbytes``; ``views`` keeps what a binding made over it."""

    __slots__ = ("address", "device", "nbytes", "start", "storage", "views")

    def __init__(self, nbytes: int, device: str = "cpu") -> None:
        self.device = device
        self.nbytes = -(-nbytes // PAGE) * PAGE
        with torch.inference_mode(False):
            memory = torch.empty(self.nbytes + PAGE, dtype=torch.uint8, device=device)
        self.storage = memory.untyped_storage()
        base = self.storage.data_ptr()
        self.start = -base % PAGE
        self.address = base + self.start
        self.views: weakref.WeakKeyDictionary[Any, list[torch.Tensor]] = weakref.WeakKeyDictionary()
        if device == "cpu":
            advise_huge_pages(self.address, self.nbytes)

    def contains(self, address: int) -> bool:
        return self.address <= address < self.address + self.nbytes

    def view(
        self, offset: int, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]
    ) -> torch.Tensor:
        """A tensor over the arena's memory from byte ``offset`` on."""
        with torch.inference_mode(False):
            empty = torch.empty(0, dtype=dtype, device=self.device)
            return empty.set_(
                self.storage, (self.start + offset) // dtype.itemsize, tuple(shape), tuple(strides)
            )


class ArenaPool:
    """Idle arenas, handed out one at a time. Safe to use from several threads without a lock:
    popping from a list and appending to it are atomic."""

    def __init__(self) -> None:
        self._idle: list[Arena] = []
        self.allocated = 0  # arenas made so far
        self.allocated_bytes = 0
        self.recycled_bytes = 0  # asked for, and found in an idle arena

    def take(self, nbytes: int) -> Arena:
        """An arena of at least ``nbytes`` that nobody else has. One that is too small is dropped:
        it grows to the largest need, and stays there."""
        try:
            arena = self._idle.pop()
            if arena.nbytes >= nbytes:
                self.recycled_bytes += nbytes
                return arena
        except IndexError:
            pass
        arena = Arena(nbytes)
        self.allocated += 1
        self.allocated_bytes += arena.nbytes
        return arena

    def give(self, arena: Arena) -> None:
        self._idle.append(arena)

    @property
    def idle_bytes(self) -> int:
        return sum(arena.nbytes for arena in list(self._idle))

    def clear(self) -> None:
        """Frees every idle arena."""
        self._idle.clear()
