"""Sums of what is as large as the scores of attention, in steps that can go along the rows of scores.

    before   reduce_sum(ds : [b, h, m, n], axis 0) : [h, m, n]                 gradient of a bias of [1, h, m, n]
    after    the same, in a kernel of its own

    before   reduce_sum(ds, axes 0, 2) : [h, n]                                of [1, h, 1, n]
    after    reduce_sum(matmul(ones : [b, h, 1, m], ds) : [b, h, 1, n], axes 0, 2)

    before   reduce_sum(ds, axes 0, 3) : [h, m]                                of [1, h, m, 1]
    after    reduce_sum(reduce_sum(ds, axis 3) : [b, h, m], axis 0)

Gradients of what is added to the scores, or multiplied with them, and is the same for several matrices, rows or keys
are such sums. ``ds`` would have to be in memory as a whole for a sum that reads it across matrices or rows. A sum
over matrices adds a block of rows at a time (``row_tiles``), which takes a kernel that does nothing else; that of what
several layers add to the gradient of one bias is one for each layer, whose scores are all in memory at no time. One over
rows is a product, and products along rows add up block after block already. One over keys is within a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import numel
from lazyc.passes.attention import is_weight, upstream
from lazyc.passes.rewrite import Rewriter, rewrite

# Of the scores; less is not computed by blocks (runtime/blocks.py).
LEAST_BYTES = 4 << 20


def score_sums(graph: Graph) -> Graph:
    """The Graph with sums of scores in such steps."""
    return rewrite(graph, {"reduce_sum": [_split]})


def _split(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    source, axes = x[0], node.attrs.axes
    if not source.dtype.is_float or axes == (len(source.shape) - 1,) or not _is_of_scores(source):
        return None
    wide = b.cast(source, source.dtype.compute)  # half types are rounded to at the end alone
    return b.cast(_in_steps(b, wide, axes), node.dtype)


def _in_steps(b: Rewriter, source: Node, axes: tuple[int, ...]) -> Node:
    row, key = len(source.shape) - 2, len(source.shape) - 1
    if key in axes:
        rows = b.emit("reduce_sum", source, attrs=A.ReduceAttrs((key,)))
        return b.emit("reduce_sum", rows, attrs=A.ReduceAttrs(axes[:-1]))
    if row in axes:
        *batch, m, _ = source.shape
        ones = b.emit("constant", attrs=A.ConstantAttrs(1.0, source.dtype, source.tensor.device))
        total = b.emit("matmul", b.expand(ones, (*batch, 1, m)), source)
        if axes == (row,):
            return b.reshape(total, (*batch, source.shape[key]))
        return b.emit("reduce_sum", total, attrs=A.ReduceAttrs(axes))
    if source.op == "add" and all(
        x.shape == source.shape and _is_of_scores(x) for x in source.inputs
    ):
        return b.emit("add", *(_in_steps(b, x, axes) for x in source.inputs))
    b.decide(
        f"sum of {source.type} over matrices is a kernel of its own",
        "it adds up a block of rows at a time, so that the scores' gradients are not stored",
    )
    return b.emit("reduce_sum", source, attrs=A.ReduceAttrs(axes, is_alone=True))


def _is_of_scores(x: Node) -> bool:
    """Whether it is computed, element by element, from the scores of attention, and as large as they are."""
    elements = numel(x.shape)
    if len(x.shape) < 3 or (
        isinstance(elements, int) and elements * x.dtype.itemsize < LEAST_BYTES
    ):
        return False
    between, products = upstream(x)
    if not any(map(is_weight, between)):
        return False
    # Heads that share keys are rows of one matrix in products.
    return all(p.shape[-1] == x.shape[-1] and numel(p.shape) == elements for p in products)
