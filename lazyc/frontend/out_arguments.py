"""Calls with ``out=`` of another dtype than the result has.

Some eager functions refuse such an ``out``, others convert. AOTAutograd's functional form always
converts, so only eager itself can tell: the graph is left to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from lazyc.frontend.fx_types import user_line


def converting_call(gm: torch.fx.GraphModule) -> tuple[str, str] | None:
    """(operator, line of the user) of a call in a graph of Dynamo's whose ``out=`` has another dtype
    than its result, if there is one."""
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.kwargs.get("out") is not None and _converts(node):
            name = getattr(node.target, "__name__", str(node.target))
            return name, user_line(node.meta.get("stack_trace"))
    return None


def _converts(node: torch.fx.Node) -> bool:
    args = cast("tuple[Any, ...]", torch.fx.map_arg(node.args, _example_value))
    kwargs = {k: torch.fx.map_arg(v, _example_value) for k, v in node.kwargs.items()}
    given = [t for t in tree_leaves(kwargs.pop("out")) if isinstance(t, FakeTensor)]
    if not given:
        return False
    mode = given[0].fake_mode
    sizes = (
        contextlib.nullcontext()
        if mode.shape_env is None
        else (mode.shape_env.ignore_fresh_unbacked_symbols())
    )
    function = cast("Callable[..., Any]", node.target)
    try:
        with mode, sizes:
            made = function(*args, **kwargs)
    except Exception:  # noqa: BLE001 - a call that needs its out=, or that eager refuses
        return False
    results = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
    return [t.dtype for t in results] != [t.dtype for t in given]


def _example_value(node: torch.fx.Node) -> Any:
    return node.meta["example_value"]
