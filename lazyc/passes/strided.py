"""Views as strides over the memory of realized values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lazyc.ir.graph import Node
from lazyc.ir.index import Axis, Index, axis_index, linearize
from lazyc.ir.types import Dim, Shape, contiguous_strides
from lazyc.passes.index_maps import is_plain_view, reads


@dataclass(frozen=True, slots=True)
class StridedView:
    """A node seen as memory of ``base``: element offset and strides, one a dim of the node."""

    base: Node
    shape: Shape
    strides: Shape
    offset: Dim


def storable_strides(shape: Shape, strides: Shape) -> Shape:
    """``strides``, or row-major ones where these put several elements in one place (``expand``)."""
    if 0 in shape:  # no element, no place: they are as good as any
        return strides
    pairs = [(s, d) for d, s in zip(shape, strides, strict=True) if d != 1]
    if any(s == 0 for s, _ in pairs):
        return contiguous_strides(shape)
    known = [(s, d) for s, d in pairs if isinstance(s, int) and isinstance(d, int)]
    if len(known) == len(pairs):
        reach = 0
        for stride, dim in sorted(known):
            if stride <= reach:
                return contiguous_strides(shape)
            reach += (dim - 1) * stride
    return strides


def strided_view(
    node: Node, realized: set[Node], strides: Mapping[Node, Shape]
) -> StridedView | None:
    """``node`` as a strided view of a realized node's memory; None when it is none."""
    axes = tuple(Axis(f"v{k}", d) for k, d in enumerate(node.shape))
    position = tuple(axis_index(a) for a in axes)
    base = node
    while base not in realized:
        if not is_plain_view(base):
            return None
        (read,) = reads(base, position)
        base, position = read.node, read.position
    if base not in strides:
        return None
    flat = linearize(position, strides[base])
    if not all(isinstance(atom, Axis) for atom, _ in flat.terms):
        return None
    return StridedView(base, node.shape, tuple(_coef(flat, a) for a in axes), flat.const)


def _coef(index: Index, axis: Axis) -> Dim:
    return index.coef(axis)
