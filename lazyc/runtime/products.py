"""Records of matrix products: what of the library runs, or which kernels, and where the operands are."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from lazyc.codegen.base import Kernel, LoadedKernel
from lazyc.ir.tiled_product import LINE, Part, Tile, TiledKernel
from lazyc.ir.types import DType
from lazyc.runtime.driver import ENV_SLOTS, Slice, TableWriter
from lazyc.runtime.host import Host
from lazyc.runtime.library import Blas, GemmCall

_GRAIN_CYCLES = 30_000  # about 10 us: less is not worth another thread
_LINE_CYCLES = 10  # to copy a line from the L3 cache


def packed_product(
    table: TableWriter, blas: Blas, call: GemmCall, operands: tuple[Slice, Slice, Slice]
) -> None:
    """The library's product of a, a packed b, and c."""
    p = call.product
    table.packed(
        blas.sgemm_compute,
        *operands,
        call.transpose_a,
        (p.m, p.n, p.k),
        (call.lda, max(p.n, p.k), call.ldc),
        call.beta,
    )


def plain_product(table: TableWriter, call: GemmCall, operands: tuple[Slice, Slice, Slice]) -> None:
    """The library's product of a, b and c, for each point of the batch dims."""
    p, size, out_size = call.product, call.dtype.itemsize, call.result_dtype.itemsize
    a, b, c = operands
    # Row-major c = a @ b is column-major c^T = b^T @ a^T, which is what Fortran computes.
    strides = (x.batch_strides for x in (p.b, p.a, p.c))
    dims = zip(p.batch, *strides, strict=True)
    table.gemm(
        call.function,
        call.split,
        (b, a, c),
        ("T" if call.transpose_b else "N", "T" if call.transpose_a else "N"),
        (p.n, p.m, p.k),
        (call.ldb, call.lda, call.ldc),
        call.beta,
        call.dtype is DType.F64,
        [(n, first * size, second * size, out * out_size) for n, first, second, out in dims],
    )


def tiled_product(
    table: TableWriter,
    kernels: Mapping[str, Kernel],
    call: GemmCall,
    operands: tuple[Slice, Slice, Slice],
    room: Sequence[Slice],
    threads: int,
) -> None:
    """The product of a, b and c by generated kernels, where so many threads are likely to run. ``room``: for
    a packed a, and for a packed b unless b is packed already."""
    p, tile = call.product, call.tile
    assert tile is not None
    a, b, c = operands
    blocks, depth = tile.blocks(p.m), tile.padded_depth(p.k)
    cycles = tile.rows * depth // LINE * _LINE_CYCLES
    sizes = (p.m, p.k, *((1, call.lda) if call.transpose_a else (call.lda, 1)))
    table.kernel(_address(kernels, "pack a", tile), blocks, _grain(cycles), (a, room[0]), sizes)
    packed_a, *rest = room
    if rest:
        (packed_b,) = rest
        _pack_b(table, kernels, call, b, packed_b)
        b = packed_b
    group = tile.group_of(p.m, p.n, threads)
    cycles = min(p.m, group * tile.rows) * depth * 2
    sizes = (p.m, p.n, p.k, call.ldc, tile.step(p.k), group, int(call.beta))
    table.kernel(
        _address(kernels, "multiply", tile), -(-blocks // group) * tile.panels(p.n), _grain(cycles),
        (packed_a, b, c), sizes,
    )  # fmt: skip


def pack_for_tiles(
    host: Host, kernels: Mapping[str, Kernel], call: GemmCall, source: int, target: int
) -> None:
    """Packs the b of ``call`` from address ``source`` into ``target``."""
    table = TableWriter()
    first = ENV_SLOTS
    _pack_b(table, kernels, call, (first, 0), (first + 1, 0))
    table.end()
    words = table.array()
    env = (ctypes.c_int64 * (first + 2 + table.longest))(
        host.threads.get(), host.driver.openmp_address, 0, source, target
    )
    env[first - 1] = ctypes.addressof(env) + 8 * (first + 2)
    host.driver.run(ctypes.addressof(words), ctypes.addressof(env))


def _pack_b(
    table: TableWriter, kernels: Mapping[str, Kernel], call: GemmCall, b: Slice, packed: Slice
) -> None:
    p, tile = call.product, call.tile
    assert tile is not None
    cycles = tile.columns * tile.padded_depth(p.k) // LINE * _LINE_CYCLES
    sizes = (p.n, p.k, *((1, call.ldb) if call.transpose_b else (call.ldb, 1)))
    table.kernel(
        _address(kernels, "pack b", tile), tile.panels(p.n), _grain(cycles), (b, packed), sizes
    )


def _address(kernels: Mapping[str, Kernel], part: Part, tile: Tile) -> int:
    kernel = kernels[TiledKernel(part, tile).key]
    assert isinstance(kernel, LoadedKernel)
    return kernel.address


def _grain(cycles: int) -> int:
    return max(1, _GRAIN_CYCLES // max(1, cycles))
