"""Stages: the loops inside of one outer point (or of a vector of them), and their bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm import memory, pointwise, random
from lazyc.codegen.llvm.address import index_depth, index_value, lane_stride
from lazyc.codegen.llvm.emitter import Int, Value, constant, integer, iota, literal, vector
from lazyc.codegen.llvm.lanes import Widths, choose_widths
from lazyc.codegen.llvm.reduction import Accumulator, ScanState
from lazyc.codegen.llvm.region import Frame, Region
from lazyc.codegen.llvm.streaming import emit_prefetches
from lazyc.ir.index import Axis, Index
from lazyc.ir.loops import (
    ERROR_INDEX,
    CheckIndex,
    Compute,
    Const,
    IndexValue,
    Instr,
    Load,
    Random,
    Reduce,
    Scan,
    Stage,
    Store,
)
from lazyc.ir.types import DType, is_nonneg

# A float sum over more iterations than this keeps runs and a total.
_LONG_SUM = 256
_RUN = 64


@dataclass
class _Emission:
    """A stage being emitted: its accumulators, and the values of the outer point to add to."""

    frame: Frame
    stage: Stage
    accumulators: dict[int, Accumulator]
    scans: dict[int, ScanState]


def emit_stage(frame: Frame, region: Region, stage: Stage) -> None:
    """Emits a stage and adds the values that later stages may read to ``region.values``."""
    if not stage.axes:
        emission = _Emission(frame, stage, {}, {})
        _start(emission, region, (region.lanes,), two_level=False)
        _emit_body(emission, region, region.values)
        _finish(emission, region, across_lanes=False)
        return
    inner = frame.nest.vectorize == "inner"
    widths = _inner_widths(frame, stage) if inner else None
    emission = _Emission(frame, stage, {}, {})
    trips = _trips(stage, widths)
    long = trips is None or trips > _LONG_SUM
    _start(emission, region, _body_lanes(stage, widths, region), two_level=long)
    _emit_loops(emission, region, stage.axes, widths, long)
    _finish(emission, region, across_lanes=inner)


def _inner_widths(frame: Frame, stage: Stage) -> Widths:
    """Lanes along the stage's last axis; one where iterations depend on each other."""
    if any(isinstance(i, Scan) for i in stage.body) or not _positions_ascend(stage):
        return Widths(1, 1)
    reduces = any(isinstance(i, Reduce) for i in stage.body)
    return choose_widths(stage.body, stage.axes[-1], frame.target, reduces)


def _positions_ascend(stage: Stage) -> bool:
    """Whether every argmax position grows along the loops, so that the least one is the first."""
    indices = {i.id: i.index for i in stage.body if isinstance(i, IndexValue)}
    for instr in stage.body:
        if isinstance(instr, Reduce) and instr.position is not None:
            index = indices.get(instr.position)
            if index is None or not _ascends(index, stage.axes):
                return False
    return True


def _ascends(index: Index, axes: tuple[Axis, ...]) -> bool:
    """Whether the index grows strictly in the row-major order of ``axes``."""
    span = 0
    for axis in reversed(axes):
        coef = index.coef(axis)
        if axis.size == 1:
            continue
        if axis != axes[-1] and not isinstance(span, int):
            return False
        if not is_nonneg(coef - span - 1):
            return False
        span = span + coef * (axis.size - 1)
    return not any(not isinstance(a, Axis) for a, _ in index.terms)


def _has_rest(axis: Axis, widths: Widths) -> bool:
    return widths.main > 1 and not (isinstance(axis.size, int) and axis.size % widths.main == 0)


def _has_main(axis: Axis, widths: Widths) -> bool:
    if widths.single and _has_rest(axis, widths):
        return False
    return not isinstance(axis.size, int) or axis.size >= widths.main


def _body_lanes(stage: Stage, widths: Widths | None, region: Region) -> tuple[int, ...]:
    """The lane counts that the stage's body is emitted for."""
    if widths is None:
        return (region.lanes,)
    axis = stage.axes[-1]
    lanes = [widths.main] if _has_main(axis, widths) else []
    if _has_rest(axis, widths) and widths.rest not in lanes:
        lanes.append(widths.rest)
    return tuple(lanes) or (widths.main,)  # an axis of size 0 has neither, but has a result


def _trips(stage: Stage, widths: Widths | None) -> int | None:
    """How many iterations one lane runs; None when that is not known."""
    trips = 1
    for axis in stage.axes:
        if not isinstance(axis.size, int):
            return None
        trips *= axis.size
    return trips // widths.main if widths else trips


def _start(emission: _Emission, region: Region, lanes: tuple[int, ...], two_level: bool) -> None:
    dtypes = _dtypes(emission.frame)
    for instr in emission.stage.body:
        if isinstance(instr, Reduce):
            dtype = dtypes[instr.value]
            emission.accumulators[instr.id] = Accumulator(
                emission.frame, instr, dtype, lanes, two_level
            )
        elif isinstance(instr, Scan):
            emission.scans[instr.id] = ScanState(emission.frame, instr, lanes[0])


def _dtypes(frame: Frame) -> dict[int, DType]:
    """The type of every value of the nest."""
    return {i.id: i.dtype for s in frame.nest.stages for i in s.body if not isinstance(i, Store)}


def _finish(emission: _Emission, region: Region, across_lanes: bool) -> None:
    for number, accumulator in emission.accumulators.items():
        accumulator.end_run()
        region.values[number] = accumulator.finish(across_lanes)


# --- loops ----------------------------------------------------------------------------------------


def _emit_loops(
    emission: _Emission, region: Region, axes: tuple[Axis, ...], widths: Widths | None, long: bool
) -> None:
    b, axis = emission.frame.b, axes[0]
    size = emission.frame.dim(axis.size)
    if len(axes) > 1:
        with b.loop(integer(0), size, 1, axis.name) as i:
            region.positions[axis] = i
            _emit_loops(emission, region, axes[1:], widths, long)
        return
    sums = [a for a in emission.accumulators.values() if a.two_level]
    step = widths.main if widths else 1
    run = _RUN * step
    if not long or not sums or (isinstance(axis.size, int) and axis.size <= run):
        _emit_innermost(emission, region, axis, integer(0), size, widths)
    else:
        with b.loop(integer(0), size, run, "run") as start:
            stop = b.minimum(b.add(start, integer(run)), size)
            _emit_innermost(emission, region, axis, start, stop, widths)
            for accumulator in sums:
                accumulator.end_run()
        return
    for accumulator in sums:
        accumulator.end_run()


def _emit_innermost(
    emission: _Emission, region: Region, axis: Axis, start: Int, stop: Int, widths: Widths | None
) -> None:
    """The innermost loop: scalar iterations, or vectors and then what is left, masked."""
    if widths is None or widths.main == 1:
        with emission.frame.b.loop(start, stop, 1, axis.name) as i:
            region.positions[axis] = i
            _emit_body(emission, region, dict(region.values))
        return

    def body(part: Region) -> None:
        _emit_body(emission, part, part.values)

    emit_vectors(emission.frame, region, axis, start, stop, widths, body, interleaved=False)


def emit_vectors(
    frame: Frame,
    region: Region,
    axis: Axis,
    start: Int,
    stop: Int,
    widths: Widths,
    body: Callable[[Region], None],
    interleaved: bool,
) -> None:
    """Runs ``body`` over ``start <= axis < stop``: whole vectors, then the rest under a mask.

    ``start`` is a multiple of ``widths.main``. The body gets a region with values of its own.
    """
    b = frame.b
    length = b.sub(stop, start)
    whole = b.mul(b.udiv(length, integer(widths.main)), integer(widths.main))
    middle = b.add(start, whole) if _has_main(axis, widths) else start
    inside = replace(region, axis=axis, active=None, interleaved=interleaved, lanes=widths.main)
    if _has_main(axis, widths):
        with b.loop(start, middle, widths.main, axis.name) as i:
            region.positions[axis] = i
            body(replace(inside, values=dict(region.values)))
    if not _has_rest(axis, widths):
        return
    with b.loop(middle, stop, widths.rest, axis.name) as i:
        region.positions[axis] = i
        even = isinstance(axis.size, int) and axis.size % widths.rest == 0
        active = None if even else _active_lanes(frame, b.sub(stop, i), widths.rest)
        rest = replace(inside, lanes=widths.rest, active=active, depth=b.depth)
        body(replace(rest, values=dict(region.values)))


def _active_lanes(frame: Frame, left: Int, lanes: int) -> str:
    """The mask of the first ``left`` lanes."""
    b = frame.b
    if lanes == 1:
        return "true"
    if left.known is not None:
        flags = ", ".join("i1 true" if k < left.known else "i1 false" for k in range(lanes))
        return f"<{flags}>"
    count = b.emit(f"trunc i64 {b.minimum(left, integer(lanes)).text} to i32")
    every = b.broadcast(count, "i32", lanes)
    return b.emit(f"icmp ugt {vector('i32', lanes)} {every}, {iota('i32', lanes)}")


# --- bodies ---------------------------------------------------------------------------------------


def _emit_body(emission: _Emission, region: Region, values: dict[int, Value]) -> None:
    inside = replace(region, values=values)
    b = emission.frame.b
    emit_prefetches(emission.frame, inside, emission.stage)
    for instr in emission.stage.body:
        if isinstance(instr, Store | Scan | Reduce):
            _emit_instr(emission, inside, instr)
            continue
        with b.at(_placement(emission.frame, inside, instr)):
            _emit_instr(emission, inside, instr)


def _placement(frame: Frame, region: Region, instr: Instr) -> int:
    """The depth at which a value can be computed: outside of the loops that it does not depend on."""
    match instr:
        case Load():
            if frame.buffer(instr.buffer).role != "in":
                return frame.b.depth
            index, args = instr.index, [instr.mask]
        case IndexValue():
            index, args = instr.index, []
        case Random():
            index, args = instr.counter, [instr.seed]
        case Compute():
            index, args = Index(0), list(instr.args)
        case CheckIndex():
            index, args = Index(0), [instr.value, instr.mask]
        case _:
            return frame.b.depth
    operands = [region.values[a] for a in args if a is not None]
    depth = max([index_depth(region, index), *(v.depth for v in operands)])
    if region.active is not None and (
        any(v.lanes > 1 for v in operands) or lane_stride(region, index) != 0
    ):
        depth = max(depth, region.depth)
    return frame.b.outermost(depth)


def _emit_instr(emission: _Emission, region: Region, instr: Instr) -> None:
    frame, values = emission.frame, region.values
    match instr:
        case Const():
            values[instr.id] = Value(literal(instr.dtype, instr.value), instr.dtype, 1, 0)
        case IndexValue():
            values[instr.id] = index_value(frame, region, instr.index)
        case Load():
            values[instr.id] = memory.load(frame, region, instr)
        case Compute():
            values[instr.id] = pointwise.compute(frame, region, instr)
        case CheckIndex():
            values[instr.id] = _check_index(frame, region, instr)
        case Random():
            values[instr.id] = random.draw(frame, region, instr)
        case Store():
            memory.store(frame, region, instr)
        case Scan():
            values[instr.id] = emission.scans[instr.id].step(region, values[instr.value])
        case Reduce():
            position = values[instr.position] if instr.position is not None else None
            emission.accumulators[instr.id].update(region, values[instr.value], position)
        case _:
            raise CodegenError(f"no code for {type(instr).__name__}")


def _check_index(frame: Frame, region: Region, instr: CheckIndex) -> Value:
    b = frame.b
    index = region.values[instr.value]
    mask = region.values[instr.mask] if instr.mask is not None else None
    lanes = max(index.lanes, mask.lanes if mask else 1)
    type_, bools = vector("i64", lanes), vector("i1", lanes)
    x = b.widen(index, lanes)
    size = frame.dim(instr.size)
    limit = b.broadcast(size.text, "i64", lanes, size.depth)
    inside = b.emit(f"icmp ult {type_} {x}, {limit}")
    outside = b.emit(f"xor {bools} {inside}, {constant(DType.BOOL, 1, lanes)}")
    on = b.widen(mask, lanes) if mask else None
    if lanes == region.lanes:
        on = region.with_mask(b, on)
    if on is not None:
        outside = b.emit(f"and {bools} {outside}, {on}")
        inside = b.emit(f"and {bools} {inside}, {on}")
    frame.report(outside, lanes, ERROR_INDEX)
    zero = constant(DType.I64, 0, lanes)
    return b.value(
        b.emit(f"select {bools} {inside}, {type_} {x}, {type_} {zero}"), DType.I64, lanes
    )
