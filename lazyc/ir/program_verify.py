"""Verifier of Programs: what the runtime relies on, and what would otherwise corrupt memory.

Buffers are defined before they are read, nothing is written that lasts, and (where sizes are known)
no step reaches beyond its buffers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import sympy

from lazyc.ir.loops import Load, LoopNest, Store
from lazyc.ir.ops import IRError
from lazyc.ir.program import (
    Buffer,
    EagerStep,
    GemmStep,
    KernelStep,
    Operand,
    Program,
    ProgramOutput,
    RowStep,
    RowTiles,
    SeedStep,
    SparseFactor,
    Step,
    references,
)
from lazyc.ir.types import Dim, DType, Shape, free_symbols, numel, storage_extent

_DENSE = ("temp", "output")  # memory that the runtime allocates
_GIVEN = ("input", "constant")  # defined from the start


def verify_program(program: Program) -> None:
    """Raises IRError, naming the step or buffer, when the Program breaks a rule."""
    _Verifier(program).run()


class _Verifier:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.symbols = {s.symbol for s in program.symbols}
        self.defined: set[int] = set()
        self.parameters = {program.inputs[i] for i in program.parameters}

    def run(self) -> None:
        for place, buffer in enumerate(self.program.buffers):
            self._in(f"buffer b{place}", self._buffer, place, buffer)
        self._inputs()
        # A buffer without elements needs no step that writes it.
        given = {b.id for b in self.program.buffers if b.kind in _GIVEN or 0 in b.shape}
        self.defined = set(given)
        for place, step in enumerate(self.program.packed):
            self._in(f"packed step {place}, {_name(step)}", self._step, step, True)
        # Of what packed steps write, calls find the packed buffers.
        self.defined = {b for b in self.defined if b in given or self._get(b).kind == "packed"}
        for place, step in enumerate(self.program.steps):
            self._in(f"step {place}, {_name(step)}", self._step, step, False)
        for place, output in enumerate(self.program.outputs):
            self._in(f"output {place}", self._output, output)
        self._tiles()

    def _in(self, where: str, check: Any, *args: Any) -> None:
        try:
            check(*args)
        except IRError as error:
            raise IRError(f"{where}: {error}") from None

    # --- buffers

    def _buffer(self, place: int, buffer: Buffer) -> None:
        if buffer.id != place:
            raise IRError(f"has id {buffer.id}")
        if len(buffer.shape) != len(buffer.strides):
            raise IRError(f"shape {buffer.shape} and strides {buffer.strides} differ in rank")
        if buffer.kind in _DENSE and buffer.dtype is None:
            raise IRError(f"a {buffer.kind} needs a dtype")
        self._bound((*buffer.shape, *buffer.strides))
        if any(isinstance(d, int) and d < 0 for d in (*buffer.shape, *buffer.strides)):
            raise IRError(f"negative size or stride: {buffer.shape} {buffer.strides}")
        if buffer.kind == "constant":
            if not 0 <= buffer.source < len(self.program.constants):
                raise IRError(f"there is no constant {buffer.source}")
            tensor = self.program.constants[buffer.source]
            found = (tuple(tensor.shape), tuple(tensor.stride()))
            if buffer.dtype is not None and (
                tensor.dtype != buffer.dtype.torch or found != (buffer.shape, buffer.strides)
            ):
                raise IRError(f"constant {buffer.source} is {tensor.dtype} {found}")

    def _inputs(self) -> None:
        seen: set[int] = set()
        for position, number in enumerate(self.program.inputs):
            if number < 0:
                continue
            buffer = self._get(number)
            if buffer.kind != "input" or buffer.source != position or number in seen:
                raise IRError(f"input {position}: b{number} is not the buffer of this argument")
            seen.add(number)
        for buffer in self.program.buffers:
            if buffer.kind == "input" and buffer.id not in seen:
                raise IRError(f"b{buffer.id} is no argument")

    def _bound(self, dims: Iterable[Dim]) -> None:
        unknown = free_symbols(dims) - self.symbols
        if unknown:
            raise IRError(f"symbols without a source: {sorted(map(str, unknown))}")

    def _get(self, number: int) -> Buffer:
        if not 0 <= number < len(self.program.buffers):
            raise IRError(f"there is no buffer b{number}")
        return self.program.buffers[number]

    # --- steps

    def _step(self, step: Step, is_packed: bool) -> None:
        reads, writes = self._accesses(step)
        for number in sorted(reads):
            buffer = self._get(number)
            if number not in self.defined:
                raise IRError(f"b{number} is read before it is written")
            if is_packed and buffer.kind == "input" and number not in self.parameters:
                raise IRError(f"b{number} is no parameter")
        for number in sorted(writes):
            self._may_write(self._get(number), is_packed)
            self.defined.add(number)

    def _may_write(self, buffer: Buffer, is_packed: bool) -> None:
        if buffer.kind == "constant" or buffer.id in self.parameters:
            raise IRError(f"writes to b{buffer.id}, which must not change")
        # Opaque is what nothing reads: other results of a call that has several.
        if is_packed and buffer.kind not in ("packed", "temp", "opaque"):
            raise IRError(f"writes to b{buffer.id}, a {buffer.kind}, between calls")
        if not is_packed and buffer.kind == "packed":
            raise IRError(f"writes to b{buffer.id}, which is kept between calls")

    def _accesses(self, step: Step) -> tuple[set[int], set[int]]:
        """The buffers that a step reads, and those that it writes."""
        if isinstance(step, KernelStep):
            return self._kernel(step)
        if isinstance(step, GemmStep):
            return self._gemm(step)
        if isinstance(step, SeedStep):
            if self._get(step.output).dtype is not DType.I64:
                raise IRError(f"the seed b{step.output} is not i64")
            return set(), {step.output}
        assert isinstance(step, EagerStep)
        return self._eager(step)

    def _kernel(self, step: KernelStep) -> tuple[set[int], set[int]]:
        nest = self.program.nests.get(step.nest)
        if nest is None:
            raise IRError(f"there is no nest {step.nest}")
        params = [p for p in nest.buffers if p.role != "scratch"]
        if len(params) != len(step.buffers) or len(nest.symbols) != len(step.sizes):
            raise IRError("takes a different number of buffers or sizes")
        self._bound(step.sizes)
        reads: set[int] = set()
        writes: set[int] = set()
        filled = _filled(nest)
        positions = [k for k, p in enumerate(nest.buffers) if p.role != "scratch"]
        for k, param, number in zip(positions, params, step.buffers, strict=True):
            buffer = self._get(number)
            if buffer.dtype is not param.dtype:
                raise IRError(f"b{number} is {buffer.dtype}, the kernel takes {param.dtype}")
            if param.role != "in" and step.buffers.count(number) > 1:
                raise IRError(f"b{number} is written and passed twice")
            self._reaches(buffer, _in_sizes(param.numel, nest, step.sizes))
            if param.role != "out" and k not in filled:
                reads.add(number)
            if param.role != "in":
                writes.add(number)
        if step.sparse is not None:
            self._sparse_factor(step, step.sparse)
        return reads, writes

    def _sparse_factor(self, step: KernelStep, factor: SparseFactor) -> None:
        if not 0 <= factor.weight < len(step.buffers):
            raise IRError(f"has no param {factor.weight} for a sparse weight")
        number = step.buffers[factor.weight]
        if factor.is_used and number not in self.parameters:
            raise IRError(f"b{number}, a sparse weight, is no parameter")

    def _gemm(self, step: GemmStep) -> tuple[set[int], set[int]]:
        if step.tile is not None and (step.dtype is not DType.F32 or step.batch):
            raise IRError("tiles of a product that is not one of f32 matrices")
        a, b, c = step.a, step.b, step.c
        for operand, dtype, rows, cols in (
            (a, step.dtype, step.m, step.k),
            (b, step.dtype, step.k, step.n),
            (c, step.result_dtype, step.m, step.n),
        ):
            buffer = self._get(operand.buffer)
            if buffer.dtype is not dtype:
                raise IRError(f"b{operand.buffer} is {buffer.dtype}, not {dtype}")
            if len(operand.batch_strides) != len(step.batch):
                raise IRError(f"b{operand.buffer} has no stride for each batch dim")
            self._operand(buffer, operand, (*step.batch, rows, cols))
        if c.buffer in (a.buffer, b.buffer):
            raise IRError(f"b{c.buffer} is read and written")
        reads = {a.buffer, b.buffer}
        return (reads | {c.buffer} if step.accumulate else reads), {c.buffer}

    def _operand(self, buffer: Buffer, operand: Operand, shape: Shape) -> None:
        strides = (*operand.batch_strides, operand.row_stride, operand.col_stride)
        self._bound((*shape, *strides, operand.offset))
        self._reaches(buffer, _extent(shape, strides, operand.offset))

    def _eager(self, step: EagerStep) -> tuple[set[int], set[int]]:
        reads: set[int] = set()
        for ref in references((step.args, tuple(v for _, v in step.kwargs))):
            buffer = self._get(ref.id)
            reads.add(ref.id)
            if ref.shape is not None:
                self._bound((*ref.shape, *ref.strides, ref.offset))
                self._reaches(buffer, _extent(ref.shape, ref.strides, ref.offset))
        out = dict(step.kwargs).get("out")
        written = {ref.id for ref in references(out)}
        for number in step.outputs:
            if self._get(number).kind not in ("eager", "opaque", "packed"):
                raise IRError(f"b{number} cannot hold the result of an eager call")
        if not step.is_tuple and len(step.outputs) > 1:
            raise IRError("has several results but returns no tuple")
        return reads - written, {*step.outputs, *written}

    # --- blocks of rows

    def _tiles(self) -> None:
        free = 0
        for tiles in self.program.tiles:
            if tiles.first < free or tiles.span.stop > len(self.program.steps):
                raise IRError(f"row tiles: steps {tiles.span} overlap others or do not exist")
            free = tiles.span.stop
            self._in(f"row tiles at step {tiles.first}", self._row_tiles, tiles)

    def _row_tiles(self, tiles: RowTiles) -> None:
        self._bound(
            (tiles.batch, tiles.rows, *(width for _, width in tiles.private), *tiles.summed)
        )
        sums = any(how.sums is not None for how in tiles.steps)
        if len(tiles.summed) != (3 if sums else 0) or (sums and numel(tiles.summed) != tiles.batch):
            raise IRError(f"{tiles.batch} matrices are added up as {tiles.summed}")
        steps = [self.program.steps[position] for position in tiles.span]
        for step, how in zip(steps, tiles.steps, strict=True):
            self._row_step(step, how, tiles)
        private = dict(tiles.private)
        for number in private:
            if self._get(number).kind != "temp":
                raise IRError(f"b{number} is private and no temporary")
        accesses = [self._accesses(step) for step in steps]
        for number in {b for _, writes in accesses for b in writes} - private.keys():
            if sum(number in reads | writes for reads, writes in accesses) > 1:
                raise IRError(f"b{number} is written, touched by another step, and not private")
        others = [s for p, s in enumerate(self.program.steps) if p not in tiles.span]
        touched = {o.buffer for o in self.program.outputs}
        for step in (*others, *self.program.packed):
            touched |= set[int]().union(*self._accesses(step))
        if not touched.isdisjoint(private):
            raise IRError(f"b{min(touched & private.keys())} is private and used elsewhere")

    def _row_step(self, step: Step, how: RowStep, tiles: RowTiles) -> None:
        if isinstance(step, KernelStep) and how.sums is not None:
            private = {number for number, _ in tiles.private}
            if step.buffers[0] not in private or not private.isdisjoint(step.buffers[1:]):
                raise IRError(f"{_name(step)} does not add up a private buffer to one that is not")
            for part in how.sums:
                self._kernel(part)
                if part.buffers != step.buffers:
                    raise IRError(f"kernel {part.nest} has other buffers than {step.nest}")
                self._goes_along(part, how, tiles.summed[1] * tiles.rows)
        elif isinstance(step, KernelStep):
            self._goes_along(step, how, tiles.batch * tiles.rows)
        elif isinstance(step, GemmStep) and how.dim and not _is_special(step):
            dim = {"m": step.m, "n": step.n, "k": step.k}[how.dim]
            if dim != tiles.rows or numel(step.batch) != tiles.batch:
                raise IRError(f"gemm into b{step.c.buffer}: {how.dim} is not the rows")
        else:
            raise IRError(f"{_name(step)} does not run by rows")

    def _goes_along(self, step: KernelStep, how: RowStep, rows: Dim) -> None:
        nest = self.program.nests[step.nest]
        if how.dim or not 0 < how.axes <= len(nest.axes):
            raise IRError(f"kernel {step.nest} has no {how.axes} axes to run over rows")
        points = _in_sizes(numel(a.size for a in nest.axes[: how.axes]), nest, step.sizes)
        if points != rows:
            raise IRError(f"kernel {step.nest}: {points} points are not the rows")

    # --- results

    def _output(self, output: ProgramOutput) -> None:
        if output.buffer < 0:
            self._bound(() if output.value is None else (output.value,))
            return
        buffer = self._get(output.buffer)
        if buffer.id not in self.defined:
            raise IRError(f"b{buffer.id} is never written")
        if buffer.dtype is not None and buffer.kind != "opaque":
            self._bound((*output.shape, *output.strides, output.offset))
            self._reaches(buffer, _extent(output.shape, output.strides, output.offset))

    def _reaches(self, buffer: Buffer, elements: Dim | None) -> None:
        """Raises when ``elements`` of memory are certainly more than the buffer has."""
        has = _extent(buffer.shape, buffer.strides, 0)
        if isinstance(has, int) and isinstance(elements, int) and elements > has:
            raise IRError(f"reaches element {elements - 1} of b{buffer.id}, which has {has}")


def _filled(nest: LoopNest) -> set[int]:
    """The params that a kernel stores to before it loads them: their old content is not read."""
    first: dict[int, bool] = {}  # param -> whether it is stored to first
    for stage in nest.stages:
        for instr in stage.body:
            if isinstance(instr, Load):
                first.setdefault(instr.buffer, False)
            elif isinstance(instr, Store):
                first.setdefault(instr.buffer, instr.mode == "set" and instr.mask is None)
    return {param for param, is_store in first.items() if is_store}


def _extent(shape: Shape, strides: Shape, offset: Dim) -> Dim | None:
    """Elements of memory up to the last one of a strided view; None where it is not known."""
    extent = storage_extent(shape, strides)
    known = isinstance(extent, int) and isinstance(offset, int)
    return (offset + extent if extent else 0) if known else None


def _in_sizes(numel: Dim, nest: LoopNest, sizes: tuple[Dim, ...]) -> Dim:
    """A size of a nest in terms of the Program's symbols."""
    if isinstance(numel, int):
        return numel
    value = numel.subs(dict(zip(nest.symbols, sizes, strict=True)), simultaneous=True)
    return int(value) if isinstance(value, sympy.Integer) else cast(sympy.Expr, value)


def _is_special(step: GemmStep) -> bool:
    """Whether a product adds to its result, or reads b in another form: those run as a whole only."""
    return step.accumulate or step.pack_b or step.sparse is not None


def _name(step: Step) -> str:
    if isinstance(step, KernelStep):
        return f"kernel {step.nest}"
    if isinstance(step, EagerStep):
        return step.target
    return "gemm" if isinstance(step, GemmStep) else "seed"
