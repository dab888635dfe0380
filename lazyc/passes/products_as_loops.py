"""Matrix products as sums over a loop, for targets whose kernels contract with what surrounds them.

    before   matmul(a : [m, k], b : [k, n]) : [m, n]
    after    reduce_sum(mul(expand(a), expand(b)) : [m, n, k], axis 2)

The loop nest of such a sum is a contraction to the code generator, and fusion draws what follows into it
like into any other reduction. Half types are multiplied and added in f32, int8 in i32.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.passes.rewrite import Rewriter, rewrite


def products_as_loops(graph: Graph) -> Graph:
    """The Graph without ``matmul``."""
    return rewrite(graph, {"matmul": [_as_loop]})


def _as_loop(b: Rewriter, node: Node, x: Sequence[Node]) -> Node:
    first, second = x
    *batch, m, k = first.shape
    n = second.shape[-1]
    shape = (*batch, m, n, k)
    rank = len(shape) - 1
    turned = b.emit("permute", second, attrs=A.PermuteAttrs((*range(rank - 2), rank - 1, rank - 2)))
    left = b.expand(b.reshape(_rounded(b, first), (*batch, m, 1, k)), shape)
    right = b.expand(b.reshape(_rounded(b, turned), (*batch, 1, n, k)), shape)
    product = b.emit("mul", _wide(b, left), _wide(b, right))
    total = b.emit("reduce_sum", product, attrs=A.ReduceAttrs((rank,)))
    return b.cast(total, node.dtype)


def stored_factor(b: Rewriter, x: Node) -> Node:
    """A factor in the type that products are added in. Of a half type it is what memory of that type
    would hold: the multiplication on the tensor cores reads it so."""
    return _wide(b, _rounded(b, x))


def _rounded(b: Rewriter, x: Node) -> Node:
    """What memory of its type would hold of a factor. It is the half type itself that products expand, so
    that the factor gets memory of that type if any."""
    is_half = x.dtype.compute is not x.dtype
    return b.emit("cast", x, attrs=A.CastAttrs(x.dtype)) if is_half else x


def _wide(b: Rewriter, x: Node) -> Node:
    """A factor in the type that products are added in."""
    return b.cast(x, x.dtype.accumulator)
