"""Kernels of attention: sums over a loop of products in which one factor is computed from dots.

    nest [p0: batch, p1: rows, p2: columns]
      loop [r0]   %2 = dot [e0] %0, %1     %4 = reduce_max %3       (forward: %3 the scores, made of %2)
      loop [r0]   the same; %5 = exp(%3 - %4)   %6 = reduce_sum %5   %8 = reduce_sum (%5 * %7)
      once        ... %8 / %6 ...

A program computes a tile of rows by all columns, tile by tile of the loop. The scores are a tile that lives
in registers: dots on the tensor cores, and around them whatever the body says. Of the two loops of the
forward pass there is one: sums are scaled down when a larger score is found (M. Milakov and
N. Gimelshein, "Online normalizer calculation for softmax", 2018; T. Dao, "FlashAttention-2", 2023, algorithm 1).
Without a max (backward pass, from the logsumexp) the sums are plain.

Tiles of the loop in which no score counts are not visited, where comparisons of positions say so: causal
masks, sliding windows (``bounds.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lazyc.codegen.base import KernelCode, Products
from lazyc.codegen.gpu_target import Float32Products
from lazyc.codegen.triton.bounds import Limit, limits
from lazyc.codegen.triton.dots import LEFT_DEPTH, PLAIN, RIGHT_DEPTH, DotKernel, Factors
from lazyc.codegen.triton.pointwise import expression
from lazyc.codegen.triton.tiles import (
    COLUMNS,
    ROWS,
    WIDEST,
    Tiles,
    are_aligned,
    before_widening,
    common_type,
    tile_size,
    tiled_axes,
    values_of,
)
from lazyc.codegen.triton.writer import Value
from lazyc.ir import loops as L
from lazyc.ir.index import Axis
from lazyc.ir.nest_text import print_instr
from lazyc.ir.nest_values import axes_of_values, cone, operands
from lazyc.ir.types import DType, numel

# What values vary along: the loop lies across a tile of scores, and down a tile of what is summed.
ACROSS, DOWN = 4, 8


@dataclass(frozen=True, slots=True)
class Online:
    """A softmax in two loops: ``top`` of the first is the largest of the ``scores``, and all sums of the
    second are of multiples of ``weight``, exp(scores - ``shift``), where ``shift`` is ``top``, or 0 for -inf if
    ``guarded``."""

    top: L.Reduce
    scores: int
    shift: int
    weight: int
    guarded: bool


@dataclass(frozen=True)
class Attention:
    """A nest whose ``loop`` sums with weights that are made of dots. ``products``: the factors of the sums
    that vary along ``columns``; other sums are of rows."""

    nest: L.LoopNest
    loop: L.Stage
    online: Online | None
    sums: tuple[L.Reduce, ...]
    products: dict[int, Factors]
    dots: dict[int, Factors]
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]

    @property
    def half(self) -> DType | None:
        """The half type of the factors of the first dot, where those of each product have one in common."""
        instrs = values_of(self.nest)
        pairs = (*self.dots.values(), *self.products.values())
        halves = [common_type(instrs, f.left, f.right) for f in pairs]
        return None if None in halves else halves[0]

    @staticmethod
    def find(nest: L.LoopNest) -> Attention | None:
        """The attention that a nest is; None for any other nest."""
        loops = [s for s in nest.stages if s.axes]
        if len(loops) not in (1, 2) or any(b.role == "scratch" for b in nest.buffers):
            return None
        loop = loops[-1]
        dots = [i for i in loop.body if isinstance(i, L.Dot)]
        sums = tuple(i for i in loop.body if isinstance(i, L.Reduce))
        plain = all(isinstance(i, PLAIN) for s in loops for i in s.body)
        if (
            not dots
            or not sums
            or not plain
            or any(i.kind != "sum" or i.dtype is not DType.F32 for i in sums)
        ):
            return None
        online = None
        if len(loops) == 2:
            online = _online(nest, loops[0], loop, sums)
            if online is None:
                return None
        varies = axes_of_values(nest.stages)
        scored = set[Axis]().union(*(varies[d.id] for d in dots))
        columns = tuple(a for a in nest.axes if a not in scored)
        products = _products(loop, sums, varies, columns)
        if products is None:
            return None
        known = {d.id: f for d in dots if (f := _loop_last(d, varies, loop.axes)) is not None}
        right = (f.right for f in (*known.values(), *products.values()))
        fixed = set[Axis]().union(*(varies[v] for v in right))
        rows = [a for a in nest.axes if a in scored and a not in fixed]
        for dot in dots:
            if dot.id not in known:
                found = _rows_first(dot, varies, loop.axes, rows)
                if found is None:
                    return None
                known[dot.id] = found
        inside = cone(loop.body, [v for f in known.values() for v in (f.left, f.right)])
        if not rows or not inside.isdisjoint(known):
            return None
        tiled = tiled_axes(rows)
        batch = tuple(a for a in nest.axes if a not in columns and a not in tiled)
        return Attention(nest, loop, online, sums, products, known, batch, tiled, columns)


def _products(
    loop: L.Stage,
    sums: Iterable[L.Reduce],
    varies: dict[int, set[Axis]],
    columns: tuple[Axis, ...],
) -> dict[int, Factors] | None:
    """The factors of the sums that vary along columns; None where one is no product."""
    by_id = {i.id: i for i in loop.body if not isinstance(i, L.Store)}
    dots = {k for k, i in by_id.items() if isinstance(i, L.Dot)}
    found: dict[int, Factors] = {}
    for total in sums:
        if not varies[total.value] & set(columns):
            continue
        product = by_id.get(total.value)
        if not isinstance(product, L.Compute) or product.op != "mul":
            return None
        left, right = product.args
        if varies[left] & set(columns):
            left, right = right, left
        if varies[left] & set(columns):
            return None
        if cone(loop.body, (right,)) & dots:
            return None
        found[total.id] = Factors(left, right)
    return found if found or not columns else None


def _loop_last(dot: L.Dot, varies: dict[int, set[Axis]], loop: Sequence[Axis]) -> Factors | None:
    """The factors of a dot, that of the loop on the right; None unless just one varies along it."""
    for left, right in ((dot.left, dot.right), (dot.right, dot.left)):
        if varies[right] & set(loop) and not varies[left] & set(loop):
            return Factors(left, right)
    return None


def _rows_first(
    dot: L.Dot, varies: dict[int, set[Axis]], loop: Sequence[Axis], rows: Sequence[Axis]
) -> Factors | None:
    """The factors of a dot that is the same along the loop, that of the rows on the left; None for any other."""
    for left, right in ((dot.left, dot.right), (dot.right, dot.left)):
        if not (varies[left] | varies[right]) & set(loop) and not varies[right] & set(rows):
            return Factors(left, right)
    return None


# --- the two loops of a softmax -------------------------------------------------------------------


def _online(
    nest: L.LoopNest, first: L.Stage, loop: L.Stage, sums: Sequence[L.Reduce]
) -> Online | None:
    top = first.body[-1] if first.body else None
    reductions = [i for i in first.body if isinstance(i, L.Reduce)]
    if not isinstance(top, L.Reduce) or top.kind != "max" or len(reductions) != 1:
        return None
    if first.axes != loop.axes:
        return None
    everything = values_of(nest)
    inside = {i.id for s in (first, loop) for i in s.body if not isinstance(i, L.Store)}
    for weight in loop.body:
        if not isinstance(weight, L.Compute) or weight.op != "exp":
            continue
        difference = everything[weight.args[0]]
        if not isinstance(difference, L.Compute) or difference.op != "sub":
            continue
        scores, shift = difference.args
        guarded = _guards(everything, shift, top.id)
        if not (guarded or shift == top.id) or not _alike(everything, inside, scores, top.value):
            continue
        own = (difference.id, weight.id)
        others = [i for i in loop.body if not isinstance(i, L.Store) and i.id not in own]
        if any({top.id, shift, difference.id} & set(operands(i)) for i in others):
            continue
        if all(_is_linear(everything, loop, s.value, weight.id) for s in sums):
            return Online(top, scores, shift, weight.id, guarded)
    return None


def _guards(everything: Mapping[int, L.Instr], shift: int, top: int) -> bool:
    """Whether ``shift`` is ``where(top == -inf, 0, top)``."""
    instr = everything[shift]
    if not isinstance(instr, L.Compute) or instr.op != "where" or instr.args[2] != top:
        return False
    test, zero = everything[instr.args[0]], everything[instr.args[1]]
    if not isinstance(zero, L.Const) or zero.value != 0:
        return False
    if not isinstance(test, L.Compute) or test.op != "eq" or test.args[0] != top:
        return False
    lowest = everything[test.args[1]]
    return isinstance(lowest, L.Const) and lowest.value == float("-inf")


def _alike(everything: Mapping[int, L.Instr], inside: set[int], a: int, b: int) -> bool:
    """Whether two values, each computed inside of one of the loops, are computed alike."""
    numbers: dict[int, int] = {}
    known: dict[str, int] = {}

    def number(value: int) -> int:
        if value not in inside:
            return value
        if value not in numbers:
            _, _, text = print_instr(everything[value]).partition(" = ")
            text = re.sub(r"%(\d+)", lambda found: f"%{number(int(found[1]))}", text)
            numbers[value] = known.setdefault(text, -1 - len(known))
        return numbers[value]

    return number(a) == number(b)


def _is_linear(everything: Mapping[int, L.Instr], loop: L.Stage, value: int, weight: int) -> bool:
    """Whether a value is a multiple of ``weight``, up to rounding."""
    if value == weight:
        return True
    instr = everything[value]
    if not isinstance(instr, L.Compute) or weight not in cone(loop.body, (value,)):
        return False
    if instr.op == "cast":
        return instr.dtype.is_float and _is_linear(everything, loop, instr.args[0], weight)
    if instr.op == "mul":
        weighted = [a for a in instr.args if weight in cone(loop.body, (a,))]
        return len(weighted) == 1 and _is_linear(everything, loop, weighted[0], weight)
    return False


# --- the kernel -----------------------------------------------------------------------------------


def attention_kernel(
    attention: Attention,
    symbol: str,
    tiles: Tiles,
    reports_division: bool = True,
    float32: Float32Products = "ieee",
) -> KernelCode:
    """The kernel of an attention. Raises CodegenError for what there is no code for."""
    return _Kernel(attention, tiles, reports_division, float32).finish(symbol)


class _Kernel(DotKernel):
    """A kernel while it is written."""

    def __init__(
        self,
        attention: Attention,
        tiles: Tiles,
        reports_division: bool,
        float32: Float32Products,
    ) -> None:
        t = tiles
        loop = {ACROSS: (1, t.depth), DOWN: (0, t.depth)}
        super().__init__(attention.nest, attention.loop, t, ACROSS, loop, reports_division, float32)
        self.a = attention
        self.half = attention.half
        self.is_half = self.half is not None
        self.total = numel(a.size for a in attention.loop.axes)
        self.left: dict[int, str] = {}  # factors of dots that stay the same in the loop
        self.sums: dict[int, str] = {}

    def finish(self, symbol: str) -> KernelCode:
        code, a = self.code, self.a
        programs = self.place(a.batch, a.rows, a.columns)
        stages = list(a.nest.stages)
        loops = [k for k, s in enumerate(stages) if s.axes]
        for stage in stages[: loops[0]]:
            self.run(stage)
        if a.online is None:
            self._loop()
        else:
            between = stages[loops[0] + 1 : loops[1]]
            self._invariant(between, a.online)
            code.values[a.online.top.id] = self._loop()
            for stage in between:
                self.run(stage)
        for total in a.sums:
            varies = ROWS | COLUMNS if total.id in a.products else ROWS
            code.values[total.id] = self._sum(total, varies)
        for stage in stages[loops[-1] + 1 :]:
            self.run(stage)
        return self.written(symbol, programs, self._judged())

    def _judged(self) -> Products:
        """What is to be seen in the machine code: products of tiles of rows by keys, as deep as the
        narrowest dot."""
        a, t = self.a, self.tiles
        dots = [i for i in a.loop.body if isinstance(i, L.Dot)]
        axes = {*a.loop.axes, *a.columns, *(x for d in dots for x in d.axes)}
        pairs = [*a.dots.values(), *a.products.values()]
        factors = [f.right for f in pairs] + [f.left for f in a.dots.values()]
        depth = min(tile_size(d.axes, WIDEST) for d in dots)
        aligned = are_aligned(a.loop.body, factors, axes)
        others = self.loads_others(factors)
        return Products(
            "attention", self.half or DType.F32, t.rows, t.depth, depth, aligned, others
        )

    def _sum(self, total: L.Reduce, varies: int) -> Value:
        online, text = self.a.online, self.sums[total.id]
        if online is not None and not online.guarded:  # exp(-inf - -inf), had it been computed
            top = self.code.values[online.top.id].text
            text = f'tl.where({top} == float("-inf"), float("nan"), {text})'
            return self.w.value(text, DType.F32, varies)
        return Value(text, DType.F32, varies)

    def _invariant(self, stages: Iterable[L.Stage], online: Online) -> None:
        """What is between the two loops and does not wait for the first one's result."""
        waiting = {online.top.id}
        for stage in stages:
            for instr in stage.body:
                if isinstance(instr, L.Store):
                    continue
                if waiting & set(operands(instr)):
                    waiting.add(instr.id)
                else:
                    self.code.instr(instr)

    # --- the loop ---------------------------------------------------------------------------------

    def _loop(self) -> Value:
        """The sums, and the largest score if that is wanted."""
        code, a, w, t = self.code, self.a, self.w, self.tiles
        for number, factors in a.dots.items():
            dot = self.instrs[number]
            assert isinstance(dot, L.Dot)
            self.left[number] = self.factor(factors.left, LEFT_DEPTH, dot.axes, self.is_half)
        for total in a.sums:
            varies = ROWS | COLUMNS if total.id in a.products else ROWS
            self.sums[total.id] = w.variable(w.full("0.0", DType.F32, varies))
        top = w.variable(w.full('float("-inf")', DType.F32, ROWS))
        first, last = self._range()
        outside = dict(code.values)
        with w.loop(f"for r in range({first}, {last}, {t.depth}):"):
            flat = w.value(f"r + tl.arange(0, {t.depth})[None, :]", code.index_type, ACROSS).text
            code.open(ACROSS, flat, a.loop.axes, self.total, t.depth)
            self._body(top)
            w.ends.pop(ACROSS)
        code.values = outside
        return Value(top, DType.F32, ROWS)

    def _body(self, top: str) -> None:
        code, a, w = self.code, self.a, self.w
        wanted = [f.left for f in a.products.values()]
        wanted += [s.value for s in a.sums if s.id not in a.products]
        if a.online is not None:
            self.compute([a.online.scores])
            self._rescale(a.online, top)
        self.compute(wanted)
        for total in a.sums:
            name = self.sums[total.id]
            if total.id in a.products:
                self._add_product(name, a.products[total.id])
            else:
                value = code.values[total.value]
                zero = a.online is not None and self._is_weight(total.value, a.online)
                text = value.text if zero else self._inside(value, "0.0")
                text = w.broadcast(text, value.varies, ROWS | ACROSS)
                w.line(
                    f"{name} = {name} + tl.reduce({text}, 1, tl.standard._sum_combine, keep_dims=True)"
                )

    def _rescale(self, online: Online, top: str) -> None:
        """Takes the scores of a tile into the largest one so far, and the sums with it."""
        code, w = self.code, self.w
        value = code.values[online.scores]
        text = w.broadcast(self._inside(value, 'float("-inf")'), value.varies, ROWS | ACROSS)
        scores = w.variable(text)
        code.values[online.scores] = Value(scores, DType.F32, ROWS | ACROSS)
        here = f"tl.reduce({scores}, 1, largest_or_nan, keep_dims=True)"
        new = w.variable(f"largest_or_nan({top}, {here})")
        shift = w.variable(f'tl.where({new} == float("-inf"), 0.0, {new})')
        scale = w.variable(expression("exp", (f"({top} - {shift})",), DType.F32, DType.F32))
        for name in self.sums.values():
            w.line(f"{name} = {name} * {scale}")
        w.line(f"{top} = {new}")
        code.values[online.shift] = Value(shift, DType.F32, ROWS)

    def _inside(self, value: Value, otherwise: str) -> str:
        """A tile of the loop with ``otherwise`` beyond its end."""
        end = self.w.ends[ACROSS]
        return f"tl.where({end}, {value.text}, {otherwise})" if end else value.text

    def _add_product(self, name: str, factors: Factors) -> None:
        code, w, t = self.code, self.w, self.tiles
        left = (
            before_widening(code, self.instrs, factors.left)
            if self.half
            else code.values[factors.left]
        )
        zero = self.a.online is not None and self._is_weight(factors.left, self.a.online)
        text = left.text if zero else self._inside(left, "0.0")
        text = w.broadcast(text, left.varies, ROWS | ACROSS)
        flat = w.value(f"r + tl.arange(0, {t.depth})[:, None]", code.index_type, DOWN).text
        positions = dict(code.positions)
        outside, code.values = code.values, self.outer_values()
        code.open(DOWN, flat, self.a.loop.axes, self.total, t.depth)
        right = self.tile_of(factors.right, DOWN | COLUMNS, DOWN, self.is_half)
        code.values, code.positions = outside, positions
        w.ends.pop(DOWN)
        w.line(f"{name} = {self.multiply(text, right, self.is_half, name)}")

    def _is_weight(self, value: int, online: Online) -> bool:
        """Whether a value is exp(scores - shift): 0 beyond the end, where the scores are -inf."""
        instr = self.instrs[value]
        while isinstance(instr, L.Compute) and instr.op == "cast":
            instr = self.instrs[instr.args[0]]
        return isinstance(instr, L.Compute) and instr.id == online.weight

    def dot(self, dot: L.Dot) -> str:
        right = self.factor(self.a.dots[dot.id].right, RIGHT_DEPTH, dot.axes, self.is_half)
        return self.multiply(self.left[dot.id], right, self.is_half)

    # --- which tiles of the loop count ------------------------------------------------------------

    def _range(self) -> tuple[str, str]:
        """The first and the last position of the loop at which a score may count."""
        code, a, w = self.code, self.a, self.w
        size = code.dim(self.total)
        first, last = "0", size
        if len(a.loop.axes) != 1:
            return first, last
        if a.online is not None:
            found = limits(self.instrs, a.online.scores, "lowest", a.loop.axes[0])
        else:
            summed = [a.products[s.id].left if s.id in a.products else s.value for s in a.sums]
            each = [limits(self.instrs, x, "zero", a.loop.axes[0]) for x in summed]
            found = [x for x in each[0] if all(x in others for others in each)]
        for limit in found:
            text = self._extreme(limit)
            if limit.is_upper:
                last = w.variable(f"tl.minimum({last}, {text} + 1)")
            else:
                first = w.variable(f"tl.maximum({first}, {text})")
        if first != "0":
            first = w.variable(f"{first} // {self.tiles.depth} * {self.tiles.depth}")
        return first, last

    def _extreme(self, limit: Limit) -> str:
        """The largest upper, or the least lower limit of the rows of the tile, as a scalar."""
        code, w = self.code, self.w
        value = code.index(limit.index)
        text, end = value.text, w.ends[ROWS]
        farthest = 1 << 30
        if value.varies & ROWS and end:
            text = f"tl.where({end}, {text}, {-farthest if limit.is_upper else farthest})"
        function = (
            "tl.standard._elementwise_max" if limit.is_upper else "tl.standard._elementwise_min"
        )
        flat = f"tl.reshape({text}, [{self.tiles.rows if value.varies & ROWS else 1}])"
        return f"tl.reduce({flat}, 0, {function})"
