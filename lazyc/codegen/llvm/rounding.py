"""floor, ceil, trunc and round-half-even of f32 and f64, also where the CPU has no instruction."""

from __future__ import annotations

from lazyc.codegen.llvm.emitter import LLVM_TYPES, Emitter, constant, vector
from lazyc.ir.types import DType

# From here on every float is a whole number.
_WHOLE = {DType.F32: 2.0**23, DType.F64: 2.0**52}


def round_even(b: Emitter, dtype: DType, x: str, lanes: int) -> str:
    """The nearest whole number, ties to even."""
    element = LLVM_TYPES[dtype]
    if b.target.has_rounding:
        return b.intrinsic("roundeven", element, lanes, x)
    # Adding 2**52 leaves no bits for a fraction, and the addition rounds to even.
    type_ = vector(element, lanes)
    limit = constant(dtype, _WHOLE[dtype], lanes)
    size = b.intrinsic("fabs", element, lanes, x)
    rounded = b.emit(f"fsub {type_} {b.emit(f'fadd {type_} {size}, {limit}')}, {limit}")
    signed = b.intrinsic("copysign", element, lanes, rounded, x)
    small = b.emit(f"fcmp olt {type_} {size}, {limit}")
    return b.emit(f"select {vector('i1', lanes)} {small}, {type_} {signed}, {type_} {x}")


def floor(b: Emitter, dtype: DType, x: str, lanes: int) -> str:
    return _directed(b, "floor", "ogt", "fsub", dtype, x, lanes)


def ceil(b: Emitter, dtype: DType, x: str, lanes: int) -> str:
    return _directed(b, "ceil", "olt", "fadd", dtype, x, lanes)


def _directed(
    b: Emitter, name: str, beyond: str, back: str, dtype: DType, x: str, lanes: int
) -> str:
    """floor or ceil: round to nearest, then one step back where that went beyond x."""
    element = LLVM_TYPES[dtype]
    if b.target.has_rounding:
        return b.intrinsic(name, element, lanes, x)
    type_ = vector(element, lanes)
    near = round_even(b, dtype, x, lanes)
    over = b.emit(f"fcmp {beyond} {type_} {near}, {x}")
    step = b.emit(
        f"select {vector('i1', lanes)} {over}, {type_} {constant(dtype, 1.0, lanes)}, "
        f"{type_} {constant(dtype, 0.0, lanes)}"
    )
    moved = b.emit(f"{back} {type_} {near}, {step}")
    return b.intrinsic("copysign", element, lanes, moved, x)  # -0.0 stays, ceil(-0.5) is -0.0


def trunc(b: Emitter, dtype: DType, x: str, lanes: int) -> str:
    element = LLVM_TYPES[dtype]
    if b.target.has_rounding:
        return b.intrinsic("trunc", element, lanes, x)
    size = b.intrinsic("fabs", element, lanes, x)
    return b.intrinsic("copysign", element, lanes, floor(b, dtype, size, lanes), x)
