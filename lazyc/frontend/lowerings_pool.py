"""Lowerings of max and average pooling over fixed windows.

A pool is a reduction over a ``window`` view of the padded input. The gradient of an average reads,
for each input position, the windows that cover it, so that no two threads write to one place.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.frontend.indexing import identity, on_axis
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.windows import (
    Cover,
    Pool,
    add_at_positions,
    flat_position,
    last_axes,
    lowest,
    make_pool,
    repeat_blocks,
    sum_covering,
    unflatten,
    windows,
)
from lazyc.ir.graph import Node
from lazyc.ir.types import numel

# --- max pooling ----------------------------------------------------------------------------------


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
    values = b.reduce("max", view, last_axes(view, p.spatial))
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
    total = b.reduce("sum", view, last_axes(view, p.spatial))
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
