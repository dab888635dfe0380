"""Attention whose softmax has columns besides the keys, as a softmax over the keys that is scaled afterwards.

    before   out = matmul(f(softmax(cat(s, t) - max)[.., :n]), v)
    after    out = matmul(f(softmax(s)), v) * own / (own + sum exp(t - m)),   own = sum exp(s - m)

The weights of columns ``t`` are dropped: these take a share of each row and give nothing for it, so that a query may
attend to little (attention sinks: G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023; gpt-oss
learns one for each head). The scale of a row goes through a product, and what is left is attention as any other, which
keeps no scores (``attention``, ``row_tiles``). A softmax is the same of scores less anything that a row has in common, so
that the maximum which models subtract before it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import Dim
from lazyc.passes.attention import Softmax, is_along_rows, match_softmax
from lazyc.passes.realize import live_nodes
from lazyc.passes.rewrite import Rewriter, rewrite

_Users: TypeAlias = Mapping[Node, Sequence[Node]]


def attention_sinks(graph: Graph) -> Graph:
    """The Graph with products of some of a softmax's columns rewritten, where nothing else reads the softmax."""
    nodes = live_nodes(graph)
    if not any(node.op == "cat" for node in nodes):
        return graph
    live, outside = set(nodes), set(graph.roots())
    users = {
        node: () if node in outside else [u for u in reading if u in live]
        for node, reading in graph.users().items()
    }
    found = {n: sinks for n in nodes if n.op == "matmul" and (sinks := _match(n, users))}
    return rewrite(graph, {"matmul": [partial(_scaled, found)]}) if found else graph


@dataclass(frozen=True, slots=True)
class _Sinks:
    """``path``: from a product's first factor to a slice of the softmax. ``keys`` and ``others`` are the scores of the
    columns in the slice, and of those that are not."""

    path: tuple[Node, ...]
    softmax: Softmax
    keys: Node
    others: tuple[Node, ...]


def _match(product: Node, users: _Users) -> _Sinks | None:
    path = _path(product.inputs[0], users)
    if not path:
        return None
    rounded = path[-1].inputs[0]
    softmax = match_softmax(rounded.inputs[0] if _is_float_cast(rounded) else rounded)
    if softmax is None or softmax.empty != "nan":
        return None
    if len(users[rounded]) != 1 or len(users[softmax.node]) != 1:
        return None
    columns = _unshifted(softmax.scores)
    last = len(columns.shape) - 1
    if columns.op != "cat" or columns.attrs.axis != last:
        return None
    start: Dim = 0
    for k, part in enumerate(columns.inputs):
        if _is_part(path[-1], start, part.shape):
            others = (*columns.inputs[:k], *columns.inputs[k + 1 :])
            return _Sinks(tuple(path), softmax, part, others)
        start += part.shape[last]
    return None


def _path(node: Node, users: _Users) -> list[Node]:
    """The nodes from one down to a slice whose columns it has; empty if there is none. Each has one user."""
    if len(users[node]) != 1:
        return []
    if node.op == "slice":
        return [node]
    is_view = node.op in ("reshape", "expand") and node.shape[-1] == node.inputs[0].shape[-1]
    if not is_view and not _is_float_cast(node):
        return []
    below = _path(node.inputs[0], users)
    return [node, *below] if below else []


def _is_float_cast(node: Node) -> bool:
    return node.op == "cast" and node.dtype.is_float and node.inputs[0].dtype.is_float


def _unshifted(scores: Node) -> Node:
    """``x`` of ``x - max(x)``, in the type that it has in memory."""
    value = _unwidened(scores)
    if value.op != "sub":
        return value
    shifted, row = map(_unwidened, value.inputs)
    if row.op != "expand" or not is_along_rows(row):
        return value
    top = _unwidened(row.inputs[0])
    while top.op == "reshape":
        top = _unwidened(top.inputs[0])
    if top.op != "reduce_max" or top.attrs.axes != (len(shifted.shape) - 1,):
        return value
    return shifted if _unwidened(top.inputs[0]) is shifted else value


def _unwidened(node: Node) -> Node:
    """What a value was before casts that keep it as it is."""
    while _is_float_cast(node) and node.dtype.itemsize > node.inputs[0].dtype.itemsize:
        node = node.inputs[0]
    return node


def _is_part(piece: Node, start: Dim, shape: Sequence[Dim]) -> bool:
    """Whether a slice is all of the columns from ``start`` on that a part of this shape has."""
    attrs = piece.attrs
    starts = (*[0] * (len(shape) - 1), start)
    return (
        tuple(attrs.starts) == starts
        and tuple(attrs.sizes) == tuple(shape)
        and set(attrs.steps) == {1}
    )


def _scaled(
    found: Mapping[Node, _Sinks], b: Rewriter, node: Node, x: Sequence[Node]
) -> Node | None:
    if node not in found:
        return None
    sinks = found[node]
    dtype = sinks.softmax.scores.dtype
    scores = b.cast(b.new[sinks.keys], dtype)
    last = A.ReduceAttrs((len(scores.shape) - 1,))
    rows = (*scores.shape[:-1], 1)

    def reduced(op: str, value: Node) -> Node:
        return b.reshape(b.emit(op, value, attrs=last), rows)

    # As ``match_softmax`` knows it. A row without keys is zeros: the others have all of it.
    highest = reduced("reduce_max", scores)
    hidden = b.emit("eq", highest, b.constant(-math.inf, highest))
    shift = b.emit("where", hidden, b.constant(0.0, highest), highest)
    exps = b.emit("exp", b.emit("sub", scores, b.expand(shift, scores.shape)))
    total = reduced("reduce_sum", exps)
    divisor = b.emit("where", hidden, b.constant(1.0, total), total)
    weights = b.emit("div", exps, b.expand(divisor, scores.shape))

    others = [b.cast(b.new[t], dtype) for t in sinks.others]
    top = highest
    for t in others:
        top = b.emit("maximum", top, reduced("reduce_max", t))
    own = b.emit("mul", total, b.emit("exp", b.emit("sub", highest, top)))
    whole = own
    for t in others:
        shares = b.emit("exp", b.emit("sub", t, b.expand(top, t.shape)))
        whole = b.emit("add", whole, reduced("reduce_sum", shares))
    share = b.emit("div", own, whole)

    weights = b.cast(weights, sinks.path[-1].dtype)
    for view, below in reversed(list(zip(sinks.path, sinks.path[1:], strict=False))):
        inputs = [weights if n is below else b.new[n] for n in view.inputs]
        weights = b.emit(view.op, *inputs, attrs=view.attrs)
        if view.op in ("reshape", "expand"):
            attrs = A.ShapeAttrs((*view.shape[:-1], 1))
            share = b.emit(view.op, share, attrs=attrs)
    product = b.emit("matmul", weights, x[1])
    b.decide(
        f"softmax of {scores.type} scaled for {len(others)} more parts of its columns after the product",
        "their weights are dropped, and scores of keys alone need not be stored",
    )
    wide = b.cast(product, dtype)
    scaled = b.emit("mul", wide, b.expand(share, wide.shape))
    return b.cast(scaled, node.dtype)
