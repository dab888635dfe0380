from __future__ import annotations

import math

import pytest
import torch

from tests.frontend.trace import SPECIAL, check

aten = torch.ops.aten
HALVES = (torch.bfloat16, torch.float16)


def x345(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)


REDUCTIONS = {
    "sum": lambda x: aten.sum.default(x),
    "sum dims": lambda x: aten.sum.dim_IntList(x, [0, -1], True),
    "sum of no dims": lambda x: aten.sum.dim_IntList(x, []),
    "sum as double": lambda x: aten.sum.dim_IntList(x, [1], dtype=torch.float64),
    "mean": lambda x: aten.mean.default(x),
    "mean dim": lambda x: aten.mean.dim(x, [1]),
    "prod": lambda x: aten.prod.dim_int(x, 2),
    "amax": lambda x: aten.amax.default(x, [0, 2]),
    "amin": lambda x: aten.amin.default(x, [], True),
    "max": lambda x: aten.max.default(x),
    "max dim": lambda x: aten.max.dim(x, 1),
    "min dim": lambda x: aten.min.dim(x, -1, True),
    "argmax": lambda x: aten.argmax.default(x, 1),
    "argmax flat": lambda x: aten.argmax.default(x, None, True),
    "argmin": lambda x: aten.argmin.default(x, -1, True),
    "any": lambda x: aten.any.dim(aten.gt.Scalar(x, 1.5), 1),
    "all": lambda x: aten.all.default(x),
    "all dims": lambda x: aten.all.dims(aten.gt.Scalar(x, -1), [0, 1]),
    "var": lambda x: aten.var.correction(x, [1]),
    "var of the whole population": lambda x: aten.var.correction(x, [0, 1], correction=0),
    "std": lambda x: aten.std.correction(x, None, correction=1.5, keepdim=True),
    "var_mean": lambda x: aten.var_mean.correction(x, [2], correction=1),
    "logsumexp": lambda x: aten.logsumexp.default(x, [0, 2]),
    "norm": lambda x: aten.linalg_vector_norm.default(x),
    "norm 1": lambda x: aten.linalg_vector_norm.default(x, 1, [1]),
    "norm 0": lambda x: aten.linalg_vector_norm.default(x, 0, [1]),
    "norm 3": lambda x: aten.linalg_vector_norm.default(x, 3, [0, 1], True),
    "norm inf": lambda x: aten.linalg_vector_norm.default(x, math.inf),
    "norm -inf": lambda x: aten.linalg_vector_norm.default(x, -math.inf, [2]),
    "cumsum": lambda x: aten.cumsum.default(x, 1),
    "cumprod": lambda x: aten.cumprod.default(x, -1),
    "cummax": lambda x: aten.cummax.default(x, 1),
    "cummin": lambda x: aten.cummin.default(x, 2),
    "softmax": lambda x: aten._softmax.default(x, 1, False),
    "log_softmax": lambda x: aten._log_softmax.default(x, -1, False),
    "safe_softmax": lambda x: aten._safe_softmax.default(x, -1),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_equal_to_eager(name: str) -> None:
    fn = REDUCTIONS[name]
    check(fn, x345())
    check(fn, x345(torch.float64))
    for dtype in HALVES:
        check(fn, x345(dtype), rtol=1.6e-2, atol=1e-2)
    check(fn, x345(), mode="symbolic")


@pytest.mark.parametrize("name", [n for n in REDUCTIONS if "mean" not in n])
def test_nan_and_infinities(name: str) -> None:
    x = torch.tensor(SPECIAL)
    x = torch.stack([x, x.roll(1), torch.full_like(x, -math.inf)]).reshape(3, 3, 4)
    check(REDUCTIONS[name], x)


@pytest.mark.parametrize("name", ["sum", "sum dims", "prod", "max dim", "argmin", "any", "all", "amax",
                                  "cumsum", "cummax", "max"])  # fmt: skip
def test_integers(name: str) -> None:
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.int8):
        check(REDUCTIONS[name], (x345() * 3).to(dtype))


@pytest.mark.parametrize("name", ["sum", "sum dims", "any", "all", "amax", "max dim", "cummax"])
def test_bool(name: str) -> None:
    check(REDUCTIONS[name], x345() > 0)


@pytest.mark.parametrize("name", ["sum", "prod", "all", "any", "mean", "var", "logsumexp", "norm",
                                  "cumsum", "softmax", "argmax"])  # fmt: skip
def test_no_elements(name: str) -> None:
    shape = (0, 4, 5) if name == "argmax" else (3, 0, 5)
    check(REDUCTIONS[name], torch.empty(shape))


def test_scalars() -> None:
    for fn in (
        lambda x: aten.sum.default(x),
        lambda x: aten.max.dim(x, 0),
        lambda x: aten.argmin.default(x),
        lambda x: aten._softmax.default(x, 0, False),
        lambda x: aten.cumsum.default(x, -1),
        lambda x: aten.cummax.default(x, 0),
        lambda x: aten.var.correction(x, None),
    ):
        check(fn, torch.tensor(2.5))


def test_first_of_equal_extremes_wins() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [math.nan, 1.0, math.nan], [2.0, 2.0, 2.0]])
    check(lambda x: aten.max.dim(x, 1), x)
    check(lambda x: aten.argmin.default(x, 1), x)


def test_variance_does_not_cancel() -> None:
    x = torch.randn(1000) + 1e4
    check(lambda x: aten.var.correction(x, [0]), x, rtol=1e-4, atol=0)


def test_backwards_of_softmax() -> None:
    y = torch.softmax(x345(), 1)
    g = x345().flip(0)
    check(lambda g, y: aten._softmax_backward_data.default(g, y, 1, torch.float32), g, y)
    check(lambda g, y: aten._log_softmax_backward_data.default(g, y.log(), 1, torch.float32), g, y)
    check(
        lambda g, y: aten._softmax_backward_data.default(g, y, 1, torch.bfloat16),
        g.bfloat16(), y.bfloat16(), rtol=1.6e-2, atol=1e-3,
    )  # fmt: skip


def test_losses() -> None:
    x, y = torch.randn(4, 5), torch.randn(4, 5)
    for reduction in (0, 1, 2):
        check(lambda x, y, r=reduction: aten.mse_loss.default(x, y, r), x, y)
    for reduction, grad in ((0, torch.randn(4, 5)), (1, torch.tensor(1.5)), (2, torch.tensor(0.5))):
        check(lambda g, x, y, r=reduction: aten.mse_loss_backward.default(g, x, y, r), grad, x, y)
