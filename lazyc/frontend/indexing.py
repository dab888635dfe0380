"""What the lowerings that read or write through index tensors share.

An index of a Graph's gather or scatter is i64, one for each dim, and non-negative. Here user-made
indices are cast, wrapped and placed: each is reshaped so that all of them broadcast to the shape of
what is read or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lazyc.frontend.builder import broadcast_shapes
from lazyc.frontend.lowering import Builder, NotLowered
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape


def as_index(b: Builder, index: Node) -> Node:
    """An index tensor as i64. A mask is refused: how much it selects depends on data."""
    if index.dtype in (DType.BOOL, DType.U8):
        raise NotLowered("mask as an index: the result's size depends on data")
    if index.dtype not in (DType.I64, DType.I32):
        raise NotLowered(f"index of type {index.dtype}")
    return b.cast(index, DType.I64)


def wrap(b: Builder, index: Node, size: Dim) -> Node:
    """Negative indices count from the end; what is out of range stays so."""
    return b.where(b.compare("lt", index, 0), b.add(index, size), index)


def on_axis(b: Builder, line: Node, axis: int, rank: int) -> Node:
    """A 1-dim tensor along ``axis`` of ``rank`` dims, the others of size 1."""
    return b.reshape(line, tuple(line.shape[0] if k == axis else 1 for k in range(rank)))


def identity(b: Builder, shape: Shape, axis: int, device: str = "cpu") -> Node:
    """The index that reads position p along ``axis`` of ``shape`` itself, other dims of size 1."""
    return on_axis(b, b.iota(shape[axis], device=device), axis, len(shape))


def along_axis(b: Builder, index: Node, axis: int) -> list[Node]:
    """For an index shaped as the result: the indices of every dim, identity but on ``axis``."""
    device = index.tensor.device
    return [
        index if k == axis else identity(b, index.shape, k, device) for k in range(len(index.shape))
    ]


def by_line(b: Builder, shape: Shape, axis: int, line: Node) -> tuple[Shape, list[Node]]:
    """For a 1-dim index into ``axis`` of ``shape``: the result's shape and the indices."""
    result = (*shape[:axis], line.shape[0], *shape[axis + 1 :])
    device = line.tensor.device
    indices = [
        on_axis(b, line, axis, len(shape)) if k == axis else identity(b, result, k, device)
        for k in range(len(shape))
    ]
    return result, indices


@dataclass(frozen=True)
class Advanced:
    """Several index tensors applied together: the result's shape and one index for each dim."""

    shape: Shape
    indices: tuple[Node, ...]


def advanced(b: Builder, shape: Shape, given: Sequence[Node | None]) -> Advanced:
    """numpy's advanced indexing of a tensor of ``shape``, as torch does it.

    The index tensors broadcast together. Their dims take the place of the indexed dims when those
    are adjacent, and come first when not; a None keeps its dim whole. Negative indices wrap.
    """
    if len(given) > len(shape):
        raise NotLowered(f"{len(given)} indices for {len(shape)} dims")
    places = [k for k, index in enumerate(given) if index is not None]
    if not places:
        raise NotLowered("indexing without an index tensor")
    tensors = {k: as_index(b, index) for k, index in enumerate(given) if index is not None}
    common = broadcast_shapes(t.shape for t in tensors.values())
    adjacent = places == list(range(places[0], places[-1] + 1))
    lead = places[0] if adjacent else 0
    kept = [k for k in range(len(shape)) if k not in tensors]
    result = (*(shape[k] for k in kept[:lead]), *common, *(shape[k] for k in kept[lead:]))
    tail = len(kept) - lead
    device = next(iter(tensors.values())).tensor.device
    indices: list[Node] = []
    for k, size in enumerate(shape):
        if k in tensors:
            index = wrap(b, tensors[k], size)
            missing = lead + len(common) - index.tensor.rank
            indices.append(b.reshape(index, ((1,) * missing + index.shape + (1,) * tail)))
        else:
            position = kept.index(k)
            axis = position if position < lead else position + len(common)
            indices.append(identity(b, result, axis, device))
    return Advanced(result, tuple(indices))


def expand_to(b: Builder, x: Node, shape: Shape) -> Node:
    """x broadcast to exactly ``shape``; NotLowered where it does not fit."""
    if len(x.shape) > len(shape) or broadcast_shapes((x.shape, shape)) != shape:
        raise NotLowered(f"values {x.shape} for a selection of {shape}")
    return b.expand(x, shape)


def scatter_add(
    b: Builder, base: Node, update: Node, indices: Sequence[Node], checked: bool
) -> Node:
    """base with update added; half types add up in f32 and are rounded once."""
    if base.dtype is DType.BOOL:
        raise NotLowered("accumulation in bool")
    total = b.scatter(b.compute(base), b.compute(update), indices, "add", checked)
    return b.cast(total, base.dtype)


def zeros(b: Builder, shape: Shape, like: Node) -> Node:
    """Zeros of another tensor's type."""
    return b.constant(0, like.dtype, shape, like.tensor.device)


def require(b: Builder, holds: Node, x: Node) -> Node:
    """x, where ``holds`` is true for each element; else the run raises eager's error.

    What is false reads past the end of a one-element tensor, which the checked gather flags.
    """
    single = b.constant(0, x.dtype, (1,), x.tensor.device)
    flag = b.gather(single, [b.where(holds, b.constant(0, DType.I64), 1)], checked=True)
    return b.where(holds, x, flag)


def at_least_1d(b: Builder, x: Node) -> Node:
    """A 0-dim tensor counts as one of a single element in these ops."""
    return x if x.tensor.rank else b.reshape(x, (1,))


def check_same_dtype(x: Node, source: Node) -> None:
    if x.dtype is not source.dtype:
        raise NotLowered(f"{source.dtype} written into {x.dtype}")
