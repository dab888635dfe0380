from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.frontend.trace import check

aten = torch.ops.aten
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(fn: Callable, *args: torch.Tensor) -> None:
    half = args[0].dtype in (torch.bfloat16, torch.float16)
    tolerance = {"rtol": 2e-2, "atol": 3e-2} if half else {"rtol": 1e-4, "atol": 1e-5}
    check(fn, *args, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(dtype: torch.dtype, affine: bool) -> None:
    x, g = randn(2, 3, 8, dtype=dtype), randn(2, 3, 8, dtype=dtype, seed=1)
    w, c = randn(8, dtype=dtype, seed=2), randn(8, dtype=dtype, seed=3)

    def forward(x: torch.Tensor, w: torch.Tensor, c: torch.Tensor) -> tuple:
        return aten.native_layer_norm.default(x, [8], w if affine else None, c, 1e-5)

    def backward(g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple:
        _, mean, rstd = aten.native_layer_norm.default(x, [8], w, None, 1e-5)
        weight = w if affine else None
        return aten.native_layer_norm_backward.default(
            g, x, [8], mean, rstd, weight, None, [True, affine, False]
        )[: 1 + affine]

    compare(forward, x, w, c)
    compare(backward, g, x, w)
    check(forward, x, w, c, mode="symbolic", rtol=2e-2, atol=3e-2)


def test_layer_norm_of_mixed_types() -> None:
    x, w = randn(3, 8, dtype=torch.bfloat16), randn(8)
    # The trace keeps the statistics as bf16 where eager has float: only the result is compared.
    compare(lambda x, w: aten.native_layer_norm.default(x, [8], w, w, 1e-5)[:1], x, w)


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm(dtype: torch.dtype) -> None:
    x, g = randn(2, 6, 4, 5, dtype=dtype), randn(2, 6, 4, 5, dtype=dtype, seed=1)
    w, c = randn(6, dtype=dtype, seed=2), randn(6, dtype=dtype, seed=3)

    def forward(x: torch.Tensor, w: torch.Tensor, c: torch.Tensor) -> tuple:
        return aten.native_group_norm.default(x, w, c, 2, 6, 20, 3, 1e-5)

    def backward(g: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple:
        _, mean, rstd = aten.native_group_norm.default(x, w, None, 2, 6, 20, 3, 1e-5)
        return aten.native_group_norm_backward.default(
            g, x, mean, rstd, w, 2, 6, 20, 3, [True, True, True]
        )

    compare(forward, x, w, c)
    compare(backward, g, x, w)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (6, 3), (2, 3, 7)])
def test_batch_norm(training: bool, shape: tuple[int, ...]) -> None:
    x, g = randn(*shape), randn(*shape, seed=1)
    w, c, mean = randn(3, seed=2), randn(3, seed=3), randn(3, seed=4)
    var = randn(3, seed=5).abs() + 0.5

    def forward(x: torch.Tensor, *rest: torch.Tensor) -> tuple:
        return aten._native_batch_norm_legit_functional.default(x, *rest, training, 0.1, 1e-5)

    def backward(g: torch.Tensor, x: torch.Tensor, *rest: torch.Tensor) -> tuple:
        saved = aten._native_batch_norm_legit_functional.default(x, *rest, training, 0.1, 1e-5)
        w, _, mean, var = rest
        return aten.native_batch_norm_backward.default(
            g, x, w, mean, var, saved[1], saved[2], training, 1e-5, [True, True, True]
        )

    compare(forward, x, w, c, mean, var)
    compare(backward, g, x, w, c, mean, var)


def test_batch_norm_without_statistics() -> None:
    x, w = randn(4, 3, 5), randn(3)
    compare(lambda x, w: aten._native_batch_norm_legit.no_stats(x, w, None, True, 0.1, 1e-5), x, w)
    compare(
        lambda x, w: aten._native_batch_norm_legit_no_training.default(
            x, w, w, w, w.abs(), 0.1, 1e-5
        )[:1],
        x, w,
    )  # fmt: skip


def test_batch_norm_computes_half_types_in_float() -> None:
    x = randn(8, 3, 6, 6, dtype=torch.bfloat16)
    w, c = randn(3, seed=2), randn(3, seed=3)
    compare(
        lambda x, w, c: aten._native_batch_norm_legit_functional.default(
            x, w, c, c, w.abs(), True, 0.1, 1e-5
        )[:1],
        x, w, c,
    )  # fmt: skip
