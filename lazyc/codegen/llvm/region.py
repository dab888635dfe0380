"""What the code of a loop body is emitted against: the kernel's frame and the current region.

A ``Frame`` lasts for a kernel. A ``Region`` is one emission of a body: how many lanes, which axis
they run along, which of them are active, and the values defined so far. The same body is emitted
once for full vectors and once, masked, for the rest of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from lazyc.codegen.llvm.dims import emit_dim
from lazyc.codegen.llvm.emitter import Emitter, Int, Value, vector
from lazyc.codegen.target import Target
from lazyc.ir.index import Axis, Index
from lazyc.ir.loops import BufferParam, LoopNest, Stage
from lazyc.ir.types import Dim


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Memory to ask for: ``buffer[index]``, in the terms of the loop that does it; ``write``: to store
    there."""

    buffer: int
    index: Index
    write: bool


@dataclass(frozen=True)
class Frame:
    """A kernel while it is written. ``pointers`` has one operand a buffer; ``error`` and ``dummy``
    are stack slots: the error bits so far, and a place that masked-off scalar loads may read.
    ``prefetches``: what each stage asks for ahead of its use. ``past_cache``: buffers, each from the
    start of a cache line, whose stores leave the cache alone."""

    nest: LoopNest
    target: Target
    b: Emitter
    symbols: Mapping[sympy.Symbol, Int]
    pointers: tuple[str, ...]
    error: str
    dummy: str
    prefetches: Mapping[Stage, tuple[Prefetch, ...]]
    past_cache: frozenset[int]

    def dim(self, dim: Dim) -> Int:
        return emit_dim(self.b, dim, self.symbols)

    def buffer(self, index: int) -> BufferParam:
        return self.nest.buffers[index]

    def report(self, mask: str, lanes: int, bit: int) -> None:
        """Notes an error in the lanes where ``mask`` is true."""
        b = self.b
        found = b.any_lane(mask, lanes)
        bits = b.emit(f"select i1 {found}, i64 {bit}, i64 0")
        old = b.emit(f"load i64, ptr {self.error}")
        b.void(f"store i64 {b.emit(f'or i64 {old}, {bits}')}, ptr {self.error}")


@dataclass(frozen=True)
class Region:
    """``axis`` runs along the ``lanes`` (None: scalar code). ``positions`` are the loop variables,
    for ``axis`` the position of lane 0, always a multiple of ``lanes``. ``active`` is the mask of the
    lanes inside the axis, None for all; it stands at ``depth``. ``interleaved``: scratch memory holds
    a copy a lane."""

    lanes: int
    axis: Axis | None
    active: str | None
    positions: dict[Axis, Int]
    values: dict[int, Value]
    interleaved: bool = False
    depth: int = 0

    def with_mask(self, b: Emitter, mask: str | None) -> str | None:
        """``mask`` (an operand of all lanes) restricted to the active lanes."""
        if mask is None or self.active is None:
            return mask or self.active
        type_ = vector("i1", self.lanes)
        return b.emit(f"and {type_} {mask}, {self.active}")
