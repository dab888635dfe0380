"""Lowerings of max and average pooling over fixed windows.

A pool is a reduction over a ``window`` view of the padded input. Spatial sizes must be static; the
batch may be symbolic. Backwards of averages read, for each input position, the windows that cover it,
so that no two threads write to one place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lazyc.frontend.indexing import identity, on_axis, scatter_add, zeros
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import DType, Shape, numel


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


def _spatial_axes(x: Node, spatial: int, offset: int = 0) -> tuple[int, ...]:
    """The last ``spatial`` axes, or those ``offset`` before them."""
    first = x.tensor.rank - spatial - offset
    return tuple(range(first, first + spatial))


# --- max pooling ----------------------------------------------------------------------------------


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


def _max_indices(b: Builder, view: Node, p: Pool) -> Node:
    """Where each window's maximum lies, as a row-major position in the input's spatial dims.

    The first of equal maxima counts; padding only ties when every element is -inf, and then the
    first element inside the input counts, as in eager. Of several nans in a window the first
    counts (eager: the last), since finding the last would cost a second reduction.
    """
    flat = b.reshape(view, (*view.shape[: -p.spatial], numel(p.kernel)))
    best = b.argreduce("argmax", flat, flat.tensor.rank - 1)
    lead = best.tensor.rank - p.spatial
    axes: list[Node] = []
    for k, step in enumerate(unflatten(b, best, p.kernel)):
        start = b.sub(b.mul(identity(b, best.shape, lead + k), p.stride[k]), p.padding[k])
        at = b.add(start, b.mul(step, p.dilation[k]))
        if p.padding[k]:  # the first tap at or after 0: start modulo dilation
            inside = b.pointwise("mod", start, p.dilation[k])
            at = b.where(b.compare("lt", at, 0), inside, at)
        axes.append(at)
    return b.expand(flat_position(b, axes, p.sizes), best.shape)


def _max_pool(b: Builder, x: Node, p: Pool) -> tuple[Node, Node]:
    view = windows(b, x, p, lowest(x.dtype))
    values = b.reduce("max", view, _spatial_axes(view, p.spatial))
    return values, _max_indices(b, view, p)


@lowers("aten.max_pool2d_with_indices.default")
def max_pool2d_with_indices(
    b: Builder,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Node, Node]:
    return _max_pool(b, x, make_pool(x, 2, kernel, stride, padding, dilation, ceil_mode))


@lowers("aten.max_pool3d_with_indices.default")
def max_pool3d_with_indices(
    b: Builder,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Node, Node]:
    return _max_pool(b, x, make_pool(x, 3, kernel, stride, padding, dilation, ceil_mode))


@lowers("aten.max_pool1d.default")
def max_pool1d(
    b: Builder,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Node:
    return _max_pool(b, x, make_pool(x, 1, kernel, stride, padding, dilation, ceil_mode))[0]


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


@lowers("aten.max_pool2d_with_indices_backward.default")
def max_pool2d_backward(
    b: Builder,
    grad: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Node,
) -> Node:
    return add_at_positions(b, grad, x, indices, 2)


@lowers("aten.max_pool3d_with_indices_backward.default")
def max_pool3d_backward(
    b: Builder,
    grad: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Node,
) -> Node:
    return add_at_positions(b, grad, x, indices, 3)


# --- average pooling ------------------------------------------------------------------------------


def _divide_by_count(b: Builder, x: Node, p: Pool, include_pad: bool, override: int | None) -> Node:
    """x (..., *counts) divided by the number of elements that each window counts."""
    if override is not None:
        return b.div(x, override)
    constant = 1
    for k, (size, kernel, stride, pad, count) in enumerate(
        zip(p.sizes, p.kernel, p.stride, p.padding, p.counts, strict=True)
    ):
        low, high = (-pad, size + pad) if include_pad else (0, size)
        starts = [o * stride - pad for o in range(count)]
        covered = {min(s + kernel, high) - max(s, low) for s in starts}
        if len(covered) == 1:
            constant *= covered.pop()
            continue
        start = b.sub(b.mul(b.iota(count, device=x.tensor.device), stride), pad)
        length = b.sub(b.minimum(b.add(start, kernel), high), b.maximum(start, low))
        axis = x.tensor.rank - p.spatial + k
        x = b.div(x, b.cast(on_axis(b, length, axis, x.tensor.rank), x.dtype))
    return b.div(x, constant) if constant != 1 else x


def _check_average(x: Node, override: int | None) -> None:
    if not x.dtype.is_float:
        raise NotLowered(f"average pooling of {x.dtype}")
    if override == 0:
        raise NotLowered("divisor_override of 0")


def _avg_pool(b: Builder, x: Node, p: Pool, include_pad: bool, override: int | None) -> Node:
    _check_average(x, override)
    view = windows(b, b.compute(x), p, 0)
    total = b.reduce("sum", view, _spatial_axes(view, p.spatial))
    return b.cast(_divide_by_count(b, total, p, include_pad, override), x.dtype)


@lowers("aten.avg_pool1d.default")
def avg_pool1d(
    b: Builder,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Node:
    p = make_pool(x, 1, kernel, stride, padding, ceil_mode=ceil_mode)
    return _avg_pool(b, x, p, count_include_pad, None)


@lowers("aten.avg_pool2d.default")
def avg_pool2d(
    b: Builder,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    p = make_pool(x, 2, kernel, stride, padding, ceil_mode=ceil_mode)
    return _avg_pool(b, x, p, count_include_pad, divisor_override)


@lowers("aten.avg_pool3d.default")
def avg_pool3d(
    b: Builder,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    p = make_pool(x, 3, kernel, stride, padding, ceil_mode=ceil_mode)
    return _avg_pool(b, x, p, count_include_pad, divisor_override)


@dataclass(frozen=True)
class Cover:
    """For each input position of an axis, the windows that cover it: at most ``reach``.

    ``index`` (size, reach) holds window numbers, 0 where ``valid`` is false.
    """

    index: Node
    valid: Node
    reach: int


def _cover(b: Builder, p: Pool, k: int) -> Cover:
    """Window o covers position h when ``o*stride <= h + pad < o*stride + kernel``."""
    reach = -(-p.kernel[k] // p.stride[k])
    at = b.reshape(b.add(b.iota(p.sizes[k]), p.padding[k]), (p.sizes[k], 1))
    last = b.pointwise("floor_div", at, p.stride[k])
    index = b.sub(last, b.reshape(b.iota(reach), (1, reach)))
    inside = b.pointwise("and", b.compare("ge", index, 0), b.compare("lt", index, p.counts[k]))
    end = b.add(b.mul(index, p.stride[k]), p.kernel[k])
    valid = b.pointwise("and", inside, b.compare("gt", end, at))
    return Cover(b.where(valid, index, 0), valid, reach)


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
    return b.reduce("sum", read, _spatial_axes(read, spatial))


def repeat_blocks(b: Builder, x: Node, times: Sequence[int]) -> Node:
    """Each element of the last dims repeated ``times`` along its dim (nearest upsampling)."""
    lead = x.tensor.rank - len(times)
    split: list = list(x.shape[:lead])
    grown: list = list(x.shape[:lead])
    final: list = list(x.shape[:lead])
    for size, n in zip(x.shape[lead:], times, strict=True):
        split += [size, 1]
        grown += [size, n]
        final.append(size * n)
    return b.reshape(b.expand(b.reshape(x, split), grown), final)


def _avg_pool_backward(
    b: Builder, grad: Node, x: Node, p: Pool, include_pad: bool, override: int | None
) -> Node:
    _check_average(x, override)
    share = _divide_by_count(b, b.compute(grad), p, include_pad, override)
    tiled = all(
        stride == kernel and pad == 0 and size == count * kernel
        for stride, kernel, pad, size, count in zip(
            p.stride, p.kernel, p.padding, p.sizes, p.counts, strict=True
        )
    )
    if tiled:
        return b.cast(repeat_blocks(b, share, p.kernel), grad.dtype)
    covers = [_cover(b, p, k) for k in range(p.spatial)]
    return b.cast(sum_covering(b, share, p.sizes, covers), grad.dtype)


@lowers("aten.avg_pool2d_backward.default")
def avg_pool2d_backward(
    b: Builder,
    grad: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Node:
    p = make_pool(x, 2, kernel, stride, padding, ceil_mode=ceil_mode)
    return _avg_pool_backward(b, grad, x, p, count_include_pad, divisor_override)


@lowers("aten.avg_pool3d_backward.default")
def avg_pool3d_backward(
    b: Builder,
    grad: Node,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Node:
    p = make_pool(x, 3, kernel, stride, padding, ceil_mode=ceil_mode)
    return _avg_pool_backward(b, grad, x, p, count_include_pad, divisor_override)
