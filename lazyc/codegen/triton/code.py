"""The instructions of a nest as text: index arithmetic, memory, pointwise ops, checks.

Whoever uses it says where in the iteration space it is: ``positions`` of the axes, and what lies inside
(``Writer.ends``).
"""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from lazyc.codegen.base import CodegenError
from lazyc.codegen.triton.blocks import is_atomic
from lazyc.codegen.triton.pointwise import TYPES, expression, literal
from lazyc.codegen.triton.random import draw
from lazyc.codegen.triton.writer import Value, Writer
from lazyc.ir import loops as L
from lazyc.ir.index import Axis, FloorDiv, Index, Mod, ValueRef, bounds
from lazyc.ir.nest_values import fits_32_bits, is_short, operands
from lazyc.ir.ops import OPS, Trait
from lazyc.ir.types import Dim, DType, is_nonneg

VECTOR_BYTES = 16  # of the widest load of a thread
_DIVISIONS = ("floor_div", "trunc_div", "rem", "mod")


class Code:
    """The code of one nest while it is written. ``values``: of the nest's values, by id; ``sizes``: the
    arguments of the kernel. ``rows``: the index of an outer point, for scratch that it has for itself.
    ``reports_division``: whether an integer division by zero sets an error bit. ``reach``: for dims of
    blocks whose lanes outside may hold anything, the axis, its position as text, and how far the last
    block goes."""

    def __init__(
        self, nest: L.LoopNest, w: Writer, rows: str, reports_division: bool = True
    ) -> None:
        self.reports_division = reports_division
        self.nest = nest
        self.w = w
        self.rows = rows
        self.sizes: list[Dim] = []
        self.values: dict[int, Value] = {}
        self.positions: dict[Axis, Value] = {}
        self.index_type = DType.I32 if fits_32_bits(nest) else DType.I64
        self.short = _only_compared(nest) if self.index_type is DType.I32 else set[int]()
        self.reach: dict[int, tuple[Axis, str, Dim]] = {}
        self.read_only = {k for k, b in enumerate(nest.buffers) if b.role == "in"}

    def text(self, symbol: str) -> str:
        """The whole kernel."""
        params = [f"b{k}" for k in range(len(self.nest.buffers))]
        params += [f"d{k}" for k in range(len(self.sizes))]
        return "\n".join([f"def {symbol}({', '.join([*params, 'error'])}):", *self.w.lines]) + "\n"

    def dim(self, dim: Dim) -> str:
        """A size as text: a number, or an argument of the kernel."""
        if isinstance(dim, int):
            return str(dim)
        if dim not in self.sizes:
            self.sizes.append(dim)
        return f"d{self.sizes.index(dim)}"

    def open(self, varies: int, flat: str, axes: Sequence[Axis], total: Dim, step: int) -> None:
        """Positions along ``axes`` of the row-major ``flat``, and the mask of those below ``total``."""
        w = self.w
        w.ends[varies] = ""
        if not (isinstance(total, int) and total % step == 0):
            w.ends[varies] = w.value(f"{flat} < {self.dim(total)}", DType.BOOL, varies).text
        self.unravel(varies, flat, axes)

    def unravel(self, varies: int, flat: str, axes: Sequence[Axis]) -> None:
        rest = flat
        for axis in reversed(axes[1:]):
            size = self.dim(axis.size)
            self.positions[axis] = self.w.value(f"{rest} % {size}", self.index_type, varies)
            rest = self.w.value(f"{rest} // {size}", self.index_type, varies).text
        if axes:
            self.positions[axes[0]] = Value(rest, self.index_type, varies)

    # --- indices ----------------------------------------------------------------------------------

    def index(self, index: Index, is_long: bool = False) -> Value:
        """An index expression, as a block of the index type, or of i64 if ``is_long``."""
        dtype = DType.I64 if is_long else self.index_type
        widened = ".to(tl.int64)" if dtype is not self.index_type else ""
        parts: list[str] = []
        varies = 0
        for atom, coef in index.terms:
            value = self._atom(atom)
            varies |= value.varies
            text = value.text + widened
            parts.append(text if coef == 1 else f"{text} * {self.dim(coef)}")
        if not parts:
            zero = self.w.full("0", dtype)
            text = zero if index.const == 0 else f"{zero} + {self.dim(index.const)}"
            return self.w.value(text, dtype, 0)
        if index.const != 0:
            parts.append(self.dim(index.const))
        if len(parts) == 1 and parts[0].isidentifier():
            return Value(parts[0], dtype, varies)
        return self.w.value(" + ".join(parts), dtype, varies)

    def _atom(self, atom: Axis | ValueRef | FloorDiv | Mod) -> Value:
        if isinstance(atom, Axis):
            return self.positions[atom]
        if isinstance(atom, ValueRef):
            value = self.values[atom.value]
            if self.index_type is DType.I64:
                return value
            return self.w.value(f"{value.text}.to(tl.int32)", DType.I32, value.varies)
        base, divisor = self.index(atom.base), self.dim(atom.divisor)
        symbol, name = ("%", "mod_index") if isinstance(atom, Mod) else ("//", "floor_index")
        if is_nonneg(bounds(atom.base)[0]):
            text = f"{base.text} {symbol} {divisor}"
        else:
            text = f"{name}({base.text}, {divisor})"
        return self.w.value(text, self.index_type, base.varies)

    def long_index(self, index: Index) -> Value:
        """An index expression as i64."""
        found = self.index(index)
        if self.index_type is DType.I64:
            return found
        return self.w.value(f"{found.text}.to(tl.int64)", DType.I64, found.varies)

    # --- instructions -----------------------------------------------------------------------------

    def instr(self, instr: L.Instr) -> None:
        match instr:
            case L.Store():
                self._store(instr)
                return
            case L.Const():
                number = literal(instr.value, instr.dtype)
                dtype = DType.I32 if instr.id in self.short else instr.dtype
                value = self.w.value(self.w.full(number, dtype), dtype, 0)
            case L.IndexValue():
                short = instr.id in self.short
                value = self.index(instr.index) if short else self.long_index(instr.index)
            case L.Load():
                value = self._load(instr)
            case L.Compute():
                value = self._compute(instr)
            case L.CheckIndex():
                value = self._check_index(instr)
            case L.Random():
                counter = self.index(instr.counter, is_long=not is_short(instr.counter))
                value = draw(self.w, instr, self.values[instr.seed], counter)
            case _:
                raise CodegenError(f"no code for {type(instr).__name__} outside of a loop")
        self.values[instr.id] = value

    def _compute(self, instr: L.Compute) -> Value:
        args = [self.values[a] for a in instr.args]
        dtype, varies = args[-1].dtype, 0
        for arg in args:
            varies |= arg.varies
        if self.reports_division and instr.op in _DIVISIONS and not dtype.is_float:
            self._report(f"({args[1].text} == 0)", args[1].varies, L.ERROR_ZERO_DIVISION)
        texts = tuple(a.text for a in args)
        return self.w.value(expression(instr.op, texts, dtype, instr.dtype), instr.dtype, varies)

    def _report(self, bad: str, varies: int, bit: int) -> None:
        """Sets an error bit where ``bad`` is true inside of the block."""
        mask = self.w.inside(varies, bad)
        self.w.line(
            f"tl.atomic_or(error + {self.w.full('0', DType.I32, varies)}, {bit}, mask={mask})"
        )

    def _check_index(self, instr: L.CheckIndex) -> Value:
        value, size = self.values[instr.value], self.dim(instr.size)
        varies, good = value.varies, f"(({value.text} >= 0) & ({value.text} < {size}))"
        bad = f"(({value.text} < 0) | ({value.text} >= {size}))"
        if instr.mask is not None:
            mask = self.values[instr.mask]
            varies |= mask.varies
            good, bad = f"({mask.text} & {good})", f"({mask.text} & {bad})"
        self._report(bad, varies, L.ERROR_INDEX)
        return self.w.value(f"tl.where({good}, {value.text}, 0)", DType.I64, varies)

    # --- memory -----------------------------------------------------------------------------------

    def _place(self, buffer: int, index: Index) -> Value:
        """The index in the memory of a param; scratch has a row for each outer point."""
        found, param = self.index(index), self.nest.buffers[buffer]
        if param.role != "scratch":
            return found
        text = f"{self.rows} * {self.dim(param.numel)} + {found.text}"
        return self.w.value(text, self.index_type, found.varies | next(iter(self.w.dims)))

    def _pointer(self, buffer: int, place: Value, varies: int) -> str:
        return f"b{buffer} + {self.w.broadcast(place.text, place.varies, varies)}"

    def _load(self, instr: L.Load) -> Value:
        place = self._place(instr.buffer, instr.index)
        varies, masks = place.varies, []
        if instr.mask is not None:
            mask = self.values[instr.mask]
            varies |= mask.varies
            masks.append(mask.text)
        pointer = self._pointer(instr.buffer, place, varies)
        inside = self.w.inside(varies, *masks, ends=self._ends(instr))
        options = ""
        if inside:  # lanes outside of the block may hold anything
            options = f", mask={inside}, other={literal(instr.other, instr.dtype)}"
        shared = instr.buffer in self.read_only
        return self.w.value(f"tl.load({pointer}{options})", instr.dtype, varies, shared)

    def _ends(self, load: L.Load) -> dict[int, str]:
        """The masks of what a load may read: as far as its memory goes where lanes outside may hold
        anything. (Vectors are loaded only where no mask ends within one.)"""
        ends = dict(self.w.ends)
        if not all(isinstance(atom, Axis) for atom, _ in load.index.terms):
            return ends
        high, size = bounds(load.index)[1], self.nest.buffers[load.buffer].numel
        vector = VECTOR_BYTES // load.dtype.itemsize
        for bit, (axis, position, last) in self.reach.items():
            step = load.index.coef(axis)
            known = (high, size, step, axis.size, last)
            if not all(isinstance(n, int) for n in known) or step <= 0 or not ends.get(bit):
                continue
            end = min(axis.size + (size - 1 - high) // step, last)
            if end < last:
                end = end // vector * vector
            if end <= axis.size:
                continue
            high += (end - axis.size) * step
            ends[bit] = "" if end == last else self._end(position, end, bit)
        return ends

    def _end(self, position: str, end: Dim, varies: int) -> str:
        return self.w.value(f"{position} < {self.dim(end)}", DType.BOOL, varies).text

    def _store(self, instr: L.Store) -> None:
        place, value = self._place(instr.buffer, instr.index), self.values[instr.value]
        varies, masks = place.varies | value.varies, []
        if instr.mask is not None:
            mask = self.values[instr.mask]
            varies |= mask.varies
            masks.append(mask.text)
        if instr.mode != "set":  # every point and every iteration counts
            for bit in self.w.ends:
                varies |= bit
        pointer, inside = self._pointer(instr.buffer, place, varies), self.w.inside(varies, *masks)
        mask = f", mask={inside}" if inside else ""
        text = self.w.broadcast(value.text, value.varies, varies)
        if instr.mode == "set":
            self.w.line(f"tl.store({pointer}, {text}{mask})")
        elif is_atomic(instr.mode, value.dtype):
            self.w.line(f"tl.atomic_add({pointer}, {text}{mask})")
        else:
            old = self.w.variable(f"tl.load({pointer}{mask})")
            self.w.line(
                f"tl.store({pointer}, {_combined(instr.mode, old, text, value.dtype)}{mask})"
            )


def _combined(mode: str, old: str, new: str, dtype: DType) -> str:
    """``old op new``; half types combine in f32, as in eager."""
    op = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum"}[mode]
    wide = dtype.compute
    texts = tuple(x if wide is dtype else f"{x}.to({TYPES[wide]})" for x in (old, new))
    return expression("cast", (f"({expression(op, texts, wide, wide)})",), wide, dtype)


def ceil_div(size: Dim, by: int) -> Dim:
    if isinstance(size, int):
        return -(-size // by)
    return sympy.floor((size + by - 1) / by)


def _only_compared(nest: L.LoopNest) -> set[int]:
    """Positions, and numbers, that nothing reads but comparisons of each other: i32 will do for them where
    it does for indices."""
    instrs = [i for s in nest.stages for i in s.body]
    found = {
        i.id
        for i in instrs
        if isinstance(i, L.IndexValue)
        or (isinstance(i, L.Const) and i.dtype is DType.I64 and abs(i.value) < 1 << 30)
    }
    while True:
        lost: set[int] = set()
        for instr in instrs:
            spec = OPS.get(instr.op) if isinstance(instr, L.Compute) else None
            compares = spec is not None and spec.has(Trait.COMPARE)
            if not compares or not found.issuperset(operands(instr)):
                lost |= found.intersection(operands(instr))
        if not lost:
            return found
        found -= lost
