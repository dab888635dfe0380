"""Fusion: groups roots into kernels.

    before   k0: m = max(x)   k1: e = exp(x - m)   k2: s = sum(e)   k3: y = e / s
    after    k0: {m, e, s, y} over one outer space (the rows)

Kernels merge along producer -> consumer edges, then between neighbours that read the same value in
the same order. Two kernels may merge when they have the same outer space and every value that passes
between them is read at the outer point that wrote it, and when no path through a third step would
make a cycle. A merged value that nothing else reads needs no memory.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from lazyc.ir.graph import Node, depends_on
from lazyc.ir.index import Axis, Index
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, numel
from lazyc.passes.contraction import is_loop_product
from lazyc.passes.regions import Access, Kernel, Root, Split, flat, is_alone, sizes

# Outer points below which a large pointwise kernel is not drawn into a reduction's nest, because
# too few threads and vectors would remain busy.
_MIN_OUTER = 16
_SMALL_WORK = 1 << 14
_MAX_BUFFERS = 48


@dataclass(eq=False)
class Unit:
    """A step in the making: a kernel, or a library or eager call (``kernel`` None).

    ``is_static``: depends on parameters and constants only, so that its result outlives the call.
    """

    id: int
    kernel: Kernel | None
    nodes: list[Node]
    reads: set[Node]
    preds: set[int] = field(default_factory=set)
    succs: set[int] = field(default_factory=set)
    ancestors: int = 0  # bit set of unit ids
    is_static: bool = False


class UnitGraph:
    """The steps and their order; merges keep it acyclic."""

    def __init__(self, units: list[Unit], edges: list[tuple[int, int]]) -> None:
        self.units: dict[int, Unit] = {u.id: u for u in units}
        for before, after in edges:
            if before != after:
                self.units[before].succs.add(after)
                self.units[after].preds.add(before)
        for unit in self.order():
            for p in unit.preds:
                unit.ancestors |= self.units[p].ancestors | (1 << p)

    def order(self) -> list[Unit]:
        """Topological order; among units that are ready, the one recorded first."""
        waiting = {u.id: len(u.preds) for u in self.units.values()}
        ready = [(self._rank(u), u.id) for u in self.units.values() if not u.preds]
        heapq.heapify(ready)
        found: list[Unit] = []
        while ready:
            _, uid = heapq.heappop(ready)
            unit = self.units[uid]
            found.append(unit)
            for s in unit.succs:
                waiting[s] -= 1
                if not waiting[s]:
                    heapq.heappush(ready, (self._rank(self.units[s]), s))
        assert len(found) == len(self.units), "cycle between steps"
        return found

    @staticmethod
    def _rank(unit: Unit) -> int:
        return max((n.id for n in unit.nodes), default=0)

    def has_detour(self, a: int, b: int) -> bool:
        """True when a path from a to b leads through a third unit."""
        ancestors = self.units[b].ancestors
        return any(s != b and (ancestors >> s) & 1 for s in self.units[a].succs)

    def merge(self, a: int, b: int, kernel: Kernel) -> Unit:
        """Replaces units a and b by one that holds ``kernel``; keeps a's id."""
        keep, gone = self.units[a], self.units.pop(b)
        keep.kernel = kernel
        keep.nodes += gone.nodes
        keep.reads |= gone.reads
        keep.preds = (keep.preds | gone.preds) - {a, b}
        keep.succs = (keep.succs | gone.succs) - {a, b}
        for p in keep.preds:
            self.units[p].succs = (self.units[p].succs - {b}) | {a}
        for s in keep.succs:
            self.units[s].preds = (self.units[s].preds - {b}) | {a}
        both = (1 << a) | (1 << b)
        keep.ancestors = (keep.ancestors | gone.ancestors) & ~both
        for unit in self.units.values():
            if unit is not keep and unit.ancestors & both:
                unit.ancestors = ((unit.ancestors & ~both) | (1 << a)) | keep.ancestors
        return keep


def fuse(graph: UnitGraph) -> None:
    """Merges kernels until nothing more fits."""
    for unit in graph.order():
        if unit.kernel is None or unit.id not in graph.units:
            continue
        _absorb_producers(graph, unit)
    _merge_neighbours(graph)


def _absorb_producers(graph: UnitGraph, unit: Unit) -> None:
    refused: set[int] = set()
    while True:
        candidates = [graph.units[p] for p in unit.preds if p not in refused]
        candidates = [c for c in candidates if c.kernel is not None]
        if not candidates:
            return
        best = max(candidates, key=lambda c: max(n.id for n in c.nodes))
        merged = None if graph.has_detour(best.id, unit.id) else _try(best, unit)
        if merged is None:
            refused.add(best.id)
        else:
            kept = graph.merge(unit.id, best.id, merged)
            kept.nodes.sort(key=lambda n: n.id)
            refused.clear()


def _merge_neighbours(graph: UnitGraph) -> None:
    readers: dict[Node, list[int]] = {}
    for unit in graph.order():
        if unit.kernel is not None:
            for node in unit.reads:
                readers.setdefault(node, []).append(unit.id)
    for node in sorted(readers, key=lambda n: n.id):
        ids = readers[node]
        for i, a in enumerate(ids):
            for b in ids[i + 1 : i + 9]:
                if a not in graph.units or b not in graph.units or a == b:
                    continue
                first, second = graph.units[a], graph.units[b]
                if graph.has_detour(a, b) or graph.has_detour(b, a):
                    continue
                if b in first.preds:
                    first, second = second, first
                merged = _try(first, second, shared=node)
                if merged is not None:
                    graph.merge(a, b, merged).nodes.sort(key=lambda n: n.id)


def _try(first: Unit, second: Unit, shared: Node | None = None) -> Kernel | None:
    """The kernel that runs ``first`` then ``second``, if they fit together."""
    a, b = first.kernel, second.kernel
    assert a is not None and b is not None
    if first.is_static != second.is_static:
        return None
    if len(first.reads | second.reads) + len(first.nodes) + len(second.nodes) > _MAX_BUFFERS:
        return None
    roots = sorted(a.roots + b.roots, key=lambda r: (r.into is not None, r.node.id))
    if any(is_alone(r.node) for r in roots):
        return None
    if any(r.into is not None for r in roots) and not (a.is_flat and b.is_flat):
        return None
    has_product = any(is_loop_product(r.node) or r.dots for r in roots)
    if has_product and not (a.is_flat or b.is_flat or _share_dots(a, b)):
        return None  # a matrix product takes in what is computed of each element of it alone
    splits = _joint_splits(a, b)
    if splits is None:
        if shared is None:
            return None
        splits = _neighbour_splits(a, b, shared)
        if splits is None:
            return None
    if has_product and b.is_flat and any(splits[r].inner for r in b.roots):
        return None  # and not in what makes several elements of one, in a loop of its own
    merged = Kernel(roots, splits, a.statistics + b.statistics)
    if not _consistent(merged):
        return None
    if shared is not None and not _reads_alike(merged, a, b, shared):
        return None
    return merged if _worthwhile(merged, a, b) else None


def _share_dots(a: Kernel, b: Kernel) -> bool:
    """Whether the matrix products of both sum, over one loop, with weights that are made of one dot. (What
    attends has loops of its own, and a sum that is made of another one waits for its loop.)"""
    first, *rest = (r for k in (a, b) for r in k.roots if k.splits[r].inner)
    if any(r.node.spec.has(Trait.ATTENTION) for r in (first, *rest)):
        return False
    summed = {r.node for r in a.roots if a.splits[r].inner}
    if any(depends_on(r.node, summed) for r in b.roots if b.splits[r].inner):
        return False
    return bool(first.dots) and all(
        r.dots & first.dots and r.domain == first.domain and r.fixed_split == first.fixed_split
        for r in rest
    )


def _worthwhile(merged: Kernel, a: Kernel, b: Kernel) -> bool:
    """Refuses to serialise a large pointwise kernel inside a nest with few outer points."""
    if merged.is_flat:
        return True
    for part in (a, b):
        if part.is_flat and not merged.is_flat:
            work = max((_work(r) for r in part.roots), default=0)
            if work > _SMALL_WORK and _below(merged.numel, _MIN_OUTER):
                return False
    return True


def _work(root: Root) -> int:
    total = numel(root.domain)
    return total if isinstance(total, int) else 1 << 30


def _below(value: Dim, limit: int) -> bool:
    return isinstance(value, int) and value < limit


# --- splits ---------------------------------------------------------------------------------------


def _joint_splits(a: Kernel, b: Kernel) -> dict[Root, Split] | None:
    """Splits under which both kernels have one outer space, found along the accesses."""
    if a.is_flat and b.is_flat:
        if a.numel == b.numel:
            return {**a.splits, **b.splits}
        return None
    if not a.is_flat and not b.is_flat:
        return {**a.splits, **b.splits} if a.numel == b.numel else None
    loose, fixed = (a, b) if a.is_flat else (b, a)
    splits = dict(fixed.splits)
    by_node = {r.node: r for r in (*a.roots, *b.roots) if r.into is None}
    waiting = list(loose.roots)
    progress = True
    while waiting and progress:
        progress = False
        for root in list(waiting):
            split = _infer(root, splits, by_node, fixed.numel)
            if split is not None:
                splits[root] = split
                waiting.remove(root)
                progress = True
    return None if waiting else splits


def _infer(
    root: Root, splits: dict[Root, Split], by_node: dict[Node, Root], outer: Dim
) -> Split | None:
    for access in root.accesses:
        producer = by_node.get(access.node)
        if producer is not None and producer in splits and producer is not root:
            split = _as_consumer(root, producer, splits[producer], access)
            if split is not None:
                return split
    for consumer, split in list(splits.items()):
        for access in consumer.accesses:
            if access.node is root.node and consumer is not root:
                found = _as_producer(root, consumer, split, access)
                if found is not None:
                    return found
    if numel(root.domain) == outer:
        return Split(tuple(range(len(root.domain))), ())
    return None


def _outer_of(root: Root, split: Split, access: Access) -> Index | None:
    """The flat outer point of ``root`` whose value an access reads."""
    if access.position is None:
        return None
    dims = root.value_position(split)
    position: list[Index] = [Index(0)] * len(root.domain)
    for dim, index in zip(dims, access.position, strict=True):
        position[dim] = index
    return flat(tuple(position), root.domain, split.outer)


def _as_consumer(root: Root, producer: Root, split: Split, access: Access) -> Split | None:
    target = _outer_of(producer, split, access)
    if target is None:
        return None
    used = target.axes()
    outer = tuple(k for k, a in enumerate(root.axes) if a in used or a.size == 1)
    for order in (outer, _by_stride(root, outer, target)):
        if flat(root.position, root.domain, order) == target:
            return Split(order, tuple(k for k in range(len(root.domain)) if k not in order))
    return None


def _by_stride(root: Root, dims: tuple[int, ...], target: Index) -> tuple[int, ...]:
    def stride(dim: int) -> int:
        coef = target.coef(root.axes[dim])
        return coef if isinstance(coef, int) else 0

    return tuple(sorted(dims, key=stride, reverse=True))


def _as_producer(root: Root, consumer: Root, split: Split, access: Access) -> Split | None:
    if access.position is None or root.fixed_split is not None:
        return None
    outer_axes: set[Axis] = {consumer.axes[d] for d in split.outer}
    outer: list[int] = []
    for dim, index in enumerate(access.position):
        used = index.axes()
        if used <= outer_axes and (used or root.domain[dim] == 1):
            outer.append(dim)
        elif used & outer_axes:
            return None
    target = flat(consumer.position, consumer.domain, split.outer)
    order = tuple(outer)
    if flat(access.position, root.domain, order) != target:
        return None
    return Split(order, tuple(k for k in range(len(root.domain)) if k not in order))


def _neighbour_splits(a: Kernel, b: Kernel, shared: Node) -> dict[Root, Split] | None:
    """Splits for a flat kernel beside a structured one that walks a domain of the same shape."""
    if a.is_flat == b.is_flat:
        return None
    loose, fixed = (a, b) if a.is_flat else (b, a)
    splits = dict(fixed.splits)
    for root in loose.roots:
        twin = next((r for r in fixed.roots if r.domain == root.domain), None)
        if twin is None or root.fixed_split is not None:
            return None
        splits[root] = fixed.splits[twin]
    return splits


def _consistent(kernel: Kernel) -> bool:
    """Every value passed inside the kernel is read at the outer point that wrote it."""
    by_node = {r.node: r for r in kernel.roots if r.into is None}
    outer = kernel.numel
    targets = {r.into.node for r in kernel.roots if r.into is not None}
    for root in kernel.roots:
        split = kernel.splits[root]
        if numel(sizes(root.domain, split.outer)) != outer:
            return False
        if root.fixed_split is not None and set(split.inner) != set(root.fixed_split.inner):
            return False
        own = flat(root.position, root.domain, split.outer)
        for access in root.accesses:
            producer = by_node.get(access.node)
            if producer is None or producer is root:
                pass
            elif _outer_of(producer, kernel.splits[producer], access) != own:
                return False
            for target in targets:
                if access.node is target and access.position != root.position:
                    return False
    return True


def _reads_alike(merged: Kernel, a: Kernel, b: Kernel, shared: Node) -> bool:
    """True when both kernels read ``shared`` at one element per point, in the same order."""

    def positions(part: Kernel) -> set[tuple[Index, ...]]:
        found: set[tuple[Index, ...]] = set()
        for root in part.roots:
            for access in root.accesses:
                if access.node is shared and access.position is not None:
                    found.add(
                        (
                            flat(access.position, shared.shape, tuple(range(len(shared.shape)))),
                            flat(root.position, root.domain, merged.splits[root].outer),
                        )
                    )
        return found

    first, second = positions(a), positions(b)
    domains = {r.domain for r in a.roots} & {r.domain for r in b.roots}
    return bool(first & second) and bool(domains)
