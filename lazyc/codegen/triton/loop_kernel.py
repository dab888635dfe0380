"""Kernels of any nest: blocks of outer points by iterations.

A program takes consecutive outer points and runs the stages for them in order. A stage whose iterations
fit one block is straight code, and stages of equal length then share what they load and compute; a
longer one is a loop that keeps a running result in each lane.
"""

from __future__ import annotations

from lazyc.codegen.base import KernelCode, LaunchRef
from lazyc.codegen.triton.blocks import Blocks, keeps_order
from lazyc.codegen.triton.code import Code, ceil_div
from lazyc.codegen.triton.live import is_long, is_whole
from lazyc.codegen.triton.pointwise import TYPES
from lazyc.codegen.triton.reduction import ITERATIONS, POINTS, Accumulator, Running
from lazyc.codegen.triton.writer import Value, Writer
from lazyc.ir import loops as L
from lazyc.ir.nest_values import cone, inside_of_dots
from lazyc.ir.types import Dim, DType, numel


def loop_kernel(
    nest: L.LoopNest, symbol: str, blocks: Blocks, reports_division: bool = True
) -> KernelCode:
    """The kernel of a nest. Raises CodegenError for what there is no code for."""
    return _Kernel(nest, blocks, reports_division).finish(symbol)


class _Kernel:
    """A kernel while it is written."""

    def __init__(self, nest: L.LoopNest, blocks: Blocks, reports_division: bool) -> None:
        self.nest = nest
        self.blocks = blocks
        self.w = Writer({POINTS: (0, blocks.points), ITERATIONS: (1, 1)})
        self.code = Code(nest, self.w, "x", reports_division)
        self.stored: set[int] = set()
        self.touched: set[int] = set()

    def finish(self, symbol: str) -> KernelCode:
        code, total, points = self.code, numel(a.size for a in self.nest.axes), self.blocks.points
        first = f"tl.program_id(0).to({TYPES[code.index_type]})"
        self.w.line(f"x = {first} * {points} + tl.arange(0, {points})[:, None]")
        code.open(POINTS, "x", self.nest.axes, total, points)
        for stage, count in zip(self.nest.stages, self.blocks.iterations, strict=True):
            self._stage(stage, count)
        text, programs = code.text(symbol), ceil_div(total, points)
        ref = LaunchRef(symbol, programs, points, tuple(code.sizes), self.blocks.warps)
        return KernelCode(ref, text, tuple(b.dtype for b in self.nest.buffers))

    def _stage(self, stage: L.Stage, count: int) -> None:
        code, w = self.code, self.w
        self._barrier(stage)
        if not stage.axes:
            self._body_of(stage)
            return
        w.dims[ITERATIONS] = 1, count
        outer, total = dict(code.values), numel(a.size for a in stage.axes)
        whole = is_whole(total, count)
        loop = _Loop(code, stage, total, count)
        lanes = f"tl.arange(0, {count})[None, :]"
        if whole and total != 0:
            text = lanes if code.index_type is DType.I32 else f"{lanes}.to(tl.int64)"
            self._body(loop, w.value(text, code.index_type, ITERATIONS).text)
        elif not whole:
            loop.start(w)
            with w.loop(f"for r in range(0, {code.dim(total)}, {count}):"):
                self._body(loop, w.value(f"r + {lanes}", code.index_type, ITERATIONS).text)
                if keeps_order(self.nest, stage):
                    w.line("tl.debug_barrier()")
        code.values = outer | {a.instr.id: a.finish(w) for a in loop.accumulators.values()}
        w.ends.pop(ITERATIONS, None)

    def _body(self, loop: _Loop, flat: str) -> None:
        code = self.code
        code.open(ITERATIONS, flat, loop.stage.axes, loop.total, loop.count)
        inside = inside_of_dots(loop.stage.body)
        for instr in loop.stage.body:
            if not isinstance(instr, L.Store) and instr.id in inside:
                pass  # computed by the dots that read it
            elif isinstance(instr, L.Dot):
                self._dot(loop.stage, instr)
            elif isinstance(instr, L.Reduce):
                position = None if instr.position is None else code.values[instr.position]
                loop.accumulators[instr.id].add(self.w, code.values[instr.value], position, flat)
            elif isinstance(instr, L.Scan):
                running = loop.running[instr.id]
                code.values[instr.id] = running.add(self.w, code.values[instr.value])
            else:
                code.instr(instr)

    def _body_of(self, stage: L.Stage) -> None:
        """A stage without a loop."""
        inside = inside_of_dots(stage.body)
        for instr in stage.body:
            if isinstance(instr, L.Dot) and instr.id not in inside:
                self._dot(stage, instr)
            elif isinstance(instr, L.Store) or instr.id not in inside:
                self.code.instr(instr)

    def _dot(self, stage: L.Stage, dot: L.Dot) -> None:
        """A dot as a loop of its own, one product at a time."""
        code, w = self.code, self.w
        outside, ends = dict(code.values), dict(w.ends)
        total = w.variable(w.full("0.0", dot.dtype, POINTS | ITERATIONS))
        inner = inside_of_dots(stage.body)
        inner &= cone(stage.body, (dot.left, dot.right), into_dots=False)
        name = f"e{len(w.lines)}"
        with w.loop(f"for {name} in range(0, {code.dim(numel(a.size for a in dot.axes))}):"):
            flat = f"{name} + tl.full([1, 1], 0, {TYPES[code.index_type]})"
            code.unravel(0, w.value(flat, code.index_type, 0).text, dot.axes)
            for instr in stage.body:
                if isinstance(instr, L.Store) or instr.id not in inner:
                    continue
                if isinstance(instr, L.Dot):
                    self._dot(stage, instr)
                else:
                    code.instr(instr)
            left, right = (code.values[v].text for v in (dot.left, dot.right))
            w.line(f"{total} = {total} + {left} * {right}")
        code.values, w.ends = outside, ends
        code.values[dot.id] = Value(total, dot.dtype, POINTS | ITERATIONS)

    def _barrier(self, stage: L.Stage) -> None:
        """Waits for the other threads of the program where a stage touches what one before it stored,
        or stores to what one before it touched."""
        memory = [i for i in stage.body if isinstance(i, L.Load | L.Store)]
        touched = {i.buffer for i in memory} - self.code.read_only
        stored = {i.buffer for i in memory if isinstance(i, L.Store)}
        if touched & self.stored or stored & self.touched:
            self.w.line("tl.debug_barrier()")
        self.stored |= stored
        self.touched |= touched


class _Loop:
    """The iterations of a stage, ``total`` in blocks of ``count``, and what runs along in them."""

    def __init__(self, code: Code, stage: L.Stage, total: Dim, count: int) -> None:
        self.stage = stage
        self.total = total
        self.count = count
        whole, long = is_whole(total, count), is_long(total, count)
        types = {
            i.id: i.dtype for s in code.nest.stages for i in s.body if not isinstance(i, L.Store)
        }
        self.accumulators = {
            i.id: Accumulator(i, types[i.value], code.index_type, whole, long)
            for i in stage.body
            if isinstance(i, L.Reduce)
        }
        self.running = {i.id: Running(i, whole) for i in stage.body if isinstance(i, L.Scan)}

    def start(self, w: Writer) -> None:
        for part in (*self.accumulators.values(), *self.running.values()):
            part.start(w)
