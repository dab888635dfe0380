"""Binding: a Program at concrete sizes becomes a memory plan and a table for the native driver.

The steps are cut at eager calls. Each run of native steps between two of them is one segment of the
table: one foreign call. Buffers get a place each: temporaries an offset in the arena, everything else
a slot of the driver's ``env`` (see ``driver.py``) that is filled in at each call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from lazyc.codegen.base import DeviceKernel, Kernel, LoadedKernel
from lazyc.ir.program import (
    Buffer,
    EagerStep,
    GemmStep,
    KernelStep,
    Program,
    SeedStep,
    Step,
)
from lazyc.ir.types import DType, storage_extent
from lazyc.runtime.blocks import (
    BlockKernel,
    BlockProduct,
    Blocks,
    BlockSum,
    choose_blocks,
)
from lazyc.runtime.driver import LITERAL, OWN_SLOT, BlockSlice, TableWriter
from lazyc.runtime.eager import is_foreign
from lazyc.runtime.half_tiles import build_copies
from lazyc.runtime.library import Blas, GemmCall, plan_gemm
from lazyc.runtime.memory import Interval, plan_arena
from lazyc.runtime.plan import (
    ARENA_SLOT,
    Layout,
    NativeStep,
    PackRequest,
    Plan,
    Segment,
    touched,
    traffic,
)
from lazyc.runtime.products import packed_product, plain_product, tiled_product
from lazyc.runtime.sizes import Sizes

# Below this much memory traffic (bytes) plus arithmetic (FLOPs / 16) a segment takes a few
# microseconds, less than another thread may keep the GIL for once it is let go.
_SHORT_WORK = 128 << 10


def _layout(buffer: Buffer, sizes: Sizes) -> Layout | None:
    if buffer.dtype is None or buffer.kind == "opaque":
        return None
    shape, strides = sizes.all(buffer.shape), sizes.all(buffer.strides)
    dtype = buffer.dtype.torch
    return Layout(dtype, shape, strides, storage_extent(shape, strides) * dtype.itemsize)


def _cut(
    program: Program,
    kernels: Mapping[str, Kernel],
    sizes: Sizes,
    blas: Blas,
    sparse: frozenset[int],
    by_blocks: Mapping[int, Blocks],
) -> list[Segment]:
    """The steps as segments. A seed moves to the start of its segment: it depends on nothing.
    ``by_blocks``: the numbers of steps that run by blocks of rows."""
    segments = [Segment()]
    for number, step in enumerate(program.steps):
        blocks = by_blocks.get(number)
        if blocks is not None:
            if by_blocks.get(number - 1) is not blocks:
                segments[-1].native.append(NativeStep(blocks))
            continue
        if number in sparse:
            assert isinstance(step, GemmStep)
            segments[-1].native.append(NativeStep(step, sparse=number))
            continue
        call = plan_gemm(step, sizes, blas) if isinstance(step, GemmStep) else None
        if isinstance(step, KernelStep) and isinstance(
            kernels[step.nest], LoadedKernel | DeviceKernel
        ):
            segments[-1].native.append(NativeStep(step))
        elif isinstance(step, GemmStep) and call is not None:
            segments[-1].native.append(NativeStep(step, call))
        else:
            if segments[-1].native and not isinstance(step, SeedStep):
                segments.append(Segment())
            segments[-1].python.append(step)
    return segments


def _private(program: Program, segments: Sequence[Segment]) -> set[int]:
    """Temporaries that need a tensor of their own: what is handed to the caller, what an operator
    of a third party reads (it may keep it), and what an opaque result may share memory with."""
    keep = {o.buffer for o in program.outputs}
    opaque = {b.id for b in program.buffers if b.kind == "opaque" or b.dtype is None}
    for segment in segments:
        for step in segment.python:
            if isinstance(step, EagerStep) and (
                is_foreign(step.target) or not opaque.isdisjoint(step.outputs)
            ):
                keep |= touched(step)
    return {b.id for b in program.buffers if b.kind == "temp" and b.id in keep}


def _place_temporaries(
    temps: Iterable[int],
    layouts: Sequence[Layout | None],
    segments: Sequence[Segment],
    scratch: Callable[[NativeStep], list[int]],
) -> tuple[dict[int, int], dict[Blocks, int], int]:
    """Arena offset of each temporary and of the memory that threads have for blocks, and the arena's
    size. Steps count one by one. ``scratch``: bytes of the memory that a step needs for itself."""
    first: dict[int | Blocks, int] = {}
    last: dict[int | Blocks, int] = {}
    position = 0
    own: list[tuple[NativeStep, list[Interval]]] = []
    for segment in segments:
        for step in [*segment.python, *(n.step for n in segment.native)]:
            for user in (*touched(step), *([step] if isinstance(step, Blocks) else ())):
                first.setdefault(user, position)
                last[user] = position
            position += 1
        before = position - len(segment.native)
        for at, native in enumerate(segment.native, before):
            sizes = scratch(native)
            if sizes:
                own.append((native, [Interval(nbytes, at, at) for nbytes in sizes]))
    used: list[int | Blocks] = [t for t in temps if t in first]
    used += [user for user in first if isinstance(user, Blocks)]
    intervals = []
    for user in used:
        if isinstance(user, Blocks):
            nbytes = user.threads * user.thread_bytes
        else:
            layout = layouts[user]
            assert layout is not None, user
            nbytes = layout.nbytes
        intervals.append(Interval(nbytes, first[user], last[user]))
    offsets, total = plan_arena([*intervals, *(i for _, found in own for i in found)])
    rest = iter(offsets[len(used) :])
    for native, found in own:
        native.scratch = tuple(next(rest) for _ in found)
    placed = list(zip(used, offsets, strict=False))
    buffers = {user: offset for user, offset in placed if not isinstance(user, Blocks)}
    return buffers, {u: offset for u, offset in placed if isinstance(u, Blocks)}, total


def _mark_uses(segments: Sequence[Segment], fresh: set[int], keep: set[int]) -> None:
    """Fills in where fresh tensors are first needed and where values are last used."""
    seen: set[int] = set()
    for segment in segments:
        used = segment.used()
        segment.fresh = sorted((used & fresh) - seen)
        seen |= used
    segments[-1].fresh += sorted(fresh - seen)  # results without elements, which no step writes
    later: set[int] = set(keep)
    for segment in reversed(segments):
        used = segment.used()
        segment.dead = sorted(used - later)
        later |= used


def written(program: Program, segments: Sequence[Segment]) -> set[int]:
    """The buffers that steps of these segments write to, eager results aside."""
    found: set[int] = set()
    for segment in segments:
        native = (n.step for n in segment.native)
        parts = (
            [p.step for p in step.steps] if isinstance(step, Blocks) else [step] for step in native
        )
        for step in (*itertools.chain.from_iterable(parts), *segment.python):
            if isinstance(step, GemmStep):
                found.add(step.c.buffer)
            elif isinstance(step, KernelStep):
                params = [p for p in program.nests[step.nest].buffers if p.role != "scratch"]
                found |= {b for b, p in zip(step.buffers, params, strict=True) if p.role != "in"}
    return found


def _kept_buffers(program: Program) -> set[int]:
    """The buffers whose content stays from call to call under the guard of the parameters."""
    parameters = {program.inputs[i] for i in program.parameters}
    return parameters | {b.id for b in program.buffers if b.kind in ("constant", "packed")}


def _addressed(native: NativeStep, packable: Sequence[GemmCall]) -> set[int]:
    """The buffers whose address a native step needs: not that of a matrix that it reads packed or
    compressed."""
    if native.sparse is not None:
        assert isinstance(native.step, GemmStep)
        return {native.step.a.buffer, native.step.c.buffer}
    if native.gemm is not None and any(native.gemm is call for call in packable):
        return {native.gemm.product.a.buffer, native.gemm.product.c.buffer}
    return touched(native.step)


class _Slots:
    """Hands out env slots in order."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}
        self.next = ARENA_SLOT + 1

    def add(self, buffers: Iterable[int]) -> None:
        for buffer in buffers:
            self.of[buffer] = self.take()

    def take(self) -> int:
        self.next += 1
        return self.next - 1


def bind(
    program: Program,
    kernels: Mapping[str, Kernel],
    blas: Blas,
    sizes: Sizes,
    use_packs: bool,
    sparse: frozenset[int] = frozenset(),
    threads: int = 1,
    cache: int = 1 << 20,
) -> Plan:
    """The plan of ``program`` at ``sizes``. ``use_packs``: products marked ``pack_b`` read b from a
    packed copy (the caller fills its slot), else as it is. ``sparse``: the steps that read b from its
    compressed form. ``threads``: how many are likely to run; ``cache``: bytes of a core's second one."""
    layouts = [_layout(b, sizes) for b in program.buffers]
    cores = threads, cache
    choices = [choose_blocks(t, program, kernels, blas, sizes, *cores) for t in program.tiles]
    by_blocks: dict[int, Blocks] = {}
    for tiles, choice in zip(program.tiles, choices, strict=True):
        if choice.blocks is not None:
            by_blocks |= dict.fromkeys(tiles.span, choice.blocks)
    segments = _cut(program, kernels, sizes, blas, sparse, by_blocks)
    private = _private(program, segments)
    kinds = {b.id: b.kind for b in program.buffers}
    temps = [b for b, kind in kinds.items() if kind == "temp" and b not in private]
    packable: list[GemmCall] = []
    if use_packs:
        kept = _kept_buffers(program)
        calls = [n.gemm for s in segments for n in s.native if n.gemm is not None]
        packable = [c for c in calls if c.packable and c.product.b.buffer in kept]
    scratch = partial(_scratch_bytes, program, kernels, sizes, packable)
    offsets, memory, arena_bytes = _place_temporaries(temps, layouts, segments, scratch)

    native = {b for s in segments for n in s.native for b in _addressed(n, packable)}
    inputs = [p for p, b in enumerate(program.inputs) if b in native]
    fresh = sorted(b for b, kind in kinds.items() if kind == "output" or b in private)
    packed = sorted(b for b in native if kinds[b] == "packed")
    late = sorted(b for b in native if kinds[b] in ("constant", "eager"))
    slots = _Slots()
    slots.add(program.inputs[p] for p in inputs)
    slots.add(fresh)
    slots.add(packed)
    packs = [PackRequest(call, slots.take()) for call in packable]
    compressed = {number: slots.take() for number in sorted(sparse)}
    slots.add(late)
    on_device = any(isinstance(k, DeviceKernel) for k in kernels.values())
    stream = slots.take() if on_device else -1

    changed = written(program, segments)
    _mark_uses(segments, set(fresh), {o.buffer for o in program.outputs})
    writer = _Writer(
        program,
        kernels,
        blas,
        sizes,
        layouts,
        slots.of,
        offsets,
        memory,
        packs,
        compressed,
        stream,
        threads,
    )
    table = writer.write(segments)
    return Plan(
        layouts=layouts,
        segments=segments,
        table=table.array(),
        slots=slots.of,
        offsets=offsets,
        arena_bytes=arena_bytes,
        inputs=inputs,
        fresh=fresh,
        packed=packed,
        packs=packs,
        compressed=list(compressed),
        late=late,
        env_words=slots.next + table.longest,
        scratch=slots.next,
        mutated=[p for p, b in enumerate(program.inputs) if b in changed],
        stream_slot=stream,
        choices=choices,
    )


def _scratch_bytes(
    program: Program,
    kernels: Mapping[str, Kernel],
    sizes: Sizes,
    packable: Sequence[GemmCall],
    native: NativeStep,
) -> list[int]:
    """Bytes of each scratch param of a kernel of a GPU, for all of its programs; of the packed
    factors of a product in tiles."""
    step, call = native.step, native.gemm
    if call is not None and call.tile is not None:
        p, kept = call.product, any(call is c for c in packable)
        packed_a = call.tile.packed_a_bytes(p.m, p.k)
        packed_b = call.tile.packed_b_bytes(p.n, p.k)
        return [packed_a] if kept else [packed_a, packed_b] if call.repacks else []
    kernel = kernels[step.nest] if isinstance(step, KernelStep) else None
    if not isinstance(kernel, DeviceKernel) or not isinstance(step, KernelStep):
        return []
    nest = program.nests[step.nest]
    known = Sizes(dict(zip(nest.symbols, sizes.all(step.sizes), strict=True)))
    rows = kernel.points * known(kernel.programs)
    params = [p for p in nest.buffers if p.role == "scratch"]
    return [known(p.numel) * rows * p.dtype.itemsize for p in params]


@dataclass(slots=True)
class _Writer:
    """Writes the native steps of all segments into one table."""

    program: Program
    kernels: Mapping[str, Kernel]
    blas: Blas
    sizes: Sizes
    layouts: list[Layout | None]
    slots: dict[int, int]
    offsets: dict[int, int]
    memory: dict[Blocks, int]  # arena offset of the memory that threads have for blocks
    packs: list[PackRequest]
    compressed: dict[int, int]  # slots by the numbers of steps
    stream: int
    threads: int

    def write(self, segments: Sequence[Segment]) -> TableWriter:
        table = TableWriter()
        for segment in segments:
            if not segment.native:
                continue
            segment.start = table.position
            work = 0
            for native in segment.native:
                native.start = table.position
                if native.gemm is not None:
                    self._gemm(table, native, native.gemm)
                    work += native.gemm.flops // 16
                elif isinstance(native.step, Blocks):
                    self._blocks(table, native.step)
                    work += _SHORT_WORK  # more than that
                elif native.sparse is not None:
                    self._sparse(table, native.step, self.compressed[native.sparse])
                else:
                    self._kernel(table, native)
                native.end = table.position
                work += traffic(native.step, self.layouts)
            # A launch may wait for room in the queue of a GPU.
            segment.short = work < _SHORT_WORK and self.stream < 0
            table.end()
        return table

    def _place(self, buffer: int, offset: int = 0) -> tuple[int, int]:
        """(slot, byte offset) of a buffer."""
        if buffer in self.offsets:
            return ARENA_SLOT, self.offsets[buffer] + offset
        return self.slots[buffer], offset

    def _kernel(self, table: TableWriter, native: NativeStep) -> None:
        step = native.step
        assert isinstance(step, KernelStep)
        kernel = self.kernels[step.nest]
        if isinstance(kernel, DeviceKernel):
            self._launch(table, step, kernel, native.scratch)
            return
        assert isinstance(kernel, LoadedKernel)
        values = self.sizes.all(step.sizes)
        symbols = self.program.nests[step.nest].symbols
        items = Sizes(dict(zip(symbols, values, strict=True)))(kernel.items)
        table.kernel(
            kernel.address, items, kernel.grain, [self._place(b) for b in step.buffers], values
        )

    def _launch(
        self, table: TableWriter, step: KernelStep, kernel: DeviceKernel, scratch: Sequence[int]
    ) -> None:
        nest = self.program.nests[step.nest]
        known = Sizes(dict(zip(nest.symbols, self.sizes.all(step.sizes), strict=True)))
        buffers, own = iter(step.buffers), iter(scratch)
        arguments = [
            (ARENA_SLOT, next(own)) if p.role == "scratch" else self._place(next(buffers))
            for p in nest.buffers
        ]
        arguments += [(LITERAL, size) for size in known.all(kernel.sizes)]
        # The error word, and two kinds of memory that Triton may want: none. (CUDA C++ takes the first alone.)
        arguments += [(LITERAL, 0)] * 3
        table.launch(
            kernel.launcher, kernel.function, known(kernel.programs), kernel.threads,
            kernel.shared_bytes, self.stream, arguments,
        )  # fmt: skip

    def _blocks(self, table: TableWriter, blocks: Blocks) -> None:
        def write() -> None:
            for part in blocks.steps:
                if isinstance(part, BlockSum):
                    self._block_sum(table, blocks, part)
                elif isinstance(part, BlockKernel):
                    self._block_kernel(table, blocks, part)
                else:
                    self._block_product(table, blocks, part)

        table.blocks(
            blocks.batch,
            blocks.count,
            blocks.rows,
            blocks.block,
            blocks.in_order,
            blocks.threads,
            (ARENA_SLOT, self.memory[blocks]),
            blocks.thread_bytes,
            blocks.summed,
            blocks.run,
            write,
        )

    def _block_kernel(self, table: TableWriter, blocks: Blocks, part: BlockKernel) -> None:
        sizes = self.sizes.all(part.step.sizes)
        table.block_kernel(
            self._address(part), part.per_row, self._block_places(blocks, part.step), sizes
        )

    def _block_sum(self, table: TableWriter, blocks: Blocks, part: BlockSum) -> None:
        first, later = part.first, part.later
        assert first.per_row == later.per_row and first.step.sizes == later.step.sizes
        table.block_sum(
            (self._address(first), self._address(later)),
            first.per_row,
            self._block_places(blocks, first.step),
            self.sizes.all(first.step.sizes),
        )

    def _address(self, part: BlockKernel) -> int:
        kernel = self.kernels[part.step.nest]
        assert isinstance(kernel, LoadedKernel)
        return kernel.address

    def _block_places(self, blocks: Blocks, step: KernelStep) -> list[BlockSlice]:
        return [
            (OWN_SLOT, *blocks.private[b]) if b in blocks.private else (*self._place(b), 0)
            for b in step.buffers
        ]

    def _block_product(self, table: TableWriter, blocks: Blocks, part: BlockProduct) -> None:
        call, p = part.call, part.call.product
        sizes = (call.dtype.itemsize, call.dtype.itemsize, call.result_dtype.itemsize)
        places: list[BlockSlice] = []
        for matrix, move, size in zip((p.b, p.a, p.c), part.moves, sizes, strict=True):
            if matrix.buffer in blocks.private:
                places.append((OWN_SLOT, blocks.private[matrix.buffer][0], 0))
            else:
                places.append((*self._place(matrix.buffer, matrix.offset * size), move[0] * size))
        strides = ([n * s for n in m[1:]] for m, s in zip(part.moves, sizes, strict=True))
        table.block_gemm(
            call.function,
            part.dim,
            places,
            ("T" if call.transpose_b else "N", "T" if call.transpose_a else "N"),
            (p.n, p.m, p.k),
            (call.ldb, call.lda, call.ldc),
            (0.0, 1.0 if part.sums else 0.0),
            call.dtype is DType.F64,
            list(zip(self.sizes.all(part.step.batch), *strides, strict=True)),
            self._half_words(blocks, part),
        )

    def _half_words(self, blocks: Blocks, part: BlockProduct) -> tuple[int, ...]:
        """What the driver's HALVES record has more than a GEMM; empty where it is none."""
        if part.copies is None:
            return ()
        kernel, code, call = part.copies.kernel, build_copies(), part.call
        b, a = blocks.copies[part]
        pack = code.by_columns if call.transpose_b else code.by_rows
        turn = code.transposed if call.transpose_a else 0
        return (
            kernel.multiply, kernel.release, kernel.could_pack, kernel.scalar_type,
            pack, b, int(not part.copies.lasts), turn, a,
        )  # fmt: skip

    def _sparse(self, table: TableWriter, step: Step, slot: int) -> None:
        """The kernel of a product that reads b in compressed form from ``slot``."""
        assert isinstance(step, GemmStep) and step.sparse is not None
        product = step.sparse.kernel
        assert product is not None
        kernel = self.kernels[product.key]
        assert isinstance(kernel, LoadedKernel)
        size = product.dtype.itemsize
        a, c = (self._place(x.buffer, self.sizes(x.offset) * size) for x in (step.a, step.c))
        table.kernel(kernel.address, product.items, kernel.grain, (a, (slot, 0), c), ())

    def _gemm(self, table: TableWriter, native: NativeStep, call: GemmCall) -> None:
        p, size = call.product, call.dtype.itemsize
        if 0 in p.batch or p.m == 0 or p.n == 0:
            return
        a = self._place(p.a.buffer, p.a.offset * size)
        c = self._place(p.c.buffer, p.c.offset * call.result_dtype.itemsize)
        slot = next((request.slot for request in self.packs if request.call is call), None)
        if slot is None and not call.repacks:
            plain_product(table, call, (a, self._place(p.b.buffer, p.b.offset * size), c))
        elif slot is not None and call.tile is None:
            packed_product(table, self.blas, call, (a, (slot, 0), c))
        else:
            room = [(ARENA_SLOT, offset) for offset in native.scratch]
            b = self._place(p.b.buffer, p.b.offset * size) if slot is None else (slot, 0)
            tiled_product(table, self.kernels, call, (a, b, c), room, self.threads)
