"""Graphs with sizes that depend on data: compiled before and after the calls that give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import lazyc


@pytest.fixture(autouse=True)
def capture_all() -> Iterator[None]:
    """Lets Dynamo keep such calls in the graph, where it breaks the graph by default."""
    torch._dynamo.reset()
    lazyc.metrics.reset()
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        yield


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend="lazyc", fullgraph=True)


def rows(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = torch.sin(x) * 2
    places = (y > 0).nonzero()
    return torch.tanh(places.float()).sum(0), y.exp(), places


def mask(x: torch.Tensor) -> torch.Tensor:
    y = x.exp() + 1
    return (y[y > 2] * 3 - 1).softmax(-1)


def twice(x: torch.Tensor) -> torch.Tensor:
    kept = torch.masked_select(x * 2, x > 0)
    kept = torch.masked_select(kept + 1, kept > 0.5)
    return kept.cos() + x.sum()


def unique(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    values, places = torch.unique((x * 2).int(), return_inverse=True)
    return values * 2, torch.sigmoid(values.float())[places] + x


def size_of_a_value(x: torch.Tensor) -> torch.Tensor:
    count = x.abs().sum().int().item()
    torch._check(count >= 0)
    return torch.arange(count).float().exp2().sum() + torch.ones(count, 3).sum(0) * x[0, :3]


def nothing_left(x: torch.Tensor) -> torch.Tensor:
    return (x[x > 100] + 1).sum() + x.mean()


def size_in_the_result(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    kept = x[x > 0]
    return kept * 2, kept.shape[0] + 1


@pytest.mark.parametrize(
    "function", [rows, mask, twice, unique, size_of_a_value, nothing_left, size_in_the_result]
)
def test_same_as_eager(function: Callable[..., Any]) -> None:
    run = compiled(function)
    for seed in range(3):
        x = torch.randn(6, 7, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(run(x), function(x))
    assert lazyc.metrics.snapshot()["graphs_compiled"] >= 2
    assert not any(op == "graph" for op, *_ in lazyc.metrics.snapshot()["fallbacks"])
    assert lazyc.metrics.snapshot()["fallbacks"]


def test_assertions_about_sizes_hold() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        count = x.sum().int().item()
        torch._check(count >= 2)
        torch._check(count <= 5)
        return torch.ones(count) + x.exp().sum()

    run = compiled(function)
    torch.testing.assert_close(run(torch.ones(4)), function(torch.ones(4)))
    with pytest.raises(RuntimeError):
        run(torch.full((4,), 0.25))


def test_writes_to_inputs_come_last() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        kept = x[x > 0] * 2
        x.mul_(3)
        return kept + x.sum()

    a, b = (torch.linspace(-2, 2, 9) for _ in range(2))
    torch.testing.assert_close(compiled(function)(a), function(b))
    torch.testing.assert_close(a, b)


def test_calls_read_inputs_before_they_are_written_to() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        places = x.nonzero()
        x.sub_(1)
        return places

    a, b = (torch.tensor([0.0, 1.0, 2.0, 0.0]) for _ in range(2))
    torch.testing.assert_close(compiled(function)(a), function(b))
    torch.testing.assert_close(a, b)


def test_weights_are_kept() -> None:
    model = torch.nn.Linear(8, 8).requires_grad_(False)

    def function(x: torch.Tensor) -> torch.Tensor:
        h = model(x).relu()
        return model(h[h.sum(1) > 0.5]).tanh()

    run, x = compiled(function), torch.randn(64, 8)
    for _ in range(2):
        torch.testing.assert_close(run(x), function(x))
        model.weight.mul_(0.5)


def test_gradients() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(x @ w)
        return (torch.masked_select(h, h > 0) * 2).exp().sum()

    x, w = torch.randn(5, 6), torch.randn(6, 4, requires_grad=True)
    found, wanted = compiled(function)(x, w), function(x, w)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, w), torch.autograd.grad(wanted, w))
