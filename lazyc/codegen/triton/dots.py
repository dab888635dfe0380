"""What kernels of dots share: where a program's tile is, the loop's values around dots, tiles of a dot's factors.

Attention and sums of scores (``attention.py``, ``score_sums.py``) loop over a body with dots. A dot is a product of two
tiles, as deep as the dot, on the tensor cores; what is around it says the body, element by element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lazyc.codegen.base import KernelCode, LaunchRef, Products
from lazyc.codegen.gpu_target import Float32Products
from lazyc.codegen.triton.code import Code, ceil_div
from lazyc.codegen.triton.tiles import (
    COLUMNS,
    ROWS,
    WIDEST,
    Tiles,
    before_widening,
    open_tile,
    tile_size,
    values_of,
    whole_factor,
)
from lazyc.codegen.triton.writer import Value, Writer
from lazyc.ir import loops as L
from lazyc.ir.index import Axis
from lazyc.ir.nest_values import cone
from lazyc.ir.types import Dim, DType, numel

# The depth of a dot, across its left factor and down its right one.
LEFT_DEPTH, RIGHT_DEPTH = 16, 32
# What the loops of such nests may hold.
PLAIN = (L.Load, L.Compute, L.Const, L.IndexValue, L.Random, L.CheckIndex, L.Dot, L.Reduce)


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of a product: one that varies along rows, one along columns or the loop."""

    left: int
    right: int


class DotKernel:
    """A kernel while it is written. ``across``: what the right factors of dots vary along, besides their depth;
    ``others``: more dims of blocks (``Writer``)."""

    def __init__(
        self,
        nest: L.LoopNest,
        loop: L.Stage,
        tiles: Tiles,
        across: int,
        others: dict[int, tuple[int, int]],
        reports_division: bool,
        float32: Float32Products,
    ) -> None:
        self.nest = nest
        self.loop = loop
        self.tiles = tiles
        self.across = across
        self.float32 = float32
        self.instrs = values_of(nest)
        self.w = Writer({
            ROWS: (0, tiles.rows), COLUMNS: (1, tiles.columns), **others,
            LEFT_DEPTH: (1, 1), RIGHT_DEPTH: (0, 1),
        })  # fmt: skip
        self.code = Code(nest, self.w, "", reports_division)

    # --- the whole --------------------------------------------------------------------------------

    def place(self, batch: Sequence[Axis], rows: Sequence[Axis], columns: Sequence[Axis]) -> Dim:
        """Where the program's tile is; how many programs there are."""
        code, t, line = self.code, self.tiles, self.w.line
        down, across = (
            ceil_div(numel(a.size for a in axes), size)
            for axes, size in ((rows, t.rows), (columns, t.columns))
        )
        line(f"down = {code.dim(down)}")
        line(f"across = {code.dim(across)}")
        line("row = tl.program_id(0) % down")
        line("column = tl.program_id(0) // down % across")
        open_tile(code, batch, (rows, t.rows), (columns, t.columns))
        return numel(a.size for a in batch) * down * across

    def run(self, stage: L.Stage) -> None:
        """A stage without a loop."""
        for instr in stage.body:
            self.code.instr(instr)

    def written(self, symbol: str, programs: Dim, products: Products) -> KernelCode:
        code, t = self.code, self.tiles
        text = code.text(symbol)
        ref = LaunchRef(symbol, programs, 1, tuple(code.sizes), t.warps, t.stages)
        return KernelCode(ref, text, tuple(b.dtype for b in self.nest.buffers), products)

    def loads_others(self, factors: Iterable[int]) -> bool:
        """Whether the loop loads what is no part of these factors."""
        known = cone(self.loop.body, factors)
        return any(isinstance(i, L.Load) and i.id not in known for i in self.loop.body)

    # --- the loop ---------------------------------------------------------------------------------

    def compute(self, values: Sequence[int]) -> None:
        """Values of the loop's body, as tiles."""
        code, body = self.code, self.loop.body
        needed = cone(body, values, into_dots=False) - set(code.values)
        for instr in body:
            if isinstance(instr, L.Store | L.Reduce) or instr.id not in needed:
                continue
            if isinstance(instr, L.Dot):
                text = self.dot(instr)
                code.values[instr.id] = self.w.value(text, DType.F32, ROWS | self.across)
            else:
                code.instr(instr)

    def dot(self, dot: L.Dot) -> str:
        """The product of a dot's factors, as text."""
        raise NotImplementedError

    def multiply(self, left: str, right: str, narrow: bool, total: str = "") -> str:
        """The product of two tiles, added to ``total`` if there is one; ``narrow``: of a narrow type."""
        precision = "" if narrow else f', input_precision="{self.float32}"'
        return f"tl.dot({left}, {right}{', ' + total if total else ''}{precision})"

    def factor(self, value: int, bit: int, axes: tuple[Axis, ...], narrow: bool) -> str:
        """A tile of a dot's factor, as deep as the dot along ``bit``; ``narrow`` as in ``tile_of``."""
        code, w = self.code, self.w
        size = tile_size(axes, WIDEST)
        w.dims[bit] = (w.dims[bit][0], size)
        lanes, other = ("[None, :]", ROWS) if bit == LEFT_DEPTH else ("[:, None]", self.across)
        outside, code.values = code.values, self.outer_values()
        text = f"tl.arange(0, {size}){lanes}"
        if code.index_type is not DType.I32:
            text = f"{text}.to(tl.int64)"
        flat = w.value(text, code.index_type, bit).text
        code.open(bit, flat, axes, numel(a.size for a in axes), size)
        found = self.tile_of(value, bit | other, bit, narrow)
        code.values = outside
        w.ends.pop(bit)
        return found

    def tile_of(self, value: int, varies: int, bit: int, narrow: bool) -> str:
        """A factor, 0 beyond the end along ``bit``; ``narrow``: in the type that it was before it was widened."""
        code = self.code
        needed = cone(self.loop.body, (value,)) - set(code.values)
        for instr in self.loop.body:
            if not isinstance(instr, L.Store) and instr.id in needed:
                code.instr(instr)
        found = before_widening(code, self.instrs, value) if narrow else code.values[value]
        return whole_factor(code, self.instrs, value, found, bit, varies)

    def outer_values(self) -> dict[int, Value]:
        """What is known of the values outside of the loop."""
        inside = {i.id for i in self.loop.body if not isinstance(i, L.Store)}
        return {k: v for k, v in self.code.values.items() if k not in inside}
