"""Scaled dot product attention, forward and backward, against ATen's flash kernel for the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lazyc.frontend.lowering import NotLowered
from lazyc.frontend.lowerings_attention import MAX_CAUSAL_ROWS, MAX_SCORE_BYTES
from tests.frontend.lowering_harness import check, lower, run

FORWARD = "aten._scaled_dot_product_flash_attention_for_cpu.default"
BACKWARD = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
INF, NAN = float("inf"), float("nan")


def floats(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    if dtype is torch.float64:
        return {"rtol": 1e-9, "atol": 1e-9}
    return {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}


def inputs(
    q_len: int, k_len: int, kv_heads: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        floats(2, 4, q_len, 8, dtype=dtype, seed=1),
        floats(2, kv_heads, k_len, 8, dtype=dtype, seed=2),
        floats(2, kv_heads, k_len, 8, dtype=dtype, seed=3),
    )


def check_both(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, **kw: object
) -> None:
    near = tolerance(q.dtype)
    check(FORWARD, q, k, v, 0.0, causal, **near, **kw)
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, **kw
    )
    grad = floats(*out.shape, dtype=q.dtype, seed=4)
    check(BACKWARD, grad, q, k, v, out, logsumexp, 0.0, causal, **near, **kw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "k_len"), [(5, 5), (3, 7), (7, 3), (1, 4), (1, 1)])
def test_attention(dtype: torch.dtype, causal: bool, q_len: int, k_len: int) -> None:
    check_both(*inputs(q_len, k_len, 4, dtype), causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 6), (2, 4, 5, 6), (2, 1, 1, 6), (1, 4, 5, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_masks(dtype: torch.dtype, shape: tuple[int, ...], causal: bool) -> None:
    mask = floats(*shape, dtype=dtype, seed=5)
    check_both(*inputs(5, 6, 4, dtype), causal, attn_mask=mask, scale=0.3)


def test_grouped_heads_and_layouts() -> None:
    q, k, v = inputs(5, 6, 2, torch.float32)
    check(FORWARD, q, k, v, 0.0, True, **tolerance(q.dtype))
    flat = floats(2, 5, 3, 4, 8)  # (B, S, qkv, H, D), as models cut it
    check_both(*(flat[:, :, n].transpose(1, 2) for n in range(3)), causal=True)


def test_grouped_gradients_are_those_of_repeated_heads() -> None:
    q, k, v = inputs(5, 6, 2, torch.float64)
    grad = floats(2, 4, 5, 8, dtype=torch.float64, seed=6)
    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    repeated = [leaves[0], *(t.repeat_interleave(2, 1) for t in leaves[1:])]
    out = F.scaled_dot_product_attention(*repeated)
    expected = torch.autograd.grad(out, leaves, grad)
    fwd, logsumexp = run(FORWARD, q, k, v)
    found = run(BACKWARD, grad, q, k, v, fwd, logsumexp, 0.0, False)
    for mine, eager in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, eager)


@pytest.mark.parametrize("causal", [False, True])
def test_a_fully_masked_row_gives_zeros(causal: bool) -> None:
    mask = torch.zeros(5, 6)
    mask[0] = mask[3] = -INF
    mask[2, :4] = -INF
    q, k, v = inputs(5, 6, 4, torch.float32)
    out, logsumexp = run(FORWARD, q, k, v, 0.0, causal, attn_mask=mask)
    assert out is not None and not out[:, :, 0].any() and not out[:, :, 3].any()
    assert logsumexp is not None and not logsumexp[:, :, 3].any()
    if not causal:
        check_both(q, k, v, causal, attn_mask=mask)


def test_nan_goes_to_the_rows_that_see_it() -> None:
    q, k, v = inputs(5, 5, 4, torch.float32)
    k[0, 0, 3, 0] = NAN
    out, _ = run(FORWARD, q, k, v, 0.0, True)
    assert out is not None
    assert out[0, 0, 3:].isnan().all()
    assert out.isnan().sum() == 2 * 8


def test_what_stays_with_the_library() -> None:
    q, k, v = inputs(4, 4, 4, torch.float32)
    with pytest.raises(NotLowered, match="dropout"):
        lower(FORWARD, q, k, v, 0.1)
    with pytest.raises(NotLowered, match="empty"):
        lower(FORWARD, q, k[:, :, :0], v[:, :, :0])
    length = int((MAX_SCORE_BYTES / 4 / 8) ** 0.5)
    for is_causal, most in ((False, length), (True, MAX_CAUSAL_ROWS)):
        for extra, lowered in ((0, True), (1, False)):
            long = torch.empty(2, 4, most + extra, 8)
            if lowered:
                lower(FORWARD, long, long, long, 0.0, is_causal)
            else:
                with pytest.raises(NotLowered, match="long sequence"):
                    lower(FORWARD, long, long, long, 0.0, is_causal)
