"""Lowering of the attention operators of CUDA: those of FlashAttention, of CUTLASS and of cuDNN.

They are one computation (``lowerings_attention.py``). What differs, besides arguments: the logsumexp is (B, H, Sq), with
rows filled up to a multiple of 32 for CUTLASS, and (B, H, Sq, 1) for cuDNN. Seeds of dropout are results that are left
out here: without dropout nothing reads them (``partition.py``), and with dropout that is trained these operators are
replaced (``dropout_attention.py``).
"""

from __future__ import annotations

from typing import Any

import sympy

from lazyc.frontend.draws import own_seed
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.lowerings_attention import attention, gradients
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim

_WIDEST = 256  # head that attention without stored scores takes (passes/attention.py)
_ROWS = 32  # to a multiple of which CUTLASS fills up the logsumexp


def _check(q: Node, k: Node, v: Node, is_causal: bool = False) -> None:
    """Raises NotLowered for what stays with the library. ``is_causal``: the mask is not that of ours where there
    are more keys than queries, or fewer."""
    for x in (q, v):
        width = x.shape[3]
        if not isinstance(width, int) or width > _WIDEST:
            raise NotLowered(f"heads of width {width}: library attention")
    if is_causal and q.shape[2] != k.shape[2]:
        raise NotLowered("causal attention of unequal lengths: library attention")


def _seed(b: Builder, q: Node, dropout_p: float) -> Node | None:
    """The seed of a dropout without gradients. With them the library's is wanted, and these lowerings are not
    (``dropout_attention.py`` has other operators for that)."""
    if not 0 < dropout_p < 1 or not b.has_products:
        return None
    return own_seed(b, q.tensor.device)


@lowers("lazyc.attention.default")
def dropped_attention(
    b: Builder, q: Node, k: Node, v: Node, bias: Node | None, seed: Node, p: float, is_causal: bool,
    scale: float | None, order: Any,
) -> tuple[Node, Node]:  # fmt: skip
    return attention(b, q, k, v, p, is_causal, attn_mask=bias, scale=scale, seed=seed)


@lowers("lazyc.attention_backward.default")
def dropped_attention_backward(
    b: Builder, grad: Node, q: Node, k: Node, v: Node, bias: Node | None, out: Node,
    logsumexp: Node, seed: Node, p: float, is_causal: bool, scale: float | None, orders: Any,
) -> tuple[Node, ...]:  # fmt: skip
    return gradients(
        b, grad, (q, k, v), out, logsumexp, p, is_causal, mask=bias, scale=scale, seed=seed
    )[:3]


@lowers("aten._scaled_dot_product_flash_attention.default")
def flash_attention(
    b: Builder,
    q: Node,
    k: Node,
    v: Node,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Result, logsumexp (B, H, Sq), two Nones, lengths, then seeds and a mask for debugging."""
    _check(q, k, v, is_causal)
    seed = _seed(b, q, dropout_p)
    found = attention(
        b, q, k, v, dropout_p, is_causal, attn_mask=None, scale=scale, seed=seed
    )  # fmt: skip
    return (*found, None, None, q.shape[2], k.shape[2], None, None, None)


@lowers("aten._scaled_dot_product_flash_attention_backward.default")
def flash_attention_backward(
    b: Builder,
    grad: Node,
    q: Node,
    k: Node,
    v: Node,
    out: Node,
    logsumexp: Node,
    cum_seq_q: Any,
    cum_seq_k: Any,
    max_q: Dim,
    max_k: Dim,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Any,
    philox_offset: Any,
    *,
    scale: float | None = None,
) -> tuple[Node, ...]:
    _check(q, k, v, is_causal)
    return gradients(
        b, grad, (q, k, v), out, logsumexp, dropout_p, is_causal, mask=None, scale=scale
    )[:3]


@lowers("aten._scaled_dot_product_efficient_attention.default")
def efficient_attention(
    b: Builder,
    q: Node,
    k: Node,
    v: Node,
    attn_bias: Node | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Result, logsumexp (B, H, Sq filled up, or 0 where it is not wanted), then seeds."""
    _check(q, k, v)
    seed = _seed(b, q, dropout_p)
    out, rows = attention(
        b, q, k, v, dropout_p, is_causal, attn_mask=attn_bias, scale=scale, seed=seed
    )  # fmt: skip
    length = q.shape[2]
    if compute_log_sumexp:
        rows = b.pad(rows, (0, 0, 0), (0, 0, _filled(length) - length), 0.0)
    else:
        rows = b.slice(rows, 2, 0, 0)
    return out, rows, None, None


def _filled(length: Dim) -> Dim:
    if isinstance(length, int):
        return -(-length // _ROWS) * _ROWS
    return _ROWS * sympy.ceiling(length / _ROWS)


@lowers("aten._scaled_dot_product_efficient_attention_backward.default")
def efficient_attention_backward(
    b: Builder,
    grad: Node,
    q: Node,
    k: Node,
    v: Node,
    attn_bias: Node | None,
    out: Node,
    logsumexp: Node,
    philox_seed: Any,
    philox_offset: Any,
    dropout_p: float,
    grad_input_mask: tuple[bool, ...],
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Node | None, ...]:
    _check(q, k, v)
    rows = b.slice(logsumexp, 2, 0, q.shape[2])
    *found, of_scores = gradients(
        b, grad, (q, k, v), out, rows, dropout_p, is_causal, mask=attn_bias, scale=scale
    )
    if attn_bias is None or not grad_input_mask[3]:
        return (*found, None)
    if attn_bias.shape != of_scores.shape:
        raise NotLowered("the gradient of a bias that is not of the scores' shape")
    return (*found, b.cast(of_scores, attn_bias.dtype))


@lowers("aten._scaled_dot_product_cudnn_attention.default")
def cudnn_attention(
    b: Builder,
    q: Node,
    k: Node,
    v: Node,
    attn_bias: Node | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Result, logsumexp (B, H, Sq, 1), two Nones, lengths, then seeds and a mask for debugging."""
    _check(q, k, v, is_causal)
    seed = _seed(b, q, dropout_p)
    out, rows = attention(
        b, q, k, v, dropout_p, is_causal, attn_mask=attn_bias, scale=scale, seed=seed
    )  # fmt: skip
    lengths = q.shape[2], k.shape[2]
    return (out, b.unsqueeze(rows, 3), None, None, *lengths, None, None, None)


@lowers("aten._scaled_dot_product_cudnn_attention_backward.default")
def cudnn_attention_backward(
    b: Builder,
    grad: Node,
    q: Node,
    k: Node,
    v: Node,
    out: Node,
    logsumexp: Node,
    philox_seed: Any,
    philox_offset: Any,
    attn_bias: Node | None,
    cum_seq_q: Any,
    cum_seq_k: Any,
    max_q: Dim,
    max_k: Dim,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None = None,
) -> tuple[Node, ...]:
    _check(q, k, v, is_causal)
    rows = b.squeeze(logsumexp, 3)
    return gradients(
        b, grad, (q, k, v), out, rows, dropout_p, is_causal, mask=attn_bias, scale=scale
    )[:3]
