"""Lowering of scaled dot product attention, forward and backward, into products and a softmax.

``F.scaled_dot_product_attention`` becomes one of four operators, by device and what the GPU's libraries have:
one for CPUs, and on GPUs those of FlashAttention, of CUTLASS (memory-efficient attention) and of cuDNN. They differ in
the form of the logsumexp, and in what else they return. Seeds of their dropout are left out of the
results; dropout that is trained is another operator's (``dropout_attention.py``).

ATen's flash kernel for the CPU never stores the scores. Here they are values of the Graph, which lets the
mask, the scale and the softmax fuse; where they are many, a block of rows at a time is computed and used
(``passes/row_tiles.py``). Long sequences keep the library's kernel, except where kernels of the target
hold products (``passes/attention.py``) or the option ``attention`` says otherwise. Scores and softmax compute in f32 (f64 for f64); probabilities
are rounded to the inputs' type for the second product, as the library does.
"""

from __future__ import annotations

import math

from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.lowerings_distributions import dropout_mask
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim

# Above this many bytes of f32 scores the library's flash attention is used. It is faster there, though
# blocks of rows need no more memory: it skips blocks that a causal mask hides (4 heads of 64, 2048
# positions, one thread: 24 against 45 ms, trained 79 against 164), and is so by 15 % without one (2 heads,
# 4096 positions: 74 against 85 ms).
MAX_SCORE_BYTES = 64 << 20
# So it is above this many positions with a causal mask, for the same reason (12 heads of 64, two threads: 512
# positions 2.9 against 2.7 ms, 768 5.2 against 8.0, 1024 10.0 against 14.3; trained 12.5 / 11.5, 22 / 29, 35 / 49).
MAX_CAUSAL_ROWS = 512


def _check(b: Builder, q: Node, k: Node, v: Node, dropout_p: float, is_causal: bool) -> None:
    """Raises NotLowered for what stays with the library."""
    if dropout_p > 0:
        raise NotLowered("attention with dropout")
    if not q.dtype.is_float or not q.dtype is k.dtype is v.dtype:
        raise NotLowered(f"attention of {q.type}, {k.type}, {v.type}")
    batch, heads, q_len, _ = q.shape
    k_len = k.shape[2]
    if k_len == 0 or q_len == 0:
        raise NotLowered("attention over an empty sequence")
    if not isinstance(heads, int) or not isinstance(k.shape[1], int):
        raise NotLowered("symbolic number of heads")
    if b.has_products or b.attention in ("math", "memory-efficient"):
        return
    if b.attention == "flash":
        raise NotLowered("the option attention is flash: library flash attention")
    if not isinstance(q_len, int) or not isinstance(k_len, int):
        raise NotLowered("symbolic sequence length: library flash attention")
    known_batch = batch if isinstance(batch, int) else 1
    score_bytes = known_batch * heads * q_len * k_len * 4
    if score_bytes > MAX_SCORE_BYTES or (is_causal and q_len > MAX_CAUSAL_ROWS):
        raise NotLowered("long sequence: library flash attention")


def _product(b: Builder, x: Node, y: Node) -> Node:
    """A product with a result in the compute type: half inputs multiply exactly, sum in f32."""
    return b.emit("matmul", b.compute(x), b.compute(y))


def _group(b: Builder, x: Node, kv_heads: Dim) -> Node:
    """(B, H, S, D) -> (B, Hkv, H/Hkv*S, D): query heads that share a key head, one after another."""
    batch, heads, length, width = x.shape
    if heads == kv_heads:
        return x
    return b.reshape(x, (batch, kv_heads, heads // kv_heads * length, width))


def _scores(
    b: Builder, q: Node, k: Node, is_causal: bool, mask: Node | None, scale: float | None
) -> Node:
    """``scale * q @ k.T + mask`` in the compute type, (B, H, Sq, Sk)."""
    batch, heads, q_len, width = q.shape
    shape = (batch, heads, q_len, k.shape[2])
    product = _product(b, _group(b, q, k.shape[1]), b.transpose(k, -1, -2))
    scores = b.mul(b.reshape(product, shape), _scale(width, scale))
    if mask is not None:
        if not mask.dtype.is_float:
            raise NotLowered(f"attention mask of type {mask.dtype}")
        scores = b.add(scores, b.expand(b.cast(mask, scores.dtype), shape))
    if is_causal:
        visible = b.compare("le", b.iota_along(shape, 3), b.iota_along(shape, 2))
        scores = b.where(visible, scores, -math.inf)
    return scores


def _scale(width: Dim, scale: float | None) -> float:
    if scale is not None:
        return scale
    if not isinstance(width, int):
        raise NotLowered("symbolic head size")
    return 1.0 / math.sqrt(width) if width else 1.0


def _dropped(b: Builder, x: Node, p: float, seed: Node | None) -> Node:
    """Weights, or their gradients, with dropout where there is a seed."""
    if seed is None:
        return x
    mask = dropout_mask(b, seed, x, p)
    return b.mul(b.mul(x, b.cast(mask, x.dtype)), 1 / (1 - p))


@lowers("aten._scaled_dot_product_flash_attention_for_cpu.default")
def attention(
    b: Builder,
    q: Node,
    k: Node,
    v: Node,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Node | None = None,
    scale: float | None = None,
    seed: Node | None = None,
) -> tuple[Node, Node]:
    """The result (B, H, Sq, D) and the logsumexp of each row of scores (B, H, Sq). ``seed``: of dropout.

    A row whose keys are all masked gives zeros and a logsumexp of 0, as the library's kernel does.
    """
    _check(b, q, k, v, dropout_p if seed is None else 0.0, is_causal)
    scores = _scores(b, q, k, is_causal, attn_mask, scale)
    top = b.reduce("max", scores, 3, keepdim=True)
    if attn_mask is not None:  # only a mask can hide every key of a row
        hidden = b.compare("eq", top, -math.inf)
        top = b.where(hidden, 0.0, top)
        weights = b.exp(b.sub(scores, top))
        total = b.where(hidden, 1.0, b.reduce("sum", weights, 3, keepdim=True))
    else:
        weights = b.exp(b.sub(scores, top))
        total = b.reduce("sum", weights, 3, keepdim=True)
    probabilities = b.cast(_dropped(b, b.div(weights, total), dropout_p, seed), q.dtype)
    out = _product(b, _group(b, probabilities, k.shape[1]), v)
    logsumexp = b.squeeze(b.add(top, b.log(total)), 3)
    return b.cast(b.reshape(out, (*q.shape[:3], v.shape[3])), q.dtype), logsumexp


@lowers("aten._scaled_dot_product_flash_attention_for_cpu_backward.default")
def flash_attention_backward(
    b: Builder,
    grad: Node,
    q: Node,
    k: Node,
    v: Node,
    out: Node,
    logsumexp: Node,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Node | None = None,
    scale: float | None = None,
) -> tuple[Node, Node, Node]:
    """Gradients of q, k and v from the saved logsumexp (Dao et al., FlashAttention, appendix B.2)."""
    return gradients(
        b, grad, (q, k, v), out, logsumexp, dropout_p, is_causal, mask=attn_mask, scale=scale
    )[:3]


def gradients(
    b: Builder,
    grad: Node,
    qkv: tuple[Node, Node, Node],
    out: Node,
    logsumexp: Node,
    dropout_p: float,
    is_causal: bool,
    *,
    mask: Node | None,
    scale: float | None,
    seed: Node | None = None,
) -> tuple[Node, Node, Node, Node]:
    """Those of q, k, v and the scores.

    With P = softmax(S): dV = P.T dO; dS = P * (dO V.T - rowsum(dO * O)); dQ = dS K; dK = dS.T Q. With dropout by a
    factor M: dV = (P * M).T dO; dS = P * (dO V.T * M - rowsum(dO * O)).
    """
    q, k, v = qkv
    _check(b, q, k, v, dropout_p if seed is None else 0.0, is_causal)
    kv_heads = k.shape[1]
    scores = _scores(b, q, k, is_causal, mask, scale)  # (B, H, Sq, Sk)
    p = b.exp(b.sub(scores, b.unsqueeze(b.cast(logsumexp, scores.dtype), 3)))
    grouped_grad = _group(b, grad, kv_heads)
    grad_p = b.reshape(_product(b, grouped_grad, b.transpose(v, -1, -2)), scores.shape)
    grad_p = _dropped(b, grad_p, dropout_p, seed)
    delta = b.reduce("sum", b.mul(b.compute(grad), b.compute(out)), 3, keepdim=True)
    of_scores = b.mul(p, b.sub(grad_p, delta))
    grad_s = b.mul(of_scores, _scale(q.shape[3], scale))
    p = _group(b, b.cast(_dropped(b, p, dropout_p, seed), q.dtype), kv_heads)
    grad_s = _group(b, b.cast(grad_s, q.dtype), kv_heads)
    grad_q = b.reshape(_product(b, grad_s, k), q.shape)
    grad_k = _product(b, b.transpose(grad_s, -1, -2), _group(b, q, kv_heads))
    grad_v = _product(b, b.transpose(p, -1, -2), grouped_grad)
    grads = b.cast(grad_q, q.dtype), b.cast(grad_k, k.dtype), b.cast(grad_v, v.dtype)
    return *grads, of_scores
