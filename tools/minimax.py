"""Generates lazyc/codegen/llvm/math/coefficients.py: minimax polynomials rounded to their type.

    python tools/minimax.py > lazyc/codegen/llvm/math/coefficients.py

Lawson's iteratively reweighted least squares (C. L. Lawson, 1961) for ``max |w(x) (f(x) - p(x))|``
over an interval, where ``p = sum c_i x**e_i``; f is sampled in 40-digit arithmetic. Coefficients are
rounded one at a time, lowest power first, and the rest is fitted again each time, so that later
ones make up for the rounding of earlier ones. (Remez exchange would need powers that have no common
zero, which is lost as soon as the first coefficient is fixed.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import mpmath
import numpy as np
from mpmath import mpf

mpmath.mp.dps = 40
Real: TypeAlias = Any  # an mpmath.mpf: mpmath has no type stubs
Function: TypeAlias = Callable[[Real], Real]
GRID = 300
ROUNDS = 60


def single(value: Real) -> float:
    """The nearest float32."""
    return float(np.float32(float(value)))


def exactly(value: Real) -> float:
    """The nearest float64."""
    return float(value)


def lawson(basis: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The c that makes ``max |values - basis @ c|`` least; the grid runs along the first axis."""
    weights = np.full(len(values), 1.0)
    best, least = np.zeros(basis.shape[1]), float(np.max(np.abs(values)))
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        coefs = np.linalg.lstsq(basis * root[:, None], values * root, rcond=None)[0]
        errors = np.abs(values - basis @ coefs)
        if errors.max() < least:
            best, least = coefs, float(errors.max())
        weights = weights * errors
        weights /= weights.max()
    return best


def fit(
    f: Function,
    powers: Sequence[int],
    low: float,
    high: float,
    weight: Function | None = None,
    fixed: Sequence[tuple[int, float]] = (),
    rounding: Callable[[Real], float] = single,
) -> tuple[tuple[float, ...], float]:
    """Rounded coefficients (those of ``fixed`` (power, value) not included) and the error.

    ``f`` and ``weight`` are only evaluated inside (low, high). The default weight is 1/f: relative
    error.
    """
    middle, half = mpf(low + high) / 2, mpf(high - low) / 2
    grid = [middle - half * mpmath.cos(mpmath.pi * (k + 0.5) / GRID) for k in range(GRID)]
    rest = [f(x) - sum((mpf(c) * x**e for e, c in fixed), mpf(0)) for x in grid]
    weights = [weight(x) if weight else 1 / f(x) for x in grid]
    scale = max(abs(low), abs(high))
    coefs: list[float] = []
    for k, power in enumerate(powers):
        basis = [
            [w * (x / scale) ** e for e in powers[k:]] for x, w in zip(grid, weights, strict=True)
        ]
        target = [w * r for w, r in zip(weights, rest, strict=True)]
        solution = lawson(np.array(basis, dtype=float), np.array(target, dtype=float))
        coefs.append(rounding(mpf(float(solution[0])) / mpf(scale) ** power))
        rest = [r - mpf(coefs[-1]) * x**power for r, x in zip(rest, grid, strict=True)]
    return tuple(coefs), float(max(abs(w * r) for w, r in zip(weights, rest, strict=True)))


def pieces(
    f: Function, count: int, step: float, offset: float, degree: int
) -> tuple[list[tuple[float, ...]], float]:
    """``f(x) - offset`` as polynomials in ``x - k*step`` for k in range(count): table[power][k],
    and the worst error relative to f.

    ``f`` must be even, so that piece 0 covers [-step/2, step/2].
    """
    rows, worst = [], 0.0
    for k in range(count):
        centre = mpf(k) * mpf(step)
        coefs, error = fit(
            lambda d, c=centre: f(c + d) - offset, range(degree + 1), -step / 2, step / 2,
            lambda d, c=centre: 1 / f(c + d),
        )  # fmt: skip
        rows.append(coefs)
        worst = max(worst, error)
    return list(zip(*rows, strict=True)), worst


def odd_ratio(f: Function, at_zero: Real) -> Function:
    """``f(x) / x`` for an odd f, with its limit at 0."""
    return lambda x: f(x) / x if abs(x) > mpf("1e-15") else at_zero


def in_square(f: Function) -> Function:
    """``f(sqrt(u))`` as a function of u > 0."""
    return lambda u: f(mpmath.sqrt(u))


def log1p_rest(f: Real) -> Real:
    """R in ``log(1+f) = f - f**2/2 + f**3 R(f)``."""
    if abs(f) < mpf("1e-8"):
        return mpf(1) / 3 - f / 4
    return (mpmath.log1p(f) - f + f * f / 2) / f**3


def scaled_erfc(q: Real) -> Real:
    """``(1 + 2x) exp(x**2) erfc(x)`` at ``x = 4 (1+q) / (1-q)``."""
    x = 4 * (1 + q) / (1 - q)
    return (1 + 2 * x) * mpmath.exp(x * x) * mpmath.erfc(x)


def log_of_erfc(x: Real) -> Real:
    return -mpmath.log(mpmath.erfc(x))


HALF_LN2 = 0.34658
PIO4_SQUARED = 0.6169


def polynomials() -> list[tuple[str, str, tuple[tuple[float, ...], float]]]:
    """(name, meaning, (coefficients, error)) of every plain polynomial."""
    exp, log, sqrt = mpmath.exp, mpmath.log, mpmath.sqrt
    one = ((0, 1.0),)

    def u_rest(f: Function) -> Function:  # (f(x)/x - 1) / x**2 in u = x**2
        return in_square(lambda x: (f(x) / x - 1) / x**2)

    def u_weight(f: Function) -> Function:
        return in_square(lambda x: x**2 * x / f(x))

    def cos_rest(u: Real) -> Real:
        return (mpmath.cos(sqrt(u)) - 1 + u / 2) / u**2

    def odd(f: Function, terms: int, high: float) -> tuple[tuple[float, ...], float]:
        """P with ``f(x) = x + x**3 P(x**2)``."""
        return fit(u_rest(f), range(terms), 1e-9, high * high, u_weight(f))

    return [
        ("EXP", "e**r = 1 + r + r**2 P(r), |r| <= ln2/2",
         fit(exp, range(2, 7), -HALF_LN2, HALF_LN2, fixed=((0, 1.0), (1, 1.0)))),
        ("EXP_NEAR", "the same, |r| <= ln2/32",
         fit(exp, range(2, 4), -HALF_LN2 / 16, HALF_LN2 / 16, fixed=((0, 1.0), (1, 1.0)))),
        ("EXP2", "2**f = 1 + f P(f), |f| <= 1/2",
         fit(lambda f: mpf(2) ** f, range(1, 7), -0.5001, 0.5001, fixed=one)),
        ("EXP2_NEAR", "the same, |f| <= 1/32",
         fit(lambda f: mpf(2) ** f, range(1, 4), -0.03126, 0.03126, fixed=one)),
        ("EXPM1", "(e**r - 1) / r = 1 + r P(r), |r| <= ln2/2",
         fit(lambda r: mpmath.expm1(r) / r, range(1, 7), -HALF_LN2, HALF_LN2, fixed=one)),
        ("LOG", "log(1+f) = f - f**2/2 + f**3 P(f), -1/3 <= f <= 1/3",
         fit(log1p_rest, range(8), -0.3334, 0.3334, lambda f: f**2 * f / mpmath.log1p(f))),
        ("SIN", "sin(x) = x + x**3 P(x**2), |x| <= pi/4",
         fit(u_rest(mpmath.sin), range(3), 1e-9, PIO4_SQUARED, u_weight(mpmath.sin))),
        ("COS", "cos(x) = 1 - x**2/2 + x**4 P(x**2), |x| <= pi/4",
         fit(cos_rest, range(3), 1e-9, PIO4_SQUARED, lambda u: u * u / mpmath.cos(sqrt(u)))),
        ("TANH", "tanh(x) = x + x**3 P(x**2), |x| <= 0.6", odd(mpmath.tanh, 5, 0.6)),
        ("SINH", "sinh(x) = x + x**3 P(x**2), |x| <= 1", odd(mpmath.sinh, 4, 1.0)),
        ("ASIN", "asin(x) = x + x**3 P(x**2), |x| <= 1/2", odd(mpmath.asin, 5, 0.5)),
        ("ATAN", "atan(x) = x + x**3 P(x**2), |x| <= 1", odd(mpmath.atan, 9, 1.0)),
        ("ERF", "erf(x) = x + x P(x**2), |x| <= 1",
         fit(in_square(lambda x: mpmath.erf(x) / x - 1), range(7), 1e-9, 1.0,
             in_square(lambda x: x / mpmath.erf(x)))),
        ("ERF_LOG", "1 - erf(x) = exp(-P(x)), 0.9 <= x <= 4",
         fit(log_of_erfc, range(8), 0.9, 4.0, lambda x: mpmath.erfc(x) / mpmath.erf(x))),
        ("LOG2_D", "log2((1+s)/(1-s)) = s P(s**2), |s| <= 0.1716 (double)",
         fit(in_square(lambda s: log((1 + s) / (1 - s)) / log(2) / s), range(7), 1e-12, 0.02945,
             rounding=exactly)),
        ("EXP2_D", "2**f = P(f), |f| <= 1/2 (double)",
         fit(lambda f: mpf(2) ** f, range(8), -0.5001, 0.5001, rounding=exactly)),
        ("ERFC_D", "(1+2x) exp(x**2) erfc(x) = P((x-4)/(x+4)), 0 <= x <= 10.1 (double)",
         fit(scaled_erfc, range(13), -1.0, 0.4327, rounding=exactly)),
    ]  # fmt: skip


def constants() -> list[tuple[str, str, list[float]]]:
    """Constants split so that a product with a small integer is exact in the first parts."""

    def split(value: Real, *bits: int) -> list[float]:
        parts = []
        for count in bits:
            scale = mpf(2) ** (count - 1 - mpmath.floor(mpmath.log(abs(value), 2)))
            parts.append(float(mpmath.nint(value * scale) / scale))
            value -= mpf(parts[-1])
        return parts

    ln2, pio2 = mpmath.log(2), mpmath.pi / 2
    return [
        ("LN2", "ln 2 in 15 + 24 bits", split(ln2, 15, 24)),
        ("LOG10_2", "log10 2 in 15 + 24 bits", split(mpmath.log10(2), 15, 24)),
        ("LOG2_E", "log2 e in 24 + 24 bits", split(1 / ln2, 24, 24)),
        ("LOG10_E", "log10 e in 24 + 24 bits", split(1 / mpmath.log(10), 24, 24)),
        ("PI_2", "pi/2 in 24 + 24 + 24 bits", split(pio2, 24, 24, 24)),
        ("PI_2_D", "pi/2 in 33 + 53 bits", split(pio2, 33, 53)),
    ]


def rows(values: Sequence[float], indent: str) -> str:
    """Numbers, four a line."""
    lines = (values[k : k + 4] for k in range(0, len(values), 4))
    return "".join(f"{indent}{', '.join(map(repr, line))},\n" for line in lines)


def print_tuple(name: str, comment: str, values: Sequence[float]) -> None:
    print(f"# {comment}\n{name} = (\n{rows(values, '    ')})")


def print_pieces(
    name: str, f: Function, at_zero: Real, step: float, offset: float, degree: int
) -> None:
    """``f(x)/x - offset`` for an odd f in 32 pieces around multiples of ``step``."""
    table, error = pieces(odd_ratio(f, at_zero), 32, step, offset, degree)
    print(f"# {name.lower()}(x)/x - OFFSET around k*STEP: [power][k]; relative error {error:.1e}")
    print(f"{name}_STEP = {step!r}")
    print(f"{name}_OFFSET = {offset!r}")
    print(f"{name}_PIECES = (")
    for row in table:
        print(f"    (\n{rows(row, '        ')}    ),")
    print(")")


def main() -> None:
    print('"""Coefficients, made by tools/minimax.py (see there for the method); do not edit."""')
    print("\nfrom __future__ import annotations\n\n# fmt: off")
    for name, meaning, (coefs, error) in polynomials():
        print_tuple(name, f"{meaning}; relative error {error:.1e}", coefs)
    for name, meaning, values in constants():
        print_tuple(name, meaning, values)
    print_tuple("EXP2_TABLE", "2**(j/16)", [single(mpf(2) ** (mpf(j) / 16)) for j in range(16)])
    print_pieces("ERF", mpmath.erf, 2 / mpmath.sqrt(mpmath.pi), 1 / 8, 1 / 4, 4)
    print_pieces("TANH", mpmath.tanh, mpf(1), 19 / 64, 1 / 8, 5)


if __name__ == "__main__":
    main()
