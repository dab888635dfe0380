"""Matrix products as library calls: operands as strided matrices, without copies where BLAS allows."""

from __future__ import annotations

from collections.abc import Mapping

from lazyc.ir.graph import Node
from lazyc.ir.program import Operand
from lazyc.ir.types import Dim, is_nonneg
from lazyc.passes.layout import StridedView


def as_operand(view: StridedView, buffers: Mapping[Node, int]) -> Operand | None:
    """A [*batch, rows, cols] view as a BLAS operand; None when it must be copied first.

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
    return Operand(buffers[view.base], view.offset, row, col, tuple(batch_strides))


def _at_least(stride: Dim, size: Dim) -> Dim:
    return stride if _certainly_ge(stride, size) else size


def _certainly_ge(a: Dim, b: Dim) -> bool:
    return is_nonneg(a - b)
