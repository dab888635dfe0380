"""Matrix products as BLAS calls: operands as strided matrices, without copies where possible."""

from __future__ import annotations

from dataclasses import dataclass

from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape, is_nonneg
from lazyc.passes.realize import INLINE_LEAVES, inline_costs
from lazyc.passes.strided import StridedView

_HALVES = (DType.F16, DType.BF16)


@dataclass(frozen=True, slots=True)
class MatrixView:
    """A [*batch, rows, cols] value as BLAS can read it: strides in elements."""

    base: Node
    offset: Dim
    row_stride: Dim
    col_stride: Dim
    batch_strides: Shape


def is_library_product(node: Node) -> bool:
    """Whether a node is a matrix product that is one call of a library."""
    return node.op in ("matmul", "wide_matmul")


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


def _at_least(stride: Dim, size: Dim) -> Dim:
    return stride if _certainly_ge(stride, size) else size


def _certainly_ge(a: Dim, b: Dim) -> bool:
    return is_nonneg(a - b)


def stored_factors(nodes: list[Node]) -> set[Node]:
    """Factors of products that are loops of a kernel that must be in memory as they are: those that were
    padded, to be of use; what windows are read from, which would be computed for each of them;
    and those of a narrow type (a half type, int8) that are too much to be computed at each reading. (In
    memory as what the product makes of them, f32 or i32, they would miss the tensor cores.) Not the weights of
    attention, which are made of products that never have memory."""
    factors = factors_as_stored(nodes)
    images = {_stored(w.inputs[0]) for w in windows_of_products(nodes)}
    factors = {x for x in factors if x.op != "window"} | images
    if not factors:
        return set()
    costs = inline_costs(nodes, frozenset())
    return {
        x
        for x in factors
        if x.op == "pad"
        or (x in images and x.op not in INLINE_LEAVES)
        or (x.dtype.is_widened and costs[x].is_once_only and not costs[x].nested)
    }


def image_orders(nodes: list[Node]) -> dict[Node, tuple[int, ...]]:
    """The images that products read windows of, each with its ``image_order``: the last dim that windows do
    not move along, the channels, comes last."""
    found: dict[Node, tuple[int, ...]] = {}
    for window in windows_of_products(nodes):
        image = window.inputs[0]
        while image.op == "cast" and image.dtype not in _HALVES:
            image = image.inputs[0]
        found[image] = image_order(window)
    return found


def image_order(window: Node) -> tuple[int, ...]:
    """The dims of what a convolution reads windows of from slowest to fastest: its channels come last."""
    dims = range(len(window.inputs[0].shape))
    channel = max((d for d in dims if d not in window.attrs.axes), default=dims[-1])
    return (*(d for d in dims if d != channel), channel)


def windows_of_products(nodes: list[Node]) -> list[Node]:
    """The windows that are factors of products that are loops of a kernel."""
    return [x for x in factors_as_stored(nodes) if x.op == "window"]


def factors_as_stored(nodes: list[Node]) -> dict[Node, None]:
    """What factors of products that are loops of a kernel are views of, in the type that they are multiplied
    in."""
    return dict.fromkeys(_stored(x) for node in nodes for x in _factors(node))


def _factors(node: Node) -> tuple[Node, ...]:
    if node.op == "attend":
        return (node.inputs[1],)
    if node.op == "dot":
        return node.inputs
    return node.inputs[0].inputs if is_loop_product(node) else ()


def is_copy(node: Node) -> bool:
    """Whether a node is there to be a copy: a ``reshape`` to the same shape."""
    return node.op == "reshape" and node.inputs[0].shape == node.shape


def _stored(x: Node) -> Node:
    """What a factor is a view of, before it was widened; a copy, or windows, where it is one of these."""
    while x.op in ("cast", "expand", "reshape", "permute", "slice") and not is_copy(x):
        source = x.inputs[0].dtype
        if x.dtype.is_widened and not (
            source.is_widened and source.accumulator is x.dtype.accumulator
        ):
            break
        x = x.inputs[0]
    return x


def is_loop_product(node: Node) -> bool:
    """Whether a node is a matrix product in the form of ``products_as_loops``: the sum of a product of
    which either factor is the same along some dim that is left. An ``attend`` is one too."""
    if node.op == "attend":
        return True
    if node.op != "reduce_sum" or node.inputs[0].op != "mul":
        return False
    product = node.inputs[0]
    kept = [d for d in range(len(product.shape)) if d not in node.attrs.axes]
    factors = [x.inputs[0] if x.op == "cast" else x for x in product.inputs]
    same = [
        {d for d in kept if x.op == "expand" and x.inputs[0].shape[d] == 1 != x.shape[d]}
        for x in factors
    ]
    return bool(same[0] - same[1]) and bool(same[1] - same[0])
