"""sin, cos, tan and their inverses in f32.

Up to 2**16 the argument is reduced by multiples of pi/2 (Cody and Waite): in three steps where
there is FMA, else in double. Larger arguments go to the C library, lane by lane.
"""

from __future__ import annotations

import math

from lazyc.codegen.llvm.math import coefficients as C
from lazyc.codegen.llvm.math.builder import Builder, Value, single
from lazyc.codegen.llvm.math.exponential import ROUND

REDUCIBLE = 2.0**16
TWO_OVER_PI = single(2 / math.pi)
PI, PI_2 = single(math.pi), single(math.pi / 2)
PI_2_LOW = C.PI_2[1]  # pi/2 - PI_2


def quadrant(b: Builder, x: Value) -> tuple[Value, Value]:
    """(r, bits) with x = n pi/2 + r, |r| <= pi/4; the low bits of ``bits`` are those of n."""
    shifted = b.fma(x, TWO_OVER_PI, ROUND)
    n = shifted - ROUND
    if b.has_fma:
        r = x
        for part in C.PI_2:
            r = b.fma(n, -part, r)
    else:
        wide = b.widen(n)
        r = b.narrow(b.widen(x) - wide * C.PI_2_D[0] - wide * C.PI_2_D[1])
    return r, b.bits(shifted)


def sine_and_cosine(b: Builder, r: Value) -> tuple[Value, Value]:
    """For |r| <= pi/4."""
    u = r * r
    sine = b.fma(r * u, b.horner(u, C.SIN), r)
    cosine = b.fma(u, b.horner(u, (-0.5, *C.COS)), 1.0)
    return sine, cosine


def is_odd(b: Builder, bits: Value) -> Value:
    return (bits << 31) < 0


def beyond(b: Builder, x: Value, usual: Value, function: str) -> Value:
    """The C library's result for large arguments; a lane's result does not depend on its
    neighbours. nan and inf need no care: r = nan."""
    large = (b.abs(x) > REDUCIBLE) & (b.abs(x) < math.inf)

    def rare() -> Value:
        return b.select(large, b.each_lane(function, x, rare=True), usual)

    return b.unless_any(large, usual, rare)


def sin(b: Builder, x: Value) -> Value:
    r, bits = quadrant(b, x)
    sine, cosine = sine_and_cosine(b, r)
    sign = (bits << 30) & -(2**31)
    value = b.from_bits(b.bits(b.select(is_odd(b, bits), cosine, sine)) ^ sign)
    value = b.select(x.equals(0.0), x, value)
    return beyond(b, x, value, "sinf")


def cos(b: Builder, x: Value) -> Value:
    r, bits = quadrant(b, x)
    sine, cosine = sine_and_cosine(b, r)
    sign = ((bits + 1) << 30) & -(2**31)
    value = b.from_bits(b.bits(b.select(is_odd(b, bits), sine, cosine)) ^ sign)
    return beyond(b, x, value, "cosf")


def tan(b: Builder, x: Value) -> Value:
    r, bits = quadrant(b, x)
    sine, cosine = sine_and_cosine(b, r)
    odd = is_odd(b, bits)
    value = b.select(odd, -cosine, sine) / b.select(odd, sine, cosine)
    value = b.select(x.equals(0.0), x, value)
    return beyond(b, x, value, "tanf")


def arc_sine(b: Builder, x: Value) -> Value:
    """For |x| <= 1/2."""
    u = x * x
    return b.fma(x * u, b.horner(u, C.ASIN), x)


def half_angle(b: Builder, magnitude: Value) -> Value:
    """sqrt((1-|x|)/2): asin(x) = pi/2 - 2 asin(this)."""
    return b.sqrt(b.fma(magnitude, -0.5, 0.5))


def asin(b: Builder, x: Value) -> Value:
    magnitude = b.abs(x)
    outer = magnitude > 0.5
    y = arc_sine(b, b.select(outer, half_angle(b, magnitude), magnitude))
    far = b.fma(y, -2.0, PI_2_LOW) + PI_2
    return b.copysign(b.select(outer, far, y), x)


def acos(b: Builder, x: Value) -> Value:
    magnitude = b.abs(x)
    outer = magnitude > 0.5
    y = arc_sine(b, b.select(outer, half_angle(b, magnitude), x))
    near = PI_2 - (y - PI_2_LOW)
    twice = y + y
    return b.select(outer, b.select(x > 0.0, twice, PI - (twice - 2 * PI_2_LOW)), near)


def arc_tangent(b: Builder, t: Value) -> Value:
    """For 0 <= t <= 1."""
    u = t * t
    return b.fma(t * u, b.horner(u, C.ATAN), t)


def atan(b: Builder, x: Value) -> Value:
    magnitude = b.abs(x)
    outer = magnitude > 1.0
    y = arc_tangent(b, b.select(outer, 1.0 / magnitude, magnitude))
    return b.copysign(b.select(outer, PI_2 - (y - PI_2_LOW), y), x)


def atan2(b: Builder, y: Value, x: Value) -> Value:
    """The angle of the point (x, y): atan of the smaller over the larger coordinate, then the
    octant. Zeros and infinities as in C's atan2."""
    height, width = b.abs(y), b.abs(x)
    steep = height > width
    small, large = b.select(steep, width, height), b.select(steep, height, width)
    both_infinite = small.equals(math.inf)
    t = b.select(large.equals(0.0), 0.0, small / large)
    t = b.select(both_infinite, 1.0, t)
    angle = arc_tangent(b, t)
    angle = b.select(steep, PI_2 - (angle - PI_2_LOW), angle)
    behind = b.bits(x) < 0
    angle = b.select(behind, PI - (angle - 2 * PI_2_LOW), angle)
    angle = b.copysign(angle, y)
    return b.select(b.is_nan(x) | b.is_nan(y), math.nan, angle)
