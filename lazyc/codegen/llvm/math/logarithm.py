"""Logarithms, powers and inverse hyperbolic functions in f32.

x = 2**k (1+f) with 2/3 <= 1+f < 4/3, then log(x) = k ln 2 + log(1+f) with a polynomial for
log(1+f) and the small terms added first. pow and the inverse hyperbolic functions work in double.
"""

from __future__ import annotations

import math

from lazyc.codegen.llvm.math import coefficients as C
from lazyc.codegen.llvm.math.builder import Builder, Value
from lazyc.codegen.llvm.math.double import exp2_d, log2_d, log_d

TWO_THIRDS = 0x3F2AAAAB  # bits of 2/3
LEAST_NORMAL = 2.0**-126


def exponent_of(b: Builder, bits: Value) -> Value:
    """k with 2/3 <= x 2**-k < 4/3, from the bits of a positive normal x."""
    return (bits - TWO_THIRDS) >> 23


def split(b: Builder, x: Value) -> tuple[Value, Value]:
    """(k as float, f) with x = 2**k (1+f), for 0 < x < inf, denormals included."""
    small = x < LEAST_NORMAL
    bits = b.bits(b.select(small, x * 2.0**23, x))
    k = exponent_of(b, bits)
    f = b.from_bits(bits - (k << 23)) - 1.0
    exponent = b.convert("sitofp", k, "float")
    return b.select(small, exponent - 23.0, exponent), f


def curve(b: Builder, f: Value) -> Value:
    """log(1+f) - f."""
    u = f * f
    return b.fma(u * f, b.horner(f, C.LOG), u * -0.5)


def with_ends(b: Builder, x: Value, result: Value, pole: float = 0.0) -> Value:
    """-inf at the pole, nan below it and for nan, inf at inf."""
    outside = b.select(x.equals(pole), b.const(-math.inf, "float"), math.nan)
    result = b.select(x > pole, result, outside)
    return b.select(x.equals(math.inf), math.inf, result)


def combine(b: Builder, k: Value, f: Value) -> Value:
    """k ln 2 + log(1+f)."""
    tail = b.fma(k, C.LN2[1], curve(b, f))
    return b.fma(k, C.LN2[0], f + tail)


def log(b: Builder, x: Value) -> Value:
    k, f = split(b, x)
    return with_ends(b, x, combine(b, k, f))


def log1p(b: Builder, x: Value) -> Value:
    """(1+x) 2**-k - 1 = x 2**-k + (2**-k - 1), so that no bit of a small x is lost."""
    k = exponent_of(b, b.bits(x + 1.0))
    # 2**-k is put together as 2**(2-k) / 4, for k = 128.
    power = b.from_bits((129 - k) << 23) * 0.25
    f = b.fma(x, power, power - 1.0)
    result = combine(b, b.convert("sitofp", k, "float"), f)
    result = with_ends(b, x, result, pole=-1.0)
    return b.select(b.abs(x) < 2.0**-25, x, result)  # keeps -0.0 and denormals


def _other_base(b: Builder, x: Value, unit: tuple[float, ...], log_e: tuple[float, ...]) -> Value:
    """log(x) / log(base): ``unit`` is log_base(2) and ``log_e`` log_base(e), in two parts each."""
    k, f = split(b, x)
    tail = b.fma(f, log_e[1], curve(b, f) * log_e[0])
    if len(unit) == 1:  # base 2: k is exact
        return with_ends(b, x, k + b.fma(f, log_e[0], tail))
    tail = b.fma(k, unit[1], tail)
    return with_ends(b, x, b.fma(k, unit[0], b.fma(f, log_e[0], tail)))


def log2(b: Builder, x: Value) -> Value:
    return _other_base(b, x, (1.0,), C.LOG2_E)


def log10(b: Builder, x: Value) -> Value:
    return _other_base(b, x, C.LOG10_2, C.LOG10_E)


def pow(b: Builder, x: Value, y: Value) -> Value:
    """|x|**y = 2**(y log2|x|) in double, then the special cases of C's pow (IEEE 754 pow)."""
    magnitude = b.abs(x)
    is_one = magnitude.equals(1.0)
    t = b.widen(y) * log2_d(b, b.widen(magnitude))
    t = b.select(is_one, b.const(0.0, "double"), t)  # (-1)**inf
    result = b.narrow(exp2_d(b, t))
    # |y| + 2**23 has y's integer part in its low bits.
    size = b.abs(y)
    small = size < 2.0**23
    shifted = size + 2.0**23
    is_integer = b.select(small, shifted - 2.0**23, size).equals(size)
    is_odd = b.bits(b.select(small, shifted, size)) << 31
    negative_odd = b.bits(x) & b.select(size < 2.0**24, is_odd, b.const(0, "i32"))
    # (-0.0)**y and (-inf)**y are no errors for a fractional y.
    undefined = (x < 0.0) & ~is_integer & (x > -math.inf) & (size < math.inf)
    negative_odd = b.select(is_integer, negative_odd, b.const(0, "i32"))
    result = b.from_bits(b.bits(result) | (negative_odd & -(2**31)))
    result = b.select(undefined | b.is_nan(x) | b.is_nan(y), math.nan, result)
    return b.select(y.equals(0.0) | x.equals(1.0), 1.0, result)


def asinh(b: Builder, x: Value) -> Value:
    magnitude = b.abs(x)
    wide = b.widen(magnitude)
    far = b.narrow(log_d(b, wide + b.sqrt(b.fma(wide, wide, 1.0))))
    return b.select(magnitude < 2.0**-13, x, b.copysign(far, x))


def acosh(b: Builder, x: Value) -> Value:
    """x*x - 1 is exact in double. nan below 1."""
    wide = b.widen(x)
    result = b.narrow(log_d(b, wide + b.sqrt(b.fma(wide, wide, -1.0))))
    return b.select(x < 1.0, math.nan, result)


def atanh(b: Builder, x: Value) -> Value:
    magnitude = b.abs(x)
    wide = b.widen(magnitude)
    far = b.narrow(log_d(b, (wide + 1.0) / (1.0 - wide)) * 0.5)
    return b.select(magnitude < 2.0**-13, x, b.copysign(far, x))
