"""Where values lie in memory: strides of realized values.

A value with memory gets the strides that its first demanding reader wants (the caller of the
program, an eager call), else channels last where a convolution reads windows of it, else the dim order of
what it is computed from (``dim_order``), else one that makes its only reader's permutation free. With the
option ``disable_passes=layout`` only the first is left: a value that nothing binds is row-major.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, Shape, contiguous_strides
from lazyc.passes.contraction import as_matrix, image_orders, is_copy, is_library_product
from lazyc.passes.dim_order import inherited_order
from lazyc.passes.realize import live_users
from lazyc.passes.strided import StridedView, storable_strides, strided_view


def same_strides(shape: Shape, a: Shape, b: Shape) -> bool:
    """Whether two strides mean the same layout: dims of size 0 or 1 do not count."""
    if any(d == 0 for d in shape):
        return True
    return all(d == 1 or s == t for d, s, t in zip(shape, a, b, strict=True))


@dataclass(frozen=True, slots=True)
class Layouts:
    """``strides`` of realized tensors; ``reasons``, why those are not row-major that could have been."""

    strides: dict[Node, Shape] = field(default_factory=dict)
    reasons: dict[Node, str] = field(default_factory=dict)


def choose_strides(graph: Graph, realized: set[Node], freely: bool = True) -> Layouts:
    """Strides of every realized tensor; row-major where nothing binds them, unless ``freely``."""
    demands: dict[Node, Shape] = {}
    for output in graph.outputs:
        is_view = output.alias_of is not None  # of an input, whatever computes it here
        if isinstance(output.value, Node) and output.strides is not None and not is_view:
            demands.setdefault(output.value, output.strides)
    for node in graph.nodes:
        if isinstance(node.attrs, A.EagerAttrs):
            for arg, strides in zip(node.inputs, node.attrs.input_strides, strict=True):
                if strides is not None:
                    demands.setdefault(arg, storable_strides(arg.shape, strides))
    users = live_users(graph)
    images = image_orders(list(users)) if freely else {}
    layouts = Layouts()
    found, reasons = layouts.strides, layouts.reasons
    for node in sorted(realized, key=lambda n: n.id):
        fixed = fixed_strides(node)
        if fixed is not None:
            found[node] = fixed
        elif not hasattr(node.type, "shape") or node.op in ("eager", "project"):
            continue
        elif (
            node in demands
            and _can_be_written(node, demands[node])
            and _products_can_read(node, users, realized, demands)
        ):
            found[node] = demands[node]
            reasons[node] = "the caller or an eager call takes it so"
        else:
            found[node] = contiguous_strides(node.shape)
            if not freely:
                continue
            wanted = order_for_reader(node, users[node])
            if _can_be_written(node, wanted) and not _turns_for_products(node, users, realized):
                found[node] = wanted
                reasons[node] = "its only reader permutes it so"
            order = inherited_order(node, realized, found)
            if node in images and node.op != "pad":
                found[node] = ordered_strides(node.shape, images[node])
                reasons[node] = "a product reads windows of it so"
            elif order is not None:
                wanted = ordered_strides(node.shape, order)
                if _products_can_read(node, users, realized, {node: wanted}):
                    found[node] = wanted
                    reasons[node] = "what it is computed from lies so"
    for node in [n for n in reasons if is_row_major(n.shape, found[n])]:
        del reasons[node]
    return layouts


def is_row_major(shape: Shape, strides: Shape) -> bool:
    return same_strides(shape, strides, contiguous_strides(shape))


def _turns_for_products(node: Node, users: Mapping[Node, list[Node]], realized: set[Node]) -> bool:
    """Whether only matrix products read the permutations of ``node``, and find matrices in them if it is row-major.
    These read rows and columns alike, and rows that are whole can be made and used some at a time
    (``row_tiles``)."""
    permutations = users[node]
    readers = [u for p in permutations for u in users[p]]
    return (
        bool(readers)
        and not any(p in realized for p in permutations)
        and all(map(is_library_product, readers))
        and _products_can_read(node, users, realized, {node: contiguous_strides(node.shape)})
    )


def _can_be_written(node: Node, strides: Shape) -> bool:
    """Whether what computes ``node`` can write it with these strides: a product writes a matrix."""
    if not is_library_product(node) or 0 in node.shape:
        return True
    return as_matrix(StridedView(node, node.shape, strides, 0)) is not None


def _products_can_read(
    node: Node,
    users: Mapping[Node, list[Node]],
    realized: set[Node],
    strides: Mapping[Node, Shape],
) -> bool:
    """Whether every matrix product that reads views of ``node`` finds a matrix in them."""
    stack, seen = [node], {node}
    while stack:
        here = stack.pop()
        for user in users[here]:
            if is_library_product(user):
                view = strided_view(here, realized, strides)
                if view is None or as_matrix(view) is None:
                    return False
            elif user.spec.has(Trait.VIEW) and user not in realized and user not in seen:
                seen.add(user)
                stack.append(user)
    return True


def fixed_strides(node: Node) -> Shape | None:
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


def order_for_reader(node: Node, users: list[Node]) -> Shape:
    """Row-major, or the order in which a permutation that is the only reader leaves the dims.

    The dims that a reduction leaves keep their order: that of its loops; padding keeps that of what
    it pads, whose rows it is there to align; and a copy has the order that it was made for.
    """
    keeps = node.spec.has(Trait.REDUCTION) or node.op == "pad" or is_copy(node)
    if len(users) == 1 and users[0].op == "permute" and not keeps:
        return ordered_strides(node.shape, users[0].attrs.dims)
    return contiguous_strides(node.shape)


def ordered_strides(shape: Shape, order: tuple[int, ...]) -> Shape:
    """Dense strides with the dims from slowest to fastest in ``order``."""
    dense = contiguous_strides(tuple(shape[d] for d in order))
    found: list[Dim] = [0] * len(shape)
    for dim, stride in zip(order, dense, strict=True):
        found[dim] = stride
    return tuple(found)
