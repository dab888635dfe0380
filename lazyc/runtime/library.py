"""BLAS inside torch: which routine serves a matrix product, and with which arguments.

torch's x86 wheels link MKL statically and export its Fortran and (partly) C entry points. They are
called by address, on the threads that torch gave MKL. Where a symbol is absent, or for an element
type that BLAS has no routine for, ``plan_gemm`` returns None and the product runs through ATen.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lazyc.ir.program import GemmStep
from lazyc.ir.tiled_product import LEAST_REPACKED, Tile
from lazyc.ir.types import DType
from lazyc.runtime.half_tiles import HalfKernel, find_half_kernels
from lazyc.runtime.sizes import Sizes
from lazyc.runtime.threads import symbol_address

# CBLAS constants of MKL.
_ROW_MAJOR, _NO_TRANS, _TRANS, _B_MATRIX = 101, 111, 112, 162
_INT_MAX = 2**31 - 1
# Rows of a from which the library is faster with a packed b (measured; fewer are bound by reading b once).
_LEAST_PACKED_ROWS = 4


@dataclass(frozen=True, slots=True)
class Blas:
    """Addresses of the routines found, 0 for those that are absent, and the library's handle."""

    sgemm: int = 0
    dgemm: int = 0
    bf16_gemm: int = 0  # of half types, with results in f32
    f16_gemm: int = 0
    sgemm_compute: int = 0
    # What blocks of rows may call instead.
    half_kernels: Mapping[DType, HalfKernel] = field(default_factory=dict)
    library: ctypes.CDLL | None = None

    @property
    def can_pack(self) -> bool:
        return bool(self.sgemm_compute)

    def routine(self, step: GemmStep) -> int:
        """Address of what multiplies the types of ``step``, 0 where there is none. All take their arguments
        as Fortran's ?gemm."""
        if step.is_wide:
            return {DType.BF16: self.bf16_gemm, DType.F16: self.f16_gemm}.get(step.dtype, 0)
        return {DType.F32: self.sgemm, DType.F64: self.dgemm}.get(step.dtype, 0)


def find_blas(library: ctypes.CDLL | None) -> Blas:
    """The BLAS that ``library`` (libtorch_cpu) exports."""
    packing = ("cblas_sgemm_compute", "cblas_sgemm_pack", "cblas_sgemm_pack_get_size")
    addresses = [symbol_address(library, name) for name in packing]
    return Blas(
        sgemm=symbol_address(library, "sgemm_"),
        dgemm=symbol_address(library, "dgemm_"),
        bf16_gemm=symbol_address(library, "gemm_bf16bf16f32_"),
        f16_gemm=symbol_address(library, "gemm_f16f16f32_"),
        sgemm_compute=addresses[0] if all(addresses) else 0,
        half_kernels=find_half_kernels(library),
        library=library,
    )


@dataclass(frozen=True, slots=True)
class Matrix:
    """A concrete operand: buffer id, then offset and strides in elements."""

    buffer: int
    offset: int
    row_stride: int
    col_stride: int
    batch_strides: tuple[int, ...]

    @property
    def transposed(self) -> Matrix:
        return Matrix(
            self.buffer, self.offset, self.col_stride, self.row_stride, self.batch_strides
        )


@dataclass(frozen=True, slots=True)
class Product:
    """A GemmStep at concrete sizes. ``batch`` has no dim of size 1, and no two dims that all three
    operands step through as one."""

    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    a: Matrix
    b: Matrix
    c: Matrix


@dataclass(frozen=True, slots=True)
class GemmCall:
    """A product ready for the driver: ``c = a @ b + beta * c``, c row-major.

    ``transpose_a``: a is stored column by column. ``lda``...: distance of rows (columns) in elements.
    ``packable``: b may be replaced by a copy that is kept packed, for generated kernels where there is a
    ``tile``. ``repacks``: else these kernels pack b at each call.
    """

    product: Product
    function: int
    dtype: DType
    result_dtype: DType
    transpose_a: bool
    transpose_b: bool
    lda: int
    ldb: int
    ldc: int
    beta: float
    packable: bool
    swapped: (
        bool  # the step's c is stored by columns: this is the product of the transposed operands
    )
    tile: Tile | None = None
    repacks: bool = False

    @property
    def flops(self) -> int:
        p = self.product
        return 2 * math.prod(p.batch) * p.m * p.n * p.k

    @property
    def split(self) -> int:
        """Products for each thread from which it is better to give every thread whole products."""
        p = self.product
        return 1 if 2 * p.m * p.n * p.k <= 2**24 else 4


def concrete_product(step: GemmStep, sizes: Sizes) -> Product:
    """``step`` with its sizes evaluated and its batch dims merged where they can be."""
    operands = (step.a, step.b, step.c)
    strides = [sizes.all(o.batch_strides) for o in operands]
    merged: list[tuple[int, ...]] = []  # (size, strides in a, b, c)
    for dim in zip(sizes.all(step.batch), *strides, strict=True):
        if dim[0] == 1:
            continue
        if merged and all(p == s * dim[0] for p, s in zip(merged[-1][1:], dim[1:], strict=True)):
            merged[-1] = (merged[-1][0] * dim[0], *dim[1:])
        else:
            merged.append(dim)
    batch, *columns = zip(*merged, strict=True) if merged else ((), (), (), ())
    a, b, c = (
        Matrix(o.buffer, sizes(o.offset), sizes(o.row_stride), sizes(o.col_stride), tuple(column))
        for o, column in zip(operands, columns, strict=True)
    )
    return Product(tuple(batch), sizes(step.m), sizes(step.n), sizes(step.k), a, b, c)


def _layout(matrix: Matrix, rows: int, cols: int) -> tuple[bool, int] | None:
    """(stored by columns, leading dimension) as BLAS describes the matrix; None if it cannot.

    Strides of dims of size 1 mean nothing and are not looked at.
    """
    if cols == 1 or matrix.col_stride == 1:
        lead = max(cols, 1) if rows <= 1 else matrix.row_stride
        if lead >= max(cols, 1):
            return False, lead
    if rows == 1 or matrix.row_stride == 1:
        lead = max(rows, 1) if cols <= 1 else matrix.col_stride
        if lead >= max(rows, 1):
            return True, lead
    return None


def plan_gemm(step: GemmStep, sizes: Sizes, blas: Blas) -> GemmCall | None:
    """How BLAS computes ``step``; None when it must go through ATen."""
    function = blas.routine(step)
    product = concrete_product(step, sizes)
    out = _layout(product.c, product.m, product.n)
    if not function or out is None:
        return None
    swapped = out[0]
    if swapped:  # c by columns: c^T = b^T @ a^T has c^T by rows
        p = product
        product = Product(p.batch, p.n, p.m, p.k, p.b.transposed, p.a.transposed, p.c.transposed)
    m, n, k = product.m, product.n, product.k
    first, second = _layout(product.a, m, k), _layout(product.b, k, n)
    if first is None or second is None:
        return None
    if max(m, n, k, out[1], first[1], second[1]) > _INT_MAX:
        return None
    return GemmCall(
        product=product,
        function=function,
        dtype=step.dtype,
        result_dtype=step.result_dtype,
        transpose_a=first[0],
        transpose_b=second[0],
        lda=first[1],
        ldb=second[1],
        ldc=out[1],
        beta=1.0 if step.accumulate else 0.0,
        packable=(
            step.pack_b
            and not swapped
            and (step.tile is not None or (blas.can_pack and m >= _LEAST_PACKED_ROWS))
            and step.dtype is DType.F32
            and not product.batch
            and min(m, n, k) > 0
        ),
        swapped=swapped,
        tile=step.tile,
        repacks=(step.tile is not None and not product.batch and min(m, n, k) >= LEAST_REPACKED),
    )


def packed_bytes(blas: Blas, call: GemmCall) -> int:
    """Memory that the packed b of ``call`` takes (address space: MKL leaves a part untouched)."""
    assert blas.library is not None
    function = blas.library.cblas_sgemm_pack_get_size
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int] * 4
    return int(function(_B_MATRIX, call.product.m, call.product.n, call.product.k))


def pack(blas: Blas, call: GemmCall, source: int, target: int) -> None:
    """Packs the b of ``call`` from address ``source`` into ``target``."""
    assert blas.library is not None
    function = blas.library.cblas_sgemm_pack
    function.restype = None
    integer = ctypes.c_int
    function.argtypes = [integer] * 6 + [ctypes.c_float, ctypes.c_void_p, integer, ctypes.c_void_p]
    transpose = _TRANS if call.transpose_b else _NO_TRANS
    p = call.product
    function(_ROW_MAJOR, _B_MATRIX, transpose, p.m, p.n, p.k, 1.0, source, call.ldb, target)
