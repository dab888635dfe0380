"""How a joint graph is cut into forward and backward: by torch's min-cut partitioner, after changes of ours.

CUDA's attention operators hand the seed of their dropout from forward to backward, as numbers that a Graph has no
type for. Without dropout nothing reads it (with dropout, see ``dropout_attention.py``):

    before   out, lse, ..., seed, offset = attention(q, k, v, 0.0)    attention_backward(..., seed, offset)
    after    out, lse, ... = attention(q, k, v, 0.0)                  attention_backward(..., zeros, zeros)
"""

from __future__ import annotations

from typing import Any

import torch
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule, Node

from lazyc.frontend.dropout_attention import draw_for_attention
from lazyc.frontend.recompute import Recompute, make_masks_again, partition_with_attention

_ATEN = torch.ops.aten
_BACKWARD = frozenset({
    _ATEN._scaled_dot_product_flash_attention_backward.default,
    _ATEN._scaled_dot_product_efficient_attention_backward.default,
    _ATEN._scaled_dot_product_cudnn_attention_backward.default,
})  # fmt: skip
SEEDS = frozenset({"philox_seed", "philox_offset"})


def partition(
    joint: GraphModule,
    inputs: Any,
    recompute: Recompute | None = None,
    has_products: bool = False,
    **options: Any,
) -> Any:
    """The forward and the backward graph. ``recompute``: which hand-written attention is computed again in the
    latter. ``has_products`` as in ``import_graph``."""
    if has_products:
        draw_for_attention(joint)
    drop_seeds(joint)
    make_masks_again(joint)
    if recompute is not None:
        return partition_with_attention(joint, inputs, recompute, **options)
    return min_cut_rematerialization_partition(joint, inputs, **options)


def drop_seeds(joint: GraphModule) -> int:
    """Replaces the seeds of backward passes of attention without dropout, in place; how many there were."""
    found = 0
    for node in joint.graph.nodes:
        if node.target not in _BACKWARD:
            continue
        names = [a.name for a in node.target._schema.arguments]
        if _argument(node, names, "dropout_p") != 0:
            continue
        like = _argument(node, names, "query")
        for name in SEEDS:
            seed = _argument(node, names, name)
            if isinstance(seed, Node):
                _set_argument(node, names, name, _zeros(node, seed, like))
                found += 1
    if found:
        joint.graph.lint()
        joint.recompile()
    return found


def _zeros(before: Node, seed: Node, like: Node) -> Node:
    """Zeros of the type of ``seed``, where ``like`` is."""
    value, place = seed.meta["val"], like.meta["val"]
    options = {"dtype": value.dtype, "device": place.device}
    with before.graph.inserting_before(before):
        made = before.graph.call_function(_ATEN.zeros.default, (list(value.shape),), options)
    made.meta = {"val": place.new_empty(value.shape, dtype=value.dtype)}
    return made


def _argument(node: Node, names: list[str], name: str) -> Any:
    at = names.index(name)
    return node.args[at] if at < len(node.args) else node.kwargs.get(name)


def _set_argument(node: Node, names: list[str], name: str, value: Node) -> None:
    at = names.index(name)
    if at < len(node.args):
        node.update_arg(at, value)
    else:
        node.update_kwarg(name, value)
