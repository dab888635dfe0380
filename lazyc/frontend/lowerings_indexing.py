"""Lowerings of ops that read through index tensors: gather, index, index_select, embedding.

Indices come from the user, so reads and writes are checked: an index out of range makes the run
raise eager's error. Negative indices wrap only in the ops where eager wraps them.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.frontend.builder import normalize_axis
from lazyc.frontend.indexing import (
    Advanced,
    advanced,
    along_axis,
    as_index,
    at_least_1d,
    by_line,
    check_same_dtype,
    expand_to,
    scatter_add,
    wrap,
    zeros,
)
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, numel


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
    line = at_least_1d(b, as_index(b, index))
    axis = normalize_axis(dim, x.tensor.rank)
    found = b.gather(at_least_1d(b, x), along_axis(b, line, axis), checked=True)
    return b.reshape(found, index.shape)


@lowers("aten.index_select.default")
def index_select(b: Builder, x: Node, dim: int, index: Node) -> Node:
    line = at_least_1d(b, as_index(b, index))
    axis = normalize_axis(dim, x.tensor.rank)
    source = at_least_1d(b, x)
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
    check_same_dtype(x, source)
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
