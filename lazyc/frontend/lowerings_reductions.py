"""Lowerings of reductions, scans, and statistics. Composite ones compute half types in f32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lazyc.frontend.builder import normalize_axes, normalize_axis
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import default_float, lazyc_dtype
from lazyc.ir.graph import Node
from lazyc.ir.types import DType

Axes = int | Sequence[int] | None


def _axes(x: Node, axes: Axes) -> tuple[int, ...]:
    """Reduced axes; none given, or an empty list, means all."""
    if axes is None or (not isinstance(axes, int) and len(axes) == 0):
        return tuple(range(x.tensor.rank))
    return normalize_axes(axes, x.tensor.rank)


def _accumulated(b: Builder, x: Node, dtype: Any) -> Node:
    """x in the type of a sum or product: as asked, else i64 for integers and bool."""
    default = x.dtype if x.dtype.is_float else DType.I64
    return b.cast(x, lazyc_dtype(dtype, default))


def _summed(b: Builder, kind: str, x: Node, axes: Axes, keepdim: bool, dtype: Any) -> Node:
    x = _accumulated(b, x, dtype)
    if x.dtype is DType.BOOL:  # asked for: any (sum) or all (prod)
        return _truth(b, x, axes, keepdim, kind == "prod")
    return b.reduce(kind, x, _axes(x, axes), keepdim)


@lowers("aten.sum.default", "aten.sum.dim_IntList")
def _sum(
    b: Builder, x: Node, axes: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    return _summed(b, "sum", x, axes, keepdim, dtype)


@lowers("aten.prod.default", "aten.prod.dim_int")
def _prod(
    b: Builder, x: Node, axes: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    return _summed(b, "prod", x, axes, keepdim, dtype)


@lowers("aten.mean.default", "aten.mean.dim")
def _mean(
    b: Builder, x: Node, axes: Axes = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    dtype = lazyc_dtype(dtype, x.dtype)
    if not dtype.is_float:
        raise NotLowered(f"mean of {dtype}")
    y = b.mean(b.compute(b.cast(x, dtype)), _axes(x, axes), keepdim)
    return b.cast(y, dtype)


# --- extremes -------------------------------------------------------------------------------------


def _nonempty(b: Builder, x: Node, axes: Sequence[int]) -> None:
    if x.tensor.rank and b.count(x.shape, axes) == 0:
        raise NotLowered("extreme of no elements")


def _extreme(b: Builder, kind: str, x: Node, axes: Axes, keepdim: bool) -> Node:
    chosen = _axes(x, axes)
    _nonempty(b, x, chosen)
    return b.reduce(kind, x, chosen, keepdim)


for _kind in ("max", "min"):

    def _amax(
        b: Builder, x: Node, axes: Axes = None, keepdim: bool = False, kind: str = _kind
    ) -> Node:
        return _extreme(b, kind, x, axes, keepdim)

    def _with_index(
        b: Builder, x: Node, axis: int, keepdim: bool = False, kind: str = _kind
    ) -> tuple[Node, Node]:
        values = _extreme(b, kind, x, axis, keepdim)
        return values, _arg(b, f"arg{kind}", x, axis, keepdim)

    def _arg_extreme(
        b: Builder, x: Node, axis: int | None = None, keepdim: bool = False, kind: str = _kind
    ) -> Node:
        if axis is not None:
            return _arg(b, f"arg{kind}", x, axis, keepdim)
        flat = _arg(b, f"arg{kind}", b.reshape(x, (x.tensor.numel,)), 0, False)
        return b.reshape(flat, (1,) * x.tensor.rank) if keepdim else flat

    lowers(f"aten.a{_kind}.default", f"aten.{_kind}.default")(_amax)
    lowers(f"aten.{_kind}.dim")(_with_index)
    lowers(f"aten.arg{_kind}.default")(_arg_extreme)


def _arg(b: Builder, kind: str, x: Node, axis: int, keepdim: bool) -> Node:
    """The first extreme's position; argmax of bool goes through u8."""
    if x.tensor.rank == 0:
        return b.constant(0, DType.I64, device=x.tensor.device)
    _nonempty(b, x, (normalize_axis(axis, x.tensor.rank),))
    x = b.cast(x, DType.U8) if x.dtype is DType.BOOL else x
    return b.argreduce(kind, x, axis, keepdim)


# --- truth ----------------------------------------------------------------------------------------


def _truth(b: Builder, x: Node, axes: Axes, keepdim: bool, every: bool) -> Node:
    truth = b.logical(x)
    chosen = _axes(x, axes)
    if x.tensor.rank and b.count(x.shape, chosen) == 0:
        shape = [d for k, d in enumerate(x.shape) if k not in chosen]
        out = b.constant(every, DType.BOOL, tuple(shape), x.tensor.device)
        return b.keep_axes(out, x.shape, chosen) if keepdim else out
    return b.reduce("min" if every else "max", truth, chosen, keepdim)


for _name, _every in (("any", False), ("all", True)):

    def _any_all(
        b: Builder, x: Node, axes: Axes = None, keepdim: bool = False, every: bool = _every
    ) -> Node:
        # torch keeps uint8 here, for masks older than bool.
        return b.cast(_truth(b, x, axes, keepdim, every), b.result.dtype)

    def _any_all_dims(
        b: Builder, x: Node, axes: Axes = None, keepdim: bool = False, every: bool = _every
    ) -> Node:
        if axes is not None and not isinstance(axes, int) and len(axes) == 0:
            return b.cast(b.logical(x), b.result.dtype)
        return b.cast(_truth(b, x, axes, keepdim, every), b.result.dtype)

    lowers(f"aten.{_name}.default", f"aten.{_name}.dim")(_any_all)
    lowers(f"aten.{_name}.dims")(_any_all_dims)


# --- statistics -----------------------------------------------------------------------------------


def moments(b: Builder, x: Node, axes: Sequence[int]) -> tuple[Node, Node]:
    """Mean and sum of squared deviations, axes kept: two passes, so that nothing cancels."""
    mean = b.mean(x, axes, keepdim=True)
    apart = b.sub(x, mean)
    return mean, b.reduce("sum", b.mul(apart, apart), axes, keepdim=True)


def _variance(
    b: Builder, x: Node, axes: Axes, correction: float | None, keepdim: bool, root: bool
) -> tuple[Node, Node]:
    """Mean and variance (or its root) in x's own type."""
    if not x.dtype.is_float:
        raise NotLowered(f"var of {x.dtype}")
    chosen = _axes(x, axes)
    y = b.compute(x)
    mean, squares = moments(b, y, chosen)
    count = b.count(x.shape, chosen)
    taken = 1 if correction is None else correction
    if isinstance(count, int):
        spread = b.div(squares, float(max(count - taken, 0)))
    else:
        size = b.scalar(count, y.dtype, x.tensor.device)
        spread = b.div(squares, b.maximum(b.sub(size, taken), 0.0))
    spread = b.sqrt(spread) if root else spread
    if not keepdim:
        shape = [d for k, d in enumerate(x.shape) if k not in chosen]
        mean, spread = b.reshape(mean, shape), b.reshape(spread, shape)
    return b.cast(mean, x.dtype), b.cast(spread, x.dtype)


for _name, _root in (("var", False), ("std", True)):

    def _spread(
        b: Builder, x: Node, axes: Axes = None, *, correction: float | None = None,
        keepdim: bool = False, root: bool = _root,
    ) -> Node:  # fmt: skip
        return _variance(b, x, axes, correction, keepdim, root)[1]

    def _spread_mean(
        b: Builder, x: Node, axes: Axes = None, *, correction: float | None = None,
        keepdim: bool = False, root: bool = _root,
    ) -> tuple[Node, Node]:  # fmt: skip
        mean, spread = _variance(b, x, axes, correction, keepdim, root)
        return spread, mean

    lowers(f"aten.{_name}.correction")(_spread)
    lowers(f"aten.{_name}_mean.correction")(_spread_mean)


@lowers("aten.logsumexp.default")
def _logsumexp(b: Builder, x: Node, axes: Axes, keepdim: bool = False) -> Node:
    """max + log(sum(exp(x - max))), where an infinite max is left out of the difference."""
    dtype = x.dtype if x.dtype.is_float else default_float()
    y = b.compute(b.cast(x, dtype))
    chosen = _axes(x, axes)
    if x.tensor.rank and b.count(x.shape, chosen) == 0:
        return b.cast(b.log(b.reduce("sum", b.exp(y), chosen, keepdim)), dtype)
    top = b.reduce("max", y, chosen, keepdim=True)
    top = b.where(b.compare("eq", b.emit("abs", top), math.inf), 0.0, top)
    total = b.log(b.reduce("sum", b.exp(b.sub(y, top)), chosen, keepdim))
    return b.cast(b.add(total, b.reshape(top, total.shape)), dtype)


@lowers("aten.linalg_vector_norm.default")
def _vector_norm(
    b: Builder, x: Node, order: float = 2, axes: Axes = None, keepdim: bool = False, *,
    dtype: Any = None,
) -> Node:  # fmt: skip
    if not x.dtype.is_float:
        raise NotLowered(f"norm of {x.dtype}")
    target = lazyc_dtype(dtype, x.dtype)
    chosen = _axes(x, axes)
    size = b.emit("abs", b.compute(b.cast(x, target)))
    return b.cast(_norm(b, size, order, chosen, keepdim), target)


def _norm(b: Builder, size: Node, order: float, axes: tuple[int, ...], keepdim: bool) -> Node:
    """The norm of non-negative values."""
    if abs(order) == math.inf:
        _nonempty(b, size, axes)
        return b.reduce("max" if order > 0 else "min", size, axes, keepdim)
    if order == 0:
        hit = b.cast(b.compare("ne", size, 0.0), size.dtype)
        return b.reduce("sum", hit, axes, keepdim)
    if order == 1:
        return b.reduce("sum", size, axes, keepdim)
    if order == 2:
        return b.sqrt(b.reduce("sum", b.mul(size, size), axes, keepdim))
    total = b.reduce("sum", b.pointwise("pow", size, order), axes, keepdim)
    return b.pointwise("pow", total, 1.0 / order)


# --- scans ----------------------------------------------------------------------------------------


for _name, _kind in (("cumsum", "sum"), ("cumprod", "prod")):

    def _cumulative(
        b: Builder, x: Node, axis: int, *, dtype: Any = None, kind: str = _kind
    ) -> Node:
        y = _accumulated(b, x, dtype)
        if y.tensor.rank == 0:
            return y
        if y.dtype is DType.BOOL:
            raise NotLowered("running sum as bool")
        return b.cast(b.scan(kind, b.compute(y), axis), y.dtype)

    lowers(f"aten.{_name}.default")(_cumulative)

for _name, _kind in (("cummax", "max"), ("cummin", "min")):

    def _running(b: Builder, x: Node, axis: int, kind: str = _kind) -> tuple[Node, Node]:
        """Running extreme and the place of its last occurrence (of the last nan, after one)."""
        if x.tensor.rank == 0:
            return x, b.constant(0, DType.I64, device=x.tensor.device)
        values = b.scan(kind, x, axis)
        hit = b.compare("eq", x, values)
        if x.dtype.is_float:
            hit = b.emit("or", hit, b.emit("isnan", x))
        place = b.iota_along(x.shape, axis, DType.I64, x.tensor.device)
        return values, b.scan("max", b.where(hit, place, 0), axis)

    lowers(f"aten.{_name}.default")(_running)
