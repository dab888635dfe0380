"""Roots and the iteration spaces of kernels.

A *root* is a realized value that a loop nest computes. Its *domain* is the space its loop visits: the
shape of the value, or of the input for a reduction. A kernel with several roots walks one shared
*outer* space; each root splits the dims of its domain into outer dims (whose row-major flat index is
the kernel's outer point) and inner dims (looped inside). Reductions and scans run along inner dims.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.index import Axis, Index, axis_index, linearize
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, Shape, contiguous_strides, numel
from lazyc.passes.index_maps import Position, reads
from lazyc.passes.realize import INLINE_LEAVES


def is_alone(node: Node) -> bool:
    """Whether a value is computed by a kernel that does nothing else (``ReduceAttrs.is_alone``)."""
    return isinstance(node.attrs, A.ReduceAttrs) and node.attrs.is_alone


@dataclass(frozen=True, slots=True)
class Split:
    """Which dims of a domain are outer (in row-major order of the outer point) and inner."""

    outer: tuple[int, ...]
    inner: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Access:
    """Realized ``node`` is read at ``position``; None: at a position that values decide."""

    node: Node
    position: Position | None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Where a root that copies a value writes it: over input ``node``, or (None) to new memory with
    ``strides`` that differ from the value's own."""

    node: Node | None
    strides: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """A value computed by a loop nest; with ``into``, a copy of the value to another place."""

    node: Node
    domain: Shape
    axes: tuple[Axis, ...]  # one a dim of the domain, named d0, d1, ...
    accesses: tuple[Access, ...]
    into: Target | None = None
    dots: frozenset[tuple[Node, Position]] = frozenset()  # that it computes, and at which positions

    @property
    def position(self) -> Position:
        return tuple(axis_index(a) for a in self.axes)

    @property
    def fixed_split(self) -> Split | None:
        """The only split that a reduction or scan allows; None when any will do."""
        spec = self.node.spec
        if self.into is not None:
            return None
        if spec.has(Trait.REDUCTION):
            inner = self.node.attrs.axes
        elif spec.has(Trait.SCAN):
            inner = (self.node.attrs.axis,)
        elif spec.has(Trait.ATTENTION):
            inner = (len(self.domain) - 1,)
        else:
            return None
        outer = tuple(k for k in range(len(self.domain)) if k not in inner)
        return Split(outer, tuple(inner))

    def value_position(self, split: Split) -> tuple[int, ...]:
        """The domain dims that are the dims of the value."""
        if self.node.spec.has(Trait.REDUCTION | Trait.ATTENTION) and self.into is None:
            return split.outer
        return tuple(range(len(self.domain)))


def make_root(node: Node, realized: set[Node], into: Target | None = None) -> Root:
    """The root of a realized node; with ``into``, of a copy of its value."""
    is_reduction = node.spec.has(Trait.REDUCTION) and into is None
    domain = node.inputs[0].shape if is_reduction else node.shape
    if node.op == "attend" and into is None:
        domain = (*node.shape, node.inputs[0].shape[-1])
    axes = tuple(Axis(f"d{k}", d) for k, d in enumerate(domain))
    position = tuple(axis_index(a) for a in axes)
    accesses, dots = _accesses(node, position, realized, into)
    return Root(node, domain, axes, accesses, into, dots)


def _accesses(
    node: Node, position: Position, realized: set[Node], into: Target | None
) -> tuple[tuple[Access, ...], frozenset[tuple[Node, Position]]]:
    dots: set[tuple[Node, Position]] = set()
    found: dict[Access, None] = {}
    seen: set[tuple[Node, Position | None]] = set()

    def visit(node: Node, position: Position | None) -> None:
        if (node, position) in seen or node.op in INLINE_LEAVES:
            return
        seen.add((node, position))
        if node in realized:
            found[Access(node, position)] = None
        else:
            expand(node, position)

    def expand(node: Node, position: Position | None) -> None:
        spec = node.spec
        if spec.has(Trait.NESTED) and position is not None:
            dots.add((node, position))
        if spec.has(Trait.GATHER):
            visit(node.inputs[0], None)
            for index in node.inputs[1:]:
                visit(index, position)
        elif position is None or spec.has(Trait.RANDOM | Trait.SCATTER | Trait.NESTED):
            for arg in node.inputs:
                visit(arg, () if spec.has(Trait.RANDOM) else None)
        else:
            for read in reads(node, position):
                visit(read.node, read.position)

    if into is not None and node in realized and node.op not in INLINE_LEAVES:
        found[Access(node, position)] = None
    else:
        expand(node, position)
    return tuple(found), frozenset(dots)


def sizes(domain: Shape, dims: tuple[int, ...]) -> Shape:
    return tuple(domain[d] for d in dims)


def flat(position: Position, domain: Shape, dims: tuple[int, ...]) -> Index:
    """The row-major flat index of some dims at a position."""
    shape = sizes(domain, dims)
    return linearize(tuple(position[d] for d in dims), contiguous_strides(shape))


@dataclass(eq=False)
class Kernel:
    """Roots that run in one loop nest, in order, with the split of each. ``statistics``: of the rows of
    an attention among the roots."""

    roots: list[Root]
    splits: dict[Root, Split] = field(default_factory=dict)
    statistics: list[Node] = field(default_factory=list)

    @property
    def numel(self) -> Dim:
        """Number of outer points."""
        root = self.roots[0]
        return numel(sizes(root.domain, self.splits[root].outer))

    @property
    def is_flat(self) -> bool:
        """True when no root has inner dims, so that another split may still be chosen."""
        return not any(self.splits[r].inner for r in self.roots)


def kernel_of(root: Root) -> Kernel:
    split = root.fixed_split or Split(tuple(range(len(root.domain))), ())
    return Kernel([root], {root: split})
