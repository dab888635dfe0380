"""What the f32 functions are judged by: float64 results, an error measure, and arguments to try."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

SPECIALS = np.array(
    [
        0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1e-45, -1e-45,
        1.1754942e-38, 1.17549435e-38, 1e-20, -1e-20, 3.4028235e38, -3.4028235e38, 16777216.0,
    ],
    dtype=np.float32,
)  # fmt: skip
_NUMPY = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2,
    "log10": np.log10, "log1p": np.log1p, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "sinh": np.sinh,
    "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "pow": np.power, "hypot": np.hypot, "sqrt": np.sqrt,
    "reciprocal": np.reciprocal,
}  # fmt: skip


def reference(name: str, *arrays: np.ndarray) -> np.ndarray:
    """The function in float64 (the C library's through numpy, else torch's)."""
    with np.errstate(all="ignore"):
        wide = [a.astype(np.float64) for a in arrays]
        if name in _NUMPY:
            return _NUMPY[name](*wide)
        function: Callable[..., torch.Tensor] = getattr(torch, name)
        return function(*map(torch.from_numpy, wide)).numpy()


def ulp_errors(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """|got - exact| in units of the f32 spacing at ``exact``; inf where one is nan or infinite and
    the other is not (an overflow counts as 2**128), and for a zero of the wrong sign."""
    with np.errstate(all="ignore"):
        value = got.astype(np.float64)
        value = np.where(np.isinf(value), np.copysign(2.0**128, value), value)
        limit = np.where(np.isinf(exact.astype(np.float32)), np.copysign(2.0**128, exact), exact)
        _, exponent = np.frexp(exact)
        spacing = np.ldexp(1.0, np.clip(exponent - 1, -126, 127) - 23)
        errors = np.abs(value - limit) / spacing
        errors = np.where(np.isnan(got) & np.isnan(exact), 0.0, errors)
        errors = np.where(np.isnan(errors), np.inf, errors)
        wrong_sign = (got == 0) & (exact == 0) & (np.signbit(got) != np.signbit(exact))
    return np.where(wrong_sign, np.inf, errors)


def sample(inputs: int, size: int = 1 << 19) -> list[np.ndarray]:
    """f32 arguments: random bit patterns, dense grids, every exponent, and special values (for two
    inputs every pair of them)."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size, dtype=np.uint64).astype(np.uint32).view(np.float32)
    reaches = (1.0, 4.0, 20.0, 110.0, 1000.0)
    grids = [rng.uniform(-reach, reach, size // 4).astype(np.float32) for reach in reaches]
    near_one = (1.0 + rng.normal(0, 0.1, size // 8)).astype(np.float32)
    exponents = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    first = np.concatenate([bits, *grids, near_one, exponents])
    if inputs == 1:
        return [np.concatenate([first, SPECIALS])]
    moderate = rng.lognormal(0, 2, size).astype(np.float32)
    others = (rng.standard_normal(size) * 8).astype(np.float32)
    pairs = np.repeat(SPECIALS, len(SPECIALS)), np.tile(SPECIALS, len(SPECIALS))
    return [
        np.concatenate([first, moderate, pairs[0]]),
        np.concatenate([rng.permutation(first), others, pairs[1]]),
    ]


def max_ulp(name: str, function: Callable[..., np.ndarray], arguments: list[np.ndarray]) -> float:
    """The greatest error of ``function`` over the arguments."""
    return float(ulp_errors(function(*arguments), reference(name, *arguments)).max())
