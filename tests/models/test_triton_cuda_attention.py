"""CUDA's attention operators, forward and backward, through the kernels of a GPU in Triton's interpreter.

``F.scaled_dot_product_attention`` becomes one of them where tensors are on a GPU. They are called here by name: the
operators have no kernels for the CPU, so that what is not lowered fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

import lazyc
from lazyc.backend import executables
from lazyc.ir.program import EagerStep, GemmStep
from tests.gpu import DEVICE, OPTIONS, on_device

pytestmark = pytest.mark.gpu
Tensor = torch.Tensor
ATEN = torch.ops.aten
Q, K = 37, 41  # primes: no other size is a multiple of both


def flash(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float | None = None
) -> Tensor:
    return ATEN._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[0]


def efficient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    wide = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
    train = torch.is_grad_enabled()
    return ATEN._scaled_dot_product_efficient_attention(
        q, k, v, wide, train, 0.0, causal, scale=scale
    )[0]


def cudnn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    wide = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
    train = torch.is_grad_enabled()
    return ATEN._scaled_dot_product_cudnn_attention(q, k, v, wide, train, 0.0, causal, scale=scale)[
        0
    ]


OPERATORS: list[Callable[..., Tensor]] = [flash, efficient, cudnn]


def run(
    function: Callable[..., Tensor], args: Sequence[Tensor], grad: Tensor | None
) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(grad is not None) for x in args]
    with torch.set_grad_enabled(grad is not None):
        out = function(*leaves)
    if grad is None:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def check(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    *given: Tensor,
    train: bool = True,
    stored: bool = False,
) -> None:
    """``function`` of operators that the CPU does not have, against ``reference`` in double precision: as near as
    that is in the type of the arguments. No score is stored for each query and key, unless ``stored``."""
    torch._dynamo.reset()
    lazyc.metrics.reset()
    before = set(map(id, executables()))
    args = tuple(map(on_device, given))
    torch.manual_seed(1)
    grad = torch.randn(reference(*args).shape, device=DEVICE) if train else None
    got = run(torch.compile(function, backend="lazyc", options=OPTIONS), args, grad)
    eager = run(reference, args, grad)
    want = run(reference, [x.double() for x in args], grad)
    factor = 2 if args[0].dtype is torch.float32 else 3
    for mine, theirs, exact in zip(got, eager, want, strict=True):
        assert mine.dtype is theirs.dtype and mine.shape == theirs.shape
        error, limit = ((x.double() - exact).abs().max() for x in (mine, theirs))
        rounding = 2 * torch.finfo(mine.dtype).eps * float(exact.abs().max())
        assert error <= factor * max(float(limit), rounding), (error, limit)
    assert not lazyc.metrics.snapshot()["fallbacks"]
    made = [x.program for x in executables() if id(x) not in before]
    assert len(made) == 1 + train
    for program in made:
        assert not [s for s in program.steps if isinstance(s, GemmStep | EagerStep)]
        for buffer in program.buffers:
            held = [any(isinstance(d, int) and d % n == 0 for d in buffer.shape) for n in (Q, K)]
            assert stored or buffer.kind == "input" or not all(held), (buffer.kind, buffer.shape)


def tensors(
    q: int = Q, k: int = K, dtype: torch.dtype = torch.float32, shared: int = 1, value: int = 16
) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2 * shared, q, 16), (2, k, 16), (2, k, value))
    return [torch.randn(2, *s).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_trained(operator: Callable[..., Tensor], causal: bool, dtype: torch.dtype) -> None:
    length = Q if causal else K
    check(
        lambda q, k, v: operator(q, k, v, causal),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
        *tensors(Q, length, dtype),
    )


@pytest.mark.parametrize("operator", OPERATORS)
def test_inference_with_a_scale(operator: Callable[..., Tensor]) -> None:
    check(
        lambda q, k, v: operator(q, k, v, scale=0.3),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
        *tensors(), train=False,
    )  # fmt: skip


@pytest.mark.parametrize("operator", [efficient, cudnn])
def test_masks(operator: Callable[..., Tensor]) -> None:
    """As torch hands them on: numbers to add. The first row sees no key, and is zeros."""
    mask = torch.rand(Q, K) < 0.6
    mask[0] = False
    bias = on_device(torch.zeros(Q, K).masked_fill(~mask, -float("inf")))
    check(
        lambda q, k, v: operator(q, k, v, bias=bias),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)),
        *tensors(),
    )  # fmt: skip


def test_a_bias_that_is_trained() -> None:
    """Its gradient has a number for each query and key."""
    check(
        lambda q, k, v, bias: efficient(q, k, v, bias=bias),
        lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        *tensors(), torch.randn(Q, K), stored=True,
    )  # fmt: skip


def test_causal_attention_of_unequal_lengths() -> None:
    """CUTLASS's mask begins at the first key, as that of ``F.scaled_dot_product_attention`` does."""
    check(
        lambda q, k, v: efficient(q, k, v, True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        *tensors(),
    )


def test_shared_key_heads() -> None:
    check(
        lambda q, k, v: flash(q, k, v, True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        *tensors(Q, Q, shared=2),
    )


@pytest.mark.parametrize("operator", [efficient, cudnn])
def test_values_of_another_width(operator: Callable[..., Tensor]) -> None:
    check(operator, F.scaled_dot_product_attention, *tensors(value=32))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_layer_in_the_layout_of_its_projections(operator: Callable[..., Tensor]) -> None:
    """The result is laid out as the operator's, which views after it count on."""

    def layer(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def f(x: Tensor, w: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (x @ w).chunk(3, -1))
            return attend(q, k, v, True).transpose(1, 2).flatten(-2)

        return f

    torch.manual_seed(0)
    reference = layer(
        lambda q, k, v, causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    )
    check(layer(operator), reference, torch.randn(2, Q, 32), torch.randn(32, 96) / 6, stored=True)
