"""Matrix products as Triton kernels, with what surrounds them, against the evaluator of nests."""

from __future__ import annotations

import re

import pytest
import sympy
import torch

from lazyc.codegen.triton.contraction import Contraction
from lazyc.codegen.triton.kernel import generate
from lazyc.ir.index import Axis, axis_index, value_index
from lazyc.ir.loops import BufferParam, CheckIndex, Compute, Load, LoopNest, Reduce
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.types import Dim, DType
from tests.codegen.harness import Body, run
from tests.gpu import KERNELS

pytestmark = pytest.mark.gpu

F32, F16, BF16, I64 = DType.F32, DType.F16, DType.BF16, DType.I64
M, N, K = (sympy.Symbol(f"n{k}", integer=True, positive=True) for k in range(3))


def product(
    m: Dim,
    n: Dim,
    k: Dim,
    dtype: DType = F32,
    batch: int = 1,
    epilogue: bool = False,
    transposed: bool = False,
    second: DType | None = None,
) -> LoopNest:
    """``out[b, i, j] = sum_k a[b, i, k] * b[b, k, j]``, with bias, relu and a residual as ``epilogue``;
    ``transposed``: b is [j, k]; ``second``: the type of b, if not ``dtype``. Results are of
    ``dtype``, of int8 i32."""
    second, sums = dtype if second is None else second, dtype.accumulator
    out = dtype if dtype.is_float else sums
    p, i, j, r = Axis("p", batch), Axis("i", m), Axis("j", n), Axis("r", k)
    pp, ii, jj, rr = (axis_index(a) for a in (p, i, j, r))
    body = Body()

    def wide(value: int, kind: DType = dtype) -> int:
        return value if kind is sums else body.add(Compute, sums, "cast", (value,))

    left = wide(body.add(Load, dtype, 0, pp * (m * k) + ii * k + rr))
    at = jj * k + rr if transposed else rr * n + jj
    right = wide(body.add(Load, second, 1, pp * (k * n) + at), second)
    total = body.add(Reduce, sums, "sum", body.add(Compute, sums, "mul", (left, right)))
    stages = [body.stage(r)]
    buffers = [BufferParam(dtype, "in", batch * m * k), BufferParam(second, "in", batch * k * n)]
    where = pp * (m * n) + ii * n + jj
    if epilogue:
        bias = wide(body.add(Load, dtype, 2, jj))
        total = body.add(Compute, sums, "add", (total, bias))
        negative = body.add(Compute, sums, "neg", (total,))
        total = body.add(Compute, sums, "maximum", (total, negative))
        residual = wide(body.add(Load, dtype, 3, where))
        total = body.add(Compute, sums, "add", (total, residual))
        buffers += [BufferParam(dtype, "in", n), BufferParam(dtype, "in", batch * m * n)]
    if out is not sums:
        total = body.add(Compute, out, "cast", (total,))
    body.store(len(buffers), where, total)
    stages.append(body.stage())
    buffers.append(BufferParam(out, "out", batch * m * n))
    axes = (p, i, j) if batch > 1 else (i, j)
    symbols = tuple(s for s in (m, n, k) if isinstance(s, sympy.Symbol))
    return LoopNest(axes, tuple(stages), tuple(buffers), symbols, "inner")


def check(nest: LoopNest, sizes: tuple[int, ...] = (), tolerance: float = 1e-5) -> None:
    """Both compute the same of small whole numbers and some others."""
    verify_nest(nest)
    assert Contraction.find(nest) is not None and "tl.dot" in generate(nest, "k").text
    known = dict(zip(nest.symbols, sizes, strict=True))
    torch.manual_seed(0)
    memory = []
    for param in nest.buffers:
        count = param.numel if isinstance(param.numel, int) else int(param.numel.subs(known))
        data = torch.full((count,), 7.0)
        if param.role == "in":
            data = (
                torch.randn(count) if param.dtype.is_float else torch.randint(-128, 128, (count,))
            )
        memory.append(data.to(param.dtype.torch))
    wanted = [x.clone() for x in memory]
    assert run_nest(nest, wanted, known) == 0
    assert run(nest, KERNELS, *memory, sizes=sizes) == 0
    for got, want in zip(memory, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "size", [(16, 16, 16), (64, 32, 48), (17, 33, 19), (200, 130, 70)], ids=str
)
def test_sizes(size: tuple[int, int, int]) -> None:
    check(product(*size))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("epilogue", [False, True])
def test_half_types(dtype: DType, epilogue: bool) -> None:
    nest = product(40, 33, 50, dtype, epilogue=epilogue)
    assert 'input_precision="ieee"' not in generate(nest, "k").text  # halves go to the tensor cores
    check(nest, tolerance=2e-2 if dtype is BF16 else 2e-3)


@pytest.mark.parametrize(
    "size", [(16, 16, 32), (40, 33, 50), (17, 200, 300), (64, 64, 16)], ids=str
)
@pytest.mark.parametrize("transposed", [False, True])
def test_bytes_are_multiplied_exactly(size: tuple[int, int, int], transposed: bool) -> None:
    nest = product(*size, DType.I8, epilogue=True, transposed=transposed)
    assert "tl.int32" in generate(nest, "k").text
    check(nest, tolerance=0)


def test_other_integers_have_no_tiles() -> None:
    assert Contraction.find(product(64, 64, 64, DType.I32)) is None
    assert Contraction.find(product(64, 64, 64, DType.I8, second=DType.I32)) is None


@pytest.mark.parametrize("transposed", [False, True])
def test_batches_and_epilogues(transposed: bool) -> None:
    check(product(20, 24, 18, batch=3, epilogue=True, transposed=transposed))


def test_symbolic_sizes() -> None:
    nest = product(M, N, K, epilogue=True)
    for sizes in ((16, 16, 16), (65, 3, 7), (1, 130, 33)):
        check(nest, sizes)


def test_results_on_their_side() -> None:
    """The columns of a tile are the outer axis that comes last, whichever factor it belongs to."""
    i, j, r = Axis("i", 32), Axis("j", 48), Axis("r", 64)
    body = Body()
    left = body.add(Load, F32, 0, axis_index(i) * 64 + axis_index(r))
    right = body.add(Load, F32, 1, axis_index(j) * 64 + axis_index(r))
    total = body.add(Reduce, F32, "sum", body.add(Compute, F32, "mul", (left, right)))
    stages = [body.stage(r)]
    body.store(2, axis_index(j) * 32 + axis_index(i), total)
    buffers = (
        BufferParam(F32, "in", 32 * 64), BufferParam(F32, "in", 48 * 64),
        BufferParam(F32, "out", 32 * 48),
    )  # fmt: skip
    check(LoopNest((j, i), (*stages, body.stage()), buffers, (), "outer"))


def test_a_prologue_that_is_not_zero_beyond_the_depth() -> None:
    """exp(0) is 1, and log(0) is no number: neither may reach the sum."""
    i, j, r = Axis("i", 16), Axis("j", 16), Axis("r", 21)
    body = Body()
    left = body.add(Load, F32, 0, axis_index(i) * 21 + axis_index(r))
    left = body.add(Compute, F32, "exp", (left,))
    right = body.add(Load, F32, 1, axis_index(r) * 16 + axis_index(j))
    right = body.add(Compute, F32, "log", (body.add(Compute, F32, "abs", (right,)),))
    total = body.add(Reduce, F32, "sum", body.add(Compute, F32, "mul", (left, right)))
    stages = [body.stage(r)]
    body.store(2, axis_index(i) * 16 + axis_index(j), total)
    buffers = (
        BufferParam(F32, "in", 16 * 21), BufferParam(F32, "in", 21 * 16),
        BufferParam(F32, "out", 256),
    )  # fmt: skip
    check(LoopNest((i, j), (*stages, body.stage()), buffers, (), "inner"))


def test_a_gathered_factor() -> None:
    """``out = table[index] @ b``: rows are looked up as they are read."""
    i, j, r = Axis("i", 24), Axis("j", 16), Axis("r", 32)
    body = Body()
    row = body.add(CheckIndex, body.add(Load, I64, 0, axis_index(i)), 10)
    stages = [body.stage()]
    left = body.add(Load, F32, 1, value_index(row, 10) * 32 + axis_index(r))
    right = body.add(Load, F32, 2, axis_index(r) * 16 + axis_index(j))
    total = body.add(Reduce, F32, "sum", body.add(Compute, F32, "mul", (left, right)))
    stages.append(body.stage(r))
    body.store(3, axis_index(i) * 16 + axis_index(j), total)
    buffers = (
        BufferParam(I64, "in", 24), BufferParam(F32, "in", 320), BufferParam(F32, "in", 512),
        BufferParam(F32, "out", 24 * 16),
    )  # fmt: skip
    nest = LoopNest((i, j), (*stages, body.stage()), buffers, (), "inner")
    verify_nest(nest)
    assert "tl.dot" in generate(nest, "k").text
    index, table, b = torch.randint(0, 10, (24,)), torch.randn(10, 32), torch.randn(32, 16)
    out = torch.empty(24, 16)
    assert run(nest, KERNELS, index, table.flatten(), b.flatten(), out.flatten()) == 0
    torch.testing.assert_close(out, table[index] @ b)
    index[5] = 10
    assert run(nest, KERNELS, index, table.flatten(), b.flatten(), out.flatten()) != 0


@pytest.mark.parametrize(
    ("apart", "ends"),
    [(70, ["x < 70"]), (71, ["x < 70"]), (72, ["x < 70", "x < 72"]), (128, ["x < 70"])],
)
def test_columns_that_lie_apart(apart: int, ends: list[str]) -> None:
    """The mask of the loads of a factor ends where its rows do, after a whole vector, and not at all where
    they go on to the end of the last tile; what is in there makes no difference."""
    i, j, r = Axis("i", 32), Axis("j", 70), Axis("r", 64)
    body = Body()
    left = body.add(Load, F32, 0, axis_index(i) * 64 + axis_index(r))
    right = body.add(Load, F32, 1, axis_index(r) * apart + axis_index(j))
    total = body.add(Reduce, F32, "sum", body.add(Compute, F32, "mul", (left, right)))
    stages = [body.stage(r)]
    body.store(2, axis_index(i) * 70 + axis_index(j), total)
    buffers = (
        BufferParam(F32, "in", 32 * 64), BufferParam(F32, "in", 64 * apart),
        BufferParam(F32, "out", 32 * 70),
    )  # fmt: skip
    nest = LoopNest((i, j), (*stages, body.stage()), buffers, (), "inner")
    verify_nest(nest)
    text = generate(nest, "k").text
    assert re.findall(r"x < \d+", text) == ends
    (load,) = (x for x in text.splitlines() if "tl.load(b1" in x)
    assert ("mask" in load) == (apart != 128)
    a, b, out = torch.randn(32, 64), torch.randn(64, apart), torch.empty(32, 70)
    b[:, 70:] = float("nan")
    assert run(nest, KERNELS, a.flatten(), b.flatten(), out.view(-1)) == 0
    torch.testing.assert_close(out, a @ b[:, :70])


@pytest.mark.parametrize("size", [(1, 64, 64), (64, 8, 64), (64, 64, 8)], ids=str)
def test_too_small_for_a_tile(size: tuple[int, int, int]) -> None:
    assert Contraction.find(product(*size)) is None


@pytest.mark.parametrize("size", [(128, 3, 128), (5, 150, 140)], ids=str)
def test_few_rows_or_columns_of_long_sums_are_a_tile(size: tuple[int, int, int]) -> None:
    check(product(*size), tolerance=2e-5)
