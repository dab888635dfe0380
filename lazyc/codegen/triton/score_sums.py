"""Kernels that add up, over matrices, what is computed of the scores of attention.

    nest [p0: batch, p1: rows, p2: columns]
      loop [r0]   %2 = dot [e0] %0, %1     %3 = dot [e1] ...     %5 = reduce_sum %4     (%4 made of %2 and %3)
      once        ... %5 ...

The gradient of a bias that several matrices of scores have in common is such a sum. A program computes a tile of
rows by columns of it, matrix after matrix in their order: dots on the tensor cores, around them whatever the body says,
and one tile of sums. Scores live in registers, and what is added up does not depend on the number of programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lazyc.codegen.base import KernelCode, Products
from lazyc.codegen.gpu_target import Float32Products
from lazyc.codegen.triton.dots import LEFT_DEPTH, PLAIN, RIGHT_DEPTH, DotKernel, Factors
from lazyc.codegen.triton.pointwise import TYPES
from lazyc.codegen.triton.tiles import (
    COLUMNS,
    ROWS,
    WIDEST,
    Tiles,
    are_aligned,
    common_type,
    tile_size,
    tiled_axes,
    values_of,
)
from lazyc.codegen.triton.writer import Value
from lazyc.ir import loops as L
from lazyc.ir.index import Axis
from lazyc.ir.nest_values import axes_of_values, cone
from lazyc.ir.types import DType, numel


@dataclass(frozen=True)
class ScoreSums:
    """A nest whose ``loop`` adds up values of ``dots``, for each row and column. ``dots``: the factors of each, that of
    the rows on the left."""

    nest: L.LoopNest
    loop: L.Stage
    sums: tuple[L.Reduce, ...]
    dots: dict[int, Factors]
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]

    @staticmethod
    def find(nest: L.LoopNest) -> ScoreSums | None:
        """The sums that a nest is; None for any other nest."""
        loops = [s for s in nest.stages if s.axes]
        if len(loops) != 1 or any(b.role == "scratch" for b in nest.buffers):
            return None
        (loop,) = loops
        if not all(isinstance(i, PLAIN) for i in loop.body):
            return None
        dots = [i for i in loop.body if isinstance(i, L.Dot)]
        sums = tuple(i for i in loop.body if isinstance(i, L.Reduce))
        if not dots or not sums:
            return None
        if any(i.kind != "sum" or i.dtype is not DType.F32 for i in sums):
            return None
        varies = axes_of_values(nest.stages)
        left, right = _sides([(varies[d.left], varies[d.right]) for d in dots])
        rows = [a for a in nest.axes if a in left]
        columns = [a for a in nest.axes if a in right]
        if not rows or not columns:
            return None
        if nest.axes.index(rows[-1]) > nest.axes.index(columns[-1]):
            rows, columns = columns, rows
        factors: dict[int, Factors] = {}
        for dot in dots:
            for x, y in ((dot.left, dot.right), (dot.right, dot.left)):
                if not varies[x] & set(columns) and not varies[y] & set(rows):
                    factors[dot.id] = Factors(x, y)
        inside = cone(loop.body, [f for d in dots for f in (d.left, d.right)])
        if len(factors) != len(dots) or not inside.isdisjoint(factors):
            return None
        tiled = tiled_axes(rows), tiled_axes(columns)
        batch = tuple(a for a in nest.axes if a not in (*tiled[0], *tiled[1]))
        return ScoreSums(nest, loop, sums, factors, batch, *tiled)

    @property
    def narrow(self) -> dict[int, DType | None]:
        """For each dot the type of both factors before they were widened; None where they have none in common."""
        instrs = values_of(self.nest)
        return {k: common_type(instrs, f.left, f.right) for k, f in self.dots.items()}

    @property
    def half(self) -> DType | None:
        """The half type of all factors; None where they have none in common."""
        found = set(self.narrow.values())
        return found.pop() if len(found) == 1 else None

    def widths(self) -> list[int]:
        """How deep a tile of the factors of each dot is."""
        dots = [i for i in self.loop.body if isinstance(i, L.Dot)]
        return [tile_size(d.axes, WIDEST) for d in dots]


def _sides(pairs: Sequence[tuple[set[Axis], set[Axis]]]) -> tuple[set[Axis], set[Axis]]:
    """What the factors of several dots vary along, on either side alone; the factors of a dot lie on either side."""
    both: set[Axis] = set().union(*(a & b for a, b in pairs))
    left: set[Axis] = set()
    right: set[Axis] = set()
    for first, second in pairs:
        if first & right - both or second & left - both:
            first, second = second, first
        left |= first
        right |= second
    both |= left & right
    return left - both, right - both


def score_sums_kernel(
    sums: ScoreSums,
    symbol: str,
    tiles: Tiles,
    reports_division: bool = True,
    float32: Float32Products = "ieee",
) -> KernelCode:
    """The kernel of such sums. Raises CodegenError for what there is no code for."""
    return _Kernel(sums, tiles, reports_division, float32).finish(symbol)


class _Kernel(DotKernel):
    """A kernel while it is written."""

    def __init__(
        self, sums: ScoreSums, tiles: Tiles, reports_division: bool, float32: Float32Products
    ) -> None:
        super().__init__(sums.nest, sums.loop, tiles, COLUMNS, {}, reports_division, float32)
        self.s = sums
        self.narrow = sums.narrow

    def finish(self, symbol: str) -> KernelCode:
        s = self.s
        programs = self.place(s.batch, s.rows, s.columns)
        for stage in s.nest.stages:
            if stage is s.loop:
                self._loop()
            else:
                self.run(stage)
        return self.written(symbol, programs, self._judged())

    def _judged(self) -> Products:
        s, t = self.s, self.tiles
        dots = [i for i in s.loop.body if isinstance(i, L.Dot)]
        factors = [v for f in s.dots.values() for v in (f.left, f.right)]
        aligned = are_aligned(s.loop.body, factors, {a for d in dots for a in d.axes})
        return Products(
            "sum of scores", s.half or DType.F32, t.rows, t.columns, min(s.widths()), aligned,
            self.loads_others(factors),
        )  # fmt: skip

    def _loop(self) -> None:
        code, s, w = self.code, self.s, self.w
        totals = {x.id: w.variable(w.full("0.0", DType.F32, ROWS | COLUMNS)) for x in s.sums}
        outside = dict(code.values)
        with w.loop(f"for r in range(0, {code.dim(numel(a.size for a in s.loop.axes))}):"):
            kind = TYPES[code.index_type]
            flat = w.value(f"r + tl.full([1, 1], 0, {kind})", code.index_type, 0)
            code.unravel(0, flat.text, s.loop.axes)
            self.compute([x.value for x in s.sums])
            for total in s.sums:
                value = code.values[total.value]
                text = w.broadcast(value.text, value.varies, ROWS | COLUMNS)
                w.line(f"{totals[total.id]} = {totals[total.id]} + {text}")
        code.values = outside
        for number, name in totals.items():
            code.values[number] = Value(name, DType.F32, ROWS | COLUMNS)

    def dot(self, dot: L.Dot) -> str:
        factors, narrow = self.s.dots[dot.id], self.narrow[dot.id] is not None
        left = self.factor(factors.left, LEFT_DEPTH, dot.axes, narrow)
        right = self.factor(factors.right, RIGHT_DEPTH, dot.axes, narrow)
        return self.multiply(left, right, narrow)
