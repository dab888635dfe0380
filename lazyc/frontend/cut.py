"""Cuts a graph where sizes come from data: what is before, what is after, and the call between.

``nonzero``, ``unique`` or a boolean mask give tensors whose size only their values tell, a symbol that
no argument has. Nothing can be compiled across such a call, so a graph is cut into pieces without one.
A piece takes the tensors that earlier pieces and calls made; their sizes give the symbols. The calls
themselves, arithmetic on their sizes, and the assertions about these run in Python.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.fx.node import map_arg
from torch.utils._sympy.symbol import SymT, symbol_is_type

from lazyc.frontend.fx_types import Unsupported, user_line

_ASSERTIONS = frozenset(
    {
        "aten._assert_scalar.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)
Boxed = Callable[[list[Any]], Sequence[Any]]


@dataclass
class Piece:
    """``nodes`` of the whole graph as a graph of their own, from ``inputs`` to ``outputs``."""

    nodes: list[torch.fx.Node] = field(default_factory=list)
    inputs: list[torch.fx.Node] = field(default_factory=list)
    outputs: list[torch.fx.Node] = field(default_factory=list)
    calls: list[torch.fx.Node] = field(default_factory=list)  # run in Python, after the piece

    def module(self, whole: torch.fx.GraphModule) -> torch.fx.GraphModule:
        graph = torch.fx.Graph()
        made: dict[torch.fx.Node, torch.fx.Node] = {}
        for node in self.inputs:
            made[node] = graph.placeholder(node.name)
            made[node].meta["val"] = node.meta["val"]
        for node in self.nodes:
            made[node] = graph.node_copy(node, lambda n: made[n])
        graph.output(tuple(made[n] for n in self.outputs))
        return torch.fx.GraphModule(whole, graph)


def depends_on_data(gm: torch.fx.GraphModule) -> bool:
    """Whether a call of the graph gives sizes that no argument has."""
    return any(_data_symbols(node) for node in gm.graph.nodes if node.op != "placeholder")


def data_calls(gm: torch.fx.GraphModule) -> Iterator[tuple[str, str]]:
    """(operator, line of the user) of each such call."""
    for node in gm.graph.nodes:
        if node.op == "call_function" and _is_source(node):
            yield str(node.target), user_line(node.meta.get("stack_trace"))


def cut(gm: torch.fx.GraphModule) -> list[Piece]:
    """The pieces in order. Raises Unsupported for a graph with control flow or effects."""
    pieces: list[Piece] = [Piece()]
    place: dict[torch.fx.Node, int] = {}  # the piece that makes a node, or whose calls do
    in_python: set[torch.fx.Node] = set()
    writes = []
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        if node.op != "call_function" or isinstance(node.target, torch._ops.HigherOrderOperator):
            raise Unsupported(f"{node.target} in a graph with sizes that depend on data")
        if node.target is torch.ops.aten.copy_.default:
            writes.append(node)  # last: pieces read the old value of what is written to
            continue
        runs_in_python = _runs_in_python(node, in_python)
        after = [place[n] + (n in in_python and not runs_in_python) for n in _made(node)]
        place[node] = max(after, default=0)
        while len(pieces) <= place[node]:
            pieces.append(Piece())
        piece = pieces[place[node]]
        if runs_in_python:
            in_python.add(node)
            piece.calls.append(node)
        else:
            piece.nodes.append(node)
    if writes and pieces[-1].calls:  # they read old values too
        pieces.append(Piece())
    pieces[-1].nodes += writes
    _connect(gm, pieces)
    return pieces


def _made(node: torch.fx.Node) -> list[torch.fx.Node]:
    return [n for n in node.all_input_nodes if n.op == "call_function"]


def _runs_in_python(node: torch.fx.Node, in_python: set[torch.fx.Node]) -> bool:
    if _is_source(node):
        return True
    if str(node.target) in _ASSERTIONS:
        return any(_data_symbols(n) for n in node.all_input_nodes)
    if node.target is operator.getitem and node.args[0] in in_python:
        return True
    val = node.meta.get("val")
    return isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool) and bool(
        _data_symbols(node) or any(_data_symbols(n) for n in node.all_input_nodes)
    )


def _is_source(node: torch.fx.Node) -> bool:
    known: set[sympy.Symbol] = set()
    for arg in node.all_input_nodes:
        known |= _data_symbols(arg)
    return bool(_data_symbols(node) - known)


def _symbols(node: torch.fx.Node) -> set[sympy.Symbol]:
    """The symbols in a node's value."""
    found: set[sympy.Symbol] = set()
    val = node.meta.get("val")
    for item in val if isinstance(val, list | tuple) else (val,):
        if isinstance(item, torch.SymInt | torch.SymFloat | torch.SymBool):
            found |= item.node.expr.free_symbols
        elif isinstance(item, torch.Tensor):
            sizes = (*item.shape, *(item.stride() if item.layout is torch.strided else ()))
            for size in sizes:
                found |= size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()
    return found


def _data_symbols(node: torch.fx.Node) -> set[sympy.Symbol]:
    kinds = (SymT.UNBACKED_INT, SymT.UNBACKED_FLOAT)
    return {s for s in _symbols(node) if symbol_is_type(s, kinds)}


def _connect(gm: torch.fx.GraphModule, pieces: list[Piece]) -> None:
    """Finds what each piece takes from before and gives to what follows."""
    available = list(gm.graph.find_nodes(op="placeholder"))
    wanted: set[torch.fx.Node] = set(gm.graph.output_node().all_input_nodes)
    for piece in pieces:
        wanted.update(n for call in piece.calls for n in call.all_input_nodes)
    for piece in pieces:
        constants: dict[torch.fx.Node, None] = {}
        inputs: dict[torch.fx.Node, None] = {}
        inside = set(piece.nodes)
        symbols: set[sympy.Symbol] = set()
        for node in piece.nodes:
            symbols |= _symbols(node)
            for arg in node.all_input_nodes:
                if arg.op == "get_attr":
                    constants[arg] = None
                elif arg not in inside:
                    inputs[arg] = None
                symbols |= _symbols(arg)
        known = {s for node in inputs for s in _given(node)}
        for node in available:
            if new := (_given(node) & symbols) - known:
                inputs[node] = None
                known |= new
        piece.nodes = [*constants, *piece.nodes]
        piece.inputs = list(inputs)
        wanted |= inputs.keys()
        available += [*piece.nodes, *piece.calls]
    for piece in pieces:
        piece.outputs = [n for n in piece.nodes if n in wanted and n.op != "get_attr"]


def _given(node: torch.fx.Node) -> set[sympy.Symbol]:
    """The symbols that a value shows as they are: a size, or a number."""
    val = node.meta.get("val")
    items = val.shape if isinstance(val, torch.Tensor) else (val,)
    exprs = [i.node.expr for i in items if isinstance(i, torch.SymInt)]
    return {e for e in exprs if isinstance(e, sympy.Symbol)}


def join(gm: torch.fx.GraphModule, pieces: Sequence[Piece], functions: Sequence[Boxed]) -> Boxed:
    """The whole graph as a boxed function, from the boxed functions of its pieces."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    (results,) = gm.graph.output_node().args
    constants = {n: _attribute(gm, n.target) for n in gm.graph.find_nodes(op="get_attr")}
    last: dict[torch.fx.Node, int] = {}
    for k, piece in enumerate(pieces):
        for node in (*piece.inputs, *(n for call in piece.calls for n in call.all_input_nodes)):
            last[node] = k
    kept = set(gm.graph.output_node().all_input_nodes)
    dead = [
        [n for n, when in last.items() if when == k and n not in kept] for k in range(len(pieces))
    ]

    def call(args: list[Any]) -> Sequence[Any]:
        env = dict(zip(placeholders, args, strict=True)) | constants
        args.clear()
        for piece, function, unused in zip(pieces, functions, dead, strict=True):
            if piece.nodes:
                made = function([env[n] for n in piece.inputs])
                env.update(zip(piece.outputs, made, strict=True))
            for node in piece.calls:
                given, named = map_arg((node.args, node.kwargs), env.__getitem__)
                env[node] = node.target(*given, **named)  # type: ignore[operator]
            for node in unused:
                env.pop(node, None)
        return map_arg(list(results), env.__getitem__)  # type: ignore[arg-type, return-value]

    return call


def _attribute(gm: torch.fx.GraphModule, path: Any) -> Any:
    value: Any = gm
    for name in str(path).split("."):
        value = getattr(value, name)
    return value
