"""Which contractions get a kernel for their 2:4 weight on GPU targets, and why others do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph
from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, Compute, Load, LoopNest, Reduce
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.opspec import IRError
from lazyc.ir.program import Buffer, KernelStep, Program, ProgramOutput, SparseFactor
from lazyc.ir.program_text import print_program
from lazyc.ir.program_verify import verify_program
from lazyc.ir.sparse import Sparsity
from lazyc.ir.sparse_contraction import sparse_key
from lazyc.ir.sparse_mma import MmaFormat
from lazyc.ir.types import Dim, DType, TensorType
from lazyc.passes.sparse_contractions import (
    choose_sparse_contractions,
    without_sparse_contractions,
)
from tests.codegen.harness import Body
from tests.codegen.test_triton_contraction import product

F32, F16, I8 = DType.F32, DType.F16, DType.I8
KERNELS: frozenset[tuple[Sparsity, DType]] = frozenset(
    {("2:4", F16), ("2:4", I8), ("block 16", F32)}
)
M, N, K = 8, 24, 64


def chosen(
    nest: LoopNest,
    weight: int = 1,
    declared: Sparsity | None = "2:4",
    is_parameter: bool = True,
    sizes: tuple[Dim, ...] = (),
) -> tuple[Program, SparseFactor | None]:
    """The Program of one kernel whose params are its arguments, and what was chosen."""
    verify_nest(nest)
    graph, buffers = Graph(), []
    for k, param in enumerate(nest.buffers):
        kind = "input" if param.role == "in" else "output"
        buffers.append(Buffer(k, kind, param.dtype, (param.numel,), (1,), k))
    type_ = TensorType(buffers[weight].dtype or F16, (N, K))
    attrs = A.InputAttrs(weight, "w", type_, (K, 1), is_parameter, 64, declared)
    graph.add("input", (), attrs)
    step = KernelStep("nest", tuple(range(len(buffers))), sizes, "aten.mm model.py:3")
    inputs = tuple(b.id for b in buffers if b.kind == "input")
    out = (ProgramOutput(len(buffers) - 1, (1,), (1,)),)
    program = Program(inputs, tuple(buffers), (step,), out, {"nest": nest})
    found = choose_sparse_contractions(program, graph, KERNELS)
    (made,) = found.steps
    assert isinstance(made, KernelStep)
    return found, made.sparse


def test_a_kernel() -> None:
    program, factor = chosen(product(M, N, K, F16, epilogue=True, transposed=True))
    assert factor is not None and factor.is_used
    assert (factor.weight, factor.sizes) == (1, (M, N, K))
    assert program.parameters == (1,)  # what is kept of it is guarded
    verify_program(program)
    ((number, source),) = program.sparse_contractions()
    assert (number, source.weight) == (0, 1)
    assert program.kernel_sources() == {"nest": program.nests["nest"], source.key: source}
    assert f"b1 2:4: kernel {sparse_key('nest', 1, '2:4')}" in print_program(program)
    with pytest.raises(IRError, match="b1, a sparse weight, is no parameter"):
        verify_program(replace(program, parameters=()))


def test_a_left_factor() -> None:
    _, factor = chosen(product(N, M, K, F16), weight=0)
    assert factor is not None and factor.is_used and factor.sizes == (M, N, K)


def test_bytes() -> None:
    """Values are half of the weight; metadata are a bit for each of its bytes."""
    for nest, weight in ((product(M, N, K, I8, transposed=True), 1), (product(N, M, K, I8), 0)):
        program, factor = chosen(nest, weight)
        assert factor is not None and factor.is_used and factor.sizes == (M, N, K)
        verify_program(program)
    _, factor = chosen(product(N, M, K, I8, second=DType.I16), 0)
    assert factor is not None and factor.reason == "the other factor is not i8"
    form = MmaFormat(I8, 1024, 1024)
    assert form.nbytes == (1024 * 1024) * 5 // 8


def test_blocks() -> None:
    program, factor = chosen(product(M, 32, K, F32, transposed=True), declared="block 16")
    assert factor is not None and factor.is_used and factor.sizes == (M, 32, K)
    ((_, source),) = program.sparse_contractions()
    assert source.sparsity == "block 16" and source.key != sparse_key("nest", 1, "2:4")
    _, factor = chosen(product(M, N, K, F32, transposed=True), declared="block 16")
    assert factor is not None and "no whole groups of 16" in factor.reason


def test_any_number_of_rows() -> None:
    m, rows = (sympy.Symbol(n, integer=True, positive=True) for n in ("n0", "s0"))
    _, factor = chosen(product(m, N, K, F16, transposed=True), sizes=(rows,))
    assert factor is not None and factor.is_used and factor.sizes == (rows, N, K)


def test_none_for_other_weights() -> None:
    nest = product(M, N, K, F16, transposed=True)
    assert chosen(nest, declared=None)[1] is None
    assert chosen(nest, is_parameter=False)[1] is None
    epilogue = product(M, N, K, F16, epilogue=True, transposed=True)
    assert chosen(epilogue, weight=3)[1] is None  # it is added to the product


def one_factor(dtype: DType, twice: bool = False, mask: bool = False) -> LoopNest:
    """``out[i, j] = sum_r x[i, r] * w[j, r]``; ``twice``: plus ``w[j, 0]``; ``mask``: w where it is more
    than 1."""
    i, j, r = Axis("i", M), Axis("j", N), Axis("r", K)
    ii, jj, rr = map(axis_index, (i, j, r))
    body = Body()

    def wide(value: int) -> int:
        return body.add(Compute, F32, "cast", (value,)) if dtype is not F32 else value

    x, w = wide(body.add(Load, dtype, 0, ii * K + rr)), wide(body.add(Load, dtype, 1, jj * K + rr))
    if mask:
        w = body.add(Compute, F32, "maximum", (w, w))
    total = body.add(Reduce, F32, "sum", body.add(Compute, F32, "mul", (x, w)))
    stages = [body.stage(r)]
    if twice:
        more = wide(body.add(Load, dtype, 1, jj * K))
        total = body.add(Compute, F32, "add", (total, more))
    body.store(2, ii * N + jj, total)
    stages.append(body.stage())
    params = (("in", dtype, M * K), ("in", dtype, N * K), ("out", F32, M * N))
    buffers = tuple(BufferParam(d, role, n) for role, d, n in params)  # type: ignore[arg-type]
    return LoopNest((i, j), tuple(stages), buffers)


def beside(op: str, dtype: DType = F32) -> LoopNest:
    """A product, and an op on its result."""
    nest = one_factor(F16)
    body = Body(20)
    total = nest.stages[0].body[-1].id  # type: ignore[union-attr]
    args = total if dtype is F32 else body.add(Compute, dtype, "cast", (total,))
    value = body.add(Compute, dtype, op, (args, args) if op == "floor_div" else (args,))
    body.store(2, nest.stages[1].body[-1].index, value)  # type: ignore[union-attr]
    out = BufferParam(dtype, "out", M * N)
    return replace(nest, stages=(nest.stages[0], body.stage()), buffers=(*nest.buffers[:2], out))


DENSE = {
    "no kernel for f32 weights": one_factor(F32),
    "is read besides": one_factor(F16, twice=True),
    "something is computed from the weight": one_factor(F16, mask=True),
    "contiguous rows": product(M, N, K, F16),
    "no whole groups of 4": product(M, N, 66, F16, transposed=True),
    "it has no elements": product(0, N, K, F16, transposed=True),
    "fewer than 32 weights": product(M, N, 16, F16, transposed=True),
    "fewer than 64 weights": product(M, N, 32, I8, transposed=True),
    "varies along the rows": product(M, N, K, F16, batch=2, transposed=True),
    "no code for floor_div": beside("floor_div", DType.I32),
    "no code for lgamma": beside("lgamma"),
}


@pytest.mark.parametrize("reason", DENSE)
def test_dense_with_a_reason(reason: str) -> None:
    program, factor = chosen(DENSE[reason])
    assert factor is not None and not factor.is_used and reason in factor.reason
    assert program.parameters == () and not program.sparse_contractions()
    assert "b1 2:4: dense" in print_program(program)


def test_sums_of_a_weight_are_no_products() -> None:
    i, r = Axis("i", N), Axis("r", K)
    body = Body()
    x = body.add(Load, F16, 0, axis_index(i) * K + axis_index(r))
    total = body.add(Reduce, F32, "sum", body.add(Compute, F32, "cast", (x,)))
    stages = [body.stage(r)]
    body.store(1, axis_index(i), total)
    stages.append(body.stage())
    buffers = (BufferParam(F16, "in", N * K), BufferParam(F32, "out", N))
    assert chosen(LoopNest((i,), tuple(stages), buffers), weight=0)[1] is None


def test_dense_after_all() -> None:
    program, _ = chosen(product(M, N, K, F16, transposed=True))
    (step,) = without_sparse_contractions(program, "there is no compiler").steps
    assert isinstance(step, KernelStep) and step.sparse is not None
    assert not step.sparse.is_used and step.sparse.reason == "there is no compiler"
