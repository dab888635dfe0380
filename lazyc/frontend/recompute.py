"""Attention written by hand keeps two numbers for each query between forward and backward, not its weights.

    before   p = _softmax(s)   d, kept = native_dropout(p)       saved for the backward pass: p and kept
    after    top = amax(s)   total = sum(exp(s - top))   p = exp(s - top) / total
             kept = dropout_mask(seed)   d = p * kept * scale
             saved: top, total and the seed; s, p and kept are computed again

AOTAutograd's partitioner would rather save a softmax than compute the products before it again. For
attention that is the wrong way round (T. Dao et al., "FlashAttention", 2022, section 3.1): on targets whose
kernels compute scores where they are read, ``p`` and ``s`` need no memory at all, and on the CPU that of a block of
rows. It takes as long as to write and read them there, so that what caches hold is kept. The logsumexp would be one
number instead of two, but exp(s - lse) has an error that grows with the scores.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from lazyc.frontend.dropout import dropped_mask

_ATEN = torch.ops.aten
_VIEWS = frozenset({
    _ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.reshape.default, _ATEN.expand.default,
    _ATEN.permute.default, _ATEN.transpose.int, _ATEN.t.default, _ATEN.unsqueeze.default,
    _ATEN.squeeze.dim, _ATEN.clone.default, _ATEN._to_copy.default, _ATEN.alias.default,
    _ATEN.detach.default, _ATEN.slice.Tensor,
})  # fmt: skip
# Matrix products, and which argument is the first factor.
_PRODUCTS: dict[Any, int] = {
    _ATEN.bmm.default: 0, _ATEN.mm.default: 0, _ATEN.baddbmm.default: 1, _ATEN.addmm.default: 1,
}  # fmt: skip
_SOFTMAXES = frozenset({_ATEN._softmax.default, _ATEN._safe_softmax.default})
_DROPOUT = frozenset({_ATEN.native_dropout.default, operator.getitem})
_TRIANGLES = frozenset({_ATEN.tril.default, _ATEN.triu.default})


@dataclass(frozen=True, slots=True)
class Recompute:
    """Which attentions are computed again: of ``least`` queries and keys, with heads of ``widest`` at most
    and scores of ``least_bytes`` in the type that they are computed in; ``doubles``: also in double precision.
    Where half types are multiplied: of what ``least_half_bytes`` has for the type, and if these are not 0, of sizes
    that are known."""

    doubles: bool = False
    least: int = 1
    widest: int | None = None
    least_bytes: int = 0
    least_half_bytes: Mapping[torch.dtype, int] = field(default_factory=dict)


# Where kernels compute scores: they have tiles of these sizes (passes/attention.py).
IN_TILES = Recompute(least=16, widest=256)
# Elsewhere: what would be kept is more than caches hold, and runs by blocks of rows then (runtime/blocks.py). In half
# types that may take a quarter longer than to keep it, so that only what is large goes: ``least_half_bytes`` is to be that
# of products which can run by blocks (passes/half_products.py).
BY_ROWS = Recompute(doubles=True, least_bytes=4 << 20)


def partition_with_attention(
    joint: GraphModule, inputs: Any, which: Recompute, **options: Any
) -> Any:
    """As ``min_cut_rematerialization_partition``, which it calls."""
    keep_rows_of_attention(joint, which)
    return min_cut_rematerialization_partition(joint, inputs, **options)


def keep_rows_of_attention(joint: GraphModule, which: Recompute = IN_TILES) -> int:
    """Rewrites the softmax of each attention in a joint graph, in place; how many there were."""
    backward = _depends_on_tangents(joint)
    found = 0
    for node in [n for n in joint.graph.nodes if n.target in _SOFTMAXES]:
        if node in backward or not _is_over_rows(node, which):
            continue
        before = _chain(node.args[0], lambda n: n.all_input_nodes, through=_TRIANGLES)
        forward = partial(_forward_users, backward)
        reached = _chain(node, forward, through=_DROPOUT)
        if not any(_is_of_scores(n, which) for n in before) or not any(
            n.target in _PRODUCTS for n in reached
        ):
            continue
        _open_dropout(reached)
        after = _chain(node, forward)
        weights = _from_rows(node)
        again = {n for n in before if n.target in _PRODUCTS or _is_cheap(n)}
        again |= {n for n in after if _is_elementwise(n)} | weights
        for other in again - {node}:
            other.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        found += 1
    if found:
        joint.graph.lint()
        joint.recompile()
    return found


def make_masks_again(joint: GraphModule) -> int:
    """Has the backward pass make the masks of torch's attention again that come from something smaller, as
    ``F.scaled_dot_product_attention`` makes floats of a mask of bools; how many there were."""
    found: set[Node] = set()
    for node in joint.graph.nodes:
        mask = _mask_of(node)
        if mask is None:
            continue
        again: set[Node] = set()
        sources: set[Node] = set()
        todo = [mask]
        while todo:
            part = todo.pop()
            if part in again or part in sources:
                continue
            if part.op == "call_function" and _is_cheap(part):
                again.add(part)
                todo += part.all_input_nodes
            else:
                sources.add(part)
        if again and sum(map(_bytes, sources)) < _bytes(mask):
            found.add(mask)
            for part in again:
                part.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    return len(found)


def _mask_of(node: Node) -> Node | None:
    """The mask that a node, an attention of torch's, adds to scores."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name in ("attn_mask", "attn_bias"):
            given = node.args[position] if position < len(node.args) else None
            mask = node.kwargs.get(argument.name, given)
            return mask if isinstance(mask, Node) else None
    return None


def _bytes(node: Node) -> int:
    value = _value(node)
    return 0 if value is None else value.dtype.itemsize * math.prod(map(_likely, value.shape))


def _depends_on_tangents(joint: GraphModule) -> set[Node]:
    found: set[Node] = set()
    for node in joint.graph.nodes:
        if (node.op == "placeholder" and "tangents" in node.name) or any(
            n in found for n in node.all_input_nodes
        ):
            found.add(node)
    return found


def _is_elementwise(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return target in _VIEWS or torch.Tag.pointwise in target.tags


def _is_cheap(node: Node) -> bool:
    """Whether it is made where it is read: elementwise, or of positions alone, as causal masks are."""
    if _is_elementwise(node) or node.target in _TRIANGLES:
        return True
    target = node.target
    if node.all_input_nodes or not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags


def _chain(
    start: Any, step: Callable[[Node], Any], through: frozenset[Any] = frozenset()
) -> list[Node]:
    """The nodes from one to the next products, these included, by way of elementwise ops and views, and of
    those in ``through``."""
    found: dict[Node, None] = {}
    todo = [start]
    while todo:
        node = todo.pop()
        if node in found or not isinstance(node, Node) or node.op != "call_function":
            continue
        found[node] = None
        if node is start or _is_elementwise(node) or node.target in through:
            todo += step(node)
    return list(found)


def _forward_users(backward: set[Node], node: Node) -> list[Node]:
    return [u for u in node.users if u not in backward]


def _open_dropout(nodes: list[Node]) -> None:
    """Writes dropout of the weights as a product with a mask that both directions make from a seed."""
    for node in nodes:
        if node.target is not _ATEN.native_dropout.default:
            continue
        weights, probability, train = node.args
        results = {u.args[1]: u for u in node.users}
        if not isinstance(weights, Node) or not isinstance(probability, float) or train is not True:
            continue
        graph, mask = node.graph, dropped_mask(node, weights, probability)
        scale = 1 / (1 - probability) if probability < 1 else 0.0
        with graph.inserting_before(node):
            made = graph.call_function(_ATEN.mul.Tensor, (weights, mask))
            scaled = graph.call_function(_ATEN.mul.Scalar, (made, scale))
        for product in (made, scaled):
            product.meta = {**node.meta, "val": node.meta["val"][0]}
        for number, found in ((0, scaled), (1, mask)):
            if number in results:
                results[number].replace_all_uses_with(found)
                graph.erase_node(results[number])
        graph.erase_node(node)


def _value(node: Any) -> torch.Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def _is_over_rows(softmax: Node, which: Recompute) -> bool:
    scores, weights = _value(softmax.args[0]), _value(softmax)
    if scores is None or weights is None or scores.dim() < 2:
        return False
    if torch.float64 in (scores.dtype, weights.dtype) and not which.doubles:
        return False
    sizes = [_likely(n) for n in scores.shape]
    nbytes = _wide(scores.dtype).itemsize * math.prod(sizes)
    least_bytes = which.least_bytes
    if scores.dtype in (torch.float16, torch.bfloat16):
        least_bytes = which.least_half_bytes.get(scores.dtype, 0)
        if least_bytes and not all(isinstance(n, int) for n in scores.shape):
            return False
    large = sizes[-1] >= which.least and nbytes >= least_bytes
    return large and softmax.args[1] in (-1, scores.dim() - 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type that scores are made in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _likely(size: int | torch.SymInt) -> int:
    """A size, of one that changes what it is now; 0 where that is not known."""
    return size if isinstance(size, int) else size.node.hint or 0


def _is_of_scores(node: Node, which: Recompute) -> bool:
    if node.target not in _PRODUCTS:
        return False
    factor, scores = _value(node.args[_PRODUCTS[node.target]]), _value(node)
    if factor is None or scores is None:
        return False
    # Of the product: the softmax's own may be heads by keys, where queries of all heads are one factor's rows.
    if min(map(_likely, scores.shape[-2:])) < which.least:
        return False
    width = factor.shape[-1]
    return which.widest is None or (isinstance(width, int) and width <= which.widest)


def _from_rows(softmax: Node) -> set[Node]:
    """Puts exp(scores - top) / total in place of a softmax; the new nodes but for those of rows. A row of
    nothing but -inf is zeros where the softmax is safe."""
    graph, scores, weights = softmax.graph, softmax.args[0], _value(softmax)
    assert isinstance(scores, Node) and weights is not None

    def add(target: Any, *args: Any, **options: Any) -> Node:
        node = graph.call_function(target, args, options)
        node.meta = copy.copy(softmax.meta)
        node.meta["val"] = target(
            *(_value(a) if isinstance(a, Node) else a for a in args), **options
        )
        return node

    with graph.inserting_before(softmax):
        wide, value = scores, _value(scores)
        assert value is not None
        dtype = _wide(value.dtype)
        if value.dtype is not dtype:
            wide = add(_ATEN._to_copy.default, scores, dtype=dtype)
        top, hidden = add(_ATEN.amax.default, wide, [-1], True), None
        if softmax.target is _ATEN._safe_softmax.default:
            hidden = add(_ATEN.eq.Scalar, top, -math.inf)
            top = add(_ATEN.masked_fill.Scalar, top, hidden, 0.0)
        shifted = add(_ATEN.sub.Tensor, wide, top)
        parts = add(_ATEN.exp.default, shifted)
        total = add(_ATEN.sum.dim_IntList, parts, [-1], True)
        if hidden is not None:
            total = add(_ATEN.masked_fill.Scalar, total, hidden, 1.0)
        for row in (top, total):
            row.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        found = add(_ATEN.div.Tensor, parts, total)
        again = {wide, shifted, parts, found}
        if weights.dtype is not dtype:
            found = add(_ATEN._to_copy.default, found, dtype=weights.dtype)
            again.add(found)
    softmax.replace_all_uses_with(found)
    graph.erase_node(softmax)
    return again
