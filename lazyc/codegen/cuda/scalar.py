"""The instructions of a nest as scalar CUDA C++: what a thread computes for one element.

Whoever uses it says where in the iteration space it is (``positions`` of the axes, as text), and takes the
lines when they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lazyc.codegen.base import CodegenError
from lazyc.codegen.cuda.expressions import TYPES, expression, literal
from lazyc.ir import loops as L
from lazyc.ir.index import Axis, FloorDiv, Index, Mod, ValueRef, bounds
from lazyc.ir.nest_values import fits_32_bits
from lazyc.ir.types import Dim, DType, is_nonneg


class ScalarCode:
    """Writes a body. ``values``: of the nest's values, by id, as text and type; ``sizes``: the arguments of
    the kernel, which all bodies of a kernel share."""

    def __init__(self, nest: L.LoopNest, sizes: list[Dim]) -> None:
        self.nest = nest
        self.sizes = sizes
        self.index_type = "int" if fits_32_bits(nest) else "long long"
        self.values: dict[int, tuple[str, DType]] = {}
        self.positions: dict[Axis, str] = {}
        self.lines: list[str] = []

    def take(self) -> list[str]:
        """The lines written since the last time."""
        found, self.lines = self.lines, []
        return found

    def dim(self, dim: Dim) -> str:
        """A size as text: a number, or an argument of the kernel."""
        if isinstance(dim, int):
            return str(dim)
        if dim not in self.sizes:
            self.sizes.append(dim)
        return f"d{self.sizes.index(dim)}"

    def unravel(self, flat: str, axes: Sequence[Axis]) -> None:
        """Positions along ``axes`` of the row-major ``flat``."""
        rest = flat
        for axis in reversed(axes[1:]):
            size = self.dim(axis.size)
            self.positions[axis] = f"({rest} % {size})"
            rest = f"{rest} / {size}"
        if axes:
            self.positions[axes[0]] = f"({rest})"

    def index(self, index: Index) -> str:
        """An index expression."""
        parts = [
            self._atom(atom) if coef == 1 else f"{self._atom(atom)} * {self.dim(coef)}"
            for atom, coef in index.terms
        ]
        if index.const != 0 or not parts:
            parts.append(self.dim(index.const))
        return f"({self.index_type})({' + '.join(parts)})"

    def _atom(self, atom: Axis | ValueRef | FloorDiv | Mod) -> str:
        if isinstance(atom, Axis):
            return self.positions[atom]
        if isinstance(atom, ValueRef):
            return f"({self.index_type}){self.values[atom.value][0]}"
        base, divisor = self.index(atom.base), self.dim(atom.divisor)
        is_mod = isinstance(atom, Mod)
        if is_nonneg(bounds(atom.base)[0]):
            return f"({base} {'%' if is_mod else '/'} {divisor})"
        return f"{'mod_index' if is_mod else 'floor_index'}({base}, ({self.index_type}){divisor})"

    def run(self, instrs: Iterable[L.Instr]) -> None:
        for instr in instrs:
            if isinstance(instr, L.Store):
                self._store(instr)
            else:
                name = f"v{instr.id}"
                self.lines.append(f"const {TYPES[instr.dtype]} {name} = {self._value(instr)};")
                self.values[instr.id] = name, instr.dtype

    def _value(self, instr: L.Instr) -> str:
        match instr:
            case L.Const():
                return literal(instr.value, instr.dtype)
            case L.IndexValue():
                return self.index(instr.index)
            case L.Load():
                return self._load(instr)
            case L.Compute():
                texts = [self.values[a][0] for a in instr.args]
                return expression(instr.op, texts, self.values[instr.args[-1]][1], instr.dtype)
            case _:
                raise CodegenError(f"no code for {type(instr).__name__} in CUDA C++")

    def _load(self, instr: L.Load) -> str:
        text = f"b{instr.buffer}[{self.index(instr.index)}]"
        if instr.mask is None:
            return text
        if instr.dtype in (DType.F16, DType.BF16):
            other = f"to_{instr.dtype.value}({literal(instr.other, DType.F32)})"
        else:
            other = literal(instr.other, instr.dtype)
        return f"{self.values[instr.mask][0]} ? {text} : {other}"

    def _store(self, instr: L.Store) -> None:
        if instr.mode != "set":
            raise CodegenError(f"no code for a store that is {instr.mode!r} in CUDA C++")
        text = f"b{instr.buffer}[{self.index(instr.index)}] = {self.values[instr.value][0]};"
        if instr.mask is not None:
            text = f"if ({self.values[instr.mask][0]}) {text}"
        self.lines.append(text)
