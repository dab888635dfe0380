"""Kernels that add up matrices, and what they are by blocks of rows (``row_tiles``)."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from lazyc.ir.index import Atom, Axis, Index, ValueRef, axis_index
from lazyc.ir.loops import Compute, Instr, Load, LoopNest, Reduce, Stage, Store
from lazyc.ir.types import Dim, DType, Shape, as_dim, is_nonneg
from lazyc.passes.nest_finish import finish_nest


@dataclass(frozen=True, slots=True)
class SumOfMatrices:
    """A nest that does nothing but cast and add up elements of one buffer: at each point of its outer ``axes``, those
    along ``loop``. ``load`` and ``store`` are their places, ``dtypes``: of the source, and of
    what it is cast to one after another, the last that of the result."""

    axes: tuple[Axis, ...]
    loop: tuple[Axis, ...]
    load: Index
    store: Index
    dtypes: tuple[DType, ...]
    comment: str

    @staticmethod
    def find(nest: LoopNest, sizes: dict[sympy.Symbol, Dim]) -> SumOfMatrices | None:
        """``sizes``: the nest's symbols in terms of the Program's."""
        if [len(s.axes) > 0 for s in nest.stages] != [True, False] or len(nest.buffers) != 2:
            return None
        loop, after = nest.stages
        load, *casts, total = loop.body
        if not (isinstance(load, Load) and load.buffer == 0 and load.mask is None):
            return None
        if not (isinstance(total, Reduce) and total.kind == "sum" and len(after.body) == 1):
            return None
        value, dtypes = load.id, [load.dtype]
        for cast in casts:
            if not (isinstance(cast, Compute) and cast.op == "cast" and cast.args == (value,)):
                return None
            value = cast.id
            dtypes.append(cast.dtype)
        (store,) = after.body
        if not (isinstance(store, Store) and store.mode == "set" and store.mask is None):
            return None
        if total.value != value or store.value != total.id or store.buffer != 1:
            return None
        if total.dtype is not dtypes[-1] or nest.buffers[1].dtype is not total.dtype:
            return None
        sized = Sized(sizes)
        return SumOfMatrices(
            tuple(map(sized.axis, nest.axes)),
            tuple(map(sized.axis, loop.axes)),
            sized.index(load.index),
            sized.index(store.index),
            tuple(dtypes),
            nest.comment,
        )

    def split(self, batch: Dim, matrix: Dim) -> Shape | None:
        """The batch as (outer, groups, inner), if its matrices, of ``matrix`` elements each, are added up along the
        first and the last of these dims, and lie in the result one after another."""
        steps = {self.load.coef(a): a.size for a in self.loop}
        inner = steps.pop(matrix, 1)
        outer = next(iter(steps.values())) if len(steps) == 1 else 1
        groups = quotient(batch, outer * inner)
        if len(self.loop) != len({self.load.coef(a) for a in self.loop}) or groups is None:
            return None
        if steps and steps != {groups * inner * matrix: outer}:
            return None
        source = self.load
        for axis in self.loop:
            source = source - axis_index(axis) * self.load.coef(axis)
        if source.const != 0 or self.store.const != 0:
            return None
        reached: Dim = 1
        by_place = {self.store.coef(a): a for a in self.axes if a.size != 1}
        while reached in by_place:
            axis = by_place.pop(reached)
            is_within = inner == 1 or is_nonneg(matrix - reached * axis.size)
            place = reached if is_within else reached * inner
            if source.coef(axis) != place or (not is_within and quotient(reached, matrix) is None):
                return None
            source = source - axis_index(axis) * place
            reached = reached * axis.size
        if by_place or source.terms or reached != groups * matrix:
            return None
        return outer, groups, inner

    def by_rows(self, rows: Dim, width: Dim, later: bool) -> tuple[LoopNest, Shape]:
        """The nest that writes ``rows`` of the source to those of the result, or adds them if ``later``; and the
        values of its symbols."""
        row, place = Axis("row", rows), Axis("place", width)
        at = axis_index(row) * width + axis_index(place)
        given, result = self.dtypes[0], self.dtypes[-1]
        body: list[Instr] = [Load(0, given, 0, at)]
        for value, dtype in enumerate(self.dtypes[1:]):
            body.append(Compute(value + 1, dtype, "cast", (value,)))
        value = len(body) - 1
        if later:
            body += [
                Load(value + 1, result, 1, at),
                Compute(value + 2, result, "add", (value + 1, value)),
            ]
        body.append(Store(1, at, value + 2 if later else value))
        params = {0: (0, given, rows * width), 1: (1, result, rows * width)}
        stage = Stage((place,), tuple(body))
        nest, _, sizes = finish_nest((row,), (stage,), params, "inner", self.comment)
        return nest, sizes


@dataclass(frozen=True, slots=True)
class Sized:
    """Dims of a nest in terms of the Program's symbols."""

    values: dict[sympy.Symbol, Dim]

    def dim(self, dim: Dim) -> Dim:
        if isinstance(dim, int) or not self.values:
            return dim
        return as_dim(dim.subs(list(self.values.items()), simultaneous=True))

    def axis(self, axis: Axis) -> Axis:
        return Axis(axis.name, self.dim(axis.size))

    def index(self, index: Index) -> Index:
        if not self.values:
            return index
        terms = tuple((self._atom(a), self.dim(c)) for a, c in index.terms)
        return Index(self.dim(index.const), terms)

    def _atom(self, atom: Atom) -> Atom:
        if isinstance(atom, Axis):
            return self.axis(atom)
        if isinstance(atom, ValueRef):
            return ValueRef(atom.value, self.dim(atom.size))
        return type(atom)(self.index(atom.base), self.dim(atom.divisor))


def quotient(a: Dim, b: Dim) -> Dim | None:
    """``a / b`` where that is known to be an integer."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if ratio.is_Integer:
        return int(ratio)
    return ratio if ratio.is_integer and ratio.as_numer_denom()[1] == 1 else None
