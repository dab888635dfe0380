"""Kernel -> LoopNest: levels, stages, and the code of every root.

Roots of a kernel that need a finished reduction, or another element of the row, run in a later
*level*. Each level first runs its roots without inner dims (scalars of the outer point), then one loop
for each inner size. A value of an earlier level is read back from its memory, or from scratch that is
private to the outer point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from lazyc.ir import loops as L
from lazyc.ir.graph import Node
from lazyc.ir.index import Axis, Index, axis_index, delinearize, linearize
from lazyc.ir.ops import Trait
from lazyc.ir.program import Buffer
from lazyc.ir.types import Dim, DType, Shape, contiguous_strides, numel
from lazyc.passes import loop_axes
from lazyc.passes.index_maps import Position
from lazyc.passes.nest_body import Body, Location
from lazyc.passes.nest_finish import finish_nest
from lazyc.passes.realize import INLINE_LEAVES
from lazyc.passes.regions import Kernel, Root, Target, flat, sizes

# Elements of scratch that one outer point may use. With a vector of outer points each lane has its
# own copy, hence the lower limit there.
MAX_SCRATCH = 8192
MAX_SCRATCH_VECTOR = 512
_MAX_REFINEMENTS = 4
_REDUCES = Trait.REDUCTION | Trait.ATTENTION


# Where a value is stored, the value, and where it is (a mask).
_Stored: TypeAlias = tuple[Location, int, int | None]


@dataclass(frozen=True, slots=True)
class LoweredKernel:
    """A nest, and what to pass for its buffers (ids) and symbols."""

    nest: L.LoopNest
    buffers: tuple[int, ...]
    sizes: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """Roots that run together: scalars of the outer point, then loops by inner size."""

    scalars: tuple[Root, ...]
    loops: tuple[tuple[Root, ...], ...]


def levels(kernel: Kernel) -> list[Level]:
    """The roots of a kernel in the order of the stages that compute them."""
    by_node = {r.node: r for r in kernel.roots if r.into is None}
    level: dict[Root, int] = {}
    for root in kernel.roots:
        own = 0
        for access in root.accesses:
            producer = by_node.get(access.node)
            if producer is None or producer is root:
                continue
            own = max(own, level[producer] + _step(kernel, root, producer, access.position))
        level[root] = own
    found: list[Level] = []
    for k in range(max(level.values()) + 1):
        here = [r for r in kernel.roots if level[r] == k]
        groups: dict[Dim, list[Root]] = {}
        for root in here:
            groups.setdefault(_inner_numel(kernel, root), []).append(root)
        scalars = tuple(r for r in groups.pop(1, []) if not _reduces(r))
        single = tuple(r for r in here if _reduces(r) and _inner_numel(kernel, r) == 1)
        loops = [tuple(g) for g in groups.values()]
        found.append(Level((*scalars, *single), tuple(loops)))
    return found


def _reduces(root: Root) -> bool:
    return root.into is None and root.node.spec.has(Trait.REDUCTION | Trait.SCAN | Trait.ATTENTION)


def _inner_numel(kernel: Kernel, root: Root) -> Dim:
    return numel(sizes(root.domain, kernel.splits[root].inner))


def _step(kernel: Kernel, root: Root, producer: Root, position: Position | None) -> int:
    """0 when ``root`` can read the value in the stage that makes it, else 1."""
    if producer.node.spec.has(_REDUCES):
        return 1
    if _inner_numel(kernel, producer) == 1 and not _reduces(producer):
        return 0
    if _inner_numel(kernel, producer) != _inner_numel(kernel, root) or position is None:
        return 1
    read = flat(position, producer.domain, kernel.splits[producer].inner)
    own = flat(root.position, root.domain, kernel.splits[root].inner)
    return 0 if read == own else 1


def crossing_values(kernel: Kernel) -> set[Node]:
    """Values that a later stage reads back: they need memory or scratch."""
    by_node = {r.node: r for r in kernel.roots if r.into is None}
    found: set[Node] = set()
    place = {r: (k, i) for k, lv in enumerate(levels(kernel))
             for i, group in enumerate((lv.scalars, *lv.loops)) for r in group}  # fmt: skip
    for root in kernel.roots:
        for access in root.accesses:
            producer = by_node.get(access.node)
            if producer is None or producer is root or producer.node.spec.has(_REDUCES):
                continue
            if _inner_numel(kernel, producer) != 1 and place[producer] != place[root]:
                found.add(producer.node)
    return found


def scratch_size(kernel: Kernel, node: Node) -> Dim:
    """Elements that a crossing value takes in scratch."""
    root = next(r for r in kernel.roots if r.node is node and r.into is None)
    return _inner_numel(kernel, root)


@dataclass
class _Context:
    kernel: Kernel
    realized: set[Node]
    memory: Mapping[Node, Buffer]  # every realized node that has memory, also this kernel's own
    target: Mapping[Target, Buffer]
    scratch: set[Node]
    outer_cuts: set[int] = field(default_factory=set)
    inner_cuts: dict[int, set[int]] = field(default_factory=dict)


def lower_kernel(
    kernel: Kernel,
    realized: set[Node],
    memory: Mapping[Node, Buffer],
    target: Mapping[Target, Buffer],
    comment: str = "",
) -> LoweredKernel:
    """The loop nest of a kernel.

    ``memory`` gives the buffer of each realized node that has one; crossing values of this kernel
    without one get scratch. ``target`` gives the buffers of copying roots.
    """
    scratch = {n for n in crossing_values(kernel) if n not in memory}
    context = _Context(kernel, realized, memory, target, scratch)
    for _ in range(_MAX_REFINEMENTS):
        writer = _Writer(context)
        writer.write()
        if not writer.record_cuts():
            break
    outer, stages = loop_axes.collapse(writer.outer, writer.body.finish())
    stages = tuple(_collapse_stage(k, stages) for k in range(len(stages)))
    outer, stages, vectorize = loop_axes.choose_vector_axis(outer, stages)
    nest, keys, symbols = finish_nest(outer, stages, writer.params, vectorize, comment)
    buffers = tuple(k for k in keys if isinstance(k, int))
    return LoweredKernel(nest, buffers, symbols)


def _collapse_stage(k: int, stages: tuple[L.Stage, ...]) -> L.Stage:
    stage = stages[k]
    if len(stage.axes) < 2:
        return stage
    _, (joined,) = loop_axes.collapse(stage.axes, (stage,))
    return joined


class _Writer:
    """Writes one version of the nest, with the axes that the context's cuts ask for."""

    def __init__(self, context: _Context) -> None:
        self.c = context
        self.body = Body(self._locate, self._known)
        self.params: dict[int | Node, tuple[int, DType, Dim]] = {}
        self._done: dict[Node, tuple[int, Position | None]] = {}  # value id; position (None: any)
        self._stores: list[tuple[Location, int]] = []  # written when the group is complete
        self._by_node = {r.node: r for r in context.kernel.roots if r.into is None}
        shapes = [sizes(r.domain, context.kernel.splits[r].outer) for r in context.kernel.roots]
        self.outer = _axes("p", loop_axes.refine(shapes, sorted(context.outer_cuts)))
        self.inner: list[tuple[Axis, ...]] = []

    def write(self) -> None:
        for level in levels(self.c.kernel):
            if level.scalars:
                self._write_group((), level.scalars)
            for group in level.loops:
                number = len(self.inner)
                shapes = [sizes(r.domain, self.c.kernel.splits[r].inner) for r in group]
                cuts = sorted(self.c.inner_cuts.get(number, ()))
                axes = _axes(f"s{number}_", loop_axes.refine(shapes, cuts))
                self.inner.append(axes)
                self._write_group(axes, group)
                self._done = {n: v for n, v in self._done.items() if v[1] is None}

    def _write_group(self, axes: tuple[Axis, ...], group: tuple[Root, ...]) -> None:
        outer_flat, inner_flat = _flat_of(self.outer), _flat_of(axes)
        self.body.open_stage(axes)
        after: list[_Stored] = []
        for root in group:
            split = self.c.kernel.splits[root]
            position: list[Index] = [Index(0)] * len(root.domain)
            for dims, index in ((split.outer, outer_flat), (split.inner, inner_flat)):
                for d, i in zip(dims, delinearize(index, sizes(root.domain, dims)), strict=True):
                    position[d] = i
            if _reduces(root) and root.node.spec.has(Trait.ATTENTION):
                self._write_attention(root, tuple(position), axes, after)
            elif _reduces(root) and root.node.spec.has(Trait.REDUCTION):
                self._write_reduction(root, tuple(position), axes, inner_flat, after)
            else:
                self._write_element(root, tuple(position), inner_flat)
        for store in self._stores:
            self.body.store(*store)
        self._stores.clear()
        if after:
            self.body.open_stage(())
            for at, value, mask in after:
                self.body.store(at, value, mask=mask)

    def _write_element(self, root: Root, at: Position, inner_flat: Index) -> None:
        node = root.node
        if root.into is not None:
            buffer = self.c.target[root.into]
            value = self.body.value(node, at)
            self._stores.append((self._place(buffer, at), value))
            return
        is_loop = _inner_numel(self.c.kernel, root) != 1
        if node.spec.has(Trait.SCAN):
            value = self.body.value(node.inputs[0], at)
            if is_loop:
                value = self.body.scan(node.op.removeprefix("scan_"), value)  # type: ignore[arg-type]
        else:
            value = self.body.expression(node, at)
        if node in self.c.memory:
            self._stores.append((self._place(self.c.memory[node], at), value))
        elif node in self.c.scratch:
            self._stores.append((self._in_scratch(node, inner_flat), value))
        self._done[node] = (value, at if is_loop else None)

    def _write_reduction(
        self,
        root: Root,
        at: Position,
        axes: tuple[Axis, ...],
        inner_flat: Index,
        after: list[_Stored],
    ) -> None:
        node = root.node
        value = self.body.value(node.inputs[0], at)
        indexed = node.op in ("argmax", "argmin")
        if axes:
            kind = node.op.removeprefix("reduce_")
            result = self.body.reduce(kind, value, inner_flat if indexed else None)  # type: ignore[arg-type]
        else:
            result = self.body.const(0, DType.I64) if indexed else value
        self._done[node] = (result, None)
        if node in self.c.memory:
            outer = tuple(at[d] for d in self.c.kernel.splits[root].outer)
            after.append((self._place(self.c.memory[node], outer), result, None))

    def _write_attention(
        self, root: Root, at: Position, axes: tuple[Axis, ...], after: list[_Stored]
    ) -> None:
        """A stage for the largest score of the row, and one for the sums."""
        node, body = root.node, self.body
        scores, v, *factor = node.inputs
        *batch, row, column, key = at
        pairs, dtype = (*batch, row, key), scores.dtype
        top = body.reduce("max", body.value(scores, pairs), None)
        body.open_stage(axes)
        hidden, shift = None, top
        if node.attrs.empty == "zero":
            hidden = body.compute("eq", DType.BOOL, top, body.const(-math.inf, dtype))
            shift = body.compute("where", dtype, hidden, body.const(0.0, dtype), top)
        difference = body.compute("sub", dtype, body.value(scores, pairs), shift)
        weight = body.compute("exp", dtype, difference)
        total = body.reduce("sum", weight, None)
        for x in factor:
            weight = body.compute("mul", dtype, weight, body.value(x, pairs))
        weight = body.cast(body.cast(weight, v.dtype), dtype)
        summed = body.compute("mul", dtype, weight, body.value(v, (*batch, key, column)))
        result = body.reduce("sum", summed, None)
        body.open_stage(())
        result = body.compute("div", dtype, result, total)
        if hidden is not None:
            result = body.compute("where", dtype, hidden, body.const(0.0, dtype), result)
        self._done[node] = (result, None)
        if node in self.c.memory:
            after.append((self._place(self.c.memory[node], (*batch, row, column)), result, None))
        for statistic in self.c.kernel.statistics:  # stored once for each row
            first = body.compute(
                "eq", DType.BOOL, body.index_value(column), body.const(0, DType.I64)
            )
            place = self._place(self.c.memory[statistic], (*batch, row))
            after.append((place, top if statistic.attrs.kind == "max" else total, first))

    def record_cuts(self) -> bool:
        """Notes the axis splits that would remove divisions; True when there are new ones."""
        found = loop_axes.cuts(self.body.finish())
        new = False
        for number, axes in enumerate([self.outer, *self.inner]):
            known = self.c.outer_cuts if number == 0 else self.c.inner_cuts.setdefault(
                number - 1, set()
            )  # fmt: skip
            for axis, stride in zip(axes, contiguous_strides(_sizes(axes)), strict=True):
                for inner in found.get(axis, ()):
                    if isinstance(stride, int) and inner * stride not in known:
                        known.add(inner * stride)
                        new = True
        return new

    # --- what Body asks ---------------------------------------------------------------------------

    def _known(self, node: Node, position: Position) -> int | None:
        found = self._done.get(node)
        if found is None:
            return None
        value, at = found
        return value if at is None or at == position else None

    def _locate(self, node: Node, position: Position) -> Location | None:
        # A leaf is computed again: accesses, and so the order of steps, leave it out.
        if node not in self.c.realized or node.op in INLINE_LEAVES:
            return None
        if node in self.c.memory:
            return self._place(self.c.memory[node], position)
        if node in self.c.scratch:
            root = self._by_node[node]
            inner = flat(position, root.domain, self.c.kernel.splits[root].inner)
            return self._in_scratch(node, inner)
        return None

    def _place(self, buffer: Buffer, position: Position) -> Location:
        if buffer.id not in self.params:
            self.params[buffer.id] = (len(self.params), _dtype(buffer), buffer_extent(buffer))
        number, dtype, _ = self.params[buffer.id]
        return number, linearize(position, buffer.strides), dtype

    def _in_scratch(self, node: Node, inner: Index) -> Location:
        """Scratch holds what arithmetic gave, without rounding to a half type."""
        if node not in self.params:
            extent = scratch_size(self.c.kernel, node)
            self.params[node] = (len(self.params), node.dtype.compute, extent)
        number, dtype, _ = self.params[node]
        return number, inner, dtype


def _axes(prefix: str, axis_sizes: Shape) -> tuple[Axis, ...]:
    return tuple(Axis(f"{prefix}{k}", d) for k, d in enumerate(axis_sizes))


def _sizes(axes: tuple[Axis, ...]) -> Shape:
    return tuple(a.size for a in axes)


def _flat_of(axes: tuple[Axis, ...]) -> Index:
    return linearize(tuple(axis_index(a) for a in axes), contiguous_strides(_sizes(axes)))


def buffer_extent(buffer: Buffer) -> Dim:
    """Elements from the first to the last one of a buffer."""
    if 0 in buffer.shape:
        return 0
    extent: Dim = 1
    for d, s in zip(buffer.shape, buffer.strides, strict=True):
        extent = extent + (d - 1) * s
    return extent


def _dtype(buffer: Buffer) -> DType:
    assert buffer.dtype is not None, buffer
    return buffer.dtype
