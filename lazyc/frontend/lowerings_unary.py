"""Lowerings of elementwise ops on one operand."""

from __future__ import annotations

import math

from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.ir.graph import Node
from lazyc.ir.types import DType

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
