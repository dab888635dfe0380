"""Matrix products: every layout BLAS reads, through BLAS and through ATen, against torch."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest
import torch

from lazyc.codegen.base import Kernel
from lazyc.codegen.llvm import LlvmGenerator
from lazyc.codegen.target import host_target
from lazyc.ir.program import GemmStep, Operand, Program
from lazyc.ir.tiled_product import Tile, tiled_kernels
from lazyc.ir.types import DType
from lazyc.runtime.library import Blas, concrete_product, plan_gemm
from lazyc.runtime.program import Executable
from lazyc.runtime.sizes import Sizes
from tests.runtime import toy

needs_tiles = pytest.mark.skipif(
    LlvmGenerator(host_target()).product_tile is None, reason="a CPU without fused multiply-add"
)
SIZES = [0, 1, 2, 3, 7, 16, 33]


class Case:
    """A product with operands inside padded buffers of a given layout ("row" or "col")."""

    def __init__(
        self,
        batch,
        m,
        n,
        k,
        layouts,
        pad=0,
        dtype=DType.F32,
        accumulate=False,
        pack=False,
        tile=None,
    ):
        self.batch, self.dims, self.layouts, self.dtype = batch, (m, n, k), layouts, dtype
        self.accumulate = accumulate
        self.matrices = ((m, k), (k, n), (m, n))
        self.buffers, operands = [], []
        for number, ((rows, cols), layout) in enumerate(zip(self.matrices, layouts, strict=True)):
            outer, inner = (rows, cols) if layout == "row" else (cols, rows)
            shape = (*batch, outer, inner + pad)
            kind = "input" if number < 2 or accumulate else "output"
            self.buffers.append(toy.buffer(number, kind, shape, number, dtype))
            strides = self.buffers[-1].strides
            row, col = (inner + pad, 1) if layout == "row" else (1, inner + pad)
            operands.append(Operand(number, 0, row, col, strides[:-2]))
        a, b, c = operands
        step = GemmStep(dtype, batch, m, n, k, a, b, c, accumulate, pack, tile=tile)
        self.program = Program(
            (0, 1, 2) if accumulate else (0, 1),
            tuple(self.buffers), (step,), (toy.whole(self.buffers[2]),), {},
            parameters=(1,) if pack else (),
        )  # fmt: skip
        self.step = step

    def view(self, number: int, tensor: torch.Tensor) -> torch.Tensor:
        """The operand inside its buffer, as [*batch, rows, cols]."""
        rows, cols = self.matrices[number]
        if self.layouts[number] == "row":
            return tensor[..., :cols]
        return tensor[..., :rows].transpose(-1, -2)

    def random_args(self) -> list[torch.Tensor]:
        shapes = [b.shape for b in self.buffers[: 3 if self.accumulate else 2]]
        if self.dtype.is_int:
            return [torch.randint(-5, 5, s, dtype=self.dtype.torch) for s in shapes]
        return [torch.randn(s).to(self.dtype.torch) for s in shapes]

    def check(self, host=None) -> None:
        kernels = tiled() if self.step.tile else {}
        executable = Executable(self.program, kernels, host or toy.host())
        args = self.random_args()
        a, b = self.view(0, args[0]), self.view(1, args[1])
        expected = torch.matmul(a.double(), b.double())
        if self.accumulate:
            expected = expected + self.view(2, args[2]).double()
        tolerance = 2e-2 if self.dtype in (DType.BF16, DType.F16) else 1e-4
        for _ in range(2):
            call = [args[0], args[1], *([args[2].clone()] if self.accumulate else [])]
            (out,) = executable(call)
            assert call == []
            found = self.view(2, out).double()
            assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance), self.step


LAYOUTS = list(itertools.product(["row", "col"], repeat=3))


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64, DType.BF16, DType.I64], ids=repr)
def test_layouts_and_sizes(layouts, dtype):
    rng = random.Random(f"{layouts}{dtype}")
    for _ in range(12):
        m, n, k = (rng.choice(SIZES) for _ in range(3))
        batch = rng.choice([(), (1,), (3,), (0,), (2, 3)])
        accumulate = rng.random() < 0.5
        Case(batch, m, n, k, layouts, rng.choice([0, 3]), dtype, accumulate).check()


@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_packed(layouts):
    rng = random.Random(f"packed {layouts}")
    for _ in range(8):
        m, n, k = (rng.choice([1, 4, 5, 16, 33, 130]) for _ in range(3))
        pad, accumulate = rng.choice([0, 3]), rng.random() < 0.5
        Case((), m, n, k, layouts, pad, accumulate=accumulate, pack=True).check()


@cache
def tiled() -> dict[str, Kernel]:
    """The kernels of products in tiles of this machine, by key."""
    made = {kernel.key: generator().generate(kernel, f"k{kernel.key[:16]}") for kernel in
            tiled_kernels(tile())}  # fmt: skip
    loaded = generator().load({c.ref: generator().compile(c) for c in made.values()})
    return {key: loaded[code.ref.symbol] for key, code in made.items()}


@cache
def generator() -> LlvmGenerator:
    return LlvmGenerator(host_target())


def tile() -> Tile:
    found = generator().product_tile
    assert found is not None
    return found


@needs_tiles
@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_packed_for_tiles(layouts):
    rng = random.Random(f"tiled {layouts}")
    for _ in range(8):
        m, n, k = (rng.choice([0, 1, 4, 5, 16, 33, 130]) for _ in range(3))
        pad, accumulate = rng.choice([0, 3]), rng.random() < 0.5
        Case((), m, n, k, layouts, pad, accumulate=accumulate, pack=True, tile=tile()).check()


@needs_tiles
@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
def test_packed_for_tiles_at_each_call(layouts):
    rng = random.Random(f"repacked {layouts}")
    for _ in range(4):
        m, n, k = (rng.choice([63, 64, 65, 100, 130]) for _ in range(3))
        pad, accumulate = rng.choice([0, 3]), rng.random() < 0.5
        case = Case((), m, n, k, layouts, pad, accumulate=accumulate, tile=tile())
        call = plan_gemm(case.step, Sizes({}), toy.host().blas)
        assert call is not None and call.repacks == (min(m, n, k) > 63)
        case.check()


@needs_tiles
def test_tiles_on_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for m, n in ((200, 300), (1, 700), (700, 1)):
            Case((), m, n, 100, ("row", "col", "row"), pack=True, tile=tile()).check()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_on_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch in ((2,), (7,), (12,), (3, 5)):
            Case(batch, 16, 24, 32, ("row", "col", "row")).check()
        Case((2,), 300, 300, 300, ("row", "row", "row")).check()
    finally:
        torch.set_num_threads(before)


def test_two_batch_dims_that_do_not_merge():
    """Heads inside rows, [B, T, H, D], read as [B, H, T, D]: what attention without copies does."""
    B, H, T, D = 3, 4, 5, 6
    q, k, out = (
        toy.buffer(i, kind, shape, i)
        for i, (kind, shape) in enumerate(
            [("input", (B, T, H, D)), ("input", (B, T, H, D)), ("output", (B, H, T, T))]
        )
    )
    a = Operand(0, 0, H * D, 1, (T * H * D, D))
    b = Operand(1, 0, 1, H * D, (T * H * D, D))
    c = Operand(2, 0, T, 1, (H * T * T, T * T))
    step = GemmStep(DType.F32, (B, H), T, T, D, a, b, c)
    assert concrete_product(step, Sizes({})).batch == (B, H)
    executable = Executable(
        Program((0, 1), (q, k, out), (step,), (toy.whole(out),), {}), {}, toy.host()
    )
    x, y = torch.randn(B, T, H, D), torch.randn(B, T, H, D)
    expected = x.transpose(1, 2) @ y.transpose(1, 2).transpose(-1, -2)
    assert torch.allclose(executable([x, y])[0], expected, atol=1e-5)


def test_batch_dims_that_step_as_one_are_merged():
    case = Case((2, 1, 3, 4), 5, 6, 7, ("row", "row", "row"))
    assert concrete_product(case.step, Sizes({})).batch == (24,)
    case.check()


def test_operand_shared_by_the_batch():
    a, b, out = (toy.buffer(i, k, s, i) for i, (k, s) in enumerate(
        [("input", (4, 3, 5)), ("input", (5, 2)), ("output", (4, 3, 2))]
    ))  # fmt: skip
    step = GemmStep(
        DType.F32, (4,), 3, 2, 5,
        Operand(0, 0, 5, 1, (15,)), Operand(1, 0, 2, 1, (0,)), Operand(2, 0, 2, 1, (6,)),
    )  # fmt: skip
    executable = Executable(
        Program((0, 1), (a, b, out), (step,), (toy.whole(out),), {}), {}, toy.host()
    )
    x, y = torch.randn(4, 3, 5), torch.randn(5, 2)
    assert torch.allclose(executable([x, y])[0], x @ y, atol=1e-5)


def into_dirty_output(m: int, n: int, k: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a @ b`` written over an argument that holds nan."""
    x, y = toy.buffer(0, "input", (m, k), 0), toy.buffer(1, "input", (k, n), 1)
    c = toy.buffer(2, "input", (m, n), 2)
    operands = (Operand(0, 0, max(k, 1), 1), Operand(1, 0, n, 1), Operand(2, 0, n, 1))
    step = GemmStep(DType.F32, (), m, n, k, *operands)
    program = Program((0, 1, 2), (x, y, c), (step,), (toy.whole(c),), {})
    return Executable(program, {}, toy.host())([a, b, torch.full((m, n), float("nan"))])[0]


def test_old_output_is_not_read():
    a, b = torch.randn(4, 5), torch.randn(5, 3)
    assert torch.allclose(into_dirty_output(4, 3, 5, a, b), a @ b, atol=1e-5)


def test_product_over_an_empty_dim_is_zero():
    assert torch.equal(
        into_dirty_output(2, 3, 0, torch.empty(2, 0), torch.empty(0, 3)), torch.zeros(2, 3)
    )


def test_nan_and_inf_go_through():
    """0 * inf is nan, also inside a product."""
    b = torch.eye(4)
    b[0, 0] = float("inf")
    assert into_dirty_output(4, 4, 4, torch.zeros(4, 4), b).isnan()[:, 0].all()


def test_without_blas_products_run_through_aten():
    case = Case((2,), 3, 4, 5, ("row", "col", "row"))
    assert plan_gemm(case.step, Sizes({}), Blas()) is None
    assert plan_gemm(case.step, Sizes({}), toy.host().blas) is not None
    case.check(toy.host_without_blas())


def test_overlapping_rows_run_through_aten():
    """A row stride smaller than the row is nothing BLAS knows."""
    x, y, out = (toy.buffer(i, k, s, i) for i, (k, s) in enumerate(
        [("input", (8,)), ("input", (4, 2)), ("output", (5, 2))]
    ))  # fmt: skip
    step = GemmStep(
        DType.F32, (), 5, 2, 4, Operand(0, 0, 1, 1), Operand(1, 0, 2, 1), Operand(2, 0, 2, 1)
    )
    assert plan_gemm(step, Sizes({}), toy.host().blas) is None
    executable = Executable(
        Program((0, 1), (x, y, out), (step,), (toy.whole(out),), {}), {}, toy.host()
    )
    a, b = torch.randn(8), torch.randn(4, 2)
    assert torch.allclose(executable([a, b])[0], a.unfold(0, 4, 1) @ b, atol=1e-5)
