"""Lowerings of ops that write through index tensors: scatter, index_put, index_add and their kin.

Updates of one element meet in row-major order. Half types accumulate in f32 and are rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lazyc.frontend.builder import normalize_axis
from lazyc.frontend.indexing import (
    advanced,
    along_axis,
    as_index,
    at_least_1d,
    by_line,
    check_same_dtype,
    expand_to,
    scatter_add,
    wrap,
)
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import DType, Shape, numel


def _write(
    b: Builder, x: Node, values: Node, indices: Sequence[Node], accumulate: bool, checked: bool
) -> Node:
    if accumulate:
        return scatter_add(b, x, values, indices, checked)
    return b.scatter(x, values, indices, "set", checked)


@lowers("aten.index_put.default")
def index_put(
    b: Builder, x: Node, indices: Sequence[Node | None], values: Node, accumulate: bool = False
) -> Node:
    check_same_dtype(x, values)
    masks = [i for i in indices if i is not None]
    if len(masks) == 1 and masks[0].dtype is DType.BOOL and numel(values.shape) == 1:
        return _put_by_mask(b, x, list(indices), masks[0], values, accumulate)
    place = advanced(b, x.shape, indices)
    return _write(b, x, expand_to(b, values, place.shape), place.indices, accumulate, True)


@lowers("aten._unsafe_index_put.default")
def unsafe_index_put(
    b: Builder, x: Node, indices: Sequence[Node | None], values: Node, accumulate: bool = False
) -> Node:
    check_same_dtype(x, values)
    place = advanced(b, x.shape, indices)
    return _write(b, x, expand_to(b, values, place.shape), place.indices, accumulate, False)


def _put_by_mask(
    b: Builder,
    x: Node,
    indices: list[Node | None],
    mask: Node,
    value: Node,
    accumulate: bool,
) -> Node:
    """``x[mask] = value`` for a single value: a choice for each element, of whatever size."""
    lead = indices.index(mask)
    covered = x.shape[lead : lead + mask.tensor.rank]
    if covered != mask.shape or not mask.tensor.rank:
        raise NotLowered(f"mask {mask.shape} on dims {covered}")
    tail = x.tensor.rank - lead - mask.tensor.rank
    mask = b.expand(b.reshape(mask, (*mask.shape, *(1,) * tail)), x.shape)
    value = b.reshape(value, ())
    if not accumulate:
        return b.where(mask, value, x)
    if x.dtype is DType.BOOL:
        raise NotLowered("accumulation in bool")
    return b.where(mask, b.cast(b.add(b.compute(x), b.compute(value)), x.dtype), x)


@lowers("aten.put.default")
def put(b: Builder, x: Node, index: Node, source: Node, accumulate: bool = False) -> Node:
    check_same_dtype(x, source)
    line = b.reshape(as_index(b, index), (numel(index.shape),))
    flat = b.reshape(x, (numel(x.shape),))
    values = b.reshape(source, line.shape)
    out = _write(b, flat, values, [wrap(b, line, flat.shape[0])], accumulate, True)
    return b.reshape(out, x.shape)


def _line_target(b: Builder, x: Node, dim: int, index: Node) -> tuple[Node, int, Node]:
    """x with at least one dim, its axis, and the index as a line."""
    return (
        at_least_1d(b, x),
        normalize_axis(dim, x.tensor.rank),
        at_least_1d(b, as_index(b, index)),
    )


def _lines(b: Builder, source: Node, shape: Shape) -> Node:
    """The values to write; of another shape, eager refuses them."""
    source = at_least_1d(b, source)
    if source.shape != shape:
        raise NotLowered(f"source {source.shape} for {shape}")
    return source


@lowers("aten.index_add.default")
def index_add(
    b: Builder, x: Node, dim: int, index: Node, source: Node, *, alpha: Operand = 1
) -> Node:
    check_same_dtype(x, source)
    base, axis, line = _line_target(b, x, dim, index)
    shape, places = by_line(b, base.shape, axis, line)
    values = b.compute(_lines(b, source, shape))
    if alpha != 1 and x.dtype is not DType.BOOL:
        values = b.mul(values, alpha)
    return b.reshape(scatter_add(b, base, values, places, checked=True), x.shape)


@lowers("aten.index_copy.default")
def index_copy(b: Builder, x: Node, dim: int, index: Node, source: Node) -> Node:
    check_same_dtype(x, source)
    base, axis, line = _line_target(b, x, dim, index)
    shape, places = by_line(b, base.shape, axis, line)
    out = b.scatter(base, _lines(b, source, shape), places, "set", checked=True)
    return b.reshape(out, x.shape)


@lowers("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(b: Builder, x: Node, dim: int, index: Node, value: Operand) -> Node:
    base, axis, line = _line_target(b, x, dim, index)
    shape, places = by_line(b, base.shape, axis, wrap(b, line, base.shape[axis]))
    fill = value if isinstance(value, Node) else b.scalar(value, x.dtype, x.tensor.device)
    values = b.expand(b.cast(b.reshape(fill, ()), x.dtype), shape)
    return b.reshape(b.scatter(base, values, places, "set", checked=True), x.shape)


@lowers("aten.index_reduce.default")
def index_reduce(
    b: Builder,
    x: Node,
    dim: int,
    index: Node,
    source: Node,
    reduce: str,
    *,
    include_self: bool = True,
) -> Node:
    check_same_dtype(x, source)
    base, axis, line = _line_target(b, x, dim, index)
    shape, places = by_line(b, base.shape, axis, line)
    out = _reduce_into(b, base, _lines(b, source, shape), places, reduce, include_self)
    return b.reshape(out, x.shape)


def _along(
    b: Builder, x: Node, dim: int, index: Node, source: Node | A.Scalar
) -> tuple[Node, Node, list[Node]]:
    """Base, values and indices of a write of ``source[p]`` at p with ``p[dim] = index[p]``."""
    base, axis, line = _line_target(b, x, dim, index)
    if not isinstance(source, Node):
        return (
            base,
            b.constant(source, x.dtype, line.shape, x.tensor.device),
            along_axis(b, line, axis),
        )
    check_same_dtype(x, source)
    values = at_least_1d(b, source)
    for k, size in enumerate(line.shape):  # source may be larger than the index
        values = b.slice(values, k, 0, size)
    return base, values, along_axis(b, line, axis)


@lowers("aten.scatter.src", "aten.scatter.value")
def scatter(b: Builder, x: Node, dim: int, index: Node, source: Node | A.Scalar) -> Node:
    if numel(index.shape) == 0:
        return x
    base, values, places = _along(b, x, dim, index, source)
    return b.reshape(b.scatter(base, values, places, "set", checked=True), x.shape)


@lowers("aten.scatter_add.default")
def scatter_add_op(b: Builder, x: Node, dim: int, index: Node, source: Node) -> Node:
    return scatter_reduce(b, x, dim, index, source, "sum")


@lowers("aten.scatter.reduce", "aten.scatter.value_reduce")
def scatter_with_reduce(
    b: Builder, x: Node, dim: int, index: Node, source: Node | A.Scalar, *, reduce: str
) -> Node:
    names = {"add": "sum", "multiply": "prod"}
    return scatter_reduce(b, x, dim, index, source, names.get(reduce, reduce))


@lowers("aten.scatter_reduce.two")
def scatter_reduce(
    b: Builder,
    x: Node,
    dim: int,
    index: Node,
    source: Node | A.Scalar,
    reduce: str,
    *,
    include_self: bool = True,
) -> Node:
    if numel(index.shape) == 0:
        return x
    base, values, places = _along(b, x, dim, index, source)
    return b.reshape(_reduce_into(b, base, values, places, reduce, include_self), x.shape)


_MODES: dict[str, A.ScatterMode] = {
    "sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min",
}  # fmt: skip


def _identity_value(mode: A.ScatterMode, dtype: DType) -> A.Scalar:
    if mode in ("add", "mul"):
        return 0 if mode == "add" else 1
    if dtype.is_float:
        return -math.inf if mode == "max" else math.inf
    limits = torch.iinfo(dtype.torch)
    return limits.min if mode == "max" else limits.max


def _reduce_into(
    b: Builder, x: Node, values: Node, places: Sequence[Node], reduce: str, include_self: bool
) -> Node:
    """x with values reduced into it; without ``include_self`` what they meet does not count."""
    if reduce not in _MODES or x.dtype is DType.BOOL:
        raise NotLowered(f"scatter with reduce={reduce} in {x.dtype}")
    mode = _MODES[reduce]
    device = x.tensor.device
    base, values = b.compute(x), b.compute(values)
    if not include_self:
        neutral = b.constant(_identity_value(mode, x.dtype), base.dtype, values.shape, device)
        base = b.scatter(base, neutral, places, "set", checked=True)
    out = b.scatter(base, values, places, mode, checked=True)
    if reduce == "mean":
        counts = b.scatter(
            b.constant(int(include_self), out.dtype, out.shape, device),
            b.constant(1, out.dtype, values.shape, device),
            places,
            "add",
            checked=True,
        )
        counts = b.maximum(counts, 1)
        out = b.pointwise("div" if out.dtype.is_float else "floor_div", out, counts)
    return b.cast(out, x.dtype)
