"""Attention with dropout through the kernels of a GPU: the backward pass draws the forward's mask again.

What was dropped is found from a run of the same seed in which the values are a unit matrix: its result is the
weights. With that mask, eager in double precision says what the gradients are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import lazyc
from lazyc.backend import executables
from lazyc.ir.loops import Dot
from lazyc.ir.program import EagerStep, GemmStep, KernelStep, Program
from tests.gpu import DEVICE, OPTIONS

Tensor = torch.Tensor
ATEN = torch.ops.aten
Drop = Callable[[Tensor], Tensor]
Model = Callable[[Drop, Tensor, Tensor, Tensor], Tensor]
pytestmark = pytest.mark.gpu
Q, K = 37, 41  # primes: no other size is a multiple of both
SEED = 3
P = 0.3


def plain(drop: Drop, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return drop(F.softmax(q @ k.transpose(-1, -2) * 0.25, -1)) @ v


def nanogpt(drop: Drop, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``CausalSelfAttention`` of nanoGPT."""
    bias = torch.tril(torch.ones(64, 64, device=q.device)).view(1, 1, 64, 64)
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    att = att.masked_fill(bias[:, :, : q.size(2), : k.size(2)] == 0, float("-inf"))
    return drop(F.softmax(att, dim=-1)) @ v


def three_dims(drop: Drop, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return torch.bmm(drop(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)), v)


def wide_softmax(drop: Drop, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax in single precision, and dropout of what it is rounded to (T5)."""
    return drop(F.softmax((q @ k.transpose(-1, -2)).float(), -1).type_as(q)) @ v


def tensors(
    dtype: torch.dtype = torch.float32, batch: int = 2, q: int = Q, k: int = K
) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(batch, 2, n, 16).to(DEVICE, dtype) for n in (q, k, k)]


def weights(
    function: Callable[..., Tensor], args: list[Tensor], seed: int = SEED, grad: bool = True
) -> Tensor:
    """The weights that a function has left, of runs with this seed: results where some of the values are a unit
    matrix and the others zeros."""
    q, k, v = args
    found = []
    for start in range(0, v.shape[2], v.shape[3]):
        value = torch.eye(v.shape[2], dtype=v.dtype, device=v.device)[:, start : start + v.shape[3]]
        value = F.pad(value, (0, v.shape[3] - value.shape[1])).expand(v.shape).contiguous()
        torch.manual_seed(seed)
        with torch.set_grad_enabled(grad):
            found.append(function(q.detach().requires_grad_(grad), k, value).detach())
    return torch.cat(found, -1)[..., : v.shape[2]]


def run(function: Callable[..., Tensor], args: list[Tensor]) -> list[Tensor]:
    """The result, and gradients for a fixed direction; random numbers are those of SEED."""
    leaves = [x.detach().clone().requires_grad_() for x in args]
    torch.manual_seed(SEED)
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@contextmanager
def programs() -> Iterator[list[Program]]:
    """The programs that are made within it. Nothing is left to eager."""
    before = set(map(id, executables()))
    torch._dynamo.reset()
    lazyc.metrics.reset()
    found: list[Program] = []
    yield found
    found += [x.program for x in executables() if id(x) not in before]
    assert not lazyc.metrics.snapshot()["fallbacks"]


def kernels_with_scores(
    made: list[Program], constants: Sequence[tuple[int, ...]] = ()
) -> list[int]:
    """How many kernels of each program compute scores, in order. No program has a tensor with a number for
    each query and key: computed, returned or given, but for ``constants`` of the model."""
    counts: list[int] = []
    for program in made:
        assert not [s for s in program.steps if isinstance(s, GemmStep | EagerStep)]
        nests = [program.nests[s.nest] for s in program.steps if isinstance(s, KernelStep)]
        counts.append(sum(any(isinstance(i, Dot) for s in n.stages for i in s.body) for n in nests))
        for buffer in program.buffers:
            held = [any(isinstance(d, int) and d % n == 0 for d in buffer.shape) for n in (Q, K)]
            assert not all(held) or buffer.shape in constants, (buffer.kind, buffer.shape)
    return sorted(counts)


def check(
    model: Callable[..., Tensor],
    reference: Model,
    args: list[Tensor],
    kernels: Sequence[int] = (1, 3),
    constants: Sequence[tuple[int, ...]] = (),
) -> None:
    """``model`` is ``reference`` with dropout: its result and gradients are those with the mask that it drew,
    as near to double precision as eager's. ``kernels`` and ``constants`` as in ``kernels_with_scores``."""
    compiled = torch.compile(model, backend="lazyc", options=OPTIONS)
    mask = weights(compiled, args) != 0
    with programs() as made:
        got = run(torch.compile(model, backend="lazyc", options=OPTIONS), args)
    assert kernels_with_scores(made, constants) == list(kernels)

    def masked(weights: Tensor) -> Tensor:
        return weights * mask.view(weights.shape) * (1 / (1 - P))

    def with_mask(*args: Tensor) -> Tensor:
        return reference(masked, *args)

    eager = run(with_mask, args)
    want = run(with_mask, [x.double() for x in args])
    factor = 2 if args[0].dtype is torch.float32 else 3
    for mine, theirs, exact in zip(got, eager, want, strict=True):
        assert mine.dtype is theirs.dtype
        error, limit = ((x.double() - exact).abs().max() for x in (mine, theirs))
        rounding = 2 * torch.finfo(mine.dtype).eps * float(exact.abs().max())
        assert error <= factor * max(float(limit), rounding), (error, limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", [plain, nanogpt, three_dims, wide_softmax])
def test_trained_by_hand(model: Model, dtype: torch.dtype) -> None:
    check(lambda q, k, v: model(lambda w: F.dropout(w, P), q, k, v), model, tensors(dtype))


@pytest.mark.parametrize("causal", [False, True])
def test_trained_by_torch(causal: bool) -> None:
    """What torch makes of it on a CPU, and of attention that no library of a GPU takes."""

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=P, is_causal=causal)

    def reference(drop: Drop, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * 0.25
        if causal:
            hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, -math.inf)
        return drop(F.softmax(scores, -1)) @ v

    check(model, reference, tensors())


# --- CUDA's operators, by name ----------------------------------------------------------------------


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ATEN._scaled_dot_product_flash_attention(q, k, v, P, True)[0]


def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    train = torch.is_grad_enabled()
    return ATEN._scaled_dot_product_efficient_attention(q, k, v, None, train, P, True)[0]


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    train = torch.is_grad_enabled()
    return ATEN._scaled_dot_product_cudnn_attention(q, k, v, None, train, P, True)[0]


OPERATORS: list[Callable[..., Tensor]] = [flash, efficient, cudnn]


def causal(drop: Drop, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * 0.25
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return drop(F.softmax(scores.masked_fill(hidden, -math.inf), -1)) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_are_trained(operator: Callable[..., Tensor], dtype: torch.dtype) -> None:
    check(operator, causal, tensors(dtype, k=Q), kernels=[1, 2])


def test_operators_with_shared_heads() -> None:
    q, k, v = tensors(k=Q)
    check(flash, causal, [q, k[:, :1], v[:, :1]], kernels=[1, 2])


@pytest.mark.parametrize("operator", [efficient, cudnn])
def test_operators_with_a_mask(operator: Callable[..., Tensor]) -> None:
    """One row sees no key."""
    bias = torch.zeros(Q, K).masked_fill(torch.rand(Q, K) < 0.4, -math.inf)
    bias[3] = -math.inf
    bias = bias.to(DEVICE)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        name = f"_scaled_dot_product_{operator.__name__}_attention"
        wide = bias.expand(2, 2, Q, K)
        return getattr(ATEN, name)(q, k, v, wide, True, P, False, scale=0.3)[0]

    def reference(drop: Drop, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * 0.3 + bias.to(q.dtype)
        return drop(torch.ops.aten._safe_softmax(scores, -1)) @ v

    check(model, reference, tensors(), kernels=[1, 2], constants=((Q, K),))


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_without_gradients(operator: Callable[..., Tensor]) -> None:
    """The same numbers drop the same weights."""
    compiled = torch.compile(operator, backend="lazyc", options=OPTIONS)
    args = tensors(k=Q)
    with programs():
        found = [weights(compiled, args, grad=grad) for grad in (True, False)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


# --- rows, sizes, seeds -----------------------------------------------------------------------------


def test_rows_without_keys() -> None:
    """Zeros, as torch's attention has it, and so are their gradients."""
    mask = torch.ones(Q, K, dtype=torch.bool, device=DEVICE)
    mask[5] = False

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=P)

    out, *grads = run(torch.compile(model, backend="lazyc", options=OPTIONS), tensors())
    assert not out[:, :, 5].any() and out[:, :, 6].all()
    assert not grads[0][:, :, 5].any() and grads[0][:, :, 6].all()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("options", [OPTIONS, {**OPTIONS, "shapes": "bucket"}])
def test_a_batch_that_changes(options: dict[str, Any]) -> None:
    """Positions count the same elements, whether a program is for one batch, for any, or rounds up."""

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nanogpt(lambda w: F.dropout(w, P), q, k, v)

    compiled = torch.compile(model, backend="lazyc", options=options)

    def marked(*args: Tensor) -> Tensor:
        for x in args:
            torch._dynamo.mark_dynamic(x, 0)
        return compiled(*args)

    for batch in (3, 5):
        torch._dynamo.reset()
        args = tensors(batch=batch)
        want = run(torch.compile(model, backend="lazyc", options=OPTIONS), args)
        with programs() as made:
            got = run(marked, args)
        assert kernels_with_scores(made) == [1, 3]
        assert all(any(p.symbols) for p in made)
        for mine, exact in zip(got, want, strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return plain(lambda w: F.dropout(w, P), q, k, v)


def test_seeds() -> None:
    compiled = torch.compile(dropped, backend="lazyc", options=OPTIONS)
    first, second, again = (weights(compiled, tensors(), seed=n) for n in (1, 2, 1))
    assert torch.equal(first, again)
    agree = ((first != 0) == (second != 0)).double().mean().item()
    assert abs(agree - (P * P + (1 - P) ** 2)) < 0.03
    for found in (first, second):
        kept = (found != 0).double().mean().item()
        assert abs(kept - (1 - P)) < 5 * math.sqrt(P * (1 - P) / found.numel())
        heads = [found[b, h] != 0 for b in range(2) for h in range(2)]
        assert not any(torch.equal(a, b) for k, a in enumerate(heads) for b in heads[:k])
    args = tensors()
    calls = [compiled(*args) for _ in range(2)]
    assert not torch.equal(*calls)


def test_one_mask_whatever_is_compiled() -> None:
    """With gradients or without, stored or not: a checkpoint may run a part in one way first and in another
    way then."""
    found = [
        weights(
            torch.compile(dropped, backend="lazyc", options={**OPTIONS, "attention": mode}),
            tensors(), grad=grad,
        )
        for mode in ("flash", "math")
        for grad in (True, False)
    ]  # fmt: skip
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_layers_draw_numbers_of_their_own_with_the_same_kernels() -> None:
    """The first is given other queries because kernels of two attentions with the same scores would be one."""

    def model(q: Tensor, other: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return dropped(q, k, v), dropped(other, k, v)

    with programs() as made:
        compiled: Any = torch.compile(model, backend="lazyc", options=OPTIONS)
        q, k, v = tensors()
        first, second = compiled(q.requires_grad_(), q.detach().clone().requires_grad_(), k, v)
    assert not torch.allclose(first, second)
    (program,) = made
    used = [s.nest for s in program.steps if isinstance(s, KernelStep)]
    assert len(used) == 3 and used[1] == used[2]  # the seeds of both, then each attention


@pytest.mark.parametrize("model", [dropped, flash, efficient])
def test_checkpoints(model: Callable[..., Tensor]) -> None:
    """What a checkpoint computes again drops the same: only the seed is not drawn again."""

    def checkpointed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = checkpoint(model, q, k, v, use_reentrant=False)
        assert isinstance(found, Tensor)
        return found.sin()

    def plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return model(q, k, v).sin()

    args = tensors(k=Q)
    with programs():
        results = [
            run(torch.compile(function, backend="lazyc", options=OPTIONS), args)
            for function in (checkpointed, plainly)
        ]
    for mine, exact in zip(*results, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


def test_nothing_is_kept() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain(lambda w: F.dropout(w, 1.0), q, k, v)

    with programs() as made:
        found = run(torch.compile(model, backend="lazyc", options=OPTIONS), tensors())
    assert not any(x.any() for x in found)
    kernels_with_scores(made)


@pytest.mark.parametrize("p", [0.0, P])
def test_everything_is_kept(p: float) -> None:
    """A probability of 0, or a model that is not in training: nothing is drawn."""
    args = tensors()
    compiled = torch.compile(
        lambda q, k, v: plain(lambda w: F.dropout(w, p, training=p == 0), q, k, v),
        backend="lazyc", options=OPTIONS,
    )  # fmt: skip
    with programs() as made:
        got = run(compiled, args)
    assert kernels_with_scores(made) == [1, 3]
    for mine, exact in zip(
        got, run(lambda q, k, v: plain(lambda w: w, q, k, v), args), strict=True
    ):
        torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-5)
