"""The table of pointwise ops: op name -> LLVM instructions, for any number of lanes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm import casts, floats, integer, math, rounding
from lazyc.codegen.llvm.emitter import LLVM_TYPES, Emitter, Value, constant, type_of, vector
from lazyc.codegen.llvm.region import Frame, Region
from lazyc.ir.loops import Compute
from lazyc.ir.types import DType


@dataclass(frozen=True, slots=True)
class Operands:
    """One op being emitted: its operands in ``lanes`` lanes, all of type ``dtype``."""

    frame: Frame
    region: Region
    values: tuple[Value, ...]
    dtype: DType
    lanes: int
    result: DType

    @property
    def b(self) -> Emitter:
        return self.frame.b

    @property
    def type(self) -> str:
        return type_of(self.dtype, self.lanes)

    @property
    def mask(self) -> str:
        return vector("i1", self.lanes)

    def __getitem__(self, k: int) -> str:
        return self.b.widen(self.values[k], self.lanes)

    def const(self, value: float) -> str:
        return constant(self.dtype, value, self.lanes)

    def binary(self, opcode: str, x: str, y: str) -> str:
        return self.b.emit(f"{opcode} {self.type} {x}, {y}")


Rule = Callable[[Operands], str]


def compute(frame: Frame, region: Region, instr: Compute) -> Value:
    """The value of a pointwise op. Raises CodegenError for an op that is not in the table."""
    values = tuple(region.values[a] for a in instr.args)
    lanes = max(v.lanes for v in values)
    operands = Operands(frame, region, values, values[-1].dtype, lanes, instr.dtype)
    rule = _TABLE.get(instr.op)
    if rule is not None:
        text = rule(operands)
    elif math.supports(instr.op, operands.dtype):
        text = _math(operands, instr.op)
    else:
        raise CodegenError(f"no code for op {instr.op!r} on {operands.dtype.value}")
    return frame.b.value(text, instr.dtype, lanes)


def _math(o: Operands, name: str) -> str:
    return call_math(o.b, name, o.dtype, o.lanes, *(o[k] for k in range(len(o.values))))


def call_math(b: Emitter, name: str, dtype: DType, lanes: int, *args: str) -> str:
    """A call of a vector math function, which joins the module on first use."""
    function = math.emit(name, dtype, lanes, b.target)
    for part in (*function.helpers, function):
        b.definitions[part.symbol] = part.text
        for line in part.declares:
            found = re.search(r"@([\w.]+)\(", line)
            assert found, line
            b.declares.setdefault(found[1], line)
    type_ = type_of(dtype, lanes)
    return b.emit(
        f"call {type_} @{function.symbol}(" + ", ".join(f"{type_} {a}" for a in args) + ")"
    )


# --- rules ----------------------------------------------------------------------------------------


def _arithmetic(float_op: str, int_op: str) -> Rule:
    return lambda o: o.binary(float_op if o.dtype.is_float else int_op, o[0], o[1])


def _bitwise(opcode: str) -> Rule:
    return lambda o: o.binary(opcode, o[0], o[1])


def _compare(name: str) -> Rule:
    def rule(o: Operands) -> str:
        if o.dtype.is_float:
            return o.binary("fcmp une" if name == "ne" else f"fcmp o{name}", o[0], o[1])
        if name in ("eq", "ne"):
            return o.binary(f"icmp {name}", o[0], o[1])
        return o.binary(f"icmp {'s' if o.dtype.is_signed else 'u'}{name}", o[0], o[1])

    return rule


def _extreme(largest: bool) -> Rule:
    return lambda o: floats.extreme(o.b, o.dtype, largest, o[0], o[1], o.lanes)


def _extreme_number(largest: bool) -> Rule:
    return lambda o: floats.extreme_number(o.b, o.dtype, largest, o[0], o[1], o.lanes)


def _float(function: Callable[..., str]) -> Rule:
    """A rule of signature ``function(emitter, dtype, *operands, lanes)``."""
    return lambda o: function(o.b, o.dtype, *(o[k] for k in range(len(o.values))), o.lanes)


def _neg(o: Operands) -> str:
    if o.dtype.is_float:
        return o.b.emit(f"fneg {o.type} {o[0]}")
    return o.binary("sub", o.const(0), o[0])


def _abs(o: Operands) -> str:
    if o.dtype.is_float:
        return o.b.intrinsic("fabs", LLVM_TYPES[o.dtype], o.lanes, o[0])
    if not o.dtype.is_signed:
        return o[0]
    symbol = f"llvm.abs.{'' if o.lanes == 1 else f'v{o.lanes}'}{LLVM_TYPES[o.dtype]}"
    return o.b.call(o.type, symbol, (o.type, o[0]), ("i1", "false"))


def _not(o: Operands) -> str:
    return o.binary("xor", o[0], o.const(1 if o.dtype is DType.BOOL else -1))


def _isnan(o: Operands) -> str:
    return o.binary("fcmp uno", o[0], o[0])


def _copysign(o: Operands) -> str:
    return o.b.intrinsic("copysign", LLVM_TYPES[o.dtype], o.lanes, o[0], o[1])


def _where(o: Operands) -> str:
    return o.b.emit(f"select {o.mask} {o[0]}, {o.type} {o[1]}, {o.type} {o[2]}")


def _cast(o: Operands) -> str:
    return casts.cast(o.b, o[0], o.dtype, o.result, o.lanes)


def _bitcast(o: Operands) -> str:
    return casts.bitcast(o.b, o[0], o.dtype, o.result, o.lanes)


def _integer_division(o: Operands) -> tuple[str, str]:
    return integer.divide(o.frame, o.region, o.values[0], o.values[1], o.lanes)


def _floor_division(o: Operands) -> tuple[str, str]:
    quotient, rest = _integer_division(o)
    return integer.floor_adjust(o.b, o.dtype, quotient, rest, o[1], o.lanes)


def _floor_div(o: Operands) -> str:
    if o.dtype.is_float:
        return floats.floor_divide(o.b, o.dtype, o[0], o[1], o.lanes)
    return _floor_division(o)[0]


def _trunc_div(o: Operands) -> str:
    if o.dtype.is_float:
        return rounding.trunc(o.b, o.dtype, o.binary("fdiv", o[0], o[1]), o.lanes)
    return _integer_division(o)[0]


def _rem(o: Operands) -> str:
    if o.dtype.is_float:
        return floats.remainder(o.b, o.dtype, o[0], o[1], o.lanes)
    return _integer_division(o)[1]


def _mod(o: Operands) -> str:
    if o.dtype.is_float:
        return floats.modulo(o.b, o.dtype, o[0], o[1], o.lanes)
    return _floor_division(o)[1]


def _shift(left: bool) -> Rule:
    return lambda o: integer.shift(o.b, o.dtype, left, o[0], o[1], o.lanes)


def _pow(o: Operands) -> str:
    if o.dtype.is_float:
        return _math(o, "pow")
    return integer.power(o.b, o.dtype, o[0], o[1], o.lanes)


_TABLE: dict[str, Rule] = {
    "add": _arithmetic("fadd", "add"),
    "sub": _arithmetic("fsub", "sub"),
    "mul": _arithmetic("fmul", "mul"),
    "div": lambda o: floats.divide(o.b, o.dtype, o.values[0], o.values[1], o.lanes),
    "floor_div": _floor_div,
    "trunc_div": _trunc_div,
    "rem": _rem,
    "mod": _mod,
    "pow": _pow,
    "neg": _neg,
    "abs": _abs,
    "sign": _float(floats.sign),
    "floor": _float(rounding.floor),
    "ceil": _float(rounding.ceil),
    "round": _float(rounding.round_even),
    "trunc": _float(rounding.trunc),
    "copysign": _copysign,
    "nextafter": _float(floats.nextafter),
    "maximum": _extreme(True),
    "minimum": _extreme(False),
    "fmax": _extreme_number(True),
    "fmin": _extreme_number(False),
    "and": _bitwise("and"),
    "or": _bitwise("or"),
    "xor": _bitwise("xor"),
    "not": _not,
    "shl": _shift(True),
    "shr": _shift(False),
    **{name: _compare(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "isnan": _isnan,
    "where": _where,
    "cast": _cast,
    "bitcast": _bitcast,
}


def has_code(op: str, dtype: DType) -> bool:
    """Whether the generator has code for a pointwise op on inputs of ``dtype``."""
    return op in _TABLE or math.supports(op, dtype)
