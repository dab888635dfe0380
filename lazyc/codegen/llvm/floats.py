"""Float operations built from simpler ones: extremes, sign, remainders, nextafter."""

from __future__ import annotations

from lazyc.codegen.llvm import rounding
from lazyc.codegen.llvm.emitter import LLVM_TYPES, Emitter, Value, constant, type_of, vector
from lazyc.ir.types import DType

# Below this many whole quotients, a quotient in the same type is off by at most one.
_QUOTIENT_LIMIT = {DType.F32: 2.0**22, DType.F64: 2.0**51}
# Divisors between 1/limit and limit have a reciprocal and a remainder that are exact enough.
_DIVISOR_LIMIT = {DType.F32: 2.0**100, DType.F64: 2.0**900}


def divide(b: Emitter, dtype: DType, x: Value, y: Value, lanes: int) -> str:
    """``x / y``, rounded correctly (where the quotient is normal)."""
    uniform = x.lanes > 1 and y.lanes == 1 and y.depth < b.depth and y.text.startswith("%")
    if uniform and b.target.has_fma:
        return _divide_all(b, dtype, b.widen(x, lanes), y, lanes)
    return b.emit(f"fdiv {type_of(dtype, lanes)} {b.widen(x, lanes)}, {b.widen(y, lanes)}")


def _divide_all(b: Emitter, dtype: DType, x: str, divisor: Value, lanes: int) -> str:
    """Division by a loop's constant, several times as fast as the CPU's: ``q = x * (1/y)`` and one
    correction by the exact remainder (P. Markstein, IBM J. Res. Dev. 34, 1990).

    For divisors that are far from 0 and infinity and positive (the quotient of zeros would lose its
    sign); for all others the division itself.
    """
    element, type_, mask = LLVM_TYPES[dtype], type_of(dtype, lanes), vector("i1", lanes)
    y, depth = divisor.text, divisor.depth

    def once(text: str) -> str:
        return b.shared(text, depth)

    limit = _DIVISOR_LIMIT[dtype]
    above = once(f"fcmp ogt {element} {y}, {constant(dtype, 1 / limit)}")
    below = once(f"fcmp olt {element} {y}, {constant(dtype, limit)}")
    usual = once(f"and i1 {above}, {below}")
    inverse = once(f"fdiv {element} {constant(dtype, 1)}, {y}")
    r, s = (b.broadcast(t, element, lanes, depth) for t in (inverse, y))
    q = b.emit(f"fmul {type_} {x}, {r}")
    excess = b.intrinsic("fma", element, lanes, q, s, b.emit(f"fneg {type_} {x}"))
    better = b.intrinsic("fma", element, lanes, b.emit(f"fneg {type_} {excess}"), r, q)
    # An infinite q has no remainder.
    nan = b.emit(f"fcmp uno {type_} {better}, {better}")
    slot = b.alloca(type_)
    b.void(
        f"store {type_} {b.emit(f'select {mask} {nan}, {type_} {q}, {type_} {better}')}, ptr {slot}"
    )
    with b.branch(once(f"xor i1 {usual}, true")):
        b.void(f"store {type_} {b.emit(f'fdiv {type_} {x}, {s}')}, ptr {slot}")
    return b.emit(f"load {type_}, ptr {slot}")


def extreme(b: Emitter, dtype: DType, largest: bool, x: str, y: str, lanes: int) -> str:
    """maximum or minimum of any type; nan if either is nan. Of equal values the second."""
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    if dtype is DType.BOOL:
        return b.emit(f"{'or' if largest else 'and'} {type_} {x}, {y}")
    if not dtype.is_float:
        name = ("s" if dtype.is_signed else "u") + ("max" if largest else "min")
        return b.intrinsic(name, LLVM_TYPES[dtype], lanes, x, y)
    # The compare and select is one maxps, which yields y when either is nan.
    first = b.emit(f"fcmp {'ogt' if largest else 'olt'} {type_} {x}, {y}")
    picked = b.emit(f"select {mask} {first}, {type_} {x}, {type_} {y}")
    nan = b.emit(f"fcmp uno {type_} {x}, {x}")
    return b.emit(f"select {mask} {nan}, {type_} {x}, {type_} {picked}")


def extreme_number(b: Emitter, dtype: DType, largest: bool, x: str, y: str, lanes: int) -> str:
    """fmax or fmin: the other one if one is nan."""
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    second = b.emit(f"fcmp {'olt' if largest else 'ogt'} {type_} {x}, {y}")
    picked = b.emit(f"select {mask} {second}, {type_} {y}, {type_} {x}")  # x when either is nan
    nan = b.emit(f"fcmp uno {type_} {x}, {x}")
    return b.emit(f"select {mask} {nan}, {type_} {y}, {type_} {picked}")


def sign(b: Emitter, dtype: DType, x: str, lanes: int) -> str:
    """1, -1 or 0 (0 for nan, as in torch), of any number type."""
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    zero, one = constant(dtype, 0, lanes), constant(dtype, 1, lanes)
    if dtype.is_float:
        greater, less = "fcmp ogt", "fcmp olt"
    else:
        greater, less = ("icmp sgt", "icmp slt") if dtype.is_signed else ("icmp ugt", "icmp ult")
    positive = b.emit(f"{greater} {type_} {x}, {zero}")
    negative = b.emit(f"{less} {type_} {x}, {zero}")
    below = b.emit(
        f"select {mask} {negative}, {type_} {constant(dtype, -1, lanes)}, {type_} {zero}"
    )
    return b.emit(f"select {mask} {positive}, {type_} {one}, {type_} {below}")


def remainder(b: Emitter, dtype: DType, x: str, y: str, lanes: int) -> str:
    """C's fmod, exact: the sign of x, |result| < |y|.

    Where the quotient is small, ``x - trunc(x/y)*y`` in one fused operation is exact (the true value
    has few enough bits), at worst one y off; elsewhere libm's fmod, lane by lane.
    """
    element, type_, mask = LLVM_TYPES[dtype], type_of(dtype, lanes), vector("i1", lanes)
    if not b.target.has_fma or lanes == 1:
        return b.each_lane("frem", element, lanes, x, y)
    quotient = rounding.trunc(b, dtype, b.emit(f"fdiv {type_} {x}, {y}"), lanes)
    rest = b.intrinsic("fma", element, lanes, b.emit(f"fneg {type_} {quotient}"), y, x)
    # A quotient that was rounded up leaves a rest of the other sign.
    size_x, size_y = b.intrinsic("fabs", element, lanes, x), b.intrinsic("fabs", element, lanes, y)
    signed = b.intrinsic("copysign", element, lanes, size_x, rest)
    zero = constant(dtype, 0.0, lanes)
    crossed = b.emit(f"fcmp une {type_} {signed}, {x}")
    nonzero = b.emit(f"fcmp une {type_} {rest}, {zero}")
    fix = b.emit(f"and {mask} {crossed}, {nonzero}")
    toward = b.intrinsic("copysign", element, lanes, size_y, x)
    moved = b.emit(f"fadd {type_} {rest}, {toward}")
    rest = b.emit(f"select {mask} {fix}, {type_} {moved}, {type_} {rest}")
    rest = b.intrinsic("copysign", element, lanes, rest, x)
    small = b.emit(f"fcmp olt {type_} {size_x}, {size_y}")
    rest = b.emit(f"select {mask} {small}, {type_} {x}, {type_} {rest}")
    limit = constant(dtype, _QUOTIENT_LIMIT[dtype], lanes)
    size_q = b.intrinsic("fabs", element, lanes, quotient)
    near = b.emit(f"fcmp olt {type_} {size_q}, {limit}")
    nothing = b.emit(f"fcmp oeq {type_} {y}, {zero}")  # nan already
    settled = b.emit(f"or {mask} {b.emit(f'or {mask} {near}, {small}')}, {nothing}")
    slot = b.alloca(type_)
    b.void(f"store {type_} {rest}, ptr {slot}")
    with b.branch(
        b.any_lane(b.emit(f"xor {mask} {settled}, {constant(DType.BOOL, 1, lanes)}"), lanes)
    ):
        exact = b.each_lane("frem", element, lanes, x, y)
        b.void(f"store {type_} {exact}, ptr {slot}")
    return b.emit(f"load {type_}, ptr {slot}")


def modulo(b: Emitter, dtype: DType, x: str, y: str, lanes: int) -> str:
    """torch.remainder: the sign of y."""
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    rest = remainder(b, dtype, x, y, lanes)
    moved = b.emit(f"fadd {type_} {rest}, {y}")
    wrong = _signs_differ(b, dtype, rest, y, lanes)
    return b.emit(f"select {mask} {wrong}, {type_} {moved}, {type_} {rest}")


def _signs_differ(b: Emitter, dtype: DType, rest: str, y: str, lanes: int) -> str:
    """Whether rest is not 0 and its sign is not that of y."""
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    zero = constant(dtype, 0.0, lanes)
    nonzero = b.emit(f"fcmp une {type_} {rest}, {zero}")
    rest_negative = b.emit(f"fcmp olt {type_} {rest}, {zero}")
    y_negative = b.emit(f"fcmp olt {type_} {y}, {zero}")
    differ = b.emit(f"xor {mask} {rest_negative}, {y_negative}")
    return b.emit(f"and {mask} {nonzero}, {differ}")


def floor_divide(b: Emitter, dtype: DType, x: str, y: str, lanes: int) -> str:
    """torch's floor division: from the exact remainder, since floor(x / y) may be one too high."""
    element, type_, mask = LLVM_TYPES[dtype], type_of(dtype, lanes), vector("i1", lanes)
    zero, one = constant(dtype, 0.0, lanes), constant(dtype, 1.0, lanes)
    ratio = b.emit(f"fdiv {type_} {x}, {y}")
    rest = remainder(b, dtype, x, y, lanes)
    quotient = b.emit(f"fdiv {type_} {b.emit(f'fsub {type_} {x}, {rest}')}, {y}")
    lower = b.emit(f"fsub {type_} {quotient}, {one}")
    wrong = _signs_differ(b, dtype, rest, y, lanes)
    quotient = b.emit(f"select {mask} {wrong}, {type_} {lower}, {type_} {quotient}")
    whole = rounding.floor(b, dtype, quotient, lanes)
    half = constant(dtype, 0.5, lanes)
    high = b.emit(f"fcmp ogt {type_} {b.emit(f'fsub {type_} {quotient}, {whole}')}, {half}")
    upper = b.emit(f"fadd {type_} {whole}, {one}")
    whole = b.emit(f"select {mask} {high}, {type_} {upper}, {type_} {whole}")
    none = b.emit(f"fcmp oeq {type_} {quotient}, {zero}")
    signed_zero = b.intrinsic("copysign", element, lanes, zero, ratio)
    whole = b.emit(f"select {mask} {none}, {type_} {signed_zero}, {type_} {whole}")
    by_zero = b.emit(f"fcmp oeq {type_} {y}, {zero}")
    return b.emit(f"select {mask} {by_zero}, {type_} {ratio}, {type_} {whole}")


def nextafter(b: Emitter, dtype: DType, x: str, y: str, lanes: int) -> str:
    """The next float after x in the direction of y: one step of its bit pattern."""
    element, type_, mask = LLVM_TYPES[dtype], type_of(dtype, lanes), vector("i1", lanes)
    ints = DType.I32 if dtype is DType.F32 else DType.I64
    int_type = type_of(ints, lanes)
    zero = constant(dtype, 0.0, lanes)
    up = b.emit(f"fcmp olt {type_} {x}, {y}")
    positive = b.emit(f"fcmp ogt {type_} {x}, {zero}")
    away = b.emit(f"xor {mask} {up}, {positive}")  # the magnitude shrinks
    step = b.emit(
        f"select {mask} {away}, {int_type} {constant(ints, -1, lanes)}, "
        f"{int_type} {constant(ints, 1, lanes)}"
    )
    bits = b.emit(f"add {int_type} {b.emit(f'bitcast {type_} {x} to {int_type}')}, {step}")
    moved = b.emit(f"bitcast {int_type} {bits} to {type_}")
    least = b.emit(f"bitcast {int_type} {constant(ints, 1, lanes)} to {type_}")
    from_zero = b.intrinsic("copysign", element, lanes, least, y)
    is_zero = b.emit(f"fcmp oeq {type_} {x}, {zero}")
    moved = b.emit(f"select {mask} {is_zero}, {type_} {from_zero}, {type_} {moved}")
    equal = b.emit(f"fcmp oeq {type_} {x}, {y}")
    moved = b.emit(f"select {mask} {equal}, {type_} {y}, {type_} {moved}")
    nan = b.emit(f"fcmp uno {type_} {x}, {y}")
    both = b.emit(f"fadd {type_} {x}, {y}")
    return b.emit(f"select {mask} {nan}, {type_} {both}, {type_} {moved}")
