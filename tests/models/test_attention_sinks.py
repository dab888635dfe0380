"""Attention whose softmax has columns besides the keys: on the CPU and through the kernels of a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as tf

import lazyc
from lazyc.backend import EVENTS, executables
from lazyc.report import events as E
from tests.models.test_triton_attention import K, Q, choices

Tensor = torch.Tensor
TARGETS: dict[str, dict[str, Any]] = {
    "memory-efficient": {"attention": "memory-efficient"},
    "flash": {"target": "triton-interpret"},
}
B, H, D = 2, 3, 16


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) * 0.3


def gpt_oss(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """As ``transformers`` has it."""
    s = scores(q, k)
    combined = torch.cat([s, sinks.reshape(1, -1, 1, 1).expand(B, -1, Q, -1)], dim=-1)
    combined = combined - combined.max(dim=-1, keepdim=True).values
    weights = F.softmax(combined, dim=-1, dtype=combined.dtype)[..., :-1]
    return weights.to(v.dtype) @ v


def before(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """Other columns first, three for each head."""
    others = sinks.reshape(1, H, 1, 1).expand(B, -1, Q, 3) * torch.arange(3.0, device=q.device)
    return F.softmax(torch.cat([others, scores(q, k)], dim=-1), dim=-1)[..., 3:] @ v


def around(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """Keys between two others, and heads that are merged for the product."""
    s = sinks.reshape(1, H, 1, 1).expand(B, -1, Q, 1)
    weights = F.softmax(torch.cat([s, scores(q, k), -s], dim=-1), dim=-1)[..., 1:-1]
    return torch.bmm(weights.reshape(B * H, Q, K), v.reshape(B * H, K, D)).view(B, H, Q, D)


def hidden(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """Queries that see a part of the keys, and some that see none."""
    see = torch.arange(K, device=q.device)[None] < torch.arange(Q, device=q.device)[:, None] - 5
    s = torch.where(see, scores(q, k), -math.inf)
    s = torch.cat([s, sinks.reshape(1, -1, 1, 1).expand(B, -1, Q, -1)], dim=-1)
    return F.softmax(s, dim=-1)[..., :-1] @ v


def given(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    args = [torch.randn(B, H, n, D) for n in (Q, K, K)]
    return [x.to(dtype) for x in (*args, torch.randn(H))]


def run(
    model: Callable[..., Tensor], args: list[Tensor], options: dict[str, Any]
) -> tuple[list[E.AttentionChosen], list[E.Decided]]:
    """Choices and decisions of a compilation; the result is as near to double precision as eager's."""
    torch._dynamo.reset()
    lazyc.metrics.reset()
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    try:
        with torch.no_grad(), choices() as made:
            got = torch.compile(model, backend="lazyc", options=options)(*args)
    finally:
        stop()
    eager, exact = model(*args), model(*(x.double() for x in args))
    assert torch.equal(got.isnan(), exact.isnan())
    error, limit = (torch.nan_to_num(x.double() - exact).abs().max() for x in (got, eager))
    assert error <= 2 * max(limit, torch.finfo(got.dtype).eps * torch.nan_to_num(exact).abs().max())
    assert not lazyc.metrics.snapshot()["fallbacks"]
    return made, [e for e in heard if isinstance(e, E.Decided) and e.by == "attention_sinks"]


@pytest.mark.parametrize("kernel", TARGETS)
@pytest.mark.parametrize("model", [gpt_oss, before, around, hidden])
def test_scores_are_not_stored(model: Callable[..., Tensor], kernel: str) -> None:
    known = set(map(id, executables()))
    made, decided = run(model, given(), TARGETS[kernel])
    assert [c.kernel for c in made] == [kernel] and len(decided) == 1
    (program,) = [x.program for x in executables() if id(x) not in known]
    columns = {K + n for n in range(1, 4)}
    assert not [b.shape for b in program.buffers if columns & set(b.shape)]
    if kernel == "flash":
        assert not [b.shape for b in program.buffers if b.shape[-2:] == (Q, K)]


@pytest.mark.parametrize("kernel", TARGETS)
def test_lengths_that_change(kernel: str) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        s = sinks.reshape(1, H, 1, 1).expand(B, -1, q.size(2), 1)
        weights = F.softmax(torch.cat([s, scores(q, k), -s], dim=-1), dim=-1)
        return weights[..., 1:-1] @ v

    compiled = torch.compile(model, backend="lazyc", options=TARGETS[kernel])
    torch._dynamo.reset()
    lazyc.metrics.reset()
    q, k, v, sinks = given()
    with torch.no_grad(), choices() as made:
        for length in (K, K - 8, 2 * K):
            keys, values = (torch.cat([x, x], 2)[:, :, :length].contiguous() for x in (k, v))
            for x in (keys, values):
                torch._dynamo.mark_dynamic(x, 2)
            want = model(q, keys, values, sinks)
            got = compiled(q, keys, values, sinks)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert {c.kernel for c in made} == {kernel}
    assert not lazyc.metrics.snapshot()["fallbacks"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    """The scores that are shifted by their maximum are rounded, those that are not are not."""
    made, decided = run(gpt_oss, given(dtype), TARGETS["flash"])
    assert [c.kernel for c in made] == ["flash"] and len(decided) == 1


@pytest.mark.parametrize("kernel", TARGETS)
def test_rows_without_anything(kernel: str) -> None:
    """Nothing to attend to, the sinks included: nan, as in eager."""
    args = given()
    args[3] = torch.full((H,), -math.inf)
    _, decided = run(hidden, args, TARGETS[kernel])
    assert len(decided) == 1


def combined(q: Tensor, k: Tensor, sinks: Tensor, scale: float = 1.0) -> Tensor:
    others = sinks.reshape(1, -1, 1, 1).expand(B, -1, q.size(2), -1)
    return torch.cat([scores(q, k) * scale, others], dim=-1)


def result(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    weights = F.softmax(combined(q, k, sinks), dim=-1)
    return weights[..., :-1] @ v + weights.square().sum()


def other_columns(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    return F.softmax(combined(q, k, sinks), dim=-1)[..., 1:] @ v


def every_column(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    return F.softmax(combined(q, k, sinks), dim=-1) @ F.pad(v, (0, 0, 0, 1))


def shifted(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """By no maximum: what it overflows to must stay."""
    s = combined(q, k, sinks)
    return F.softmax(s - s.mean(-1, keepdim=True), dim=-1)[..., :-1] @ v


def shifted_along_rows(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """By the maximum of another row, for each column."""
    s = combined(q, k[:, :, : Q - 1], sinks)
    return F.softmax(s - s.max(-1).values[..., None, :], dim=-1)[..., :-1] @ v[:, :, : Q - 1]


def totals_along_rows(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    s = combined(q, k[:, :, : Q - 1], sinks)
    e = torch.exp(s - s.amax(-1, True))
    return (e / e.sum(-1)[..., None, :])[..., :-1] @ v[:, :, : Q - 1]


def whole_scores(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    s = combined(q, k, sinks, 3.0).to(torch.int32)
    return F.softmax((s - s.amax(-1, True)).to(q.dtype), dim=-1)[..., :-1] @ v


def whole_weights(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    weights = F.softmax(combined(q, k, sinks), dim=-1)[..., :-1] * 255
    return weights.to(torch.uint8).to(q.dtype) @ v


def rounded_scores(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    s = combined(q, k, sinks, 100.0).bfloat16().to(q.dtype)
    return F.softmax(s, dim=-1)[..., :-1] @ v


def large_factors(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """They fit the type after the share of the sinks is gone."""
    weights = F.softmax(combined(q, k, sinks.abs() + 12), dim=-1)[..., :-1] * 1e7
    return (weights.half() @ v.half()).to(q.dtype)


LEFT_ALONE = [
    result, other_columns, every_column, shifted, shifted_along_rows, totals_along_rows, whole_scores, whole_weights,
    rounded_scores, large_factors,
]  # fmt: skip


@pytest.mark.parametrize("model", LEFT_ALONE)
def test_what_is_left_alone(model: Callable[..., Tensor]) -> None:
    assert run(model, given(), {})[1] == []


def test_gradients() -> None:
    """The backward pass reads the softmax, which is stored."""
    leaves, copies = ([x.requires_grad_() for x in given()] for _ in range(2))
    lazyc.metrics.reset()
    got = torch.compile(gpt_oss, backend="lazyc")(*leaves)
    want = gpt_oss(*copies)
    torch.testing.assert_close(got, want)
    grad = torch.randn_like(want)
    for mine, eager in zip(
        torch.autograd.grad(got, leaves, grad), torch.autograd.grad(want, copies, grad), strict=True
    ):
        torch.testing.assert_close(mine, eager, rtol=1e-4, atol=1e-5)
    assert not lazyc.metrics.snapshot()["fallbacks"]


@pytest.mark.parametrize("kernel", TARGETS)
def test_gpt_oss(kernel: str) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1,
        "sliding_window": 8, "attn_implementation": "eager", "use_cache": False,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any = tf.GptOssModel(tf.GptOssConfig(**sizes)).eval()
    ids = torch.randint(0, 64, (2, Q))
    torch._dynamo.reset()
    with torch.no_grad(), choices() as made:
        got = torch.compile(model, backend="lazyc", options=TARGETS[kernel])(ids).last_hidden_state
        torch.testing.assert_close(got, model(ids).last_hidden_state, rtol=1e-4, atol=1e-5)
    assert [c.kernel for c in made] == [kernel] * 2
