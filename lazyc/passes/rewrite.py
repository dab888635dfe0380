"""Rebuilding a Graph node by node: the frame of every local rewrite.

A rule looks at one node whose inputs are already rewritten and returns its replacement, or None. Rules
are kept in tables by op name; the first that answers wins. Nodes that nothing needs are left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from lazyc.ir import attrs as A
from lazyc.ir.decisions import Decision
from lazyc.ir.graph import Graph, Node, Provenance
from lazyc.ir.types import DType, Shape
from lazyc.passes.realize import live_nodes


class Rewriter:
    """The graph being built, with the shorthands that rules use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.provenance: Provenance | None = None
        self.new: dict[Node, Node] = {}  # what each node of the old Graph became, so far

    def emit(self, op: str, *inputs: Node, attrs: A.Attrs = A.NO_ATTRS) -> Node:
        return self.graph.add(op, inputs, attrs, self.provenance)

    def decide(
        self,
        what: str,
        why: str,
        copied: int | None = 0,
        kept: int | None = 0,
        saved: int | None = 0,
        seconds: float = 0.0,
    ) -> None:
        """Notes a decision about the node that is rewritten now; fields as in ``Decision``."""
        line = self.provenance.line if self.provenance is not None else ""
        self.graph.decisions.append(Decision(what, why, line, copied, kept, saved, seconds))

    def constant(self, value: A.Scalar, like: Node) -> Node:
        """A constant of the dtype and shape of ``like``."""
        type = like.tensor
        node = self.emit("constant", attrs=A.ConstantAttrs(value, type.dtype, type.device))
        return self.expand(node, type.shape)

    def expand(self, x: Node, shape: Shape) -> Node:
        if x.shape == shape:
            return x
        if len(x.shape) != len(shape):
            x = self.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape)
        return self.emit("expand", x, attrs=A.ShapeAttrs(shape)) if x.shape != shape else x

    def reshape(self, x: Node, shape: Shape) -> Node:
        return x if x.shape == shape else self.emit("reshape", x, attrs=A.ShapeAttrs(shape))

    def cast(self, x: Node, dtype: DType) -> Node:
        return x if x.dtype is dtype else self.emit("cast", x, attrs=A.CastAttrs(dtype))


Rule: TypeAlias = Callable[[Rewriter, Node, Sequence[Node]], Node | None]


def rewrite(graph: Graph, rules: Mapping[str, Sequence[Rule]]) -> Graph:
    """The Graph with every node replaced by what the first rule for its op gives."""
    result = Graph(
        constants=graph.constants, symbols=graph.symbols, decisions=list(graph.decisions)
    )
    rewriter = Rewriter(result)
    new = rewriter.new
    keep = {n for n in graph.nodes if n.op == "input"}
    live = set(live_nodes(graph)) | keep
    for node in graph.nodes:
        if node not in live:
            continue
        inputs = [new[n] for n in node.inputs]
        rewriter.provenance = graph.provenance.get(node)
        found: Node | None = None
        for rule in rules.get(node.op, ()):
            found = rule(rewriter, node, inputs)
            if found is not None:
                break
        if found is None:
            type = node.type if node.op == "project" else None
            found = result.add(node.op, inputs, node.attrs, rewriter.provenance, type)
        new[node] = found
    result.outputs = [
        replace(o, value=new[o.value], view=None) if isinstance(o.value, Node) else o
        for o in graph.outputs
    ]
    result.mutations = [(new[target], new[value]) for target, value in graph.mutations]
    return result


def scalar_value(node: Node) -> A.Scalar | None:
    """The number that every element of a node is, if it is a (broadcast) constant."""
    while node.op in ("reshape", "expand", "permute"):
        node = node.inputs[0]
    return node.attrs.value if node.op == "constant" else None
