"""In-place calls on 0-dim f64 tensors, which tracing gives a float symbol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def write(v: torch.Tensor) -> Any:
    v.add_(1)
    return v * 2


def write_a_float(v: torch.Tensor, s: float) -> Any:
    v.mul_(s)
    return v * s


def write_beside_a_float_that_is_a_size(v: torch.Tensor, s: float, x: torch.Tensor) -> Any:
    v.mul_(2.0)
    return v * s, x[: int(s * 4)]


def accumulate(v: torch.Tensor, x: torch.Tensor) -> Any:
    v += (x.double() ** 2).sum()
    return x + v


@pytest.mark.parametrize("dynamic", [None, True, False])
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (write, ()),
        (write_a_float, (2.5,)),
        (write_beside_a_float_that_is_a_size, (0.5, torch.rand(10))),
        (accumulate, (torch.rand(3),)),
    ],
)
def test_as_in_eager(function: Callable[..., Any], args: Any, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    results = []
    for run in (function, torch.compile(function, backend="lazyc", dynamic=dynamic)):
        memory = torch.tensor([-0.25, -1.25], dtype=torch.float64)
        results.append([run(memory[1], *args), run(memory[0], *args), memory])
        if args and isinstance(args[0], float):  # Dynamo may now take it for an argument
            results[-1].append(run(memory[1], args[0] * 1.5, *args[1:]))
    torch.testing.assert_close(results[1], results[0])
