"""Gradients of what is added to the scores of attention, or multiplied with them, without stored scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import lazyc
from lazyc.backend import executables
from lazyc.codegen.triton.attention import Attention
from lazyc.codegen.triton.choices import form_of
from lazyc.codegen.triton.score_sums import ScoreSums
from lazyc.ir.loops import Dot
from lazyc.ir.program import EagerStep, GemmStep, KernelStep
from tests.gpu import DEVICE, OPTIONS, on_device
from tests.models.test_triton_attention import K, Q, check, choices, run, tensors

Tensor = torch.Tensor
pytestmark = pytest.mark.gpu
B, H = 3, 2


def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.softmax(q @ k.transpose(-2, -1) * 0.3 + bias, dim=-1) @ v


def scaled(q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    return F.softmax(q @ k.transpose(-2, -1) * factor, dim=-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1) * 0.3 + bias).masked_fill(hidden, -math.inf)
    return F.softmax(scores, dim=-1) @ v


def of_torch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3)


def given(dtype: torch.dtype = torch.float32, width: int = 16) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(B, H, n, width).to(DEVICE, dtype) for n in (Q, K, K)]


def near(
    model: Callable[..., Tensor],
    *args: Tensor,
    kernels: tuple[int, int],
    slow: bool = False,
) -> None:
    """Results and gradients are those of double precision; scores are computed by tiles wherever they are, unless
    ``slow``, and nothing by a library. ``kernels`` as in ``check``."""
    torch._dynamo.reset()
    lazyc.metrics.reset()
    args = tuple(map(on_device, args))
    before = set(map(id, executables()))
    compiled = torch.compile(model, backend="lazyc", options=OPTIONS)
    torch.manual_seed(1)
    grad = torch.randn_like(model(*args))
    doubles = [x.double() for x in args]
    wanted = run(model, doubles, grad)
    for got, want in zip(run(compiled, list(args), grad), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    assert not lazyc.metrics.snapshot()["fallbacks"]
    counts = []
    for program in (x.program for x in executables() if id(x) not in before):
        assert not [s for s in program.steps if isinstance(s, GemmStep | EagerStep)]
        nests = [program.nests[s.nest] for s in program.steps if isinstance(s, KernelStep)]
        scored = [n for n in nests if any(isinstance(i, Dot) for s in n.stages for i in s.body)]
        counts.append(len(scored))
        assert slow or all(isinstance(form_of(n), Attention | ScoreSums) for n in scored)
    assert tuple(sorted(counts)) == kernels


SHAPES = {
    "heads": (1, H, Q, K),
    "all": (1, 1, Q, K),
    "batch": (B, 1, Q, K),
    "two dims": (Q, K),
    "three dims": (H, Q, K),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("model", [biased, scaled, causal])
def test_sums_over_matrices(model: Callable[..., Tensor], name: str) -> None:
    shape = SHAPES[name]
    results = {tuple(n for n in shape if n > 1), shape}
    check(model, *given(), torch.randn(shape), train=True, kernels=(1, 4), stored=results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("model", [biased, causal])
def test_half_types(model: Callable[..., Tensor], dtype: torch.dtype) -> None:
    bias = torch.randn(1, H, Q, K).to(dtype)
    check(model, *given(dtype), bias, train=True, kernels=(1, 4), stored={(H, Q, K), (1, H, Q, K)})


SMALL = [(1, H, 1, K), (B, 1, 1, K), (K,), (1, H, Q, 1)]
ONE = [(1, 1, 1, 1), ()]  # of a bias the gradient is 0, and what is there is rounding


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        pytest.param(model, shape, id=f"{model.__name__}{shape}")
        for model, shapes in ((biased, SMALL), (scaled, [*SMALL, *ONE]))
        for shape in shapes
    ],
)
def test_sums_over_rows_or_keys(model: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    """Over keys or rows first, in a kernel of attention; what is left is small."""
    # How near one number of eager's is is luck.
    check(model, *given(), torch.randn(shape), train=True, kernels=(1, 4), factor=8)


def test_factors_that_are_the_same_along_their_depth() -> None:
    """Nothing is added beyond the width of a head, which a tile is wider than."""

    def model(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return biased(q, k, v.expand(*v.shape[:-1], 5), bias).sum(-1)

    q, k, v = given(width=5)
    near(model, q, k, v[..., :1], torch.randn(1, H, Q, K), kernels=(1, 4), slow=True)


def test_keys_that_are_the_same_along_their_depth() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return biased(q.expand(*q.shape[:-1], 5), k.expand(*k.shape[:-1], 5), v, bias)

    q, k, v = given(width=5)
    near(model, q[..., :1], k[..., :1], v, torch.randn(1, H, Q, K), kernels=(1, 4), slow=True)


@pytest.mark.parametrize("name", ["sum", "mean over rows"])
def test_a_gradient_that_is_the_same_for_rows(name: str) -> None:
    def model(*args: Tensor) -> Tensor:
        out = biased(*args)
        return out.sum() if name == "sum" else out.mean(-2)

    bias = torch.randn(1, H, Q, K)
    check(model, *given(), bias, train=True, kernels=(1, 4), stored={(H, Q, K)}, factor=8)


@pytest.mark.parametrize("which", ["keys", "values"])
def test_factors_that_are_the_same_for_all_keys(which: str) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return biased(q, *(x.expand(B, H, K, 16) for x in (k, v)), bias)

    q, k, v = given()
    k, v = (x[:, :, :1] if name == which else x for name, x in (("keys", k), ("values", v)))
    near(model, q, k, v, torch.randn(1, H, Q, K), kernels=(1, 4))


MADE: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "mean": (lambda w: w.mean(0), [(5, H, Q, K)]),
    "softplus": (lambda w: F.softplus(w).mean(0, keepdim=True), [(5, H, Q, K)]),
    "matvec": (lambda w, c: w @ c, [(H, Q, K, 5), (5,)]),
    "norm": (lambda w: w.norm(dim=-1), [(H, Q, K, 5)]),
    "linear": (lambda x, w: (x @ w).permute(2, 0, 1)[None], [(Q, K, 7), (7, H)]),
    "outer": (lambda x, y: x[:, :, None] * y[:, None], [(H, Q), (H, K)]),
}


@pytest.mark.parametrize("name", MADE)
def test_biases_that_are_made_of_more(name: str) -> None:
    """What takes the bias's gradient to more elements than it has is a kernel of its own."""
    make, shapes = MADE[name]

    def model(q: Tensor, k: Tensor, v: Tensor, *weights: Tensor) -> Tensor:
        return biased(q, k, v, make(*weights))

    near(model, *given(), *map(torch.randn, shapes), kernels=(1, 4))


def test_scores_that_are_made_of_others() -> None:
    """Those that a product makes of weights are in memory."""

    def model(q: Tensor, k: Tensor, v: Tensor, m: Tensor, bias: Tensor) -> Tensor:
        inner = F.softmax(q @ k.transpose(-2, -1) + bias, dim=-1)
        return F.softmax(inner @ m + bias, dim=-1) @ v

    near(model, *given(), torch.randn(B, H, K, K), torch.randn(1, H, Q, K), kernels=(0, 1))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("which", ["keys", "queries"])
def test_factors_shared_by_one_product_alone(which: str, bias: bool) -> None:
    """Of the gradient of what heads share, or sequences, one product adds up all heads, or sequences."""

    def model(q: Tensor, k: Tensor, v: Tensor, added: Tensor) -> Tensor:
        form = "bhqd,bkd->bhqk" if which == "keys" else "hqd,bhkd->bhqk"
        scores = torch.einsum(form, q, k)
        return F.softmax(scores + added if bias else scores, dim=-1) @ v + (0 * added.sum())

    q, k, v = given()
    args = (q, k[:, 0], v) if which == "keys" else (q[0], k, v)
    near(model, *args, torch.randn(1, H, Q, K) if bias else torch.zeros(1), kernels=(0, 1))


@pytest.mark.parametrize("form", ["bhqk,bkd->bhqd", "bhqk,kd->bhqd"])
def test_shared_values_are_attended_to_without_stored_scores(form: str) -> None:
    """Rows of all heads are those of one product; the backward pass adds up heads."""

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum(form, F.softmax(q @ k.transpose(-2, -1), dim=-1), v)

    q, k, v = given()
    near(model, q, k, v[:, 0] if form == "bhqk,bkd->bhqd" else v[0, 0], kernels=(0, 1))


def test_torchs_operator() -> None:
    """Decomposed by torch for tensors of the CPU where a mask needs a gradient."""
    bias = torch.randn(1, H, Q, K)
    check(of_torch, *given(), bias, train=True, kernels=(1, 4), stored={(H, Q, K), (1, H, Q, K)})


def test_shared_heads_of_keys() -> None:
    def grouped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(3, 1) for x in (k, v))
        return biased(q, k, v, bias)

    args = tensors(shared=3)
    bias = torch.randn(1, 6, Q, K)
    results = {(6, Q, K), (1, 6, Q, K), (2, 3, Q, K)}
    check(grouped, *args, bias, train=True, kernels=(1, 4), stored=results)


def test_two_layers_share_a_bias() -> None:
    """A kernel for each layer's part."""

    def layers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return biased(biased(q, k, v, bias), v, k, bias)

    bias = torch.randn(1, H, Q, K)
    check(layers, *given(), bias, train=True, kernels=(2, 8), stored={(H, Q, K), (1, H, Q, K)})


def test_dropout_is_drawn_again() -> None:
    """By the kernel that adds up, as by the others: gradients are those of the same mask."""
    torch.manual_seed(0)
    q, k, _ = given()
    v = torch.eye(K, device=DEVICE).expand(B, H, K, K).contiguous()
    bias = on_device(torch.randn(1, H, Q, K))

    def dropped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.dropout(F.softmax(q @ k.transpose(-2, -1) * 0.3 + bias, dim=-1), 0.4) @ v

    leaves = [x.clone().requires_grad_() for x in (q, k, v, bias)]
    with choices() as made:
        out = torch.compile(dropped, backend="lazyc", options=OPTIONS)(*leaves)
        grad = torch.randn_like(out)
        got = torch.autograd.grad(out, leaves, grad)
    assert all(c.kernel == "flash" for c in made)
    weights = F.softmax(q @ k.transpose(-2, -1) * 0.3 + bias, dim=-1)
    kept = (out.detach() != 0).double()  # with values of the identity, the result is what is kept

    def exact(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.softmax(q @ k.transpose(-2, -1) * 0.3 + bias, dim=-1) * kept / 0.6 @ v

    assert 0.5 < kept.mean() < 0.7 and weights.min() > 0
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    want = torch.autograd.grad(exact(*doubles), doubles, grad.double())
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)


def test_lengths_that_change() -> None:
    torch._dynamo.reset()
    lazyc.metrics.reset()
    before = set(map(id, executables()))
    compiled = torch.compile(biased, backend="lazyc", options=OPTIONS, dynamic=True)
    for q, k in ((37, 41), (50, 33), (64, 64)):
        args = [torch.randn(B, H, n, 16, device=DEVICE) for n in (q, k, k)]
        args.append(torch.randn(1, H, q, k, device=DEVICE))
        grads = []
        for function, dtype in ((compiled, torch.float32), (biased, torch.float64)):
            leaves = [x.to(dtype).requires_grad_() for x in args]
            grads.append(torch.autograd.grad(function(*leaves).square().sum(), leaves))
        for mine, right in zip(*grads, strict=True):
            torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)
    assert not lazyc.metrics.snapshot()["fallbacks"]
    programs = [x.program for x in executables() if id(x) not in before]
    assert len(programs) == 2
    for program in programs:
        assert not [
            b
            for b in program.buffers
            if b.kind != "input" and len(b.shape) == 4 and b.shape[0] == B and b.shape[-1] != 16
        ]


def test_one_sequence_stores_what_its_gradient_is() -> None:
    """A sum over one matrix is that matrix: there is nothing to save."""
    q, k, v = (x[:1] for x in given())
    bias = torch.randn(1, H, Q, K, device=DEVICE)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, bias)]
    with choices() as made:
        got = torch.autograd.grad(
            torch.compile(biased, backend="lazyc", options=OPTIONS)(*leaves).square().sum(), leaves
        )
    assert {c.kernel for c in made} == {"flash", "math"}
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    want = torch.autograd.grad(biased(*doubles).square().sum(), doubles)
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)
