"""Windows over the spatial dims of an image: what pooling, im2col and nearest upsampling share.

Spatial sizes must be static; the batch may be symbolic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lazyc.frontend.indexing import identity, scatter_add, zeros
from lazyc.frontend.lowering import Builder, NotLowered
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape, numel


@dataclass(frozen=True)
class Pool:
    """Windows over the last dims of a tensor; one entry a spatial dim."""

    sizes: tuple[int, ...]  # of the input
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    counts: tuple[int, ...]  # windows

    @property
    def spatial(self) -> int:
        return len(self.sizes)


def spatial_sizes(x: Node, spatial: int) -> tuple[int, ...]:
    """The last ``spatial`` sizes of x as ints; NotLowered where they are symbolic or 0."""
    if not spatial < x.tensor.rank <= spatial + 2:
        raise NotLowered(f"{spatial}-dim pooling of {x.type}")
    sizes = x.shape[-spatial:]
    if not all(isinstance(d, int) for d in sizes):
        raise NotLowered("pooling over a symbolic size")
    if any(d == 0 for d in x.shape):
        raise NotLowered("pooling of an empty tensor")
    return tuple(int(d) for d in sizes)


def _count(size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    """The number of windows, as ATen's pooling_output_shape counts them."""
    span = size + 2 * pad - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)
    count = span // stride + 1
    if ceil_mode and (count - 1) * stride >= size + pad:
        count -= 1  # a window must start inside the input or its left padding
    return count


def make_pool(
    x: Node,
    spatial: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Pool:
    """The windows of a pooling call; arguments of one value stand for every dim."""

    def each(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(values) * spatial if len(values) == 1 else tuple(values)

    sizes = spatial_sizes(x, spatial)
    kernel, padding, dilation = each(kernel), each(padding), each(dilation)
    stride = each(stride) if stride else kernel
    counts = tuple(
        _count(*args, ceil_mode)
        for args in zip(sizes, kernel, stride, padding, dilation, strict=True)
    )
    return Pool(sizes, kernel, stride, padding, dilation, counts)


def windows(b: Builder, x: Node, p: Pool, fill: A.Scalar) -> Node:
    """x (..., *sizes) as (..., *counts, *kernel), with ``fill`` outside of it."""
    lead = x.tensor.rank - p.spatial
    needed = [
        (count - 1) * stride + (kernel - 1) * dilation + 1
        for count, stride, kernel, dilation in zip(
            p.counts, p.stride, p.kernel, p.dilation, strict=True
        )
    ]
    high = [max(0, n - size - pad) for n, size, pad in zip(needed, p.sizes, p.padding, strict=True)]
    padded = b.pad(x, [0] * lead + list(p.padding), [0] * lead + high, fill)
    axes = tuple(range(lead, x.tensor.rank))
    attrs = A.WindowAttrs(axes, p.kernel, p.stride, p.dilation, p.counts)
    return b.emit("window", padded, attrs=attrs)


def lowest(dtype: DType) -> A.Scalar:
    """What every value of a type is at least."""
    if dtype is DType.BOOL:
        raise NotLowered("max pooling of bool")
    return -math.inf if dtype.is_float else torch.iinfo(dtype.torch).min


def last_axes(x: Node, n: int) -> tuple[int, ...]:
    return tuple(range(x.tensor.rank - n, x.tensor.rank))


def flat_position(b: Builder, axes: Sequence[Node], sizes: Sequence[int]) -> Node:
    """Row-major position in ``sizes`` of one index a dim."""
    flat = axes[0]
    for index, size in zip(axes[1:], sizes[1:], strict=True):
        flat = b.add(b.mul(flat, size), index)
    return flat


def unflatten(b: Builder, flat: Node, sizes: Sequence[int]) -> list[Node]:
    """The position in each dim of ``sizes`` of a row-major position."""
    parts: list[Node] = []
    for size in reversed(sizes[1:]):
        parts.append(b.pointwise("mod", flat, size))
        flat = b.pointwise("floor_div", flat, size)
    return [flat, *reversed(parts)]


@dataclass(frozen=True)
class Cover:
    """For each input position of an axis, the windows that cover it: at most ``reach``.

    ``index`` (size, reach) holds window numbers, 0 where ``valid`` is false.
    """

    index: Node
    valid: Node
    reach: int


def sum_covering(b: Builder, grad: Node, sizes: Sequence[int], covers: Sequence[Cover]) -> Node:
    """grad (..., *counts) summed, for each input position, over the windows that cover it."""
    lead, spatial = grad.tensor.rank - len(sizes), len(sizes)
    shape: Shape = (*grad.shape[:lead], *sizes, *(c.reach for c in covers))
    indices = [identity(b, shape, k) for k in range(lead)]
    valid: Node | None = None
    for k, cover in enumerate(covers):
        place = [1] * len(shape)
        place[lead + k], place[lead + spatial + k] = sizes[k], cover.reach
        indices.append(b.reshape(cover.index, place))
        here = b.reshape(cover.valid, place)
        valid = here if valid is None else b.pointwise("and", valid, here)
    assert valid is not None
    read = b.where(valid, b.gather(grad, indices, checked=False), 0)
    return b.reduce("sum", read, last_axes(read, spatial))


def repeat_blocks(b: Builder, x: Node, times: Sequence[int]) -> Node:
    """Each element of the last dims repeated ``times`` along its dim (nearest upsampling)."""
    lead = x.tensor.rank - len(times)
    split: list[Dim] = list(x.shape[:lead])
    grown: list[Dim] = list(x.shape[:lead])
    final: list[Dim] = list(x.shape[:lead])
    for size, n in zip(x.shape[lead:], times, strict=True):
        split += [size, 1]
        grown += [size, n]
        final.append(size * n)
    return b.reshape(b.expand(b.reshape(x, split), grown), final)


def add_at_positions(b: Builder, grad: Node, x: Node, indices: Node, spatial: int) -> Node:
    """Zeros like x with grad added at row-major positions in the last ``spatial`` dims."""
    sizes = spatial_sizes(x, spatial)
    lead = x.shape[:-spatial]
    batch = numel(lead)
    shape = (batch, numel(grad.shape[-spatial:]))
    base = zeros(b, (batch, numel(sizes)), x)
    places = [identity(b, shape, 0), b.reshape(indices, shape)]
    out = scatter_add(b, base, b.reshape(grad, shape), places, checked=True)
    return b.reshape(out, x.shape)
