"""Keeps Dynamo from losing in-place calls on 0-dim f64 tensors (torch 2.13).

Tracing gives such a tensor a float symbol. Where AOTAutograd finds a float symbol that no tensor of its
graph carries, it has Dynamo trace again with that float as a constant; that trace then drops every
call without readers whose result carries the symbol: ``total.add_(x)`` among them. Only symbols of
Python floats are meant, and of those Dynamo's graph has an ``item`` call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.symbolic_convert import TensorifyState
from torch._subclasses.fake_tensor import FakeTensor


@contextmanager
def tensors_stay_tensors(gm: torch.fx.GraphModule) -> Iterator[None]:
    """Within it, AOTAutograd does not ask for constants in place of tensors of Dynamo's graph."""
    marked = _tensor_symbols(gm) - TensorifyState.force_specializations
    TensorifyState.force_specializations |= marked
    try:
        yield
    finally:
        TensorifyState.force_specializations -= marked


def _tensor_symbols(gm: torch.fx.GraphModule) -> set[str]:
    found: set[str] = set()
    for node in gm.graph.nodes:
        value = node.meta.get("example_value")
        if not isinstance(value, FakeTensor) or not isinstance(value.item_memo, torch.SymFloat):
            continue
        if not any(user.target == "item" for user in node.users):
            found.add(str(value.item_memo.node._expr))
    return found
