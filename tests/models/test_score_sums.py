"""Gradients of what is added to scores of attention, or multiplied with them, and is the same for several matrices,
rows or keys: on the CPU by blocks of rows, against double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import lazyc
from lazyc.backend import executables
from lazyc.ir.types import numel
from lazyc.passes import score_sums
from lazyc.runtime.program import Executable
from tests.models.test_row_tiles import (  # noqa: F401
    K,
    Q,
    Tensor,
    arena_bytes,
    check,
    choices,
    run,
    small,
    tensors,
    threads,
)

B, H = 2, 3


@pytest.fixture(autouse=True)
def all_sizes(small: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(score_sums, "LEAST_BYTES", 0)


def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.softmax(q @ k.transpose(-2, -1) * 0.3 + bias, dim=-1) @ v


def scaled(q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    """The gradient of a bias for each row is 0; that of a factor is not."""
    return F.softmax(q @ k.transpose(-2, -1) * factor, dim=-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    place = torch.arange(k.size(2))
    hidden = place > place[: q.size(2), None]
    scores = (q @ k.transpose(-2, -1) * 0.3 + bias).masked_fill(hidden, -math.inf)
    return F.softmax(scores, dim=-1) @ v


def of_torch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)


def stored_scores(before: set[int]) -> list[tuple[int, ...]]:
    """Shapes of temporaries that are as large as the scores of all matrices and are stored as a whole."""
    found = []
    for made in (x for x in executables() if id(x) not in before):
        private = {b for c in choices(made) if c.blocks is not None for b in c.blocks.private}
        found += [
            tuple(map(int, b.shape))
            for b in made.program.buffers
            if b.kind in ("temp", "output") and b.id not in private
            and int(numel(b.shape)) >= B * H * Q * K
        ]  # fmt: skip
    return found


def check_without(model: Callable[..., Tensor], *args: Tensor, products: int = 5) -> None:
    """As ``check`` in training; and nothing as large as all scores is stored."""
    before = set(map(id, executables()))
    check(model, *args, train=True, steps=(2, products))
    assert stored_scores(before) == []


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "shape", [(1, H, Q, K), (H, Q, K), (B, 1, Q, K), (1, 1, Q, K), (Q, K)], ids=str
)
@pytest.mark.parametrize("model", [biased, scaled, of_torch])
def test_the_same_for_matrices(shape: tuple[int, ...], model: Callable[..., Tensor]) -> None:
    check_without(model, *tensors(), torch.randn(shape))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(1, H, 1, K), (B, H, 1, K), (B, 1, 1, K), (K,)], ids=str)
@pytest.mark.parametrize("model", [biased, scaled])
def test_the_same_for_rows(shape: tuple[int, ...], model: Callable[..., Tensor]) -> None:
    check_without(model, *tensors(), torch.randn(shape), products=6)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(1, H, Q, 1), (B, 1, Q, 1), (Q, 1), (1, H, 1, 1)], ids=str)
def test_the_same_for_keys(shape: tuple[int, ...]) -> None:
    check_without(scaled, *tensors(), torch.randn(shape))


def test_its_own_for_each_score() -> None:
    """The gradient is a result, and as large as the scores."""
    before = set(map(id, executables()))
    check(biased, *tensors(), torch.randn(B, H, Q, K), train=True, steps=(2, 5))
    assert stored_scores(before) == [(B, H, Q, K)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, H, Q, K), (Q, K), (1, H, 1, K)], ids=str)
def test_other_types(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    args = [x.to(dtype) for x in (*tensors(), torch.randn(shape))]
    check_without(biased, *args, products=6 if shape[-2] == 1 else 5)


def test_a_causal_mask() -> None:
    check_without(causal, *tensors(), torch.randn(1, H, Q, K))


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("q", [5, 16, 33, 80])
@pytest.mark.parametrize("over", ["batch", "heads", "both"])
def test_members_and_blocks(batch: int, q: int, over: str) -> None:
    """Fewer matrices to add up than blocks of one, as many, and more."""
    shape = {"batch": (1, 2), "heads": (batch, 1), "both": (1, 1)}[over]
    args = [*tensors(q=q, heads=2, batch=batch), torch.randn(*shape, q, K)]
    check(biased, *args, train=True, steps=(2, 5))


def test_dropout() -> None:
    """By the mask that the forward pass made: where weights are dropped, values count for nothing."""
    q, k, _ = tensors()
    bias = torch.randn(1, H, Q, K)

    def dropped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.dropout(F.softmax(q @ k.transpose(-2, -1) * 0.3 + bias, dim=-1), 0.4) @ v

    before = set(map(id, executables()))
    leaves = [x.requires_grad_() for x in (q, k, torch.eye(K).expand(B, H, K, K).clone(), bias)]
    out = torch.compile(dropped, backend="lazyc")(*leaves)
    kept = out.detach() != 0
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    weights = F.softmax(exact[0] @ exact[1].transpose(-2, -1) * 0.3 + exact[3], dim=-1)
    want = torch.autograd.grad((weights * kept / 0.6) @ exact[2], exact, grad.double())
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5)
    made = [x for x in executables() if id(x) not in before]
    assert any(c.blocks is not None and c.blocks.summed for x in made for c in choices(x))


def test_a_table_of_relative_positions() -> None:
    """T5's: a number for each bucket of distances and each head."""
    buckets = (torch.arange(Q)[:, None] - torch.arange(K)).clamp(-8, 7) + 8

    def model(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        bias = F.embedding(buckets, table).permute(2, 0, 1).unsqueeze(0)
        return F.softmax(q @ k.transpose(-2, -1) + bias, dim=-1) @ v

    before = set(map(id, executables()))
    leaves = [x.requires_grad_() for x in (*tensors(), torch.randn(16, H))]
    grad = torch.randn(B, H, Q, 8)
    got = torch.autograd.grad(torch.compile(model, backend="lazyc")(*leaves), leaves, grad)
    want = torch.autograd.grad(model(*(x.double() for x in leaves)), leaves, grad.double())
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine, right.float(), rtol=1e-4, atol=1e-4)
    assert stored_scores(before) == []


def test_two_layers_with_a_bias_and_a_mask() -> None:
    """As T5's: what is added to the scores has a number for each matrix, and is the same in all layers."""

    def layer(q: Tensor, added: Tensor) -> Tensor:
        return F.softmax(q @ q.transpose(-2, -1) * 0.3 + added, dim=-1) @ q

    def model(q: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return layer(layer(q, bias + mask), bias + mask)

    before = set(map(id, executables()))
    leaves = [torch.randn(B, H, Q, 8), torch.randn(1, H, Q, Q)]
    mask = torch.zeros(B, 1, 1, Q)
    mask[1, :, :, -9:] = -1e4
    grad = torch.randn(B, H, Q, 8)
    compiled = torch.compile(lambda q, bias: model(q, bias, mask), backend="lazyc")
    got = run(compiled, leaves, grad)
    want = run(lambda q, bias: model(q, bias, mask.double()), [x.double() for x in leaves], grad)
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine, right.float(), rtol=1e-4, atol=1e-4)
    assert stored_scores(before) == []


@pytest.mark.parametrize("shape", [(1, H, Q, K), (Q, K)], ids=str)
def test_any_number_of_threads(shape: tuple[int, ...]) -> None:
    args, grad = [*tensors(batch=5), torch.randn(shape)], torch.randn(5, H, Q, 8)
    compiled = torch.compile(biased, backend="lazyc")
    found, before = [], torch.get_num_threads()
    try:
        for count in (2, 1, 3):
            torch.set_num_threads(count)
            found.append(run(compiled, args, grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_two_that_are_the_same_for_other_matrices() -> None:
    """What is added up of one of them is stored, as two patterns of sums have no order of blocks for both."""

    def model(q: Tensor, k: Tensor, v: Tensor, one: Tensor, other: Tensor) -> Tensor:
        return F.softmax(q @ k.transpose(-2, -1) * one + other, dim=-1) @ v

    args = [*tensors(), torch.randn(1, H, Q, K), torch.randn(B, 1, Q, K)]
    before = set(map(id, executables()))
    check(model, *args, train=True, steps=(2, 5))
    assert stored_scores(before) == [(B, H, Q, K)]


def test_lengths_that_change() -> None:
    """One program for all."""
    compiled = torch.compile(biased, backend="lazyc")
    before = set(map(id, executables()))
    for length in (20, 33, 57):
        args = [*tensors(q=length, k=length), torch.randn(1, H, length, length)]
        for x in args:
            torch._dynamo.mark_dynamic(x, 2)
        torch._dynamo.mark_dynamic(args[3], 3)
        grad = torch.randn(B, H, length, 8)
        for mine, right in zip(run(compiled, args, grad), run(biased, args, grad), strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)
    made = [x for x in executables() if id(x) not in before]
    assert any(t.summed for x in made for t in x.program.tiles)


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sizes that are compiled for outside of tests: temporaries do not grow with the square of the length."""
    monkeypatch.undo()
    arenas: list[list[int]] = []
    for length in (512, 1024):
        torch._dynamo.reset()
        before = set(map(id, executables()))
        leaves = [x.requires_grad_() for x in tensors(q=length, k=length, heads=4)]
        bias = torch.randn(1, 4, length, length, requires_grad=True)
        torch.compile(biased, backend="lazyc")(*leaves, bias).sum().backward()
        made: list[Executable] = [x for x in executables() if id(x) not in before]
        arenas.append(sorted(map(arena_bytes, made)))
    assert all(b < 2.2 * a for a, b in zip(*arenas, strict=True)), arenas


def _divided(s: Tensor) -> Tensor:
    return s / (1 + s.abs().sum(-1, keepdim=True))


@pytest.mark.parametrize(
    "between",
    [
        lambda s: s.bool(),
        lambda s: s.bool().float(),
        lambda s: s.to(torch.int32).float(),
        lambda s: s.bfloat16().float(),
        lambda s: s,
    ],
    ids=["bool", "bool-float", "int-float", "bf16-float", "as-it-is"],
)
def test_sums_of_what_was_cast(between: Callable[[Tensor], Tensor]) -> None:
    """Each cast rounds."""

    def f(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        s = q @ k.transpose(-2, -1)
        return _divided(s) @ v, between(s).sum(0)

    args = [torch.randn(3, 2, 128, 16).round() for _ in range(3)]  # products are exact
    expected, before = f(*args), set(map(id, executables()))
    lazyc.metrics.reset()
    found = torch.compile(f, backend="lazyc")(*args)
    assert not lazyc.metrics.snapshot()["fallbacks"]
    (made,) = (x for x in executables() if id(x) not in before)
    assert [c.blocks.summed for c in choices(made) if c.blocks is not None] == [(3, 2, 1)]
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0)


def test_a_sum_that_a_step_of_the_chain_reads_is_whole_then() -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        s = q @ k.transpose(-2, -1)
        u = s.sum(0).reshape(2, 4, 128, 64)
        return _divided(s) @ v, (s[..., :64] * u).sum(-1)

    args = [torch.randn(2, 4, 128, 16) for _ in range(3)]
    lazyc.metrics.reset()
    found = torch.compile(f, backend="lazyc")(*args)
    assert not lazyc.metrics.snapshot()["fallbacks"]
    torch.testing.assert_close(found, f(*args), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 6, Q, K), (1, 1, Q, K), (B, 1, Q, K), (1, 6, 1, K)], ids=str)
def test_heads_that_share_keys(shape: tuple[int, ...]) -> None:
    """Three heads of queries to one of keys, whose rows are those of one product."""
    lazyc.metrics.reset()

    def grouped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(3, 1) for x in (k, v))
        return biased(q, k, v, bias)

    q, k, v = (torch.randn(B, n, s, 16) for n, s in ((6, Q), (2, K), (2, K)))
    args = [q, k, v, torch.randn(shape)]
    grad = torch.randn(B, 6, Q, 16)
    got = run(torch.compile(grouped, backend="lazyc"), args, grad)
    want = run(grouped, [x.double() for x in args], grad.double())
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)
    assert lazyc.metrics.snapshot()["fallbacks"] == []


def test_two_biases() -> None:
    """Of which each is the same for other matrices."""
    lazyc.metrics.reset()

    def twice(q: Tensor, k: Tensor, v: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return biased(q, k, v, first + second)

    args = [*tensors(), torch.randn(1, H, Q, K), torch.randn(B, 1, Q, K)]
    grad = torch.randn(B, H, Q, args[2].shape[-1])
    got = run(torch.compile(twice, backend="lazyc"), args, grad)
    want = run(twice, [x.double() for x in args], grad.double())
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)
    assert lazyc.metrics.snapshot()["fallbacks"] == []
