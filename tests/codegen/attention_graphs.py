"""Loop nests of attention, made from small Graphs as programs make them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.loops import LoopNest
from lazyc.ir.types import DType
from lazyc.passes.attention import attention
from lazyc.passes.products_as_loops import products_as_loops
from lazyc.passes.schedule import schedule
from tests.passes.build import Make

F32 = DType.F32
Hide = Callable[[Make, Node, Node], Node]  # from positions of queries and keys: which are hidden


@dataclass(frozen=True)
class Sizes:
    """``groups`` query heads share a head of keys. ``drop``: the chance that a weight is dropped,
    by random numbers from ``counter`` on."""

    queries: int = 40
    keys: int = 40
    width: int = 16
    heads: int = 2
    groups: int = 1
    drop: float = 0.0
    counter: int = 0


def causal(m: Make, i: Node, j: Node) -> Node:
    return m.compare("gt", j, i)


def window(m: Make, i: Node, j: Node) -> Node:
    """Of 9 keys, the last one at the query."""
    distance = m.emit("sub", i, j)
    return m.emit("or", m.compare("lt", distance, 0), m.compare("ge", distance, 9))


def attention_nests(
    sizes: Sizes = Sizes(),
    dtype: DType = F32,
    hide: Hide | None = None,
    backward: bool = False,
) -> list[LoopNest]:
    """The nests of the forward pass (one, that stores the result and statistics of rows), or of the
    backward pass from the logsumexp and delta (two: queries; keys and values)."""
    return _nests((_backward if backward else _forward)(Make(), sizes, dtype, hide))


def score_sum_nest(
    sizes: Sizes = Sizes(), dtype: DType = F32, hide: Hide | None = None
) -> LoopNest:
    """The nest of the gradient of a bias that all heads of keys have in common: [groups, queries, keys], from the
    logsumexp and delta."""
    m = Make()
    *_, grad_s = _gradients(m, sizes, dtype, hide)
    (nest,) = _nests(m.outputs(m.cast(m.reduce("sum", grad_s, 0), dtype)))
    return nest


def _nests(graph: Graph) -> list[LoopNest]:
    program = schedule(products_as_loops(attention(graph, "flash")))
    return list(program.nests.values())


def _inputs(m: Make, s: Sizes, dtype: DType) -> list[Node]:
    if s.drop:
        m.input(dtype=DType.I64)
    q = m.input(s.heads, s.groups * s.queries, s.width, dtype=dtype)
    return [q, *(m.input(s.heads, s.keys, s.width, dtype=dtype) for _ in range(2))]


def _wide(m: Make, x: Node) -> Node:
    return m.cast(x, F32)


def _scores(m: Make, s: Sizes, q: Node, k: Node, hide: Hide | None) -> Node:
    found = m.emit("matmul", _wide(m, q), m.transpose(_wide(m, k), -1, -2))
    shape = (s.heads, s.groups, s.queries, s.keys)
    found = m.mul(m.reshape(found, shape), 1 / math.sqrt(s.width))
    if hide is not None:
        hidden = hide(m, m.iota_along(shape, 2), m.iota_along(shape, 3))
        found = m.where(hidden, -math.inf, found)
    return found


def _drop(m: Make, x: Node, s: Sizes) -> Node:
    """x without what is dropped, by the first input of the graph, a seed."""
    if not s.drop:
        return x
    attrs = A.RandomAttrs("uniform", x.shape, F32, s.counter)
    draw = m.emit("random", m.graph.inputs[0], attrs=attrs)
    return m.mul(m.mul(x, m.cast(m.compare("ge", draw, s.drop), F32)), 1 / (1 - s.drop))


def _rounded(m: Make, x: Node, s: Sizes, dtype: DType) -> Node:
    return _wide(m, m.cast(m.reshape(x, (s.heads, s.groups * s.queries, s.keys)), dtype))


def _forward(m: Make, s: Sizes, dtype: DType, hide: Hide | None) -> Graph:
    q, k, v = _inputs(m, s, dtype)
    scores = _scores(m, s, q, k, hide)
    top = m.reduce("max", scores, 3, keepdim=True)
    weights = m.exp(m.sub(scores, top))
    total = m.reduce("sum", weights, 3, keepdim=True)
    weights = _rounded(m, _drop(m, m.div(weights, total), s), s, dtype)
    out = m.cast(m.emit("matmul", weights, _wide(m, v)), dtype)
    return m.outputs(out, m.squeeze(top, 3), m.squeeze(total, 3))


def _gradients(m: Make, s: Sizes, dtype: DType, hide: Hide | None) -> tuple[Node, ...]:
    """Queries, keys, the gradient of the result, weights, and the gradient of the scores."""
    q, k, v = _inputs(m, s, dtype)
    grad = m.input(s.heads, s.groups * s.queries, s.width, dtype=dtype)
    lse, delta = (m.input(s.heads, s.groups, s.queries, 1) for _ in range(2))
    scores = _scores(m, s, q, k, hide)
    p = m.exp(m.sub(scores, m.expand(lse, scores.shape)))
    grad_p = m.emit("matmul", _wide(m, grad), m.transpose(_wide(m, v), -1, -2))
    grad_p = _drop(m, m.reshape(grad_p, scores.shape), s)
    return q, k, grad, p, m.mul(p, m.sub(grad_p, m.expand(delta, scores.shape)))


def _backward(m: Make, s: Sizes, dtype: DType, hide: Hide | None) -> Graph:
    q, k, grad, p, grad_s = _gradients(m, s, dtype, hide)
    grad_s, p = (_rounded(m, x, s, dtype) for x in (grad_s, _drop(m, p, s)))
    return m.outputs(
        *(
            m.cast(m.emit("matmul", a, _wide(m, b)), dtype)
            for a, b in (
                (grad_s, k), (m.transpose(grad_s, -1, -2), q), (m.transpose(p, -1, -2), grad)
            )
        )
    )  # fmt: skip
