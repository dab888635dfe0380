"""Attention of CUDA's libraries with dropout, on a seed of lazyc's own.

    before   out, lse, ..., seed, offset = attention(q, k, v, 0.1)   grads = attention_backward(..., seed, offset)
    after    seed = dropout_seed(device, k)
             out, lse = lazyc.attention(q, k, v, seed)        grads = lazyc.attention_backward(..., seed)

The library's masks are the library's secret, so that both directions have to be its own or neither. These operators
are lowered (``lowerings_cuda_attention.py``); run in eager they give the same numbers, with stored scores.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from lazyc.frontend.dropout import dropout_mask, kept_seed

_ATEN = torch.ops.aten
Tensor = torch.Tensor


# --- the operators --------------------------------------------------------------------------------


def _factor(q: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[3]) if scale is None else scale  # 0.0 is a scale


def _scores(
    q: Tensor, k: Tensor, bias: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    """(B, H, Sq, Sk) in single precision; k has the heads of q."""
    found = q.float() @ k.float().transpose(-1, -2) * _factor(q, scale)
    if bias is not None:
        found = found + bias
    if is_causal:
        hidden = torch.ones(found.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        found = found.masked_fill(hidden, -math.inf)
    return found


def _repeated(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], 1)


def _summed(x: Tensor, heads: int) -> Tensor:
    """The reverse of ``_repeated``, for gradients."""
    return x.unflatten(1, (heads, -1)).sum(2)


def _empty(like: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """A tensor whose dims lie in memory in this order, the outermost first."""
    place = sorted(range(len(order)), key=order.__getitem__)
    return like.new_empty([shape[d] for d in order]).permute(place)


@torch.library.custom_op("lazyc::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, seed: Tensor, p: float, is_causal: bool,
    scale: float | None, order: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result (B, H, Sq, D), laid out in ``order``, and the logsumexp of each row (B, H, Sq) in single precision.
    A row that sees no key gives zeros and 0."""
    k, v = (_repeated(x, q.shape[1]) for x in (k, v))
    scores = _scores(q, k, bias, is_causal, scale)
    rows = scores.logsumexp(-1)
    rows = rows.masked_fill(rows == -math.inf, 0.0)
    weights = (scores - rows[..., None]).exp() * dropout_mask(seed, scores, p) / (1 - p)
    found = weights.to(q.dtype).float() @ v.float()
    return _empty(q, found.shape, order).copy_(found), rows


@attention.register_fake
def _(q, k, v, bias, seed, p, is_causal, scale, order):  # type: ignore[no-untyped-def]
    out = _empty(q, (*q.shape[:3], v.shape[3]), order)
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("lazyc::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor,
    logsumexp: Tensor, seed: Tensor, p: float, is_causal: bool, scale: float | None,
    orders: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v; ``orders``: of the dims of each, one after another."""
    heads, kv_heads = q.shape[1], k.shape[1]
    wide_k, wide_v = (_repeated(x, heads).float() for x in (k, v))
    weights = (_scores(q, wide_k, bias, is_causal, scale) - logsumexp[..., None]).exp()
    factor = dropout_mask(seed, weights, p) / (1 - p)
    grad_weights = grad.float() @ wide_v.transpose(-1, -2) * factor
    delta = (grad.float() * out.float()).sum(-1, keepdim=True)
    grad_scores = weights * (grad_weights - delta) * _factor(q, scale)
    found = (
        grad_scores @ wide_k,
        _summed(grad_scores.transpose(-1, -2) @ q.float(), kv_heads),
        _summed((weights * factor).transpose(-1, -2) @ grad.float(), kv_heads),
    )
    made = [_empty(q, x.shape, orders[4 * n : 4 * n + 4]).copy_(x) for n, x in enumerate(found)]
    return made[0], made[1], made[2]


@attention_backward.register_fake
def _(grad, q, k, v, bias, out, logsumexp, seed, p, is_causal, scale, orders):  # type: ignore[no-untyped-def]
    made = [_empty(x, x.shape, orders[4 * n : 4 * n + 4]) for n, x in enumerate((q, k, v))]
    return made[0], made[1], made[2]


# --- in place of the library's --------------------------------------------------------------------

_BACKWARD: dict[Any, Any] = {
    _ATEN._scaled_dot_product_flash_attention.default:
        _ATEN._scaled_dot_product_flash_attention_backward.default,
    _ATEN._scaled_dot_product_efficient_attention.default:
        _ATEN._scaled_dot_product_efficient_attention_backward.default,
    _ATEN._scaled_dot_product_cudnn_attention.default:
        _ATEN._scaled_dot_product_cudnn_attention_backward.default,
}  # fmt: skip
_ANY_LENGTHS = _ATEN._scaled_dot_product_efficient_attention.default
_WIDEST = 256  # head that attention without stored scores takes (passes/attention.py)


def draw_for_attention(joint: GraphModule) -> int:
    """Puts lazyc's operators in place of each attention with dropout in a joint graph that is differentiated
    there and that will be lowered; how many there were."""
    found = 0
    for node in list(joint.graph.nodes):
        if node.op == "call_function" and node.target in _BACKWARD:
            backward = _backward_of(node)
            if backward is not None and _is_taken(node, backward):
                _replace(node, backward)
                found += 1
    if found:
        joint.graph.lint()
        joint.recompile()
    return found


def _named(node: Node) -> dict[str, Any]:
    """The arguments of a call by their names in the schema, those left out as their defaults."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    given = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in arguments), node.args, strict=False))
    return {**given, **node.kwargs}


def _backward_of(node: Node) -> Node | None:
    """The call that gives the gradients of an attention; None unless it alone reads what is no result."""
    users = {u for part in node.users if part.args[1] != 0 for u in part.users}
    if any(part.target is not operator.getitem for part in node.users) or len(users) != 1:
        return None
    (user,) = users
    return user if user.target is _BACKWARD[node.target] else None


def _is_taken(node: Node, backward: Node) -> bool:
    """Whether lowerings take both, and their results lie in memory in some order of their dims."""
    given = _named(node)
    q, k, v = (given[n].meta["val"] for n in ("query", "key", "value"))
    known = [*(x.shape[3] for x in (q, v)), *(x.shape[1] for x in (q, k))]
    if not 0 < given["dropout_p"] < 1 or not all(isinstance(n, int) for n in known):
        return False
    if max(q.shape[3], v.shape[3]) > _WIDEST or not q.dtype == k.dtype == v.dtype:
        return False
    if q.dtype is torch.float64 or 0 in (q.shape[2], k.shape[2]):
        return False
    if given["is_causal"] and node.target is not _ANY_LENGTHS and q.shape[2] != k.shape[2]:
        return False
    wanted = _named(backward).get("grad_input_mask", [True] * 3 + [False])
    if given.get("attn_bias") is not None and wanted[3]:
        return False
    results = [node.meta["val"][0], *backward.meta["val"][:3]]
    return all(_order(x) is not None for x in results)


def _order(value: Tensor) -> list[int] | None:
    """The dims from the outermost to the innermost in memory; None where they leave gaps, or may change."""
    strides = value.stride()
    if not all(isinstance(s, int) for s in strides):
        return None
    order = sorted(range(value.dim()), key=lambda d: -strides[d])
    step: Any = 1
    for d in reversed(order):
        if value.shape[d] != 1 and strides[d] != step:
            return None
        step = step * value.shape[d]
    return order


def _replace(node: Node, backward: Node) -> None:
    graph, given = node.graph, _named(node)
    q, k, v, bias = (given.get(n) for n in ("query", "key", "value", "attn_bias"))
    p, is_causal, scale = given["dropout_p"], given["is_causal"], given["scale"]

    def add(like: Node, target: Any, *args: Any) -> Node:
        made = graph.call_function(target, args)
        values = [a.meta["val"] if isinstance(a, Node) else a for a in args]
        made.meta = {**like.meta, "val": target(*values)}
        return made

    ops = torch.ops.lazyc
    assert isinstance(q, Node)
    seed = kept_seed(node, q.meta["val"])
    with graph.inserting_before(node):
        order = _order(node.meta["val"][0])
        made = add(node, ops.attention.default, q, k, v, bias, seed, p, is_causal, scale, order)
        made.meta.setdefault("recompute", CheckpointPolicy.MUST_SAVE)  # unless in a checkpoint
        out, rows = (add(node, operator.getitem, made, n) for n in range(2))
    grad = backward.args[0]
    orders = [d for x in backward.meta["val"][:3] for d in _order(x) or ()]
    with graph.inserting_before(backward):
        grads = add(
            backward, ops.attention_backward.default, grad, q, k, v, bias, out, rows, seed, p,
            is_causal, scale, orders,
        )  # fmt: skip
    backward.replace_all_uses_with(grads)
    graph.erase_node(backward)
    for part in list(node.users):
        if part.args[1] == 0:
            part.replace_all_uses_with(out)
        graph.erase_node(part)
    graph.erase_node(node)
