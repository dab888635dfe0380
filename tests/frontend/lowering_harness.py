"""Runs one lowering through the interpreter and compares it with the same ATen call in eager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lazyc.frontend.lowering import Builder, lowering_table
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output
from lazyc.ir.interp import evaluate_nodes
from lazyc.ir.ops import resolve_target
from lazyc.ir.types import TensorType, dtype_from_torch
from lazyc.ir.verify import verify_graph


def _input(graph: Graph, value: torch.Tensor, index: int) -> Node:
    dtype = dtype_from_torch(value.dtype)
    assert dtype is not None
    kind = TensorType(dtype, tuple(value.shape))
    attrs = A.InputAttrs(index, f"x{index}", kind, tuple(value.stride()))
    return graph.add("input", (), attrs)


def lower(name: str, *args: Any, **kwargs: Any) -> tuple[Graph, list[Node | None], list[Any]]:
    """The Graph of one call, its results and its tensor arguments. May raise NotLowered."""
    graph, tensors = Graph(), []

    def convert(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            return _input(graph, value, len(tensors) - 1)
        if isinstance(value, list | tuple):
            return tuple(convert(v) for v in value)
        return value

    nodes = [convert(a) for a in args]
    named = {k: convert(v) for k, v in kwargs.items()}
    result = lowering_table()[name](Builder(graph), *nodes, **named)
    results = list(result) if isinstance(result, list | tuple) else [result]
    strides = [None if r is None else tuple(1 for _ in r.shape) for r in results]
    graph.outputs.extend(Output(r, s) for r, s in zip(results, strides, strict=True))
    verify_graph(graph)
    return graph, results, tensors


def run(name: str, *args: Any, **kwargs: Any) -> list[torch.Tensor | None]:
    """The results of a lowered call, interpreted; raises IndexError for an index out of range."""
    graph, results, tensors = lower(name, *args, **kwargs)
    values = evaluate_nodes(graph, tensors, {})
    for node, value in values.items():
        assert value.dtype is node.dtype.torch and tuple(value.shape) == node.shape, node
    return [None if r is None else values[r] for r in results]


def check(
    name: str,
    *args: Any,
    rtol: float | None = None,
    atol: float | None = None,
    skip: Sequence[int] = (),
    **kwargs: Any,
) -> list[torch.Tensor | None]:
    """Lowered and eager results agree in dtype, shape and value (nan equal to nan).

    ``skip`` lists results that are not compared. Returns the lowered results.
    """
    found = run(name, *args, **kwargs)
    expected = resolve_target(name)(*args, **kwargs)
    expected = list(expected) if isinstance(expected, list | tuple) else [expected]
    assert len(found) == len(expected)
    for k, (mine, eager) in enumerate(zip(found, expected, strict=True)):
        if k not in skip and mine is not None:
            torch.testing.assert_close(mine, eager, rtol=rtol, atol=atol, equal_nan=True)
    return found
