"""How the element of a node at some position reads the elements of its inputs.

``reads(node, position)`` is the one place that knows the index map of each view op and that pointwise
ops read at their own position. The fusion pass uses it to see whether two kernels visit the same
elements, and the loop builder uses it to generate loads. Positions are tuples of ``Index``, one a
dim. Gather is not here: its positions depend on values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lazyc.ir.graph import Node
from lazyc.ir.index import Index, delinearize, linearize
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, contiguous_strides

Position: TypeAlias = tuple[Index, ...]


@dataclass(frozen=True, slots=True)
class InRange:
    """The condition ``low <= index < high``."""

    index: Index
    low: Dim
    high: Dim


@dataclass(frozen=True, slots=True)
class Read:
    """Input ``node`` is read at ``position``, wherever all ``conditions`` hold."""

    node: Node
    position: Position
    conditions: tuple[InRange, ...] = ()


def reads(node: Node, position: Position) -> list[Read]:
    """The reads that compute ``node`` at ``position``; for a reduction, position is in its domain
    (the input's dims, of an attention those and the keys)."""
    spec = node.spec
    if spec.has(Trait.POINTWISE) or spec.has(Trait.REDUCTION) or spec.has(Trait.SCAN):
        return [Read(arg, position) for arg in node.inputs]
    if spec.has(Trait.VIEW):
        return _VIEWS[node.op](node, position)
    if node.op == "attend":
        *batch, row, column, key = position
        scores, v, *factor = node.inputs
        pairs = (*batch, row, key)
        return [
            Read(scores, pairs),
            Read(v, (*batch, key, column)),
            *(Read(f, pairs) for f in factor),
        ]
    return []


def is_plain_view(node: Node) -> bool:
    """Whether each element of a node is an element of its only input, whatever its position."""
    if node.op == "window":
        return not node.attrs.padding
    return node.spec.has(Trait.VIEW) and node.op not in ("pad", "cat")


def _reshape(node: Node, position: Position) -> list[Read]:
    source = node.inputs[0]
    if source.shape == node.shape:
        return [Read(source, position)]
    flat = linearize(position, contiguous_strides(node.shape))
    return [Read(source, delinearize(flat, source.shape))]


def _permute(node: Node, position: Position) -> list[Read]:
    found = [Index(0)] * len(position)
    for index, dim in zip(position, node.attrs.dims, strict=True):
        found[dim] = index
    return [Read(node.inputs[0], tuple(found))]


def _expand(node: Node, position: Position) -> list[Read]:
    source = node.inputs[0]
    return [
        Read(
            source,
            tuple(
                Index(0) if d == 1 else index
                for d, index in zip(source.shape, position, strict=True)
            ),
        )
    ]


def _slice(node: Node, position: Position) -> list[Read]:
    attrs = node.attrs
    moved = tuple(
        index * step + start
        for index, start, step in zip(position, attrs.starts, attrs.steps, strict=True)
    )
    return [Read(node.inputs[0], moved)]


def _pad(node: Node, position: Position) -> list[Read]:
    source, attrs = node.inputs[0], node.attrs
    conditions = tuple(
        InRange(index, low, low + d)
        for index, low, high, d in zip(position, attrs.low, attrs.high, source.shape, strict=True)
        if low != 0 or high != 0
    )
    moved = tuple(index - low for index, low in zip(position, attrs.low, strict=True))
    return [Read(source, moved, conditions)]


def _cat(node: Node, position: Position) -> list[Read]:
    axis = node.attrs.axis
    found: list[Read] = []
    start: Dim = 0
    for part in node.inputs:
        end = start + part.shape[axis]
        moved = (*position[:axis], position[axis] - start, *position[axis + 1 :])
        found.append(Read(part, moved, (InRange(position[axis], start, end),)))
        start = end
    return found


def _strided(node: Node, position: Position) -> list[Read]:
    source, attrs = node.inputs[0], node.attrs
    flat = linearize(position, attrs.strides, attrs.offset)
    return [Read(source, delinearize(flat, source.shape))]


def _window(node: Node, position: Position) -> list[Read]:
    source, attrs = node.inputs[0], node.attrs
    moved = list(position[: len(source.shape)])
    for k, axis in enumerate(attrs.axes):
        offset = position[len(source.shape) + k] * attrs.dilations[k]
        moved[axis] = moved[axis] * attrs.strides[k] + offset
        if attrs.padding:
            moved[axis] = moved[axis] - attrs.padding[k]
    conditions = tuple(
        InRange(moved[axis], 0, source.shape[axis]) for axis in attrs.axes if attrs.padding
    )
    return [Read(source, tuple(moved), conditions)]


_VIEWS = {
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "slice": _slice,
    "pad": _pad,
    "cat": _cat,
    "strided": _strided,
    "window": _window,
}
