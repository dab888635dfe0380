"""Integer operations that need care: division, shifts and powers.

No lane may trap: a zero divisor is replaced before the division and reported, and the least integer
divided by -1 wraps. Out-of-range shift amounts behave as in torch.
"""

from __future__ import annotations

from lazyc.codegen.llvm.emitter import Emitter, Value, constant, type_of, vector
from lazyc.codegen.llvm.region import Frame, Region
from lazyc.ir.loops import ERROR_ZERO_DIVISION
from lazyc.ir.types import DType


def divide(frame: Frame, region: Region, a: Value, divisor: Value, lanes: int) -> tuple[str, str]:
    """Quotient (truncated) and remainder; both 0, and an error, where the divisor is 0."""
    b, dtype = frame.b, a.dtype
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    x, y = b.widen(a, lanes), b.widen(divisor, lanes)
    known = _known(divisor)
    if known is not None and known not in (0, -1):
        signed = "s" if dtype.is_signed else "u"
        quotient = b.emit(f"{signed}div {type_} {x}, {y}")
        return quotient, b.emit(f"sub {type_} {x}, {b.emit(f'mul {type_} {quotient}, {y}')}")
    zero = constant(dtype, 0, lanes)
    one = constant(dtype, 1, lanes)
    bad = b.emit(f"icmp eq {type_} {y}, {zero}")
    off = bad
    if region.active is not None and lanes == region.lanes:
        bad = b.emit(f"and {mask} {bad}, {region.active}")
    frame.report(bad, lanes, ERROR_ZERO_DIVISION)
    safe = b.emit(f"select {mask} {off}, {type_} {one}, {type_} {y}")
    quotient = _quotient(b, dtype, x, safe, lanes)
    product = b.emit(f"mul {type_} {quotient}, {safe}")
    rest = b.emit(f"sub {type_} {x}, {product}")
    return (
        b.emit(f"select {mask} {off}, {type_} {zero}, {type_} {quotient}"),
        b.emit(f"select {mask} {off}, {type_} {zero}, {type_} {rest}"),
    )


def _known(value: Value) -> int | None:
    """The value of a constant operand."""
    return int(value.text) if value.lanes == 1 and not value.text.startswith("%") else None


def _quotient(b: Emitter, dtype: DType, x: str, y: str, lanes: int) -> str:
    """Truncated quotient for y != 0; the least integer over -1 wraps."""
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    if dtype is not DType.I64:
        # CPUs divide vectors of doubles but not of integers. The result is exact: a quotient of
        # 32-bit integers that is not whole is at least 2**-31 away from the next whole number.
        wide = vector("double", lanes)
        convert, back = ("sitofp", "fptosi") if dtype.is_signed else ("uitofp", "fptoui")
        over = b.emit(f"{convert} {type_} {x} to {wide}")
        under = b.emit(f"{convert} {type_} {y} to {wide}")
        ratio = b.emit(f"fdiv {wide} {over}, {under}")
        if not dtype.is_signed:
            return b.emit(f"{back} {wide} {ratio} to {type_}")
        # Through i64, where -(least integer) fits and then wraps.
        middle = vector("i64" if dtype is DType.I32 else "i32", lanes)
        return b.emit(f"trunc {middle} {b.emit(f'{back} {wide} {ratio} to {middle}')} to {type_}")
    least = constant(dtype, -(1 << 63), lanes)
    minus = b.emit(f"icmp eq {type_} {y}, {constant(dtype, -1, lanes)}")
    edge = b.emit(f"and {mask} {minus}, {b.emit(f'icmp eq {type_} {x}, {least}')}")
    safe = b.emit(f"select {mask} {edge}, {type_} {constant(dtype, 1, lanes)}, {type_} {y}")
    return b.each_lane("sdiv", "i64", lanes, x, safe)


def floor_adjust(
    b: Emitter, dtype: DType, quotient: str, rest: str, y: str, lanes: int
) -> tuple[str, str]:
    """Truncated quotient and remainder as those of floor division."""
    if not dtype.is_signed:
        return quotient, rest
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    zero = constant(dtype, 0, lanes)
    uneven = b.emit(f"icmp ne {type_} {rest}, {zero}")
    differ = b.emit(f"icmp slt {type_} {b.emit(f'xor {type_} {rest}, {y}')}, {zero}")
    fix = b.emit(f"and {mask} {uneven}, {differ}")
    lower = b.emit(f"add {type_} {quotient}, {constant(dtype, -1, lanes)}")
    moved = b.emit(f"add {type_} {rest}, {y}")
    return (
        b.emit(f"select {mask} {fix}, {type_} {lower}, {type_} {quotient}"),
        b.emit(f"select {mask} {fix}, {type_} {moved}, {type_} {rest}"),
    )


def shift(b: Emitter, dtype: DType, left: bool, x: str, amount: str, lanes: int) -> str:
    """A shift as torch defines it: an amount outside the width shifts everything out."""
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    bits = dtype.itemsize * 8
    inside = b.emit(f"icmp ult {type_} {amount}, {constant(dtype, bits, lanes)}")
    last = constant(dtype, bits - 1, lanes)
    zero = constant(dtype, 0, lanes)
    if not left and dtype.is_signed:
        safe = b.emit(f"select {mask} {inside}, {type_} {amount}, {type_} {last}")
        return b.emit(f"ashr {type_} {x}, {safe}")
    safe = b.emit(f"select {mask} {inside}, {type_} {amount}, {type_} {zero}")
    shifted = b.emit(f"{'shl' if left else 'lshr'} {type_} {x}, {safe}")
    return b.emit(f"select {mask} {inside}, {type_} {shifted}, {type_} {zero}")


def power(b: Emitter, dtype: DType, x: str, exponent: str, lanes: int) -> str:
    """``x ** exponent`` wrapping; a negative exponent gives 0 except for x = 1 and -1, as in torch."""
    type_, mask = type_of(dtype, lanes), vector("i1", lanes)
    zero, one = constant(dtype, 0, lanes), constant(dtype, 1, lanes)
    left = exponent
    negative = ""
    if dtype.is_signed:
        negative = b.emit(f"icmp slt {type_} {exponent}, {zero}")
        left = b.emit(f"select {mask} {negative}, {type_} {zero}, {type_} {exponent}")
    slots = [b.alloca(type_) for _ in range(3)]
    for slot, start in zip(slots, (one, x, left), strict=True):
        b.void(f"store {type_} {start}, ptr {slot}")
    with b.repeat() as condition:  # square and multiply
        result, base, rest = (b.emit(f"load {type_}, ptr {slot}") for slot in slots)
        odd = b.emit(f"icmp ne {type_} {b.emit(f'and {type_} {rest}, {one}')}, {zero}")
        product = b.emit(f"mul {type_} {result}, {base}")
        result = b.emit(f"select {mask} {odd}, {type_} {product}, {type_} {result}")
        square = b.emit(f"mul {type_} {base}, {base}")
        rest = b.emit(f"lshr {type_} {rest}, {one}")
        for slot, new in zip(slots, (result, square, rest), strict=True):
            b.void(f"store {type_} {new}, ptr {slot}")
        condition.append(b.any_lane(b.emit(f"icmp ne {type_} {rest}, {zero}"), lanes))
    result = b.emit(f"load {type_}, ptr {slots[0]}")
    if not dtype.is_signed:
        return result
    minus = constant(dtype, -1, lanes)
    odd = b.emit(f"icmp ne {type_} {b.emit(f'and {type_} {exponent}, {one}')}, {zero}")
    alternating = b.emit(f"select {mask} {odd}, {type_} {minus}, {type_} {one}")
    is_minus = b.emit(f"icmp eq {type_} {x}, {minus}")
    inverse = b.emit(f"select {mask} {is_minus}, {type_} {alternating}, {type_} {zero}")
    is_one = b.emit(f"icmp eq {type_} {x}, {one}")
    inverse = b.emit(f"select {mask} {is_one}, {type_} {one}, {type_} {inverse}")
    return b.emit(f"select {mask} {negative}, {type_} {inverse}, {type_} {result}")
