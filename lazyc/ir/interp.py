"""Interpreter of the Graph IR in plain torch: the oracle that passes and generators are tested by.

It evaluates each node with its spec's reference, in order, without any optimisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output
from lazyc.ir.ops import (
    SymbolValues,
    concrete,
    concrete_shape,
    fill_template,
    resolve_target,
)
from lazyc.ir.types import Shape


def symbol_values(graph: Graph, args: Sequence[Any]) -> dict[sympy.Symbol, int]:
    """The values of the Graph's symbols for these arguments."""
    return {
        s.symbol: int(args[s.input]) if s.dim is None else int(args[s.input].shape[s.dim])
        for s in graph.symbols
    }


def run_graph(graph: Graph, args: Sequence[Any]) -> list[Any]:
    """The outputs for arguments in the order of the input indices; mutations are applied to args.

    An output has the strides that the Graph gives it, and shares memory with the argument that it is
    an alias of.
    """
    symbols = symbol_values(graph, args)
    values = evaluate_nodes(graph, args, symbols)
    memories: dict[int, torch.Tensor] = {}
    results = [_output(o, values, args, symbols, memories) for o in graph.outputs]
    # All new values are known by now, so no write is seen by a read of another input's old value.
    written = [(t, values[v].clone()) for t, v in graph.mutations]
    for target, value in written:
        args[target.attrs.index].copy_(value)
    return results


def evaluate_nodes(graph: Graph, args: Sequence[Any], symbols: SymbolValues) -> dict[Node, Any]:
    """The value of every node; args are not written to."""
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        inputs = [values[n] for n in node.inputs]
        if isinstance(node.attrs, A.InputAttrs):
            values[node] = args[node.attrs.index]
        elif isinstance(node.attrs, A.TensorConstantAttrs):
            values[node] = graph.constants[node.attrs.index]
        elif isinstance(node.attrs, A.EagerAttrs):
            values[node] = _call_eager(node.attrs, inputs, symbols)
        else:
            values[node] = node.spec.evaluate(inputs, node.attrs, symbols)
    return values


def _call_eager(attrs: A.EagerAttrs, inputs: list[Any], symbols: SymbolValues) -> Any:
    laid_out = [
        x if strides is None else restride(x, concrete_shape(strides, symbols))
        for x, strides in zip(inputs, attrs.input_strides, strict=True)
    ]
    args = fill_template(attrs.args, laid_out, symbols)
    kwargs = {k: fill_template(t, laid_out, symbols) for k, t in attrs.kwargs}
    return resolve_target(attrs.target)(*args, **kwargs)


def restride(x: torch.Tensor, strides: Shape) -> torch.Tensor:
    """x with these strides: itself where they already hold for every dim of more than one."""
    if all(d <= 1 or s == t for d, s, t in zip(x.shape, x.stride(), strides, strict=True)):
        return x
    out = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)  # type: ignore[arg-type]
    if 0 in strides:  # an expanded tensor: its elements share memory and are equal
        first = tuple(slice(0, 1) if s == 0 else slice(None) for s in strides)
        out[first].copy_(x[first])
        return out
    return out.copy_(x)


def _output(
    output: Output,
    values: dict[Node, Any],
    args: Sequence[Any],
    symbols: SymbolValues,
    memories: dict[int, torch.Tensor],
) -> Any:
    if output.value is None:
        return None
    if not isinstance(output.value, Node):
        return concrete(output.value, symbols)
    value = values[output.value]
    if output.alias_of is not None:
        source = args[output.alias_of]
        if not isinstance(source, torch.Tensor) or output.strides is None:
            return source
        offset = source.storage_offset() + concrete(output.offset, symbols)
        return source.as_strided(value.shape, concrete_shape(output.strides, symbols), offset)
    if output.strides is None:
        return value
    strides = concrete_shape(output.strides, symbols)
    if output.memory is None:
        return _fresh(value, strides)
    if output.memory not in memories:
        memories[output.memory] = _fresh(value, strides)
    shape, strides = (concrete_shape(x, symbols) for x in (output.view_shape, output.view_strides))
    return memories[output.memory].as_strided(shape, strides, concrete(output.offset, symbols))


def _fresh(value: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy of its own with these strides, whatever the value is a view of."""
    copy = restride(value, strides)
    if copy is not value:
        return copy
    if 0 in strides:
        return restride(value.clone(memory_format=torch.contiguous_format), strides)
    out = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    return out.copy_(value)
