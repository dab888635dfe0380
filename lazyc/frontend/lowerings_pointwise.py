"""Lowerings of elementwise arithmetic, comparisons, logic and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy
import torch

from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand, float_result_dtype, lazyc_dtype, result_dtype
from lazyc.ir.graph import Node
from lazyc.ir.types import DType

# --- one operand ----------------------------------------------------------------------------------

# Integers and bools are promoted to the default float type.
for _name, _op in {
    **{
        name: name
        for name in (
            "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal",
            "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh",
            "atanh", "sigmoid", "erf", "erfc", "lgamma",
        )
    },
    "special_expit": "sigmoid", "special_erf": "erf", "special_erfc": "erfc",
    "special_exp2": "exp2", "special_expm1": "expm1", "special_log1p": "log1p",
}.items():  # fmt: skip

    def _float_unary(b: Builder, x: Node, op: str = _op) -> Node:
        return b.emit(op, *b.promote_float(x))

    lowers(f"aten.{_name}.default")(_float_unary)

for _name in ("floor", "ceil", "round", "trunc"):

    def _rounding(b: Builder, x: Node, op: str = _name) -> Node:
        return b.emit(op, x) if x.dtype.is_float else x

    lowers(f"aten.{_name}.default")(_rounding)

lowers("aten.fix.default")(lambda b, x: b.emit("trunc", x) if x.dtype.is_float else x)


@lowers("aten.round.decimals")
def _round_decimals(b: Builder, x: Node, *, decimals: int) -> Node:
    if not x.dtype.is_float:
        raise NotLowered("round of integers to decimals")
    scale = 10.0 ** abs(decimals)
    y = b.compute(x)
    if decimals >= 0:
        y = b.div(b.emit("round", b.mul(y, scale)), scale)
    else:
        y = b.mul(b.emit("round", b.div(y, scale)), scale)
    return b.cast(y, x.dtype)


def _number(x: Node, what: str) -> None:
    if x.dtype is DType.BOOL:
        raise NotLowered(f"{what} of bool")


@lowers("aten.neg.default")
def _neg(b: Builder, x: Node) -> Node:
    _number(x, "neg")
    return b.neg(x)


@lowers("aten.abs.default")
def _abs(b: Builder, x: Node) -> Node:
    return x if x.dtype is DType.BOOL else b.emit("abs", x)


@lowers("aten.sign.default", "aten.sgn.default")
def _sign(b: Builder, x: Node) -> Node:
    return x if x.dtype is DType.BOOL else b.emit("sign", x)


@lowers("aten.positive.default", "aten.conj_physical.default")
def _identity(b: Builder, x: Node) -> Node:
    return x


@lowers("aten.square.default")
def _square(b: Builder, x: Node) -> Node:
    return multiply(b, x, x)


@lowers("aten.frac.default")
def _frac(b: Builder, x: Node) -> Node:
    return b.sub(x, b.emit("trunc", x))


@lowers("aten.bitwise_not.default")
def _bitwise_not(b: Builder, x: Node) -> Node:
    return b.not_(x)


@lowers("aten.logical_not.default")
def _logical_not(b: Builder, x: Node) -> Node:
    return b.not_(b.logical(x))


def _never(b: Builder, x: Node) -> Node:
    return b.constant(False, DType.BOOL, x.shape, x.tensor.device)


@lowers("aten.isnan.default")
def _isnan(b: Builder, x: Node) -> Node:
    return b.emit("isnan", x) if x.dtype.is_float else _never(b, x)


@lowers("aten.isinf.default")
def _isinf(b: Builder, x: Node) -> Node:
    return b.compare("eq", b.emit("abs", x), math.inf) if x.dtype.is_float else _never(b, x)


@lowers("aten.isposinf.default")
def _isposinf(b: Builder, x: Node) -> Node:
    return b.compare("eq", x, math.inf) if x.dtype.is_float else _never(b, x)


@lowers("aten.isneginf.default")
def _isneginf(b: Builder, x: Node) -> Node:
    return b.compare("eq", x, -math.inf) if x.dtype.is_float else _never(b, x)


@lowers("aten.isfinite.default")
def _isfinite(b: Builder, x: Node) -> Node:
    if not x.dtype.is_float:
        return b.not_(_never(b, x))
    return b.compare("lt", b.emit("abs", x), math.inf)  # false for nan


_SAME_SIZE_INT = {2: DType.I16, 4: DType.I32, 8: DType.I64}


@lowers("aten.signbit.default")
def _signbit(b: Builder, x: Node) -> Node:
    if x.dtype is DType.BOOL:
        return _never(b, x)
    if x.dtype.is_float:  # also for -0.0 and nan
        x = b.bitcast(x, _SAME_SIZE_INT[x.dtype.itemsize])
    return b.compare("lt", x, 0)


@lowers("aten.angle.default")
def _angle(b: Builder, x: Node) -> Node:
    """pi for negative numbers, 0 for others, nan for nan."""
    y = b.promote_float(x)[0]
    zero = b.constant(0, y.dtype, y.shape, y.tensor.device)
    return b.where(b.emit("isnan", y), y, b.where(b.compare("lt", y, 0), math.pi, zero))


# --- two operands ---------------------------------------------------------------------------------


def arithmetic_type(dtype: DType, *values: Operand) -> DType:
    """Where a half-typed op meets a number that the half type cannot hold: f32, as in eager."""
    if dtype.compute is dtype:
        return dtype
    for v in values:
        if isinstance(v, float | int) and not _exact(float(v), dtype):
            return dtype.compute
    return dtype


def _exact(value: float, dtype: DType) -> bool:
    rounded = torch.tensor(value, dtype=dtype.torch).item()
    return rounded == value or math.isnan(value)


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
def _pow_scalar(b: Builder, x: Node, exponent: Operand) -> Node:
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
