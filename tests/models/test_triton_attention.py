"""Attention as models write it, through the kernels of a GPU, against double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import lazyc
from lazyc.backend import EVENTS, executables
from lazyc.codegen.triton.attention import Attention
from lazyc.codegen.triton.choices import form_of
from lazyc.codegen.triton.score_sums import ScoreSums
from lazyc.ir.loops import Dot
from lazyc.ir.program import EagerStep, GemmStep, KernelStep
from lazyc.report import events as E
from tests.gpu import DEVICE, OPTIONS, on_device

Tensor = torch.Tensor
pytestmark = pytest.mark.gpu
Q, K = 37, 41  # primes: no other size is a multiple of both
# Shrinking takes longer than a test may; the example that fails is printed without it.
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),
}


@contextmanager
def choices() -> Iterator[list[E.AttentionChosen]]:
    """The choices that are made within it."""
    made: list[E.Event] = []
    found: list[E.AttentionChosen] = []
    unsubscribe = EVENTS.subscribe(made.append)
    try:
        yield found
    finally:
        unsubscribe()
        found += [e for e in made if isinstance(e, E.AttentionChosen)]


def run(function: Callable[..., Tensor], args: list[Tensor], grad: Tensor | None) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(grad is not None) for x in args]
    out = function(*leaves)
    if grad is None:
        return [out.detach()]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def check(
    function: Callable[..., Tensor],
    *args: Tensor,
    train: bool = False,
    kernels: tuple[int, ...] = (1,),
    lengths: tuple[int, int] = (Q, K),
    options: dict[str, Any] | None = None,
    stored: Collection[tuple[int, ...]] = (),
    factor: float = 2,
) -> None:
    """Results, and gradients, are as near to double precision as eager's; ``kernels``: those with scores in
    each program, in order of their number. No buffer holds a score for each query and key but those of the shapes
    ``stored``. ``factor``: how many times eager's error is as near, in single precision."""
    args = tuple(map(on_device, args))
    torch._dynamo.reset()
    lazyc.metrics.reset()
    before = set(map(id, executables()))
    compiled = torch.compile(function, backend="lazyc", options={**OPTIONS, **(options or {})})
    torch.manual_seed(1)
    grad = torch.randn(function(*args).shape, device=DEVICE) if train else None
    got = run(compiled, list(args), grad)
    eager = run(function, list(args), grad)
    want = run(function, [x.double() for x in args], grad)
    factor = factor if args[0].dtype is torch.float32 else 3
    for mine, theirs, exact in zip(got, eager, want, strict=True):
        assert mine.dtype is theirs.dtype
        assert torch.equal(mine.isnan(), exact.isnan())
        error, limit = (torch.nan_to_num((x.double() - exact).abs()).max() for x in (mine, theirs))
        scale = float(torch.nan_to_num(exact.abs()).max())
        rounding = 2 * torch.finfo(mine.dtype).eps * scale
        assert error <= factor * max(float(limit), rounding), (error, limit)
    assert not lazyc.metrics.snapshot()["fallbacks"]
    made = [x.program for x in executables() if id(x) not in before]
    flash = []
    for program in made:
        assert not [s for s in program.steps if isinstance(s, GemmStep | EagerStep)]
        nests = [program.nests[s.nest] for s in program.steps if isinstance(s, KernelStep)]
        scored = [n for n in nests if any(isinstance(i, Dot) for s in n.stages for i in s.body)]
        assert all(isinstance(form_of(n), Attention | ScoreSums) for n in scored)
        flash.append(len(scored))
        for buffer in program.buffers:
            if buffer.kind != "input" and buffer.shape not in stored:
                sizes = [d for d in buffer.shape if isinstance(d, int)]
                held = [any(d % n == 0 for d in sizes) for n in lengths]
                assert not all(held), (buffer.kind, buffer.shape)
    assert tuple(sorted(flash)) == kernels


def tensors(
    q: int = Q,
    k: int = K,
    heads: int = 2,
    shared: int = 1,
    width: int = 16,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(2, n, s, width).to(DEVICE, dtype)
        for n, s in ((heads * shared, q), (heads, k), (heads, k))
    ]


# --- torch's attention ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention(dtype: torch.dtype, causal: bool) -> None:
    check(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
        *tensors(dtype=dtype), train=True, kernels=(1, 2),
    )  # fmt: skip


def test_scores_are_not_stored_to_be_padded() -> None:
    """17 rows of 71 are short enough for the model of padding to say that copying them pays."""
    check(
        F.scaled_dot_product_attention, *tensors(17, 71, heads=1),
        train=True, kernels=(1, 2), lengths=(17, 71),
    )  # fmt: skip


def test_grouped_queries() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    check(model, *tensors(shared=2), train=True, kernels=(1, 2))


def test_masks() -> None:
    """A mask of its own for each head; one query sees nothing."""
    mask = torch.zeros(1, 2, Q, K)
    mask[:, 1, 3:5, 7:] = -math.inf
    mask[:, 0, 6] = -math.inf

    def model(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)

    check(model, *tensors(), mask)


def test_long_sequences_are_not_left_to_the_library() -> None:
    """Above the limit of the CPU's stored scores, with the kernels compiled but not run."""
    lazyc.metrics.reset()
    torch._dynamo.reset()
    options: dict[str, Any] = {"target": "cuda:sm_90", "disk_cache": False}
    compiled = torch.compile(F.scaled_dot_product_attention, backend="lazyc", options=options)
    q = torch.randn(1, 1, 4200, 16)
    with choices() as made, torch.no_grad():
        compiled(q, q, q)
    assert [c.kernel for c in made] == ["flash"]
    (fallback,) = lazyc.metrics.snapshot()["fallbacks"]
    assert fallback["op"] == "graph" and "sm_90" in fallback["reason"]


# --- attention by hand ----------------------------------------------------------------------------


def nanogpt(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``CausalSelfAttention`` of nanoGPT without its dropout; a mask of all positions, cut to size."""
    bias = torch.tril(torch.ones(64, 64, device=q.device)).view(1, 1, 64, 64)
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    att = att.masked_fill(bias[:, :, : q.size(2), : k.size(2)] == 0, float("-inf"))
    return F.softmax(att, dim=-1) @ v


def bert(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """As in older BERT: (B, H, S, D), a mask (B, 1, 1, S) of large negative numbers."""
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1))
    return torch.matmul(F.softmax(scores + mask, dim=-1), v).permute(0, 2, 1, 3).flatten(-2)


def t5(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Unscaled, with a bias by relative position, softmax in single precision."""
    scores = torch.matmul(q, k.transpose(3, 2)) + bias
    return torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), v)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Key heads shared by repetition, as in Llama."""
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return F.softmax(q @ k.transpose(-1, -2) * 0.25, dim=-1) @ v


def softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.tanh(q @ k.transpose(-1, -2) / 20) * 5
    return F.softmax(scores, dim=-1) @ v


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slopes = torch.tensor([0.5, 0.25], device=q.device).view(1, 2, 1, 1)
    i, j = (torch.arange(x.size(2), device=q.device) for x in (q, k))
    distance = j[None] - i[:, None]
    scores = q @ k.transpose(-1, -2) * 0.25 + slopes * distance
    return F.softmax(scores.masked_fill(distance > 0, -math.inf), dim=-1) @ v


def sliding(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = (torch.arange(x.size(2), device=q.device) for x in (q, k))
    distance = i[:, None] - j[None]
    hidden = (distance < 0) | (distance >= 7)
    scores = (q @ k.transpose(-1, -2) * 0.25).masked_fill(hidden, -math.inf)
    return F.softmax(scores, dim=-1) @ v


def three_dims(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm(torch.softmax(torch.baddbmm(q.new_zeros(1), q, k.transpose(1, 2)), -1), v)


def multi_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head of keys for all, as in StarCoder: heads of a query are rows of one product, beside each other."""
    (b, h, i, d), (k, v) = q.shape, (x[:, 0] for x in (k, v))
    rows = q.transpose(1, 2).reshape(b, i * h, d)
    scores = torch.baddbmm(q.new_zeros(1), rows, k.transpose(1, 2), beta=0, alpha=0.25)
    seen = torch.ones(i, k.size(1), dtype=torch.bool, device=q.device).tril()
    scores = scores.view(b, i, h, -1).masked_fill(~seen[None, :, None], -1e4)
    weights = F.softmax(scores, dim=-1)
    return torch.bmm(weights.view(b, i * h, -1), v).view(b, i, h, d).transpose(1, 2)


@pytest.mark.parametrize("model", [nanogpt, softcap, alibi, sliding, three_dims, multi_query])
def test_by_hand(model: Callable[..., Tensor]) -> None:
    check(model, *tensors())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_masks_and_biases(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    mask = torch.where(torch.rand(2, 1, 1, K) < 0.3, -1e4, 0.0).to(dtype)
    check(bert, *tensors(dtype=dtype), mask)
    check(t5, *tensors(dtype=dtype), torch.randn(1, 2, Q, K).to(dtype))


def test_repeated_heads() -> None:
    q, k, v = tensors(shared=2)
    check(repeated, q, k, v)


@pytest.mark.parametrize("model", [nanogpt, softcap, sliding, three_dims, multi_query])
def test_by_hand_is_trained(model: Callable[..., Tensor]) -> None:
    """Three kernels of the backward pass compute scores: sums of rows, queries, keys and values."""
    check(model, *tensors(), train=True, kernels=(1, 3))


def test_by_hand_is_trained_in_half_precision() -> None:
    check(nanogpt, *tensors(dtype=torch.bfloat16), train=True, kernels=(1, 3))


def total_of_another_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ k.transpose(-1, -2) * 0.3
    exps = torch.exp(s - s.amax(-1, keepdim=True))
    return (exps / exps.sum(-1)[..., None, :]) @ v


def maximum_of_another_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ k.transpose(-1, -2) * 0.3
    exps = torch.exp(s - s.amax(-1)[..., None, :])
    return exps / exps.sum(-1, keepdim=True) @ v


def softmax_in_double(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1, dtype=torch.float64).to(q.dtype) @ v


NO_ATTENTION = [total_of_another_row, maximum_of_another_row, softmax_in_double]


@pytest.mark.parametrize("model", NO_ATTENTION)
def test_what_looks_like_a_softmax(model: Callable[..., Tensor]) -> None:
    """As many queries as keys: a number for each could be one for each of the others."""
    args = tuple(map(on_device, tensors(K, K)))
    torch._dynamo.reset()
    lazyc.metrics.reset()
    with choices() as made, torch.no_grad():
        got = torch.compile(model, backend="lazyc", options=OPTIONS)(*args)
    torch.testing.assert_close(got, model(*args), rtol=1e-4, atol=1e-5)
    assert "flash" not in {c.kernel for c in made}
    assert (
        not lazyc.metrics.snapshot()["fallbacks"] and not lazyc.metrics.snapshot()["compiler_bugs"]
    )


def test_weights_that_are_a_result_are_kept() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = F.softmax(q @ k.transpose(-1, -2) * 0.25, -1)
        return weights @ v, weights

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="lazyc", options=OPTIONS)
    results = []
    for function in (compiled, model):
        leaves = [x.requires_grad_() for x in tensors()]
        out, weights = function(*leaves)
        grads = torch.autograd.grad(out.square().sum() + weights.square().sum(), leaves)
        results.append([out.detach(), weights.detach(), *grads])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_dropout() -> None:
    """The same numbers drop the same weights, stored or not."""

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout(F.softmax(q @ k.transpose(-1, -2), -1), 0.4) @ v

    found = []
    for mode in ("flash", "math"):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="lazyc", options={**OPTIONS, "attention": mode})
        torch.manual_seed(3)
        with choices() as made:
            found.append(compiled(*tensors()))
        assert [c.kernel for c in made] == [mode]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    torch.manual_seed(3)
    assert not torch.allclose(found[0], model(*tensors()))  # another generator than eager's


def test_lengths_that_change() -> None:
    """One program for all, from one tensor, so that queries and keys are known to be as many."""

    def by_hand(x: Tensor) -> Tensor:
        return nanogpt(x, x * 0.5, x + 1)

    def by_torch(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x * 0.5, x + 1, is_causal=True)

    for model in (by_hand, by_torch):
        torch._dynamo.reset()
        lazyc.metrics.reset()
        compiled = torch.compile(model, backend="lazyc", options=OPTIONS)
        with choices() as made:
            for length in (20, 33, 57):
                x = tensors(q=length)[0]
                torch._dynamo.mark_dynamic(x, 2)
                torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
        assert [c.kernel for c in made] == ["flash"]
        assert not lazyc.metrics.snapshot()["fallbacks"]


@pytest.mark.parametrize("train", [False, True])
def test_two_values_are_attended_to_with_the_same_scores(train: bool) -> None:
    """In kernels of their own, which differ in what else they compute."""

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = F.softmax(q @ k.transpose(-1, -2) * 0.2, -1)
        return torch.cat([weights @ v, weights @ torch.sin(v)], -1)

    check(model, *tensors(), train=train, kernels=(2, 3) if train else (2,))


# --- what is chosen -------------------------------------------------------------------------------


def test_the_choice_is_told() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.softmax(q @ k.transpose(-1, -2), -1) @ v

    for mode, length, kernel, reason in (
        ("auto", 20, "flash", "20 x 41 scores are not stored"),
        ("auto", 8, "math", "8 x 41 scores do not fill a tile"),
        ("flash", 8, "flash", "8 x 41 scores are not stored"),
        ("math", 20, "math", "the option attention is math"),
    ):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="lazyc", options={**OPTIONS, "attention": mode})
        q, k, v = tensors(q=length)
        with choices() as made:
            torch.testing.assert_close(compiled(q, k, v), model(q, k, v), rtol=1e-4, atol=1e-5)
        assert [(c.kernel, c.reason) for c in made] == [(kernel, reason)]
        assert "test_triton_attention.py" in made[0].line


# --- everything at once ---------------------------------------------------------------------------


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    causal: bool,
    window: int,
    cap: float,
    scale: float,
) -> Tensor:
    shared = q.size(1) // k.size(1)
    k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * scale
    if cap:
        scores = torch.tanh(scores / cap) * cap
    if bias is not None:
        scores = scores + bias
    i, j = (torch.arange(x.size(2), device=q.device) for x in (q, k))
    distance = i[:, None] - j[None]
    if causal:
        scores = scores.masked_fill(distance < 0, -math.inf)
    if window:
        scores = scores.masked_fill(distance >= window, -math.inf)
    return F.softmax(scores, dim=-1) @ v


@pytest.mark.full
@settings(max_examples=40, **SETTINGS)
@given(
    q=st.sampled_from([17, 37, 67]),
    k=st.sampled_from([19, 41, 71]),
    heads=st.integers(1, 2),
    shared=st.integers(1, 3),
    width=st.sampled_from([4, 16, 24, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    causal=st.booleans(),
    window=st.sampled_from([0, 5, 30]),
    cap=st.sampled_from([0.0, 5.0]),
    bias=st.sampled_from([(), (1, 1, 1, 0), (1, 1, 0, 0), (2, 1, 0, 0), (1, 0, 0, 0)]),
)
def test_any_attention(
    q: int, k: int, heads: int, shared: int, width: int, dtype: torch.dtype, causal: bool, window: int,
    cap: float, bias: tuple[int, ...],
) -> None:  # fmt: skip
    given_bias = None
    if bias:
        full = (2, heads * shared, q, k)
        given_bias = torch.randn([n or m for n, m in zip(bias, full, strict=True)]).to(
            DEVICE, dtype
        )

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        added = None if given_bias is None else given_bias.to(q.dtype)
        return attend(q, k, v, added, causal, window, cap, 0.2)

    args = tensors(q, k, heads, shared, width, dtype)
    check(model, *args, lengths=(q, k))


@pytest.mark.full
@settings(max_examples=20, **SETTINGS)
@given(
    q=st.sampled_from([17, 37, 67]),
    k=st.sampled_from([19, 41, 71]),
    shared=st.integers(1, 3),
    width=st.sampled_from([4, 16, 24, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    causal=st.booleans(),
    masked=st.booleans(),
)
def test_any_gradient(
    q: int, k: int, shared: int, width: int, dtype: torch.dtype, causal: bool, masked: bool
) -> None:
    masks = {d: torch.randn(q, k).to(DEVICE, dtype).to(d) for d in (dtype, torch.float64)}
    added = masked and not causal

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, masks[q.dtype] if added else None, is_causal=causal, enable_gqa=True
        )

    args = tensors(q, k, 1, shared, width, dtype)
    check(model, *args, train=True, kernels=(1, 2), lengths=(q, k))
