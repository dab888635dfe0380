"""Symbolic sizes rounded up: values get room for more elements than they hold.

``pad_to_bucket(graph, {s: 128})`` gives a Graph for every s <= 128. Its arguments and results keep
their sizes; in between, a dim of s elements has 128, of which the first s count. What stands in the
others is never seen: where an op combines elements along such a dim (reductions, matrix products,
scatters), they are replaced by the op's neutral element first, so that softmax, means, norms, losses
and attention give what they give without padding. How many elements count stays a symbol of the
Graph, which the masks read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import sympy

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, DType, Shape, TensorType, free_symbols
from lazyc.passes.padded_axes import (
    Axis,
    CannotPad,
    Part,
    grows,
    is_padded,
    joined,
    regroup,
    room_of,
)
from lazyc.passes.realize import live_nodes
from lazyc.passes.rewrite import Rewriter

__all__ = ["CannotPad", "pad_to_bucket"]


def pad_to_bucket(graph: Graph, rooms: Mapping[sympy.Symbol, int]) -> Graph:
    """The Graph for all values of the symbols in ``rooms`` up to those given there. Raises CannotPad."""
    return _Padder(graph, rooms).run()


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the new Graph; ``axes`` is None for what is no tensor. ``fill``: what all elements that
    do not count are, where known."""

    node: Node
    axes: tuple[Axis, ...] | None
    fill: A.Scalar | None = None


class _Padder:
    def __init__(self, graph: Graph, rooms: Mapping[sympy.Symbol, int]) -> None:
        self.old = graph
        self.rooms = dict(rooms)
        self.graph = Graph(constants=graph.constants, symbols=list(graph.symbols))
        self.build = Rewriter(self.graph)
        self.new: dict[Node, _Value] = {}
        self.arguments: dict[Node, Node] = {}
        self._known_rooms: dict[Dim, Dim] = {}

    def run(self) -> Graph:
        live = {*live_nodes(self.old), *self.old.inputs}
        for node in self.old.nodes:
            if node not in live:
                continue
            self.build.provenance = self.old.provenance.get(node)
            self.new[node] = self._rule(node)(self, node, [self.new[n] for n in node.inputs])
        self.graph.outputs = [
            replace(o, value=self.restored(o.value), view=None) if isinstance(o.value, Node) else o
            for o in self.old.outputs
        ]
        self.graph.mutations = [
            (self.arguments[target], self.restored(value)) for target, value in self.old.mutations
        ]
        return self.graph

    def _rule(self, node: Node) -> _Rule:
        found = _BY_NAME.get(node.op)
        if found is None:
            found = next((r for trait, r in _BY_TRAIT if node.spec.has(trait)), None)
        if found is None:
            raise CannotPad(f"no masks are known for {node.op}")
        return found

    # --- sizes ------------------------------------------------------------------------------------

    def room(self, size: Dim) -> Dim:
        """The room for ``size`` elements."""
        if isinstance(size, int) or not (free_symbols((size,)) & self.rooms.keys()):
            return size
        found = self._known_rooms.get(size)
        if found is None:
            if not grows(size):
                raise CannotPad(f"the size {size} may shrink where another one grows")
            value = sympy.sympify(size).subs(list(self.rooms.items()))
            found = self._known_rooms[size] = int(value) if value.is_Integer else value
        return found

    def shape(self, sizes: Sequence[Dim]) -> Shape:
        return tuple(map(self.room, sizes))

    def axis(self, size: Dim) -> tuple[Part, ...]:
        """An axis whose first elements count."""
        return joined([Part(size, self.room(size))])

    def axes(self, sizes: Sequence[Dim]) -> tuple[Axis, ...]:
        return tuple(map(self.axis, sizes))

    def known(self, axis: Axis, size: Dim) -> tuple[Part, ...]:
        """An axis as parts: of equal elements the first ones count."""
        return self.axis(size) if axis is None else axis

    # --- values -----------------------------------------------------------------------------------

    def padded(self, node: Node) -> _Value:
        """A value that has its own sizes, given room."""
        sizes = node.shape
        shape = self.shape(sizes)
        if shape == sizes:
            return _Value(node, self.axes(sizes))
        high = tuple(room - size for room, size in zip(shape, sizes, strict=True))
        attrs = A.PadAttrs((0,) * len(sizes), high, _padding(node.dtype))
        return _Value(self.build.emit("pad", node, attrs=attrs), self.axes(sizes), attrs.value)

    def restored(self, node: Node) -> Node:
        """The elements that count of a value of the old Graph, with its sizes."""
        value = self.new[node]
        if value.axes is None:
            return value.node
        axes = zip(value.axes, node.shape, strict=True)
        parts = [p for axis, size in axes for p in self.known(axis, size)]
        if all(p.is_full for p in parts):
            return self.build.reshape(value.node, node.shape)
        apart = self.build.reshape(value.node, tuple(p.room for p in parts))
        first, sizes = (0,) * len(parts), tuple(p.size for p in parts)
        attrs = A.SliceAttrs(first, sizes, (1,) * len(parts))
        return self.build.reshape(self.build.emit("slice", apart, attrs=attrs), node.shape)

    def masked(
        self, value: _Value, sizes: Shape, fill: A.Scalar, over: Sequence[int] | None = None
    ) -> Node:
        """The value, of old sizes ``sizes``, with ``fill`` for what does not count along the axes
        ``over`` (all, if not given)."""
        assert value.axes is not None
        node = value.node
        if value.fill is not None and value.fill == fill:
            return node
        places = range(len(value.axes)) if over is None else over
        masks = [
            self._counts(axis, k, node.shape)
            for k in places
            if is_padded(axis := self.known(value.axes[k], sizes[k]))
        ]
        if not masks:
            return node
        mask = masks[0]
        for other in masks[1:]:
            mask = self.build.emit("and", mask, other)
        return self.build.emit("where", mask, node, self.build.constant(fill, node))

    def _counts(self, axis: Sequence[Part], place: int, shape: Shape) -> Node:
        """Which elements count along the axis at ``place``, as a bool value of ``shape``."""
        b, rooms = self.build, tuple(p.room for p in axis)
        found: Node | None = None
        for k, part in enumerate(axis):
            if part.is_full:
                continue
            index = b.emit("iota", attrs=A.IotaAttrs(part.room, DType.I64))
            size = b.emit("size", attrs=A.SizeAttrs(part.size, DType.I64))
            counts = b.emit("lt", index, b.expand(size, index.shape))
            counts = b.reshape(counts, tuple(r if j == k else 1 for j, r in enumerate(rooms)))
            counts = b.expand(counts, rooms)
            found = counts if found is None else b.emit("and", found, counts)
        assert found is not None
        alone = tuple(d if j == place else 1 for j, d in enumerate(shape))
        return b.expand(b.reshape(found, alone), shape)

    def merged(self, values: Sequence[_Value], what: str) -> tuple[Axis, ...]:
        """The axes that values of one shape have in common."""
        found: list[Axis] = []
        for axes in zip(*(v.axes or () for v in values), strict=True):
            different = {a for a in axes if a is not None}
            if len(different) > 1:
                raise CannotPad(f"{what} of values that lie differently after a reshape")
            found.append(different.pop() if different else None)
        return tuple(found)

    def at_start(self, axis: Axis, what: str) -> None:
        """Refuses an axis whose elements do not lie as if there were no padding."""
        if axis is not None and len(axis) > 1:
            raise CannotPad(f"{what} along merged dims")


_Rule: TypeAlias = Callable[[_Padder, Node, Sequence[_Value]], _Value]


def _number(value: A.Scalar, dtype: DType) -> A.Scalar:
    if dtype is DType.BOOL:
        return bool(value)
    return float(value) if dtype.is_float else int(value)


def _padding(dtype: DType) -> A.Scalar:
    """What arguments are padded with: neutral in sums and products, and an index in range."""
    return _number(0, dtype)


def _least(dtype: DType) -> A.Scalar:
    if dtype is DType.BOOL:
        return False
    if dtype.is_float:
        return -math.inf
    bits = 8 * dtype.itemsize
    return -(1 << (bits - 1)) if dtype.is_signed else 0


def _greatest(dtype: DType) -> A.Scalar:
    if dtype is DType.BOOL:
        return True
    if dtype.is_float:
        return math.inf
    bits = 8 * dtype.itemsize
    return (1 << (bits - 1 if dtype.is_signed else bits)) - 1


# --- leaves ---------------------------------------------------------------------------------------


def _input(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    made = p.arguments[node] = p.build.emit("input", attrs=node.attrs)
    return p.padded(made) if isinstance(node.type, TensorType) else _Value(made, None)


def _leaf(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    made = p.build.emit(node.op, attrs=node.attrs)
    return _Value(made, p.axes(made.shape) if isinstance(node.type, TensorType) else None)


def _iota(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    attrs: A.IotaAttrs = node.attrs
    room = p.room(attrs.size)
    return _Value(p.build.emit("iota", attrs=replace(attrs, size=room)), p.axes(node.shape))


# --- pointwise and views --------------------------------------------------------------------------


def _pointwise(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    axes = p.merged(x, node.op)
    inputs = [v.node for v in x]
    if node.op in ("floor_div", "trunc_div", "rem", "mod") and not node.dtype.is_float:
        inputs[1] = p.masked(replace(x[1], axes=axes), node.shape, 1)  # 0 would be an error
    fill = x[0].fill
    if node.op == "cast" and fill is not None and fill in (0, 1):
        fill = _number(fill, node.dtype)
    elif node.op != "cast":
        fill = None
    return _Value(p.build.emit(node.op, *inputs, attrs=node.attrs), axes, fill)


def _reshape(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value,) = x
    assert value.axes is not None
    axes = zip(value.axes, node.inputs[0].shape, strict=True)
    parts = [part for axis, size in axes for part in p.known(axis, size)]
    made = regroup(parts, node.shape)
    shape = tuple(map(room_of, made))
    return _Value(p.build.reshape(value.node, shape), tuple(made), value.fill)


def _permute(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value,) = x
    assert value.axes is not None
    axes = tuple(value.axes[d] for d in node.attrs.dims)
    return _Value(p.build.emit("permute", value.node, attrs=node.attrs), axes, value.fill)


def _expand(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value,) = x
    assert value.axes is not None
    axes: list[Axis] = []
    shape: list[Dim] = []
    for axis, old, size, room in zip(
        value.axes, node.inputs[0].shape, node.shape, value.node.shape, strict=True
    ):
        grown = old != size
        axes.append(None if grown and p.room(size) != size else p.axis(size) if grown else axis)
        shape.append(p.room(size) if grown else room)
    return _Value(p.build.expand(value.node, tuple(shape)), tuple(axes), value.fill)


def _slice(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value,) = x
    assert value.axes is not None
    attrs: A.SliceAttrs = node.attrs
    sizes: list[Dim] = []
    axes: list[Axis] = []
    for k, (axis, start, size, step) in enumerate(
        zip(value.axes, attrs.starts, attrs.sizes, attrs.steps, strict=True)
    ):
        if (start, size, step) == (0, node.inputs[0].shape[k], 1):
            sizes.append(value.node.shape[k])
            axes.append(axis)
            continue
        p.at_start(axis, "a slice")
        room = p.room(size)
        # The last element of the room must lie inside, too.
        if room != size and not (isinstance(start, int) and step > 0):
            raise CannotPad("a slice that ends at the end of a dim")
        sizes.append(room)
        axes.append(None if axis is None and room != size else p.axis(size))
    made = A.SliceAttrs(attrs.starts, tuple(sizes), attrs.steps)
    return _Value(p.build.emit("slice", value.node, attrs=made), tuple(axes), value.fill)


def _pad(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value,) = x
    assert value.axes is not None
    attrs: A.PadAttrs = node.attrs
    axes: list[Axis] = []
    filled = value
    for k, (axis, low, high, size) in enumerate(
        zip(value.axes, attrs.low, attrs.high, node.inputs[0].shape, strict=True)
    ):
        if low == 0 and high == 0:
            axes.append(axis)
            continue
        p.at_start(axis, "padding")
        if p.room(low) != low or p.room(high) != high:
            raise CannotPad("padding of a size that changes")
        if high != 0:  # what follows the elements that count
            masked = p.masked(filled, node.inputs[0].shape, attrs.value, [k])
            filled = replace(filled, node=masked)
        axes.append(p.axis(low + size + high))
    made = p.build.emit("pad", filled.node, attrs=attrs)
    fill = value.fill if value.fill is not None and value.fill == attrs.value else None
    return _Value(made, tuple(axes), fill)


def _cat(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    k: int = node.attrs.axis
    others = [replace(v, axes=(*v.axes[:k], *v.axes[k + 1 :])) for v in x if v.axes is not None]
    rest = p.merged(others, "cat")
    for value in x:
        assert value.axes is not None
        p.at_start(value.axes[k], "cat")
    nodes = [v.node for v in x]
    if any(n.shape[k] != old.shape[k] for n, old in zip(nodes[:-1], node.inputs, strict=False)):
        return _cat_shifted(p, node, x, rest)
    made = p.build.emit("cat", *nodes, attrs=node.attrs)
    return _Value(made, (*rest[:k], p.axis(node.shape[k]), *rest[k:]))


def _cat_shifted(p: _Padder, node: Node, x: Sequence[_Value], rest: tuple[Axis, ...]) -> _Value:
    """A cat whose parts begin where the elements that count of the part before them end."""
    b, k = p.build, node.attrs.axis
    shape = tuple(p.room(node.shape[k]) if j == k else d for j, d in enumerate(x[0].node.shape))
    line = b.emit("iota", attrs=A.IotaAttrs(shape[k], DType.I64))

    def along(index: Node, axis: int) -> Node:
        alone = tuple(d if j == axis else 1 for j, d in enumerate(shape))
        return b.expand(b.reshape(index, alone), shape)

    def number(value: Dim) -> Node:
        size = b.emit("size", attrs=A.SizeAttrs(value, DType.I64))
        return b.expand(size, line.shape)

    start: Dim = 0
    made: Node | None = None
    for value, old in zip(x, node.inputs, strict=True):
        if old.shape[k] == 0:
            continue
        last = value.node.shape[k] - 1
        index = b.emit("sub", line, number(start))
        index = b.emit("maximum", index, b.constant(0, index))
        index = b.emit("minimum", index, number(last))
        indices = [
            along(index if j == k else b.emit("iota", attrs=A.IotaAttrs(d, DType.I64)), j)
            for j, d in enumerate(shape)
        ]
        part = b.emit("gather", value.node, *indices, attrs=A.GatherAttrs(checked=False))
        if made is None:
            made = part
        else:
            begun = along(b.emit("ge", line, number(start)), k)
            made = b.emit("where", begun, part, made)
        start = start + old.shape[k]
    assert made is not None
    return _Value(made, (*rest[:k], p.axis(node.shape[k]), *rest[k:]))


def _window(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value,) = x
    assert value.axes is not None
    attrs: A.WindowAttrs = node.attrs
    axes = list(value.axes)
    for axis, count in zip(attrs.axes, attrs.counts, strict=True):
        p.at_start(axes[axis], "windows")
        axes[axis] = p.axis(count)
    made = replace(attrs, counts=p.shape(attrs.counts))
    return _Value(
        p.build.emit("window", value.node, attrs=made), (*axes, *p.axes(attrs.sizes)), value.fill
    )


# --- what combines elements -----------------------------------------------------------------------

_NEUTRAL: Mapping[str, Callable[[DType], A.Scalar]] = {
    "reduce_sum": lambda t: _number(0, t),
    "reduce_prod": lambda t: _number(1, t),
    "reduce_max": _least,
    "argmax": _least,
    "reduce_min": _greatest,
    "argmin": _greatest,
}


def _reduction(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value,), (old,), over = x, node.inputs, node.attrs.axes
    assert value.axes is not None
    if node.op in ("argmax", "argmin"):
        p.at_start(value.axes[over[0]], node.op)
    masked = p.masked(value, old.shape, _NEUTRAL[node.op](old.dtype), over)
    axes = tuple(a for k, a in enumerate(value.axes) if k not in over)
    return _Value(p.build.emit(node.op, masked, attrs=node.attrs), axes)


def _scan(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value,), k = x, node.attrs.axis
    assert value.axes is not None
    p.at_start(value.axes[k], node.op)
    axes = (*value.axes[:k], p.axis(node.shape[k]), *value.axes[k + 1 :])
    return _Value(p.build.emit(node.op, value.node, attrs=node.attrs), axes)


def _matmul(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    a, b = x
    assert a.axes is not None and b.axes is not None
    batch = p.merged([replace(v, axes=(v.axes or ())[:-2]) for v in x], "a product")
    k = p.merged([replace(a, axes=a.axes[-1:]), replace(b, axes=b.axes[-2:-1])], "a product")
    rank, nodes = len(node.shape), []
    for value, old, place in ((a, node.inputs[0], rank - 1), (b, node.inputs[1], rank - 2)):
        axes = list(value.axes or ())
        axes[place] = k[0]
        known = replace(value, axes=tuple(axes))
        nodes.append(p.masked(known, old.shape, 0.0 if old.dtype.is_float else 0, [place]))
    return _Value(p.build.emit("matmul", *nodes), (*batch, a.axes[-2], b.axes[-1]))


def _convolution(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (value, weight, *bias), attrs = x, node.attrs
    assert value.axes is not None and weight.axes is not None
    if any(is_padded(a) for v in (weight, *bias) for a in v.axes or ()) or is_padded(value.axes[1]):
        raise CannotPad("a convolution with a number of channels that changes")
    spatial = range(2, len(node.shape))
    for k in spatial:
        p.at_start(value.axes[k], "a convolution")
    if attrs.transposed and any(is_padded(value.axes[k]) for k in spatial):
        raise CannotPad("a transposed convolution of a size that changes")
    nodes = [p.masked(value, node.inputs[0].shape, 0.0, spatial), weight.node]
    made = p.build.emit("convolution", *nodes, *(v.node for v in bias), attrs=attrs)
    axes = (value.axes[0], *p.axes(node.shape[1:]))
    if any(
        room_of(p.known(a, d)) != r for a, d, r in zip(axes, node.shape, made.shape, strict=True)
    ):
        raise CannotPad("a convolution of a size that changes")
    return _Value(made, axes)


# --- gather and scatter ---------------------------------------------------------------------------


def _identity_axis(index: Node) -> int | None:
    """The axis along which an index counts 0, 1, 2, ..., whatever the other axes; None if there is none."""
    axis: int | None = None
    while index.op in ("expand", "reshape"):
        if index.op == "reshape":
            wide = [k for k, d in enumerate(index.shape) if d != 1]
            if len(wide) != 1 or axis not in (None, wide[0]):
                return None
            axis = wide[0]
            if index.inputs[0].op == "iota":
                return axis
            if index.inputs[0].shape != index.shape:
                return None
        index = index.inputs[0]
    if index.op != "iota" or index.shape[0] == 1:
        return None
    return 0 if axis is None else axis


def _positions(p: _Padder, axis: int, shape: Shape) -> Node:
    """An index that counts along one axis of the padded shape."""
    line = p.build.emit("iota", attrs=A.IotaAttrs(shape[axis], DType.I64))
    alone = tuple(d if k == axis else 1 for k, d in enumerate(shape))
    return p.build.expand(p.build.reshape(line, alone), shape)


@dataclass(frozen=True, slots=True)
class _Indices:
    """``counting``: for each dim of the source the axis of the indices that runs along it, or None for
    an index whose values are data. ``axes``: those of the indices."""

    counting: tuple[int | None, ...]
    axes: tuple[tuple[Part, ...], ...]
    nodes: tuple[Node, ...]


def _indices(
    p: _Padder, source: Node, old: Sequence[Node], x: Sequence[_Value], others: Sequence[_Value]
) -> _Indices:
    """The indices into ``source``, of which those of elements that do not count point anywhere inside.
    ``others`` have the indices' shape."""
    value, sizes = p.new[source], old[0].shape
    assert value.axes is not None
    counting = tuple(
        axis if (axis := _identity_axis(n)) is not None and sizes[axis] == d else None
        for n, d in zip(old, source.shape, strict=True)
    )
    data = [v for v, axis in zip(x, counting, strict=True) if axis is None]
    merged = p.merged([*data, *others], "indices") if data or others else [None] * len(sizes)
    axes: list[Axis] = list(merged)
    for k, axis in enumerate(counting):
        if axis is None:
            p.at_start(value.axes[k], "indices")
        elif axes[axis] is None:
            axes[axis] = value.axes[k]
        elif value.axes[k] not in (None, axes[axis]):
            raise CannotPad("indices of values that lie differently after a reshape")
    known = tuple(p.known(a, d) for a, d in zip(axes, sizes, strict=True))
    shape = tuple(map(room_of, known))
    nodes = tuple(
        p.masked(replace(v, axes=known), sizes, 0) if axis is None else _positions(p, axis, shape)
        for v, axis in zip(x, counting, strict=True)
    )
    return _Indices(counting, known, nodes)


def _gather(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    source, *indices = x
    found = _indices(p, node.inputs[0], node.inputs[1:], indices, ())
    made = p.build.emit("gather", source.node, *found.nodes, attrs=node.attrs)
    return _Value(made, found.axes)


_SCATTER_NEUTRAL: Mapping[str, Callable[[DType], A.Scalar]] = {
    "add": _NEUTRAL["reduce_sum"],
    "mul": _NEUTRAL["reduce_prod"],
    "max": _least,
    "min": _greatest,
}


def _scatter(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    (base, update, *indices), sizes = x, node.inputs[1].shape
    assert base.axes is not None
    found = _indices(p, node.inputs[0], node.inputs[2:], indices, (update,))
    update = replace(update, axes=found.axes)
    # Along an axis that runs along the base's, what does not count meets what does not count.
    elsewhere = [k for k, a in enumerate(found.axes) if is_padded(a) and k not in found.counting]
    written = update.node
    if elsewhere:
        neutral = _SCATTER_NEUTRAL.get(node.attrs.mode)
        if neutral is None:
            raise CannotPad("a scatter that overwrites")
        written = p.masked(update, sizes, neutral(node.dtype), elsewhere)
    made = p.build.emit("scatter", base.node, written, *found.nodes, attrs=node.attrs)
    axes = (
        p.known(base.axes[k], d) if axis is None else found.axes[axis]
        for k, (axis, d) in enumerate(zip(found.counting, node.shape, strict=True))
    )
    return _Value(made, tuple(axes))


# --- calls ----------------------------------------------------------------------------------------


def _random(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    if p.shape(node.shape) != node.shape:
        # Which number an element gets depends on its place among all.
        raise CannotPad("random numbers in a size that changes")
    return _Value(p.build.emit("random", x[0].node, attrs=node.attrs), p.axes(node.shape))


def _eager(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    inputs = [p.restored(n) for n in node.inputs]
    made = p.build.emit("eager", *inputs, attrs=node.attrs)
    return p.padded(made) if isinstance(made.type, TensorType) else _Value(made, None)


def _project(p: _Padder, node: Node, x: Sequence[_Value]) -> _Value:
    made = p.graph.add("project", (x[0].node,), node.attrs, p.build.provenance, node.type)
    return p.padded(made) if isinstance(made.type, TensorType) else _Value(made, None)


_BY_NAME: Mapping[str, _Rule] = {
    "input": _input,
    "iota": _iota,
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "slice": _slice,
    "pad": _pad,
    "cat": _cat,
    "window": _window,
    "matmul": _matmul,
    "convolution": _convolution,
    "project": _project,
}
_BY_TRAIT: tuple[tuple[Trait, _Rule], ...] = (
    (Trait.LEAF, _leaf),
    (Trait.POINTWISE, _pointwise),
    (Trait.REDUCTION, _reduction),
    (Trait.SCAN, _scan),
    (Trait.GATHER, _gather),
    (Trait.SCATTER, _scatter),
    (Trait.RANDOM, _random),
    (Trait.BARRIER, _eager),
)
