"""``generate``: a LoopNest as a module of LLVM IR text with one exported function.

Work items. When the last outer axis runs along the lanes, an item is one vector of it at one point
of the other outer axes; otherwise an item is one outer point. A call decodes its first item into
positions by division, then counts them up; consecutive items of one row share a loop.
"""

from __future__ import annotations

from itertools import takewhile

import sympy

from lazyc.codegen.base import CodegenError, KernelCode, KernelRef
from lazyc.codegen.llvm.casts import memory_type
from lazyc.codegen.llvm.emitter import Emitter, Int, integer
from lazyc.codegen.llvm.lanes import Widths, choose_widths, grain
from lazyc.codegen.llvm.region import Frame, Region
from lazyc.codegen.llvm.stages import emit_stage, emit_vectors
from lazyc.codegen.llvm.streaming import LINE, prefetches, stored_past_cache
from lazyc.codegen.llvm.tiling import tiled
from lazyc.codegen.target import Target
from lazyc.ir.index import Axis
from lazyc.ir.loops import LoopNest, Reduce, Store
from lazyc.ir.types import Dim, numel

_MOST_SCRATCH = 1 << 20  # bytes on a thread's stack


def generate(nest: LoopNest, symbol: str, target: Target) -> KernelCode:
    """The kernel of a LoopNest. Raises CodegenError for what it has no code for."""
    whole, nest = nest, tiled(nest)
    widths = _outer_widths(nest, target)
    rows = nest.axes if widths is None else nest.axes[:-1]
    vectors: Dim = 1 if widths is None else _ceil_div(nest.axes[-1].size, widths.main)
    items = numel(axis.size for axis in rows) * vectors
    frames = [_emit_body(nest, target, widths, rows, frozenset())]
    past_cache = stored_past_cache(nest, target)
    if past_cache:
        frames.append(_emit_body(nest, target, widths, rows, past_cache))
    text = _module(frames, symbol)
    pairs = zip(
        rows, whole.axes, strict=False
    )  # what is tiled, or the last axis of vectors, is not
    ordered = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    ref = KernelRef(symbol, items, grain(nest, target, widths.main if widths else 1), ordered)
    return KernelCode(ref, text)


def _emit_body(
    nest: LoopNest,
    target: Target,
    widths: Widths | None,
    rows: tuple[Axis, ...],
    past_cache: frozenset[int],
) -> Frame:
    b = Emitter(target)
    frame = _open_frame(nest, b, target, widths, past_cache)
    with b.branch(b.emit("icmp slt i64 %begin, %end")):  # nothing below sees an empty space
        _emit_rows(frame, rows, widths)
    _close_frame(frame)
    return frame


def _ceil_div(size: Dim, by: int) -> Dim:
    if isinstance(size, int):
        return -(-size // by)
    return sympy.floor((size + by - 1) / by)


def _outer_widths(nest: LoopNest, target: Target) -> Widths | None:
    """The lanes along the last outer axis; None when that axis is not a vector axis."""
    if nest.vectorize != "outer" or not nest.axes:
        return None
    body = [instr for stage in nest.stages for instr in stage.body]
    reduces = any(isinstance(i, Reduce) and s.axes for s in nest.stages for i in s.body)
    widths = choose_widths(body, nest.axes[-1], target, reduces)
    return widths if widths.main > 1 else None


def _open_frame(
    nest: LoopNest,
    b: Emitter,
    target: Target,
    widths: Widths | None,
    past_cache: frozenset[int],
) -> Frame:
    symbols = {s: Int(f"%n{k}", 0) for k, s in enumerate(nest.symbols)}
    error, dummy = b.alloca("i64"), b.alloca("i64")
    b.void(f"store i64 0, ptr {error}")
    b.void(f"store i64 0, ptr {dummy}")
    copies = widths.main if widths else 1
    pointers: list[str] = []
    for k, buffer in enumerate(nest.buffers):
        if buffer.role != "scratch":
            pointers.append(f"%b{k}")
            continue
        count = int(buffer.numel) * copies
        if count * buffer.dtype.itemsize > _MOST_SCRATCH:
            raise CodegenError(f"scratch of {count} {buffer.dtype} is too large for a stack")
        pointers.append(b.alloca(memory_type(buffer.dtype), max(count, 1)))
    ahead = prefetches(nest, target, past_cache)
    return Frame(nest, target, b, symbols, tuple(pointers), error, dummy, ahead, past_cache)


def _emit_rows(frame: Frame, rows: tuple[Axis, ...], widths: Widths | None) -> None:
    b = frame.b
    begin, end = Int("%begin", b.depth), Int("%end", b.depth)
    if not rows:
        _emit_row(frame, {}, widths, begin, end)
        return
    sizes = [frame.dim(axis.size) for axis in rows]
    if widths is None:
        blocks = integer(1)
    else:
        length = frame.dim(frame.nest.axes[-1].size)
        blocks = b.udiv(b.add(length, integer(widths.main - 1)), integer(widths.main))
    slots = _decode(frame, b.udiv(begin, blocks), sizes)
    first, item = b.alloca("i64"), b.alloca("i64")
    b.void(f"store i64 {b.urem(begin, blocks).text}, ptr {first}")
    b.void(f"store i64 %begin, ptr {item}")
    with b.repeat() as condition:
        positions = {
            axis: integer(0)
            if slot is None
            else Int(b.emit(f"load i64, ptr {slot}", axis.name), b.depth)
            for axis, slot in zip(rows, slots, strict=True)
        }
        now = Int(b.emit(f"load i64, ptr {item}"), b.depth)
        block = integer(0)
        if widths is not None:
            block = Int(b.emit(f"load i64, ptr {first}"), b.depth)
        count = b.minimum(b.sub(end, now), b.sub(blocks, block))
        _emit_row(frame, positions, widths, block, b.add(block, count))
        following = b.add(now, count)
        b.void(f"store i64 {following.text}, ptr {item}")
        b.void(f"store i64 0, ptr {first}")
        _advance(frame, positions, slots, sizes)
        condition.append(b.emit(f"icmp slt i64 {following.text}, %end"))


def _decode(frame: Frame, row: Int, sizes: list[Int]) -> list[str | None]:
    """Stack slots holding the row's position along each axis; None for an axis of size 1."""
    b = frame.b
    slots: list[str | None] = [None] * len(sizes)
    for k in reversed(range(len(sizes))):
        if sizes[k].known == 1:
            continue
        position = row if k == 0 else b.urem(row, sizes[k])
        row = row if k == 0 else b.udiv(row, sizes[k])
        slots[k] = b.alloca("i64")
        b.void(f"store i64 {position.text}, ptr {slots[k]}")
    return slots


def _advance(
    frame: Frame, positions: dict[Axis, Int], slots: list[str | None], sizes: list[Int]
) -> None:
    """Counts the positions up by one row, the last axis fastest."""
    b = frame.b
    carry = integer(1)
    for (axis, position), slot, size in reversed(
        list(zip(positions.items(), slots, sizes, strict=True))
    ):
        if slot is None:
            continue
        higher = b.add(position, carry)
        full = b.emit(f"icmp eq i64 {higher.text}, {size.text}", axis.name)
        b.void(f"store i64 {b.emit(f'select i1 {full}, i64 0, i64 {higher.text}')}, ptr {slot}")
        carry = Int(b.emit(f"zext i1 {full} to i64"), b.depth)


def _emit_row(
    frame: Frame, positions: dict[Axis, Int], widths: Widths | None, block: Int, stop: Int
) -> None:
    """The stages at one point of the outer axes; for a vector axis, at its blocks [block, stop)."""
    region = Region(1, None, None, dict(positions), {})
    if widths is None:
        _emit_stages(frame, region)
        return
    b, axis = frame.b, frame.nest.axes[-1]
    lanes = integer(widths.main)
    first = b.mul(block, lanes)
    last = b.minimum(b.mul(stop, lanes), frame.dim(axis.size))
    emit_vectors(
        frame, region, axis, first, last, widths, lambda part: _emit_stages(frame, part), True
    )


def _emit_stages(frame: Frame, region: Region) -> None:
    for stage in frame.nest.stages:
        emit_stage(frame, region, stage)


def _close_frame(frame: Frame) -> None:
    b = frame.b
    bits = b.emit(f"load i64, ptr {frame.error}")
    with b.branch(b.emit(f"icmp ne i64 {bits}, 0")):
        b.emit(f"atomicrmw or ptr %error, i64 {bits} monotonic")
    if frame.past_cache:
        # Stores past the cache are not ordered with those that tell other threads of them.
        b.call("void", "llvm.x86.sse.sfence")
    b.void("ret void")


def _module(frames: list[Frame], symbol: str) -> str:
    """The exported function unpacks the arguments for the body, whose pointers never alias.

    The last of several bodies is for memory that starts at a cache line.
    """
    nest = frames[0].nest
    memory = [k for k, buffer in enumerate(nest.buffers) if buffer.role != "scratch"]
    args = [f"ptr %b{k}" for k in memory] + [f"i64 %n{k}" for k in range(len(nest.symbols))]
    args += ["i64 %begin", "i64 %end", "ptr %error"]
    unpack = []
    for place, k in enumerate(memory):
        unpack.append(f"  %b{k}.at = getelementptr ptr, ptr %buffers, i64 {place}")
        unpack.append(f"  %b{k} = load ptr, ptr %b{k}.at")
    for k in range(len(nest.symbols)):
        unpack.append(f"  %n{k}.at = getelementptr i64, ptr %sizes, i64 {k}")
        unpack.append(f"  %n{k} = load i64, ptr %n{k}.at")
    calls = [f"  call fastcc void @{symbol}.body({', '.join(args)})", "  ret void"]
    if len(frames) > 1:
        unpack += [*_starts_at_line(sorted(frames[1].past_cache)), "past_cache:"]
        unpack += [f"  call fastcc void @{symbol}.past_cache({', '.join(args)})", "  ret void"]
        unpack.append("plain:")
    definitions = {k: v for frame in frames for k, v in frame.b.definitions.items()}
    declares = {k: v for frame in frames for k, v in frame.b.declares.items()}
    signature = "ptr %buffers, ptr %sizes, i64 %begin, i64 %end, ptr %error"
    lines = [
        f'target triple = "{frames[0].target.triple}"',
        f"define void @{symbol}({signature}) nounwind {{",
        *unpack,
        *calls,
        "}",
        *_function(frames[0], f"{symbol}.body"),
        *(_function(frames[1], f"{symbol}.past_cache") if len(frames) > 1 else ()),
        *definitions.values(),
        *declares.values(),
        "!0 = !{i32 1}",
    ]
    return "\n".join(lines) + "\n"


def _starts_at_line(buffers: list[int]) -> list[str]:
    """Code that goes to ``past_cache`` where all buffers start at a cache line, else to ``plain``."""
    lines, total = [], "0"
    for k in buffers:
        lines.append(f"  %b{k}.int = ptrtoint ptr %b{k} to i64")
        lines.append(f"  %b{k}.or = or i64 {total}, %b{k}.int")
        total = f"%b{k}.or"
    lines.append(f"  %rest = and i64 {total}, {LINE - 1}")
    lines.append("  %at_line = icmp eq i64 %rest, 0")
    return [*lines, "  br i1 %at_line, label %past_cache, label %plain"]


def _function(frame: Frame, name: str) -> list[str]:
    b, nest = frame.b, frame.nest
    stored = {i.buffer for s in nest.stages for i in s.body if isinstance(i, Store)}
    params = [
        f"ptr noalias {'' if k in stored else 'readonly '}%b{k}"
        for k, buffer in enumerate(nest.buffers)
        if buffer.role != "scratch"
    ]
    params += [f"i64 %n{k}" for k in range(len(nest.symbols))]
    params += ["i64 %begin", "i64 %end", "ptr noalias %error"]
    return [
        f"define internal fastcc void @{name}({', '.join(params)}) noinline nounwind {{",
        "entry:",
        *b.allocas,
        *b.scopes[0].lines,
        "}",
    ]
