"""Canonical text of a Graph: deterministic, and read back by ``ir/parser.py``.

    symbol s0 = arg 0 dim 0
    %0 = input(index=0, name="x", strides=(8, 1)) : f32[s0, 8]
    %1 = exp(%0) : f32[s0, 8]  # aten.exp.default model.py:12
    mutate %0 = %1
    return %1 strides=(8, 1)

Equal graphs have equal text and different graphs have different text (provenance apart), so the text
without provenance is also the cache key's view of a Graph.
"""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch._ops import OpOverload

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output, Provenance
from lazyc.ir.types import Dim, DType, TensorType, ValueType


@lru_cache(maxsize=4096)
def _expr_text(expr: sympy.Expr) -> str:
    """A symbolic expression: sums, products and integer powers infix, any other function by name."""
    if isinstance(expr, sympy.Symbol):
        return expr.name
    if isinstance(expr, sympy.Rational):
        return str(expr) if expr.is_Integer else f"({expr.p} / {expr.q})"
    if isinstance(expr, sympy.Float):
        return repr(float(expr))
    if isinstance(expr, sympy.Add | sympy.Mul):
        sign = " + " if isinstance(expr, sympy.Add) else "*"
        return "(" + sign.join(sorted(map(_expr_text, expr.args))) + ")"
    if isinstance(expr, sympy.Pow):
        return f"({_expr_text(expr.args[0])}**{_expr_text(expr.args[1])})"
    name, args = type(expr).__name__, list(map(_expr_text, expr.args))
    if name in ("Max", "Min"):  # sympy's and torch's: their arguments are a set
        args.sort()
    return f"{name}({', '.join(args)})"


def dim_text(dim: Dim) -> str:
    """A dim as text; symbolic ones do not depend on sympy's ordering."""
    if isinstance(dim, int):
        return str(dim)
    text = _expr_text(dim)
    return text[1:-1] if text.startswith("(") and _matching(text) else text


def _matching(text: str) -> bool:
    """True when the first bracket closes at the end of the text."""
    depth = 0
    for k, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return k == len(text) - 1
    return False


def type_text(t: ValueType) -> str:
    """A type as text: ``f32[4, s0]``, ``i64[]@cuda:0``, ``opaque<"complex64[3]">``."""
    if isinstance(t, TensorType):
        device = "" if t.device == "cpu" else f"@{t.device}"
        return f"{t.dtype.value}[{', '.join(map(dim_text, t.shape))}]{device}"
    return f"opaque<{json.dumps(t.what)}>"


def value_text(value: Any) -> str:
    """An attribute value as text. Raises TypeError for what has no canonical text."""
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, tuple):
        inner = ", ".join(map(value_text, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, DType):
        return value.value
    if isinstance(value, sympy.Expr):
        return dim_text(value)
    if isinstance(value, A.ArgRef):
        return f"${value.index}"
    if isinstance(value, ValueType):
        return type_text(value)
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return str(value)
    if isinstance(value, torch.device):
        return f'device("{value}")'
    if isinstance(value, OpOverload):
        return f'operator("{value}")'
    raise TypeError(f"no text for {type(value).__name__} {value!r}")


def _shown_type(node: Node) -> bool:
    return isinstance(node.attrs, A.InputAttrs | A.TensorConstantAttrs)


def attrs_text(node: Node) -> list[str]:
    """The attributes that differ from their defaults as ``name=value``."""
    found = []
    for field in dataclasses.fields(node.attrs):
        value = getattr(node.attrs, field.name)
        if field.name == "type" and _shown_type(node):
            continue
        if field.default is dataclasses.MISSING or value != field.default:
            found.append(f"{field.name}={value_text(value)}")
    return found


def node_text(node: Node, provenance: Provenance | None = None) -> str:
    """One line: ``%3 = add(%1, %2) : f32[4, 8]  # aten.add.Tensor model.py:12``."""
    args = ", ".join([*(f"%{n.id}" for n in node.inputs), *attrs_text(node)])
    line = f"%{node.id} = {node.op}({args}) : {type_text(node.type)}"
    source = f"{provenance.op} {provenance.line}".strip() if provenance else ""
    return f"{line}  # {source}" if source else line


def output_text(output: Output) -> str:
    """One ``return`` line."""
    if not isinstance(output.value, Node):
        return f"return {value_text(output.value)}"
    parts = [f"return %{output.value.id}"]
    if output.strides is not None:
        parts.append(f"strides={value_text(output.strides)}")
    if output.alias_of is not None:
        parts.append(f"alias_of={output.alias_of} offset={dim_text(output.offset)}")
    if output.memory is not None:
        parts.append(f"memory={output.memory} view_shape={value_text(output.view_shape)}")
        parts.append(f"view_strides={value_text(output.view_strides)}")
        parts.append(f"offset={dim_text(output.offset)}")
    return " ".join(parts)


def print_graph(graph: Graph, provenance: bool = True) -> str:
    """The whole Graph, one line a node, ending in a newline."""
    lines = []
    for source in graph.symbols:
        place = "" if source.dim is None else f" dim {source.dim}"
        lines.append(f"symbol {source.symbol.name} = arg {source.input}{place}")
    for node in graph.nodes:
        lines.append(node_text(node, graph.provenance.get(node) if provenance else None))
    lines += [f"mutate %{target.id} = %{value.id}" for target, value in graph.mutations]
    lines += [output_text(o) for o in graph.outputs]
    return "\n".join(lines) + "\n"
