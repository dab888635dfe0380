"""The order of the dims of a value in memory, taken from what it is computed from.

A value that nothing else binds gets the dim order of the largest values it reads, so that one loop
order suits both: what follows a channels-last convolution stays channels last, through pointwise
kernels, pooling and sums of branches.
"""

from __future__ import annotations

from collections.abc import Mapping

from lazyc.ir.graph import Node
from lazyc.ir.index import Axis, linearize
from lazyc.ir.ops import Trait
from lazyc.ir.types import Dim, Shape, numel
from lazyc.passes.regions import kernel_of, make_root

_NO_LOOP = Trait.LEAF | Trait.CONTRACTION | Trait.BARRIER | Trait.SCATTER


def inherited_order(
    node: Node, realized: set[Node], strides: Mapping[Node, Shape]
) -> tuple[int, ...] | None:
    """The dims of ``node`` from slowest to fastest as its operands lie in memory; None for row-major.

    Only operands that vary along every dim count, the larger ones for more.
    """
    if node.spec.has(_NO_LOOP) or node.op == "project" or len(node.shape) < 3:
        return None
    if node.spec.has(Trait.VIEW) and node.op not in ("pad", "cat"):
        return None  # a copy, made for its own order
    root = make_root(node, realized)
    dims = root.value_position(kernel_of(root).splits[root])
    votes: dict[tuple[int, ...], int] = {}
    for access in root.accesses:
        layout = strides.get(access.node)
        if access.position is None or layout is None:
            continue
        flat = linearize(access.position, layout)
        if not all(isinstance(atom, Axis) for atom, _ in flat.terms):
            continue
        steps = [_estimate(flat.coef(root.axes[d])) for d in dims]
        order = _order(node.shape, steps)
        if order is not None:
            votes[order] = votes.get(order, 0) + _estimate(numel(access.node.shape))
    row_major = tuple(range(len(node.shape)))
    best = max(votes, key=lambda o: (votes[o], o == row_major), default=row_major)
    return None if best == row_major else best


def _estimate(dim: Dim) -> int:
    """A dim as a number to compare by, with its symbols taken as large."""
    return dim if isinstance(dim, int) else int(dim.subs(dict.fromkeys(dim.free_symbols, 1009)))


def _order(shape: Shape, steps: list[int]) -> tuple[int, ...] | None:
    """The dims by falling step; dims of size 1 stay with the dim before them."""
    keys: list[int] = []
    for dim, step in zip(shape, steps, strict=True):
        if dim == 1:
            keys.append(keys[-1] if keys else 1 << 62)
        elif step > 0:
            keys.append(step)
        else:
            return None
    return tuple(sorted(range(len(shape)), key=lambda d: -keys[d]))
