"""A Graph with sizes that change, for certain sizes."""

from __future__ import annotations

from typing import Any

import torch

from lazyc.frontend.autograd import AotBackend
from lazyc.ir.graph import Graph
from lazyc.ir.interp import run_graph
from lazyc.ir.specialize import specialize
from lazyc.ir.types import TensorType
from lazyc.ir.verify import verify_graph


def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    n, m = x.shape
    y.mul_(2)
    parts = torch.cat([x, y[: n // 2]]).reshape(-1)
    values, order = x.sort(0)
    return (
        parts.cumsum(0) + torch.arange(parts.shape[0]) / m,
        x.new_full((m, n), n * m).T @ x.T,
        values[n - 1],
        order.expand(2, n, m),
        x.t(),
        torch.nn.functional.pad(x, (m, 1)).unfold(0, 2, 1),
    )


def test_the_same_without_symbols() -> None:
    graphs: list[Graph] = []

    def keep(graph: Graph, gm: Any, part: Any) -> Any:
        graphs.append(graph)
        return lambda args: run_graph(graph, args)

    torch._dynamo.reset()
    torch.compile(function, backend=AotBackend(keep), dynamic=True)(
        torch.randn(4, 5), torch.randn(4, 5)
    )
    (graph,) = graphs
    assert graph.symbols
    for n, m in ((4, 5), (7, 3), (2, 9)):
        x, y = torch.randn(2, n, m)
        sizes = {s.symbol: (n, m)[k] for k, s in enumerate(sorted_by_dim(graph))}
        args = arguments(graph, x, y.clone())
        special = specialize(graph, sizes)
        verify_graph(special)
        assert not special.symbols
        assert all(
            isinstance(d, int)
            for v in special.nodes
            if isinstance(v.type, TensorType)
            for d in v.shape
        )
        found = run_graph(special, args)
        for a, b in zip(found, function(x, y), strict=False):
            torch.testing.assert_close(a, b)
        assert len(found) >= 6


def sorted_by_dim(graph: Graph) -> list[Any]:
    """The symbols: that of dim 0 of the first tensor first."""
    tensor = next(n for n in graph.inputs if isinstance(n.type, TensorType))
    order = {d: k for k, d in enumerate(tensor.shape)}
    return sorted(graph.symbols, key=lambda s: order[s.symbol])


def arguments(graph: Graph, x: torch.Tensor, y: torch.Tensor) -> list[Any]:
    tensors = iter((x, y))
    sizes = {s.input: x.shape[k] for k, s in enumerate(sorted_by_dim(graph)) if s.dim is None}
    return [
        next(tensors) if isinstance(n.type, TensorType) else sizes[n.attrs.index]
        for n in graph.inputs
    ]
