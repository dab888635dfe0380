"""The table of pointwise ops: op name -> expression in Triton's language."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lazyc.codegen.base import CodegenError
from lazyc.ir.attrs import Scalar
from lazyc.ir.types import DType

TYPES = {
    DType.BOOL: "tl.int1",
    DType.U8: "tl.uint8",
    DType.I8: "tl.int8",
    DType.I16: "tl.int16",
    DType.I32: "tl.int32",
    DType.I64: "tl.int64",
    DType.F16: "tl.float16",
    DType.BF16: "tl.bfloat16",
    DType.F32: "tl.float32",
    DType.F64: "tl.float64",
}


@dataclass(frozen=True, slots=True)
class Operands:
    """One op being rendered: its operands, all of type ``dtype``, and the type of the result."""

    texts: tuple[str, ...]
    dtype: DType
    result: DType

    def __getitem__(self, k: int) -> str:
        return self.texts[k]

    @property
    def is_single(self) -> bool:
        return self.dtype is DType.F32

    @property
    def bits(self) -> int:
        return self.dtype.itemsize * 8


Rule = Callable[[Operands], str]


def expression(op: str, texts: tuple[str, ...], dtype: DType, result: DType) -> str:
    """A pointwise op on operands of ``dtype``. Raises CodegenError for an op that is not in the table."""
    rule = _TABLE.get(op)
    if rule is None:
        raise CodegenError(f"no code for op {op!r} on {dtype.value}")
    return rule(Operands(texts, dtype, result))


def literal(value: Scalar, dtype: DType) -> str:
    """A constant as a Python expression that Triton's compiler takes."""
    if not dtype.is_float:
        return repr(bool(value) if dtype is DType.BOOL else int(value))
    number = float(value)
    if math.isnan(number) or math.isinf(number):
        return f'float("{number}")'
    return repr(number)


# --- rules ----------------------------------------------------------------------------------------


def _infix(symbol: str) -> Rule:
    return lambda o: f"{o[0]} {symbol} {o[1]}"


def _library(name: str) -> Rule:
    """A function of NVIDIA's libdevice, of f32 and f64."""
    return lambda o: f"libdevice.{name}({', '.join(o.texts)})"


def _call(o: Operands, name: str, *args: str) -> str:
    return f"{name}({', '.join(args or o.texts)})"


def _extreme(name: str, on_bool: str) -> Rule:
    return lambda o: _infix(on_bool)(o) if o.dtype is DType.BOOL else _call(o, name)


def _divide(o: Operands) -> str:
    # "/" on f32 is approximate on a GPU.
    return f"tl.div_rn({o[0]}, {o[1]})" if o.is_single else f"{o[0]} / {o[1]}"


def _reciprocal(o: Operands) -> str:
    return _divide(Operands((f"tl.full([1, 1], 1.0, {TYPES[o.dtype]})", o[0]), o.dtype, o.result))


def _sqrt(o: Operands) -> str:
    return f"tl.sqrt_rn({o[0]})" if o.is_single else f"tl.sqrt({o[0]})"


def _sigmoid(o: Operands) -> str:
    one = f"tl.full([1, 1], 1.0, {TYPES[o.dtype]})"
    return _divide(Operands((one, f"(1.0 + libdevice.exp(0.0 - {o[0]}))"), o.dtype, o.result))


def _neg(o: Operands) -> str:
    # The language's own minus is 0 - x, which makes 0 of 0.
    return f"{o[0]} * -1.0" if o.dtype.is_float else f"0 - {o[0]}"


def _abs(o: Operands) -> str:
    return f"tl.abs({o[0]})" if o.dtype.is_signed else o[0]


def _sign(o: Operands) -> str:
    return _call(o, "sign" if o.dtype.is_signed else "unsigned_sign")


def _not(o: Operands) -> str:
    if o.dtype is DType.BOOL:
        return f"{o[0]} == 0"
    return f"~{o[0]}" if o.dtype.is_signed else f"{o[0]} ^ {(1 << o.bits) - 1}"


def _float_remainder(o: Operands) -> str:
    return f"libdevice.fmod({o[0]}, {o[1]})"


def _float_floor_div(o: Operands) -> str:
    ratio = _divide(o)
    zero = f"libdevice.copysign({o[0]} * 0.0, {ratio})"
    return _call(o, "floor_quotient", o[0], o[1], ratio, _float_remainder(o), zero)


def _floor_div(o: Operands) -> str:
    if o.dtype.is_float:
        return _float_floor_div(o)
    if not o.dtype.is_signed:
        return _call(o, "unsigned_quotient")
    return _call(o, "floor_of", o[0], o[1], _call(o, "quotient"), _call(o, "rest"))


def _trunc_div(o: Operands) -> str:
    if o.dtype.is_float:
        return f"libdevice.trunc({_divide(o)})"
    return _call(o, "quotient" if o.dtype.is_signed else "unsigned_quotient")


def _rem(o: Operands) -> str:
    if o.dtype.is_float:
        return _float_remainder(o)
    return _call(o, "rest" if o.dtype.is_signed else "unsigned_rest")


def _mod(o: Operands) -> str:
    if not o.dtype.is_signed:
        return _call(o, "unsigned_rest")
    return _call(o, "modulo", _rem(o), o[1])


def _pow(o: Operands) -> str:
    if o.dtype.is_float:
        return f"libdevice.pow({o[0]}, {o[1]})"
    positive = _call(o, "power", o[0], o[1], str(o.bits))
    return _call(o, "signed_power", o[0], o[1], positive) if o.dtype.is_signed else positive


def _shift(left: bool) -> Rule:
    def rule(o: Operands) -> str:
        name = (
            "shift_left" if left else "shift_right" if o.dtype.is_signed else "shift_right_unsigned"
        )
        return _call(o, name, o[0], o[1], str(o.bits))

    return rule


def _cast(o: Operands) -> str:
    if o.result is o.dtype:
        return o[0]
    if o.result is DType.BOOL:
        return f"{o[0]} != 0"
    if o.dtype.is_float and not o.result.is_float:
        return _float_to_int(o)
    return f"({o[0]}).to({TYPES[o.result]})"


def _float_to_int(o: Operands) -> str:
    via = DType.I64 if o.result is DType.I64 else DType.I32
    limit = 2.0 ** (via.itemsize * 8 - 1)
    wide = o[0] if o.dtype in (DType.F32, DType.F64) else f"({o[0]}).to(tl.float32)"
    whole = f"float_to_int({wide}, {-limit}, {limit}).to({TYPES[via]})"
    return whole if o.result is via else f"{whole}.to({TYPES[o.result]})"


def _bitcast(o: Operands) -> str:
    source = f"({o[0]}).to(tl.uint8)" if o.dtype is DType.BOOL else o[0]
    if o.result is DType.BOOL:
        return f"({source}) != 0"
    return f"({source}).to({TYPES[o.result]}, bitcast=True)"


_LIBRARY = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos",
    "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "lgamma", "atan2",
    "hypot", "copysign", "nextafter", "trunc", "rsqrt", "floor", "ceil",
)  # fmt: skip

_TABLE: dict[str, Rule] = {
    **{name: _library(name) for name in _LIBRARY},
    "round": _library("rint"),
    "add": _infix("+"),
    "sub": _infix("-"),
    "mul": _infix("*"),
    "div": _divide,
    "floor_div": _floor_div,
    "trunc_div": _trunc_div,
    "rem": _rem,
    "mod": _mod,
    "pow": _pow,
    "neg": _neg,
    "abs": _abs,
    "sign": _sign,
    "sqrt": _sqrt,
    "reciprocal": _reciprocal,
    "sigmoid": _sigmoid,
    "maximum": _extreme("largest", "|"),
    "minimum": _extreme("least", "&"),
    "fmax": lambda o: _call(o, "largest_number"),
    "fmin": lambda o: _call(o, "least_number"),
    "and": _infix("&"),
    "or": _infix("|"),
    "xor": _infix("^"),
    "not": _not,
    "shl": _shift(True),
    "shr": _shift(False),
    "eq": _infix("=="),
    "ne": _infix("!="),
    "lt": _infix("<"),
    "le": _infix("<="),
    "gt": _infix(">"),
    "ge": _infix(">="),
    "isnan": lambda o: f"{o[0]} != {o[0]}",
    "where": lambda o: f"tl.where({', '.join(o.texts)})",
    "cast": _cast,
    "bitcast": _bitcast,
}
