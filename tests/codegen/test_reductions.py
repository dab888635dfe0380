"""Reductions, scans, multi-stage nests and random numbers."""

from __future__ import annotations

import pytest
import sympy
import torch

from lazyc.ir.attrs import RandomAttrs
from lazyc.ir.index import Axis, Index, axis_index
from lazyc.ir.loops import (
    BufferParam,
    Compute,
    Const,
    IndexValue,
    Load,
    LoopNest,
    Random,
    Reduce,
    Scan,
)
from lazyc.ir.ops import OPS
from lazyc.ir.types import Dim, DType
from tests.codegen.harness import AnyTarget, Body, kernel, row_major, run

F32, I64, BOOL, BF16 = DType.F32, DType.I64, DType.BOOL, DType.BF16
N, M = (sympy.Symbol(name, integer=True, positive=True) for name in ("n0", "n1"))
KINDS = ("sum", "prod", "max", "min", "argmax", "argmin")


def reduce_nest(
    kind: str, dtype: DType, rows: Dim, columns: Dim, keep_rows: bool, vectorize: str,
    symbols: tuple[sympy.Symbol, ...] = (),
) -> LoopNest:  # fmt: skip
    """Reduces one axis of [rows, columns]."""
    i, j = Axis("i", rows), Axis("j", columns)
    kept, lost = (i, j) if keep_rows else (j, i)
    body = Body()
    value = body.add(Load, dtype, 0, row_major((i, j)))
    position = body.add(IndexValue, axis_index(lost)) if kind.startswith("arg") else None
    result = I64 if position is not None else dtype
    total = body.add(Reduce, result, kind, value, position)
    stages = [body.stage(lost)]
    body.store(1, axis_index(kept), total)
    stages.append(body.stage())
    buffers = (BufferParam(dtype, "in", rows * columns), BufferParam(result, "out", kept.size))
    return LoopNest((kept,), tuple(stages), buffers, symbols, vectorize)  # type: ignore[arg-type]


def expected(kind: str, x: torch.Tensor, axis: int) -> torch.Tensor:
    name = kind if kind.startswith("arg") else f"reduce_{kind}"
    spec = OPS[name]
    return spec.evaluate([x], spec.attrs((axis,)), {})


def sample(dtype: DType, rows: int, columns: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    if dtype is BOOL:
        return torch.rand(rows, columns, generator=generator) < 0.1
    if dtype.is_float:
        x = torch.randn(rows, columns, generator=generator)
        return (1 + x / 50 if kind == "prod" else x.round(decimals=1)).to(dtype.torch)
    low = -100 if dtype.is_signed else 0
    return torch.randint(low, 100, (rows, columns), generator=generator).to(dtype.torch)


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F32, DType.F64, DType.I32, I64, DType.U8, BOOL], ids=str)
def test_reduce(dtype: DType, kind: str, vectorize: str, any_target: AnyTarget) -> None:
    if dtype is BOOL and kind not in ("max", "min"):
        return  # the op table has no such reduction
    for rows, columns in [(5, 37), (3, 200), (67, 1)] if dtype is F32 else [(5, 37)]:
        x = sample(dtype, rows, columns, kind)
        for keep_rows in (True, False):
            want = expected(kind, x, 1 if keep_rows else 0)
            got = torch.empty_like(want)
            run(reduce_nest(kind, dtype, rows, columns, keep_rows, vectorize), any_target, x, got)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_reduce_symbolic(kind: str, vectorize: str, any_target: AnyTarget) -> None:
    nest = reduce_nest(kind, F32, N, M, True, vectorize, (N, M))
    for rows, columns in [(1, 1), (3, 70), (70, 3), (2, 3000)]:
        x = sample(F32, rows, columns, kind)
        want = expected(kind, x, 1)
        for pieces in (1, 3):
            got = torch.empty_like(want)
            kernel(nest, any_target)(x, got, sizes=(rows, columns), pieces=pieces)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize("kind", ["max", "min", "argmax", "argmin"])
def test_extremes_with_nan_and_ties(kind: str, vectorize: str, any_target: AnyTarget) -> None:
    nan, inf = float("nan"), float("inf")
    for width in (6, 150):
        rows = [[1.0] * width, [-inf] * width, [inf] * width, list(map(float, range(width)))]
        for places in ((0,), (width - 1,), (3, 4), (2, width - 2)):
            row = [float(k % 5) for k in range(width)]
            for place in places:
                row[place] = nan
            rows.append(row)
        x = torch.tensor(rows)
        want = expected(kind, x, 1)
        got = torch.empty_like(want)
        run(reduce_nest(kind, F32, len(rows), width, True, vectorize), any_target, x, got)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_argmax_of_several_axes_takes_the_first(any_target: AnyTarget) -> None:
    """Position along two axes, and one that does not grow along the loops."""
    i, j, k = Axis("i", 4), Axis("j", 6), Axis("k", 21)
    x = torch.randint(0, 3, (4, 6, 21)).float()
    for reverse in (False, True):
        body = Body()
        value = body.add(Load, F32, 0, row_major((i, j, k)))
        flat = row_major((j, k))
        position = body.add(IndexValue, flat * -1 + 125 if reverse else flat)
        best = body.add(Reduce, I64, "argmax", value, position)
        stages = [body.stage(j, k)]
        body.store(1, axis_index(i), best)
        nest = LoopNest(
            (i,), (*stages, body.stage()), (BufferParam(F32, "in", 504), BufferParam(I64, "out", 4)),
            (), "inner",
        )  # fmt: skip
        got = torch.empty(4, dtype=torch.int64)
        run(nest, any_target, x, got)
        want = x.view(4, -1).argmax(1)
        assert torch.equal(got, 125 - want if reverse else want)


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", [F32, I64, DType.I8, BOOL], ids=str)
def test_empty_reduction_yields_the_identity(
    dtype: DType, kind: str, vectorize: str, any_target: AnyTarget
) -> None:
    if dtype is BOOL and kind in ("sum", "prod"):
        return
    got = torch.empty(5, dtype=dtype.torch)
    run(
        reduce_nest(kind, dtype, 5, 0, True, vectorize),
        any_target,
        torch.empty(0, dtype=dtype.torch),
        got,
    )
    if kind in ("sum", "prod"):
        want = 0.0 if kind == "sum" else 1.0
    elif dtype is BOOL:
        want = kind == "min"
    elif dtype.is_float:
        want = float("-inf") if kind == "max" else float("inf")
    else:
        info = torch.iinfo(dtype.torch)
        want = info.min if kind == "max" else info.max
    assert got.tolist() == [want] * 5


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
def test_long_float_sums_stay_accurate(vectorize: str, any_target: AnyTarget) -> None:
    """A plain running sum of 400000 tenths is off by about 1e-3; runs and totals by about 1e-6."""
    length = 20_000 if any_target == "triton" else 400_000  # its interpreter is slow
    x = torch.full((2, length), 0.1)
    exact = x.double().sum(1)
    for symbols in ((), (N, M)):
        rows, columns = symbols or (2, length)
        nest = reduce_nest("sum", F32, rows, columns, True, vectorize, symbols)
        got = torch.empty(2)
        kernel(nest, any_target)(x, got, sizes=(2, length) if symbols else ())
        assert ((got.double() - exact).abs() / exact).max() < 2e-6
    nest = reduce_nest("sum", F32, length, 2, False, vectorize)
    run(nest, any_target, x.t().contiguous(), got)
    assert ((got.double() - exact).abs() / exact).max() < 2e-6


def softmax_nest(rows: Dim, columns: Dim, vectorize: str, symbols: tuple = ()) -> LoopNest:
    i, j = Axis("i", rows), Axis("j", columns)
    at = row_major((i, j))
    body = Body()
    highest = body.add(Reduce, F32, "max", body.add(Load, F32, 0, at))
    stages = [body.stage(j)]

    def exponential() -> int:
        centred = body.add(Compute, F32, "sub", (body.add(Load, F32, 0, at), highest))
        return body.add(Compute, F32, "exp", (centred,))

    total = body.add(Reduce, F32, "sum", exponential())
    stages.append(body.stage(j))
    body.store(1, at, body.add(Compute, F32, "div", (exponential(), total)))
    stages.append(body.stage(j))
    size = rows * columns
    buffers = (BufferParam(F32, "in", size), BufferParam(F32, "out", size))
    return LoopNest((i,), tuple(stages), buffers, symbols, vectorize)  # type: ignore[arg-type]


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
def test_softmax(vectorize: str, any_target: AnyTarget) -> None:
    for rows, columns in [(5, 7), (33, 64), (3, 1000)]:
        x = torch.randn(rows, columns) * 5
        want = torch.softmax(x, 1)
        for symbols in ((), (N, M)):
            shape = symbols or (rows, columns)
            got = torch.empty_like(x)
            nest = softmax_nest(*shape, vectorize, symbols)
            kernel(nest, any_target)(x, got, sizes=(rows, columns) if symbols else (), pieces=2)
            torch.testing.assert_close(got, want)


def layernorm_nest(rows: int, columns: int, vectorize: str, scratch: bool) -> LoopNest:
    """bf16 layernorm with weight and bias; ``scratch`` keeps the centred row in scratch memory."""
    i, j = Axis("i", rows), Axis("j", columns)
    at, column = row_major((i, j)), axis_index(j)
    body = Body()

    def load(buffer: int, index: Index) -> int:
        return body.add(Compute, F32, "cast", (body.add(Load, BF16, buffer, index),))

    total = body.add(Reduce, F32, "sum", load(0, at))
    stages = [body.stage(j)]
    count = body.add(Const, F32, float(columns))
    mean = body.add(Compute, F32, "div", (total, count))
    stages.append(body.stage())
    centred = body.add(Compute, F32, "sub", (load(0, at), mean))
    if scratch:
        body.store(4, column, centred)
    squares = body.add(Reduce, F32, "sum", body.add(Compute, F32, "mul", (centred, centred)))
    stages.append(body.stage(j))
    epsilon = body.add(Const, F32, 1e-5)
    variance = body.add(Compute, F32, "div", (squares, count))
    scale = body.add(Compute, F32, "rsqrt", (body.add(Compute, F32, "add", (variance, epsilon)),))
    stages.append(body.stage())
    if scratch:
        again = body.add(Load, F32, 4, column)
    else:
        again = body.add(Compute, F32, "sub", (load(0, at), mean))
    normal = body.add(Compute, F32, "mul", (again, scale))
    weighted = body.add(Compute, F32, "mul", (normal, load(1, column)))
    result = body.add(Compute, F32, "add", (weighted, load(2, column)))
    body.store(3, at, body.add(Compute, BF16, "cast", (result,)))
    stages.append(body.stage(j))
    buffers = [
        BufferParam(BF16, "in", rows * columns), BufferParam(BF16, "in", columns),
        BufferParam(BF16, "in", columns), BufferParam(BF16, "out", rows * columns),
    ]  # fmt: skip
    if scratch:
        buffers.append(BufferParam(F32, "scratch", columns))
    return LoopNest((i,), tuple(stages), tuple(buffers), (), vectorize)  # type: ignore[arg-type]


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
def test_layernorm(vectorize: str, scratch: bool, any_target: AnyTarget) -> None:
    for rows, columns in [(3, 5), (37, 48), (2, 333)]:
        x, w, b = (torch.randn(*s).bfloat16() for s in ((rows, columns), (columns,), (columns,)))
        got = torch.empty_like(x)
        run(layernorm_nest(rows, columns, vectorize, scratch), any_target, x, w, b, got)
        want = torch.nn.functional.layer_norm(x.float(), (columns,), w.float(), b.float())
        torch.testing.assert_close(got.float(), want, rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize("kind", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", [F32, I64, BOOL], ids=str)
def test_scan(dtype: DType, kind: str, vectorize: str, any_target: AnyTarget) -> None:
    if dtype is BOOL and kind in ("sum", "prod"):
        return
    rows, columns = 21, 30
    i, j = Axis("i", rows), Axis("j", columns)
    body = Body()
    value = body.add(Load, dtype, 0, row_major((i, j)))
    running = body.add(Scan, dtype, kind, value)
    body.store(1, row_major((i, j)), running)
    size = rows * columns
    nest = LoopNest(
        (i,), (body.stage(j),), (BufferParam(dtype, "in", size), BufferParam(dtype, "out", size)), (),
        vectorize,  # type: ignore[arg-type]
    )  # fmt: skip
    x = sample(dtype, rows, columns, kind)
    if dtype is F32:
        x[3, 7] = float("nan")
    got = torch.empty_like(x)
    run(nest, any_target, x, got)
    spec = OPS[f"scan_{kind}"]
    torch.testing.assert_close(got, spec.evaluate([x], spec.attrs(1), {}), equal_nan=True)


def test_in_place(any_target: AnyTarget) -> None:
    """One buffer read and written: x = x * 2 + sum(x)."""
    i, j = Axis("i", 9), Axis("j", 70)
    at = row_major((i, j))
    body = Body()
    total = body.add(Reduce, F32, "sum", body.add(Load, F32, 0, at))
    stages = [body.stage(j)]
    two = body.add(Const, F32, 2.0)
    double = body.add(Compute, F32, "mul", (body.add(Load, F32, 0, at), two))
    body.store(0, at, body.add(Compute, F32, "add", (double, total)))
    stages.append(body.stage(j))
    for vectorize in ("outer", "inner", "none"):
        nest = LoopNest((i,), tuple(stages), (BufferParam(F32, "inout", 630),), (), vectorize)
        x = torch.randn(9, 70)
        want = x * 2 + x.sum(1, keepdim=True)
        run(nest, any_target, x)
        torch.testing.assert_close(x, want)


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("bits", I64), ("uniform", F32), ("uniform", DType.F64), ("normal", F32), ("normal", BF16)],
    ids=str,
)
def test_random(kind: str, dtype: DType, vectorize: str, any_target: AnyTarget) -> None:
    size, offset = 101, (1 << 32) - 50  # the counter crosses 32 bits
    axis = Axis("i", size)
    body = Body()
    seed = body.add(Load, I64, 0, Index(0))
    body.store(1, axis_index(axis), body.add(Random, dtype, kind, seed, axis_index(axis) + offset))
    inner = vectorize == "inner"
    nest = LoopNest(
        () if inner else (axis,), (body.stage(*((axis,) if inner else ())),),
        (BufferParam(I64, "in", 1), BufferParam(dtype, "out", size)), (), vectorize,
    )  # fmt: skip
    seed_value = torch.tensor([-1234567890123456789])
    got = torch.empty(size, dtype=dtype.torch)
    run(nest, any_target, seed_value, got)
    spec = OPS["random"]
    attrs = RandomAttrs(kind, (size,), dtype, offset)  # type: ignore[arg-type]
    want = spec.evaluate([seed_value], attrs, {})
    tolerance = 0.0 if kind != "normal" else 1e-5 if dtype is F32 else 1e-2
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
