"""The Graph IR: tensor-level values in a DAG, in the order they were recorded.

Nodes are frozen and interned: adding an op with the inputs and attrs of an existing node returns
that node, so common subexpressions merge as they are built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from lazyc.ir import attrs as A
from lazyc.ir.decisions import Decision
from lazyc.ir.ops import OPS, IRError, OpSpec
from lazyc.ir.types import Dim, DType, Shape, SymbolSource, TensorType, ValueType


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a node came from: the ATen op, and the user's source line ("model.py:12") if known."""

    op: str = ""
    line: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value. Compared and hashed by identity; ``id`` is its place in recording order."""

    id: int
    op: str
    inputs: tuple[Node, ...]
    attrs: Any
    type: ValueType

    @property
    def spec(self) -> OpSpec:
        return OPS[self.op]

    @property
    def tensor(self) -> TensorType:
        """The type, for a node that is known to be a tensor."""
        assert isinstance(self.type, TensorType), self
        return self.type

    @property
    def shape(self) -> Shape:
        return self.tensor.shape

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype

    def __repr__(self) -> str:
        args = ", ".join(f"%{n.id}" for n in self.inputs)
        return f"%{self.id} = {self.op}({args}) : {self.type}"


@dataclass(frozen=True, slots=True)
class Output:
    """One result of a Graph.

    ``value`` is a Node, or None / a Dim for results that are no tensors. ``strides`` are those that
    the caller expects (None for an opaque value). ``alias_of`` names the input (by index) whose
    memory the result must share: eager returned that input, or a view of it at ``offset``.

    ``memory`` is set for results that are views: those with one number share the memory of one new
    tensor, ``value`` with ``strides``, and each is its elements with ``view_shape`` and
    ``view_strides`` from ``offset`` on. Results without a number have memory of their own. ``view`` is
    then the result itself, for who reads it inside of another graph; passes drop it.
    """

    value: Node | Dim | None
    strides: Shape | None = None
    alias_of: int | None = None
    offset: Dim = 0
    memory: int | None = None
    view_shape: Shape = ()
    view_strides: Shape = ()
    view: Node | None = None


@dataclass(slots=True)
class Graph:
    """Nodes in topological order, outputs, and writes to inputs.

    ``mutations`` maps an input node to the value that it holds when the program has run; every read
    of the input inside the graph sees the old value. ``symbols`` says which argument each symbol of
    the dims is read from. ``decisions`` are what the passes so far chose.
    """

    nodes: list[Node] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    mutations: list[tuple[Node, Node]] = field(default_factory=list)
    constants: list[torch.Tensor] = field(default_factory=list)
    symbols: list[SymbolSource] = field(default_factory=list)
    provenance: dict[Node, Provenance] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    _interned: dict[tuple[Any, ...], Node] = field(default_factory=dict, repr=False)

    @property
    def inputs(self) -> list[Node]:
        found = [n for n in self.nodes if n.op == "input"]
        return sorted(found, key=lambda n: n.attrs.index)

    def add(
        self,
        op: str,
        inputs: Iterable[Node] = (),
        attrs: A.Attrs = A.NO_ATTRS,
        provenance: Provenance | None = None,
        type: ValueType | None = None,
    ) -> Node:
        """The node for ``op(inputs, attrs)``: an existing one if there is one, else a new one.

        ``type`` is only for ``project``, whose type the caller knows. Raises IRError when the inputs
        or attrs do not fit the op.
        """
        args = tuple(inputs)
        spec = OPS[op]
        key = (op, *(n.id for n in args), repr(attrs))
        node = self._interned.get(key)
        if node is None:
            if spec.arity is not None and spec.arity != len(args):
                raise IRError(f"{op}: takes {spec.arity} inputs, got {len(args)}")
            if not isinstance(attrs, spec.attrs):
                raise IRError(f"{op}: attrs must be {spec.attrs.__name__}, got {attrs}")
            result = type if type is not None else spec.infer([n.type for n in args], attrs)
            node = Node(len(self.nodes), op, args, attrs, result)
            self.nodes.append(node)
            self._interned[key] = node
            if provenance is not None:
                self.provenance[node] = provenance
        return node

    def users(self) -> dict[Node, list[Node]]:
        """For each node the nodes that read it, in order, once for each use."""
        found: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for node in self.nodes:
            for arg in node.inputs:
                found[arg].append(node)
        return found

    def roots(self) -> Iterator[Node]:
        """The nodes that must be there: outputs, mutation values, eager calls with effects."""
        for output in self.outputs:
            if isinstance(output.value, Node) and output.alias_of is not None:
                yield output.value
        yield from self.computed_roots()

    def computed_roots(self) -> Iterator[Node]:
        """Of these, the nodes that must be computed: not the outputs that are views of inputs."""
        for output in self.outputs:
            if isinstance(output.value, Node) and output.alias_of is None:
                yield output.value
        for _, value in self.mutations:
            yield value
        for node in self.nodes:
            if isinstance(node.attrs, A.EagerAttrs) and node.attrs.has_effect:
                yield node


def depends_on(node: Node, sources: set[Node]) -> bool:
    """Whether a node is one of ``sources`` or is computed from any."""
    first = min((n.id for n in sources), default=node.id + 1)
    seen: set[Node] = set()
    stack = [node]
    while stack:
        here = stack.pop()
        if here in sources:
            return True
        if here not in seen and here.id > first:
            seen.add(here)
            stack += here.inputs
    return False
