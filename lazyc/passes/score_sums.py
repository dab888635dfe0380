"""Sums of what is as large as the scores of attention, in steps that need not have all scores at once.

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

For targets whose kernels hold matrix products the same sums are steps of their own, each a kernel that computes the
scores again (``attention``); that over rows stays a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import numel
from lazyc.passes.attention import is_weight, upstream
from lazyc.passes.rewrite import Rewriter, rewrite

# Of the scores; less is not computed by blocks (runtime/blocks.py).
LEAST_BYTES = 4 << 20


def score_sums(graph: Graph, has_products: bool = False) -> Graph:
    """The Graph with sums of scores in such steps. ``has_products``: matrix products are kernels of the target."""
    return rewrite(graph, {"reduce_sum": [partial(_split, has_products)]})


def _split(has_products: bool, b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    source, axes = x[0], node.attrs.axes
    if not source.dtype.is_float or axes == (len(source.shape) - 1,):
        return None
    if not _is_of_scores(source, 0 if has_products else LEAST_BYTES):
        return None
    wide = b.cast(source, source.dtype.compute)  # half types are rounded to at the end alone
    steps = _in_kernels if has_products else _by_blocks
    return b.cast(steps(b, wide, axes), node.dtype)


def _by_blocks(b: Rewriter, source: Node, axes: tuple[int, ...]) -> Node:
    row, key = len(source.shape) - 2, len(source.shape) - 1
    if key in axes:
        return _sum(b, _sum(b, source, (key,)), axes[:-1])
    if row in axes:
        *batch, m, _ = source.shape
        ones = b.emit("constant", attrs=A.ConstantAttrs(1.0, source.dtype, source.tensor.device))
        total = b.emit("matmul", b.expand(ones, (*batch, 1, m)), source)
        if axes == (row,):
            return b.reshape(total, (*batch, source.shape[key]))
        return _sum(b, total, axes)
    if _is_of_layers(source):
        return b.emit("add", *(_by_blocks(b, x, axes) for x in source.inputs))
    b.decide(
        f"sum of {source.type} over matrices is a kernel of its own",
        "it adds up a block of rows at a time, so that the scores' gradients are not stored",
    )
    return b.emit("reduce_sum", source, attrs=A.ReduceAttrs(axes, is_alone=True))


def _in_kernels(b: Rewriter, source: Node, axes: tuple[int, ...]) -> Node:
    if _is_of_layers(source):
        return b.emit("add", *(_in_kernels(b, x, axes) for x in source.inputs))
    *others, last = axes
    if others and last >= len(source.shape) - 2:  # keys or rows first
        return _sum(b, _sum(b, source, (last,)), tuple(others))
    return _sum(b, source, axes)


def _sum(b: Rewriter, x: Node, axes: tuple[int, ...]) -> Node:
    return b.emit("reduce_sum", x, attrs=A.ReduceAttrs(axes))


def _is_of_layers(x: Node) -> bool:
    """Whether it is what two layers add to the gradient of the same."""
    return x.op == "add" and all(y.shape == x.shape and _is_of_scores(y) for y in x.inputs)


def _is_of_scores(x: Node, least_bytes: int = 0) -> bool:
    """Whether it is computed, element by element, from the scores of attention, and as large as they are."""
    elements = numel(x.shape)
    if len(x.shape) < 3 or (
        isinstance(elements, int) and elements * x.dtype.itemsize < least_bytes
    ):
        return False
    between, products = upstream(x)
    if not any(map(is_weight, between)):
        return False
    # Heads that share keys are rows of one matrix in products.
    return all(p.shape[-1] == x.shape[-1] and numel(p.shape) == elements for p in products)
