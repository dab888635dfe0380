"""Loads and stores: tails, strides, masks, gathers, scatters, symbolic sizes."""

from __future__ import annotations

import pytest
import sympy
import torch

from lazyc.ir.index import Axis, Index, axis_index, floordiv, mod, value_index
from lazyc.ir.loops import (
    ERROR_INDEX,
    BufferParam,
    CheckIndex,
    Compute,
    Const,
    IndexValue,
    Load,
    LoopNest,
)
from lazyc.ir.types import Dim, DType
from tests.codegen.harness import AnyTarget, Body, kernel, pointwise, row_major, run

F32, I64, BOOL = DType.F32, DType.I64, DType.BOOL
N, M = (
    sympy.Symbol("n0", integer=True, positive=True),
    sympy.Symbol("n1", integer=True, positive=True),
)


def copy_nest(
    axes: tuple[Axis, ...], source: Index, into: Index, numel_in: Dim, numel_out: Dim,
    dtype: DType = F32, symbols: tuple[sympy.Symbol, ...] = (), vectorize: str = "outer",
) -> LoopNest:  # fmt: skip
    """``out[into] = in[source]`` for every point of ``axes``."""
    body = Body()
    body.store(1, into, body.add(Load, dtype, 0, source))
    buffers = (BufferParam(dtype, "in", numel_in), BufferParam(dtype, "out", numel_out))
    outer, inner = (axes[:-1], axes[-1:]) if vectorize == "inner" else (axes, ())
    return LoopNest(outer, (body.stage(*inner),), buffers, symbols, vectorize)  # type: ignore[arg-type]


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
def test_tails(vectorize: str, any_target: AnyTarget) -> None:
    lanes = 16 if isinstance(any_target, str) else any_target.vector_bytes // 4
    for size in [*range(4), lanes - 1, lanes, lanes + 1, 2 * lanes, 2 * lanes + 1, 4 * lanes + 3]:
        a, b = torch.randn(size), torch.randn(size)
        out = torch.full((size + 8,), 7.0)
        assert (
            run(
                pointwise("sub", [torch.float32] * 2, torch.float32, size, vectorize),
                any_target,
                a,
                b,
                out,
            )
            == 0
        )
        assert torch.equal(out[:size], a - b)
        assert (out[size:] == 7.0).all()


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
def test_symbolic_sizes_and_pieces(vectorize: str, any_target: AnyTarget) -> None:
    rows, columns = Axis("i", N), Axis("j", M)
    nest = copy_nest(
        (rows, columns), axis_index(rows) + axis_index(columns) * N, row_major((rows, columns)),
        N * M, N * M, symbols=(N, M), vectorize=vectorize,
    )  # fmt: skip
    for n, m in [(1, 1), (3, 5), (7, 33), (2, 64), (5, 129), (40, 3)]:
        x = torch.randn(m, n)
        for pieces in (1, 2, 5):
            out = torch.full((n * m + 4,), 7.0)
            assert kernel(nest, any_target)(x, out, sizes=(n, m), pieces=pieces) == 0
            assert torch.equal(out[: n * m].view(n, m), x.t())
            assert (out[n * m :] == 7.0).all()


@pytest.mark.parametrize("dtype", list(DType), ids=str)
@pytest.mark.parametrize("step", [1, -1, 2, -3, 5])
def test_strided_loads_and_stores(step: int, dtype: DType, any_target: AnyTarget) -> None:
    size = 77
    axis = Axis("i", size)
    start = 0 if step > 0 else (size - 1) * -step
    span = (size - 1) * abs(step) + 1
    x = (torch.randn(span) * 50).to(dtype.torch)
    at = axis_index(axis) * step + start
    out = torch.zeros(size, dtype=dtype.torch)
    run(copy_nest((axis,), at, axis_index(axis), span, size, dtype), any_target, x, out)
    want = x[::step] if step > 0 else x.flip(0)[::-step]
    assert torch.equal(out, want)
    spread = torch.zeros(span, dtype=dtype.torch)
    run(copy_nest((axis,), axis_index(axis), at, size, span, dtype), any_target, out, spread)
    want = torch.zeros_like(spread)
    want[torch.arange(size) * step + start] = out
    assert torch.equal(spread, want)


@pytest.mark.parametrize("block", [64, 48, 16, 10, 7, 3])
@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
def test_split_axis(block: int, vectorize: str, any_target: AnyTarget) -> None:
    """A flat axis over blocks of a padded buffer: // and % by aligned and by odd divisors."""
    count, pitch = 9, block + 5
    axis = Axis("i", count * block)
    flat = axis_index(axis)
    at = floordiv(flat, block) * pitch + mod(flat, block)
    x = torch.randn(count, pitch)
    out = torch.zeros(count, block)
    nest = copy_nest((axis,), at, flat, count * pitch, count * block, vectorize=vectorize)
    run(nest, any_target, x, out)
    assert torch.equal(out, x[:, :block])
    # and with a symbolic block
    at = floordiv(flat, N) * (N + 5) + mod(flat, N)
    nest = copy_nest(
        (axis,), at, flat, count * pitch, count * block, symbols=(N,), vectorize=vectorize
    )
    out.zero_()
    kernel(nest, any_target)(x, out, sizes=(block,))
    assert torch.equal(out, x[:, :block])


def test_negative_base_of_a_division(any_target: AnyTarget) -> None:
    axis = Axis("i", 50)
    flat = axis_index(axis) + -20
    at = floordiv(flat, 7) * 3 + mod(flat, 7) + 9
    x = torch.arange(40.0)
    out = torch.zeros(50)
    run(copy_nest((axis,), at, axis_index(axis), 40, 50), any_target, x, out)
    want = [x[(i - 20) // 7 * 3 + (i - 20) % 7 + 9].item() for i in range(50)]
    assert out.tolist() == want


def pad_nest(size: int, low: int, high: int, dtype: DType, vectorize: str) -> LoopNest:
    """out = pad(in, (low, high), value=5)."""
    axis = Axis("i", size + low + high)
    body = Body()
    at = body.add(IndexValue, axis_index(axis))
    first = body.add(Const, I64, low)
    behind = body.add(Const, I64, low + size)
    after = body.add(Compute, BOOL, "ge", (at, first))
    before = body.add(Compute, BOOL, "lt", (at, behind))
    inside = body.add(Compute, BOOL, "and", (after, before))
    value = body.add(Load, dtype, 0, axis_index(axis) + -low, inside, 5)
    body.store(1, axis_index(axis), value)
    buffers = (BufferParam(dtype, "in", size), BufferParam(dtype, "out", size + low + high))
    inner = vectorize == "inner"
    return LoopNest(
        () if inner else (axis,), (body.stage(*((axis,) if inner else ())),), buffers, (), vectorize
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [F32, DType.BF16, DType.U8, I64, BOOL], ids=str)
@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
def test_masked_load(dtype: DType, vectorize: str, any_target: AnyTarget) -> None:
    for size, low, high in [(1, 3, 0), (40, 0, 7), (70, 9, 30), (5, 40, 0)]:
        x = (torch.rand(size) * 9).to(dtype.torch)
        out = torch.zeros(size + low + high, dtype=dtype.torch)
        run(pad_nest(size, low, high, dtype, vectorize), any_target, x, out)
        want = torch.full_like(out, 5)
        want[low : low + size] = x
        assert torch.equal(out, want)


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
def test_a_false_mask_reads_and_writes_nothing(vectorize: str, any_target: AnyTarget) -> None:
    """Broadcast, plain, strided and gathered accesses far outside of memory, all masked off."""
    axis, far = Axis("i", 40), 1 << 40
    body = Body()
    off = body.add(Load, BOOL, 0, Index(0))
    at = axis_index(axis)
    wild = body.add(IndexValue, at * far)
    loads = [
        body.add(Load, F32, 1, index, off, k + 1)
        for k, index in enumerate(
            (Index(far), at + far, at * 3 + far, value_index(wild, 1 << 50), at * -1 + far)
        )
    ]
    total = loads[0]
    for load in loads[1:]:
        total = body.add(Compute, F32, "add", (total, load))
    body.store(2, at, total)
    body.store(2, at + far, total, "set", off)
    body.store(2, at * 2 + far, total, "add", off)
    buffers = (BufferParam(BOOL, "in", 1), BufferParam(F32, "in", 1), BufferParam(F32, "inout", 40))
    inner = vectorize == "inner"
    nest = LoopNest(
        () if inner else (axis,), (body.stage(*((axis,) if inner else ())),), buffers, (), vectorize
    )  # type: ignore[arg-type]
    out = torch.zeros(40)
    assert run(nest, any_target, torch.tensor([False]), torch.zeros(1), out) == 0
    assert (out == 15.0).all()


def gather_nest(size: Dim, rows: Dim, width: int, vectorize: str, symbols: tuple = ()) -> LoopNest:
    """out[i, j] = table[check(index[i]), j]"""
    i, j = Axis("i", size), Axis("j", width)
    body = Body()
    index = body.add(Load, I64, 0, axis_index(i))
    checked = body.add(CheckIndex, index, rows)
    value = body.add(Load, F32, 1, value_index(checked, rows) * width + axis_index(j))
    body.store(2, row_major((i, j)), value)
    buffers = (
        BufferParam(I64, "in", size),
        BufferParam(F32, "in", rows * width),
        BufferParam(F32, "out", size * width),
    )
    if vectorize == "inner":
        return LoopNest((i,), (body.stage(j),), buffers, symbols, "inner")
    return LoopNest((i, j), (body.stage(),), buffers, symbols, vectorize)  # type: ignore[arg-type]


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize("width", [1, 20])
def test_gather(width: int, vectorize: str, any_target: AnyTarget) -> None:
    table = torch.randn(11, width)
    index = torch.randint(0, 11, (53,))
    for symbols in ((), (N, M)):
        size, rows = (N, M) if symbols else (53, 11)
        nest = gather_nest(size, rows, width, vectorize, symbols)
        sizes = (53, 11) if symbols else ()
        out = torch.zeros(53, width)
        assert kernel(nest, any_target)(index, table, out, sizes=sizes) == 0
        assert torch.equal(out, table[index])
        for bad in (11, -1, 1 << 40, -(1 << 62)):
            wrong = index.clone()
            wrong[52] = bad
            assert kernel(nest, any_target)(wrong, table, out, sizes=sizes) == ERROR_INDEX
            assert torch.equal(out[:52], table[index[:52]])
            assert torch.equal(out[52], table[0])


def scatter_nest(mode: str, dtype: DType, vectorize: str, size: int, rows: int) -> LoopNest:
    """out[index[i]] op= value[i], i the loop of one outer point."""
    i, one = Axis("i", size), Axis("o", 1)
    body = Body()
    index = body.add(CheckIndex, body.add(Load, I64, 0, axis_index(i)), rows)
    value = body.add(Load, dtype, 1, axis_index(i))
    body.store(2, value_index(index, rows), value, mode)
    buffers = (
        BufferParam(I64, "in", size), BufferParam(dtype, "in", size), BufferParam(dtype, "inout", rows),
    )  # fmt: skip
    return LoopNest((one,), (body.stage(i),), buffers, (), vectorize)  # type: ignore[arg-type]


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize("dtype", [F32, DType.BF16, DType.I32, DType.U8], ids=str)
@pytest.mark.parametrize("mode", ["set", "add", "mul", "max", "min"])
def test_scatter_meets_in_order(
    mode: str, dtype: DType, vectorize: str, any_target: AnyTarget
) -> None:
    size, rows = 67, 6
    index = torch.randint(0, rows, (size,))
    value = torch.randint(1, 4, (size,)).to(dtype.torch)
    out = torch.ones(rows, dtype=dtype.torch)
    want = out.clone()
    for at, v in zip(index.tolist(), value, strict=True):
        old = want[at].clone()
        want[at] = {
            "set": lambda o, v: v, "add": torch.add, "mul": torch.mul, "max": torch.maximum,
            "min": torch.minimum,
        }[mode](old, v)  # fmt: skip
    run(scatter_nest(mode, dtype, vectorize, size, rows), any_target, index, value, out)
    assert torch.equal(out, want)


def test_scatter_of_rows(any_target: AnyTarget) -> None:
    """out[index[i], j] += value[i, j]: the loop over i inside, columns along the lanes."""
    i, j = Axis("i", 30), Axis("j", 37)
    body = Body()
    index = body.add(Load, I64, 0, axis_index(i))
    value = body.add(Load, F32, 1, row_major((i, j)))
    body.store(2, value_index(index, 4) * 37 + axis_index(j), value, "add")
    buffers = (
        BufferParam(I64, "in", 30), BufferParam(F32, "in", 30 * 37), BufferParam(F32, "inout", 4 * 37),
    )  # fmt: skip
    nest = LoopNest((j,), (body.stage(i),), buffers)
    at, x, out = torch.randint(0, 4, (30,)), torch.randn(30, 37), torch.zeros(4, 37)
    run(nest, any_target, at, x, out)
    torch.testing.assert_close(out, torch.zeros(4, 37).index_add(0, at, x))


@pytest.mark.parametrize("vectorize", ["outer", "inner", "none"])
@pytest.mark.parametrize("mode", ["set", "add"])
def test_masked_store(mode: str, vectorize: str, any_target: AnyTarget) -> None:
    axis = Axis("i", 45)
    body = Body()
    value = body.add(Load, F32, 0, axis_index(axis))
    mask = body.add(Load, BOOL, 1, axis_index(axis))
    body.store(2, axis_index(axis), value, mode, mask)
    buffers = (
        BufferParam(F32, "in", 45),
        BufferParam(BOOL, "in", 45),
        BufferParam(F32, "inout", 45),
    )
    inner = vectorize == "inner"
    nest = LoopNest(
        () if inner else (axis,), (body.stage(*((axis,) if inner else ())),), buffers, (), vectorize
    )  # type: ignore[arg-type]
    x, on, out = torch.randn(45), torch.rand(45) < 0.5, torch.ones(45)
    run(nest, any_target, x, on, out)
    want = torch.where(on, x if mode == "set" else x + 1, torch.ones(45))
    assert torch.equal(out, want)


def test_size_zero_axes(any_target: AnyTarget) -> None:
    for sizes in ((0, 5), (5, 0)):
        i, j = Axis("i", sizes[0]), Axis("j", sizes[1])
        for vectorize in ("outer", "inner", "none"):
            nest = copy_nest(
                (i, j), row_major((i, j)), row_major((i, j)), 0, 0, vectorize=vectorize
            )
            out = torch.full((4,), 7.0)
            assert run(nest, any_target, torch.zeros(1), out) == 0
            assert (out == 7.0).all()


def test_no_axes_at_all(any_target: AnyTarget) -> None:
    for vectorize in ("outer", "inner", "none"):
        nest = copy_nest((), Index(2), Index(1), 3, 2, vectorize=vectorize)
        out = torch.zeros(2)
        run(nest, any_target, torch.tensor([1.0, 2.0, 3.0]), out)
        assert out.tolist() == [0.0, 3.0]
