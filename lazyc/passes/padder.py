"""Values with room for more elements than count, and what every rule of ``pad_to_bucket`` needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import Dim, DType, Shape, TensorType, free_symbols
from lazyc.passes.padded_axes import Axis, Part, grows, is_padded, joined, room_of
from lazyc.passes.rewrite import Rewriter


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the new Graph: ``sizes`` elements of it count, which lie as ``axes`` say. ``fill``: what
    all the others are, where known. What is no tensor has no axes."""

    node: Node
    sizes: Shape = ()
    axes: tuple[Axis, ...] = ()
    fill: A.Scalar | None = None


def number(value: A.Scalar, dtype: DType) -> A.Scalar:
    """``value`` as a constant of ``dtype``."""
    if dtype is DType.BOOL:
        return bool(value)
    return float(value) if dtype.is_float else int(value)


def padding(dtype: DType) -> A.Scalar:
    """What arguments are padded with: neutral in sums and products, and an index in range."""
    return number(0, dtype)


class Padder:
    """The Graph being built. ``rooms`` are what symbols are rounded up to."""

    def __init__(self, old: Graph, rooms: Mapping[sympy.Symbol, int]) -> None:
        self._rooms = dict(rooms)
        self.graph = Graph(constants=old.constants, symbols=list(old.symbols))
        self.build = Rewriter(self.graph)
        self._known: dict[Dim, Dim] = {}

    # --- sizes ------------------------------------------------------------------------------------

    def room(self, size: Dim) -> Dim:
        """The room for ``size`` elements; no more than that where another size may need less."""
        if isinstance(size, int) or not (free_symbols((size,)) & self._rooms.keys()):
            return size
        found = self._known.get(size)
        if found is None:
            found = size
            if grows(size):
                value = sympy.sympify(size).subs(list(self._rooms.items()))
                found = int(value) if value.is_Integer else value
            self._known[size] = found
        return found

    def shape(self, sizes: Sequence[Dim]) -> Shape:
        return tuple(map(self.room, sizes))

    def axis(self, size: Dim) -> tuple[Part, ...]:
        """An axis whose first elements count."""
        return joined([Part(size, self.room(size))])

    def axes(self, sizes: Sequence[Dim]) -> tuple[tuple[Part, ...], ...]:
        return tuple(map(self.axis, sizes))

    def known(self, axis: Axis, size: Dim) -> tuple[Part, ...]:
        """An axis as parts: of equal elements the first ones count."""
        return self.axis(size) if axis is None else axis

    # --- values -----------------------------------------------------------------------------------

    def restored(self, value: Value) -> Node:
        """The elements that count."""
        node = value.node
        if not isinstance(node.type, TensorType):
            return node
        axes = zip(value.axes, value.sizes, strict=True)
        parts = [p for axis, size in axes for p in self.known(axis, size)]
        if not all(p.is_full for p in parts):
            node = self.build.reshape(node, tuple(p.room for p in parts))
            first, sizes = (0,) * len(parts), tuple(p.size for p in parts)
            attrs = A.SliceAttrs(first, sizes, (1,) * len(parts))
            node = self.build.emit("slice", node, attrs=attrs)
        return self.build.reshape(node, value.sizes)

    def padded(self, node: Node, axes: Sequence[tuple[Part, ...]] | None = None) -> Value:
        """A value that consists of what counts, laid out as ``axes`` (the first elements of each, if not
        given)."""
        if not isinstance(node.type, TensorType):
            return Value(node)
        sizes = node.shape
        axes = self.axes(sizes) if axes is None else axes
        parts = [p for axis in axes for p in axis]
        if all(p.is_full for p in parts):
            return Value(node, sizes, tuple(axes))
        apart = self.build.reshape(node, tuple(p.size for p in parts))
        high = tuple(p.room - p.size for p in parts)
        attrs = A.PadAttrs((0,) * len(parts), high, padding(node.dtype))
        made = self.build.emit("pad", apart, attrs=attrs)
        made = self.build.reshape(made, tuple(map(room_of, axes)))
        return Value(made, sizes, tuple(axes), attrs.value)

    def laid_out(self, value: Value, axes: Sequence[Axis]) -> Value:
        """The value with its elements where ``axes`` say; None: wherever they are."""
        if all(a in (None, b) or b is None for a, b in zip(axes, value.axes, strict=True)):
            known = (b if a is None else a for a, b in zip(axes, value.axes, strict=True))
            return replace(value, axes=tuple(known))
        pairs = zip(axes, value.axes, value.sizes, strict=True)
        wanted = [self.known(b if a is None else a, size) for a, b, size in pairs]
        return self.padded(self.restored(value), wanted)

    def at_start(self, value: Value, over: Sequence[int] | None = None) -> Value:
        """The value with its elements at the start of the axes ``over`` (all, if not given)."""
        wanted: list[Axis] = [None] * len(value.axes)
        for k in range(len(wanted)) if over is None else over:
            wanted[k] = self.axis(value.sizes[k])
        return self.laid_out(value, wanted)

    def aligned(self, values: Sequence[Value]) -> list[Value]:
        """Values of one shape with their elements in the same places."""
        common = common_axes([v.axes for v in values])
        return [self.laid_out(v, common) for v in values]

    def masked(self, value: Value, fill: A.Scalar, over: Sequence[int] | None = None) -> Node:
        """The value with ``fill`` for what does not count along the axes ``over`` (all, if not given)."""
        node = value.node
        if value.fill is not None and value.fill == fill:
            return node
        masks = [
            self._counts(axis, k, node.shape)
            for k in (range(len(value.axes)) if over is None else over)
            if is_padded(axis := self.known(value.axes[k], value.sizes[k]))
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
            counts = b.emit("lt", index, self.size(part.size, index.shape))
            counts = b.reshape(counts, tuple(r if j == k else 1 for j, r in enumerate(rooms)))
            counts = b.expand(counts, rooms)
            found = counts if found is None else b.emit("and", found, counts)
        assert found is not None
        return self.along(found, place, shape)

    def size(self, size: Dim, shape: Shape) -> Node:
        """A number of elements as an i64 value of ``shape``."""
        node = self.build.emit("size", attrs=A.SizeAttrs(size, DType.I64))
        return self.build.expand(node, shape)

    def along(self, line: Node, axis: int, shape: Shape) -> Node:
        """The elements of ``line`` along one axis of ``shape``, repeated along all others."""
        alone = tuple(d if k == axis else 1 for k, d in enumerate(shape))
        return self.build.expand(self.build.reshape(line, alone), shape)


def common_axes(values: Sequence[Sequence[Axis]]) -> list[Axis]:
    """For each axis of values of one shape the most parts that one of them has."""
    found: list[Axis] = []
    for axes in zip(*values, strict=True):
        parts = [a for a in axes if a is not None]
        found.append(max(parts, key=len) if parts else None)
    return found
