"""Matrix products as BLAS calls: operands as strided matrices, without copies where possible."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, Shape, is_nonneg, numel
from lazyc.passes.layout import StridedView


# A product over two batch dims that do not merge becomes at most this many calls.
_MAX_CALLS = 32


@dataclass(frozen=True, slots=True)
class MatrixView:
    """A [*batch, rows, cols] value as BLAS can read it: strides in elements."""

    base: Node
    offset: Dim
    row_stride: Dim
    col_stride: Dim
    batch_strides: Shape


def as_matrix(view: StridedView) -> MatrixView | None:
    """A view as a BLAS operand; None when it must be copied first.

    BLAS reads a matrix whose rows or columns are contiguous, with a leading dim of at least the
    other size.
    """
    *_, rows, cols = view.shape
    *batch_strides, row, col = view.strides
    if any(d == 0 for d in view.shape):
        return None
    if cols == 1 and col == 0:
        col = 1
    if rows == 1 and row == 0:
        row = cols if col == 1 else 1
    if rows == 1 and col == 1:
        row = _at_least(row, cols)
    elif cols == 1 and row == 1:
        col = _at_least(col, rows)
    plain = col == 1 and _certainly_ge(row, cols)
    transposed = row == 1 and _certainly_ge(col, rows)
    if not plain and not transposed:
        return None
    return MatrixView(view.base, view.offset, row, col, tuple(batch_strides))


def gemm_calls(
    batch: Shape, matrices: tuple[MatrixView, ...]
) -> list[tuple[Dim, tuple[MatrixView, ...]]] | None:
    """The product over ``batch`` dims as calls with one batch dim each: (size, operands).

    Neighbouring dims merge where all operands step through them evenly; what is left over becomes
    several calls. None when those would be too many.
    """
    dims: list[tuple[Dim, tuple[Dim, ...]]] = []
    for k, size in enumerate(batch):
        if size == 1:
            continue
        strides = tuple(m.batch_strides[k] for m in matrices)
        if dims and all(
            outer == inner * size for outer, inner in zip(dims[-1][1], strides, strict=True)
        ):
            dims[-1] = (dims[-1][0] * size, strides)
        else:
            dims.append((size, strides))
    last, last_strides = dims.pop() if dims else (1, (0,) * len(matrices))
    count = numel(size for size, _ in dims)
    if not isinstance(count, int) or count > _MAX_CALLS:
        return None
    calls: list[tuple[Dim, tuple[MatrixView, ...]]] = []
    for where in itertools.product(*(range(int(size)) for size, _ in dims)):
        moved = tuple(
            replace(
                m,
                offset=m.offset + sum(i * s[k] for i, (_, s) in zip(where, dims, strict=True)),
                batch_strides=(last_strides[k],),
            )
            for k, m in enumerate(matrices)
        )
        calls.append((last, moved))
    return calls


def _at_least(stride: Dim, size: Dim) -> Dim:
    return stride if _certainly_ge(stride, size) else size


def _certainly_ge(a: Dim, b: Dim) -> bool:
    return is_nonneg(a - b)
