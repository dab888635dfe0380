"""Attention without stored scores, for targets whose kernels hold matrix products.

    before   s = matmul(q, kT)   p = softmax(f(s))   out = matmul(g(p), v)
    after    s = dot(q, k)       out = attend(f(s), v, g)

    before   s = matmul(q, kT)   dp = matmul(do, vT)   ds = f(exp(s - lse), dp)   dq = matmul(ds, k)
    after    s = dot(q, k)       dp = dot(do, v)       the same

A product that nothing but later products reads, through pointwise ops, views and a softmax over its rows,
is computed again in the kernels that read it (``dot``). What is between stays an expression of the Graph:
scales, masks, biases, soft caps and dropout need no rule of their own. Rows are softmax'd in one pass over
the keys (M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018; T. Dao,
"FlashAttention-2", 2023). In the backward pass the exponential of a product less a value of its row tells
attention from other chains of products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

from lazyc.config import AttentionKernel
from lazyc.ir import attrs as A
from lazyc.ir.decisions import Decision
from lazyc.ir.graph import Graph, Node, depends_on
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, DType, is_nonneg, numel
from lazyc.passes.products_as_loops import stored_factor
from lazyc.passes.realize import live_nodes
from lazyc.passes.rewrite import Rewriter, rewrite, scalar_value

Kernel: TypeAlias = Literal["flash", "math"]

_HALVES = (DType.F16, DType.BF16)
_MAX_WIDTH = 256  # of a head: what a tile holds whole
_TILE = 16  # rows and keys below which a tile is mostly empty


def attention(graph: Graph, mode: AttentionKernel = "auto") -> Graph:
    """The Graph with each attention that is better not stored rewritten. ``mode`` other than "auto" says
    what is better. The kernel of each is a decision: "flash", or "math" with stored scores; here
    "memory-efficient" is the same as "flash"."""
    found = _choose(graph, mode)
    if not found.products:
        return graph
    rules = {
        "matmul": [partial(_rewrite_product, found)],
        "reduce_max": [partial(_rewrite_statistic, found)],
        "reduce_sum": [partial(_rewrite_statistic, found)],
    }
    return rewrite(graph, rules)


def products_of_attention(graph: Graph) -> set[Node]:
    """The matrix products of all attentions in a Graph: those that make scores or their gradients, and those
    that take what is made of these."""
    found: set[Node] = set()
    for candidate in _candidates(graph, live_nodes(graph)):
        found |= candidate.products | {candidate.node}
    return {node for node in found if node.op == "matmul"}


# --- what there is --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Softmax:
    """``node`` is the softmax of ``scores`` over the last axis; ``top`` and ``total`` its reductions."""

    node: Node
    scores: Node
    top: Node
    total: Node
    empty: A.EmptyRow
    checks: tuple[Node, ...] = ()  # the test for rows without keys: a reduction and its views


@dataclass(frozen=True, slots=True)
class Weights:
    """A product's first operand: ``softmax`` times the ``factors``, in the shape that ``views`` give it.
    ``rounded``: the half type that it is rounded to, if any. ``factors``: values, each with the number of
    views that it has behind it."""

    softmax: Softmax
    views: tuple[Node, ...] = ()
    factors: tuple[tuple[Node, int], ...] = ()
    rounded: DType | None = None


@dataclass
class _Found:
    """``products``: to be computed where they are read. ``attends``: products with a softmax. ``turned``:
    products that have their weights on the right."""

    products: set[Node] = field(default_factory=set)
    turned: set[Node] = field(default_factory=set)
    attends: dict[Node, Weights] = field(default_factory=dict)
    statistics: dict[Node, tuple[Node, Literal["max", "sum"]]] = field(default_factory=dict)


@dataclass
class _Candidate:
    """A product whose operand is computed from ``products``; ``between`` are the values on the way."""

    node: Node
    weights: Weights | None
    products: set[Node]
    between: set[Node]
    turned: bool = False


def _is_elementwise(node: Node) -> bool:
    return node.spec.has(Trait.POINTWISE | Trait.VIEW)


def _candidates(graph: Graph, nodes: list[Node]) -> Iterator[_Candidate]:
    for node in nodes:
        if node.op == "reduce_sum" and _sums_scores(node):
            between, products = upstream(node.inputs[0])
            if products and any(map(is_weight, between)):
                yield _Candidate(node, None, products, between)
        if node.op != "matmul":
            continue
        weights = match_weights(node.inputs[0])
        if weights is not None:
            between, products = upstream(weights.softmax.scores)
            if products:
                yield _Candidate(node, weights, products, between)
            continue
        for turned, operand in enumerate(node.inputs):
            between, products = upstream(operand)
            if products and any(map(is_weight, between)):
                yield _Candidate(node, None, products, between, bool(turned))
                break


def _sums_scores(node: Node) -> bool:
    """Whether a sum is one over keys, rows or matrices, and no two of these (``score_sums``)."""
    rank, axes = len(node.inputs[0].shape), node.attrs.axes
    return axes in ((rank - 1,), (rank - 2,)) or all(a < rank - 2 for a in axes)


def is_weight(node: Node) -> bool:
    """Whether a value is ``exp(s - row)``, as no activation between two products is."""
    if node.op != "exp":
        return False
    shifted = node.inputs[0]
    while shifted.op in ("cast", "reshape", "expand"):
        shifted = shifted.inputs[0]
    if shifted.op != "sub":
        return False
    row = shifted.inputs[1]
    while row.op in ("expand", "reshape"):  # along any axis: keys may come first
        row = row.inputs[0]
    return scalar_value(row) is None and row.tensor.numel != shifted.tensor.numel


def upstream(node: Node) -> tuple[set[Node], set[Node]]:
    """The values between a node (included) and the products of scores that it is computed from, and these."""
    order: list[Node] = []
    seen: set[Node] = set()
    todo = [node]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        order.append(here)
        if _is_elementwise(here):
            todo += here.inputs
    products = {n for n in order if n.op == "matmul" and _is_scored(n, node)}
    between = set(products)
    for here in sorted(order, key=lambda n: n.id):
        if _is_elementwise(here) and any(n in between for n in here.inputs):
            between.add(here)
    return between - products, products if node in between else set()


def _is_scored(product: Node, node: Node) -> bool:
    """Whether a product, which ``node`` is computed from, has a number for each of its rows and keys, whichever are the
    rows; as one that makes a bias of something else has not. Matrices may be next to each other in the product."""
    known = [side in node.shape[-2:] for side in product.shape[-2:]]
    return all(known) or (any(known) and numel(product.shape) == numel(node.shape))


# --- softmax --------------------------------------------------------------------------------------


def match_softmax(node: Node) -> Softmax | None:
    """The softmax over the last axis that a node is: as the lowerings, and torch's own decompositions,
    write it."""
    if node.op == "where":
        return _safe_softmax(node)
    if node.op != "div" or node.inputs[0].op != "exp":
        return None
    weights, divisor = node.inputs
    difference = weights.inputs[0]
    if difference.op != "sub":
        return None
    scores, shift = difference.inputs
    top, empty = _unless_hidden(_small(shift), 0.0)
    total, other = _unless_hidden(_small(divisor), 1.0)
    if not (_over_rows(top, "reduce_max", scores) and _over_rows(total, "reduce_sum", weights)):
        return None
    return Softmax(node, scores, top, total, empty) if empty == other else None


def _small(node: Node) -> Node:
    """What a row's value is before it is given the shape of the scores."""
    while node.op == "reshape" or (node.op == "expand" and is_along_rows(node)):
        node = node.inputs[0]
    return node


def is_along_rows(expand: Node) -> bool:
    """Whether an ``expand`` has a number for each row, the same in all columns: other axes are what they were."""
    return expand.inputs[0].shape == (*expand.shape[:-1], 1)


def _unless_hidden(node: Node, otherwise: float) -> tuple[Node, A.EmptyRow]:
    """``x`` of ``where(top == -inf, otherwise, x)``, the guard of rows without keys."""
    if node.op != "where" or scalar_value(node.inputs[1]) != otherwise:
        return node, "nan"
    hidden = _small(node.inputs[0])
    if hidden.op != "eq" or scalar_value(hidden.inputs[1]) != -math.inf:
        return node, "nan"
    if _small(hidden.inputs[0]).op != "reduce_max":
        return node, "nan"
    return _small(node.inputs[2]), "zero"


def _over_rows(node: Node, op: str, source: Node) -> bool:
    last = len(source.shape) - 1
    return node.op == op and node.inputs[0] is source and node.attrs.axes == (last,)


def _safe_softmax(node: Node) -> Softmax | None:
    """``where(all(scores == -inf), 0, softmax(scores))``."""
    hidden, value, rest = node.inputs
    found = match_softmax(rest)
    every = _small(hidden)
    if (
        found is None
        or found.empty != "nan"
        or scalar_value(value) != 0.0
        or every.op != "reduce_min"
    ):
        return None
    compared = every.inputs[0]
    if compared.op != "eq" or not _over_rows(every, "reduce_min", compared):
        return None
    if compared.inputs[0] is not found.scores or scalar_value(compared.inputs[1]) != -math.inf:
        return None
    checks = [every]
    while hidden is not every:
        checks.append(hidden)
        hidden = hidden.inputs[0]
    return Softmax(node, found.scores, found.top, found.total, "zero", tuple(checks))


def match_weights(node: Node) -> Weights | None:
    """A softmax, perhaps with other factors (dropout), in another shape or type."""
    softmax = match_softmax(node)
    if softmax is not None:
        return Weights(softmax)
    if node.op == "cast":
        found = match_weights(node.inputs[0])
        if found is None or not node.dtype.is_float:
            return None
        rounded = node.dtype if node.dtype in _HALVES else found.rounded
        return Weights(found.softmax, found.views, found.factors, rounded)
    if node.op in ("reshape", "expand"):
        found = match_weights(node.inputs[0])
        if found is None or node.shape[-1] != node.inputs[0].shape[-1]:
            return None
        return Weights(found.softmax, (*found.views, node), found.factors, found.rounded)
    if node.op == "mul":
        for value, factor in (node.inputs, node.inputs[::-1]):
            found = match_weights(value)
            if found is not None:
                factors = (*found.factors, (factor, len(found.views)))
                return Weights(found.softmax, found.views, factors, found.rounded)
    return None


# --- which of them --------------------------------------------------------------------------------


def _choose(graph: Graph, mode: AttentionKernel) -> _Found:
    nodes = live_nodes(graph)
    live, outside = set(nodes), set(graph.roots())
    users = {k: [u for u in v if u in live] for k, v in graph.users().items()}
    chosen: list[_Candidate] = []

    def tell(candidate: _Candidate, kernel: Kernel, reason: str) -> None:
        if candidate.node.op == "matmul":
            origin = graph.provenance.get(candidate.node)
            line = "" if origin is None else origin.line
            graph.decisions.append(Decision(kernel, reason, line))

    candidates = list(_candidates(graph, nodes))
    totals = {c.weights.softmax.total for c in candidates if c.weights is not None}
    for candidate in candidates:
        if candidate.node in totals:
            continue
        reason = _why_stored(candidate, mode)
        if reason:
            tell(candidate, "math", reason)
        else:
            chosen.append(candidate)
    while True:
        refused = {c.node: _why_read(c, chosen, users, outside) for c in chosen}
        for candidate in chosen:
            if refused[candidate.node]:
                tell(candidate, "math", refused[candidate.node])
        if not any(refused.values()):
            break
        chosen = [c for c in chosen if not refused[c.node]]
    found = _Found()
    for candidate in chosen:
        *_, rows, keys = _first(candidate.products).shape
        tell(candidate, "flash", f"{rows} x {keys} scores are not stored")
        found.products |= candidate.products
        if candidate.turned:
            found.turned.add(candidate.node)
        if candidate.weights is not None:
            softmax = candidate.weights.softmax
            found.attends[candidate.node] = candidate.weights
            found.statistics[softmax.top] = candidate.node, "max"
            found.statistics[softmax.total] = candidate.node, "sum"
    return found


def _why_stored(candidate: _Candidate, mode: AttentionKernel) -> str:
    """Why the scores of a candidate are better stored; "" if they are not."""
    if mode == "math":
        return "the option attention is math"
    *_, rows, keys = _first(candidate.products).shape
    if any(n.dtype.compute is not DType.F32 for n in (candidate.node, *candidate.products)):
        return "tensor cores take no double precision"
    if candidate.weights is not None:
        dtype = candidate.weights.softmax.scores.dtype
        if dtype is not DType.F32:
            return f"the softmax is in {dtype}"
    widths = [n.inputs[0].shape[-1] for n in candidate.products]
    if candidate.node.op == "matmul":  # else a sum of rows
        widths.append(candidate.node.shape[-1])
    if any(not isinstance(w, int) for w in widths):
        return "the size of a head changes"
    if any(_at_most(_MAX_WIDTH, w) and w != _MAX_WIDTH for w in widths):
        return f"a head of {max(w for w in widths if isinstance(w, int))} does not fit a tile"
    if candidate.node.op == "matmul" and any(
        _adds_up(candidate.node, product) for product in candidate.products
    ):
        return "one product adds up what several matrices of scores give"
    if _at_most(keys, 1) or _at_most(rows, 1):
        return "there is one query, or one key"
    if mode == "auto" and (_at_most(rows, _TILE - 1) or _at_most(keys, _TILE - 1)):
        return f"{rows} x {keys} scores do not fill a tile"
    return ""


def _adds_up(node: Node, product: Node) -> bool:
    """Whether a product sums over matrices of another one whose factors are others for each of them: neither could stay
    while a kernel goes through them."""
    here, there = (numel(n.shape[:-2]) for n in (node, product))
    summed = node.inputs[0].shape[-1]
    # Else matrices are rows of the product, and nothing of several is added.
    more = here != there and is_nonneg(there - here) and summed not in product.shape[-2:]
    return more and not any(map(_is_expanded, product.inputs))


def _is_expanded(x: Node) -> bool:
    while x.op in ("reshape", "permute", "cast"):
        x = x.inputs[0]
    return x.op == "expand"


def _first(nodes: set[Node]) -> Node:
    return min(nodes, key=lambda n: n.id)


def _at_most(size: Dim, limit: Dim) -> bool:
    return isinstance(size, int) and isinstance(limit, int) and size <= limit


def _why_read(
    candidate: _Candidate,
    chosen: Sequence[_Candidate],
    users: dict[Node, list[Node]],
    outside: set[Node],
) -> str:
    """Why the values between its products must be in memory after all; "" if they need not."""
    inside: set[Node] = set()
    if any(other.node in candidate.products for other in chosen):
        return "the scores are made of others, by a product"
    for other in chosen:
        inside |= other.between | other.products
        inside.add(other.node)
        if other.weights is not None:
            inside |= _of_softmax(other.weights, other.node)
    mine = candidate.between | candidate.products
    if candidate.weights is not None:
        softmax = candidate.weights.softmax
        mine |= _of_softmax(candidate.weights, candidate.node) - {softmax.top, softmax.total}
    for node in sorted(mine, key=lambda n: n.id):
        if node in outside:
            return f"{_what(node, candidate)} are a result"
        for user in users[node]:
            if user not in inside:
                return f"{_what(node, candidate)} are read by {user.op}"
    if candidate.weights is not None:
        return _why_not_attend(candidate, candidate.weights, users, outside)
    return ""


def _what(node: Node, candidate: _Candidate) -> str:
    scored = node in candidate.between or node in candidate.products
    return "the scores" if scored else "the weights"


def _of_softmax(weights: Weights, product: Node) -> set[Node]:
    """The values from the scores to the operand of a product."""
    softmax = weights.softmax
    found = {softmax.top, softmax.total}
    todo = [product.inputs[0], *softmax.checks]
    while todo:
        node = todo.pop()
        if node in found or node is softmax.scores:
            continue
        found.add(node)
        if node.spec.has(Trait.REDUCTION):
            todo += node.inputs
        else:
            todo += [n for n in node.inputs if _reaches(n, softmax.scores, set())]
    return found


def _reaches(node: Node, source: Node, seen: set[Node]) -> bool:
    """Whether a node is computed from ``source`` by ops that keep all its elements."""
    if node is source:
        return True
    if node in seen or not _is_elementwise(node) or node.id < source.id:
        return False
    seen.add(node)
    return any(_reaches(n, source, seen) for n in node.inputs)


def _why_not_attend(
    candidate: _Candidate,
    weights: Weights,
    users: dict[Node, list[Node]],
    outside: set[Node],
) -> str:
    softmax = weights.softmax
    rows = {softmax.top, softmax.total}
    v = candidate.node.inputs[1]
    if depends_on(v, rows) or any(depends_on(f, rows) for f, _ in weights.factors):
        return "what is attended to depends on the scores"
    inside = _of_softmax(weights, candidate.node)
    if any(view.op != "reshape" for view in weights.views):
        for row in rows:
            if row in outside or not _only_for(row, inside, users, outside):
                return "its rows are read in another shape"
    return ""


def _only_for(
    row: Node, inside: set[Node], users: dict[Node, list[Node]], outside: set[Node]
) -> bool:
    """Whether a statistic of rows is read by the softmax alone."""
    todo = list(users[row])
    while todo:
        node = todo.pop()
        if node in inside:
            continue
        if node in outside or not _is_elementwise(node):
            return False
        todo += users[node]
    return True


# --- rewriting ------------------------------------------------------------------------------------


def _rewrite_product(found: _Found, b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    if node in found.attends:
        return _attend(b, node, found.attends[node])
    if node in found.turned:  # so that kernels with the same weights are alike
        first, second = (_transposed(b, n) for n in x)
        return _transposed(b, b.emit("matmul", second, first))
    return _dot(b, node, x) if node in found.products else None


def _transposed(b: Rewriter, x: Node) -> Node:
    rank = len(x.shape)
    dims = (*range(rank - 2), rank - 1, rank - 2)
    if x.op == "permute" and x.attrs.dims == dims:
        return x.inputs[0]
    return b.emit("permute", x, attrs=A.PermuteAttrs(dims))


def _dot(b: Rewriter, node: Node, x: Sequence[Node]) -> Node:
    first, second = x
    *batch, m, k = first.shape
    n = second.shape[-1]
    left = b.reshape(stored_factor(b, first), (*batch, m, 1, k))
    right = b.reshape(stored_factor(b, _transposed(b, second)), (*batch, 1, n, k))
    shape = (*batch, m, n, k)
    return b.cast(b.emit("dot", b.expand(left, shape), b.expand(right, shape)), node.dtype)


def _scores(b: Rewriter, weights: Weights) -> Node:
    return _viewed(b, b.new[weights.softmax.scores], weights.views)


def _viewed(b: Rewriter, x: Node, views: Sequence[Node]) -> Node:
    for view in views:
        x = b.emit(view.op, x, attrs=view.attrs)
    return x


def _attend(b: Rewriter, node: Node, weights: Weights) -> Node:
    v = b.new[node.inputs[1]]
    narrow = _narrow(b, v, weights.rounded)
    inputs = [_scores(b, weights), v if narrow is None else narrow]
    factor: Node | None = None
    for value, done in weights.factors:
        found = _viewed(b, b.cast(b.new[value], DType.F32), weights.views[done:])
        factor = found if factor is None else b.emit("mul", factor, found)
    if factor is not None:
        inputs.append(factor)
    attrs = A.AttendAttrs(weights.softmax.empty)
    return b.cast(b.emit("attend", *inputs, attrs=attrs), node.dtype)


def _narrow(b: Rewriter, x: Node, half: DType | None) -> Node | None:
    """What was widened from the type ``half``, as the other factor was; None if nothing was."""
    if x.op == "cast":
        return x.inputs[0] if x.inputs[0].dtype is half else None
    if x.op in ("reshape", "expand", "permute"):
        found = _narrow(b, x.inputs[0], half)
        return None if found is None else b.emit(x.op, found, attrs=x.attrs)
    return None


def _rewrite_statistic(found: _Found, b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    """A reduction of the softmax, for whoever else reads it."""
    if node not in found.statistics:
        return None
    product, kind = found.statistics[node]
    weights = found.attends[product]
    attrs = A.RowStatisticAttrs(kind, weights.softmax.empty)
    if any(view.op != "reshape" for view in weights.views):
        scores = b.new[weights.softmax.scores]  # read by the softmax alone, and so not at all
    else:
        scores = _scores(b, weights)
    return b.reshape(b.emit("row_statistic", scores, attrs=attrs), node.shape)
