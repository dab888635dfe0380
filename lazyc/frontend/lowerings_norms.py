"""Lowerings of softmax and of layer, group and batch norm, with their backwards.

All compute half types in f32. Statistics take two passes (mean, then squared deviations), so that
nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.lowerings_reductions import moments
from lazyc.frontend.promotion import lazyc_dtype
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape

# --- softmax --------------------------------------------------------------------------------------


def _shifted(b: Builder, x: Node, axis: int) -> Node:
    """x minus its maximum along the axis, so that exp does not overflow."""
    axes = (axis,) if x.tensor.rank else ()
    return b.sub(x, b.reduce("max", x, axes, keepdim=True))


def _total(b: Builder, x: Node, axis: int) -> Node:
    return b.reduce("sum", x, (axis,) if x.tensor.rank else (), keepdim=True)


@lowers("aten._softmax.default")
def _softmax(b: Builder, x: Node, axis: int, half_to_float: bool) -> Node:
    e = b.exp(_shifted(b, b.compute(x), axis))
    return b.cast(b.div(e, _total(b, e, axis)), DType.F32 if half_to_float else x.dtype)


@lowers("aten._log_softmax.default")
def _log_softmax(b: Builder, x: Node, axis: int, half_to_float: bool) -> Node:
    y = _shifted(b, b.compute(x), axis)
    y = b.sub(y, b.log(_total(b, b.exp(y), axis)))
    return b.cast(y, DType.F32 if half_to_float else x.dtype)


@lowers("aten._safe_softmax.default")
def _safe_softmax(b: Builder, x: Node, axis: int, dtype: Any = None) -> Node:
    """Softmax that is 0 in a row of nothing but -inf."""
    x = b.cast(x, lazyc_dtype(dtype, x.dtype))
    y = _softmax(b, x, axis, False)
    masked = b.compare("eq", x, -math.inf)
    axes = (axis,) if x.tensor.rank else ()
    return b.where(b.reduce("min", masked, axes, keepdim=True), 0.0, y)


@lowers("aten._softmax_backward_data.default")
def _softmax_backward(b: Builder, grad: Node, y: Node, axis: int, dtype: Any) -> Node:
    grad, y = b.compute(grad), b.compute(y)
    weighted = b.mul(grad, y)
    return b.cast(b.sub(weighted, b.mul(y, _total(b, weighted, axis))), lazyc_dtype(dtype))


@lowers("aten._log_softmax_backward_data.default")
def _log_softmax_backward(b: Builder, grad: Node, y: Node, axis: int, dtype: Any) -> Node:
    grad, y = b.compute(grad), b.compute(y)
    return b.cast(b.sub(grad, b.mul(b.exp(y), _total(b, grad, axis))), lazyc_dtype(dtype))


# --- normalization --------------------------------------------------------------------------------


def _results(b: Builder, *values: Node | None) -> tuple[Node | None, ...]:
    """Each value as the trace has it: dtype, and dims of size 1 that statistics keep or drop."""
    found: list[Node | None] = []
    for value, wanted in zip(values, b.results(), strict=True):
        if value is None or wanted is None:
            found.append(None)
        else:
            found.append(b.reshape(b.cast(value, wanted.dtype), wanted.shape))
    return tuple(found)


def _statistics(b: Builder, x: Node, axes: Sequence[int], eps: float) -> tuple[Node, Node]:
    """Mean and 1/sqrt(var + eps) over axes, kept."""
    mean, squares = moments(b, x, axes)
    variance = b.div(squares, b.count(x.shape, axes))
    return mean, b.emit("rsqrt", b.add(variance, eps))


def _affine(b: Builder, x: Node, weight: Node | None, bias: Node | None, shape: Shape) -> Node:
    """``x * weight + bias`` with both seen as ``shape``."""
    if weight is not None:
        x = b.mul(x, b.reshape(b.cast(weight, x.dtype), shape))
    if bias is not None:
        x = b.add(x, b.reshape(b.cast(bias, x.dtype), shape))
    return x


def _input_gradient(
    b: Builder, grad: Node, centered: Node, rstd: Node, axes: Sequence[int]
) -> Node:
    """Gradient of (x - mean) * rstd with respect to x, for statistics over ``axes``."""
    xhat = b.mul(centered, rstd)
    along = b.mul(xhat, b.mean(b.mul(grad, xhat), axes, keepdim=True))
    return b.mul(rstd, b.sub(b.sub(grad, b.mean(grad, axes, keepdim=True)), along))


@lowers("aten.native_layer_norm.default")
def _layer_norm(
    b: Builder, x: Node, shape: Shape, weight: Node | None, bias: Node | None, eps: float
) -> tuple[Node | None, ...]:
    """Ba et al. 2016. Returns (out, mean, rstd); x is [*outer, *shape]."""
    rank = x.tensor.rank
    axes = range(rank - len(shape), rank)
    y = b.compute(x)
    mean, rstd = _statistics(b, y, axes, eps)
    out = _affine(b, b.mul(b.sub(y, mean), rstd), weight, bias, shape)
    return _results(b, out, mean, rstd)


@lowers("aten.native_layer_norm_backward.default")
def _layer_norm_backward(
    b: Builder,
    grad: Node,
    x: Node,
    shape: Shape,
    mean: Node,
    rstd: Node,
    weight: Node | None,
    bias: Node | None,
    mask: Sequence[bool],
) -> tuple[Node | None, ...]:
    rank = x.tensor.rank
    split = rank - len(shape)
    inner, outer = range(split, rank), range(split)
    grad, x = b.compute(grad), b.compute(x)
    rstd = b.cast(rstd, x.dtype)
    centered = b.sub(x, b.cast(mean, x.dtype))
    dx = dweight = dbias = None
    if mask[0]:
        dx = _input_gradient(b, _affine(b, grad, weight, None, shape), centered, rstd, inner)
    if mask[1]:
        dweight = b.reduce("sum", b.mul(grad, b.mul(centered, rstd)), tuple(outer))
    if mask[2]:
        dbias = b.reduce("sum", grad, tuple(outer))
    return _results(b, dx, dweight, dbias)


@lowers("aten.native_group_norm.default")
def _group_norm(
    b: Builder,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    n: Dim,
    channels: Dim,
    area: Dim,
    groups: int,
    eps: float,
) -> tuple[Node | None, ...]:
    """Wu and He 2018. Returns (out, mean [N, G], rstd [N, G]); x is [N, C, *spatial]."""
    y = b.compute(b.reshape(x, (n, groups, channels // groups, area)))
    mean, rstd = _statistics(b, y, (2, 3), eps)
    out = b.mul(b.sub(y, mean), rstd)
    out = _affine(b, out, weight, bias, (1, groups, channels // groups, 1))
    return _results(b, out, mean, rstd)


@lowers("aten.native_group_norm_backward.default")
def _group_norm_backward(
    b: Builder,
    grad: Node,
    x: Node,
    mean: Node,
    rstd: Node,
    weight: Node | None,
    n: Dim,
    channels: Dim,
    area: Dim,
    groups: int,
    mask: Sequence[bool],
) -> tuple[Node | None, ...]:
    split = (n, groups, channels // groups, area)
    grad, x = b.compute(b.reshape(grad, split)), b.compute(b.reshape(x, split))
    rstd = b.reshape(b.cast(rstd, x.dtype), (n, groups, 1, 1))
    centered = b.sub(x, b.reshape(b.cast(mean, x.dtype), (n, groups, 1, 1)))
    dx = dweight = dbias = None
    if mask[0]:
        scaled = _affine(b, grad, weight, None, (1, groups, channels // groups, 1))
        dx = _input_gradient(b, scaled, centered, rstd, (2, 3))
    if mask[1]:
        dweight = b.reduce("sum", b.mul(grad, b.mul(centered, rstd)), (0, 3))
    if mask[2]:
        dbias = b.reduce("sum", grad, (0, 3))
    return _results(b, dx, dweight, dbias)


# --- batch norm -----------------------------------------------------------------------------------


def _channel_axes(x: Node) -> tuple[tuple[int, ...], Shape]:
    """The axes of a channel's statistics, and the shape that broadcasts a [C] tensor over x."""
    rank = x.tensor.rank
    axes = tuple(k for k in range(rank) if k != 1)
    return axes, tuple(x.shape[1] if k == 1 else 1 for k in range(rank))


def _running(b: Builder, old: Node, new: Node, momentum: float) -> Node:
    """The moving average after one step."""
    fresh = b.reshape(new, old.shape)
    kept = b.mul(b.cast(old, new.dtype), 1 - momentum)
    return b.cast(b.add(kept, b.mul(fresh, momentum)), old.dtype)


def _batch_norm_training(
    b: Builder, x: Node, weight: Node | None, bias: Node | None, eps: float
) -> tuple[Node, Node, Node, Node]:
    """Out, mean, 1/sqrt(var + eps), and the unbiased variance (Ioffe and Szegedy 2015)."""
    axes, shape = _channel_axes(x)
    y = b.compute(x)
    mean, squares = moments(b, y, axes)
    count = b.count(x.shape, axes)
    rstd = b.emit("rsqrt", b.add(b.div(squares, count), eps))
    out = _affine(b, b.mul(b.sub(y, mean), rstd), weight, bias, shape)
    return out, mean, rstd, b.div(squares, count - 1)


def _batch_norm_inference(
    b: Builder,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    mean: Node,
    variance: Node,
    eps: float,
) -> Node:
    """``x * scale + shift`` with both made once a channel, as eager does."""
    _, shape = _channel_axes(x)
    y = b.compute(x)
    scale = b.emit("rsqrt", b.add(b.cast(variance, y.dtype), eps))
    if weight is not None:
        scale = b.mul(scale, b.cast(weight, y.dtype))
    shift = b.neg(b.mul(b.cast(mean, y.dtype), scale))
    if bias is not None:
        shift = b.add(shift, b.cast(bias, y.dtype))
    return b.add(b.mul(y, b.reshape(scale, shape)), b.reshape(shift, shape))


def _empty(b: Builder, index: int) -> Node:
    """A result that carries nothing ([0] elements)."""
    wanted = b.results()[index]
    assert wanted is not None and 0 in wanted.shape
    return b.constant(0, wanted.dtype, wanted.shape, wanted.device)


def _saved(b: Builder, index: int, value: Node) -> Node:
    """A statistic kept for the backward: nothing where the trace keeps nothing."""
    wanted = b.results()[index]
    return _empty(b, index) if wanted is not None and 0 in wanted.shape else value


def _batch_norm(
    b: Builder,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    mean: Node | None,
    variance: Node | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Node, Node, Node, Node | None, Node | None]:
    """Out, saved mean, saved 1/std, new running mean, new running variance."""
    if not training:
        assert mean is not None and variance is not None
        out = _batch_norm_inference(b, x, weight, bias, mean, variance, eps)
        rstd = b.emit("rsqrt", b.add(b.compute(variance), eps))
        return out, _saved(b, 1, mean), _saved(b, 2, rstd), mean, variance
    out, batch_mean, rstd, unbiased = _batch_norm_training(b, x, weight, bias, eps)
    if mean is not None:
        mean = _running(b, mean, batch_mean, momentum)
    if variance is not None:
        variance = _running(b, variance, unbiased, momentum)
    return out, batch_mean, rstd, mean, variance


@lowers("aten._native_batch_norm_legit_functional.default")
def _batch_norm_functional(b: Builder, *args: Any) -> tuple[Node | None, ...]:
    return _results(b, *_batch_norm(b, *args))


@lowers("aten._batch_norm_with_update_functional.default")
def _batch_norm_update_functional(
    b: Builder, x: Node, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float,
    eps: float,
) -> tuple[Node | None, ...]:  # fmt: skip
    out, *saved, mean, variance = _batch_norm(
        b, x, weight, bias, mean, variance, True, momentum, eps
    )
    return _results(b, out, *saved, _empty(b, 3), mean, variance)


@lowers("aten._native_batch_norm_legit.no_stats")
def _batch_norm_no_stats(
    b: Builder, x: Node, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> tuple[Node | None, ...]:
    return _results(b, *_batch_norm(b, x, weight, bias, None, None, True, momentum, eps)[:3])


@lowers("aten._native_batch_norm_legit_no_training.default")
def _batch_norm_eval(
    b: Builder, x: Node, weight: Any, bias: Any, mean: Node, variance: Node, momentum: float,
    eps: float,
) -> tuple[Node | None, ...]:  # fmt: skip
    return _results(b, *_batch_norm(b, x, weight, bias, mean, variance, False, momentum, eps)[:3])


@lowers("aten.native_batch_norm.default", "aten._native_batch_norm_legit.default")
def _native_batch_norm(b: Builder, *args: Any) -> tuple[Node | None, ...]:
    _, _, _, mean, _, training, *_ = args
    if training and mean is not None:
        raise NotLowered("running statistics updated in place")
    return _results(b, *_batch_norm(b, *args)[:3])


@lowers("aten._batch_norm_no_update.default")
def _batch_norm_no_update(
    b: Builder, x: Node, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float,
    eps: float,
) -> tuple[Node | None, ...]:  # fmt: skip
    training = mean is None or variance is None
    results = _batch_norm(b, x, weight, bias, mean, variance, training, momentum, eps)
    return _results(b, *results[:3], _empty(b, 3))


@lowers("aten.native_batch_norm_backward.default")
def _batch_norm_backward(
    b: Builder,
    grad: Node,
    x: Node,
    weight: Node | None,
    mean: Node | None,
    variance: Node | None,
    saved_mean: Node | None,
    saved_rstd: Node | None,
    training: bool,
    eps: float,
    mask: Sequence[bool],
) -> tuple[Node | None, ...]:
    axes, shape = _channel_axes(x)
    grad, x = b.compute(grad), b.compute(x)
    if training:
        center, rstd = saved_mean, saved_rstd
        assert center is not None and rstd is not None
        rstd = b.cast(rstd, x.dtype)
    else:
        center = mean
        assert center is not None and variance is not None
        rstd = b.emit("rsqrt", b.add(b.cast(variance, x.dtype), eps))
    rstd = b.reshape(rstd, shape)
    centered = b.sub(x, b.reshape(b.cast(center, x.dtype), shape))
    dx = dweight = dbias = None
    if mask[0]:
        scaled = _affine(b, grad, weight, None, shape)
        if training:
            dx = _input_gradient(b, scaled, centered, rstd, axes)
        else:
            dx = b.mul(scaled, rstd)
    if mask[1]:
        dweight = b.reduce("sum", b.mul(grad, b.mul(centered, rstd)), axes)
    if mask[2]:
        dbias = b.reduce("sum", grad, axes)
    return _results(b, dx, dweight, dbias)


@lowers("aten.batch_norm_backward.default")
def _batch_norm_backward_reserved(
    b: Builder, grad: Node, x: Node, weight: Node, mean: Any, variance: Any, saved_mean: Any,
    saved_rstd: Any, update: bool, eps: float, mask: Sequence[bool], reserve: Node,
) -> tuple[Node | None, ...]:  # fmt: skip
    return _batch_norm_backward(
        b, grad, x, weight, mean, variance, saved_mean, saved_rstd, update, eps, mask
    )
