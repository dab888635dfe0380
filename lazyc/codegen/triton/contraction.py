"""Kernels of contractions: a nest that sums products of two factors, as tiles for the tensor cores.

    nest [p0: M, p1: N]
      loop [r0: K]   %2 = mul %0, %1   %3 = reduce_sum %2     %0 varies along p0 and r0, %1 along p1 and r0
      once           ... %3 ...

A program computes a tile of rows by columns. What is before the product in the loop runs on tiles of a
factor (a prologue: casts, scales, gathers), and what follows the loop on the tile of results (an
epilogue: bias, activation, residual). Programs are numbered so that those that run at one time share
what they read (the grouped order of Triton's tutorial on matrix multiplication).
"""

from __future__ import annotations

from dataclasses import dataclass

from lazyc.codegen.base import KernelCode, LaunchRef, Products
from lazyc.codegen.gpu_target import Float32Products
from lazyc.codegen.triton.code import Code, ceil_div
from lazyc.codegen.triton.pointwise import TYPES
from lazyc.codegen.triton.tiles import (
    COLUMNS,
    LEAST,
    ROWS,
    Tiles,
    are_aligned,
    before_widening,
    common_type,
    lie_along,
    open_tile,
    values_of,
    whole_factor,
)
from lazyc.codegen.triton.writer import Value, Writer
from lazyc.ir import loops as L
from lazyc.ir.index import Axis
from lazyc.ir.nest_values import axes_of_values, cone
from lazyc.ir.types import Dim, DType, numel

ROW_DEPTH, COLUMN_DEPTH = 4, 8  # the depth in tiles of either factor
_GROUP = 8  # rows of tiles that programs numbered one after another cover
_LONG_SUM = (
    128  # depth, and rows or columns, of a product that is worth tiles that are mostly empty
)


@dataclass(frozen=True)
class Contraction:
    """A nest whose ``loop`` is a contraction. ``left`` and ``right`` are the ids of its factors; the outer
    axes are those of the ``batch``, of ``rows`` (the left factor's) and of ``columns``."""

    nest: L.LoopNest
    loop: L.Stage
    result: L.Reduce
    left: int
    right: int
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]

    @staticmethod
    def find(nest: L.LoopNest) -> Contraction | None:
        """The contraction that a nest is; None for any other nest."""
        loops = [s for s in nest.stages if s.axes]
        if len(loops) != 1 or any(b.role == "scratch" for b in nest.buffers):
            return None
        (loop,) = loops
        last, by_id = loop.body[-1], {i.id: i for i in loop.body if not isinstance(i, L.Store)}
        if not isinstance(last, L.Reduce) or last.kind != "sum":
            return None
        product = by_id.get(last.value)
        if not isinstance(product, L.Compute) or product.op != "mul":
            return None
        plain = (L.Load, L.Compute, L.Const, L.IndexValue)
        if not all(isinstance(i, plain) for i in loop.body[:-1]):
            return None
        varies = axes_of_values(nest.stages)
        first, second = (varies[a] for a in product.args)
        if not (set(loop.axes) <= first and set(loop.axes) <= second):
            return None
        left, right = product.args
        if last.dtype is not DType.F32 and common_type(by_id, left, right) is None:
            return None  # tensor cores have no such type
        rows = [a for a in nest.axes if a in first and a not in second]
        columns = [a for a in nest.axes if a in second and a not in first]
        if not rows or not columns:
            return None
        if nest.axes.index(rows[-1]) > nest.axes.index(columns[-1]):
            left, right, rows, columns = right, left, columns, rows
        batch = tuple(a for a in nest.axes if a not in rows and a not in columns)
        found = Contraction(nest, loop, last, left, right, batch, tuple(rows), tuple(columns))
        return None if found.is_small else found

    @property
    def narrow(self) -> DType | None:
        """The type of both factors before they were widened; None where they have none in common."""
        return common_type(values_of(self.nest), self.left, self.right)

    @property
    def is_small(self) -> bool:
        """Whether tiles would be mostly empty. Few rows or columns are worth a tile where the sums are long:
        those of a convolution to a few channels."""
        *sides, depth = (_size(axes) for axes in (self.rows, self.columns, self.loop.axes))
        if depth < LEAST or min(sides) < LEAST:
            return depth < _LONG_SUM or min(sides) < LEAST // 8 or max(sides) < _LONG_SUM
        return False


def _size(axes: tuple[Axis, ...]) -> int:
    """How many points axes have; many where a size is a symbol."""
    size = numel(a.size for a in axes)
    return size if isinstance(size, int) else _LONG_SUM


def contraction_kernel(
    contraction: Contraction,
    symbol: str,
    tiles: Tiles,
    reports_division: bool = True,
    float32: Float32Products = "ieee",
) -> KernelCode:
    """The kernel of a contraction. Raises CodegenError for what there is no code for."""
    return _Kernel(contraction, tiles, reports_division, float32).finish(symbol)


class _Kernel:
    """A kernel while it is written."""

    def __init__(
        self,
        contraction: Contraction,
        tiles: Tiles,
        reports_division: bool,
        float32: Float32Products,
    ) -> None:
        self.c = contraction
        self.float32 = float32
        self.instrs = values_of(contraction.nest)
        self.narrow = contraction.narrow
        t = self.tiles = tiles
        self.w = Writer({
            ROWS: (0, t.rows), COLUMNS: (1, t.columns),
            ROW_DEPTH: (1, t.depth), COLUMN_DEPTH: (0, t.depth),
        })  # fmt: skip
        self.code = Code(contraction.nest, self.w, "", reports_division)

    def finish(self, symbol: str) -> KernelCode:
        code, c, t = self.code, self.c, self.tiles
        rows, columns, batch = (
            numel(a.size for a in axes) for axes in (c.rows, c.columns, c.batch)
        )
        self._place(rows, columns)
        stages = list(c.nest.stages)
        at = stages.index(c.loop)
        for stage in stages[:at]:
            self._run(stage)
        code.values[c.result.id] = self._product()
        for stage in stages[at + 1 :]:
            self._run(stage)
        programs = batch * ceil_div(rows, t.rows) * ceil_div(columns, t.columns)
        text = code.text(symbol)
        ref = LaunchRef(symbol, programs, 1, tuple(code.sizes), t.warps, t.stages)
        products = Products(
            "contraction",
            self.narrow or DType.F32,
            t.rows,
            t.columns,
            t.depth,
            are_aligned(c.loop.body, (c.left, c.right), c.loop.axes),
            load_bits=self._load_bits(),
        )
        return KernelCode(ref, text, tuple(b.dtype for b in c.nest.buffers), products)

    def _load_bits(self) -> int:
        """How narrow Triton may make copies of a factor. Where it lies along rows or columns, not along the depth,
        instructions transpose it as they read it from shared memory, which those for bytes cannot. Triton then puts
        eight elements together there, which for half types are 128 bits."""
        c = self.c
        return 128 if self.narrow is not DType.I8 or lie_along(c.loop.body, c.loop.axes) else 64

    def _place(self, rows: Dim, columns: Dim) -> None:
        """Where the program's tile is."""
        code, c, t, line = self.code, self.c, self.tiles, self.w.line
        down, across = ceil_div(rows, t.rows), ceil_div(columns, t.columns)
        line(f"down = {code.dim(down)}")
        line(f"across = {code.dim(across)}")
        line("tile = tl.program_id(0) % (down * across)")
        line(f"first = tile // ({_GROUP} * across) * {_GROUP}")
        line(f"height = tl.minimum(down - first, {_GROUP})")
        line(f"row = first + tile % ({_GROUP} * across) % height")
        line(f"column = tile % ({_GROUP} * across) // height")
        open_tile(code, c.batch, (c.rows, t.rows), (c.columns, t.columns))
        # What comes of rows and columns beyond the end is not stored.
        if len(c.rows) == 1:
            code.reach[ROWS] = c.rows[0], "y", down * t.rows
        if len(c.columns) == 1:
            code.reach[COLUMNS] = c.columns[0], "x", across * t.columns

    def _run(self, stage: L.Stage) -> None:
        for instr in stage.body:
            self.code.instr(instr)

    def _product(self) -> Value:
        code, c, w, t = self.code, self.c, self.w, self.tiles
        depth = numel(a.size for a in c.loop.axes)
        sums = c.result.dtype
        total = w.variable(w.full("0.0" if sums.is_float else "0", sums, ROWS | COLUMNS))
        with w.loop(f"for r in range(0, {code.dim(depth)}, {t.depth}):"):
            left = self._factor(c.left, ROW_DEPTH, f"tl.arange(0, {t.depth})[None, :]", depth)
            right = self._factor(c.right, COLUMN_DEPTH, f"tl.arange(0, {t.depth})[:, None]", depth)
            options = "" if self.narrow else f', input_precision="{self.float32}"'
            if not sums.is_float:
                options += f", out_dtype={TYPES[sums]}"  # f32 by default
            w.line(f"{total} = tl.dot({left}, {right}, {total}{options})")
        return Value(total, sums, ROWS | COLUMNS)

    def _open_depth(self, bit: int, lanes: str, depth: Dim) -> None:
        """Positions along the axes of the loop, from r on."""
        code, w, axes, step = self.code, self.w, self.c.loop.axes, self.tiles.depth
        *others, last = axes
        if not others or not isinstance(last.size, int) or last.size % step:
            flat = w.value(f"r + {lanes}", code.index_type, bit)
            code.open(bit, flat.text, axes, depth, step)
            return
        w.ends[bit] = ""
        outer = w.value(f"r // {last.size} + {w.full('0', code.index_type)}", code.index_type, 0)
        code.unravel(0, outer.text, others)
        # Not a remainder: Triton does not see that it is a multiple of the step.
        text = f"r - r // {last.size} * {last.size} + {lanes}"
        code.positions[last] = w.value(text, code.index_type, bit)

    def _factor(self, value: int, bit: int, lanes: str, depth: Dim) -> str:
        """A tile of a factor: its part of the loop's body, at the depth that starts at r."""
        code, w, c = self.code, self.w, self.c
        outer = dict(code.values)
        self._open_depth(bit, lanes, depth)
        needed = cone(c.loop.body, (value,))
        for instr in c.loop.body[:-1]:
            if not isinstance(instr, L.Store) and instr.id in needed:
                code.instr(instr)
        found = before_widening(code, self.instrs, value) if self.narrow else code.values[value]
        varies = (ROWS if bit == ROW_DEPTH else COLUMNS) | bit
        text = whole_factor(code, self.instrs, value, found, bit, varies)
        code.values = outer
        del w.ends[bit]
        return text
