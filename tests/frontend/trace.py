"""Traces a function of ATen calls, imports it, and compares the interpreted Graph with eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from lazyc.frontend.fx_import import import_graph
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph
from lazyc.ir.interp import run_graph
from lazyc.ir.parser import parse_graph
from lazyc.ir.printer import print_graph
from lazyc.ir.verify import verify_graph

SPECIAL = [
    float("nan"),
    float("inf"),
    -float("inf"),
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.5,
    3.7,
    1e-3,
    88.0,
]


def trace(fn: Callable[..., Any], *args: Any, mode: str = "fake") -> torch.fx.GraphModule:
    """The FX graph of ``fn(*args)`` with example values; "symbolic" makes sizes symbols."""
    return make_fx(lambda *xs: fn(*xs), tracing_mode=mode)(*args)


def graph_of(fn: Callable[..., Any], *args: Any, mode: str = "fake") -> Graph:
    """The verified Graph of ``fn(*args)``, whose text was printed and parsed on the way."""
    graph = import_graph(trace(fn, *args, mode=mode))
    verify_graph(graph)
    text = print_graph(graph)
    assert print_graph(parse_graph(text, graph.constants)) == text
    return graph


def eager_nodes(graph: Graph) -> list[tuple[str, str]]:
    """Ops of the graph that were not lowered, with the reasons."""
    return [
        (n.attrs.target, n.attrs.reason) for n in graph.nodes if isinstance(n.attrs, A.EagerAttrs)
    ]


def check(
    fn: Callable[..., Any], *args: Any, mode: str = "fake", lowered: bool = True, **tolerance: Any
) -> Graph:
    """Asserts that ``fn`` is lowered entirely (or is not), and computes what eager does."""
    graph = graph_of(fn, *args, mode=mode)
    if lowered:
        assert not eager_nodes(graph)
    else:
        assert eager_nodes(graph)
    expected = fn(*args)
    expected = list(expected) if isinstance(expected, list | tuple) else [expected]
    tensors = [a for a in args if isinstance(a, torch.Tensor)] if mode == "fake" else list(args)
    for found, wanted in zip(run_graph(graph, tensors), expected, strict=True):
        if isinstance(wanted, torch.Tensor):
            assert found.stride() == wanted.stride() or wanted.numel() <= 1 or 0 in wanted.shape
        torch.testing.assert_close(found, wanted, equal_nan=True, **tolerance)
    return graph
