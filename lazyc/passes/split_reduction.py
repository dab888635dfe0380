"""Splits reductions that leave too few results to keep threads and vectors busy.

    before   reduce_sum(x : [1048576], axis 0) : []
    after    reduce_sum(reduce_sum(reshape(x, [64, 16384]), axis 1) : [64], axis 0) : []

The number of parts does not depend on the number of threads, so that results do not either.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import numel
from lazyc.passes.rewrite import Rewriter, rewrite

_FEW_RESULTS = 32
_LARGE = 1 << 15
_PARTS = 64


def split_reductions(graph: Graph) -> Graph:
    """The Graph with large reductions to few elements in two steps each."""
    kinds = ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")
    return rewrite(graph, {kind: [_split] for kind in kinds})


def _split(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    source, axes = x[0], node.attrs.axes
    total, results = numel(source.shape), numel(node.shape)
    if not isinstance(total, int) or not isinstance(results, int):
        return None
    if results > _FEW_RESULTS or total < _LARGE or results == 0:
        return None
    axis = max(axes, key=lambda a: (source.shape[a], -a))
    length = source.shape[axis]
    assert isinstance(length, int)
    parts = max(p for p in range(1, _PARTS + 1) if length % p == 0)
    if parts < 4 or results * parts >= total // 4:
        return None
    if len(axes) > 1 and axis != axes[0]:
        # Cut the slowest reduced dim if that will do: parts are then whole blocks of memory.
        first = source.shape[axes[0]]
        assert isinstance(first, int)
        better = max(p for p in range(1, _PARTS + 1) if first % p == 0)
        if better >= 4:
            axis, length, parts = axes[0], first, better
    shape = (*source.shape[:axis], parts, length // parts, *source.shape[axis + 1 :])
    cut = b.reshape(source, shape)
    inner = tuple(a if a < axis else a + 1 for a in axes)
    partial = b.emit(node.op, cut, attrs=A.ReduceAttrs(inner))
    place = axis - sum(a < axis for a in axes)
    return b.emit(node.op, partial, attrs=A.ReduceAttrs((place,)))
