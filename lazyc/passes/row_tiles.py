"""Finds chains of products and kernels that can run a block of rows at a time.

    before   gemm s = q @ k^T;  kernel p = softmax(s);  gemm o = p @ v       s, p: [12, 4096, 4096]
    after    the same steps, and RowTiles: s and p are needed for a block of rows at a time only

This is what makes attention take memory that grows with the length of the sequence, not with its square
(Dao et al., "FlashAttention", 2022; Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory",
2021), and keeps scores in the cache. Nothing here knows attention: any chain qualifies whose steps all
go along the same rows. A whole row of scores fits the cache of a CPU, so that its softmax needs no
running maximum, and results are those of the steps one after another.

The chain starts at a product whose result is a temporary. All steps that touch it join, and so do those
that touch what these read or write, as far as it is as wide or written for another one of them. Each must go row
by row: a product has the rows in one of its dims, a kernel has them as its first outer axes and touches
at each of them only that row of the temporaries. Steps between them that are not part of the chain move
before or behind it.

A kernel that adds up matrices, perhaps cast, reads rows of all of them, and is replaced in blocks by two that go by
the rows of its result: one that writes the block of the first matrix to it, and one that adds that of another.

    before   out[h, i, j] = sum over b of x[b, h, i, j]
    after    out[h, i, j] = x[h, i, j], and for each later matrix of the batch out[h, i, j] += x[h, i, j]

Whether blocks pay off depends on sizes; ``runtime/blocks.py`` decides it when the Program is bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

from lazyc.config import AttentionKernel
from lazyc.ir.decisions import Decision
from lazyc.ir.index import Axis, Index, axis_index, bounds, linearize
from lazyc.ir.loops import Compute, Instr, Load, LoopNest, Store
from lazyc.ir.nest_text import nest_key
from lazyc.ir.nest_values import axes_of_values
from lazyc.ir.program import (
    EagerStep,
    GemmStep,
    KernelStep,
    Operand,
    Program,
    RowStep,
    RowTiles,
    SeedStep,
    Step,
    references,
)
from lazyc.ir.types import Dim, Shape, contiguous_strides, is_nonneg, numel
from lazyc.passes.matrix_sums import Sized, SumOfMatrices, quotient


def find_row_tiles(program: Program, mode: AttentionKernel = "auto") -> Program:
    """The Program with its chains of steps next to each other and named in ``tiles``; without those of
    attention where ``mode`` is "math", with these to run by blocks at all sizes where it is "memory-efficient"."""
    uses = _Uses.of(program)
    start = free = 0  # the first step to look at, and the first one in no chain so far
    stored: set[int] = set()  # buffers of attention that is not to run by blocks
    while start < len(program.steps):
        step = program.steps[start]
        found = _Chain(program, uses, start).grown() if isinstance(step, GemmStep) else None
        joined = None
        if found is not None and min(found.steps) >= free:
            joined = _moved_together(program, found)
        if found is None or joined is None or not stored.isdisjoint(found.private):
            start += 1
            continue
        tiles = found.tiles(joined.first)
        if tiles.is_attention and mode == "math":
            stored |= found.private.keys()
            assert isinstance(step, GemmStep)
            line = step.comment.partition(" ")[2]
            told = Decision("math", "the option attention is math", line, by="attention")
            program = replace(program, decisions=(*program.decisions, told))
            start += 1
            continue
        if tiles.is_attention and mode == "memory-efficient":
            tiles = replace(tiles, always=True)
        steps = tuple(program.steps[position] for position in joined.order)
        nests = program.nests | found.nests
        program = replace(program, steps=steps, nests=nests, tiles=(*program.tiles, tiles))
        uses = _Uses.of(program)
        start = free = tiles.span.stop
    return program


@dataclass(frozen=True, slots=True)
class _Access:
    reads: frozenset[int]
    writes: frozenset[int]

    @property
    def all(self) -> frozenset[int]:
        return self.reads | self.writes


def _access(program: Program, step: Step) -> _Access:
    if isinstance(step, KernelStep):
        params = [p for p in program.nests[step.nest].buffers if p.role != "scratch"]
        pairs = list(zip(step.buffers, params, strict=True))
        return _Access(
            frozenset(b for b, p in pairs if p.role != "out"),
            frozenset(b for b, p in pairs if p.role != "in"),
        )
    if isinstance(step, GemmStep):
        read = {step.a.buffer, step.b.buffer, *([step.c.buffer] if step.accumulate else ())}
        return _Access(frozenset(read), frozenset((step.c.buffer,)))
    if isinstance(step, SeedStep):
        return _Access(frozenset(), frozenset((step.output,)))
    assert isinstance(step, EagerStep)
    refs = frozenset(r.id for r in references((step.args, tuple(v for _, v in step.kwargs))))
    # An operator may write to any argument (``out=``).
    return _Access(refs, refs | frozenset(step.outputs))


@dataclass(frozen=True, slots=True)
class _Uses:
    """Who touches which buffers: ``accesses`` of each step, ``steps`` of each buffer by position, and
    the buffers that are touched by none of the steps alone (``outside``)."""

    accesses: list[_Access]
    steps: dict[int, list[int]]
    outside: frozenset[int]

    @staticmethod
    def of(program: Program) -> _Uses:
        accesses = [_access(program, s) for s in program.steps]
        steps: dict[int, list[int]] = {}
        for position, access in enumerate(accesses):
            for buffer in access.all:
                steps.setdefault(buffer, []).append(position)
        outside = {o.buffer for o in program.outputs}
        for other in program.packed:
            outside |= _access(program, other).all
        return _Uses(accesses, steps, frozenset(outside))


class _Chain:
    """Steps (by position) that go along the same rows, and the temporaries between them."""

    def __init__(self, program: Program, uses: _Uses, start: int) -> None:
        """The chain of product ``start`` alone, which may be of no use."""
        step = program.steps[start]
        assert isinstance(step, GemmStep)
        self.program = program
        self.uses = uses
        self.accesses = uses.accesses
        self.first = start
        self.batch = numel(step.batch)
        self.rows = step.m if step.c.col_stride == 1 else step.n
        self.private: dict[int, Dim] = {}  # buffer -> elements of a row
        self.steps: dict[int, RowStep] = {}
        self.summed: Shape = ()
        self.nests: dict[str, LoopNest] = {}  # of steps that are others in blocks
        self.seed = step.c.buffer

    def grown(self) -> _Chain | None:
        """The longest chain from here; None if there is none of use."""
        step = self.program.steps[self.first]
        assert isinstance(step, GemmStep)
        width = self._row_width(self.seed)
        if step.pack_b or step.accumulate or width is None or width in (0, 1):
            return None
        best = self._with(self.seed)
        refused: set[int] = set()
        while best is not None:
            following = next((b for b in best._as_wide(width) if b not in refused), None)
            if following is None:
                return best if len(best.steps) > 1 else None
            longer = best._with(following)
            if longer is None:
                refused.add(following)
            else:
                best = longer
        return None

    def _with(self, buffer: int) -> _Chain | None:
        """A copy in which ``buffer`` is private, and with it all that has to be; None if one of its
        steps does not go by rows."""
        found = copy(self)
        found.private = dict(self.private)
        waiting = [buffer]
        while waiting:
            for number in waiting:
                width = found._row_width(number)
                if width is None:
                    return None
                found.private[number] = width
            members = found._members()
            written = {b for p in members for b in self.accesses[p].writes} - found.private.keys()
            waiting = [
                b for b in sorted(written) if sum(b in self.accesses[p].all for p in members) > 1
            ]
        found.steps, found.summed, found.nests = {}, (), {}
        for position in members:
            how = found._how(self.program.steps[position])
            if how is None:
                return None
            found.steps[position] = how
        return found

    def _as_wide(self, width: Dim) -> list[int]:
        """Other temporaries of its steps that are as large as the first one."""
        touched = {b for p in self.steps for b in self.accesses[p].all} - self.private.keys()
        return [b for b in sorted(touched) if self._row_width(b) == width]

    def tiles(self, first: int) -> RowTiles:
        """What the Program says of the chain when its steps lie at ``first`` and behind it."""
        steps = tuple(self.steps[p] for p in sorted(self.steps))
        private = tuple(sorted(self.private.items()))
        return RowTiles(
            first, steps, self.batch, self.rows, private, self._is_attention(), self.summed
        )

    def _is_attention(self) -> bool:
        """Whether a softmax lies between two products, or its weights, made again for gradients."""
        steps = {p: self.program.steps[p] for p in sorted(self.steps)}
        products = [p for p, step in steps.items() if isinstance(step, GemmStep)]
        return any(
            isinstance(step, KernelStep)
            and products[0] < p < products[-1]
            and _makes_weights(self.program.nests[step.nest], self.steps[p].axes)
            for p, step in steps.items()
        )

    def _members(self) -> list[int]:
        return sorted({p for buffer in self.private for p in self.uses.steps[buffer]})

    def _row_width(self, buffer: int) -> Dim | None:
        """Elements of a row of a temporary that holds all rows, one after another."""
        found = self.program.buffers[buffer]
        is_free = found.kind == "temp" and buffer not in self.uses.outside
        if not is_free or found.strides != contiguous_strides(found.shape):
            return None
        return quotient(numel(found.shape), self.batch * self.rows)

    # --- whether a step goes by rows

    def _how(self, step: Step) -> RowStep | None:
        if isinstance(step, GemmStep):
            dim = self._product_dim(step)
            return RowStep(dim=dim) if dim else None
        if isinstance(step, KernelStep):
            axes = self._kernel_axes(step)
            return RowStep(axes=axes) if axes else self._matrix_sum(step)
        return None

    def _product_dim(self, step: GemmStep) -> Literal["m", "n", "k", ""]:
        """The dim of a product in which its private operands have their rows."""
        if numel(step.batch) != self.batch or step.accumulate or step.pack_b or step.sparse:
            return ""
        found: set[Literal["m", "n", "k"]] = set()
        operands: tuple[tuple[Operand, Literal["m", "k"], Literal["k", "n"]], ...]
        operands = ((step.a, "m", "k"), (step.b, "k", "n"))
        for operand, by_row, by_column in operands:
            if operand.buffer in self.private:
                found.add(self._rows_of(operand, step.batch, by_row, by_column))  # type: ignore[arg-type]
        if step.c.buffer in self.private:
            found.add(self._rows_of(step.c, step.batch, "m", "n"))  # type: ignore[arg-type]
        if len(found) != 1:
            return ""
        dim = found.pop()
        size = {"m": step.m, "n": step.n, "k": step.k}.get(dim)
        return dim if size == self.rows else ""

    def _rows_of(self, operand: Operand, batch: Shape, by_row: str, by_column: str) -> str:
        """``by_row`` or ``by_column``, whichever dim runs over the rows of the private buffer; "" if
        the operand is not the whole of it."""
        width = self.private[operand.buffer]
        matrix = self.rows * width
        strides = tuple(s * matrix for s in contiguous_strides(batch))
        known = [
            (s, t) for s, t, d in zip(operand.batch_strides, strides, batch, strict=True) if d != 1
        ]
        if operand.offset != 0 or any(s != t for s, t in known):
            return ""
        if (operand.row_stride, operand.col_stride) == (width, 1):
            return by_row
        return by_column if (operand.row_stride, operand.col_stride) == (1, width) else ""

    def _kernel_axes(self, step: KernelStep) -> int:
        """How many outer axes of a kernel run over all rows; 0 if it does not go by rows."""
        nest = self.program.nests[step.nest]
        sized = Sized(dict(zip(nest.symbols, step.sizes, strict=True)))
        rows: list[Axis] = []
        for axis in map(sized.axis, nest.axes):
            if rows and numel(a.size for a in rows) == self.batch * self.rows:
                break
            rows.append(axis)
        if not rows or numel(a.size for a in rows) != self.batch * self.rows:
            return 0
        numbers = [k for k, p in enumerate(nest.buffers) if p.role != "scratch"]
        private = {
            k: self.private[b]
            for k, b in zip(numbers, step.buffers, strict=True)
            if b in self.private
        }
        for stage in nest.stages:
            for instr in stage.body:
                if isinstance(instr, Load | Store) and instr.buffer in private:
                    index = sized.index(instr.index)
                    if not _stays_in_row(index, rows, private[instr.buffer]):
                        return 0
        return len(rows)

    def _matrix_sum(self, step: KernelStep) -> RowStep | None:
        """How a kernel goes by rows that does nothing but cast and add up matrices of a private buffer; None where it
        does more, where other matrices are added up than by another step, or where rows of the result are not those of
        a matrix."""
        nest = self.program.nests[step.nest]
        if len(step.buffers) != 2:
            return None
        source, result = step.buffers
        # A result that a step of the chain reads is not whole before the last matrix.
        if source not in self.private or result in self.private:
            return None
        width = self.private[source]
        found = SumOfMatrices.find(nest, dict(zip(nest.symbols, step.sizes, strict=True)))
        summed = None if found is None else found.split(self.batch, self.rows * width)
        if found is None or summed is None or self.summed not in ((), summed):
            return None
        self.summed = summed
        steps = []
        for later in (False, True):
            made, sizes = found.by_rows(summed[1] * self.rows, width, later)
            key = nest_key(made)
            self.nests[key] = made
            steps.append(KernelStep(key, (source, result), sizes, step.comment))
        return RowStep(axes=1, sums=(steps[0], steps[1]))


def _makes_weights(nest: LoopNest, axes: int) -> bool:
    """Whether a kernel whose first ``axes`` run over rows computes the exponential of something less a value of its
    row, as no activation between two products does."""
    rows = set(nest.axes[:axes])
    instrs: dict[int, Instr] = {
        i.id: i for stage in nest.stages for i in stage.body if not isinstance(i, Store)
    }
    varies = axes_of_values(nest.stages)
    for instr in instrs.values():
        if not isinstance(instr, Compute) or instr.op != "exp":
            continue
        shifted = instrs[instr.args[0]]
        if isinstance(shifted, Compute) and shifted.op == "sub":
            value, of_row = shifted.args
            if varies[value] - rows and varies[of_row] and varies[of_row] <= rows:
                return True
    return False


def _stays_in_row(index: Index, rows: Sequence[Axis], width: Dim) -> bool:
    """Whether an index is ``row * width + place`` with ``0 <= place < width`` at every point."""
    sizes = tuple(a.size for a in rows)
    row = linearize(tuple(axis_index(a) for a in rows), contiguous_strides(sizes))
    place = index - row * width
    if place.value_refs() or not place.axes().isdisjoint(rows):
        return False
    low, high = bounds(place)
    return is_nonneg(low) and is_nonneg(width - 1 - high)


@dataclass(frozen=True, slots=True)
class _Joined:
    """The positions of all steps in their new ``order``, in which the chain is at ``first``."""

    order: list[int]
    first: int


def _moved_together(program: Program, chain: _Chain) -> _Joined | None:
    """The order of steps with those of the chain next to each other; None where another step depends on one of
    the chain and a later one of the chain on it."""
    members = sorted(chain.steps)
    accesses = chain.accesses
    before: list[int] = []  # what a later step of the chain needs; all else may wait
    behind: list[int] = []
    for position in reversed(range(members[0], members[-1] + 1)):
        if position in chain.steps:
            if any(_conflict(accesses[position], accesses[p]) for p in before):
                return None
            continue
        if isinstance(program.steps[position], EagerStep):
            return None  # it cuts the native steps, and may do more than its buffers tell
        later = [p for p in members if p > position]
        is_needed = any(_conflict(accesses[position], accesses[p]) for p in (*later, *before))
        (before if is_needed else behind).append(position)
    head = [*range(members[0]), *reversed(before)]
    tail = [*reversed(behind), *range(members[-1] + 1, len(program.steps))]
    return _Joined([*head, *members, *tail], len(head))


def _conflict(a: _Access, b: _Access) -> bool:
    """Whether two steps must keep their order."""
    return not (a.writes.isdisjoint(b.all) and b.writes.isdisjoint(a.all))
