"""Pooling, resampling and block rearrangement against eager."""

from __future__ import annotations

import itertools

import pytest
import torch

from lazyc.frontend.lowering import NotLowered
from tests.frontend.lowering_harness import check, lower, run

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.bfloat16]


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


# kernel, stride, padding, dilation, ceil_mode
MAX_POOLS = [
    ([2, 2], [], [0, 0], [1, 1], False),
    ([3, 3], [2, 2], [1, 1], [1, 1], False),
    ([3, 2], [2, 1], [1, 0], [1, 2], True),
    ([2, 2], [3, 3], [1, 1], [2, 2], True),
    ([3], [2], [1], [1], True),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", MAX_POOLS)
def test_max_pool2d(dtype: torch.dtype, window: tuple) -> None:
    name = "aten.max_pool2d_with_indices"
    for x in (
        floats(2, 3, 7, 8, dtype=dtype),
        floats(3, 7, 8, dtype=dtype),
        floats(2, 3, 7, 8, dtype=dtype).to(memory_format=torch.channels_last),
    ):
        values, indices = check(f"{name}.default", x, *window)
        assert values is not None and indices is not None
        check(f"{name}_backward.default", values * 2, x, *window, indices, rtol=2e-2, atol=2e-2)


def test_max_pool_of_ties_infinities_and_nan() -> None:
    window = ([3, 3], [2, 2], [1, 1], [2, 2], True)
    ties = torch.zeros(1, 1, 6, 5)
    check("aten.max_pool2d_with_indices.default", ties, *window)
    check("aten.max_pool2d_with_indices.default", ties - INF, *window)
    ties[0, 0, 2, 2] = NAN
    check("aten.max_pool2d_with_indices.default", ties, *window)


def test_max_pool_of_integers() -> None:
    low = torch.full((1, 4, 4), torch.iinfo(torch.int64).min)
    check("aten.max_pool2d_with_indices.default", low, [2, 2], [2, 2], [1, 1])
    check("aten.max_pool2d_with_indices.default", (floats(1, 5, 5) * 9).long(), [3, 3])


def test_max_pool_1d_and_3d() -> None:
    check("aten.max_pool1d.default", floats(2, 3, 9), [3], [2], [1], [2], True)
    x = floats(2, 2, 5, 6, 7)
    window = ([2, 3, 2], [2, 2, 1], [1, 1, 0], [1, 1, 2], True)
    values, indices = check("aten.max_pool3d_with_indices.default", x, *window)
    check("aten.max_pool3d_with_indices_backward.default", values, x, *window, indices)


def test_max_pool_backward_flags_a_bad_index() -> None:
    x, grad = floats(1, 1, 4, 4), floats(1, 1, 2, 2)
    window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
    with pytest.raises(IndexError):
        run("aten.max_pool2d_with_indices_backward.default", grad, x, *window,
            torch.full((1, 1, 2, 2), 16))  # fmt: skip


# kernel, stride, padding, ceil_mode, count_include_pad, divisor_override
AVG_POOLS = [
    ([2, 2], [], [0, 0], False, True, None),
    ([3, 3], [2, 2], [1, 1], True, True, None),
    ([3, 3], [2, 2], [1, 1], True, False, None),
    ([3, 2], [1, 3], [1, 1], False, False, None),
    ([2, 3], [3, 1], [0, 1], False, True, 5),
    ([2], [4], [0], True, True, None),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", AVG_POOLS)
def test_avg_pool2d(dtype: torch.dtype, window: tuple) -> None:
    for shape in ((2, 3, 6, 8), (3, 7, 9)):
        x = floats(*shape, dtype=dtype)
        (out,) = check("aten.avg_pool2d.default", x, *window)
        assert out is not None
        kernel, stride, *rest = window
        check("aten.avg_pool2d_backward.default", out, x, kernel, stride or kernel, *rest,
              rtol=2e-2, atol=1e-2 if dtype is torch.bfloat16 else 1e-6)  # fmt: skip


def test_avg_pool_1d_and_3d() -> None:
    check("aten.avg_pool1d.default", floats(2, 3, 9), [3], [2], [1], True, False)
    x = floats(2, 2, 5, 6, 7)
    window = ([2, 3, 2], [2, 2, 1], [1, 1, 0], True, False, None)
    (out,) = check("aten.avg_pool3d.default", x, *window)
    check("aten.avg_pool3d_backward.default", out, x, *window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [[1, 1], [3, 4], [6, 8], [4, 3], [5, 8], [7, 10], [1, 5]])
def test_adaptive_pools(dtype: torch.dtype, counts: list[int]) -> None:
    for x in (floats(2, 3, 6, 8, dtype=dtype), floats(3, 6, 8, dtype=dtype)):
        (out,) = check("aten._adaptive_avg_pool2d.default", x, counts)
        check("aten._adaptive_avg_pool2d_backward.default", out, x, rtol=2e-2, atol=1e-2)
        values, indices = check("aten.adaptive_max_pool2d.default", x, counts)
        check("aten.adaptive_max_pool2d_backward.default", values, x, indices,
              rtol=2e-2, atol=1e-1)  # fmt: skip


def test_adaptive_pools_in_3d_and_1d() -> None:
    x = floats(2, 2, 5, 6, 4)
    (out,) = check("aten._adaptive_avg_pool3d.default", x, [3, 2, 4])
    check("aten._adaptive_avg_pool3d_backward.default", out, x)
    values, indices = check("aten.adaptive_max_pool3d.default", x, [3, 2, 4])
    check("aten.adaptive_max_pool3d_backward.default", values, x, indices)
    check("aten.adaptive_avg_pool1d.default", floats(2, 3, 7), [3])


def test_adaptive_pool_ties_and_infinities() -> None:
    x = torch.full((1, 5, 7), -INF)
    check("aten.adaptive_max_pool2d.default", x, [3, 3])
    check("aten.adaptive_max_pool2d.default", torch.zeros(1, 6, 6), [3, 3])


def test_pools_that_stay_in_eager() -> None:
    for name, args in (
        ("aten.avg_pool2d.default", (torch.ones(1, 4, 4).long(), [2, 2])),
        ("aten.avg_pool2d.default", (floats(0, 3, 4, 4), [2, 2])),
        ("aten._adaptive_avg_pool2d.default", (floats(1, 3, 4, 4), [0, 0])),
    ):
        with pytest.raises(NotLowered):
            lower(name, *args)


# --- resampling -----------------------------------------------------------------------------------

SHAPES = [(2, 3, 5), (2, 3, 5, 4), (1, 2, 3, 4, 2)]


@pytest.mark.parametrize("kind", ["upsample_nearest", "_upsample_nearest_exact"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [2.0, 3.0, 1.7, 0.6, 1.0])
@pytest.mark.parametrize("with_scale", [False, True])
def test_upsample_nearest(
    kind: str, shape: tuple[int, ...], scale: float, with_scale: bool
) -> None:
    dims = len(shape) - 2
    out = [int(s * scale) for s in shape[2:]]
    scales = [scale if with_scale else None] * dims
    for dtype in DTYPES:
        x = floats(*shape, dtype=dtype)
        check(f"aten.{kind}{dims}d.default", x, out, *scales)
        grad = floats(*shape[:2], *out, dtype=dtype)
        check(f"aten.{kind}{dims}d_backward.default", grad, out, list(shape), *scales,
              rtol=2e-2, atol=2e-2)  # fmt: skip


def test_upsample_nearest_follows_f32_rounding() -> None:
    for size, out in itertools.product((1, 3, 7, 10, 49), (49, 98, 147, 343)):
        x = torch.arange(float(size)).reshape(1, 1, size)
        check("aten.upsample_nearest1d.default", x, [out])
        check("aten._upsample_nearest_exact1d.default", x, [out])


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("scale", [2.0, 1.7, 0.6, 1.0])
@pytest.mark.parametrize("with_scale", [False, True])
def test_upsample_linear(align: bool, scale: float, with_scale: bool) -> None:
    for name, shape in zip(("linear1d", "bilinear2d", "trilinear3d"), SHAPES, strict=True):
        out = [max(1, int(s * scale)) for s in shape[2:]]
        scales = [scale if with_scale else None] * (len(shape) - 2)
        for dtype in DTYPES:
            x, grad = floats(*shape, dtype=dtype), floats(*shape[:2], *out, dtype=dtype)
            near = {"rtol": 1e-5, "atol": 1e-5}
            if dtype is torch.bfloat16:
                near = {"rtol": 2e-2, "atol": 3e-2}
            check(f"aten.upsample_{name}.default", x, out, align, *scales, **near)
            args = (grad, out, list(shape), align, *scales)
            check(f"aten.upsample_{name}_backward.default", *args, **near)


@pytest.mark.parametrize("kind", ["reflection", "replication"])
def test_pads(kind: str) -> None:
    for dims, padding in ((1, [2, 1]), (2, [2, 1, 0, 3]), (3, [1, 0, 2, 1, 1, 1]), (1, [-1, 2])):
        shape = (2, 3, 5, 4, 6)[: dims + 2]
        for x in (floats(*shape), floats(*shape[1:], dtype=torch.bfloat16)):
            (out,) = check(f"aten.{kind}_pad{dims}d.default", x, padding)
            check(f"aten.{kind}_pad{dims}d_backward.default", out, x, padding,
                  rtol=2e-2, atol=5e-2)  # fmt: skip


# --- blocks ---------------------------------------------------------------------------------------


def test_im2col_and_col2im() -> None:
    for shape in ((2, 3, 6, 7), (3, 6, 7)):
        window = ([2, 3], [2, 1], [1, 2], [1, 2])
        (columns,) = check("aten.im2col.default", floats(*shape), *window)
        check("aten.col2im.default", columns, [6, 7], *window)


def test_shuffles() -> None:
    for lead in ((), (2,), (2, 3)):
        check("aten.pixel_shuffle.default", floats(*lead, 8, 3, 4), 2)
        check("aten.pixel_unshuffle.default", floats(*lead, 2, 4, 6), 2)
    check("aten.channel_shuffle.default", floats(2, 6, 3, 4), 3)
    check("aten.pixel_shuffle.default", floats(0, 4, 2, 2), 2)
