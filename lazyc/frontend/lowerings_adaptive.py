"""Lowerings of adaptive pooling: windows chosen so that the output has a given size.

Window o of an axis of D positions and O outputs is floor(o*D/O) .. ceil((o+1)*D/O). Where O divides
D the windows tile the axis; else they differ in length and are read by gather.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lazyc.frontend.indexing import identity, on_axis
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.windows import (
    Cover,
    add_at_positions,
    flat_position,
    last_axes,
    lowest,
    repeat_blocks,
    spatial_sizes,
    sum_covering,
    unflatten,
)
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape


def _targets(counts: Sequence[Dim], spatial: int) -> tuple[int, ...]:
    if not all(isinstance(c, int) and c > 0 for c in counts) or len(counts) != spatial:
        raise NotLowered(f"adaptive pooling to {tuple(counts)}")
    return tuple(int(c) for c in counts)


def _start(b: Builder, o: Node, size: int, count: int) -> Node:
    return b.pointwise("floor_div", b.mul(o, size), count)


def _end(b: Builder, o: Node, size: int, count: int) -> Node:
    """ceil((o+1)*size/count), from o >= 0."""
    return b.pointwise("floor_div", b.add(b.mul(b.add(o, 1), size), count - 1), count)


def _longest(size: int, count: int) -> int:
    return max(-(-(o + 1) * size // count) - o * size // count for o in range(count))


def _read_windows(b: Builder, x: Node, counts: Sequence[int], fill: A.Scalar) -> Node:
    """x (..., *sizes) as (..., *counts, *longest), ``fill`` where a window is shorter."""
    spatial, lead = len(counts), x.tensor.rank - len(counts)
    sizes = spatial_sizes(x, spatial)
    longest = tuple(_longest(s, c) for s, c in zip(sizes, counts, strict=True))
    shape: Shape = (*x.shape[:lead], *counts, *longest)
    indices = [identity(b, shape, k) for k in range(lead)]
    valid = b.constant(True, DType.BOOL, (1,) * len(shape))
    for k in range(spatial):
        o, step = identity(b, shape, lead + k), identity(b, shape, lead + spatial + k)
        at = b.add(_start(b, o, sizes[k], counts[k]), step)
        valid = b.pointwise("and", valid, b.compare("lt", at, _end(b, o, sizes[k], counts[k])))
        indices.append(b.minimum(at, sizes[k] - 1))
    return b.where(valid, b.gather(x, indices, checked=False), fill)


def _tiles(b: Builder, x: Node, counts: Sequence[int]) -> Node | None:
    """x (..., *sizes) as (..., *counts, *lengths) where every count divides its size, else None."""
    spatial, lead = len(counts), x.tensor.rank - len(counts)
    sizes = spatial_sizes(x, spatial)
    if any(s % c for s, c in zip(sizes, counts, strict=True)):
        return None
    split: list[Dim] = list(x.shape[:lead])
    for size, count in zip(sizes, counts, strict=True):
        split += [count, size // count]
    order = [*range(lead), *range(lead, len(split), 2), *range(lead + 1, len(split), 2)]
    return b.permute(b.reshape(x, split), order)


def _divide(b: Builder, x: Node, sizes: Sequence[int], counts: Sequence[int]) -> Node:
    """x (..., *counts) divided by the number of elements in each window."""
    lead = x.tensor.rank - len(counts)
    constant = 1
    for k, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if size % count == 0:
            constant *= size // count
            continue
        o = b.iota(count, device=x.tensor.device)
        length = b.sub(_end(b, o, size, count), _start(b, o, size, count))
        x = b.div(x, b.cast(on_axis(b, length, lead + k, x.tensor.rank), x.dtype))
    return b.div(x, constant) if constant != 1 else x


def _adaptive_avg(b: Builder, x: Node, counts: tuple[int, ...]) -> Node:
    if not x.dtype.is_float:
        raise NotLowered(f"average pooling of {x.dtype}")
    sizes = spatial_sizes(x, len(counts))
    values = b.compute(x)
    view = _tiles(b, values, counts)
    if view is None:
        view = _read_windows(b, values, counts, 0)
    total = b.reduce("sum", view, last_axes(view, len(counts)))
    return b.cast(_divide(b, total, sizes, counts), x.dtype)


@lowers("aten.adaptive_avg_pool1d.default")
def adaptive_avg_pool1d(b: Builder, x: Node, output_size: Sequence[Dim]) -> Node:
    return _adaptive_avg(b, x, _targets(output_size, 1))


@lowers("aten._adaptive_avg_pool2d.default", "aten.adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(b: Builder, x: Node, output_size: Sequence[Dim]) -> Node:
    return _adaptive_avg(b, x, _targets(output_size, 2))


@lowers("aten._adaptive_avg_pool3d.default", "aten.adaptive_avg_pool3d.default")
def adaptive_avg_pool3d(b: Builder, x: Node, output_size: Sequence[Dim]) -> Node:
    return _adaptive_avg(b, x, _targets(output_size, 3))


def _cover(b: Builder, size: int, count: int) -> Cover:
    """Position h lies in the windows o with start(o) <= h < end(o), from floor(h*count/size) on."""
    reach = max(
        sum(o * size // count <= h < -(-(o + 1) * size // count) for o in range(count))
        for h in range(size)
    )
    h = b.reshape(b.iota(size), (size, 1))
    first = b.pointwise("floor_div", b.mul(h, count), size)
    o = b.add(first, b.reshape(b.iota(reach), (1, reach)))
    starts = b.compare("le", _start(b, o, size, count), h)
    valid = b.pointwise("and", starts, b.compare("lt", o, count))
    return Cover(b.where(valid, o, 0), valid, reach)


def _adaptive_avg_backward(b: Builder, grad: Node, x: Node, spatial: int) -> Node:
    if not grad.dtype.is_float:
        raise NotLowered(f"average pooling of {grad.dtype}")
    sizes, counts = spatial_sizes(x, spatial), spatial_sizes(grad, spatial)
    share = _divide(b, b.compute(grad), sizes, counts)
    if all(s % c == 0 for s, c in zip(sizes, counts, strict=True)):
        times = [s // c for s, c in zip(sizes, counts, strict=True)]
        return b.cast(repeat_blocks(b, share, times), grad.dtype)
    covers = [_cover(b, s, c) for s, c in zip(sizes, counts, strict=True)]
    return b.cast(sum_covering(b, share, sizes, covers), grad.dtype)


@lowers("aten._adaptive_avg_pool2d_backward.default")
def adaptive_avg_pool2d_backward(b: Builder, grad: Node, x: Node) -> Node:
    return _adaptive_avg_backward(b, grad, x, 2)


@lowers("aten._adaptive_avg_pool3d_backward.default")
def adaptive_avg_pool3d_backward(b: Builder, grad: Node, x: Node) -> Node:
    return _adaptive_avg_backward(b, grad, x, 3)


def _adaptive_max(b: Builder, x: Node, counts: tuple[int, ...]) -> tuple[Node, Node]:
    """Maxima and their row-major positions in the spatial dims (the first of equal ones)."""
    spatial = len(counts)
    sizes = spatial_sizes(x, spatial)
    view = _tiles(b, x, counts)
    if view is None:
        view = _read_windows(b, x, counts, lowest(x.dtype))
    lengths = [int(d) for d in view.shape[-spatial:]]  # type: ignore[arg-type]
    flat = b.reshape(view, (*view.shape[:-spatial], math.prod(lengths)))
    best = b.argreduce("argmax", flat, flat.tensor.rank - 1)
    lead = best.tensor.rank - spatial
    axes = [
        b.add(_start(b, identity(b, best.shape, lead + k), sizes[k], counts[k]), step)
        for k, step in enumerate(unflatten(b, best, lengths))
    ]
    values = b.reduce("max", view, last_axes(view, spatial))
    return values, b.expand(flat_position(b, axes, sizes), best.shape)


@lowers("aten.adaptive_max_pool2d.default")
def adaptive_max_pool2d(b: Builder, x: Node, output_size: Sequence[int]) -> tuple[Node, Node]:
    return _adaptive_max(b, x, _targets(output_size, 2))


@lowers("aten.adaptive_max_pool3d.default")
def adaptive_max_pool3d(b: Builder, x: Node, output_size: Sequence[int]) -> tuple[Node, Node]:
    return _adaptive_max(b, x, _targets(output_size, 3))


@lowers("aten.adaptive_max_pool2d_backward.default")
def adaptive_max_pool2d_backward(b: Builder, grad: Node, x: Node, indices: Node) -> Node:
    return add_at_positions(b, grad, x, indices, 2)


@lowers("aten.adaptive_max_pool3d_backward.default")
def adaptive_max_pool3d_backward(b: Builder, grad: Node, x: Node, indices: Node) -> Node:
    return add_at_positions(b, grad, x, indices, 3)
