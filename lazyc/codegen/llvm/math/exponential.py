"""exp and what is made from it, in f32: exp2, expm1, sigmoid, tanh, sinh, cosh.

Argument reduction is Cody and Waite's (Software Manual for the Elementary Functions, 1980): with
n = round(x / ln 2), r = x - n ln 2 in two steps, e**x = 2**n e**r. With AVX-512 the reduction is to
sixteenths: 2**(j/16) comes from a table in a register, so that a polynomial of degree 3 is enough,
and ``vscalef`` multiplies by 2**n with correct rounding to denormals and infinity. Elsewhere
2**n is put together from two factors, which rounds once as well.
"""

from __future__ import annotations

from lazyc.codegen.llvm.math import coefficients as C
from lazyc.codegen.llvm.math.builder import Builder, Value, single
from lazyc.codegen.llvm.math.double import exp_d

LOG2_E = C.LOG2_E[0]
EXP_LOW, EXP_HIGH = -104.0, 89.0  # e**x is 0 below and inf above, rounded to f32
EXP2_LOW = -151.0
ROUND = 1.5 * 2.0**23  # x + ROUND - ROUND rounds to an integer
ROUND_BITS = 0x4B400000  # its bits as an integer
ROUND_16 = ROUND / 16  # the same to a multiple of 1/16


TANH_LIMIT = single(9.2)


def scale(b: Builder, x: Value, exponent: Value, where: Value | None = None) -> Value:
    """``x * 2**floor(exponent)`` with AVX-512; 0 in lanes where the mask ``where`` is false.

    The CPU takes over a hundred cycles for a result that underflows, but not in a lane that is off.
    """
    mask = "i16 -1" if where is None else b.mask_bits(where)
    zero = b.const(0.0, "float")
    return b.call(
        "llvm.x86.avx512.mask.scalef.ps.512", "float", x, exponent, zero, mask, "i32 4"
    )  # fmt: skip


def scale_by_bits(b: Builder, x: Value, n: Value) -> Value:
    """``x * 2**n`` for an i32 n, -252 <= n <= 254, rounded once: x must be normal."""
    half = n >> 1
    first = b.from_bits((half + 127) << 23)
    second = b.from_bits((n - half + 127) << 23)
    return x * first * second


def table_lookup(b: Builder, values: tuple[float, ...], index: Value) -> Value:
    """``values[index % len(values)]`` for 16 or 32 values, with AVX-512."""
    if len(values) == 16:
        table = b.table(values, "float")
        return b.call("llvm.x86.avx512.permvar.sf.512", "float", table, index)
    low, high = b.table(values[:16], "float"), b.table(values[16:], "float")
    return b.call("llvm.x86.avx512.vpermi2var.ps.512", "float", low, index, high)


def power_of_e(b: Builder, r: Value) -> Value:
    """e**r for |r| <= ln2 / 2."""
    return b.fma(r * r, b.estrin(r, C.EXP), r) + 1.0


def reduced_exp(b: Builder, x: Value, where: Value | None = None) -> Value:
    """e**x for EXP_LOW <= x <= EXP_HIGH (or nan); 0 where the mask ``where`` is false, AVX-512 only."""
    if b.has_avx512:
        shifted = b.fma(x, LOG2_E, ROUND_16)
        n = shifted - ROUND_16
        r = b.fma(n, -C.LN2[1], b.fma(n, -C.LN2[0], x))
        power = table_lookup(b, C.EXP2_TABLE, b.bits(shifted))
        rest = b.horner(r, (1.0, *C.EXP_NEAR))
        return scale(b, b.fma(power * r, rest, power), n, where)
    shifted = b.fma(x, LOG2_E, ROUND)
    n = shifted - ROUND
    r = b.fma(n, -C.LN2[1], b.fma(n, -C.LN2[0], x))
    return scale_by_bits(b, power_of_e(b, r), b.bits(shifted) - ROUND_BITS)


def exp(b: Builder, x: Value) -> Value:
    x = b.minimum(x, EXP_HIGH)
    if b.has_avx512:  # attention masks make e**-inf a common one
        return reduced_exp(b, x, ~(x < EXP_LOW))
    return reduced_exp(b, b.maximum(x, EXP_LOW))


def exp2(b: Builder, x: Value) -> Value:
    x = b.minimum(x, 129.0)
    if b.has_avx512:
        shifted = x + ROUND_16
        n = shifted - ROUND_16
        f = x - n
        power = table_lookup(b, C.EXP2_TABLE, b.bits(shifted))
        value = b.fma(power * f, b.horner(f, C.EXP2_NEAR), power)
        return scale(b, value, n, ~(x < EXP2_LOW))
    x = b.maximum(x, EXP2_LOW)
    shifted = x + ROUND
    f = x - (shifted - ROUND)
    return scale_by_bits(b, b.horner(f, (1.0, *C.EXP2)), b.bits(shifted) - ROUND_BITS)


def expm1(b: Builder, x: Value) -> Value:
    """2**n ((e**r - 1) + (1 - 2**-n)), with half of 2**n so that n = 128 does not overflow."""
    y = b.maximum(b.minimum(x, EXP_HIGH), -18.0)
    shifted = b.fma(y, LOG2_E, ROUND)
    n = shifted - ROUND
    r = b.fma(n, -C.LN2[1], b.fma(n, -C.LN2[0], y))
    near = r * b.horner(r, (1.0, *C.EXPM1))
    half = b.from_bits((b.bits(shifted) - (ROUND_BITS - 126)) << 23)
    far = b.fma(near, half, half - 0.5)
    result = far + far
    return b.select(b.abs(x) < 2.0**-25, x, result)  # keeps -0.0 and denormals


def reciprocal_estimate(b: Builder, x: Value) -> Value:
    """1/x to 14 bits, with AVX-512."""
    return b.call("llvm.x86.avx512.rcp14.ps.512", "float", x, x, "i16 -1")


def sigmoid(b: Builder, x: Value) -> Value:
    """``1 / (1 + e**-x)``, denormal results included.

    With AVX-512: s / (s + m), where e**-x = m/s and s is a power of two. The reciprocal y of s + m
    is an estimate and one Newton step on ``1 - y (s + m)``, which does without a division and
    without the rounding error of ``s + m``; s*y is exact unless it is denormal.
    """
    if not b.has_avx512:
        return _sigmoid_by_division(b, x)
    x = b.maximum(b.minimum(x, 30.0), EXP_LOW)
    shifted = b.fma(x, LOG2_E, ROUND)
    n = shifted - ROUND
    r = b.fma(n, C.LN2[1], b.fma(n, C.LN2[0], -x))
    m = power_of_e(b, r)
    s = scale(b, b.const(1.0, "float"), n)
    y = reciprocal_estimate(b, s + m)
    error = b.fma(-y, s, b.fma(-y, m, 1.0))
    q = s * y
    return b.fma(q, error, q)


def _sigmoid_by_division(b: Builder, x: Value) -> Value:
    """With z = e**-|x|: 1 / (1+z) or z / (1+z), and a correction for the rounding of 1+z."""
    z = reduced_exp(b, b.maximum(-b.abs(x), EXP_LOW))
    numerator = b.select(x < 0.0, z, 1.0)
    denominator = z + 1.0
    lost = z - (denominator - 1.0)
    q = numerator / denominator
    return q - (q * lost) / denominator


def odd_from_pieces(
    b: Builder,
    x: Value,
    limit: float,
    step: float,
    offset: float,
    table: tuple[tuple[float, ...], ...],
) -> Value:
    """``x (offset + P_k(|x| - k*step))``, k = round(|x| / step): 32 polynomials in registers.

    |x| is cut to ``limit``, where the result is exactly 1. ``offset`` is a power of two near the
    middle of f(x)/x: it makes P small, and so the rounding errors inside P. AVX-512 only.
    """
    magnitude = b.minimum(b.abs(x), limit)
    if step == 2.0**-3:
        shifted = magnitude + ROUND * step
        d = magnitude - (shifted - ROUND * step)
    else:
        shifted = b.fma(magnitude, single(1 / step), ROUND)
        d = b.fma(shifted - ROUND, -step, magnitude)
    index = b.bits(shifted)
    ratio = b.horner(d, [table_lookup(b, row, index) for row in table])
    return b.copysign(b.fma(magnitude, ratio, magnitude * offset), x)


def tanh(b: Builder, x: Value) -> Value:
    if b.has_avx512:
        return odd_from_pieces(b, x, TANH_LIMIT, C.TANH_STEP, C.TANH_OFFSET, C.TANH_PIECES)
    u = x * x
    near = b.fma(x * u, b.horner(u, C.TANH), x)
    magnitude = b.abs(x)
    e = reduced_exp(b, b.minimum(magnitude + magnitude, 20.0))
    far = 1.0 - b.const(2.0, "float") / (e + 1.0)
    return b.copysign(b.select(magnitude < 0.59375, near, far), x)


def sinh(b: Builder, x: Value) -> Value:
    u = x * x
    near = b.fma(x * u, b.horner(u, C.SINH), x)
    e = exp_d(b, b.widen(x))
    far = b.narrow((e - 1.0 / e) * 0.5)
    return b.select(b.abs(x) < 1.0, near, far)


def cosh(b: Builder, x: Value) -> Value:
    e = exp_d(b, b.widen(x))
    return b.narrow((e + 1.0 / e) * 0.5)
