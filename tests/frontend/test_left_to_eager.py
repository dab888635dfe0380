"""Graphs that AOTAutograd does not get right, or not at all: eager runs them, and that is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import lazyc


def write_to_part_of_an_expanded_argument(x: torch.Tensor) -> torch.Tensor:
    wide = x.expand(2)
    torch._dynamo.graph_break()
    part = wide[1:]
    part.add_(1)
    return part


def view_of_arguments_in_one_memory(x: torch.Tensor) -> torch.Tensor:
    line = x.reshape(-1)
    one = line[0]
    torch._dynamo.graph_break()
    one.add_(1)
    return line[1:]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (write_to_part_of_an_expanded_argument, "AOTAutograd: more than one element"),
        (view_of_arguments_in_one_memory, "AOTAutograd: results are views of arguments"),
    ],
)
def test_as_in_eager(function: Callable[[torch.Tensor], torch.Tensor], reason: str) -> None:
    torch._dynamo.reset()
    lazyc.metrics.reset()
    x, y = torch.tensor(1.0), torch.tensor(1.0)
    found = torch.compile(function, backend="lazyc")(x)
    torch.testing.assert_close(found, function(y))
    assert (x, found._base is x) == (y, True)
    (fallback,) = lazyc.metrics.snapshot()["fallbacks"]
    assert (fallback["op"], fallback["count"]) == ("graph", 1)
    assert fallback["reason"].startswith(reason)


def test_other_arguments_in_one_memory_are_compiled() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        first, last = x[:2], x[1:]
        torch._dynamo.graph_break()
        first.add_(1)
        return last * 2

    lazyc.metrics.reset()
    x, y = torch.arange(4.0), torch.arange(4.0)
    torch.testing.assert_close(torch.compile(function, backend="lazyc")(x), function(y))
    torch.testing.assert_close(x, y)
    counts = lazyc.metrics.snapshot()
    assert counts["graphs_compiled"] > 0
    assert "graph" not in {f["op"] for f in counts["fallbacks"]}
