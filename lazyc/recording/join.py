"""One Graph from several that were recorded one after another.

What one fragment returns and another takes becomes an inner value, so that passes see the program as
if it had never been cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output
from lazyc.ir.ops import IRError

# Where a fragment's argument comes from: the number of an argument of the whole, or (part, result).
Source: TypeAlias = int | tuple[int, int]
Boxed: TypeAlias = Callable[[list[Any]], Sequence[Any]]
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of a result before it is computed: shape, strides in elements, dtype."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Fragment:
    """A Graph without symbols that may be run later. ``in_eager`` is the same as a boxed function of
    torch, made of ``operators`` calls; ``nbytes`` is what its results take. ``number`` is unique in
    this process.

    For reports: ``name`` of the operator, the tensors ``taken``, and its other arguments, ``options``.
    """

    number: int
    graph: Graph
    in_eager: Boxed
    operators: int
    results: tuple[Spec, ...]
    nbytes: int
    name: str
    taken: tuple[Spec, ...]
    options: str

    @staticmethod
    def of(
        graph: Graph,
        in_eager: Boxed,
        operators: int,
        name: str,
        taken: tuple[Spec, ...] | None = None,
        options: str = "",
    ) -> Fragment:
        """``taken``: those of the Graph's inputs, if not given."""
        if taken is None:
            taken = tuple(map(_input_spec, graph.inputs))
        results = tuple(_spec(o) for o in graph.outputs)
        nbytes = sum(torch.Size(s.shape).numel() * s.dtype.itemsize for s in results)
        number = next(_numbers)
        return Fragment(number, graph, in_eager, operators, results, nbytes, name, taken, options)


def _input_spec(node: Node) -> Spec:
    attrs: A.InputAttrs = node.attrs
    assert attrs.strides is not None
    return Spec(_static(node.shape), _static(attrs.strides), node.dtype.torch)


def _spec(output: Output) -> Spec:
    assert isinstance(output.value, Node) and output.strides is not None
    kind = output.value.tensor
    shape, strides = kind.shape, output.strides
    if output.memory is not None:
        shape, strides = output.view_shape, output.view_strides
    return Spec(_static(shape), _static(strides), kind.dtype.torch)


def _static(dims: Sequence[Any]) -> tuple[int, ...]:
    assert all(isinstance(d, int) for d in dims), dims
    return tuple(dims)


@dataclass(frozen=True, slots=True)
class Part:
    """A recorded fragment and where each of its arguments comes from."""

    fragment: Fragment
    sources: tuple[Source, ...]


def join(parts: Sequence[Part], results: Sequence[tuple[int, int]]) -> Graph:
    """The Graph that runs ``parts`` in order and returns ``results``, each (part, result).

    Raises IRError where a value does not have the type that its reader was compiled for.
    """
    whole = Graph()
    made: list[dict[Node, Node]] = []
    arguments = _arguments(whole, parts)

    def value(source: Source) -> Node:
        if isinstance(source, int):
            return arguments[source]
        part, result = source
        output = parts[part].fragment.graph.outputs[result]
        node = output.value if output.view is None else output.view
        assert isinstance(node, Node)
        return made[part][node]

    for part in parts:
        given = [value(source) for source in part.sources]
        made.append(_append(whole, part.fragment.graph, given))
    groups: dict[tuple[int, int], int] = {}  # results that share memory, by part and number there
    for k, r in results:
        output = parts[k].fragment.graph.outputs[r]
        assert isinstance(output.value, Node)
        shared = output.memory
        if shared is not None:
            shared = groups.setdefault((k, shared), len(groups))
        whole.outputs.append(replace(output, value=made[k][output.value], memory=shared, view=None))
    return whole


def _arguments(whole: Graph, parts: Sequence[Part]) -> dict[int, Node]:
    uses: dict[int, list[A.InputAttrs]] = {}
    for part in parts:
        for node, source in zip(part.fragment.graph.inputs, part.sources, strict=True):
            if isinstance(source, int):
                uses.setdefault(source, []).append(node.attrs)
    arguments = {}
    for number, attrs in sorted(uses.items()):
        first = attrs[0]
        if any((a.type, a.strides) != (first.type, first.strides) for a in attrs):
            raise IRError(f"argument {number} is taken with several types: {attrs}")
        merged = replace(
            first,
            index=number,
            name=f"arg{number}",
            is_parameter=any(a.is_parameter for a in attrs),
            alignment=min(a.alignment for a in attrs),
        )
        arguments[number] = whole.add("input", (), merged)
    return arguments


def _append(whole: Graph, graph: Graph, given: Sequence[Node]) -> dict[Node, Node]:
    """Adds a fragment's nodes, with ``given`` for its inputs; what each node has become."""
    new: dict[Node, Node] = {}
    for node, value in zip(graph.inputs, given, strict=True):
        if node.type != value.type:
            raise IRError(f"a value of type {value.type} where {node.type} was recorded")
        new[node] = value
    first_constant = len(whole.constants)
    whole.constants.extend(graph.constants)
    for node in graph.nodes:
        if node.op == "input":
            continue
        attrs = node.attrs
        if isinstance(attrs, A.TensorConstantAttrs):
            attrs = replace(attrs, index=attrs.index + first_constant)
        inputs = [new[n] for n in node.inputs]
        kind = node.type if node.op == "project" else None
        new[node] = whole.add(node.op, inputs, attrs, graph.provenance.get(node), kind)
    return new


def run_in_eager(
    parts: Sequence[Part], results: Sequence[tuple[int, int]], args: Sequence[Any]
) -> list[Any]:
    """What ``join(parts, results)`` computes, by torch, a fragment after another."""
    made: list[Sequence[Any]] = []
    for part in parts:
        given = [args[s] if isinstance(s, int) else made[s[0]][s[1]] for s in part.sources]
        made.append(part.fragment.in_eager(given))
    return [made[k][r] for k, r in results]
