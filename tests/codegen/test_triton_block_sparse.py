"""Kernels of products with block-sparse weights for GPUs: Triton's interpreter against the evaluator of nests."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import nn

import lazyc
from lazyc.backend import EVENTS
from lazyc.codegen.base import LaunchRef
from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton.block_sparse import block_sparse_kernel
from lazyc.codegen.triton.compile import compile_kernel
from lazyc.ir import loops as L
from lazyc.ir.block_sparse import compress_blocks
from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, LoopNest
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.ops import concrete
from lazyc.ir.sparse import BLOCKS, SparseProduct, Sparsity
from lazyc.ir.sparse_contraction import Factors, SparseContraction, find_factors
from lazyc.ir.types import DType
from lazyc.kernel_check import machine_facts, problems
from lazyc.report import events as E
from tests.codegen.harness import Body, launched
from tests.codegen.test_triton_contraction import product

F32, F16, BF16 = DType.F32, DType.F16, DType.BF16
pytestmark = pytest.mark.gpu


def check(nest: LoopNest, weight: int, sparsity: Sparsity, sizes: tuple[int, ...] = ()) -> None:
    factors = find_factors(nest, weight, sparsity)
    assert isinstance(factors, Factors), factors
    known = dict(zip(nest.symbols, sizes, strict=True))
    torch.manual_seed(0)
    memory = []
    for param in nest.buffers:
        count = concrete(param.numel, known)
        data = torch.randn(count) if param.role == "in" else torch.full((count,), 7.0)
        memory.append(data.to(param.dtype.torch))
    rows, depth, size = factors.row_count, factors.depth, BLOCKS[sparsity]
    blocks = memory[weight].reshape(rows // size, size, depth // size, size)
    kept = torch.rand(rows // size, 1, depth // size, 1) < 0.25
    kept[0] = False  # a row without blocks
    blocks *= kept
    p = SparseProduct(sparsity, factors.dtype, 1, rows, depth, depth, rows, size)
    compressed = compress_blocks(p, blocks.reshape(rows, depth))
    assert compressed is not None
    wanted = [x.clone() for x in memory]
    assert run_nest(nest, wanted, known) == 0

    memory[weight] = compressed
    code = block_sparse_kernel(SparseContraction(nest, "", weight, sparsity), "kernel")
    assert launched(nest, code)(*memory, sizes=sizes) == 0
    half = nest.buffers[-1].dtype is not F32
    step = 2 * torch.finfo(nest.buffers[-1].dtype.torch).eps if half else 1e-5
    torch.testing.assert_close(memory[-1], wanted[-1], rtol=step, atol=1e-5)


@pytest.mark.parametrize("sparsity", BLOCKS)
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_a_linear_layer(dtype: DType, sparsity: Sparsity) -> None:
    check(product(37, 96, 160, dtype, epilogue=True, transposed=True), 1, sparsity)


def test_a_left_factor() -> None:
    check(product(96, 50, 128, F32, epilogue=True), 0, "block 16")


def scaled(m: int, n: int, k: int, dtype: DType) -> LoopNest:
    """``relu(x[m, k] * s[m]) @ w[n, k]^T + s[m]``: the factor of each row is computed before the loop."""
    i, j, r = Axis("i", m), Axis("j", n), Axis("r", k)
    ii, jj, rr = map(axis_index, (i, j, r))
    body = Body()

    def wide(value: int) -> int:
        return value if dtype is F32 else body.add(L.Compute, F32, "cast", (value,))

    def narrow(value: int) -> int:
        return value if dtype is F32 else body.add(L.Compute, dtype, "cast", (value,))

    zero = body.add(L.Const, F32, 0.0)
    scale = body.add(L.Compute, F32, "neg", (wide(body.add(L.Load, dtype, 2, ii)),))
    stages = [body.stage()]
    x = wide(body.add(L.Load, dtype, 0, ii * k + rr))
    x = body.add(L.Compute, F32, "maximum", (body.add(L.Compute, F32, "mul", (x, scale)), zero))
    w = wide(body.add(L.Load, dtype, 1, jj * k + rr))
    terms = body.add(L.Compute, F32, "mul", (wide(narrow(x)), w))
    total = body.add(L.Reduce, F32, "sum", terms)
    stages.append(body.stage(r))
    body.store(3, ii * n + jj, narrow(body.add(L.Compute, F32, "add", (total, scale))))
    stages.append(body.stage())
    sizes = (("in", m * k), ("in", n * k), ("in", m), ("out", m * n))
    buffers = tuple(BufferParam(dtype, role, size) for role, size in sizes)  # type: ignore[arg-type]
    nest = LoopNest((i, j), tuple(stages), buffers)
    verify_nest(nest)
    return nest


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_what_is_computed_before_the_loop(dtype: DType) -> None:
    check(scaled(37, 64, 96, dtype), 1, "block 16")


def test_any_number_of_rows() -> None:
    m = sympy.Symbol("n0", integer=True, positive=True)
    for rows in (1, 70):
        check(product(m, 64, 96, F16, transposed=True), 1, "block 32", (rows,))


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_machine_code(arch: int, dtype: DType) -> None:
    nest = product(4096, 4096, 4096, dtype, epilogue=True, transposed=True)
    code = block_sparse_kernel(SparseContraction(nest, "", 1, "block 32"), "kernel")
    target = gpu_target(f"sm_{arch}")
    found = compile_kernel(code, target)
    assert isinstance(code.ref, LaunchRef) and code.ref.programs == 128 * 32
    assert found.spilled_bytes == 0 and found.shared_bytes <= target.shared_bytes
    assert bool(found.tensor_cores) is (dtype is BF16)
    # Both factors are copied ahead in whole vectors; 64 bits are the words that say where blocks are.
    assert found.copy_bits == {64, 128}
    assert code.products is not None and code.products.aligned
    assert problems(code, machine_facts(code, target), target) == ()


def test_a_model_gets_a_sparse_kernel_beside_the_dense_one() -> None:
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU()).eval()
    lazyc.sparse.to_block_sparse(model, block=(16, 16), sparsity=0.75)
    options = {"target": "cuda:sm_90", "disk_cache": False}
    try:
        with torch.no_grad():
            torch.compile(model, backend="lazyc", options=options)(torch.randn(32, 64))
    finally:
        stop()
    (choice,) = (e for e in heard if isinstance(e, E.SparseProduct))
    assert choice.is_used and choice.reason == "skips blocks of zeros"
    assert sum(isinstance(e, E.KernelCompiled) for e in heard) == 2
