"""Loads and stores: the cheapest instruction that the index and the masks allow."""

from __future__ import annotations

from lazyc.codegen.llvm import casts, floats
from lazyc.codegen.llvm.address import Lanes, lane_index, lane_stride, scalar_index
from lazyc.codegen.llvm.emitter import (
    Emitter,
    Int,
    Value,
    constant,
    integer,
    iota,
    splat,
    suffix,
    type_of,
    vector,
)
from lazyc.codegen.llvm.region import Frame, Region
from lazyc.ir.index import Index
from lazyc.ir.loops import Load, Store
from lazyc.ir.types import Dim, DType


def load(frame: Frame, region: Region, instr: Load) -> Value:
    b, dtype = frame.b, instr.dtype
    stride = lane_stride(region, instr.index)
    if _is_interleaved(frame, region, instr.buffer):
        return _load_interleaved(frame, region, instr, stride)
    mask = region.values[instr.mask] if instr.mask is not None else None
    if stride == 0:
        return _load_uniform(frame, region, instr, mask)
    lanes = region.lanes
    where = region.with_mask(b, b.widen(mask, lanes) if mask else None)
    other = _other(instr, lanes)
    if stride in (1, -1):
        address = scalar_index(frame, region, instr.index)
        text = _load_run(frame, instr.buffer, address, stride == -1, where, lanes, other)
    else:
        index = lane_index(frame, region, instr.index)
        text = _gather(frame, instr.buffer, index, where, lanes, other)
    return b.value(casts.from_memory(b, text, dtype, lanes), dtype, lanes)


def _other(instr: Load, lanes: int) -> str:
    """What lanes hold that read nothing, as it would be in memory."""
    dtype = DType.U8 if instr.dtype is DType.BOOL else instr.dtype
    return constant(dtype, instr.other, lanes)


def _element(frame: Frame, buffer: int) -> str:
    return casts.memory_type(frame.buffer(buffer).dtype)


def _align(frame: Frame, buffer: int) -> int:
    return frame.buffer(buffer).dtype.itemsize


def element_pointer(frame: Frame, buffer: int, index: Int) -> str:
    if index.known == 0:
        return frame.pointers[buffer]
    element = _element(frame, buffer)
    # Not "inbounds": under a mask the first element may lie outside of the buffer.
    text = f"getelementptr {element}, ptr {frame.pointers[buffer]}, i64 {index.text}"
    return frame.b.shared(text, index.depth, "p")


def _load_uniform(frame: Frame, region: Region, instr: Load, mask: Value | None) -> Value:
    """One element for all lanes. Where the mask is off, a place that is safe to read stands in."""
    b, dtype = frame.b, instr.dtype
    element, align = _element(frame, instr.buffer), _align(frame, instr.buffer)
    pointer = element_pointer(frame, instr.buffer, scalar_index(frame, region, instr.index))
    if mask is None:
        text = b.emit(f"load {element}, ptr {pointer}, align {align}")
        return b.value(casts.from_memory(b, text, dtype, 1), dtype, 1)
    on = mask.text if mask.lanes == 1 else region.with_mask(b, mask.text)
    assert on is not None
    read = b.any_lane(on, mask.lanes)
    safe = b.emit(f"select i1 {read}, ptr {pointer}, ptr {frame.dummy}")
    text = b.emit(f"load {element}, ptr {safe}, align {align}")
    one = b.value(casts.from_memory(b, text, dtype, 1), dtype, 1)
    type_ = type_of(dtype, mask.lanes)
    other = constant(dtype, instr.other, mask.lanes)
    chosen = b.emit(
        f"select {vector('i1', mask.lanes)} {mask.text}, {type_} {b.widen(one, mask.lanes)}, "
        f"{type_} {other}"
    )
    return b.value(chosen, dtype, mask.lanes)


def _reverse(b: Emitter, text: str, element: str, lanes: int) -> str:
    type_ = vector(element, lanes)
    order = iota("i32", lanes, -1, lanes - 1)
    return b.emit(f"shufflevector {type_} {text}, {type_} poison, <{lanes} x i32> {order}")


def _load_run(
    frame: Frame,
    buffer: int,
    first: Int,
    backward: bool,
    where: str | None,
    lanes: int,
    other: str = "zeroinitializer",
) -> str:
    """Consecutive elements, upwards or downwards from ``first``; ``other`` where the mask is off."""
    b, element, align = frame.b, _element(frame, buffer), _align(frame, buffer)
    type_ = vector(element, lanes)
    if backward:
        first = b.add(first, integer(1 - lanes))
        where = _reverse(b, where, "i1", lanes) if where else None
    pointer = element_pointer(frame, buffer, first)
    if where is None:
        text = b.emit(f"load {type_}, ptr {pointer}, align {align}")
    else:
        symbol = f"llvm.masked.load.{suffix(element, lanes)}.p0"
        text = b.call(
            type_, symbol, (f"ptr align {align}", pointer), (vector("i1", lanes), where),
            (type_, other),
        )  # fmt: skip
    return _reverse(b, text, element, lanes) if backward else text


def _lane_pointers(frame: Frame, buffer: int, index: Lanes, lanes: int) -> str:
    base = element_pointer(frame, buffer, index.base)
    offsets = f"{vector(index.element, lanes)} {index.offsets}"
    return frame.b.emit(f"getelementptr {_element(frame, buffer)}, ptr {base}, {offsets}", "p")


def _gather(
    frame: Frame,
    buffer: int,
    index: Lanes,
    where: str | None,
    lanes: int,
    other: str = "zeroinitializer",
) -> str:
    element, align = _element(frame, buffer), _align(frame, buffer)
    type_ = vector(element, lanes)
    symbol = f"llvm.masked.gather.{suffix(element, lanes)}.{suffix('ptr', lanes)}"
    return frame.b.call(
        type_, symbol,
        (f"{vector('ptr', lanes)} align {align}", _lane_pointers(frame, buffer, index, lanes)),
        (vector("i1", lanes), where or splat("i1", "true", lanes)), (type_, other),
    )  # fmt: skip


# --- scratch memory of vector code: element k of lane l is at k*lanes + l ---------------------------


def _is_interleaved(frame: Frame, region: Region, buffer: int) -> bool:
    return region.interleaved and region.lanes > 1 and frame.buffer(buffer).role == "scratch"


def _interleaved(frame: Frame, region: Region, index: Index) -> Lanes:
    b, lanes = frame.b, region.lanes
    found = lane_index(frame, region, index)
    type_ = vector(found.element, lanes)
    scaled = b.emit(f"mul {type_} {found.offsets}, {splat(found.element, str(lanes), lanes)}")
    offsets = b.emit(f"add {type_} {scaled}, {iota(found.element, lanes)}")
    return Lanes(b.mul(found.base, integer(lanes)), offsets, found.element)


def _load_interleaved(frame: Frame, region: Region, instr: Load, stride: Dim | None) -> Value:
    b, dtype, lanes = frame.b, instr.dtype, region.lanes
    mask = region.values[instr.mask] if instr.mask is not None else None
    where = region.with_mask(b, b.widen(mask, lanes) if mask else None)
    if stride == 0:
        first = b.mul(scalar_index(frame, region, instr.index), integer(lanes))
        on = where if mask else None
        text = _load_run(frame, instr.buffer, first, False, on, lanes, _other(instr, lanes))
    else:
        index = _interleaved(frame, region, instr.index)
        text = _gather(frame, instr.buffer, index, where, lanes, _other(instr, lanes))
    return b.value(casts.from_memory(b, text, dtype, lanes), dtype, lanes)


# --- stores ---------------------------------------------------------------------------------------


def store(frame: Frame, region: Region, instr: Store) -> None:
    b, lanes = frame.b, region.lanes
    value = region.values[instr.value]
    stride = lane_stride(region, instr.index)
    mask = region.values[instr.mask] if instr.mask is not None else None
    if lanes == 1:
        _store_scalar(frame, region, instr, value, mask.text if mask else None)
        return
    where = region.with_mask(b, b.widen(mask, lanes) if mask else None)
    dtype = frame.buffer(instr.buffer).dtype
    text = b.widen(value, lanes)
    if _is_interleaved(frame, region, instr.buffer):
        if stride == 0:
            first = b.mul(scalar_index(frame, region, instr.index), integer(lanes))
            _update_run(frame, instr, first, False, text, mask and where, lanes)
        else:
            _update_lanes(
                frame, instr, _interleaved(frame, region, instr.index), text, where, lanes
            )
    elif stride in (1, -1):
        first = scalar_index(frame, region, instr.index)
        past_cache = stride == 1 and where is None and _fills_lines(frame, region, instr)
        _update_run(frame, instr, first, stride == -1, text, where, lanes, past_cache)
    elif stride == 0 or (instr.mode != "set" and _may_collide(region, instr.index)):
        _update_in_order(frame, region, instr, text, dtype, where)
    else:
        _update_lanes(frame, instr, lane_index(frame, region, instr.index), text, where, lanes)


def _fills_lines(frame: Frame, region: Region, instr: Store) -> bool:
    """Whether to store whole vectors from multiples of their size, past the cache."""
    if instr.buffer not in frame.past_cache or instr.mode != "set":
        return False
    itemsize = frame.buffer(instr.buffer).dtype.itemsize
    if region.lanes * itemsize < frame.target.vector_bytes:
        return False
    unit = frame.target.vector_bytes // itemsize
    steps = [coef for atom, coef in instr.index.terms if atom != region.axis]
    # The first lane's position is a multiple of the lanes.
    return all(isinstance(s, int) and s % unit == 0 for s in (*steps, instr.index.const))


def _may_collide(region: Region, index: Index) -> bool:
    """Whether two lanes may store to one element: only through an index that was loaded."""
    return any(region.values[v].lanes > 1 for v in index.value_refs())


def _store_scalar(
    frame: Frame, region: Region, instr: Store, value: Value, mask: str | None
) -> None:
    if mask is not None:
        with frame.b.branch(mask):
            _store_scalar(frame, region, instr, value, None)
        return
    b, dtype = frame.b, frame.buffer(instr.buffer).dtype
    pointer = element_pointer(frame, instr.buffer, scalar_index(frame, region, instr.index))
    _update_one(b, instr, pointer, value.text, dtype)


def _update_one(b: Emitter, instr: Store, pointer: str, value: str, dtype: DType) -> None:
    element, align = casts.memory_type(dtype), dtype.itemsize
    if instr.mode != "set":
        old = b.emit(f"load {element}, ptr {pointer}, align {align}")
        value = _combined(b, instr, casts.from_memory(b, old, dtype, 1), value, dtype, 1)
    b.void(f"store {element} {casts.to_memory(b, value, dtype, 1)}, ptr {pointer}, align {align}")


def _combined(b: Emitter, instr: Store, old: str, new: str, dtype: DType, lanes: int) -> str:
    """``old op= new`` of the store's mode; half types compute in f32."""
    work = dtype.compute
    x = casts.cast(b, old, dtype, work, lanes)
    y = casts.cast(b, new, dtype, work, lanes)
    type_ = type_of(work, lanes)
    if instr.mode in ("max", "min"):
        result = floats.extreme(b, work, instr.mode == "max", x, y, lanes)
    elif work is DType.BOOL:
        result = b.emit(f"{'or' if instr.mode == 'add' else 'and'} {type_} {x}, {y}")
    else:
        result = b.emit(f"{'f' if work.is_float else ''}{instr.mode} {type_} {x}, {y}")
    return casts.cast(b, result, work, dtype, lanes)


def _update_run(
    frame: Frame,
    instr: Store,
    first: Int,
    backward: bool,
    value: str,
    where: str | None,
    lanes: int,
    past_cache: bool = False,
) -> None:
    """Stores consecutive elements, upwards or downwards from ``first``."""
    b, dtype = frame.b, frame.buffer(instr.buffer).dtype
    if instr.mode != "set":
        old = _load_run(frame, instr.buffer, first, backward, where, lanes)
        value = _combined(b, instr, casts.from_memory(b, old, dtype, lanes), value, dtype, lanes)
    value = casts.to_memory(b, value, dtype, lanes)
    element, align = _element(frame, instr.buffer), _align(frame, instr.buffer)
    type_ = vector(element, lanes)
    if backward:
        first = b.add(first, integer(1 - lanes))
        where = _reverse(b, where, "i1", lanes) if where else None
        value = _reverse(b, value, element, lanes)
    pointer = element_pointer(frame, instr.buffer, first)
    if past_cache:
        align = frame.target.vector_bytes
        b.void(f"store {type_} {value}, ptr {pointer}, align {align}, !nontemporal !0")
        return
    if where is None:
        b.void(f"store {type_} {value}, ptr {pointer}, align {align}")
        return
    symbol = f"llvm.masked.store.{suffix(element, lanes)}.p0"
    b.call(
        "void",
        symbol,
        (type_, value),
        (f"ptr align {align}", pointer),
        (vector("i1", lanes), where),
    )


def _update_lanes(
    frame: Frame, instr: Store, index: Lanes, value: str, where: str | None, lanes: int
) -> None:
    """Stores to any addresses; of two lanes with one address the later one stays ("set")."""
    b, dtype = frame.b, frame.buffer(instr.buffer).dtype
    if instr.mode != "set":
        old = _gather(frame, instr.buffer, index, where, lanes)
        value = _combined(b, instr, casts.from_memory(b, old, dtype, lanes), value, dtype, lanes)
    value = casts.to_memory(b, value, dtype, lanes)
    element, align = _element(frame, instr.buffer), _align(frame, instr.buffer)
    symbol = f"llvm.masked.scatter.{suffix(element, lanes)}.{suffix('ptr', lanes)}"
    b.call(
        "void", symbol, (vector(element, lanes), value),
        (f"{vector('ptr', lanes)} align {align}", _lane_pointers(frame, instr.buffer, index, lanes)),
        (vector("i1", lanes), where or splat("i1", "true", lanes)),
    )  # fmt: skip


def _update_in_order(
    frame: Frame, region: Region, instr: Store, value: str, dtype: DType, where: str | None
) -> None:
    """Lane after lane, for lanes that may meet at one element."""
    b, lanes = frame.b, region.lanes
    index = lane_index(frame, region, instr.index)
    element = casts.memory_type(dtype)
    values, offsets, mask = b.alloca(vector(element, lanes)), b.alloca(f"<{lanes} x i64>"), ""
    b.void(
        f"store {vector(element, lanes)} {casts.to_memory(b, value, dtype, lanes)}, ptr {values}"
    )
    wide = index.offsets
    if index.element == "i32":
        wide = b.emit(f"sext <{lanes} x i32> {index.offsets} to <{lanes} x i64>")
    b.void(f"store <{lanes} x i64> {wide}, ptr {offsets}")
    if where is not None:
        mask = b.alloca(f"<{lanes} x i8>")
        b.void(
            f"store <{lanes} x i8> {b.emit(f'zext <{lanes} x i1> {where} to <{lanes} x i8>')}, ptr {mask}"
        )
    base = element_pointer(frame, instr.buffer, index.base)

    def one(lane: Int) -> None:
        slot = b.emit(f"getelementptr i64, ptr {offsets}, i64 {lane.text}")
        offset = b.emit(f"load i64, ptr {slot}")
        pointer = b.emit(f"getelementptr {element}, ptr {base}, i64 {offset}")
        slot = b.emit(f"getelementptr {element}, ptr {values}, i64 {lane.text}")
        new = casts.from_memory(b, b.emit(f"load {element}, ptr {slot}"), dtype, 1)
        _update_one(b, instr, pointer, new, dtype)

    with b.loop(integer(0), integer(lanes), 1, "lane") as lane:
        if not mask:
            one(lane)
        else:
            slot = b.emit(f"getelementptr i8, ptr {mask}, i64 {lane.text}")
            on = b.emit(f"trunc i8 {b.emit(f'load i8, ptr {slot}')} to i1")
            with b.branch(on):
                one(lane)
