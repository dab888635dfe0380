"""How many lanes a body runs in, and what it costs.

Lanes may be several vector registers: LLVM splits the wider types, which unrolls the body and gives
a reduction independent accumulators. The count follows the body: costly math fills the CPU by
itself, a short body or a reduction needs several registers in flight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lazyc.codegen.target import Target
from lazyc.ir.index import Axis, FloorDiv, Index, Mod
from lazyc.ir.loops import (
    CheckIndex,
    Compute,
    Const,
    IndexValue,
    Instr,
    Load,
    LoopNest,
    Random,
    Reduce,
    Scan,
    Stage,
    Store,
)
from lazyc.ir.ops import OPS, Trait
from lazyc.ir.types import Dim, DType

_COSTLY = 20.0  # cycles a vector of an elementary function
_DIVISION = 8.0
_GRAIN_CYCLES = 30_000  # about 10 us
_UNKNOWN_SIZE = 256  # assumed for a symbolic axis
_SHORT_BODY = 12
_LONG_BODY = 18.0  # cycles a vector
_COSTLY_OPS = frozenset(name for name, spec in OPS.items() if spec.has(Trait.COSTLY))
_DIVISIONS = ("div", "floor_div", "trunc_div", "rem", "mod", "sqrt", "rsqrt", "reciprocal")


@dataclass(frozen=True, slots=True)
class Widths:
    """Lanes of the main loop and of the masked loop over what it leaves.

    ``single``: one masked loop does everything. A long body is then compiled once only, and where
    the CPU has mask registers it runs as fast.
    """

    main: int
    rest: int
    single: bool = False


def _is_costly(instr: Instr) -> bool:
    if isinstance(instr, Random):
        return True
    return isinstance(instr, Compute) and instr.op in _COSTLY_OPS


def choose_widths(body: Iterable[Instr], axis: Axis, target: Target, reduces: bool) -> Widths:
    """The lanes for bodies that run along ``axis``; ``reduces``: they carry accumulators."""
    instrs = list(body)
    sizes = [
        i.dtype.compute.itemsize
        for i in instrs
        if not isinstance(i, Store | Const | IndexValue | CheckIndex) and i.dtype is not DType.BOOL
    ]
    wide = sum(s == 8 for s in sizes) * 2 > len(sizes)
    rest = target.vector_bytes // (8 if wide else 4)
    count = _registers(instrs, target, reduces)
    main = rest * count
    if isinstance(axis.size, int):
        while main > rest and main > axis.size:
            main //= 2
        while main > 1 and main // 2 >= axis.size:
            main //= 2
    main = _fit_divisors(instrs, axis, main)
    single = target.name == "avx512" and work(instrs) > _LONG_BODY and not reduces
    return Widths(main, min(main, rest), single and main <= rest)


def work(instrs: Iterable[Instr]) -> float:
    """Cycles of a body for one vector, roughly."""
    return sum(_cycles(i) for i in instrs)


def _registers(instrs: list[Instr], target: Target, reduces: bool) -> int:
    """Vector registers a value: how far the body is unrolled."""
    costly = any(_is_costly(i) for i in instrs)
    narrow = target.registers < 32
    if reduces:
        if any(isinstance(i, Reduce) and i.kind in ("argmax", "argmin") for i in instrs):
            return 1 if narrow else 2
        return 2 if costly and narrow else 4
    if costly or len(instrs) > _SHORT_BODY:
        return 1
    return 2


def _fit_divisors(instrs: list[Instr], axis: Axis, main: int) -> int:
    """Fewer lanes where that lets them stay inside one block of a ``//`` or ``%`` of the axis."""
    for instr in instrs:
        if isinstance(instr, Load | Store | IndexValue):
            for divisor in _divisors(instr.index, axis):
                lanes = main
                while lanes > 1 and divisor % lanes:
                    lanes //= 2
                if lanes >= min(main, 8):
                    main = lanes
    return main


def _divisors(index: Index, axis: Axis) -> Iterable[int]:
    for atom, _ in index.terms:
        if isinstance(atom, FloorDiv | Mod) and axis in atom.base.axes():
            if isinstance(atom.divisor, int):
                yield atom.divisor
            yield from _divisors(atom.base, axis)


# --- cost -----------------------------------------------------------------------------------------


def grain(nest: LoopNest, target: Target, points: int) -> int:
    """Items that take about 10 us; an item is ``points`` outer points."""
    per_vector = target.vector_bytes // 4
    cycles = sum(_stage_cycles(s, nest, per_vector) for s in nest.stages) * points
    if nest.vectorize == "outer":
        cycles /= min(per_vector, points)
    return max(1, int(_GRAIN_CYCLES / max(cycles, 0.25)))


def _stage_cycles(stage: Stage, nest: LoopNest, per_vector: int) -> float:
    """Cycles of a stage at one outer point (outer: at one vector of them)."""
    trips = 1.0
    for axis in stage.axes:
        trips *= _size(axis.size)
    if nest.vectorize == "inner" and stage.axes:
        trips = max(1.0, trips / per_vector)
    return trips * sum(_cycles(i) for i in stage.body)


def _size(size: Dim) -> int:
    return size if isinstance(size, int) else _UNKNOWN_SIZE


def _cycles(instr: Instr) -> float:
    if _is_costly(instr):
        return _COSTLY
    if isinstance(instr, Compute) and instr.op in _DIVISIONS:
        return _DIVISION
    if isinstance(instr, Load | Store):
        return 16.0 if instr.index.value_refs() else 3.0
    return 0.0 if isinstance(instr, Const) else 2.0 if isinstance(instr, Reduce | Scan) else 1.0
