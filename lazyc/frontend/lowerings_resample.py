"""Lowerings of upsampling and of reflection and replication padding.

Each reads the input through an index map for each axis; its gradient adds up through the same map.
Spatial sizes must be static where the map is not a plain repetition.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lazyc.frontend.indexing import identity, on_axis, scatter_add, zeros
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.windows import repeat_blocks
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape


def _places(b: Builder, shape: Shape, lines: Sequence[Node]) -> list[Node]:
    """Indices into a tensor whose last dims are read at ``lines``; ``shape`` is the result's."""
    lead = len(shape) - len(lines)
    whole = [identity(b, shape, k) for k in range(lead)]
    return whole + [on_axis(b, line, lead + k, len(shape)) for k, line in enumerate(lines)]


def _read(b: Builder, x: Node, lines: Sequence[Node]) -> Node:
    """x with its last dims read at 1-dim indices."""
    shape = (*x.shape[: -len(lines)], *(line.shape[0] for line in lines))
    return b.gather(x, _places(b, shape, lines), checked=False)


def _write(b: Builder, grad: Node, shape: Shape, lines: Sequence[Node]) -> Node:
    """The gradient of _read for an input of ``shape``."""
    base = zeros(b, shape, grad)
    return scatter_add(b, base, grad, _places(b, grad.shape, lines), checked=False)


def _static(sizes: Sequence[Dim]) -> tuple[int, ...]:
    if not all(isinstance(d, int) for d in sizes):
        raise NotLowered("resampling of a symbolic size")
    return tuple(int(d) for d in sizes)  # type: ignore[arg-type]


def _f32(value: float) -> float:
    """A Python float rounded to f32, in which ATen computes scales."""
    return float(torch.tensor(value, dtype=torch.float32))


def _ratio(scale: float | None, size: int, out: int) -> float:
    """Input positions for each output position, as ATen's compute_scales_value."""
    return _f32(1.0 / scale) if scale is not None and scale > 0 else _f32(size / out)


# --- nearest --------------------------------------------------------------------------------------


def _nearest_map(size: int, out: int, scale: float | None, exact: bool) -> torch.Tensor:
    """The input position that each output position reads; ATen's arithmetic, in f32."""
    at = torch.arange(out, dtype=torch.float32)
    if not exact and out == size:
        return at.long()
    if not exact and out == 2 * size:
        return at.long() >> 1
    ratio = torch.tensor(_ratio(scale, size, out), dtype=torch.float32)
    position = (at + 0.5) * ratio if exact else at * ratio
    return position.floor().long().clamp(max=size - 1)


def _nearest_line(b: Builder, size: int, out: int, scale: float | None, exact: bool) -> Node:
    """The same map as a node."""
    if not exact and out == size:
        return b.iota(out)
    at = b.iota(out, DType.F32)
    position = b.mul(b.add(at, 0.5) if exact else at, _ratio(scale, size, out))
    return b.minimum(b.cast(b.emit("floor", position), DType.I64), size - 1)


def _repeats(
    sizes: Sequence[int], outs: Sequence[int], scales: Sequence[float | None], exact: bool
) -> list[int] | None:
    """How often each element repeats along each axis, if that is what the maps do."""
    times: list[int] = []
    for size, out, scale in zip(sizes, outs, scales, strict=True):
        if out % size:
            return None
        expected = torch.arange(out) // (out // size)
        if not torch.equal(_nearest_map(size, out, scale, exact), expected):
            return None
        times.append(out // size)
    return times


def _nearest(
    b: Builder, x: Node, output_size: Sequence[Dim], scales: Sequence[float | None], exact: bool
) -> Node:
    spatial = len(scales)
    outs, sizes = _static(output_size), _static(x.shape[-spatial:])
    if 0 in (*x.shape, *outs):
        raise NotLowered("upsampling of an empty tensor")
    times = _repeats(sizes, outs, scales, exact)
    if times is not None:
        return repeat_blocks(b, x, times)
    lines = [_nearest_line(b, *args, exact) for args in zip(sizes, outs, scales, strict=True)]
    return _read(b, x, lines)


def _nearest_backward(
    b: Builder,
    grad: Node,
    input_size: Sequence[Dim],
    scales: Sequence[float | None],
    exact: bool,
) -> Node:
    spatial, shape = len(scales), tuple(input_size)
    outs, sizes = _static(grad.shape[-spatial:]), _static(shape[-spatial:])
    if 0 in (*shape, *outs):
        raise NotLowered("upsampling of an empty tensor")
    times = _repeats(sizes, outs, scales, exact)
    if times is None:
        lines = [_nearest_line(b, *args, exact) for args in zip(sizes, outs, scales, strict=True)]
        return _write(b, grad, shape, lines)
    split: list[Dim] = list(shape[:-spatial])
    for size, n in zip(sizes, times, strict=True):
        split += [size, n]
    view = b.reshape(b.compute(grad), split)
    axes = range(len(shape) - spatial + 1, len(split), 2)
    return b.cast(b.reduce("sum", view, tuple(axes)), grad.dtype)


def _register_nearest(dims: int, name: str, exact: bool) -> None:
    @lowers(f"aten.{name}{dims}d.default")
    def forward(b: Builder, x: Node, output_size: Sequence[Dim], *scales: float | None) -> Node:
        return _nearest(b, x, output_size, (*scales, *(None,) * dims)[:dims], exact)

    @lowers(f"aten.{name}{dims}d_backward.default")
    def backward(
        b: Builder,
        grad: Node,
        output_size: Sequence[Dim],
        input_size: Sequence[Dim],
        *scales: float | None,
    ) -> Node:
        return _nearest_backward(b, grad, input_size, (*scales, *(None,) * dims)[:dims], exact)


for _dims in (1, 2, 3):
    _register_nearest(_dims, "upsample_nearest", False)
    _register_nearest(_dims, "_upsample_nearest_exact", True)


# --- linear ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taps:
    """The two input positions that each output position of an axis blends, and their weights."""

    positions: tuple[Node, Node]
    weights: tuple[Node, Node]


def _linear_taps(
    b: Builder, size: int, out: int, scale: float | None, align_corners: bool, dtype: DType
) -> Taps:
    """As ATen's area_pixel_compute_source_index, with weights in ``dtype``."""
    at = b.iota(out, dtype)
    if align_corners:
        step = (size - 1) / (out - 1) if out > 1 else 0.0
        source = b.mul(at, step)
    else:
        step = 1.0 / scale if scale is not None and scale > 0 else size / out
        source = b.maximum(b.sub(b.mul(b.add(at, 0.5), step), 0.5), 0.0)
    low = b.minimum(b.cast(b.emit("floor", source), DType.I64), size - 1)
    high = b.minimum(b.add(low, 1), size - 1)
    part = b.minimum(b.maximum(b.sub(source, b.cast(low, dtype)), 0.0), 1.0)
    return Taps((low, high), (b.sub(b.constant(1, dtype), part), part))


def _corners(b: Builder, taps: Sequence[Taps], rank: int) -> list[tuple[list[Node], Node]]:
    """For each corner of the cell around an output position: its lines and its weight."""
    first = rank - len(taps)
    found: list[tuple[list[Node], Node]] = []
    for choice in itertools.product((0, 1), repeat=len(taps)):
        lines = [t.positions[side] for t, side in zip(taps, choice, strict=True)]
        weight: Node | None = None
        for k, (t, side) in enumerate(zip(taps, choice, strict=True)):
            line = on_axis(b, t.weights[side], first + k, rank)
            weight = line if weight is None else b.mul(weight, line)
        assert weight is not None
        found.append((lines, weight))
    return found


def _linear_setup(
    b: Builder,
    x: Node,
    sizes: Sequence[Dim],
    outs: Sequence[Dim],
    align_corners: bool,
    scales: Sequence[float | None],
) -> list[tuple[list[Node], Node]]:
    if not x.dtype.is_float:
        raise NotLowered(f"linear upsampling of {x.dtype}")
    if 0 in (*x.shape, *sizes, *outs):
        raise NotLowered("upsampling of an empty tensor")
    taps = [
        _linear_taps(b, *args, align_corners, x.dtype.compute)
        for args in zip(_static(sizes), _static(outs), scales, strict=True)
    ]
    return _corners(b, taps, x.tensor.rank)


def _linear(
    b: Builder,
    x: Node,
    output_size: Sequence[Dim],
    align_corners: bool,
    scales: Sequence[float | None],
) -> Node:
    sizes = x.shape[-len(scales) :]
    total: Node | None = None
    for lines, weight in _linear_setup(b, x, sizes, output_size, align_corners, scales):
        term = b.mul(b.compute(_read(b, x, lines)), weight)
        total = term if total is None else b.add(total, term)
    assert total is not None
    return b.cast(total, x.dtype)


def _linear_backward(
    b: Builder,
    grad: Node,
    input_size: Sequence[Dim],
    align_corners: bool,
    scales: Sequence[float | None],
) -> Node:
    spatial, shape = len(scales), tuple(input_size)
    values = b.compute(grad)
    total = zeros(b, shape, values)
    outs = grad.shape[-spatial:]
    for lines, weight in _linear_setup(b, grad, shape[-spatial:], outs, align_corners, scales):
        places = _places(b, grad.shape, lines)
        total = b.scatter(total, b.mul(values, weight), places, "add", checked=False)
    return b.cast(total, grad.dtype)


def _register_linear(dims: int, name: str) -> None:
    @lowers(f"aten.{name}.default")
    def forward(
        b: Builder,
        x: Node,
        output_size: Sequence[Dim],
        align_corners: bool,
        *scales: float | None,
    ) -> Node:
        return _linear(b, x, output_size, align_corners, (*scales, *(None,) * dims)[:dims])

    @lowers(f"aten.{name}_backward.default")
    def backward(
        b: Builder,
        grad: Node,
        output_size: Sequence[Dim],
        input_size: Sequence[Dim],
        align_corners: bool,
        *scales: float | None,
    ) -> Node:
        padded = (*scales, *(None,) * dims)[:dims]
        return _linear_backward(b, grad, input_size, align_corners, padded)


for _dims, _name in enumerate(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")):
    _register_linear(_dims + 1, _name)


# --- padding --------------------------------------------------------------------------------------


def _pad_lines(b: Builder, shape: Shape, padding: Sequence[Dim], reflect: bool) -> list[Node]:
    """For each padded axis (``padding`` lists the last axis first): where each position reads."""
    spatial = len(padding) // 2
    lines: list[Node] = []
    for k in range(spatial):
        size = shape[len(shape) - spatial + k]
        low, high = padding[2 * (spatial - 1 - k)], padding[2 * (spatial - 1 - k) + 1]
        at = b.sub(b.iota(size + low + high), low)
        last = b.sub(b.size(size), 1)
        if reflect:
            mirrored = b.sub(last, b.emit("abs", b.sub(last, b.emit("abs", at))))
            lines.append(mirrored)
        else:
            lines.append(b.minimum(b.maximum(at, 0), last))
    return lines


def _register_pads(dims: int, name: str, reflect: bool) -> None:
    @lowers(f"aten.{name}{dims}d.default")
    def forward(b: Builder, x: Node, padding: Sequence[Dim]) -> Node:
        if 0 in x.shape:
            raise NotLowered("padding of an empty tensor")
        return _read(b, x, _pad_lines(b, x.shape, padding, reflect))

    @lowers(f"aten.{name}{dims}d_backward.default")
    def backward(b: Builder, grad: Node, x: Node, padding: Sequence[Dim]) -> Node:
        if 0 in x.shape:
            raise NotLowered("padding of an empty tensor")
        return _write(b, grad, x.shape, _pad_lines(b, x.shape, padding, reflect))


for _dims in (1, 2, 3):
    _register_pads(_dims, "reflection_pad", True)
    _register_pads(_dims, "replication_pad", False)
