"""Lowerings of ops that make tensors from sizes and scalars. ``empty`` is zeros."""

from __future__ import annotations

from typing import Any

import torch

from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand, default_float, lazyc_dtype, scalar_dtype
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape


def _device(device: Any) -> str:
    return "cpu" if device is None else str(torch.device(device))


def _check_layout(layout: Any) -> None:
    if layout is not None and layout is not torch.strided:
        raise NotLowered(str(layout))


def _filled(b: Builder, shape: Shape, value: Operand, dtype: DType, device: str) -> Node:
    assert not isinstance(value, Node)
    return b.expand(b.scalar(value, dtype, device), shape)


@lowers("aten.full.default")
def _full(
    b: Builder,
    shape: Shape,
    value: Operand,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    **_: Any,
) -> Node:
    _check_layout(layout)
    kind = scalar_dtype(value) if dtype is None else lazyc_dtype(dtype)
    return _filled(b, shape, value, kind, _device(device))


for _names, _value in (
    (("zeros.default", "_efficientzerotensor.default"), 0),
    (("ones.default",), 1),
    (("empty.memory_format", "empty_strided.default", "empty_permuted.default"), 0),
):

    def _make(
        b: Builder, shape: Shape, *strides: Any, value: int = _value, dtype: Any = None,
        layout: Any = None, device: Any = None, **_: Any,
    ) -> Node:  # fmt: skip
        _check_layout(layout)
        return _filled(b, shape, value, lazyc_dtype(dtype, default_float()), _device(device))

    lowers(*(f"aten.{n}" for n in _names))(_make)


@lowers("aten.full_like.default")
def _full_like(
    b: Builder,
    x: Node,
    value: Operand,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    **_: Any,
) -> Node:
    _check_layout(layout)
    place = x.tensor.device if device is None else _device(device)
    return _filled(b, x.shape, value, lazyc_dtype(dtype, x.dtype), place)


@lowers("aten.new_full.default")
def _new_full(
    b: Builder, x: Node, shape: Shape, value: Operand, *, dtype: Any = None, layout: Any = None,
    device: Any = None, **_: Any,
) -> Node:  # fmt: skip
    _check_layout(layout)
    place = x.tensor.device if device is None else _device(device)
    return _filled(b, shape, value, lazyc_dtype(dtype, x.dtype), place)


for _name, _value in (("zeros", 0), ("ones", 1), ("empty", 0)):

    def _like(b: Builder, x: Node, value: int = _value, **options: Any) -> Node:
        return _full_like(b, x, value, **options)

    def _new(
        b: Builder, x: Node, shape: Shape, *strides: Any, value: int = _value, **options: Any
    ) -> Node:
        return _new_full(b, x, shape, value, **options)

    lowers(f"aten.{_name}_like.default")(_like)
    lowers(f"aten.new_{_name}.default")(_new)

lowers("aten.new_empty_strided.default")(
    lambda b, x, shape, strides, **options: _new_full(b, x, shape, 0, **options)
)


@lowers("aten.scalar_tensor.default")
def _scalar_tensor(
    b: Builder, value: Operand, *, dtype: Any = None, layout: Any = None, device: Any = None,
    **_: Any,
) -> Node:  # fmt: skip
    _check_layout(layout)
    return _filled(b, (), value, lazyc_dtype(dtype, default_float()), _device(device))


# --- ranges ---------------------------------------------------------------------------------------


def _range(b: Builder, size: Dim, start: Operand, step: Operand, dtype: DType, device: str) -> Node:
    """start, start+step, ...: floats in double, as eager, then rounded once."""
    inner = DType.F64 if dtype.is_float else DType.I64
    line = b.iota(size, inner, device)
    if step != 1:
        line = b.mul(line, step)
    if start != 0:
        line = b.add(line, start)
    return b.cast(line, dtype)


@lowers("aten.arange.start_step")
def _arange(
    b: Builder, start: Operand, end: Operand, step: Operand = 1, *, device: Any = None, **_: Any
) -> Node:
    (size,) = b.result.shape
    if b.result.dtype.is_int and any(isinstance(v, float) for v in (start, step)):
        raise NotLowered("integer arange from floats")
    return _range(b, size, start, step, b.result.dtype, _device(device))


@lowers("aten.arange.start")
def _arange_start(b: Builder, start: Operand, end: Operand, **options: Any) -> Node:
    return _arange(b, start, end, 1, **options)


@lowers("aten.arange.default")
def _arange_end(b: Builder, end: Operand, **options: Any) -> Node:
    return _arange(b, 0, end, 1, **options)


@lowers("prims.iota.default")
def _iota(
    b: Builder, size: Dim, *, start: Dim, step: Dim, dtype: Any, device: Any, **_: Any
) -> Node:
    return _range(b, size, start, step, lazyc_dtype(dtype), _device(device))


def _positions(b: Builder, shape: Shape, device: str) -> tuple[Node, Node]:
    """Row and column of every element of the last two axes."""
    return b.iota_along(shape, -2, device=device), b.iota_along(shape, -1, device=device)


@lowers("aten.eye.m", "aten.eye.default")
def _eye(b: Builder, *sizes: Dim, device: Any = None, layout: Any = None, **_: Any) -> Node:
    _check_layout(layout)
    row, column = _positions(b, b.result.shape, _device(device))
    return b.cast(b.compare("eq", row, column), b.result.dtype)


def _triangle(b: Builder, op: str, x: Node, diagonal: Dim) -> Node:
    row, column = _positions(b, x.shape, x.tensor.device)
    kept = b.compare(op, column if diagonal == 0 else b.sub(column, diagonal), row)
    return b.where(kept, x, 0)


@lowers("aten.tril.default")
def _tril(b: Builder, x: Node, diagonal: Dim = 0) -> Node:
    return _triangle(b, "le", x, diagonal)


@lowers("aten.triu.default")
def _triu(b: Builder, x: Node, diagonal: Dim = 0) -> Node:
    return _triangle(b, "ge", x, diagonal)
