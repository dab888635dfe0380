"""exp, exp2 and log2 in double, good to about 1e-10: the inside of f32 functions that are rare.

Computing in double and rounding once gives half an ULP without compensated arithmetic, also where
there is no FMA instruction. The inputs are floats or products of floats, never denormal doubles.
"""

from __future__ import annotations

import math

from lazyc.codegen.llvm.math import coefficients as C
from lazyc.codegen.llvm.math.builder import Builder, Value

ROUND_D = 1.5 * 2.0**52
LOG2_E_D = 1 / math.log(2.0)


def exp2_d(b: Builder, t: Value) -> Value:
    """2**t of a double; t is cut to [-1000, 1000]. nan stays."""
    t = b.maximum(b.minimum(t, 1000.0), -1000.0)
    shifted = t + ROUND_D
    f = t - (shifted - ROUND_D)
    power = b.from_bits((b.bits(shifted) + 1023) << 52)
    return b.horner(f, C.EXP2_D) * power


def exp_d(b: Builder, x: Value) -> Value:
    """e**x of a double, |x| <= 200 accurate; nan stays."""
    return exp2_d(b, x * LOG2_E_D)


def log2_d(b: Builder, x: Value) -> Value:
    """log2 of a double; -inf at 0, nan below 0 and for nan, inf at inf."""
    offset = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2): mantissas from there to sqrt(2)
    bits = b.bits(x)
    exponent = (bits - offset) >> 52
    mantissa = b.from_bits(bits - (exponent << 52))
    s = (mantissa - 1.0) / (mantissa + 1.0)
    # i64 -> double by the same shift as in exp2_d (AVX2 and SSE2 have no such instruction).
    n = b.from_bits(exponent + 0x4338000000000000) - ROUND_D
    result = b.fma(s, b.horner(s * s, C.LOG2_D), n)
    outside = b.select(x.equals(0.0), b.const(-math.inf, "double"), math.nan)
    result = b.select(x > 0.0, result, outside)
    return b.select(x.equals(math.inf), math.inf, result)


def log_d(b: Builder, x: Value) -> Value:
    return log2_d(b, x) * math.log(2.0)
