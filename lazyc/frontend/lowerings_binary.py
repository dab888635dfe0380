"""Lowerings of elementwise arithmetic, comparisons, logic and shifts on two operands."""

from __future__ import annotations

import math
import struct

import sympy

from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand, float_result_dtype, result_dtype
from lazyc.ir.graph import Node
from lazyc.ir.types import DType


def arithmetic_type(dtype: DType, *values: Operand) -> DType:
    """Where a half-typed op meets a number that the half type cannot hold: f32, as in eager."""
    if dtype.compute is dtype:
        return dtype
    for v in values:
        if isinstance(v, float | int) and not _exact(float(v), dtype):
            return dtype.compute
    return dtype


def _exact(value: float, dtype: DType) -> bool:
    """True when a half type holds the number. (Without torch, whose tensors may be fake here.)"""
    if not math.isfinite(value):
        return True
    try:
        if dtype is DType.F16:
            return struct.unpack("<e", struct.pack("<e", value))[0] == value
        single = struct.pack("<f", value)
    except OverflowError:
        return False
    return struct.unpack("<f", single)[0] == value and single[:2] == b"\0\0"


def arithmetic(b: Builder, op: str, dtype: DType, x: Operand, y: Operand) -> Node:
    """A binary op whose result has type ``dtype``."""
    inner = arithmetic_type(dtype, x, y)
    return b.cast(b.emit(op, *b.operands(inner, x, y)), dtype)


def multiply(b: Builder, x: Operand, y: Operand) -> Node:
    dtype = result_dtype((x, y))
    return arithmetic(b, "and" if dtype is DType.BOOL else "mul", dtype, x, y)


def _add_scaled(b: Builder, op: str, x: Operand, y: Operand, alpha: Operand) -> Node:
    """``x op alpha*y``."""
    dtype = result_dtype((x, y))
    if alpha == 1:
        if dtype is DType.BOOL and op == "add":
            op = "or"
        elif dtype is DType.BOOL:
            raise NotLowered("sub of bool")
        return arithmetic(b, op, dtype, x, y)
    if dtype is DType.BOOL:
        raise NotLowered("add of bool with alpha")
    x, y = b.operands(dtype.compute, x, y)
    return b.cast(b.pointwise(op, x, b.mul(y, alpha)), dtype)


@lowers("aten.add.Tensor", "aten.add.Scalar")
def _add(b: Builder, x: Node, y: Operand, alpha: Operand = 1) -> Node:
    return _add_scaled(b, "add", x, y, alpha)


@lowers("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(b: Builder, x: Node, y: Operand, alpha: Operand = 1) -> Node:
    return _add_scaled(b, "sub", x, y, alpha)


@lowers("aten.rsub.Tensor", "aten.rsub.Scalar")
def _rsub(b: Builder, x: Node, y: Operand, alpha: Operand = 1) -> Node:
    return _add_scaled(b, "sub", y, x, alpha)


lowers("aten.mul.Tensor", "aten.mul.Scalar")(multiply)


@lowers("aten.square.default")
def _square(b: Builder, x: Node) -> Node:
    return multiply(b, x, x)


@lowers("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor")
def _div(b: Builder, x: Node, y: Operand) -> Node:
    return arithmetic(b, "div", float_result_dtype((x, y)), x, y)


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _div_mode(b: Builder, x: Node, y: Operand, *, rounding_mode: str | None) -> Node:
    if rounding_mode is None:
        return _div(b, x, y)
    return _whole(b, "floor_div" if rounding_mode == "floor" else "trunc_div", x, y)


@lowers("aten.floor_divide.default", "aten.floor_divide.Scalar")
def _floor_divide(b: Builder, x: Node, y: Operand) -> Node:
    return _whole(b, "floor_div", x, y)


def _whole(b: Builder, op: str, x: Operand, y: Operand) -> Node:
    """Floor or truncating division or its remainder, in the operands' result type."""
    dtype = result_dtype((x, y))
    if dtype is DType.BOOL:
        raise NotLowered("integer division of bool")
    return arithmetic(b, op, dtype, x, y)


@lowers("aten.remainder.Tensor", "aten.remainder.Scalar", "aten.remainder.Scalar_Tensor")
def _remainder(b: Builder, x: Operand, y: Operand) -> Node:
    return _whole(b, "mod", x, y)


@lowers("aten.fmod.Tensor", "aten.fmod.Scalar")
def _fmod(b: Builder, x: Node, y: Operand) -> Node:
    return _whole(b, "rem", x, y)


@lowers("aten.pow.Tensor_Scalar")
def _pow_scalar(b: Builder, x: Node, exponent: float | sympy.Expr) -> Node:
    dtype = result_dtype((x, exponent))
    if dtype is DType.BOOL:
        raise NotLowered("pow of bool")
    if isinstance(exponent, sympy.Expr):
        return b.emit("pow", *b.operands(dtype, x, exponent))
    if dtype.is_int and exponent < 0:
        raise NotLowered("integer to a negative power")  # eager raises
    y = b.cast(x, dtype.compute)
    return b.cast(_power(b, y, exponent), dtype)


def _power(b: Builder, x: Node, exponent: float) -> Node:
    """x to a constant power; the same special cases as eager."""
    if exponent == 0:
        return b.constant(1, x.dtype, x.shape, x.tensor.device)
    if exponent == 1:
        return x
    if exponent == 2:
        return b.mul(x, x)
    if exponent == 3:
        return b.mul(b.mul(x, x), x)
    if x.dtype.is_float:
        if exponent == 0.5:
            return b.sqrt(x)
        if exponent == -0.5:
            return b.emit("rsqrt", x)
        if exponent == -1:
            return b.emit("reciprocal", x)
        if exponent == -2:
            return b.emit("reciprocal", b.mul(x, x))
    return b.pointwise("pow", x, exponent)


@lowers("aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def _pow(b: Builder, x: Operand, y: Node) -> Node:
    dtype = result_dtype((x, y))
    if dtype is DType.BOOL:
        raise NotLowered("pow of bool")
    return arithmetic(b, "pow", dtype, x, y)


for _name in ("atan2", "hypot", "copysign", "nextafter"):

    def _float_binary(b: Builder, x: Node, y: Operand, op: str = _name) -> Node:
        return b.emit(op, *b.promote_float(x, y))

    lowers(f"aten.{_name}.default", *(["aten.copysign.Tensor", "aten.copysign.Scalar"]
           if _name == "copysign" else []))(_float_binary)  # fmt: skip

for _name in ("maximum", "minimum"):
    lowers(f"aten.{_name}.default")(lambda b, x, y, op=_name: b.emit(op, *b.promote(x, y)))


@lowers("aten.fmax.default")
def _fmax(b: Builder, x: Node, y: Node) -> Node:
    x, y = b.promote(x, y)
    return b.emit("fmax" if x.dtype.is_float else "maximum", x, y)


@lowers("aten.fmin.default")
def _fmin(b: Builder, x: Node, y: Node) -> Node:
    x, y = b.promote(x, y)
    return b.emit("fmin" if x.dtype.is_float else "minimum", x, y)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):

    def _compare(b: Builder, x: Node, y: Operand, op: str = _name) -> Node:
        return b.emit(op, *b.promote(x, y))

    lowers(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_compare)

for _name in ("and", "or", "xor"):

    def _bitwise(b: Builder, x: Operand, y: Operand, op: str = _name) -> Node:
        x, y = b.promote(x, y)
        return b.emit(op, x, y)

    def _logical(b: Builder, x: Node, y: Node, op: str = _name) -> Node:
        return b.emit(op, *b.broadcast(b.logical(x), b.logical(y)))

    lowers(
        *(f"aten.bitwise_{_name}.{kind}" for kind in ("Tensor", "Scalar", "Scalar_Tensor")),
        *(f"aten.__{_name}__.{kind}" for kind in ("Tensor", "Scalar")),
    )(_bitwise)
    lowers(f"aten.logical_{_name}.default")(_logical)

for _names, _op in (
    (("bitwise_left_shift", "__lshift__"), "shl"),
    (("bitwise_right_shift", "__rshift__"), "shr"),
):

    def _shift(b: Builder, x: Operand, y: Operand, op: str = _op) -> Node:
        dtype = result_dtype((x, y))
        if not dtype.is_int:
            raise NotLowered(f"shift of {dtype}")
        return arithmetic(b, op, dtype, x, y)

    lowers(
        *(f"aten.{_names[0]}.{kind}" for kind in ("Tensor", "Tensor_Scalar", "Scalar_Tensor")),
        *(f"aten.{_names[1]}.{kind}" for kind in ("Tensor", "Scalar")),
    )(_shift)
