"""Matrix products and convolutions against eager."""

from __future__ import annotations

import pytest
import torch

from lazyc.frontend.lowering import NotLowered
from tests.frontend.lowering_harness import check, lower, run

NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def loose(dtype: torch.dtype) -> dict[str, float]:
    """bf16 rounds the product before the sum, which eager rounds once."""
    return {} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "k", "n"), [(3, 4, 5), (0, 4, 5), (3, 0, 5), (1, 4, 0), (1, 1, 1)])
def test_products(dtype: torch.dtype, m: int, k: int, n: int) -> None:
    x, y = floats(m, k, dtype=dtype), floats(k, n, dtype=dtype)
    check("aten.mm.default", x, y)
    check("aten.mm.default", x, floats(n, k, dtype=dtype).t())
    check("aten.mv.default", x, y[:, 0] if n else floats(k, dtype=dtype))
    batch = floats(2, m, k, dtype=dtype), floats(2, k, n, dtype=dtype)
    check("aten.bmm.default", *batch)
    check("aten.matmul.default", *batch)
    for beta, alpha in ((1, 1), (0.5, 2), (2, -1.5), (0, 1)):
        scales = {"beta": beta, "alpha": alpha}
        for bias in (floats(n, dtype=dtype), floats(m, n, dtype=dtype), floats(1, 1, dtype=dtype)):
            check("aten.addmm.default", bias, x, y, **scales, **loose(dtype))
        bias = floats(m, n, dtype=dtype)
        check("aten.baddbmm.default", bias, *batch, **scales, **loose(dtype))
        check("aten.addbmm.default", bias, *batch, **scales, **loose(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors(dtype: torch.dtype) -> None:
    a, v, w = floats(3, 4, dtype=dtype), floats(4, dtype=dtype), floats(3, dtype=dtype)
    check("aten.dot.default", v, v.flip(0), **loose(dtype))
    check("aten.vdot.default", v, v.flip(0), **loose(dtype))
    check("aten.dot.default", v[:0], v[:0])
    check("aten.addmv.default", w, a, v, beta=2, alpha=0.5, **loose(dtype))
    check("aten.addr.default", a, w, v, beta=0.5, alpha=3, **loose(dtype))
    check("aten.addr.default", a * NAN, w, v, beta=0)


def test_beta_zero_ignores_nan() -> None:
    bias, x, y = torch.full((3, 5), NAN), floats(3, 4), floats(4, 5)
    check("aten.addmm.default", bias, x, y, beta=0)
    check("aten.baddbmm.default", bias, x[None], y[None], beta=0)
    check("aten.addmm.default", bias, x[:, :0], y[:0], beta=0)
    check("aten.addmm.default", bias, x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_and_matmul(dtype: torch.dtype) -> None:
    weight, bias = floats(5, 4, dtype=dtype), floats(5, dtype=dtype)
    for shape in ((4,), (3, 4), (2, 3, 4), (0, 4), (2, 0, 4)):
        x = floats(*shape, dtype=dtype)
        check("aten.linear.default", x, weight, **loose(dtype))
        check("aten.linear.default", x, weight, bias, **loose(dtype))
    for left, right in (((4,), (4,)), ((4,), (4, 5)), ((3, 4), (4,)), ((2, 3, 4), (4,)),
                        ((4,), (2, 4, 5)), ((2, 1, 3, 4), (6, 4, 5))):  # fmt: skip
        check("aten.matmul.default", floats(*left, dtype=dtype), floats(*right, dtype=dtype),
              **loose(dtype))  # fmt: skip


def test_integer_products_stay_in_eager() -> None:
    whole = torch.ones(3, 3).long()
    for name in ("aten.mm.default", "aten.dot.default"):
        with pytest.raises(NotLowered, match="int64"):
            lower(name, whole, whole)


# stride, padding, dilation, transposed, output_padding, groups
CONVOLUTIONS = [
    ([1], [0], [1], False, [0], 1),
    ([2], [1], [2], False, [0], 2),
    ([2], [1], [1], True, [1], 2),
]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("args", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution(dims: int, args: tuple, dtype: torch.dtype) -> None:
    stride, padding, dilation, transposed, output_padding, groups = args
    x = floats(2, 4, *(6, 7, 5)[:dims], dtype=dtype)
    weight = floats(*((4, 3) if transposed else (6, 4 // groups)), *[3] * dims, dtype=dtype)
    channels = 3 * groups if transposed else 6
    full = (
        stride * dims,
        padding * dims,
        dilation * dims,
        transposed,
        output_padding * dims,
        groups,
    )
    check("aten.convolution.default", x, weight, floats(channels, dtype=dtype), *full)
    check("aten.convolution.default", x, weight, None, *full)
    check("aten.convolution.default", x, weight, None, *args)


def test_convolution_backward_of_the_bias_alone() -> None:
    x, weight = floats(2, 3, 6, 6), floats(5, 3, 3, 3)
    grad = floats(2, 5, 4, 4)
    args = (grad, x, weight, [5], [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    found = run("aten.convolution_backward.default", *args, [False, False, True])
    expected = torch.ops.aten.convolution_backward.default(*args, [False, False, True])
    assert found[:2] == [None, None]
    torch.testing.assert_close(found[2], expected[2])
    with pytest.raises(NotLowered, match="library"):
        lower("aten.convolution_backward.default", *args, [True, False, True])


def test_empty_convolution_stays_in_eager() -> None:
    with pytest.raises(NotLowered):
        lower("aten.convolution.default", floats(0, 3, 6), floats(5, 3, 3), None,
              [1], [0], [1], False, [0], 1)  # fmt: skip
