"""Lowerings of ops that read or write through index tensors: gather, scatter, index_*, embedding.

Indices come from the user, so reads and writes are checked: an index out of range makes the run
raise eager's error. Negative indices wrap only in the ops where eager wraps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lazyc.frontend.builder import normalize_axis
from lazyc.frontend.indexing import (
    Advanced,
    advanced,
    along_axis,
    as_index,
    by_line,
    expand_to,
    scatter_add,
    wrap,
    zeros,
)
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, numel


def _at_least_1d(b: Builder, x: Node) -> Node:
    """A 0-dim tensor counts as one of a single element in these ops."""
    return x if x.tensor.rank else b.reshape(x, (1,))


def _same_dtype(x: Node, source: Node) -> None:
    if x.dtype is not source.dtype:
        raise NotLowered(f"{source.dtype} written into {x.dtype}")


# --- reading --------------------------------------------------------------------------------------


@lowers("aten.embedding.default")
def embedding(
    b: Builder,
    weight: Node,
    indices: Node,
    padding_idx: Dim = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Node:
    """Rows of weight (V, D): (*indices, D). A negative index is an error."""
    rows = as_index(b, indices)
    shape = (*rows.shape, weight.shape[1])
    columns = b.iota_along(shape, len(shape) - 1, device=weight.tensor.device)
    return b.gather(weight, [b.unsqueeze(rows, -1), columns], checked=True)


@lowers("aten.embedding_dense_backward.default")
def embedding_dense_backward(
    b: Builder,
    grad: Node,
    indices: Node,
    num_weights: Dim,
    padding_idx: Dim,
    scale_grad_by_freq: bool,
) -> Node:
    """Rows of grad (*indices, D) added up by index; rows of ``padding_idx`` do not count."""
    width = grad.shape[-1]
    rows = b.reshape(as_index(b, indices), (numel(indices.shape),))
    values = b.compute(b.reshape(grad, (rows.shape[0], width)))
    if scale_grad_by_freq:
        ones = b.constant(1, values.dtype, rows.shape, values.tensor.device)
        counts = b.scatter(
            b.constant(0, values.dtype, (num_weights,)), ones, [rows], "add", checked=True
        )
        values = b.div(values, b.unsqueeze(b.gather(counts, [rows], checked=True), 1))
    if padding_idx != -1:
        values = b.where(b.unsqueeze(b.compare("eq", rows, padding_idx), 1), 0, values)
    base = zeros(b, (num_weights, width), values)
    places = [b.unsqueeze(rows, 1), b.iota_along(values.shape, 1)]
    return b.cast(b.scatter(base, values, places, "add", checked=True), grad.dtype)


@lowers("aten.gather.default")
def gather(b: Builder, x: Node, dim: int, index: Node, *, sparse_grad: bool = False) -> Node:
    if numel(index.shape) == 0:
        return zeros(b, index.shape, x)
    line = _at_least_1d(b, as_index(b, index))
    axis = normalize_axis(dim, x.tensor.rank)
    found = b.gather(_at_least_1d(b, x), along_axis(b, line, axis), checked=True)
    return b.reshape(found, index.shape)


@lowers("aten.index_select.default")
def index_select(b: Builder, x: Node, dim: int, index: Node) -> Node:
    line = _at_least_1d(b, as_index(b, index))
    axis = normalize_axis(dim, x.tensor.rank)
    source = _at_least_1d(b, x)
    _, indices = by_line(b, source.shape, axis, line)
    found = b.gather(source, indices, checked=True)
    return found if x.tensor.rank else b.reshape(found, ())


@lowers("aten.take.default")
def take(b: Builder, x: Node, index: Node) -> Node:
    flat = b.reshape(x, (numel(x.shape),))
    return b.gather(flat, [wrap(b, as_index(b, index), flat.shape[0])], checked=True)


@lowers("aten.index.Tensor")
def index_tensor(b: Builder, x: Node, indices: Sequence[Node | None]) -> Node:
    return b.gather(x, advanced(b, x.shape, indices).indices, checked=True)


@lowers("aten._unsafe_index.Tensor")
def unsafe_index(b: Builder, x: Node, indices: Sequence[Node | None]) -> Node:
    """As index, with indices that are in range by construction (torch's decompositions)."""
    return b.gather(x, advanced(b, x.shape, indices).indices, checked=False)


def _clamped(b: Builder, x: Node, indices: Sequence[Node | None]) -> Advanced:
    """Indices of a masked read or write: those that the mask hides may be out of range."""
    found = advanced(b, x.shape, indices)
    safe = tuple(
        b.maximum(b.minimum(i, b.sub(b.size(d), 1)), 0)
        for i, d in zip(found.indices, x.shape, strict=True)
    )
    return Advanced(found.shape, safe)


@lowers("aten._unsafe_masked_index.default")
def unsafe_masked_index(
    b: Builder, x: Node, mask: Node, indices: Sequence[Node | None], fill: A.Scalar
) -> Node:
    if numel(x.shape) == 0:  # the mask hides everything
        shape = advanced(b, x.shape, indices).shape
        return b.constant(fill, x.dtype, shape, x.tensor.device)
    place = _clamped(b, x, indices)
    found = b.gather(x, place.indices, checked=False)
    return b.where(expand_to(b, mask, place.shape), found, fill)


@lowers("aten._unsafe_masked_index_put_accumulate.default")
def unsafe_masked_index_put_accumulate(
    b: Builder, x: Node, mask: Node, indices: Sequence[Node | None], values: Node
) -> Node:
    if numel(x.shape) == 0:
        return x
    place = _clamped(b, x, indices)
    kept = b.where(mask, values, 0)
    return scatter_add(b, x, expand_to(b, kept, place.shape), place.indices, checked=False)


@lowers("aten.masked_scatter.default")
def masked_scatter(b: Builder, x: Node, mask: Node, source: Node) -> Node:
    """The k-th element that the mask selects becomes element k of source."""
    _same_dtype(x, source)
    x, mask = b.broadcast(x, mask)
    if numel(source.shape) == 0:
        raise NotLowered("masked_scatter from an empty source")
    place = _selected_order(b, mask)
    values = b.gather(b.reshape(source, (numel(source.shape),)), [place], checked=True)
    return b.where(mask, values, x)


def _selected_order(b: Builder, mask: Node) -> Node:
    """For each element that a mask selects how many it selects before; 0 for the others."""
    if mask.dtype is not DType.BOOL:
        raise NotLowered("a byte mask")
    flat = b.reshape(mask, (numel(mask.shape),))
    order = b.sub(b.scan("sum", b.cast(flat, DType.I64), 0), 1)
    return b.reshape(b.where(flat, order, 0), mask.shape)


@lowers("aten.masked_scatter_backward.default")
def masked_scatter_backward(b: Builder, grad: Node, mask: Node, sizes: Sequence[Dim]) -> Node:
    """The selected elements of grad in order, then zeros: the gradient of the source."""
    grad, mask = b.broadcast(grad, mask)
    base = zeros(b, (numel(tuple(sizes)),), grad)
    place = _selected_order(b, mask)
    out = b.scatter(base, b.where(mask, grad, 0), [place], "add", checked=True)
    return b.reshape(out, tuple(sizes))


# --- writing --------------------------------------------------------------------------------------


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
    _same_dtype(x, values)
    masks = [i for i in indices if i is not None]
    if len(masks) == 1 and masks[0].dtype is DType.BOOL and numel(values.shape) == 1:
        return _put_by_mask(b, x, list(indices), masks[0], values, accumulate)
    place = advanced(b, x.shape, indices)
    return _write(b, x, expand_to(b, values, place.shape), place.indices, accumulate, True)


@lowers("aten._unsafe_index_put.default")
def unsafe_index_put(
    b: Builder, x: Node, indices: Sequence[Node | None], values: Node, accumulate: bool = False
) -> Node:
    _same_dtype(x, values)
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
    _same_dtype(x, source)
    line = b.reshape(as_index(b, index), (numel(index.shape),))
    flat = b.reshape(x, (numel(x.shape),))
    values = b.reshape(source, line.shape)
    out = _write(b, flat, values, [wrap(b, line, flat.shape[0])], accumulate, True)
    return b.reshape(out, x.shape)


def _line_target(b: Builder, x: Node, dim: int, index: Node) -> tuple[Node, int, Node]:
    """x with at least one dim, its axis, and the index as a line."""
    return (
        _at_least_1d(b, x),
        normalize_axis(dim, x.tensor.rank),
        _at_least_1d(b, as_index(b, index)),
    )


@lowers("aten.index_add.default")
def index_add(
    b: Builder, x: Node, dim: int, index: Node, source: Node, *, alpha: Operand = 1
) -> Node:
    _same_dtype(x, source)
    base, axis, line = _line_target(b, x, dim, index)
    shape, places = by_line(b, base.shape, axis, line)
    values = b.compute(b.reshape(source, shape))
    if alpha != 1 and x.dtype is not DType.BOOL:
        values = b.mul(values, alpha)
    return b.reshape(scatter_add(b, base, values, places, checked=True), x.shape)


@lowers("aten.index_copy.default")
def index_copy(b: Builder, x: Node, dim: int, index: Node, source: Node) -> Node:
    _same_dtype(x, source)
    base, axis, line = _line_target(b, x, dim, index)
    shape, places = by_line(b, base.shape, axis, line)
    out = b.scatter(base, b.reshape(source, shape), places, "set", checked=True)
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
    _same_dtype(x, source)
    base, axis, line = _line_target(b, x, dim, index)
    shape, places = by_line(b, base.shape, axis, line)
    out = _reduce_into(b, base, b.reshape(source, shape), places, reduce, include_self)
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
    _same_dtype(x, source)
    values = _at_least_1d(b, source)
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
