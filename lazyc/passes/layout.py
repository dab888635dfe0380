"""Where values lie in memory: strides of realized values, and views as strides over them.

A value with memory gets the strides that its first demanding reader wants (the caller of the
program, an eager call), else those of a dim order that makes its only reader's permutation free, else
row-major ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.index import Axis, Index, axis_index, linearize
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, Shape, contiguous_strides
from lazyc.passes.index_maps import reads


@dataclass(frozen=True, slots=True)
class StridedView:
    """A node seen as memory of ``base``: element offset and strides, one a dim of the node."""

    base: Node
    shape: Shape
    strides: Shape
    offset: Dim


def strided_view(
    node: Node, realized: set[Node], strides: Mapping[Node, Shape]
) -> StridedView | None:
    """``node`` as a strided view of a realized node's memory; None when it is none."""
    axes = tuple(Axis(f"v{k}", d) for k, d in enumerate(node.shape))
    position = tuple(axis_index(a) for a in axes)
    base = node
    while base not in realized:
        if not base.spec.has(Trait.VIEW) or base.op in ("pad", "cat"):
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


def same_strides(shape: Shape, a: Shape, b: Shape) -> bool:
    """Whether two strides mean the same layout: dims of size 0 or 1 do not count."""
    if any(d == 0 for d in shape):
        return True
    return all(d == 1 or s == t for d, s, t in zip(shape, a, b, strict=True))


def choose_strides(graph: Graph, realized: set[Node]) -> dict[Node, Shape]:
    """Strides of every realized tensor."""
    demands: dict[Node, Shape] = {}
    for output in graph.outputs:
        if isinstance(output.value, Node) and output.strides is not None:
            demands.setdefault(output.value, output.strides)
    for node in graph.nodes:
        if isinstance(node.attrs, A.EagerAttrs):
            for arg, strides in zip(node.inputs, node.attrs.input_strides, strict=True):
                if strides is not None:
                    demands.setdefault(arg, strides)
    users = graph.users()
    found: dict[Node, Shape] = {}
    for node in realized:
        fixed = _fixed_strides(node)
        if fixed is not None:
            found[node] = fixed
        elif not hasattr(node.type, "shape") or node.op in ("eager", "project"):
            continue
        elif node in demands:
            found[node] = demands[node]
        else:
            found[node] = _order_for_reader(node, users[node])
    return found


def _fixed_strides(node: Node) -> Shape | None:
    """Strides that are given: of inputs, constants and results of eager calls."""
    attrs = node.attrs
    if isinstance(attrs, A.InputAttrs | A.TensorConstantAttrs):
        return attrs.strides
    if isinstance(attrs, A.EagerAttrs) and not attrs.is_tuple:
        return attrs.strides[0]
    if isinstance(attrs, A.ProjectAttrs):
        source = node.inputs[0].attrs
        assert isinstance(source, A.EagerAttrs)
        return source.strides[attrs.index]
    return None


def _order_for_reader(node: Node, users: list[Node]) -> Shape:
    """Row-major, or the order in which a permutation that is the only reader leaves the dims."""
    if len(users) == 1 and users[0].op == "permute":
        return ordered_strides(node.shape, users[0].attrs.dims)
    return contiguous_strides(node.shape)


def ordered_strides(shape: Shape, order: tuple[int, ...]) -> Shape:
    """Dense strides with the dims from slowest to fastest in ``order``."""
    dense = contiguous_strides(tuple(shape[d] for d in order))
    found: list[Dim] = [0] * len(shape)
    for dim, stride in zip(order, dense, strict=True):
        found[dim] = stride
    return tuple(found)
