"""Gives products whose weight is declared sparse a kernel that reads it in compressed form.

before   gemm b3 = b0 @ b1        b1: a parameter that the user declared 2:4, or block-sparse
after    gemm b3 = b0 @ b1        b 2:4: kernel <key>, or the reason for none

The product of the library stays what runs whenever the values of the weight are not that sparse.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from lazyc.ir.graph import Graph
from lazyc.ir.program import Buffer, GemmStep, Program, SparseChoice
from lazyc.ir.sparse import BLOCKS, GROUP, SparseProduct, Sparsity
from lazyc.ir.types import DType

# Up to how many weights 2:4 products of how many rows are faster than dense ones. With more rows a dense product is
# bound by arithmetic, which single zeros do not save. ``python -m bench sparse --grid`` has the measurements, with 1 to
# 24 rows, weights of 256 x 256 to 4096 x 4096, on two cores with AVX-512 and AMX. Dense products in f32: small weights
# come from the first caches, the largest from memory. In bf16, MKL multiplies by tiles (AMX), and takes 50 us at least.
MOST_ROWS: Mapping[DType, Sequence[tuple[float, int]]] = {
    DType.F32: ((1 << 17, 2), (1 << 23, 8), (math.inf, 24)),
    DType.BF16: ((1 << 16, 24), (1 << 18, 16), (1 << 20, 8), (math.inf, 6)),
}


def choose_sparse_kernels(
    program: Program, graph: Graph, kernels: Collection[tuple[Sparsity, DType]]
) -> Program:
    """``program``, made of ``graph``, for a target that has kernels for these kinds of weights."""
    declared = {n.attrs.index: n.attrs.sparsity for n in graph.inputs if n.attrs.sparsity}
    if not declared:
        return program
    steps = []
    for step in program.steps:
        if isinstance(step, GemmStep) and step.pack_b:
            weight = program.buffers[step.b.buffer]
            sparsity = declared.get(weight.source) if weight.kind == "input" else None
            if sparsity is not None:
                step = replace(step, sparse=_choice(step, weight, sparsity, kernels))
        steps.append(step)
    return replace(program, steps=tuple(steps))


def _choice(
    step: GemmStep,
    weight: Buffer,
    sparsity: Sparsity,
    kernels: Collection[tuple[Sparsity, DType]],
) -> SparseChoice:
    block = BLOCKS.get(sparsity)
    reason = _obstacle(step, weight, block or GROUP)
    if reason:
        return SparseChoice(sparsity, None, reason)
    if (sparsity, step.dtype) not in kernels:
        reason = f"no kernel for {step.dtype.value} is faster on this CPU"
        return SparseChoice(sparsity, None, reason)
    m, n, k = step.m, step.n, step.k
    assert isinstance(m, int) and isinstance(n, int) and isinstance(k, int)
    if block is None:
        most = next(rows for weights, rows in MOST_ROWS[step.dtype] if n * k <= weights)
        if m > most:
            reason = (
                f"of more than {most} rows, as fast without compression of a weight of this size"
            )
            return SparseChoice(sparsity, None, reason)
    # The distance of rows means nothing where there is one.
    lda, ldc = (k if m == 1 else step.a.row_stride), (n if m == 1 else step.c.row_stride)
    assert isinstance(lda, int) and isinstance(ldc, int)
    tile = block or _rows_together(m)
    product = SparseProduct(sparsity, step.dtype, m, n, k, lda, ldc, tile, step.comment)
    if block is not None:
        return SparseChoice(sparsity, product, "skips blocks of zeros")
    size = n * k * step.dtype.itemsize
    reason = f"reads {product.nbytes / 2**20:.1f} of {size / 2**20:.1f} MiB"
    return SparseChoice(sparsity, product, reason)


def _obstacle(step: GemmStep, weight: Buffer, group: int) -> str:
    """Why there can be no sparse kernel for rows of whole groups; "" where there can."""
    sizes = (step.m, step.n, step.k, step.a.row_stride, step.c.row_stride)
    if step.batch or step.accumulate or not all(isinstance(d, int) for d in sizes):
        return "its number of rows is not fixed"
    if 0 in (step.m, step.n, step.k):
        return "it has no elements"
    whole = weight.shape == (step.n, step.k) and weight.strides == (step.k, 1)
    b = step.b
    if not whole or (b.offset, b.row_stride, b.col_stride) != (0, 1, step.k):
        return "the weight is not a whole [n, k] matrix with contiguous rows"
    ragged = [d for d in (step.n, step.k) if d % group]  # pyright: ignore[reportOperatorIssue]
    if step.k in ragged or (ragged and group != GROUP):
        return f"[{step.n}, {step.k}] weights are no whole groups of {group}"
    if step.a.col_stride != 1 or step.c.col_stride != 1:
        return "the rows of its other factor or of its result are not contiguous"
    return ""


def _rows_together(m: int) -> int:
    """Rows of the weight that share what is loaded of a: the best of 1, 2, 4 and 8, measured."""
    if m <= 3:
        return 8
    return 2 if 6 < m <= 12 else 4
