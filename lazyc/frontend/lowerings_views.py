"""Lowerings of views and rearrangements: index maps on logical values, no arithmetic.

A functional graph has no aliasing left, so a view is the same as a copy here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lazyc.frontend.builder import normalize_axes, normalize_axis
from lazyc.frontend.lowering import Builder, Lowering, NotLowered, lowers
from lazyc.frontend.promotion import lazyc_dtype, result_dtype
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape, contiguous_strides, is_nonneg, numel


def view(*names: str) -> Callable[[Lowering], Lowering]:
    """Registers "name.overload" and "name_copy.overload", which do the same here."""
    copies = [f"aten.{n.partition('.')[0]}_copy.{n.partition('.')[2]}" for n in names]
    return lowers(*(f"aten.{n}" for n in names), *copies)


# --- the same elements in another shape -----------------------------------------------------------


@view("alias.default", "detach.default", "lift_fresh.default")
def _same(b: Builder, x: Node) -> Node:
    return x


@lowers("aten.clone.default", "aten.contiguous.default")
def _clone(b: Builder, x: Node, **_: Any) -> Node:
    return x


@view("view.default", "_unsafe_view.default", "_reshape_alias.default", "reshape.default")
def _view(b: Builder, x: Node, shape: Shape, *strides: Any) -> Node:
    return b.reshape(x, b.result.shape)


@view("view.dtype")
def _view_dtype(b: Builder, x: Node, dtype: Any) -> Node:
    target = lazyc_dtype(dtype)
    if target is x.dtype:
        return x
    if target.itemsize != x.dtype.itemsize or DType.BOOL in (target, x.dtype):
        raise NotLowered(f"view of {x.dtype} as {target}")
    return b.bitcast(x, target)


@view("expand.default")
def _expand(b: Builder, x: Node, shape: Shape, *, implicit: bool = False) -> Node:
    return b.expand(x, b.result.shape)


lowers("prims.broadcast_in_dim.default")(
    lambda b, x, shape, dims: b.expand(
        b.reshape(x, [x.shape[dims.index(k)] if k in dims else 1 for k in range(len(shape))]), shape
    )
)


@view("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default")
def _squeeze(b: Builder, x: Node, *dims: Any) -> Node:
    return b.reshape(x, b.result.shape)


@view("permute.default")
def _permute(b: Builder, x: Node, dims: Sequence[int]) -> Node:
    return b.permute(x, dims)


lowers("prims.transpose.default")(_permute)


@view("t.default")
def _t(b: Builder, x: Node) -> Node:
    return b.transpose(x, 0, 1) if x.tensor.rank == 2 else x


@view("transpose.int")
def _transpose(b: Builder, x: Node, a: int, c: int) -> Node:
    return b.transpose(x, a, c)


# --- parts ----------------------------------------------------------------------------------------


def _start(start: Dim | None, size: Dim) -> Dim:
    """A slice's start as 0 <= start <= size."""
    if start is None:
        return 0
    if isinstance(start, int) and isinstance(size, int):
        return min(max(start + size if start < 0 else start, 0), size)
    return start + size if _is_negative(start) else start


def _is_negative(dim: Dim) -> bool:
    """The sign of a dim; raises NotLowered where the trace decided it and the text does not."""
    if is_nonneg(dim):
        return False
    if is_nonneg(-1 - dim):
        return True
    raise NotLowered(f"the sign of {dim} is not known")


@view("slice.Tensor")
def _slice(
    b: Builder,
    x: Node,
    axis: int = 0,
    start: Dim | None = None,
    end: Dim | None = None,
    step: int = 1,
) -> Node:
    axis = normalize_axis(axis, x.tensor.rank)
    if not isinstance(step, int):
        raise NotLowered("symbolic step")
    size = b.result.shape[axis]
    first = 0 if size == 0 else _start(start, x.shape[axis])
    return b.slice(x, axis, first, size, step)


def _position(index: Dim, size: Dim) -> Dim:
    """An index that may be negative as 0 <= index < size."""
    return index + size if _is_negative(index) else index


@view("select.int")
def _select(b: Builder, x: Node, axis: int, index: Dim) -> Node:
    axis = normalize_axis(axis, x.tensor.rank)
    return b.select(x, axis, _position(index, x.shape[axis]))


@view("split_with_sizes.default")
def _split_sizes(b: Builder, x: Node, sizes: Shape, axis: int = 0) -> tuple[Node, ...]:
    parts: list[Node] = []
    start: Dim = 0
    for size in sizes:
        parts.append(b.slice(x, axis, start if size != 0 else 0, size))
        start = start + size
    return tuple(parts)


lowers("aten.unsafe_split_with_sizes.default")(_split_sizes)


@view("split.Tensor", "unsafe_split.Tensor")
def _split(b: Builder, x: Node, size: Dim, axis: int = 0) -> tuple[Node, ...]:
    axis = normalize_axis(axis, x.tensor.rank)
    sizes = [t.shape[axis] for t in b.results() if t is not None]
    return _split_sizes(b, x, tuple(sizes), axis)


@view("unbind.int")
def _unbind(b: Builder, x: Node, axis: int = 0) -> tuple[Node, ...]:
    return tuple(b.select(x, axis, k) for k in range(len(b.results())))


@view("diagonal.default")
def _diagonal(b: Builder, x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    """The diagonal of two axes as a last axis: one walk over the row-major elements."""
    rank = x.tensor.rank
    dim1, dim2 = normalize_axis(dim1, rank), normalize_axis(dim2, rank)
    steps = contiguous_strides(x.shape)
    kept = [k for k in range(rank) if k not in (dim1, dim2)]
    shape = b.result.shape
    if any(d == 0 for d in shape):
        return b.constant(0, x.dtype, shape, x.tensor.device)
    start = steps[dim2] * offset if offset >= 0 else steps[dim1] * -offset
    strides = (*(steps[k] for k in kept), steps[dim1] + steps[dim2])
    return b.emit("strided", x, attrs=A.StridedAttrs(shape, strides, start))


@view("unfold.default")
def _unfold(b: Builder, x: Node, axis: int, size: int, step: int) -> Node:
    if x.tensor.rank == 0:
        return b.reshape(x, b.result.shape)
    axis = normalize_axis(axis, x.tensor.rank)
    count = b.result.shape[axis]
    attrs = A.WindowAttrs((axis,), (size,), (step,), (1,), (count,))
    return b.emit("window", x, attrs=attrs)


@view("as_strided.default")
def _as_strided(
    b: Builder, x: Node, shape: Shape, strides: Shape, offset: Dim | None = None
) -> Node:
    """Only where eager's storage is exactly the elements of x, in the order of its strides."""
    layout = b.layouts()[0]
    if not all(isinstance(d, int) for d in (*layout.shape, *layout.strides)):
        raise NotLowered("as_strided of symbolic sizes")
    order = sorted(
        range(len(layout.shape)),
        key=lambda k: (layout.strides[k], layout.shape[k] != 1),  # type: ignore[arg-type]
        reverse=True,
    )
    stored = tuple(layout.shape[k] for k in order)
    dense = contiguous_strides(stored)
    if any(
        layout.shape[k] != 1 and layout.strides[k] != step
        for k, step in zip(order, dense, strict=True)
    ):
        raise NotLowered("as_strided of a tensor that is not dense")
    if offset is None:
        start: Dim = 0
    elif layout.offset is None:
        raise NotLowered("as_strided at a place in the storage of an argument")
    else:
        start = offset - layout.offset
    attrs = A.StridedAttrs(shape, strides, start)
    if any(d == 0 for d in shape):
        return b.constant(0, x.dtype, shape, x.tensor.device)
    reach = start + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
    if not (isinstance(reach, int) and start >= 0 and reach < numel(stored)):
        raise NotLowered("as_strided outside the tensor")
    return b.emit("strided", b.permute(x, order), attrs=attrs)


# --- joining and padding --------------------------------------------------------------------------


@lowers("aten.cat.default", "prims.cat.default")
def _cat(b: Builder, parts: Sequence[Node], axis: int = 0) -> Node:
    dtype = result_dtype(parts)
    shaped = [p for p in parts if p.shape != (0,)]  # torch lets a bare [0] tensor join anything
    if not shaped:
        return b.cast(parts[0], dtype)
    return b.cat([b.cast(p, dtype) for p in shaped], axis)


@lowers("aten.stack.default")
def _stack(b: Builder, parts: Sequence[Node], axis: int = 0) -> Node:
    dtype = result_dtype(parts)
    axis = normalize_axis(axis, parts[0].tensor.rank + 1)
    return b.cat([b.unsqueeze(b.cast(p, dtype), axis) for p in parts], axis)


@lowers("aten.constant_pad_nd.default")
def _constant_pad(b: Builder, x: Node, pads: Shape, value: float = 0) -> Node:
    """``pads`` are (low, high) from the last axis on; negative ones crop."""
    rank = x.tensor.rank
    low: list[Dim] = [0] * rank
    high: list[Dim] = [0] * rank
    for k in range(len(pads) // 2):
        axis = rank - 1 - k
        before, after = pads[2 * k], pads[2 * k + 1]
        low[axis], crop_low = (0, -before) if _is_negative(before) else (before, 0)
        high[axis], crop_high = (0, -after) if _is_negative(after) else (after, 0)
        if crop_low != 0 or crop_high != 0:
            size = x.shape[axis] - crop_low - crop_high
            if isinstance(size, int) and size < 0:
                raise NotLowered("crop of more than there is")
            x = b.slice(x, axis, crop_low if size != 0 else 0, size)
    if x.dtype.is_int and value != int(value):
        value = int(value)
    return b.pad(x, low, high, value)


@lowers("aten.roll.default")
def _roll(b: Builder, x: Node, shifts: Sequence[Dim], dims: Sequence[int] = ()) -> Node:
    if not dims:
        flat = b.reshape(x, (x.tensor.numel,))
        return b.reshape(_roll(b, flat, shifts, (0,)), x.shape)
    for shift, axis in zip(shifts, dims, strict=True):
        axis = normalize_axis(axis, x.tensor.rank)
        size = x.shape[axis] if x.tensor.rank else 1
        if size == 0 or x.tensor.rank == 0:
            continue
        if not (isinstance(shift, int) and isinstance(size, int)):
            raise NotLowered("roll of a symbolic size")
        cut = -shift % size
        if cut:
            tail = b.slice(x, axis, cut, size - cut)
            x = b.cat([tail, b.slice(x, axis, 0, cut)], axis)
    return x


@lowers("aten.flip.default", "prims.rev.default")
def _flip(b: Builder, x: Node, dims: Sequence[int]) -> Node:
    for axis in normalize_axes(dims, x.tensor.rank) if dims else ():
        x = b.flip(x, axis)
    return x


@lowers("aten.repeat.default")
def _repeat(b: Builder, x: Node, repeats: Shape) -> Node:
    """Each dim d becomes r*d: a dim of size r is put before it and folded in."""
    shape = (1,) * (len(repeats) - x.tensor.rank) + x.shape
    apart = tuple(d for dim in shape for d in (1, dim))
    spread = tuple(d for r, dim in zip(repeats, shape, strict=True) for d in (r, dim))
    return b.reshape(b.expand(b.reshape(x, apart), spread), b.result.shape)


# --- writing a part -------------------------------------------------------------------------------


def _between(b: Builder, shape: Shape, axis: int, low: Dim, high: Dim, device: str) -> Node:
    """The mask of ``low <= position along axis < high``."""
    place = b.iota_along(shape, axis, DType.I64, device)
    return b.emit("and", b.compare("ge", place, low), b.compare("lt", place, high))


def _spread(b: Builder, part: Node, axis: int, start: Dim, step: int, size: Dim) -> Node:
    """``part`` at start, start+step, ... of an axis of ``size``, zeros elsewhere."""
    count = part.shape[axis]
    if step != 1:
        apart = b.unsqueeze(part, axis + 1)
        high = [0] * apart.tensor.rank
        high[axis + 1] = step - 1
        apart = b.pad(apart, [0] * apart.tensor.rank, high)
        dims = (*part.shape[:axis], count * step, *part.shape[axis + 1 :])
        part = b.slice(b.reshape(apart, dims), axis, 0, (count - 1) * step + 1)
    low: list[Dim] = [0] * part.tensor.rank
    high_pad: list[Dim] = [0] * part.tensor.rank
    low[axis], high_pad[axis] = start, size - start - part.shape[axis]
    return b.pad(part, low, high_pad)


@view("slice_scatter.default")
def _slice_scatter(
    b: Builder,
    base: Node,
    part: Node,
    axis: int = 0,
    start: Dim | None = None,
    end: Dim | None = None,
    step: int = 1,
) -> Node:
    axis = normalize_axis(axis, base.tensor.rank)
    size = base.shape[axis]
    count = part.shape[axis]
    if count == 0:
        return base
    first = _start(start, size)
    part = b.cast(part, base.dtype)
    shape = (*base.shape[:axis], count, *base.shape[axis + 1 :])
    part = b.expand(part, shape)
    if step == 1:
        pieces = [
            b.slice(base, axis, 0, first),
            part,
            b.slice(base, axis, first + count, size - first - count),
        ]
        return b.cat([p for p in pieces if p.shape[axis] != 0], axis)
    spread = _spread(b, part, axis, first, step, size)
    device = base.tensor.device
    place = b.sub(b.iota_along(base.shape, axis, DType.I64, device), first)
    inside = _between(b, base.shape, axis, first, first + (count - 1) * step + 1, device)
    hit = b.emit("and", inside, b.compare("eq", b.pointwise("mod", place, step), 0))
    return b.where(hit, spread, base)


@lowers("aten.slice_backward.default")
def _slice_backward(
    b: Builder, grad: Node, shape: Shape, axis: int, start: Dim, end: Dim, step: int
) -> Node:
    axis = normalize_axis(axis, len(shape))
    if grad.shape[axis] == 0:
        return b.constant(0, grad.dtype, shape, grad.tensor.device)
    return _spread(b, grad, axis, _start(start, shape[axis]), step, shape[axis])


@lowers("aten.select_backward.default")
def _select_backward(b: Builder, grad: Node, shape: Shape, axis: int, index: Dim) -> Node:
    axis = normalize_axis(axis, len(shape))
    place = _position(index, shape[axis])
    return _spread(b, b.unsqueeze(grad, axis), axis, place, 1, shape[axis])


@view("select_scatter.default")
def _select_scatter(b: Builder, base: Node, part: Node, axis: int, index: Dim) -> Node:
    axis = normalize_axis(axis, base.tensor.rank)
    place = _position(index, base.shape[axis])
    return _slice_scatter(b, base, b.unsqueeze(part, axis), axis, place, place + 1)


@view("diagonal_scatter.default")
def _diagonal_scatter(
    b: Builder, base: Node, part: Node, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Node:
    rank = base.tensor.rank
    dim1, dim2 = normalize_axis(dim1, rank), normalize_axis(dim2, rank)
    if any(d == 0 for d in part.shape):
        return base
    device = base.tensor.device
    row = b.iota_along(base.shape, dim1, DType.I64, device)
    column = b.iota_along(base.shape, dim2, DType.I64, device)
    on_diagonal = b.compare("eq", b.add(row, offset), column)
    # Element k of the diagonal is in row k (offset >= 0) or in column k (offset < 0).
    axis = dim1 if offset >= 0 else dim2
    length = part.shape[-1]
    wide = b.pad(
        b.cast(part, base.dtype),
        [0] * (rank - 1),
        [0] * (rank - 2) + [base.shape[axis] - length],
    )
    kept = [k for k in range(rank) if k not in (dim1, dim2)]
    order = sorted([*kept, axis])
    wide = b.permute(wide, [[*kept, axis].index(k) for k in order])
    other = dim2 if axis == dim1 else dim1
    spread = b.expand(b.unsqueeze(wide, other), base.shape)
    return b.where(on_diagonal, spread, base)
