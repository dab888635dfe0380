"""Symbolic sizes rounded up: values get room for more elements than they hold.

``pad_to_bucket(graph, {s: 128})`` gives a Graph for every s <= 128. Its arguments and results keep
their sizes; in between, a dim of s elements has 128, of which the first s count. What stands in the
others is never seen: where an op combines elements along such a dim (reductions, matrix products,
scatters), they are replaced by the op's neutral element first, so that softmax, means, norms, losses
and attention give what they give without padding. How many elements count stays a symbol of the
Graph, which the masks read. An op for which no masks are known, an eager call among them, is done on
what counts alone.
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
from lazyc.ir.types import Dim, DType, Shape
from lazyc.passes.padded_axes import Axis, is_padded, regroup, room_of
from lazyc.passes.padder import Padder, Value, common_axes, number
from lazyc.passes.realize import live_nodes

# What replaces a node of the old Graph, given its inputs in the new one; None where a rule has no
# masks for it.
_Rule: TypeAlias = Callable[[Padder, Node, Sequence[Value]], Value | None]


def pad_to_bucket(graph: Graph, rooms: Mapping[sympy.Symbol, int]) -> Graph:
    """The Graph for all values of the symbols in ``rooms`` up to those given there."""
    p = Padder(graph, rooms)
    new: dict[Node, Value] = {}
    arguments: dict[Node, Node] = {}
    live = {*live_nodes(graph), *graph.inputs}
    for node in graph.nodes:
        if node not in live:
            continue
        p.build.provenance = graph.provenance.get(node)
        inputs = [new[n] for n in node.inputs]
        rule = _rule(node)
        made = None if rule is None else rule(p, node, inputs)
        if made is None:
            type = node.type if node.op == "project" else None
            plain = [p.restored(x) for x in inputs]
            same = p.graph.add(node.op, plain, node.attrs, p.build.provenance, type)
            if node.op == "input":
                arguments[node] = same
            made = p.padded(same)
        new[node] = made
    p.graph.outputs = [
        replace(o, value=p.restored(new[o.value]), view=None) if isinstance(o.value, Node) else o
        for o in graph.outputs
    ]
    p.graph.mutations = [(arguments[t], p.restored(new[v])) for t, v in graph.mutations]
    return p.graph


def _rule(node: Node) -> _Rule | None:
    found = _BY_NAME.get(node.op)
    if found is None:
        found = next((r for trait, r in _BY_TRAIT if node.spec.has(trait)), None)
    return found


def _least(dtype: DType) -> A.Scalar:
    if dtype is DType.BOOL:
        return False
    if dtype.is_float:
        return -math.inf
    return -(1 << (8 * dtype.itemsize - 1)) if dtype.is_signed else 0


def _greatest(dtype: DType) -> A.Scalar:
    if dtype is DType.BOOL:
        return True
    if dtype.is_float:
        return math.inf
    return (1 << (8 * dtype.itemsize - dtype.is_signed)) - 1


# --- pointwise and views --------------------------------------------------------------------------


def _iota(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    made = p.build.emit("iota", attrs=replace(node.attrs, size=p.room(node.attrs.size)))
    return Value(made, node.shape, p.axes(node.shape))


def _pointwise(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    x = p.aligned(x)
    inputs = [v.node for v in x]
    if node.op in ("floor_div", "trunc_div", "rem", "mod") and not node.dtype.is_float:
        inputs[1] = p.masked(x[1], 1)  # 0 would be an error
    fill = x[0].fill
    if node.op != "cast" or fill not in (0, 1):
        fill = None
    fill = None if fill is None else number(fill, node.dtype)
    return Value(p.build.emit(node.op, *inputs, attrs=node.attrs), node.shape, x[0].axes, fill)


def _reshape(p: Padder, node: Node, x: Sequence[Value]) -> Value | None:
    (value,) = x
    parts = [q for a, d in zip(value.axes, value.sizes, strict=True) for q in p.known(a, d)]
    axes = regroup(parts, node.shape)
    if axes is None:
        return None
    made = p.build.reshape(value.node, tuple(map(room_of, axes)))
    return Value(made, node.shape, axes, value.fill)


def _permute(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    (value,) = x
    axes = tuple(value.axes[d] for d in node.attrs.dims)
    made = p.build.emit("permute", value.node, attrs=node.attrs)
    return Value(made, node.shape, axes, value.fill)


def _expand(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    (value,) = x
    axes, shape = list(value.axes), list(value.node.shape)
    for k, (old, size) in enumerate(zip(value.sizes, node.shape, strict=True)):
        if old != size:
            shape[k] = p.room(size)
            axes[k] = p.axis(size) if shape[k] == size else None
    made = p.build.expand(value.node, tuple(shape))
    return Value(made, node.shape, tuple(axes), value.fill)


def _slice(p: Padder, node: Node, x: Sequence[Value]) -> Value | None:
    (value,), attrs = x, node.attrs
    steps = zip(attrs.starts, attrs.sizes, attrs.steps, value.sizes, strict=True)
    cut = [k for k, (a, n, step, old) in enumerate(steps) if (a, n, step) != (0, old, 1)]
    value = p.at_start(value, cut)
    axes, sizes = list(value.axes), list(value.node.shape)
    for k in cut:
        start, size, step = attrs.starts[k], attrs.sizes[k], attrs.steps[k]
        sizes[k] = p.room(size)
        if sizes[k] != size and not (isinstance(start, int) and step > 0):
            return None  # the last element of the room might lie outside
        axes[k] = p.axis(size)
    made = replace(attrs, sizes=tuple(sizes))
    return Value(p.build.emit("slice", value.node, attrs=made), node.shape, tuple(axes), value.fill)


def _pad(p: Padder, node: Node, x: Sequence[Value]) -> Value | None:
    (value,), attrs = x, node.attrs
    grown = [k for k, both in enumerate(zip(attrs.low, attrs.high, strict=True)) if any(both)]
    if any(p.room(d) != d for d in (*attrs.low, *attrs.high)):
        return None
    value = p.at_start(value, grown)
    # What follows the elements that count is of the pad's value.
    made = p.masked(value, attrs.value, [k for k in grown if attrs.high[k] != 0])
    axes = [p.axis(d) if k in grown else value.axes[k] for k, d in enumerate(node.shape)]
    fill = value.fill if value.fill is not None and value.fill == attrs.value else None
    return Value(p.build.emit("pad", made, attrs=attrs), node.shape, tuple(axes), fill)


def _cat(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    axis: int = node.attrs.axis
    others = common_axes([v.axes[:axis] + v.axes[axis + 1 :] for v in x])
    values = [p.laid_out(v, [*others[:axis], p.axis(v.sizes[axis]), *others[axis:]]) for v in x]
    if any(is_padded(v.axes[axis]) for v in values[:-1]):
        return _shifted_cat(p, node, values)
    made = p.build.emit("cat", *(v.node for v in values), attrs=node.attrs)
    return Value(made, node.shape, _replaced(values[0].axes, axis, p.axis(node.shape[axis])))


def _shifted_cat(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    """A cat whose parts begin where what counts of the part before them ends."""
    b, axis = p.build, node.attrs.axis
    room = p.room(node.shape[axis])
    shape = tuple(room if k == axis else d for k, d in enumerate(x[0].node.shape))
    line = b.emit("iota", attrs=A.IotaAttrs(room, DType.I64))
    start: Dim = 0
    made: Node | None = None
    for value in x:
        if value.sizes[axis] == 0:
            continue
        last = p.size(value.node.shape[axis] - 1, line.shape)
        index = b.emit("sub", line, p.size(start, line.shape))
        index = b.emit("minimum", b.emit("maximum", index, b.constant(0, index)), last)
        places = [
            p.along(index, k, shape) if k == axis else _positions(p, k, shape)
            for k in range(len(shape))
        ]
        part = b.emit("gather", value.node, *places, attrs=A.GatherAttrs(checked=False))
        begun = p.along(b.emit("ge", line, p.size(start, line.shape)), axis, shape)
        made = part if made is None else b.emit("where", begun, part, made)
        start = start + value.sizes[axis]
    assert made is not None
    return Value(made, node.shape, _replaced(x[0].axes, axis, p.axis(node.shape[axis])))


def _replaced(axes: tuple[Axis, ...], place: int, axis: Axis) -> tuple[Axis, ...]:
    return (*axes[:place], axis, *axes[place + 1 :])


def _window(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    attrs: A.WindowAttrs = node.attrs
    value = p.at_start(x[0], attrs.axes)
    axes = list(value.axes)
    for axis, count in zip(attrs.axes, attrs.counts, strict=True):
        axes[axis] = p.axis(count)
    made = p.build.emit("window", value.node, attrs=replace(attrs, counts=p.shape(attrs.counts)))
    return Value(made, node.shape, (*axes, *p.axes(attrs.sizes)))


# --- what combines elements -----------------------------------------------------------------------

_NEUTRAL: Mapping[str, Callable[[DType], A.Scalar]] = {
    "reduce_sum": lambda t: number(0, t),
    "reduce_prod": lambda t: number(1, t),
    "reduce_max": _least,
    "argmax": _least,
    "reduce_min": _greatest,
    "argmin": _greatest,
}


def _reduction(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    (value,), over = x, node.attrs.axes
    if node.op in ("argmax", "argmin"):
        value = p.at_start(value, over)
    masked = p.masked(value, _NEUTRAL[node.op](value.node.dtype), over)
    axes = tuple(a for k, a in enumerate(value.axes) if k not in over)
    return Value(p.build.emit(node.op, masked, attrs=node.attrs), node.shape, axes)


def _scan(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    value = p.at_start(x[0], [node.attrs.axis])
    return Value(p.build.emit(node.op, value.node, attrs=node.attrs), node.shape, value.axes)


def _matmul(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    a, b = x
    batch = common_axes([a.axes[:-2], b.axes[:-2]])
    (inner,) = common_axes([a.axes[-1:], b.axes[-2:-1]])
    a = p.laid_out(a, [*batch, a.axes[-2], inner])
    b = p.laid_out(b, [*batch, inner, b.axes[-1]])
    zero, rank = number(0, a.node.dtype), len(node.shape)
    made = p.build.emit(node.op, p.masked(a, zero, [rank - 1]), p.masked(b, zero, [rank - 2]))
    return Value(made, node.shape, (*a.axes[:-1], b.axes[-1]))


def _convolution(p: Padder, node: Node, x: Sequence[Value]) -> Value | None:
    attrs, spatial = node.attrs, range(2, len(node.shape))
    if attrs.transposed or any(is_padded(a) for v in x[1:] for a in v.axes):
        return None
    value = p.at_start(x[0], range(1, len(node.shape)))
    if is_padded(value.axes[1]):
        return None
    image = p.masked(value, number(0, node.dtype), spatial)
    made = p.build.emit("convolution", image, *(v.node for v in x[1:]), attrs=attrs)
    if made.shape[2:] != p.shape(node.shape[2:]):
        return None
    return Value(made, node.shape, (value.axes[0], *p.axes(node.shape[1:])))


# --- gather and scatter ---------------------------------------------------------------------------


def _counting_axis(index: Node) -> int | None:
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


def _positions(p: Padder, axis: int, shape: Shape) -> Node:
    """An index that counts along one axis of the padded shape."""
    line = p.build.emit("iota", attrs=A.IotaAttrs(shape[axis], DType.I64))
    return p.along(line, axis, shape)


@dataclass(frozen=True, slots=True)
class _Indexed:
    """A ``source`` and ``indices`` into it that lie alike. ``counting``: for each dim of the source the
    axis of the indices that runs along it, or None for an index whose values are data. ``others`` have
    the indices' shape and ``axes``."""

    source: Value
    counting: tuple[int | None, ...]
    axes: tuple[Axis, ...]
    indices: tuple[Node, ...]
    others: tuple[Value, ...]


def _indexed(
    p: Padder, old: Sequence[Node], source: Value, x: Sequence[Value], others: Sequence[Value]
) -> _Indexed:
    sizes = old[0].shape
    counting = tuple(
        axis if (axis := _counting_axis(n)) is not None and sizes[axis] == d else None
        for n, d in zip(old, source.sizes, strict=True)
    )
    # An index with data counts elements from the start.
    source = p.at_start(source, [k for k, axis in enumerate(counting) if axis is None])
    data = [v for v, axis in zip(x, counting, strict=True) if axis is None]
    values = [*data, *others]
    no_axes: list[Axis] = [None] * len(sizes)
    found = common_axes([v.axes for v in values]) if values else no_axes
    for k, axis in enumerate(counting):
        if axis is not None:
            (found[axis],) = common_axes([[found[axis]], [source.axes[k]]])
    axes = tuple(p.known(a, d) for a, d in zip(found, sizes, strict=True))
    wanted = [None if axis is None else axes[axis] for axis in counting]
    source = p.laid_out(source, wanted)
    shape = tuple(map(room_of, axes))
    indices = tuple(
        # Those of elements that do not count might point anywhere.
        p.masked(p.laid_out(v, axes), 0) if axis is None else _positions(p, axis, shape)
        for v, axis in zip(x, counting, strict=True)
    )
    return _Indexed(source, counting, axes, indices, tuple(p.laid_out(v, axes) for v in others))


def _gather(p: Padder, node: Node, x: Sequence[Value]) -> Value:
    found = _indexed(p, node.inputs[1:], x[0], x[1:], ())
    made = p.build.emit("gather", found.source.node, *found.indices, attrs=node.attrs)
    return Value(made, node.shape, found.axes)


_SCATTER_NEUTRAL: Mapping[str, Callable[[DType], A.Scalar]] = {
    "add": _NEUTRAL["reduce_sum"],
    "mul": _NEUTRAL["reduce_prod"],
    "max": _least,
    "min": _greatest,
}


def _scatter(p: Padder, node: Node, x: Sequence[Value]) -> Value | None:
    found = _indexed(p, node.inputs[2:], x[0], x[2:], x[1:2])
    (update,), base = found.others, found.source
    written = update.node
    # Along an axis that runs along the base's, what does not count meets what does not count.
    axes = enumerate(found.axes)
    if elsewhere := [k for k, a in axes if is_padded(a) and k not in found.counting]:
        neutral = _SCATTER_NEUTRAL.get(node.attrs.mode)
        if neutral is None:
            return None
        written = p.masked(update, neutral(node.dtype), elsewhere)
    made = p.build.emit("scatter", base.node, written, *found.indices, attrs=node.attrs)
    known = tuple(p.known(a, d) for a, d in zip(base.axes, node.shape, strict=True))
    return Value(made, node.shape, known)


_BY_NAME: Mapping[str, _Rule] = {
    "iota": _iota,
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "slice": _slice,
    "pad": _pad,
    "cat": _cat,
    "window": _window,
    "matmul": _matmul,
    "wide_matmul": _matmul,
    "convolution": _convolution,
}
_BY_TRAIT: tuple[tuple[Trait, _Rule], ...] = (
    (Trait.POINTWISE, _pointwise),
    (Trait.REDUCTION, _reduction),
    (Trait.SCAN, _scan),
    (Trait.GATHER, _gather),
    (Trait.SCATTER, _scatter),
)
