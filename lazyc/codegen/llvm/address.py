"""Index expressions as code.

Along the lanes of a region an index is uniform (lane stride 0), strided (a constant step, 1 for a
plain vector load), or irregular. The part that all lanes share is scalar i64 arithmetic, placed in
the outermost loop that it can live in; only the rest becomes vector arithmetic, in 32 bits where the
range allows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lazyc.codegen.llvm import rounding
from lazyc.codegen.llvm.emitter import Int, Value, integer, iota, splat, vector
from lazyc.codegen.llvm.region import Frame, Region
from lazyc.ir.index import Atom, Axis, FloorDiv, Index, Mod, ValueRef, bounds
from lazyc.ir.types import Dim, DType, is_nonneg


def lane_stride(region: Region, index: Index) -> Dim | None:
    """By how much the index grows from lane to lane; None when that is not constant."""
    if region.lanes == 1:
        return 0
    total: Dim = 0
    for atom, coef in index.terms:
        step = _atom_stride(region, atom)
        if step is None:
            return None
        total = total + step * coef
    return total


def _atom_stride(region: Region, atom: Atom) -> Dim | None:
    if isinstance(atom, Axis):
        return 1 if atom == region.axis else 0
    if isinstance(atom, ValueRef):
        return 0 if region.values[atom.value].lanes == 1 else None
    inner = lane_stride(region, atom.base)
    if inner == 0:
        return 0
    if isinstance(inner, int) and _lanes_stay_in_block(region, atom.base, inner, atom.divisor):
        return 0 if isinstance(atom, FloorDiv) else inner
    return None


def _lanes_stay_in_block(region: Region, base: Index, step: int, divisor: Dim) -> bool:
    """Whether all lanes of ``base`` have the same quotient by ``divisor``.

    The first lane of a region is at a multiple of its lanes, so this holds when everything in
    ``base`` is a multiple of what the lanes span and that span divides the divisor.
    """
    span = step * region.lanes
    if step <= 0 or not isinstance(divisor, int) or divisor % span:
        return False
    if not isinstance(base.const, int) or base.const % span:
        return False
    for atom, coef in base.terms:
        if atom == region.axis:
            if coef != step:
                return False
        elif not isinstance(coef, int) or coef % span:
            return False
    return True


def index_depth(region: Region, index: Index) -> int:
    """The depth of the innermost scope that the index depends on."""
    depth = 0
    for atom, _ in index.terms:
        if isinstance(atom, Axis):
            depth = max(depth, region.positions[atom].depth)
        elif isinstance(atom, ValueRef):
            depth = max(depth, region.values[atom.value].depth)
        else:
            depth = max(depth, index_depth(region, atom.base))
    return depth


def scalar_index(frame: Frame, region: Region, index: Index) -> Int:
    """The index at lane 0, for an index that is uniform or strided."""
    return _sum(frame, region, index.const, index.terms)


def _sum(
    frame: Frame, region: Region, const: Dim, terms: tuple[tuple[Atom, Dim], ...] | list
) -> Int:
    b = frame.b
    parts = [b.mul(_scalar_atom(frame, region, atom), frame.dim(coef)) for atom, coef in terms]
    # Outermost parts first, so that each loop adds only what changes in it.
    total = frame.dim(const)
    for part in sorted(parts, key=lambda p: p.depth):
        total = b.add(part, total) if total.known is not None else b.add(total, part)
    return total


def _scalar_atom(frame: Frame, region: Region, atom: Atom) -> Int:
    b = frame.b
    if isinstance(atom, Axis):
        return region.positions[atom]
    if isinstance(atom, ValueRef):
        return _as_i64(frame, region.values[atom.value])
    base = scalar_index(frame, region, atom.base)
    divisor = frame.dim(atom.divisor)
    if divisor.known is None:
        divisor = b.maximum(divisor, integer(1))  # 0 belongs to code that never runs
    if is_nonneg(bounds(atom.base)[0]):
        return (b.udiv if isinstance(atom, FloorDiv) else b.urem)(base, divisor)
    quotient = b.floordiv(base, divisor)
    return quotient if isinstance(atom, FloorDiv) else b.sub(base, b.mul(quotient, divisor))


def _as_i64(frame: Frame, value: Value) -> Int:
    if value.dtype is DType.I64:
        return Int(value.text, value.depth)
    extend = "sext" if value.dtype.is_signed else "zext"
    text = frame.b.shared(f"{extend} {value.type} {value.text} to i64", value.depth)
    return Int(text, value.depth)


@dataclass(frozen=True, slots=True)
class Lanes:
    """An index in all lanes: ``base`` (shared by them) plus ``offsets``, integers of ``element``."""

    base: Int
    offsets: str
    element: str


def lane_index(frame: Frame, region: Region, index: Index) -> Lanes:
    """Any index, lane by lane."""
    uniform, varying = [], []
    steps: Dim = 0  # the lanes' own part: 0, steps, 2*steps, ...
    for atom, coef in index.terms:
        step = _atom_stride(region, atom)
        if step is None:
            varying.append((atom, coef))
        else:
            uniform.append((atom, coef))
            steps = steps + step * coef
    base = _sum(frame, region, index.const, uniform)
    element = "i32" if _fits_i32(region, steps, varying) else "i64"
    lanes = region.lanes
    type_ = vector(element, lanes)
    total = _steps(frame, steps, element, lanes)
    for atom, coef in varying:
        part = _varying_atom(frame, region, atom, element)
        if coef != 1:
            factor = frame.b.broadcast(
                *_narrow(frame, frame.dim(coef), element), lanes, frame.dim(coef).depth
            )
            part = frame.b.emit(f"mul {type_} {part}, {factor}")
        total = part if total is None else frame.b.emit(f"add {type_} {total}, {part}")
    return Lanes(base, total or splat(element, "0", lanes), element)


def _narrow(frame: Frame, value: Int, element: str) -> tuple[str, str]:
    if element == "i64" or value.known is not None:
        return value.text, element
    return frame.b.shared(f"trunc i64 {value.text} to {element}", value.depth), element


def _steps(frame: Frame, steps: Dim, element: str, lanes: int) -> str | None:
    if steps == 0:
        return None
    if isinstance(steps, int):
        return iota(element, lanes, steps)
    step = frame.dim(steps)
    factor = frame.b.broadcast(*_narrow(frame, step, element), lanes, step.depth)
    return frame.b.shared(
        f"mul {vector(element, lanes)} {factor}, {iota(element, lanes)}", step.depth
    )


def _fits_i32(region: Region, steps: Dim, varying: list[tuple[Atom, Dim]]) -> bool:
    """Whether every sum and product that ``lane_index`` forms fits 32 bits."""
    if not isinstance(steps, int):
        return False
    reach = abs(steps) * region.lanes
    for atom, coef in varying:
        low, high = bounds(Index(0, ((atom, 1),)))
        if not (isinstance(low, int) and isinstance(high, int) and isinstance(coef, int)):
            return False
        reach += max(abs(low), abs(high)) * max(1, abs(coef))
    return reach < 1 << 31


def _varying_atom(frame: Frame, region: Region, atom: Atom, element: str) -> str:
    """An atom's value lane by lane, as integers of ``element``."""
    assert not isinstance(atom, Axis)
    if isinstance(atom, ValueRef):
        value = region.values[atom.value]
        return _resize(frame, value.text, value.type, element, region.lanes, value.dtype.is_signed)
    base, wide = _whole(frame, region, atom.base)
    quotient, rest = _divide(frame, region, base, wide, atom)
    result = quotient if isinstance(atom, FloorDiv) else rest
    return _resize(frame, result, vector(wide, region.lanes), element, region.lanes, True)


def _whole(frame: Frame, region: Region, index: Index) -> tuple[str, str]:
    """All of an index in lanes: base and offsets added up, in 32 bits where its range allows."""
    parts = lane_index(frame, region, index)
    low, high = bounds(index)
    small = isinstance(low, int) and isinstance(high, int) and low >= -(1 << 31) and high < 1 << 31
    element = "i32" if small and parts.element == "i32" else "i64"
    b, lanes = frame.b, region.lanes
    type_ = vector(element, lanes)
    offsets = _resize(frame, parts.offsets, vector(parts.element, lanes), element, lanes, True)
    base = b.broadcast(*_narrow(frame, parts.base, element), lanes, parts.base.depth)
    return b.emit(f"add {type_} {offsets}, {base}"), element


def _divide(
    frame: Frame, region: Region, base: str, element: str, atom: FloorDiv | Mod
) -> tuple[str, str]:
    """Quotient and rest of floor division by the atom's divisor."""
    b, lanes = frame.b, region.lanes
    type_ = vector(element, lanes)
    divisor = frame.dim(atom.divisor)
    over = b.broadcast(*_narrow(frame, divisor, element), lanes, divisor.depth)
    if element == "i32" and divisor.known and is_nonneg(bounds(atom.base)[0]):
        quotient = b.emit(f"udiv {type_} {base}, {over}")
    else:
        # Exact below 2**53: a quotient that is not whole is at least 1/divisor away from the next
        # integer, more than the rounding error of the division.
        wide = vector("double", lanes)
        x = b.emit(f"sitofp {type_} {base} to {wide}")
        y = b.emit(f"sitofp {type_} {over} to {wide}")
        ratio = b.emit(f"fdiv {wide} {x}, {y}")
        # Lanes that are off may hold anything, but a conversion out of range would be poison.
        whole = rounding.floor(b, DType.F64, ratio, lanes)
        quotient = b.emit(f"freeze {type_} " + b.emit(f"fptosi {wide} {whole} to {type_}"))
    product = b.emit(f"mul {type_} {quotient}, {over}")
    return quotient, b.emit(f"sub {type_} {base}, {product}")


def _resize(frame: Frame, text: str, type_: str, element: str, lanes: int, signed: bool) -> str:
    to = vector(element, lanes)
    if type_ == to:
        return text
    order = ["i1", "i8", "i16", "i32", "i64"]
    have = type_.rsplit(" ", 1)[-1].rstrip(">")
    extend = "sext" if signed else "zext"
    op = "trunc" if order.index(have) > order.index(element) else extend
    return frame.b.emit(f"{op} {type_} {text} to {to}")


def index_value(frame: Frame, region: Region, index: Index) -> Value:
    """The index as an i64 value of the body."""
    stride = lane_stride(region, index)
    if stride == 0:
        position = scalar_index(frame, region, index)
        return Value(position.text, DType.I64, 1, position.depth)
    b, lanes = frame.b, region.lanes
    parts = lane_index(frame, region, index)
    type_ = vector("i64", lanes)
    offsets = _resize(frame, parts.offsets, vector(parts.element, lanes), "i64", lanes, True)
    base = b.broadcast(parts.base.text, "i64", lanes, parts.base.depth)
    return b.value(b.emit(f"add {type_} {base}, {offsets}"), DType.I64, lanes)
