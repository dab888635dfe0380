"""Which values of a Graph are the same from call to call: made of parameters and constants alone.

Work on them is done once and kept (``Program.packed``), so passes move work there.
"""

from __future__ import annotations

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.ops import Trait
from lazyc.ir.types import TensorType
from lazyc.passes.contraction import factors_as_stored, is_loop_product
from lazyc.passes.realize import live_nodes, view_base


class Lasting:
    """Which nodes of a Graph (or of one rewritten from it) last; remembers what it has found. None does unless
    what is made of weights is kept (``keeps``)."""

    def __init__(self, graph: Graph, keeps: bool = True) -> None:
        self._keeps = keeps
        self._written = {target.attrs.index for target, _ in graph.mutations}
        self._known: dict[Node, bool] = {}

    def is_leaf(self, node: Node) -> bool:
        """Whether a node is a constant, or a parameter that the Graph does not write to."""
        if not self._keeps:
            return False
        if node.op == "input":
            return node.attrs.is_parameter and node.attrs.index not in self._written
        return node.op in ("tensor_constant", "constant", "iota")

    def __call__(self, node: Node) -> bool:
        """Whether a node depends on nothing but parameters and constants."""
        stack = [node]
        while stack:
            here = stack[-1]
            if here in self._known:
                stack.pop()
                continue
            if not here.inputs or _has_effect(here):
                self._known[here] = self.is_leaf(here)
                continue
            missing = [n for n in here.inputs if n not in self._known]
            if missing:
                stack += missing
            else:
                self._known[here] = all(self._known[n] for n in here.inputs)
        return self._known[node]


def _has_effect(node: Node) -> bool:
    """Random values, and eager calls that must run again at each call."""
    serial = isinstance(node.attrs, A.EagerAttrs) and node.attrs.serial >= 0
    return serial or node.spec.has(Trait.RANDOM)


def kept_values(graph: Graph) -> frozenset[Node]:
    """Values that last, and that generated kernels would otherwise compute or reorder at each call.

    One is worth its memory when it is no larger than the parameters that it is made of.
    """
    lasting = Lasting(graph)
    found: set[Node] = set()
    nodes = live_nodes(graph)
    products = {n.inputs[0] for n in nodes if is_loop_product(n)}
    for node in nodes:
        if lasting(node) or node.spec.has(Trait.CONTRACTION | Trait.BARRIER):
            continue
        for arg in node.inputs:
            if lasting(arg):
                # A kernel reads the factors of a product in any order.
                value = view_base(arg) if node in products else _without_plain_views(arg)
                if _is_worth_keeping(value):
                    found.add(value)
    # One of a half type lies beneath its widening, which lasts too and is no use to keep.
    found |= {x for x in factors_as_stored(nodes) if lasting(x) and _is_worth_keeping(x)}
    return frozenset(found)


def _is_worth_keeping(node: Node) -> bool:
    return bool(node.inputs) and not node.spec.has(Trait.BARRIER) and _is_small(node)


def _without_plain_views(node: Node) -> Node:
    """What a chain of views that keep neighbours together looks at."""
    while node.op in ("reshape", "expand", "slice"):
        node = node.inputs[0]
    return (
        node if node.op != "permute" or _moves_last(node) else _without_plain_views(node.inputs[0])
    )


def _moves_last(node: Node) -> bool:
    """Whether a permutation brings another dim into last place (dims of size 1 do not count)."""
    shape = node.inputs[0].shape
    dims = [d for d in node.attrs.dims if shape[d] != 1]
    return bool(dims) and dims[-1] != max(dims)


def _is_small(node: Node) -> bool:
    """Whether a value takes no more memory than the largest leaf under it."""
    stack, seen, largest = [node], {node}, 0
    while stack:
        here = stack.pop()
        if not here.inputs and isinstance(here.type, TensorType):
            size = here.tensor.numel
            largest = max(largest, size * here.dtype.itemsize if isinstance(size, int) else 0)
        for arg in here.inputs:
            if arg not in seen:
                seen.add(arg)
                stack.append(arg)
    size = node.tensor.numel
    return isinstance(size, int) and size * node.dtype.itemsize <= largest
