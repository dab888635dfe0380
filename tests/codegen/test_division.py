"""Division by a value that a whole loop shares: its quotients are those of the CPU's division."""

from __future__ import annotations

import pytest
import torch

from lazyc.codegen.target import Target
from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, Compute, Load, LoopNest
from lazyc.ir.types import DType, dtype_from_torch
from tests.codegen.harness import Body, row_major, run

INF, NAN = float("inf"), float("nan")
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def divide_rows(dtype: DType, rows: int, columns: int) -> LoopNest:
    """out[i, j] = x[i, j] / y[i]"""
    i, j = Axis("i", rows), Axis("j", columns)
    body = Body()
    x = body.add(Load, dtype, 0, row_major((i, j)))
    y = body.add(Load, dtype, 1, axis_index(i))
    body.store(2, row_major((i, j)), body.add(Compute, dtype, "div", (x, y)))
    buffers = (
        BufferParam(dtype, "in", rows * columns),
        BufferParam(dtype, "in", rows),
        BufferParam(dtype, "out", rows * columns),
    )
    return LoopNest((i, j), (body.stage(),), buffers)


def quotients(target: Target, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(x, 777.0)
    dtype = dtype_from_torch(x.dtype)
    assert dtype is not None
    assert run(divide_rows(dtype, *x.shape), target, x, y, out) == 0
    return out


def same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    """Equal, the signs of zeros included; any nan is as good as another."""
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    numbers = ~want.isnan()
    assert torch.equal(got.signbit()[numbers], want.signbit()[numbers])


def mantissas(count: int, dtype: torch.dtype, spread: int) -> torch.Tensor:
    """Numbers in [1, 2): ``spread`` 0 near 1, 1 near 2, 2 anywhere."""
    bits = 23 if dtype is torch.float32 else 52
    steps = torch.randint(0, 1 << (8 if spread < 2 else bits), (count,), dtype=torch.int64)
    steps = (1 << bits) - 1 - steps if spread == 1 else steps
    return 1 + steps.to(torch.float64).to(dtype) * 2.0**-bits


@FLOATS
@pytest.mark.parametrize("x_spread", [0, 1, 2])
@pytest.mark.parametrize("y_spread", [0, 1, 2])
def test_rounds_correctly(target: Target, dtype: torch.dtype, x_spread: int, y_spread: int) -> None:
    x = mantissas(256 * 1000, dtype, x_spread).view(256, 1000)
    x *= 2.0 ** torch.randint(-20, 20, x.shape).to(dtype) * (1 - 2 * torch.randint(0, 2, x.shape))
    y = mantissas(256, dtype, y_spread) * 2.0 ** torch.randint(-50, 50, (256,)).to(dtype)
    same_bits(quotients(target, x, y), x / y[:, None])


@FLOATS
def test_awkward_values(target: Target, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    tiny, denormal = info.tiny, info.tiny * info.eps
    parts = (0.0, 1.0, 3.0, 7.5, info.max, info.max / 3, tiny, tiny * 7, denormal, INF, NAN)
    every = torch.tensor([sign * v for v in parts for sign in (1.0, -1.0)], dtype=dtype)
    edges = [2.0**k for k in (-901, -900, -899, -101, -100, -99, 99, 100, 101, 899, 900, 901)]
    y = torch.cat([every, torch.tensor(edges, dtype=torch.float64).to(dtype)])
    x = every.repeat(len(y), 3)  # whole vectors and a rest
    got, want = quotients(target, x, y), x / y[:, None]
    normal = ~(want.abs() < tiny) | (want == 0)
    same_bits(got[normal], want[normal])
    torch.testing.assert_close(got, want, rtol=0, atol=denormal, equal_nan=True)
