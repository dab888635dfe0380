"""The table of pointwise ops: op name -> expression in CUDA C++.

What is neither C++ nor a function of CUDA's math library is in ``primitives.cuh``. The ops are those that
``ir.sparse_contraction`` lets surround a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lazyc.codegen.base import CodegenError
from lazyc.ir.attrs import Scalar
from lazyc.ir.types import DType

TYPES = {
    DType.BOOL: "bool",
    DType.U8: "unsigned char",
    DType.I8: "signed char",
    DType.I16: "short",
    DType.I32: "int",
    DType.I64: "long long",
    DType.F16: "F16",
    DType.BF16: "BF16",
    DType.F32: "float",
    DType.F64: "double",
}

# (operands, their type, the type of the result)
Rule = Callable[[Sequence[str], DType, DType], str]


def expression(op: str, operands: Sequence[str], dtype: DType, result: DType) -> str:
    """A pointwise op on operands of ``dtype``. Raises CodegenError for an op that is not in the table."""
    rule = TABLE.get(op)
    if rule is None:
        raise CodegenError(f"no code for op {op!r} on {dtype.value}")
    return rule(operands, dtype, result)


def literal(value: Scalar, dtype: DType) -> str:
    """A constant."""
    if dtype is DType.BOOL:
        return "true" if value else "false"
    if not dtype.is_float:
        # Of the least number of 64 bits there is no literal.
        return f"({TYPES[dtype]})({int(value) + 1}ll - 1)"
    number = float(value)
    if math.isnan(number):
        text = "not_a_number()"
    elif math.isinf(number):
        text = "infinity()" if number > 0 else "-infinity()"
    else:
        text = number.hex()
    return f"({TYPES[dtype.compute]})({text})"


def _infix(symbol: str) -> Rule:
    return lambda x, dtype, result: f"({TYPES[result]})({x[0]} {symbol} {x[1]})"


def _arithmetic(symbol: str) -> Rule:
    def rule(x: Sequence[str], dtype: DType, result: DType) -> str:
        if dtype.is_float:
            return f"{x[0]} {symbol} {x[1]}"
        wide = "(unsigned long long)"  # in which C++ lets integers wrap
        return f"({TYPES[dtype]})({wide}{x[0]} {symbol} {wide}{x[1]})"

    return rule


def _library(name: str) -> Rule:
    """A function of the math library: in single precision its name ends with an f."""
    return lambda x, dtype, result: f"{name}{'f' if dtype is DType.F32 else ''}({', '.join(x)})"


def _neg(x: Sequence[str], dtype: DType, result: DType) -> str:
    return f"-{x[0]}" if dtype.is_float else _arithmetic("-")(("0", x[0]), dtype, result)


def _abs(x: Sequence[str], dtype: DType, result: DType) -> str:
    if dtype.is_float:
        return _library("fabs")(x, dtype, result)
    return f"({x[0]} < 0 ? {_neg(x, dtype, result)} : {x[0]})"


def _not(x: Sequence[str], dtype: DType, result: DType) -> str:
    return f"!{x[0]}" if dtype is DType.BOOL else f"({TYPES[dtype]})(~{x[0]})"


def _sigmoid(x: Sequence[str], dtype: DType, result: DType) -> str:
    return f"1 / (1 + {_library('exp')((f'-{x[0]}',), dtype, result)})"


def _cast(x: Sequence[str], dtype: DType, result: DType) -> str:
    if result is dtype:
        return x[0]
    if dtype in (DType.F16, DType.BF16):
        return _cast((f"to_float({x[0]})",), DType.F32, result)
    if result in (DType.F16, DType.BF16):
        return f"to_{result.value}((float){x[0]})"  # by way of f32, as torch does
    if result is DType.BOOL:
        return f"({x[0]} != 0)"
    if dtype.is_float and not result.is_float:
        wide = "to_long" if result is DType.I64 else "to_int"
        return f"({TYPES[result]}){wide}({x[0]})"
    return f"({TYPES[result]}){x[0]}"


_LIBRARY = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
    "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "atan2", "hypot", "copysign",
    "trunc", "floor", "ceil", "sqrt", "pow", "fmax", "fmin",
)  # fmt: skip

TABLE: dict[str, Rule] = {
    **{name: _library(name) for name in _LIBRARY},
    "round": _library("rint"),
    "rsqrt": lambda x, dtype, result: f"1 / {_library('sqrt')(x, dtype, result)}",
    "reciprocal": lambda x, dtype, result: f"1 / {x[0]}",
    "sigmoid": _sigmoid,
    "sign": lambda x, dtype, result: f"({TYPES[dtype]})(({x[0]} > 0) - ({x[0]} < 0))",
    "maximum": lambda x, dtype, result: f"largest({x[0]}, {x[1]})",
    "minimum": lambda x, dtype, result: f"least({x[0]}, {x[1]})",
    "add": _arithmetic("+"),
    "sub": _arithmetic("-"),
    "mul": _arithmetic("*"),
    "div": lambda x, dtype, result: f"{x[0]} / {x[1]}",
    "neg": _neg,
    "abs": _abs,
    "not": _not,
    "and": _infix("&"),
    "or": _infix("|"),
    "xor": _infix("^"),
    "eq": _infix("=="),
    "ne": _infix("!="),
    "lt": _infix("<"),
    "le": _infix("<="),
    "gt": _infix(">"),
    "ge": _infix(">="),
    "isnan": lambda x, dtype, result: f"({x[0]} != {x[0]})",
    "where": lambda x, dtype, result: f"({x[0]} ? {x[1]} : {x[2]})",
    "cast": _cast,
}
