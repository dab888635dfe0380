"""Every pointwise op of the table against eager, on every target, with the awkward values."""

from __future__ import annotations

import itertools

import pytest
import torch

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm import has_code
from lazyc.ir.loops import ERROR_ZERO_DIVISION
from lazyc.ir.ops import OPS, Trait
from lazyc.ir.types import DType, dtype_from_torch
from tests.codegen.harness import AnyTarget, kernel, pointwise, run

INTS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALL = (torch.bool, *INTS, *FLOATS)
_NAN, _INF = float("nan"), float("inf")
_SPECIAL = (
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -3.0, 7.25, -7.25, 100.0, 1e-3, 1e4, -1e4,
    8388609.0, -3e9, 1e30, 1e-40, _INF, -_INF, _NAN,
)  # fmt: skip

TABLE = [name for name, spec in OPS.items() if spec.has(Trait.POINTWISE)]
PLAIN = [n for n in TABLE if n not in ("where", "cast", "bitcast")]


def values(dtype: torch.dtype) -> torch.Tensor:
    """A few dozen values of a type, the extremes among them."""
    if dtype is torch.bool:
        return torch.tensor([False, True, True])
    if dtype.is_floating_point:
        return torch.tensor(_SPECIAL, dtype=torch.float64).to(dtype)
    info = torch.iinfo(dtype)
    small = [v for v in range(-9, 10) if v >= info.min]
    return torch.tensor(
        [*small, info.min, info.min + 1, info.max, info.max - 1, 63, 100], dtype=dtype
    )


def pairs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    grid = list(itertools.product(values(dtype).tolist(), repeat=2))
    left, right = zip(*grid, strict=True)
    return torch.tensor(left, dtype=dtype), torch.tensor(right, dtype=dtype)


def allowed(op: str) -> list[torch.dtype]:
    kind = OPS[op].dtypes
    return {
        "any": list(ALL),
        "number": [*INTS, *FLOATS],
        "float": list(FLOATS),
        "integral": [torch.bool, *INTS],
    }[kind]


# Ops whose result may differ from eager's in the last bits.
_TOLERANCE = {torch.float32: 4e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 1e-3}
_EXACT = {
    "neg", "abs", "sign", "floor", "ceil", "round", "trunc", "add", "sub", "mul", "div",
    "rem", "copysign", "nextafter", "maximum", "minimum", "fmax", "fmin", "trunc_div",
}  # fmt: skip


def check(op: str, got: torch.Tensor, want: torch.Tensor) -> None:
    if not want.dtype.is_floating_point:
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        return
    tolerance = 0.0 if op in _EXACT and want.dtype.itemsize > 2 else _TOLERANCE[want.dtype]
    tiny = torch.finfo(want.dtype).tiny
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tiny * 2, equal_nan=True)
    if op in _EXACT or op in ("mod", "floor_div"):
        numbers = ~want.isnan() & ~((want == 0) & (op in ("maximum", "minimum", "fmax", "fmin")))
        assert torch.equal(got.signbit()[numbers], want.signbit()[numbers])


HALVES = (torch.float16, torch.bfloat16)
HALF_OPS = ("neg", "exp", "add", "div", "maximum", "eq")  # the others are the f32 code
CASES = [
    (op, dtype) for op in PLAIN for dtype in allowed(op) if dtype not in HALVES or op in HALF_OPS
]


def eager(op: str, inputs: list[torch.Tensor]) -> torch.Tensor:
    spec = OPS[op]
    return spec.evaluate(inputs, spec.attrs(), {})


@pytest.mark.parametrize(("op", "dtype"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_op(op: str, dtype: torch.dtype, any_target: AnyTarget) -> None:
    if op in ("shl", "shr") and dtype is torch.bool:
        with pytest.raises((RuntimeError, NotImplementedError)):  # eager has no such op
            eager(op, [torch.ones(1).bool()] * 2)
        return
    inputs = list(pairs(dtype)) if OPS[op].arity == 2 else [values(dtype).repeat(3)]
    divides = op in ("floor_div", "trunc_div", "rem", "mod") and not dtype.is_floating_point
    if divides:
        keep = inputs[1] != 0
        if dtype.is_signed:  # eager itself stops with SIGFPE there
            keep &= (inputs[1] != -1) | (inputs[0] != torch.iinfo(dtype).min)
        inputs = [x[keep] for x in inputs]
    elif op in ("rem", "mod", "floor_div"):  # eager gives nan for a denormal divisor
        keep = ~((inputs[1] != 0) & (inputs[1].abs() < torch.finfo(dtype).tiny))
        inputs = [x[keep] for x in inputs]
    want = eager(op, inputs)
    nest = pointwise(op, [x.dtype for x in inputs], want.dtype, len(want))
    got = torch.empty_like(want)
    assert run(nest, any_target, *inputs, got) == 0
    check(op, got, want)


@pytest.mark.parametrize("dtype", INTS, ids=str)
@pytest.mark.parametrize("op", ["floor_div", "trunc_div", "rem", "mod"])
def test_integer_division_never_traps(op: str, dtype: torch.dtype, any_target: AnyTarget) -> None:
    least = torch.iinfo(dtype).min
    a = torch.tensor([7, least, -7 if dtype.is_signed else 9, 5], dtype=dtype).repeat(9)[:33]
    b = torch.tensor([0, -1 if dtype.is_signed else 1, 0, 3], dtype=dtype).repeat(9)[:33]
    nest = pointwise(op, [dtype] * 2, dtype, len(a))
    got = torch.empty_like(a)
    assert run(nest, any_target, a, b, got) == ERROR_ZERO_DIVISION
    quotient = 1 if op.endswith("div") else 2
    want = [0, least if op.endswith("div") else 0, 0, quotient]
    assert got[:4].tolist() == want
    # The lanes behind the end read zeros: they must not be reported.
    ones = torch.ones_like(a)
    assert run(nest, any_target, a, ones, got) == 0


@pytest.mark.parametrize("target_dtype", ALL, ids=str)
@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_cast(dtype: torch.dtype, target_dtype: torch.dtype, any_target: AnyTarget) -> None:
    x = values(dtype)
    if dtype.is_floating_point:
        more = torch.tensor(
            [255.7, 256.0, 300.5, -129.0, 70000.0, 2147483648.0, 5e18, 1e19, 65519.0]
        )
        halfway = torch.tensor([1.00390625, 1.01171875, 6.1e-5, 5.9e-8, 2.9e-8, 65520.0])
        x = torch.cat([x, more.to(dtype), halfway.to(dtype), torch.randn(40).to(dtype)])
    x = x.repeat(2)
    want = x.to(target_dtype)
    got = torch.empty_like(want)
    run(pointwise("cast", [dtype], target_dtype, len(x)), any_target, x, got)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    if want.dtype.is_floating_point:
        numbers = ~want.isnan()
        assert torch.equal(got.signbit()[numbers], want.signbit()[numbers])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_value_survives(dtype: torch.dtype, any_target: AnyTarget) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    x = bits.view(dtype)
    wide = torch.empty(len(x), dtype=torch.float32)
    run(pointwise("cast", [dtype], torch.float32, len(x)), any_target, x, wide)
    torch.testing.assert_close(wide, x.float(), rtol=0, atol=0, equal_nan=True)
    back = torch.empty_like(x)
    run(pointwise("cast", [torch.float32], dtype, len(x)), any_target, wide, back)
    numbers = ~x.isnan()
    assert torch.equal(back.view(torch.int16)[numbers], bits[numbers])
    assert back[~numbers].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_rounding(dtype: torch.dtype, any_target: AnyTarget) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (20000,), generator=generator).to(torch.int32)
    x = bits.view(torch.float32)
    x = torch.cat([x, torch.randn(20000, generator=generator) * 2.0**-15, x.abs().clamp(0, 1e5)])
    got = torch.empty(len(x), dtype=dtype)
    run(pointwise("cast", [torch.float32], dtype, len(x)), any_target, x, got)
    torch.testing.assert_close(got, x.to(dtype), rtol=0, atol=0, equal_nan=True)


BITCASTS = [
    (a, b) for a in ALL for b in ALL
    if a.itemsize == b.itemsize and torch.bool not in (a, b)
]  # fmt: skip


@pytest.mark.parametrize(("source", "to"), BITCASTS, ids=str)
def test_bitcast(source: torch.dtype, to: torch.dtype, any_target: AnyTarget) -> None:
    x = values(source)
    want = x.view(to)
    got = torch.empty_like(want)
    run(pointwise("bitcast", [source], to, len(x)), any_target, x, got)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[to.itemsize]
    assert torch.equal(got.view(integers), want.view(integers))


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_where(dtype: torch.dtype, any_target: AnyTarget) -> None:
    x = values(dtype).repeat(20)[:53]
    y = x.flip(0)
    condition = torch.arange(53) % 3 == 0
    got = torch.empty_like(x)
    run(pointwise("where", [torch.bool, dtype, dtype], dtype, 53), any_target, condition, x, y, got)
    torch.testing.assert_close(got, torch.where(condition, x, y), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", ["rem", "mod", "floor_div"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_float_remainder_is_exact(op: str, dtype: torch.dtype, any_target: AnyTarget) -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.randint(-60, 60, (4000,), generator=generator)
    a = torch.randn(4000, generator=generator).to(dtype) * 2.0**scale
    b = torch.randn(4000, generator=generator).to(dtype)
    whole = torch.randint(1, 50, (4000,), generator=generator)
    a = torch.cat([a, b * whole, torch.nextafter(b * whole, b)])
    b = b.repeat(3)
    want = eager(op, [a, b])
    got = torch.empty_like(want)
    run(pointwise(op, [dtype] * 2, dtype, len(a)), any_target, a, b, got)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_the_table_is_complete() -> None:
    for op in TABLE:
        for dtype in [torch.bool] if op == "where" else allowed(op):
            kind = dtype_from_torch(dtype)
            assert kind is not None and has_code(op, kind.compute), (op, dtype)


def test_an_op_without_code_is_named(any_target: AnyTarget) -> None:
    with pytest.raises(CodegenError, match=r"frobnicate.*f32"):
        kernel(pointwise("frobnicate", [torch.float32], torch.float32, 8), any_target)
    assert not has_code("frobnicate", DType.F32)
