"""Decides which values get memory.

Everything else is *inline*: recomputed, element by element, inside the kernels that read it. A value
is realized when it must be addressable (an output, an operand of a library call, the source of a
gather, a reduction or scan result) or when several kernels would each recompute more than a trifle.
A realized value whose readers all end up in its own kernel loses its memory again (``fusion``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lazyc.ir.graph import Graph, Node
from lazyc.ir.ops import Trait
from lazyc.ir.types import numel
from lazyc.passes.index_maps import is_plain_view

# Recomputing at most this much is cheaper than a store and a load.
_CHEAP_OPS = 2
_CHEAP_LOADS = 1
_CHEAP_UNLOADED_OPS = 4  # of positions and constants alone, as masks are
# An inlined expression larger than this is cut, to bound register pressure and compile time.
_MAX_TREE_OPS = 150

_LOOP_ROOT = Trait.REDUCTION | Trait.SCAN | Trait.SCATTER | Trait.ATTENTION
_LIBRARY = Trait.CONTRACTION | Trait.BARRIER
_OWN_MEMORY = Trait.LEAF | _LOOP_ROOT | _LIBRARY
_ONE_OP = Trait.POINTWISE | Trait.RANDOM | Trait.GATHER
_DEAR = Trait.COSTLY | Trait.RANDOM | Trait.NESTED
INLINE_LEAVES = frozenset({"constant", "size", "iota"})


@dataclass(frozen=True, slots=True)
class Cost:
    """What computing one element inline takes (shared subtrees counted each time)."""

    ops: int = 0
    loads: int = 0
    costly: bool = False
    nested: bool = False  # holds a product that never has memory

    @property
    def is_cheap(self) -> bool:
        most = _CHEAP_OPS if self.loads else _CHEAP_UNLOADED_OPS
        return self.ops <= most and self.loads <= _CHEAP_LOADS and not self.costly

    @property
    def is_once_only(self) -> bool:
        """Whether it is too much to be computed for each of several readings of one element."""
        return self.ops > 3 or self.costly


def live_nodes(graph: Graph) -> list[Node]:
    """The nodes that some output or mutation needs, in order; the inputs written to as well."""
    needed: set[Node] = set()
    stack = [*graph.roots(), *(target for target, _ in graph.mutations)]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.inputs)
    return [n for n in graph.nodes if n in needed]


def live_users(graph: Graph) -> dict[Node, list[Node]]:
    """For each node that something needs, the readers that something needs, once for each use."""
    nodes = live_nodes(graph)
    found: dict[Node, list[Node]] = {n: [] for n in nodes}
    for node in nodes:
        for arg in node.inputs:
            found[arg].append(node)
    return found


def has_memory(node: Node) -> bool:
    """True for nodes that always have memory of their own."""
    if node.op in INLINE_LEAVES:
        return False
    return node.spec.has(_OWN_MEMORY) or node.op == "project"


def view_base(node: Node) -> Node:
    """The node that a chain of views (one input each) looks at."""
    while node.spec.has(Trait.VIEW) and len(node.inputs) == 1 and node.op != "pad":
        node = node.inputs[0]
    return node


def inline_costs(nodes: list[Node], forced: frozenset[Node]) -> dict[Node, Cost]:
    """What computing an element of each node takes inside of a kernel that reads it; those ``forced``
    are in memory."""
    costs: dict[Node, Cost] = {}
    for node in nodes:
        if has_memory(node) or node in forced:
            costs[node] = Cost(loads=1)
            continue
        parts = [costs[n] for n in node.inputs]
        if node.op == "gather":
            parts[1:] = [_index_cost(n, costs[n]) for n in node.inputs[1:]]
        own = 1 if node.spec.has(_ONE_OP) else 0
        if node.op in ("pad", "cat"):
            own = 2
        costs[node] = Cost(
            ops=min(own + sum(p.ops for p in parts), 10_000),
            loads=min(sum(p.loads for p in parts), 10_000),
            costly=node.spec.has(_DEAR) or any(p.costly for p in parts),
            nested=node.spec.has(Trait.NESTED) or any(p.nested for p in parts),
        )
        if node.op == "expand" and _shrinks(node.inputs[0], node):
            costs[node] = replace(costs[node], loads=0)
    return costs


def _index_cost(index: Node, cost: Cost) -> Cost:
    """What an index of a gather takes for each element. That of whole rows is computed once for a row: it comes
    before the loop along the row."""
    is_of_rows = index.op == "expand" and _shrinks(index.inputs[0], index)
    return replace(cost, ops=0) if is_of_rows and index.inputs[0].shape[-1] == 1 else cost


def _shrinks(small: Node, big: Node) -> bool:
    """True when reading ``small`` is next to nothing beside visiting ``big``."""
    few, many = numel(small.shape), numel(big.shape)
    return isinstance(few, int) and (not isinstance(many, int) or few * 8 <= many)


def _amplifies(user: Node, source: Node) -> bool:
    """True when ``user`` reads elements of ``source`` more than once each."""
    if user.op == "window":
        return True
    if user.op == "random":  # its seed, for each element
        return numel(user.shape) != 1
    if user.op in ("expand", "strided") or (user.op == "gather" and source is user.inputs[0]):
        big, small = numel(user.shape), numel(source.shape)
        return not (isinstance(big, int) and isinstance(small, int)) or big > small
    return False


def realized_nodes(graph: Graph, forced: frozenset[Node] = frozenset()) -> set[Node]:
    """The nodes that get memory: inputs and library results, ``forced``, and what pays."""
    nodes = live_nodes(graph)
    users: dict[Node, list[Node]] = {n: [] for n in nodes}
    for node in nodes:
        for arg in node.inputs:
            users[arg].append(node)
    costs = inline_costs(nodes, forced)
    streamed = _streamed(nodes, users)
    roots = set(graph.computed_roots())
    realized = {n for n in nodes if has_memory(n)} | (forced & set(nodes))
    realized |= {n for n in roots if not _may_be_handed_out_as_view(n)}
    # What a result is a view of, though nothing reads it where the view has no elements.
    aliased = {o.alias_of for o in graph.outputs if o.alias_of is not None}
    realized |= {n for n in graph.inputs if n.attrs.index in aliased}
    readers: dict[Node, set[Node]] = {}
    addressed: set[Node] = set()  # read through a pointer: by a library call, or as gather source
    for node in reversed(nodes):
        found: set[Node] = {node} if node in roots else set()
        for user in users[node]:
            found |= {user} if user in realized else readers[user]
            through_view = user in addressed and user not in realized and is_plain_view(user)
            if _addresses(user, node) or through_view:
                addressed.add(node)
        readers[node] = found
        if node in realized:
            continue
        is_pointed_at = node in addressed and not is_plain_view(node)
        if is_pointed_at or (
            node not in streamed and _wants_memory(node, users[node], found, costs)
        ):
            realized.add(node)
    return realized


def _streamed(nodes: list[Node], users: dict[Node, list[Node]]) -> set[Node]:
    """Values that are never stored for their cost alone: those computed from a ``dot``, and what has as
    many elements, cheap or random, and is read by these only."""
    dots = [n for n in nodes if n.spec.has(Trait.NESTED)]
    found = set(dots)
    if not dots:
        return found
    for node in nodes:
        if not has_memory(node) and any(n in found for n in node.inputs):
            found.add(node)
    pairs = {d.shape[-2:] for d in dots if len(d.shape) > 1}
    for node in reversed(nodes):
        if has_memory(node) or node.spec.has(Trait.COSTLY) or node.shape[-2:] not in pairs:
            continue
        readers = users[node]
        if readers and all(n in found or n.spec.has(Trait.ATTENTION) for n in readers):
            found.add(node)
    return found


def _may_be_handed_out_as_view(node: Node) -> bool:
    """Whether the memory of another value may serve as this output (``plan`` decides)."""
    base = view_base(node)
    return base is not node and has_memory(base) and not base.spec.has(Trait.LEAF)


def _addresses(user: Node, node: Node) -> bool:
    return user.spec.has(_LIBRARY) or (user.op == "gather" and node is user.inputs[0])


def _wants_memory(
    node: Node, users: list[Node], readers: set[Node], costs: dict[Node, Cost]
) -> bool:
    if node.op in INLINE_LEAVES:
        return False
    cost = costs[node]
    plain_view = is_plain_view(node)
    for user in users:
        if _amplifies(user, node) and cost.is_once_only:
            return True
        if user.op == "window" and not plain_view and cost.ops > 0:
            return True
    if plain_view:
        return False
    if cost.ops > _MAX_TREE_OPS:
        return any(costs[a].ops <= _MAX_TREE_OPS for a in node.inputs)
    return len(readers) > 1 and not cost.is_cheap
