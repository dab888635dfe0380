"""Attention on the CPU by blocks of rows, as models write it, against double precision."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lazyc
from lazyc.backend import EVENTS, executables
from lazyc.frontend import recompute
from lazyc.ir.program import GemmStep
from lazyc.ir.types import DType, numel
from lazyc.passes import half_products
from lazyc.report import events as E
from lazyc.runtime import blocks
from lazyc.runtime.half_tiles import find_half_kernels
from lazyc.runtime.program import Executable
from lazyc.runtime.threads import torch_library

Tensor = torch.Tensor
Q, K = 37, 41  # two whole blocks of 16 queries and one of 5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 rows wherever there are rows, and scores made again in every backward pass."""
    monkeypatch.setattr(blocks, "LEAST_BYTES", 0)
    monkeypatch.setattr(blocks, "CACHE_SHARE", 0.0)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 16)
    monkeypatch.setattr(blocks, "LEAST_PACKED_ROWS", 16)
    monkeypatch.setattr(recompute, "BY_ROWS", recompute.Recompute(doubles=True))
    monkeypatch.setattr(half_products, "LEAST_BYTES", 0)
    monkeypatch.setattr(half_products, "LEAST_PACKED_BYTES", 0)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def run(function: Callable[..., Tensor], args: list[Tensor], grad: Tensor | None) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(grad is not None) for x in args]
    out = function(*leaves)
    if grad is None:
        return [out.detach()]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def arena_bytes(found: Executable) -> int:
    """Bytes of temporaries in the arena."""
    assert found.last_runner is not None
    return found.last_runner.plan.arena_bytes


def choices(found: Executable) -> list[blocks.TileChoice]:
    assert found.last_runner is not None
    return found.last_runner.plan.choices


def saved(found: list[Executable]) -> list[tuple[int, ...]]:
    """Shapes of what a program returns and one that was made before or after it takes."""
    shapes = [[p.buffers[b].shape for b in p.inputs if b >= 0] for p in (x.program for x in found)]
    returned = [o.shape for x in found for o in x.program.outputs]
    return [tuple(map(int, s)) for inputs in shapes for s in inputs if s in returned]


def check(
    function: Callable[..., Tensor],
    *args: Tensor,
    train: bool = False,
    steps: tuple[int, ...],
    options: dict[str, str] | None = None,
) -> None:
    """Results and gradients are as near to double precision as eager's, and nothing runs in eager. ``steps``:
    the products that run by blocks in each program, in order of their number."""
    lazyc.metrics.reset()
    before = set(map(id, executables()))
    compiled = torch.compile(function, backend="lazyc", options=options)
    grad = torch.randn(function(*args).shape) if train else None
    got = run(compiled, list(args), grad)
    eager = run(function, list(args), grad)
    want = run(function, [x.double() for x in args], grad)
    for mine, theirs, exact in zip(got, eager, want, strict=True):
        assert mine.dtype is theirs.dtype and mine.shape == theirs.shape
        assert torch.equal(mine.isnan(), theirs.isnan())
        error, limit = (torch.nan_to_num((x.double() - exact).abs()).max() for x in (mine, theirs))
        rounding = 2 * torch.finfo(mine.dtype).eps * float(torch.nan_to_num(exact.abs()).max())
        assert error <= 2 * max(float(limit), rounding), (error, limit)
    assert not lazyc.metrics.snapshot()["fallbacks"]
    found = []
    for executable in executables():
        if id(executable) not in before:
            tiled = [c.blocks for c in choices(executable)]
            assert None not in tiled, choices(executable)
            parts = [p for b in tiled if b is not None for p in b.steps]
            found.append(sum(isinstance(p, blocks.BlockProduct) for p in parts))
    assert tuple(sorted(found)) == steps


def tensors(
    q: int = Q, k: int = K, heads: int = 3, shared: int = 1, width: int = 8, batch: int = 2
) -> list[Tensor]:
    """q, k and v as projections give them: (B, S, H, D), turned."""
    sizes = ((heads * shared, q), (heads, k), (heads, k))
    return [torch.randn(batch, s, n, width).transpose(1, 2) for n, s in sizes]


# --- torch's attention ----------------------------------------------------------------------------


def masked(mask: Tensor) -> Callable[..., Tensor]:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = mask if mask.dtype is torch.bool else mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=given, scale=0.3)

    return model


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("train", [False, True])
def test_causal(train: bool) -> None:
    check(causal, *tensors(), train=train, steps=(2, 5) if train else (2,))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("train", [False, True])
def test_grouped_queries(train: bool) -> None:
    check(grouped, *tensors(shared=2), train=train, steps=(2, 5) if train else (2,))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(Q, K), (2, 1, 1, K), (1, 3, Q, 1)], ids=str)
def test_masks(shape: tuple[int, ...], train: bool) -> None:
    steps = (2, 5) if train else (2,)
    check(masked(torch.randn(shape)), *tensors(), train=train, steps=steps)
    torch._dynamo.reset()
    seen = torch.rand(shape) < 0.7
    seen[..., 3:5, :] = False  # queries that see no key
    check(masked(seen), *tensors(), train=train, steps=steps)


@pytest.mark.parametrize(("q", "k"), [(16, 16), (15, 33), (33, 15), (64, 1)])
def test_lengths(q: int, k: int) -> None:
    width = 1 if k == 1 else 8
    check(causal, *tensors(q=q, k=k, width=width), train=True, steps=(2, 5))


def test_one_query() -> None:
    check(causal, *tensors(q=1), steps=(2,))


# --- attention by hand ----------------------------------------------------------------------------


def nanogpt(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``CausalSelfAttention`` of nanoGPT without its dropout; a mask of all positions, cut to size."""
    bias = torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64)
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    att = att.masked_fill(bias[:, :, : q.size(2), : k.size(2)] == 0, float("-inf"))
    return F.softmax(att, dim=-1) @ v


def bert(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys hidden by large negative numbers."""
    hidden = torch.where(torch.arange(k.size(2)) % 5 == 0, -1e4, 0.0).to(q.dtype)
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1))
    return torch.matmul(F.softmax(scores + hidden, dim=-1), v)


def t5(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Unscaled, with a bias by relative position."""
    scores = torch.matmul(q, k.transpose(3, 2)) + bias
    return torch.matmul(F.softmax(scores, dim=-1).type_as(scores), v)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Key heads shared by repetition, as in Llama."""
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return F.softmax(q @ k.transpose(-1, -2) * 0.25, dim=-1) @ v


@pytest.mark.usefixtures("threads")
def test_by_hand() -> None:
    check(nanogpt, *tensors(), steps=(2,))
    check(t5, *tensors(), torch.randn(1, 3, Q, K), steps=(2,))
    check(repeated, *tensors(shared=2), steps=(2,))


def test_with_weights_that_are_kept() -> None:
    """Steps that make packed weights are another program, without blocks."""
    table = torch.nn.Parameter(torch.randn(8, K))

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.softmax(q @ k.transpose(-1, -2) + table.exp().sum(0), dim=-1) @ v

    q, k, v = tensors()
    with torch.no_grad():
        got = torch.compile(model, backend="lazyc")(q, k, v)
        torch.testing.assert_close(got, model(q, k, v), rtol=1e-4, atol=1e-5)
    (made,) = [x for x in executables() if x.program.packed and x.program.tiles]
    assert [c.blocks is not None for c in choices(made)] == [True]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("model", [nanogpt, bert, repeated])
def test_by_hand_is_trained(model: Callable[..., Tensor]) -> None:
    """The backward pass makes scores again, a block at a time."""
    check(model, *tensors(shared=2 if model is repeated else 1), train=True, steps=(2, 5))


def test_a_bias_is_trained() -> None:
    """Its gradient has a number for each query and key; what that is added up from is made a block at a time."""
    check(t5, *tensors(), torch.randn(1, 3, Q, K), train=True, steps=(2, 5))


def test_small_scores_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the caches, so that making them again would only take time."""
    monkeypatch.setattr(recompute, "BY_ROWS", recompute.Recompute(least_bytes=6 * Q * K * 4 + 1))
    check(nanogpt, *tensors(), train=True, steps=(1, 3))
    monkeypatch.setattr(recompute, "BY_ROWS", recompute.Recompute(least_bytes=6 * Q * K * 4))
    torch._dynamo.reset()
    check(nanogpt, *tensors(), train=True, steps=(2, 5))


def gpt2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As in transformers: positions hidden by the least number of the type."""
    scores = torch.matmul(q, k.transpose(-1, -2)) / torch.full([], 8**0.5, dtype=q.dtype)
    seen = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril()
    least = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
    return torch.matmul(F.softmax(torch.where(seen, scores, least), dim=-1).type(v.dtype), v)


def in_single_precision(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A softmax of scores that were widened, as in Llama and T5."""
    weights = F.softmax(q @ k.transpose(-1, -2) * 0.3, dim=-1, dtype=torch.float32)
    return weights.type_as(q) @ v


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        *itertools.product((nanogpt, bert, gpt2), (torch.float64, torch.bfloat16, torch.float16)),
        (in_single_precision, torch.bfloat16),
        (in_single_precision, torch.float16),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_other_types_are_trained(model: Callable[..., Tensor], dtype: torch.dtype) -> None:
    check(model, *(x.to(dtype) for x in tensors()), train=True, steps=(2, 5))


@pytest.mark.skipif(DType.BF16 not in find_half_kernels(torch_library()), reason="needs AMX")
@pytest.mark.parametrize(("q", "k"), [(38, 42), (64, 64), (37, 42), (38, 41)])
def test_blocks_of_bf16_are_multiplied_by_tiles(q: int, k: int) -> None:
    """But for sums over an odd number; the same whatever the threads, and by MKL while oneDNN is switched off."""
    args = [x.bfloat16() for x in tensors(q=q, k=k)]
    width = args[2].size(-1)
    args[2] = args[2][..., : width // 2 * 2].contiguous()
    before = set(map(id, executables()))
    check(nanogpt if q == k else of_three, *args, train=True, steps=(2, 5))
    made = [x for x in executables() if id(x) not in before]
    parts = [p for x in made for c in choices(x) if c.blocks for p in c.blocks.steps]
    products = [p for p in parts if isinstance(p, blocks.BlockProduct)]
    assert all((p.copies is not None) == (p.call.product.k % 2 == 0) for p in products)
    assert sum(p.copies is not None for p in products) >= 4

    compiled, grad = (
        torch.compile(of_three, backend="lazyc"),
        torch.randn(2, 3, q, args[2].size(-1)),
    )
    found, threads = [], torch.get_num_threads()
    for count, enabled in ((1, True), (2, True), (1, False)):
        torch.set_num_threads(count)
        with torch.backends.mkldnn.flags(enabled=enabled):
            found.append(run(compiled, args, grad))
    torch.set_num_threads(threads)
    for one, two, library in zip(*found, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, library, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_masks_of_other_types(dtype: torch.dtype) -> None:
    for mask in (torch.randn(Q, K), torch.rand(2, 1, Q, K) < 0.7):
        torch._dynamo.reset()
        args = [x.to(dtype) for x in tensors()]
        check(masked(mask), *args, train=True, steps=(2, 5))


@pytest.mark.parametrize("drop", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_bools_of_a_mask_are_kept(dtype: torch.dtype, drop: float) -> None:
    """Not the floats that torch makes of them."""
    mask = torch.rand(2, 1, Q, K) < 0.7

    def model(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)

    before = set(map(id, executables()))
    args = [x.to(dtype).requires_grad_() for x in tensors()]
    torch.compile(model, backend="lazyc")(*args, mask).sum().backward()
    made = [x for x in executables() if id(x) not in before]
    assert len(made) == 2
    for program in (x.program for x in made):
        large = [program.buffers[o.buffer] for o in program.outputs if o.shape[-2:] == (Q, K)]
        assert all(b.kind == "input" for b in large)
        taken = [program.buffers[b] for b in program.inputs if b >= 0]
        assert [b.dtype for b in taken if b.shape[-2:] == (Q, K)] == [DType.BOOL]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_scores_of_half_types_are_kept(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """ATen's products, which are faster, have results of the type."""
    monkeypatch.setattr(half_products, "LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(half_products, "LEAST_PACKED_BYTES", 1 << 20)
    before = set(map(id, executables()))
    args = [x.to(dtype).requires_grad_() for x in tensors()]
    torch.compile(nanogpt, backend="lazyc")(*args).sum().backward()
    made = [x for x in executables() if id(x) not in before]
    assert (2, 3, Q, K) in saved(made)


@pytest.mark.parametrize("by_hand", [False, True])
def test_dropout_is_trained(by_hand: bool) -> None:
    """Against double precision with the mask that the forward pass drew, which values that are the identity show."""
    q, k, _ = tensors(q=32, k=K)
    args = [q, k, torch.eye(K, K + 1).expand(2, 3, K, K + 1)]

    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not by_hand:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, scale=0.5)
        return F.dropout(F.softmax(q @ k.transpose(-1, -2) * 0.5, -1), 0.3) @ v

    before = set(map(id, executables()))
    grad = torch.randn(2, 3, 32, K + 1)
    out, *got = run(torch.compile(dropped, backend="lazyc"), args, grad)
    made = [x for x in executables() if id(x) not in before]
    mask = out[..., :K] != 0
    assert 0.6 < mask.double().mean() < 0.8

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (F.softmax(q @ k.transpose(-1, -2) * 0.5, -1) * mask / 0.7) @ v

    wide = run(exact, [x.double() for x in args], grad)
    for mine, want in zip((out, *got), wide, strict=True):
        torch.testing.assert_close(mine.double(), want, rtol=1e-4, atol=1e-5)
    assert [c.blocks is not None for x in made for c in choices(x)] == [True, True]
    assert (2, 3, 32, 1) in saved(made)
    assert not [s for s in saved(made) if s[-2:] in ((32, K), (K, 32))]


def test_one_mask_whatever_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients or without, stored or not: a checkpoint may run a part in one way first and in another
    way then."""

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = F.softmax(F.dropout(q, 0.2) @ k.transpose(-1, -2) * 0.5, -1)
        return F.dropout(F.dropout(weights, 0.3) @ v, 0.1)

    found = []
    for least, grad in ((0, True), (0, False), (1 << 20, True)):
        monkeypatch.setattr(recompute, "BY_ROWS", recompute.Recompute(least_bytes=least))
        torch._dynamo.reset()
        torch.manual_seed(0)
        args = [x.requires_grad_(grad) for x in tensors()]
        torch.manual_seed(1)
        found.append(torch.compile(model, backend="lazyc")(*args).detach())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def of_three(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(q @ k.transpose(-1, -2) * 0.25, dim=-1) @ v


def of_itself(x: Tensor) -> Tensor:
    """Attention of a sequence to itself."""
    return F.softmax(x @ (x * 0.5).transpose(-1, -2) * 0.25, dim=-1) @ (x + 1)


def test_half_types_of_lengths_that_change_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the length is now: their products are ATen's, which no blocks call."""
    monkeypatch.setattr(half_products, "LEAST_BYTES", 1)
    monkeypatch.setattr(half_products, "LEAST_PACKED_BYTES", 1)
    compiled = torch.compile(of_itself, backend="lazyc")
    before = set(map(id, executables()))
    x = tensors()[0].bfloat16().contiguous().requires_grad_()
    torch._dynamo.mark_dynamic(x, 2)
    compiled(x).sum().backward()
    made = [x for x in executables() if id(x) not in before]
    assert len(made) == 2
    returned = [o.shape for program in made for o in program.program.outputs]
    assert any(len(s) == 4 and s[2] == s[3] for s in returned), "the weights are computed again"
    steps = [s for program in made for s in program.program.steps]
    assert not any(isinstance(s, GemmStep) and s.is_wide for s in steps)


def test_lengths_that_change_are_trained() -> None:
    compiled = torch.compile(of_itself, backend="lazyc")
    before = set(map(id, executables()))
    for length in (20, 33, 57):
        x = tensors(q=length)[0].contiguous().requires_grad_()
        torch._dynamo.mark_dynamic(x, 2)
        grads = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (compiled, of_itself)]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)
    made = [x.program for x in executables() if id(x) not in before]
    assert len(made) == 2
    for program in made:
        assert not [o for o in program.outputs if len(o.shape) == 4 and o.shape[-1] == o.shape[-2]]


def test_hidden_values_that_are_not_finite_reach_results_as_in_eager() -> None:
    q, k, v = tensors()
    v[0, 0, K - 1] = math.inf  # hidden from most queries, and 0 * inf is nan
    k[1, 1, 3] = math.nan
    got = torch.compile(nanogpt, backend="lazyc")(q, k, v)
    assert torch.equal(got.isnan(), nanogpt(q, k, v).isnan())


def test_lengths_that_change() -> None:
    """One program for all, cut into blocks at each length."""
    compiled = torch.compile(of_itself, backend="lazyc")
    before = set(map(id, executables()))
    for length in (20, 33, 57):
        x = tensors(q=length)[0].contiguous()
        torch._dynamo.mark_dynamic(x, 2)
        torch.testing.assert_close(compiled(x), of_itself(x), rtol=1e-4, atol=1e-5)
        (made,) = [x for x in executables() if id(x) not in before]
        (choice,) = choices(made)
        assert choice.blocks is not None and choice.blocks.rows == length


def test_without_the_pass_scores_are_stored() -> None:
    q, k, v = tensors()
    before = set(map(id, executables()))
    compiled = torch.compile(nanogpt, backend="lazyc", options={"disable_passes": "row_tiles"})
    torch.testing.assert_close(compiled(q, k, v), nanogpt(q, k, v), rtol=1e-4, atol=1e-5)
    (made,) = [x for x in executables() if id(x) not in before]
    assert made.program.tiles == () and arena_bytes(made) >= 6 * Q * K * 4


@pytest.mark.parametrize(
    ("mode", "least", "kernel", "reason"),
    [
        ("auto", 0, "memory-efficient", "16 of 37 rows at a time"),
        ("auto", 4 << 20, "math", "the caches hold them"),
        ("math", 0, "math", "the option attention is math"),
        ("memory-efficient", 4 << 20, "memory-efficient", "16 of 37 rows at a time"),
    ],
)
def test_the_kernel_is_told(
    monkeypatch: pytest.MonkeyPatch, mode: str, least: int, kernel: str, reason: str
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", least)
    q, k, v = tensors()
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    try:
        compiled = torch.compile(nanogpt, backend="lazyc", options={"attention": mode})
        torch.testing.assert_close(compiled(q, k, v), nanogpt(q, k, v), rtol=1e-4, atol=1e-5)
    finally:
        stop()
    (told,) = [e for e in heard if isinstance(e, E.AttentionChosen | E.RowTilesChosen)]
    assert isinstance(told, E.AttentionChosen) and told.kernel == kernel and reason in told.reason
    assert "test_row_tiles.py" in told.line


# --- the option attention, with the sizes that are compiled for outside of tests ---------------------------------


@pytest.fixture
def usual(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()


BY_BLOCKS = {"attention": "memory-efficient"}


@pytest.mark.usefixtures("usual", "threads")
@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        *itertools.product((causal, nanogpt, bert), (torch.float32, torch.bfloat16, torch.float16)),
        (nanogpt, torch.float64),
        (repeated, torch.float32),
        (in_single_precision, torch.bfloat16),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_blocks_where_they_are_asked_for(model: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Of scores that are in the caches; of one matrix with two threads too."""
    shared = 2 if model is repeated else 1
    for sizes in ({}, {"heads": 1, "batch": 1}):
        torch._dynamo.reset()
        args = [x.to(dtype) for x in tensors(shared=shared, **sizes)]
        check(model, *args, train=True, steps=(2, 5), options=BY_BLOCKS)


def chosen(function: Callable[[], None]) -> list[E.AttentionChosen]:
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    try:
        function()
    finally:
        stop()
    return [e for e in heard if isinstance(e, E.AttentionChosen)]


@pytest.mark.usefixtures("usual")
@pytest.mark.parametrize("length", [40, 600])
def test_kernels_of_torchs_operator(length: int) -> None:
    """Whatever is the fastest: the caches hold the shorter sequence, and the library is faster for the longer
    one."""
    args = tensors(q=length, k=length, batch=1)
    want = run(causal, args, args[0])
    for mode, kernels in (
        ("flash", []), ("math", ["math"] * 2), ("memory-efficient", ["memory-efficient"] * 2),
    ):  # fmt: skip
        torch._dynamo.reset()
        lazyc.metrics.reset()
        before = set(map(id, executables()))
        compiled = torch.compile(causal, backend="lazyc", options={"attention": mode})
        got: list[Tensor] = []
        told = chosen(lambda compiled=compiled, got=got: got.extend(run(compiled, args, args[0])))
        for mine, other in zip(got, want, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        assert [e.kernel for e in told] == kernels
        reasons = [f["reason"] for f in lazyc.metrics.snapshot()["fallbacks"]]
        assert reasons == ["the option attention is flash: library flash attention"] * (
            2 if mode == "flash" else 0
        )
        arenas = [arena_bytes(x) for x in executables() if id(x) not in before]
        scores = 3 * length * length * 4
        assert (min(arenas) >= scores) if mode == "math" else (length < 600 or max(arenas) < scores)


@pytest.mark.usefixtures("usual")
def test_lengths_that_change_by_blocks() -> None:
    """Of torch's operator, which is left to the library otherwise."""

    def model(x: Tensor) -> Tensor:
        return causal(x, x * 2, x + 1)

    compiled = torch.compile(model, backend="lazyc", options=BY_BLOCKS)
    before = set(map(id, executables()))
    lazyc.metrics.reset()
    for length in (20, 33, 57):
        x = tensors(q=length)[0].contiguous()
        torch._dynamo.mark_dynamic(x, 2)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    (made,) = [x for x in executables() if id(x) not in before]
    assert [c.blocks is not None for c in choices(made)] == [True]
    assert not lazyc.metrics.snapshot()["fallbacks"]


@pytest.mark.usefixtures("usual")
def test_recorded_code_has_its_own_option() -> None:
    q, k, v = tensors()
    want = causal(q, k, v)
    for mode in ("math", "memory-efficient", "flash"):
        told = []

        def recorded(mode: str = mode, told: list[Tensor] = told) -> None:
            with lazyc.lazy(attention=mode):
                told.append(causal(q, k, v).clone())
                lazyc.mark_step()

        kernels = {e.kernel for e in chosen(recorded)}
        torch.testing.assert_close(told[0] + 0, want, rtol=1e-4, atol=1e-5)
        assert kernels == (set() if mode == "flash" else {mode})


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "train"), [(causal, False), (causal, True), (nanogpt, False)])
def test_memory_grows_with_the_length_not_with_its_square(
    model: Callable[..., Tensor], train: bool
) -> None:
    arenas: list[list[int]] = []
    lengths = (64, 128, 256) if model is causal else (16, 32, 64)
    for length in lengths:
        torch._dynamo.reset()
        before = set(map(id, executables()))
        args = [x.requires_grad_(train) for x in tensors(q=length, k=length)]
        out = torch.compile(model, backend="lazyc")(*args)
        if train:
            out.sum().backward()
        arenas.append(sorted(arena_bytes(x) for x in executables() if id(x) not in before))
    for short, long in pairwise(arenas):
        assert all(1 < b < 2.2 * a for a, b in zip(short, long, strict=True)), arenas


@pytest.mark.parametrize("drop", [0.0, 0.1])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_memory_of_training_by_hand(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, drop: float
) -> None:
    """With the sizes that are compiled for outside of tests: arenas and results of both programs together stay
    below half of the scores, and at most double with the length."""
    monkeypatch.undo()
    if dtype.itemsize == 2:  # they are kept up to 256 MiB, which would take a test long
        monkeypatch.setattr(half_products, "LEAST_BYTES", 16 << 20)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(q.size(2))
        att = (q @ k.transpose(-2, -1) * 0.2).masked_fill(place > place[:, None], -math.inf)
        return F.dropout(F.softmax(att, dim=-1), drop) @ v

    totals = []
    # Blocks of bf16 have four times the rows of others (LEAST_PACKED_ROWS).
    for length in (2048, 4096) if dtype is torch.bfloat16 else (1024, 2048):
        torch._dynamo.reset()
        before = set(map(id, executables()))
        found = tensors(q=length, k=length, heads=4, batch=1)
        args = [x.to(dtype).requires_grad_() for x in found]
        torch.compile(model, backend="lazyc")(*args).sum().backward()
        made = [x for x in executables() if id(x) not in before]
        assert len(made) == 2 and (1, 4, length, 1) in saved(made)
        results = [
            int(numel(o.shape)) * x.program.buffers[o.buffer].dtype.itemsize  # type: ignore[union-attr]
            for x in made
            for o in x.program.outputs
        ]
        totals.append(sum(map(arena_bytes, made)) + sum(results))
        assert totals[-1] < 4 * dtype.itemsize * length * length // 2
    assert totals[1] < 2.1 * totals[0]


# --- the disk cache -------------------------------------------------------------------------------

SCRIPT = """
import json
import torch
import torch.nn.functional as F
import lazyc
from lazyc.backend import EVENTS, executables
from lazyc.frontend import recompute
from lazyc.ir.types import numel
from lazyc.report import events as E
from lazyc.runtime import blocks

blocks.LEAST_BYTES, blocks.CACHE_SHARE, blocks.LEAST_ROWS = 0, 0.0, 16
q = torch.randn(2, 37, 3, 8).transpose(1, 2).requires_grad_()
model = lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1, is_causal=True)
got = torch.compile(model, backend="lazyc")(q)
want = model(q)
torch.testing.assert_close(got, want)
torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), q)[0] for x in (got, want)), rtol=1e-3, atol=1e-3)
tiled = [c.blocks is not None for x in executables() for c in x.last_runner.plan.choices]
print(json.dumps([lazyc.metrics.snapshot()["kernels_made"], tiled]))
"""


def test_a_later_process_runs_by_blocks_too(tmp_path: Path) -> None:
    environ = {**os.environ, "LAZYC_CACHE_DIR": str(tmp_path / "cache")}
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    (cold, tiled), warm = found
    assert cold > 0 and tiled == [True, True] and warm == [0, tiled]
