"""Lowerings of elementwise selection, combinations of several operands, and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand, lazyc_dtype, result_dtype
from lazyc.ir.graph import Node

# --- selection and combinations -------------------------------------------------------------------


@lowers("aten.where.self")
def _where(b: Builder, cond: Node, x: Node, y: Node) -> Node:
    cond = b.logical(cond)
    return b.where(cond, *b.promote(x, y))


lowers("prims.where.default")(_where)


@lowers("aten.clamp.default", "aten.clamp.Tensor")
def _clamp(b: Builder, x: Node, low: Operand | None = None, high: Operand | None = None) -> Node:
    limits = [v for v in (low, high) if v is not None]
    dtype = result_dtype((x, *limits))
    y = b.cast(x, dtype)
    if low is not None:
        y = b.maximum(y, b.cast(low, dtype) if isinstance(low, Node) else low)
    if high is not None:
        y = b.minimum(y, b.cast(high, dtype) if isinstance(high, Node) else high)
    return y


@lowers("aten.clamp_min.default", "aten.clamp_min.Tensor")
def _clamp_min(b: Builder, x: Node, low: Operand) -> Node:
    return _clamp(b, x, low)


@lowers("aten.clamp_max.default", "aten.clamp_max.Tensor")
def _clamp_max(b: Builder, x: Node, high: Operand) -> Node:
    return _clamp(b, x, None, high)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(b: Builder, x: Node, mask: Node, value: Operand) -> Node:
    if isinstance(value, Node):
        value = b.cast(value, x.dtype)
    return b.where(b.logical(mask), value, x)


def composite(fn: Callable[..., Node]) -> Callable[..., Node]:
    """For a lowering of several steps on operands of one type: half types compute in f32.

    The operands are brought to their common type first; the result is cast back to it.
    """

    def lowering(b: Builder, *args: Any, **kwargs: Any) -> Node:
        nodes = [a for a in args if isinstance(a, Node)]
        dtype = result_dtype(nodes)
        inner = dtype.compute
        args = tuple(b.cast(a, inner) if isinstance(a, Node) else a for a in args)
        return b.cast(fn(b, *args, **kwargs), dtype)

    return lowering


@lowers("aten.addcmul.default")
@composite
def _addcmul(b: Builder, x: Node, y: Node, z: Node, *, value: Operand = 1) -> Node:
    product = b.mul(y, z)
    return b.add(x, product if value == 1 else b.mul(product, value))


@lowers("aten.addcdiv.default")
@composite
def _addcdiv(b: Builder, x: Node, y: Node, z: Node, *, value: Operand = 1) -> Node:
    if not x.dtype.is_float:
        raise NotLowered("addcdiv of integers")
    scaled = y if value == 1 else b.mul(y, value)
    return b.add(x, b.div(scaled, z))


@lowers("aten.lerp.Scalar")
@composite
def _lerp_scalar(b: Builder, start: Node, end: Node, weight: float) -> Node:
    step = b.sub(end, start)
    if abs(weight) < 0.5:
        return b.add(start, b.mul(step, weight))
    return b.sub(end, b.mul(step, 1 - weight))


@lowers("aten.lerp.Tensor")
@composite
def _lerp_tensor(b: Builder, start: Node, end: Node, weight: Node) -> Node:
    step = b.sub(end, start)
    near_start = b.add(start, b.mul(step, weight))
    near_end = b.sub(end, b.mul(step, b.sub(1.0, weight)))
    close = b.compare("lt", b.emit("abs", weight), 0.5)
    return b.where(close, near_start, near_end)


# --- casts ----------------------------------------------------------------------------------------


def check_placement(x: Node, device: Any, layout: Any) -> None:
    """Raises NotLowered where a copy would move to another device or layout."""
    if layout is not None and layout is not torch.strided:
        raise NotLowered(str(layout))
    if device is not None and not _same_device(torch.device(device), torch.device(x.tensor.device)):
        raise NotLowered(f"copy from {x.tensor.device} to {device}")


def _same_device(a: torch.device, c: torch.device) -> bool:
    return a.type == c.type and (a.index is None or c.index is None or a.index == c.index)


@lowers("aten._to_copy.default")
def _to_copy(
    b: Builder, x: Node, *, dtype: Any = None, layout: Any = None, device: Any = None, **_: Any
) -> Node:
    check_placement(x, device, layout)
    return b.cast(x, lazyc_dtype(dtype, x.dtype))


@lowers("prims.convert_element_type.default")
def _convert_element_type(b: Builder, x: Node, dtype: torch.dtype) -> Node:
    return b.cast(x, lazyc_dtype(dtype))


@lowers("aten.copy.default")
def _copy(b: Builder, x: Node, source: Node, non_blocking: bool = False) -> Node:
    check_placement(x, source.tensor.device, None)
    return b.expand(b.cast(source, x.dtype), x.shape)


@lowers("aten.fill.Scalar", "aten.fill.Tensor")
def _fill(b: Builder, x: Node, value: Operand) -> Node:
    if isinstance(value, Node):
        return b.expand(b.cast(value, x.dtype), x.shape)
    return b.expand(b.scalar(value, x.dtype, x.tensor.device), x.shape)
