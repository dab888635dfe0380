"""What a lowering returned against what the trace found: the same types, or it is a bug."""

from __future__ import annotations

from typing import Any

import torch

from lazyc.frontend.builder import Builder
from lazyc.frontend.fx_types import value_type
from lazyc.ir.graph import Node
from lazyc.ir.ops import IRError
from lazyc.ir.types import OpaqueType, TensorType, free_symbols


def _results(node: torch.fx.Node) -> list[Any]:
    val = node.meta.get("val")
    return list(val) if isinstance(val, list | tuple) else [val]


def result_types(node: torch.fx.Node) -> list[TensorType | None]:
    """The types of a call's results in the trace; None for one that is no tensor."""
    types = [value_type(item) for item in _results(node)]
    return [t if isinstance(t, TensorType) else None for t in types]


def is_symbolic(node: torch.fx.Node) -> bool:
    """True when a tensor of the call has a symbolic size."""
    values = [arg.meta.get("val") for arg in node.all_input_nodes] + _results(node)
    types = [value_type(v) for v in values if isinstance(v, torch.Tensor)]
    return any(free_symbols(t.shape) for t in types if isinstance(t, TensorType))


def describe_call(node: torch.fx.Node) -> str:
    """The arguments of a call as text, tensors by their types."""

    def text(arg: Any) -> str:
        if isinstance(arg, torch.fx.Node):
            return str(value_type(arg.meta.get("val")))
        if isinstance(arg, list | tuple):
            return f"[{', '.join(map(text, arg))}]"
        return str(arg)

    parts = [text(a) for a in node.args] + [f"{k}={text(v)}" for k, v in node.kwargs.items()]
    return f"({', '.join(parts)})"


def matched_result(b: Builder, name: str, node: torch.fx.Node, result: Any) -> Any:
    """A lowering's result (lists as tuples) with the sizes as the trace writes them.

    Raises IRError when it has another type than in the trace.
    """
    val = node.meta.get("val")
    if isinstance(val, torch.Tensor):
        return _matched(b, name, node, result, val)
    if not isinstance(val, list | tuple):
        return result
    if not isinstance(result, list | tuple) or len(result) != len(val):
        raise IRError(f"{name}{describe_call(node)}: {len(val)} results expected")
    # Results that nobody reads may be left out (None).
    return tuple(
        _matched(b, name, node, made, expected)
        if made is not None and isinstance(expected, torch.Tensor)
        else made
        for made, expected in zip(result, val, strict=True)
    )


def _matched(b: Builder, name: str, node: torch.fx.Node, made: Any, val: torch.Tensor) -> Node:
    expected = value_type(val)
    found = made.type if isinstance(made, Node) else OpaqueType(type(made).__name__)
    if found == expected:
        return made
    if (
        isinstance(found, TensorType)
        and isinstance(expected, TensorType)
        and found.with_shape(()) == expected.with_shape(())
        and found.rank == expected.rank
        and all(
            d == e or free_symbols((d, e)) for d, e in zip(found.shape, expected.shape, strict=True)
        )
    ):
        # Equal under the trace's guards, though written in another way.
        return b.reshape(made, expected.shape)
    raise IRError(f"{name}{describe_call(node)}: lowered to {found}, the trace has {expected}")
