"""Attention written by hand keeps a number for each query between forward and backward, not its weights.

    before   p = _softmax(s)                       saved for the backward pass: p
    after    lse = amax(s) + log(sum(exp(s - amax(s))))   p = exp(s - lse)     saved: lse; s and p are computed again

AOTAutograd's partitioner would rather save a softmax than compute the products before it again. For
attention that is the wrong way round (T. Dao et al., "FlashAttention", 2022, section 3.1): on targets whose
kernels compute scores where they are read, ``p`` and ``s`` need no memory at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

_ATEN = torch.ops.aten
_VIEWS = frozenset({
    _ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.reshape.default, _ATEN.expand.default,
    _ATEN.permute.default, _ATEN.transpose.int, _ATEN.t.default, _ATEN.unsqueeze.default,
    _ATEN.squeeze.dim, _ATEN.clone.default, _ATEN._to_copy.default, _ATEN.alias.default,
    _ATEN.detach.default, _ATEN.slice.Tensor,
})  # fmt: skip
_PRODUCTS = frozenset({_ATEN.bmm.default, _ATEN.mm.default})
_LEAST, _WIDEST = (
    16,
    256,
)  # keys and queries of a tile, and the width of a head (passes/attention.py)


def partition_with_attention(joint: GraphModule, inputs: Any, **options: Any) -> Any:
    """As ``min_cut_rematerialization_partition``, which it calls."""
    keep_rows_of_attention(joint)
    return min_cut_rematerialization_partition(joint, inputs, **options)


def keep_rows_of_attention(joint: GraphModule) -> int:
    """Rewrites the softmax of each attention in a joint graph, in place; how many there were."""
    backward = _depends_on_tangents(joint)
    found = 0
    for node in list(joint.graph.find_nodes(op="call_function", target=_ATEN._softmax.default)):
        if node in backward or not _is_over_rows(node):
            continue
        before = _chain(node.args[0], lambda n: n.all_input_nodes)
        after = _chain(node, lambda n: [u for u in n.users if u not in backward])
        if not any(_is_of_scores(n) for n in before) or not any(
            n.target in _PRODUCTS for n in after
        ):
            continue
        weights = _from_logsumexp(node)
        again = {n for n in before if n.target in _PRODUCTS or _is_elementwise(n)}
        again |= {n for n in after if _is_elementwise(n)} | weights
        for other in again - {node}:
            other.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        found += 1
    if found:
        joint.graph.lint()
        joint.recompile()
    return found


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
    return target in _VIEWS or torch.Tag.pointwise in target.tags


def _chain(start: Any, step: Callable[[Node], Any]) -> set[Node]:
    """The nodes from one to the next products, these included, by way of elementwise ops and views of
    values with as many rows."""
    found: set[Node] = set()
    todo = [start]
    while todo:
        node = todo.pop()
        if node in found or not isinstance(node, Node) or node.op != "call_function":
            continue
        found.add(node)
        if node is start or _is_elementwise(node):
            todo += step(node)
    return found


def _value(node: Any) -> torch.Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def _is_over_rows(softmax: Node) -> bool:
    scores, weights = _value(softmax.args[0]), _value(softmax)
    if scores is None or weights is None or scores.dim() < 2 or scores.dtype is torch.float64:
        return False
    sizes = scores.shape[-2:]
    large = all(isinstance(n, int) and n >= _LEAST for n in sizes)
    return large and softmax.args[1] in (-1, scores.dim() - 1)


def _is_of_scores(node: Node) -> bool:
    if node.target not in _PRODUCTS:
        return False
    factor = _value(node.args[0])
    width = None if factor is None else factor.shape[-1]
    return isinstance(width, int) and width <= _WIDEST


def _from_logsumexp(softmax: Node) -> set[Node]:
    """Puts exp(scores - logsumexp) in place of a softmax; the new nodes but for those of rows."""
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
        wide = add(_ATEN._to_copy.default, scores, dtype=torch.float32)
        if _value(scores) is not None and _value(scores).dtype is torch.float32:  # type: ignore[union-attr]
            graph.erase_node(wide)
            wide = scores
        top = add(_ATEN.amax.default, wide, [-1], True)
        shifted = add(_ATEN.sub.Tensor, wide, top)
        parts = add(_ATEN.exp.default, shifted)
        total = add(_ATEN.sum.dim_IntList, parts, [-1], True)
        lse = add(_ATEN.add.Tensor, top, add(_ATEN.log.default, total))
        lse.meta["recompute"] = CheckpointPolicy.MUST_SAVE
        found = [add(_ATEN.sub.Tensor, wide, lse)]
        found.append(add(_ATEN.exp.default, found[-1]))
        if weights.dtype is not torch.float32:
            found.append(add(_ATEN._to_copy.default, found[-1], dtype=weights.dtype))
    softmax.replace_all_uses_with(found[-1])
    graph.erase_node(softmax)
    return {*found, wide}
