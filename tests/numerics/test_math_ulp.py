"""Error bounds and special values of the vector math functions, on every target of this machine."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm.math import BOUNDS, arity, emit, resolve
from lazyc.codegen.llvm.math.harness import ArrayFunction, array_function
from lazyc.codegen.llvm.math.reference import SPECIALS, reference, sample, ulp_errors
from lazyc.codegen.target import Target
from lazyc.ir.types import DType

INF, NAN = math.inf, math.nan
LEAST = 2.0**-149  # the least denormal


@cache
def compiled(name: str, target: Target, dtype: DType = DType.F32, lanes: int = 0) -> ArrayFunction:
    return array_function(name, target, dtype, lanes or None)


@cache
def arguments(inputs: int) -> tuple[np.ndarray, ...]:
    return tuple(sample(inputs))


@cache
def expected(name: str) -> np.ndarray:
    return reference(name, *arguments(arity(name)))


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def assert_bound(name: str, target: Target, *arrays: np.ndarray) -> None:
    got = compiled(name, target)(*arrays)
    errors = ulp_errors(got, reference(name, *arrays))
    worst = int(errors.argmax())
    at = [float(a[worst]) for a in arrays]
    assert errors[worst] <= BOUNDS[name], f"{errors[worst]:.2f} ULP at {at}: {got[worst]!r}"


@pytest.mark.parametrize("name", BOUNDS)
def test_error_bound_over_all_floats(name: str, target: Target) -> None:
    got = compiled(name, target)(*arguments(arity(name)))
    errors = ulp_errors(got, expected(name))
    worst = int(errors.argmax())
    at = [float(a[worst]) for a in arguments(arity(name))]
    assert errors[worst] <= BOUNDS[name], f"{errors[worst]:.2f} ULP at {at}: {got[worst]!r}"


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("exp", -104.0, -86.0),
        ("exp", 88.0, 89.0),
        ("exp2", -150.0, -125.0),
        ("expm1", 88.0, 89.0),
        ("sigmoid", -104.0, -86.0),
        ("sinh", 88.5, 89.5),
        ("erfc", 9.0, 10.2),
        ("log", 0.99, 1.01),
        ("log2", 0.99, 1.01),
        ("log10", 0.99, 1.01),
        ("log1p", -1.0, -0.99),
        ("acosh", 1.0, 1.001),
        ("atanh", 0.99, 1.0),
        ("asin", 0.99, 1.0),
        ("acos", 0.99, 1.0),
        ("sin", 60000.0, 70000.0),
        ("cos", 60000.0, 70000.0),
        ("tan", 60000.0, 70000.0),
        ("lgamma", 0.9, 2.1),
        ("lgamma", -3.3, -2.1),
    ],
)
def test_error_bound_where_it_is_hard(name: str, low: float, high: float, target: Target) -> None:
    """Denormal results, overflow, poles, zeros, and the border to the C library's sine."""
    assert_bound(name, target, np.linspace(low, high, 1 << 16, dtype=np.float32))


@pytest.mark.parametrize("name", ["log", "log2", "log10", "sqrt", "rsqrt", "sin", "tanh", "erf",
                                  "log1p", "expm1", "asinh", "atanh", "sinh", "asin"])  # fmt: skip
def test_denormal_arguments(name: str, target: Target) -> None:
    bits = np.concatenate([np.arange(1, 4096), np.arange(4096, 1 << 23, 997)]).astype(np.uint32)
    assert_bound(name, target, bits.view(np.float32))


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_multiples_of_half_pi(name: str, target: Target) -> None:
    """Near its zeros a result is small: every bit of the reduced argument counts."""
    multiples = np.arange(1, 45000) * (np.pi / 2)
    near = multiples.astype(np.float32)
    assert_bound(name, target, near)
    assert_bound(name, target, np.nextafter(near, np.float32(INF)))
    powers = np.exp2(np.arange(16, 128)).astype(np.float32) * np.float32(1.2345)
    assert_bound(name, target, np.concatenate([powers, -powers]))


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid"])
def test_results_stay_in_range(name: str, target: Target) -> None:
    """A tanh above 1 would make 1 - tanh**2 negative."""
    x = np.concatenate([np.linspace(0, 20, 1 << 20), np.geomspace(1e-6, 1e30, 1 << 16)])
    y = compiled(name, target)(x.astype(np.float32))
    assert y.max() == 1.0
    assert compiled(name, target)(-x.astype(np.float32)).min() >= (0 if name == "sigmoid" else -1)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        (
            "exp",
            [(0, 1), (-0.0, 1), (INF, INF), (-INF, 0), (89, INF), (-104, 0), (88, 1.6516363e38)],
        ),
        (
            "exp2",
            [(0, 1), (10, 1024), (-149, LEAST), (-151, 0), (128, INF), (127, 2.0**127), (-INF, 0)],
        ),
        (
            "expm1",
            [(0, 0), (-0.0, -0.0), (LEAST, LEAST), (-INF, -1), (-30, -1), (INF, INF), (89, INF)],
        ),
        (
            "log",
            [
                (0, -INF),
                (-0.0, -INF),
                (1, 0),
                (-1, NAN),
                (INF, INF),
                (-INF, NAN),
                (LEAST, -103.27893),
            ],
        ),
        (
            "log2",
            [(0, -INF), (1, 0), (8, 3), (LEAST, -149), (2.0**127, 127), (INF, INF), (-LEAST, NAN)],
        ),
        ("log10", [(0, -INF), (1, 0), (10, 1), (-1, NAN), (INF, INF)]),
        ("log1p", [(0, 0), (-0.0, -0.0), (-1, -INF), (-2, NAN), (INF, INF), (-LEAST, -LEAST)]),
        ("sigmoid", [(0, 0.5), (INF, 1), (-INF, 0), (100, 1), (-104.5, 0)]),
        ("tanh", [(0, 0), (-0.0, -0.0), (INF, 1), (-INF, -1), (50, 1), (LEAST, LEAST)]),
        ("erf", [(0, 0), (-0.0, -0.0), (INF, 1), (-INF, -1), (5, 1), (-5, -1)]),
        ("erfc", [(0, 1), (INF, 0), (-INF, 2), (11, 0), (-6, 2)]),
        ("sin", [(0, 0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (-LEAST, -LEAST)]),
        ("cos", [(0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN)]),
        ("tan", [(0, 0), (-0.0, -0.0), (INF, NAN)]),
        (
            "asin",
            [
                (0, 0),
                (-0.0, -0.0),
                (1, math.pi / 2),
                (-1, -math.pi / 2),
                (1.0000001, NAN),
                (-INF, NAN),
            ],
        ),
        ("acos", [(1, 0), (-1, math.pi), (0, math.pi / 2), (2, NAN)]),
        ("atan", [(0, 0), (-0.0, -0.0), (INF, math.pi / 2), (-INF, -math.pi / 2)]),
        ("sinh", [(0, 0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (90, INF)]),
        ("cosh", [(0, 1), (INF, INF), (-INF, INF), (-90, INF)]),
        ("asinh", [(0, 0), (-0.0, -0.0), (INF, INF), (-INF, -INF)]),
        ("acosh", [(1, 0), (INF, INF), (0.5, NAN), (-5, NAN), (-INF, NAN)]),
        ("atanh", [(0, 0), (-0.0, -0.0), (1, INF), (-1, -INF), (2, NAN), (-INF, NAN)]),
        ("sqrt", [(0, 0), (-0.0, -0.0), (4, 2), (-1, NAN), (INF, INF)]),
        ("rsqrt", [(0, INF), (-0.0, -INF), (INF, 0), (4, 0.5), (-1, NAN), (-INF, NAN)]),
        ("reciprocal", [(0, INF), (-0.0, -INF), (INF, 0), (-INF, -0.0), (4, 0.25)]),
        ("lgamma", [(1, 0), (2, 0), (INF, INF), (-INF, INF), (0, INF), (-3, INF)]),
    ],
)
def test_special_values(name: str, table: list[tuple[float, float]], target: Target) -> None:
    arguments, results = f32(*(x for x, _ in table), NAN), f32(*(y for _, y in table), NAN)
    got = compiled(name, target)(arguments)
    for x, y, want in zip(arguments, got, results, strict=True):
        same = np.isnan(want) if np.isnan(y) else y == want and np.signbit(y) == np.signbit(want)
        assert same, f"{name}({x!r}) = {y!r}, not {want!r}"


@pytest.mark.parametrize("name", [n for n in BOUNDS if arity(n) == 2])
def test_special_pairs(name: str, target: Target) -> None:
    """Every pair of special values, as the C library has them (IEEE 754, section 9.2.1)."""
    x, y = np.repeat(SPECIALS, len(SPECIALS)), np.tile(SPECIALS, len(SPECIALS))
    got = compiled(name, target)(x, y)
    function = {"pow": np.power, "atan2": np.arctan2, "hypot": np.hypot}[name]
    with np.errstate(all="ignore"):
        want = function(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    wrong = ~(np.isclose(got, want, rtol=3e-7, atol=0, equal_nan=True))
    wrong |= (np.signbit(got) != np.signbit(want)) & ~np.isnan(want)
    assert not wrong.any(), list(zip(x[wrong], y[wrong], got[wrong], want[wrong], strict=True))[:5]


def test_power_of_integers(target: Target) -> None:
    """Integer powers of integers are exact, signs included."""
    x, y = np.meshgrid(np.arange(-12, 13), np.arange(0, 6))
    x, y = x.ravel(), y.ravel()
    got = compiled("pow", target)(x.astype(np.float32), y.astype(np.float32))
    assert np.array_equal(got, (x.astype(np.int64) ** y).astype(np.float32))


@pytest.mark.parametrize("lanes", [1, 2, 3, 24, 32])
@pytest.mark.parametrize("name", ["exp", "tanh", "sin", "pow", "lgamma"])
def test_other_lane_counts_give_the_same_bits(name: str, lanes: int, target: Target) -> None:
    """So that a result does not depend on where in a tensor it is, nor on its neighbours."""
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.1, 4, 96).astype(np.float32) for _ in range(arity(name))]
    arrays[0][::7] *= np.float32(1e6)  # beyond the vector reduction of sin
    assert np.array_equal(
        compiled(name, target, lanes=lanes)(*arrays), compiled(name, target)(*arrays)
    )


@pytest.mark.parametrize("name", BOUNDS)
def test_double_precision(name: str, target: Target) -> None:
    """f64 functions: SLEEF's 1.0 ULP (1.5 for erfc), the C library's on the baseline."""
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-3, 3, 4096) for _ in range(arity(name))]
    got = compiled(name, target, DType.F64)(*arrays)
    want = reference(name, *arrays)
    np.testing.assert_allclose(got, want, rtol=2e-15, atol=3e-16)


def test_text_does_not_depend_on_earlier_calls(target: Target) -> None:
    """The text is part of a cache key."""
    first = emit("sin", DType.F32, 3, target)
    emit("pow", DType.F32, 16, target)
    assert emit("sin", DType.F32, 3, target) == first


def test_errors(target: Target) -> None:
    with pytest.raises(CodegenError, match="no vector function 'gamma' for f32"):
        emit("gamma", DType.F32, 1, target)
    with pytest.raises(CodegenError, match="no vector function 'exp' for f16"):
        emit("exp", DType.F16, 1, target)
    with pytest.raises(CodegenError, match="'no_such_function'"):
        resolve("no_such_function")
