"""A Graph with symbols as one for certain values of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import sympy

from lazyc.ir.graph import Graph, Node
from lazyc.ir.opspec import SymbolValues, concrete
from lazyc.ir.types import TensorType


def specialize(graph: Graph, values: SymbolValues) -> Graph:
    """The Graph with ``values`` for all its symbols. Arguments that are sizes are left out of its inputs;
    the others keep their indices."""
    result = Graph(constants=graph.constants)
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "input" and not isinstance(node.type, TensorType) and _is_size(graph, node):
            continue
        attrs = _with_values(node.attrs, values)
        kind = _with_values(node.type, values) if node.op == "project" else None
        inputs = [new[n] for n in node.inputs]
        new[node] = result.add(node.op, inputs, attrs, graph.provenance.get(node), kind)
    for output in graph.outputs:
        changed = {
            f.name: new[v] if isinstance(v, Node) else _with_values(v, values)
            for f in dataclasses.fields(output)
            if (v := getattr(output, f.name)) is not None
        }
        result.outputs.append(dataclasses.replace(output, **changed))
    result.mutations = [(new[target], new[value]) for target, value in graph.mutations]
    return result


def _is_size(graph: Graph, node: Node) -> bool:
    return any(s.input == node.attrs.index and s.dim is None for s in graph.symbols)


def _with_values(value: Any, values: SymbolValues) -> Any:
    """``value`` with numbers in place of size expressions, however deep inside."""
    if isinstance(value, sympy.Expr):
        return concrete(value, values)
    if isinstance(value, tuple):
        return tuple(_with_values(v, values) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Node):
        fields = dataclasses.fields(value)
        changed = {f.name: _with_values(getattr(value, f.name), values) for f in fields}
        return dataclasses.replace(value, **changed)
    return value
