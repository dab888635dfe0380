"""Whether steps that may run a block of rows at a time (``ir.program.RowTiles``) do so, and how.

Blocks save memory, and the time that it takes to write and read it, where what lies between the steps
is too large for the caches of the cores. What a product reads for every block, the keys of an attention
for example, is packed anew by the BLAS each time. That must stay small beside the work on the block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lazyc.codegen.base import Kernel, LoadedKernel
from lazyc.ir.program import GemmStep, KernelStep, Operand, Program, RowTiles
from lazyc.runtime.half_tiles import HalfKernel
from lazyc.runtime.library import Blas, GemmCall, plan_gemm
from lazyc.runtime.sizes import Sizes

# Bytes between the steps from which blocks are used, and the part of a core's second cache that those of one
# block take. On 2 cores with 2 MiB each, attention of 4 heads of 64 over 2048 positions takes as long with a
# quarter as with the whole.
LEAST_BYTES = 4 << 20
CACHE_SHARE = 0.5
# A block has a multiple of these rows, and as many at least: BLAS is slow with fewer. It packs what it
# reads for every block anew, which must not be more than so many times the block's own bytes. Training attention of 4
# heads of 64 over 4096 positions takes 1.15 times as long with 32; with 128 it takes 0.95 times as long, and each thread
# twice the memory.
LEAST_ROWS = 64
# The same where kernels of half types multiply (half_tiles.py): sums over so few rows would leave their tiles waiting
# for results. Attention of 4 heads of 64 over 4096 positions takes 1.2 times as long with 32, and 1.1 times with 64.
LEAST_PACKED_ROWS = 128
_MOST_READ = 4
# Where matrices are added up, threads share out so many runs of blocks at one time; more where there are more threads,
# so that up to here results are the same for any number of them. The longer a run, the more often the caches hold
# what it reads of its matrix (2 threads, 2048 positions, 8 x 4 heads: with 32 runs of 8 blocks at one time 585 ms,
# with 8 of 32 blocks 520, and 513 one matrix after another).
PARTS = 8
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class BlockKernel:
    """A kernel, which runs ``per_row`` work items for each row."""

    step: KernelStep
    per_row: int


@dataclass(frozen=True, slots=True)
class BlockSum:
    """What adds up matrices, for one block of one of them: kernel ``first`` in the first block that is added to some
    rows of the result, else ``later``, each with ``per_row`` work items for a row of the result."""

    first: BlockKernel
    later: BlockKernel

    @property
    def step(self) -> KernelStep:
        return self.first.step


@dataclass(frozen=True, slots=True)
class HalfCopies:
    """What ``kernel`` reads in place of a and b of a product (``half_tiles``): a packed b of ``b_bytes``, made
    for each block, or for the blocks of a matrix where ``lasts``, and a copy of an a stored by columns, of
    ``a_bytes`` if not 0."""

    kernel: HalfKernel
    b_bytes: int
    a_bytes: int
    lasts: bool


@dataclass(frozen=True, slots=True, eq=False)
class BlockProduct:
    """A product for one block. ``call`` has no batch dims and the rows of a whole block; ``dim`` is
    the place of that size among (n, m, k), the sizes that Fortran's ?gemm takes. ``moves`` are for b, a
    and c: elements from one row to the next, then the stride of each batch dim; zeros for a
    private buffer, of which there is one block only. ``copies``: where kernels of half types may run."""

    step: GemmStep
    call: GemmCall
    dim: int
    moves: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    copies: HalfCopies | None

    @property
    def sums(self) -> bool:
        """Whether the blocks of a matrix add up."""
        return self.dim == 2


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Steps that run ``block`` rows of one of ``batch`` matrices at a time, each thread with
    ``thread_bytes`` of memory of its own: at first room for ``longest`` addresses, then the private
    buffers, each at (byte offset, bytes of a row). ``in_order``: the blocks of a matrix depend on
    each other, in order. ``summed``: as in RowTiles; if not empty, so do equal blocks of several matrices, and runs
    of ``run`` blocks go in waves (``runtime/driver.py``). ``copies``: where in
    that memory the factors of half types are that each step copies (b, a)."""

    steps: tuple[BlockKernel | BlockProduct | BlockSum, ...]
    batch: int
    rows: int
    block: int
    in_order: bool
    private: Mapping[int, tuple[int, int]]
    copies: Mapping[BlockProduct, tuple[int, int]]
    longest: int
    thread_bytes: int
    threads: int
    summed: tuple[int, ...] = ()
    run: int = 1

    @property
    def count(self) -> int:
        """Blocks of one matrix."""
        return -(-self.rows // self.block)


@dataclass(frozen=True, slots=True)
class TileChoice:
    """Whether the steps of a RowTiles run by ``blocks``, and why; ``comment`` is of its first step.
    ``is_attention`` as there."""

    comment: str
    blocks: Blocks | None
    reason: str
    is_attention: bool


class _OneAfterAnother(Exception):
    """The steps better run one after another: why."""


def choose_blocks(
    tiles: RowTiles,
    program: Program,
    kernels: Mapping[str, Kernel],
    blas: Blas,
    sizes: Sizes,
    threads: int,
    cache_bytes: int,
) -> TileChoice:
    """How the steps of ``tiles`` run. ``threads``: how many are likely to, each with a second cache of
    ``cache_bytes``."""
    first = program.steps[tiles.first]
    assert isinstance(first, GemmStep | KernelStep)
    whole = sizes(tiles.batch) * sizes(tiles.rows) * sum(_row_bytes(tiles, program, sizes).values())
    try:
        blocks = _plan_blocks(tiles, program, kernels, blas, sizes, threads, cache_bytes)
    except _OneAfterAnother as reason:
        stored = f"{_mib(whole)} stored: {reason}"
        return TileChoice(first.comment, None, stored, tiles.is_attention)
    own = f"{_mib(blocks.thread_bytes)} for each thread in place of {_mib(whole)}"
    how = f"{blocks.block} of {blocks.rows} rows at a time, {own}"
    return TileChoice(first.comment, blocks, how, tiles.is_attention)


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _row_bytes(tiles: RowTiles, program: Program, sizes: Sizes) -> dict[int, int]:
    """Bytes of a row of each private buffer."""
    return {b: sizes(width) * _itemsize(program, b) for b, width in tiles.private}


def _plan_blocks(
    tiles: RowTiles,
    program: Program,
    kernels: Mapping[str, Kernel],
    blas: Blas,
    sizes: Sizes,
    threads: int,
    cache_bytes: int,
) -> Blocks:
    batch, rows = sizes(tiles.batch), sizes(tiles.rows)
    in_order = any(how.dim == "k" for how in tiles.steps)
    row_bytes = _row_bytes(tiles, program, sizes)
    total = sum(row_bytes.values())
    if batch * rows * total < 1:
        raise _OneAfterAnother("there are none")
    if batch * rows * total < LEAST_BYTES and not tiles.always:
        raise _OneAfterAnother("the caches hold them")
    gemms = [s for s in program.steps[tiles.first : tiles.span.stop] if isinstance(s, GemmStep)]
    is_packed = any(s.is_wide and s.dtype in blas.half_kernels for s in gemms)
    least = LEAST_PACKED_ROWS if is_packed else LEAST_ROWS
    fitting = int(CACHE_SHARE * cache_bytes) // total // least * least
    block = min(max(fitting, least), rows)
    count, summed = -(-rows // block), sizes.all(tiles.summed)
    run = _run(count, summed, threads) if summed else 1
    parts = _independent(batch, -(-count // run), in_order, summed)
    if parts < threads and not tiles.always:
        raise _OneAfterAnother(f"there is not a block for each of {threads} threads")
    steps: list[BlockKernel | BlockProduct | BlockSum] = []
    for position, how in zip(tiles.span, tiles.steps, strict=True):
        step = program.steps[position]
        if how.sums is not None:
            first, later = (
                _kernel(s, how.axes, program, kernels, sizes, summed[1] * rows) for s in how.sums
            )
            steps.append(BlockSum(first, later))
        elif isinstance(step, KernelStep):
            steps.append(_kernel(step, how.axes, program, kernels, sizes, batch * rows))
        else:
            assert isinstance(step, GemmStep)
            most_read = None if tiles.always else _MOST_READ * block * total
            private_buffers = frozenset(row_bytes)
            steps.append(_product(step, how.dim, private_buffers, blas, sizes, block, most_read))
    longest = max(
        (len(s.step.buffers) for s in steps if not isinstance(s, BlockProduct)), default=0
    )
    offset = _aligned(8 * longest)
    private: dict[int, tuple[int, int]] = {}
    for buffer, size in row_bytes.items():
        private[buffer] = offset, size
        offset += _aligned(block * size)
    copies, offset = _place_copies(steps, offset)
    return Blocks(
        tuple(steps), batch, rows, block, in_order, private, copies, longest, offset, max(threads, 1), summed, run
    )  # fmt: skip


def _run(count: int, summed: tuple[int, ...], threads: int) -> int:
    """How many of the ``count`` blocks of a matrix make a run: as many as leave a wave PARTS runs."""
    _, groups, _ = summed
    runs = -(-max(PARTS, threads) // max(groups, 1))
    return -(-count // min(runs, count))


def _independent(batch: int, runs: int, in_order: bool, summed: tuple[int, ...]) -> int:
    """How many threads may work at one time, each on blocks of its own, with so many ``runs`` of a matrix."""
    if summed:
        outer, groups, inner = summed
        return groups * min(outer * inner, runs)
    return batch if in_order else batch * runs


def _place_copies(
    steps: Sequence[BlockKernel | BlockProduct | BlockSum], offset: int
) -> tuple[dict[BlockProduct, tuple[int, int]], int]:
    """Offsets of what each product copies of its b and a, from ``offset`` on, and the offset behind them. What is
    made for each block anew lies in one place."""
    copying = [(s, s.copies) for s in steps if isinstance(s, BlockProduct) and s.copies is not None]
    first = offset
    for _, copies in copying:
        if copies.lasts:
            first += _aligned(copies.b_bytes)
    second = first + max((_aligned(c.b_bytes) for _, c in copying if not c.lasts), default=0)
    end = second + max((_aligned(c.a_bytes) for _, c in copying), default=0)
    found: dict[BlockProduct, tuple[int, int]] = {}
    for step, copies in copying:
        found[step] = (offset if copies.lasts else first), second
        if copies.lasts:
            offset += _aligned(copies.b_bytes)
    return found, end


def _itemsize(program: Program, buffer: int) -> int:
    dtype = program.buffers[buffer].dtype
    assert dtype is not None
    return dtype.itemsize


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _kernel(
    step: KernelStep,
    axes: int,
    program: Program,
    kernels: Mapping[str, Kernel],
    sizes: Sizes,
    rows: int,
) -> BlockKernel:
    kernel = kernels[step.nest]
    if not isinstance(kernel, LoadedKernel) or kernel.ordered < axes:
        raise _OneAfterAnother("a kernel does not take its rows in order")
    symbols = program.nests[step.nest].symbols
    values = Sizes(dict(zip(symbols, sizes.all(step.sizes), strict=True)))
    return BlockKernel(step, values(kernel.items) // rows)


def _product(
    step: GemmStep,
    dim: str,
    private: frozenset[int],
    blas: Blas,
    sizes: Sizes,
    block: int,
    most_read: int | None,
) -> BlockProduct:
    """The product for one block, which may read ``most_read`` bytes of what is not its own."""
    m, n, k = (
        block if dim == d else sizes(s)
        for d, s in zip("mnk", (step.m, step.n, step.k), strict=True)
    )
    one = replace(
        step, batch=(), m=m, n=n, k=k,
        a=replace(step.a, batch_strides=()),
        b=replace(step.b, batch_strides=()),
        c=replace(step.c, batch_strides=()),
    )  # fmt: skip
    call = plan_gemm(one, sizes, blas)
    if call is None or min(m, n, k) < 1:
        raise _OneAfterAnother(f"no BLAS routine for a product of {step.dtype.value}")
    fixed = {"m": n * k, "n": m * k, "k": 0}[dim] * step.dtype.itemsize  # what every block reads
    if most_read is not None and fixed > most_read:
        raise _OneAfterAnother(f"each block would read {_mib(fixed)}")
    row_strides = {
        "m": (0, step.a.row_stride, step.c.row_stride),
        "n": (step.b.col_stride, 0, step.c.col_stride),
        "k": (step.b.row_stride, step.a.col_stride, 0),
    }[dim]
    batch = sizes.all(step.batch)

    def moves(operand: Operand, stride: int) -> tuple[int, ...]:
        if operand.buffer in private:
            return (0,) * (1 + len(batch))
        return (stride, *sizes.all(operand.batch_strides))

    b, a, c = map(moves, (step.b, step.a, step.c), sizes.all(row_strides))
    places = {"n": 0, "m": 1, "k": 2}
    if call.swapped:  # the call computes the transposed product: a and b, m and n change places
        b, a, places = a, b, {"m": 0, "n": 1, "k": 2}
    return BlockProduct(step, call, places[dim], (b, a, c), _half_copies(call, places[dim], blas))


def _half_copies(call: GemmCall, dim: int, blas: Blas) -> HalfCopies | None:
    """What is copied of the factors of one block, if kernels of half types can multiply it: rows of the result, or
    sums over rows."""
    kernel = blas.half_kernels.get(call.dtype)
    p, size = call.product, call.dtype.itemsize
    if kernel is None or dim == 0 or p.k % 2 or call.result_dtype is call.dtype:
        return None
    if call.transpose_a and p.m > p.n:  # the larger factor is copied element by element
        return None
    a_bytes = p.m * p.k * size if call.transpose_a else 0
    return HalfCopies(kernel, p.k * p.n * size, a_bytes, lasts=dim == 1)
