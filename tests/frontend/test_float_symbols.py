"""In-place calls on 0-dim f64 tensors, which tracing gives a float symbol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

import lazyc
from lazyc.frontend.autograd import AotBackend


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


@pytest.mark.parametrize("train", [False, True])
def test_a_float_that_changes_is_an_argument(train: bool) -> None:
    torch._dynamo.reset()
    lazyc.metrics.reset()

    def scaled(x: torch.Tensor, scale: float) -> torch.Tensor:
        return x.exp() * scale

    run = torch.compile(scaled, backend="lazyc")
    x = torch.randn(5, requires_grad=train)
    for scale in (1.0, 2.5, -0.5, 1e-30):
        torch.testing.assert_close(run(x, scale), scaled(x, scale))
    found = lazyc.metrics.snapshot()
    assert found["graphs_compiled"] == 2, "one for the first, one for all others"
    assert found["fallbacks"] == []


def test_what_dynamo_leaves_to_eager_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise DataDependentOutputException(torch.ops.aten._local_scalar_dense.default)

    monkeypatch.setattr(AotBackend, "_through_autograd", fails)
    torch._dynamo.reset()
    lazyc.metrics.reset()
    x = torch.ones(3, requires_grad=True)
    torch.testing.assert_close(torch.compile(torch.exp, backend="lazyc")(x), x.exp())
    (fallback,) = lazyc.metrics.snapshot()["fallbacks"]
    assert fallback["op"] == "graph" and "_local_scalar_dense" in fallback["reason"]
