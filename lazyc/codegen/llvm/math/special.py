"""erf, erfc, lgamma and the algebraic functions in f32."""

from __future__ import annotations

import math

from lazyc.codegen.llvm.math import coefficients as C
from lazyc.codegen.llvm.math.builder import Builder, Value, single
from lazyc.codegen.llvm.math.double import exp_d
from lazyc.codegen.llvm.math.exponential import odd_from_pieces, reduced_exp
from lazyc.codegen.llvm.math.externals import external

ERF_LIMIT = single(3.93)


def erf(b: Builder, x: Value) -> Value:
    if b.has_avx512:
        return odd_from_pieces(b, x, ERF_LIMIT, C.ERF_STEP, C.ERF_OFFSET, C.ERF_PIECES)
    magnitude = b.abs(x)
    near = b.fma(x, b.horner(x * x, C.ERF), x)
    t = b.minimum(magnitude, 4.0)
    far = 1.0 - reduced_exp(b, -b.horner(t, C.ERF_LOG))
    return b.select(magnitude < 1.0, near, b.copysign(far, x))


def erfc(b: Builder, x: Value) -> Value:
    """In double: exp(-x**2) times a polynomial in (x-4)/(x+4), over 1+2x; 2 - erfc(-x) below 0."""
    magnitude = b.minimum(b.widen(b.abs(x)), 10.1)
    q = (magnitude - 4.0) / (magnitude + 4.0)
    decay = exp_d(b, -(magnitude * magnitude))
    y = decay * b.horner(q, C.ERFC_D) / b.fma(magnitude, 2.0, 1.0)
    return b.narrow(b.select(b.widen(x) < 0.0, 2.0 - y, y))


def lgamma(b: Builder, x: Value) -> Value:
    """In double: the C library's f32 function is off by more than 4 ULP near its zeros."""
    halves = [external(half.builder, "lgamma", half) for half in b.halves(b.widen(x))]
    return b.narrow(b.joined(halves))


def sqrt(b: Builder, x: Value) -> Value:
    return b.sqrt(x)


def reciprocal(b: Builder, x: Value) -> Value:
    return 1.0 / x


def rsqrt(b: Builder, x: Value) -> Value:
    """With AVX-512 from the 14-bit estimate and one Newton step."""
    if not b.has_avx512 or x.kind != "float":
        return 1.0 / b.sqrt(x)
    y = b.call("llvm.x86.avx512.rsqrt14.ps.512", "float", x, x, "i16 -1")
    error = b.fma(-(x * y), y, 1.0)
    better = b.fma(y * 0.5, error, y)
    return b.select(b.is_nan(error), y, better)  # 0 and inf: the estimate is the result


def hypot(b: Builder, x: Value, y: Value) -> Value:
    """In double, where no float's square overflows; inf wins over nan, as in C."""
    wide_x, wide_y = b.widen(x), b.widen(y)
    result = b.narrow(b.sqrt(b.fma(wide_x, wide_x, wide_y * wide_y)))
    infinite = b.abs(x).equals(math.inf) | b.abs(y).equals(math.inf)
    return b.select(infinite, math.inf, result)
