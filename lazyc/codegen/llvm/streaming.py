"""Memory that a kernel goes through once: what to ask for early, and what to keep out of the cache.

The CPU's own prefetchers stop at the end of a page and start anew with each row, and a kernel that
computes for a while between two rows leaves the memory idle. So loops over large buffers ask for
what they will need: an elementwise loop a little ahead of itself, a kernel that goes row by row for
the next row, from the loop that computes most.

A store to memory that is not in the cache reads it first. Results that are far larger than the cache
will not be found there by whoever reads them next, so they are stored past it, without that read.
"""

from __future__ import annotations

from collections.abc import Iterator

from lazyc.codegen.llvm.address import scalar_index
from lazyc.codegen.llvm.lanes import work
from lazyc.codegen.llvm.memory import element_pointer
from lazyc.codegen.llvm.region import Frame, Prefetch, Region
from lazyc.codegen.target import Target
from lazyc.ir.index import Axis, axis_index, substitute
from lazyc.ir.loops import BufferParam, Load, LoopNest, Stage, Store

LINE = 64  # bytes
_PAST_CACHE = 12  # times the L2 cache; all cores' together
_AHEAD = 1024  # bytes; some hundred cycles for any loop
_LONGEST_ROW = 64 << 10  # bytes; the next row should still be in the L2 cache when it is needed
_SHORTEST_RUN = 4096  # bytes; less of a buffer at a time may never come to what lies ahead


def stored_past_cache(nest: LoopNest, target: Target) -> frozenset[int]:
    """The buffers that are only stored to and far larger than the cache."""
    if not target.is_x86 or nest.vectorize == "none":
        return frozenset()
    return frozenset(
        k
        for k, b in enumerate(nest.buffers)
        if b.role == "out" and _bytes(b) > _PAST_CACHE * target.cache_bytes[1]
    )


def _bytes(buffer: BufferParam) -> int:
    """The size of a buffer; 0 where it is not known."""
    return buffer.numel * buffer.dtype.itemsize if isinstance(buffer.numel, int) else 0


def prefetches(
    nest: LoopNest, target: Target, past_cache: frozenset[int]
) -> dict[Stage, tuple[Prefetch, ...]]:
    """What each stage is to ask for; nothing of ``past_cache``."""
    if not nest.axes or nest.vectorize == "none":
        return {}
    large = {
        k
        for k, b in enumerate(nest.buffers)
        if b.role != "scratch" and k not in past_cache and _bytes(b) > target.cache_bytes[1]
    }
    if nest.vectorize == "outer":
        found = {stage: tuple(_ahead(nest, stage, large)) for stage in nest.stages}
    else:
        found = _next_rows(nest, large)
    return {stage: list_ for stage, list_ in found.items() if list_}


def _accesses(stage: Stage, axis: Axis, large: set[int]) -> Iterator[Load | Store]:
    """Loads and stores of large buffers along ``axis``, one for each place."""
    seen = set()
    for instr in stage.body:
        if not isinstance(instr, Load | Store) or instr.buffer not in large:
            continue
        place = instr.buffer, instr.index
        if instr.index.coef(axis) == 1 and not instr.index.value_refs() and place not in seen:
            seen.add(place)
            yield instr


def _ahead(nest: LoopNest, stage: Stage, large: set[int]) -> Iterator[Prefetch]:
    if stage.axes:
        return
    axis = nest.axes[-1]
    for access in _accesses(stage, axis, large):
        size = nest.buffers[access.buffer].dtype.itemsize
        if isinstance(axis.size, int) and axis.size * size >= _SHORTEST_RUN:
            yield Prefetch(access.buffer, access.index + _AHEAD // size, isinstance(access, Store))


def _next_rows(nest: LoopNest, large: set[int]) -> dict[Stage, tuple[Prefetch, ...]]:
    """Every large buffer's next row, where all rows are gone through by loops of one length."""
    loops = [stage for stage in nest.stages if stage.axes]
    if len({s.axes[-1].size for s in loops}) != 1 or any(len(s.axes) > 1 for s in loops):
        return {}
    carrier = max(loops, key=lambda s: work(s.body))
    found: dict[int, Prefetch] = {}
    for stage in loops:
        axis = stage.axes[0]
        for access in _accesses(stage, axis, large):
            row = access.index.coef(nest.axes[-1])
            size = nest.buffers[access.buffer].dtype.itemsize
            if not isinstance(row, int) or not 0 < row * size <= _LONGEST_ROW:
                continue
            position = axis_index(carrier.axes[0])
            index = substitute(access.index, lambda atom: position if atom == axis else None)  # noqa: B023
            rows = -(-_AHEAD // (row * size))
            found.setdefault(
                access.buffer,
                Prefetch(access.buffer, index + row * rows, isinstance(access, Store)),
            )
    return {carrier: tuple(found.values())}


def emit_prefetches(frame: Frame, region: Region, stage: Stage) -> None:
    """The prefetches of a stage for one iteration."""
    b = frame.b
    for ahead in frame.prefetches.get(stage, ()) if region.lanes > 1 else ():
        per_line = LINE // frame.buffer(ahead.buffer).dtype.itemsize
        for k in range(0, region.lanes, per_line):
            at = element_pointer(frame, ahead.buffer, scalar_index(frame, region, ahead.index + k))
            b.call(
                "void", "llvm.prefetch.p0", ("ptr", at), ("i32", str(int(ahead.write))),
                ("i32", "3"), ("i32", "1"),
            )  # fmt: skip
