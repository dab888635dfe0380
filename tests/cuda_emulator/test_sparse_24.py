"""Kernels of products with 2:4 weights, run by the emulator or on a GPU, against double precision and the evaluator of
nests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import sympy
import torch

from lazyc.codegen.base import KernelCode
from lazyc.codegen.cuda.expressions import TABLE
from lazyc.codegen.cuda.sparse_24 import Tiles, choose_tiles, generate
from lazyc.codegen.gpu_target import gpu_target
from lazyc.ir import loops as L
from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, Compute, Const, Load, LoopNest, Reduce
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.ops import concrete
from lazyc.ir.sparse_contraction import PLAIN_OPS, Factors, SparseContraction, find_factors
from lazyc.ir.sparse_mma import MMAS, MmaFormat, compress_for_mma
from lazyc.ir.types import Dim, DType
from tests.codegen.harness import Body, OnGpu, gpu
from tests.codegen.test_triton_block_sparse import scaled
from tests.codegen.test_triton_contraction import product
from tests.cuda_emulator.emulate import Emulated, EmulatorError, needs_compiler
from tests.gpu import KERNELS, only_interpreted
from tests.ir.test_sparse import random_24

F32, F16, BF16, I8, BOOL = DType.F32, DType.F16, DType.BF16, DType.I8, DType.BOOL
TARGET = gpu_target("cuda:sm_80")
GUARD = 64  # bytes before and after a buffer that nothing may touch

pytestmark = [needs_compiler, pytest.mark.gpu]


class Case:
    """A nest with data, its weight 2:4, and the kernel of it."""

    def __init__(
        self,
        nest: LoopNest,
        weight: int,
        tiles: Tiles | None = None,
        sizes: tuple[int, ...] = (),
    ) -> None:
        verify_nest(nest)
        factors = find_factors(nest, weight)
        assert isinstance(factors, Factors), factors
        self.nest, self.weight, self.factors = nest, weight, factors
        self.known = dict(zip(nest.symbols, sizes, strict=True))
        target = gpu()[1] if KERNELS == "cuda" else TARGET
        self.code = generate(SparseContraction(nest, "", weight), "kernel", target, tiles)
        self.form = MmaFormat(factors.dtype, factors.row_count, factors.depth)
        torch.manual_seed(0)
        self.memory: list[torch.Tensor] = []
        for k, param in enumerate(nest.buffers):
            count = concrete(param.numel, self.known)
            data = _random(count, param.dtype) if param.role == "in" else torch.full((count,), 7.0)
            if k == weight:
                data = random_24(self.form.rows, self.form.depth, param.dtype.torch).reshape(-1)
            self.memory.append(data.to(param.dtype.torch))
        compressed = compress_for_mma(
            self.form, self.memory[weight].reshape(self.form.rows, self.form.depth)
        )
        assert compressed is not None
        self.compressed = compressed

    def run(
        self,
        code: KernelCode | None = None,
        compressed: torch.Tensor | None = None,
        is_reversed: bool = False,
    ) -> list[torch.Tensor]:
        """The buffers after the kernel, or after another one in its place."""
        code = code or self.code
        guarded = [_guarded(x) for x in self.memory]
        given = [g[GUARD:-GUARD].view(x.dtype) for g, x in zip(guarded, self.memory, strict=True)]
        given[self.weight] = self.compressed if compressed is None else compressed
        if KERNELS == "cuda":
            assert OnGpu(self.nest, "", code)(*given, sizes=tuple(self.known.values())) == 0
        else:
            programs = concrete(code.ref.programs, self.known)
            sizes = [concrete(s, self.known) for s in code.ref.sizes]
            Emulated(code)(programs, given, sizes, is_reversed)
        for k, (got, was) in enumerate(zip(guarded, self.memory, strict=True)):
            edges = torch.cat([got[:GUARD], got[-GUARD:]])
            assert bool((edges == 99).all()), f"b{k} is written to outside"
            if self.nest.buffers[k].role == "in" and k != self.weight:
                assert torch.equal(given[k], was), f"b{k} is changed"
        return given

    def wanted(self) -> list[torch.Tensor]:
        """The buffers after the evaluator."""
        memory = [x.clone() for x in self.memory]
        assert run_nest(self.nest, memory, self.known) == 0
        return memory

    def check(self, is_reversed: bool = False) -> None:
        found = self.run(is_reversed=is_reversed)
        for got, want, param in zip(found, self.wanted(), self.nest.buffers, strict=True):
            if param.role == "out":
                step = 2 * torch.finfo(want.dtype).eps if param.dtype.is_float else 0
                torch.testing.assert_close(got, want, rtol=step, atol=1e-5 if step else 0)


def _random(count: int, dtype: DType) -> torch.Tensor:
    if dtype.is_float:
        return torch.randn(count)
    bounds = torch.iinfo(dtype.torch)
    return torch.randint(bounds.min, bounds.max + 1, (count,))


def _guarded(x: torch.Tensor) -> torch.Tensor:
    """The bytes of ``x`` between guards."""
    edge = torch.full((GUARD,), 99, dtype=torch.uint8)
    return torch.cat([edge, x.view(torch.uint8), edge])


# (m, n, k, the weight: 0 is a, 1 is b; whether b is [n, k])
PRODUCTS = {
    "b sparse, f16": (16, 64, 64, 1, True, F16),
    "b sparse, bf16": (16, 64, 64, 1, True, BF16),
    # No dim is whole tiles; rows of a are not aligned.
    "b sparse, ragged, f16": (37, 71, 100, 1, True, F16),
    "b sparse, ragged, bf16": (37, 71, 100, 1, True, BF16),
    "b sparse, one row": (1, 40, 72, 1, True, F16),
    "a sparse, f16": (70, 48, 136, 0, False, F16),  # columns of b are contiguous, and aligned
    "a sparse, bf16": (70, 48, 136, 0, False, BF16),
    "a sparse, ragged": (33, 13, 36, 0, False, BF16),
    "a sparse, b transposed": (33, 40, 200, 0, True, F16),
    "one group": (1, 1, 4, 1, True, F16),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    """As exact as torch's dense product in that type."""
    m, n, k, weight, transposed, dtype = PRODUCTS[name]
    case = Case(product(m, n, k, dtype, transposed=transposed), weight)
    got = case.run()[2].reshape(m, n)
    a, b = case.memory[0].reshape(m, k), case.memory[1]
    b = b.reshape(n, k).t() if transposed else b.reshape(k, n)
    exact = a.double() @ b.double()
    error = (got.double() - exact).abs().max()
    dense = ((a @ b).double() - exact).abs().max()
    step = torch.finfo(dtype.torch).eps * exact.abs().max()  # of rounding the result
    assert error <= torch.maximum(2 * dense, step)


# As PRODUCTS, of int8.
BYTES = {
    "b sparse": (16, 64, 128, 1, True),
    "b sparse, ragged": (37, 71, 100, 1, True),  # rows of a are not aligned
    "b sparse, several blocks along k": (40, 40, 656, 1, True),
    "a sparse": (70, 48, 272, 0, False),  # columns of b are contiguous, and aligned
    "a sparse, wide": (33, 160, 132, 0, False),
    "a sparse, ragged": (33, 13, 36, 0, False),
    "a sparse, b transposed": (33, 40, 208, 0, True),
    "one group": (1, 1, 4, 1, True),
}


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("name", BYTES)
def test_products_of_bytes_are_exact(name: str, is_reversed: bool) -> None:
    m, n, k, weight, transposed = BYTES[name]
    case = Case(product(m, n, k, I8, epilogue=True, transposed=transposed), weight)
    case.check(is_reversed)
    a, b = case.memory[0].reshape(m, k), case.memory[1]
    b = b.reshape(n, k).t() if transposed else b.reshape(k, n)
    bias, residual = case.memory[2], case.memory[3].reshape(m, n)
    exact = (a.long() @ b.long() + bias).abs() + residual
    assert torch.equal(case.run(is_reversed=is_reversed)[4].reshape(m, n).long(), exact)


def test_the_largest_products_of_bytes() -> None:
    """-128 times -128, and sums beyond 32 bits, which wrap as in eager."""
    k = 1 << 19
    case = Case(product(1, 1, k, I8, transposed=True), 1)
    case.memory[0].fill_(-128)
    weight = torch.tensor([-128, 0, 0, -128], dtype=torch.int8).repeat(k // 4).reshape(1, k)
    compressed = compress_for_mma(case.form, weight)
    got = case.run(compressed=compressed)[2]
    exact = 128 * 128 * (k // 2)
    assert exact >= 1 << 31 and int(got) == (exact + (1 << 31)) % (1 << 32) - (1 << 31)


def quantized(m: int, n: int, k: int, computed: bool = False, layer: bool = True) -> LoopNest:
    """``out[i, j] = (sum_r x[i, r] * w[j, r]) * scale[j] + bias[j]``, of int8 x and w and f16 scales, as f16; ``computed``:
    x is quantized on the way from f32. Unless ``layer``, x is [k, m]."""
    i, j, r = Axis("i", m), Axis("j", n), Axis("r", k)
    ii, jj, rr = (axis_index(a) for a in (i, j, r))
    body, i32 = Body(), DType.I32
    new = body.add
    x = new(Load, F32 if computed else I8, 1, ii * k + rr if layer else rr * m + ii)
    if computed:
        scaled = new(Compute, F32, "round", (new(Compute, F32, "mul", (x, new(Const, F32, 32.0))),))
        most = new(Compute, F32, "minimum", (scaled, new(Const, F32, 127.0)))
        least = new(Compute, F32, "maximum", (most, new(Const, F32, -128.0)))
        x = new(Compute, I8, "cast", (least,))
    factors = [new(Compute, i32, "cast", (v,)) for v in (x, new(Load, I8, 0, jj * k + rr))]
    total = new(Reduce, i32, "sum", new(Compute, i32, "mul", tuple(factors)))
    stages = [body.stage(r)]
    value = new(Compute, F32, "cast", (total,))
    for op, buffer in (("mul", 2), ("add", 3)):
        more = new(Compute, F32, "cast", (new(Load, F16, buffer, jj),))
        value = new(Compute, F32, op, (value, more))
    body.store(4, ii * n + jj, new(Compute, F16, "cast", (value,)))
    sizes = ((I8, n * k), (F32 if computed else I8, m * k), (F16, n), (F16, n))
    buffers = [BufferParam(d, "in", size) for d, size in sizes] + [BufferParam(F16, "out", m * n)]
    return LoopNest((i, j), (*stages, body.stage()), tuple(buffers))


@pytest.mark.parametrize("computed", [False, True])
def test_scales_of_bytes(computed: bool) -> None:
    case = Case(quantized(21, 34, 144, computed), 0)
    case.memory[2] /= 4096  # f16 holds the results
    case.check()


EPILOGUES = {
    "bias": ("bias",),
    "gelu": ("bias", "gelu"),
    "silu and residual": ("silu", "residual"),
    "all, in single precision": ("bias", "gelu", "residual", "wide"),
}


def linear(
    m: Dim, n: int, k: int, dtype: DType, parts: tuple[str, ...] = (), first: DType | None = None
) -> LoopNest:
    """``x[m, k] @ w[n, k]^T`` and what follows, rounded as in eager after each part; b0 is w, b1 x of type
    ``first``, whose values are rounded to ``dtype`` before the product."""  # fmt: skip
    i, j, r = Axis("i", m), Axis("j", n), Axis("r", k)
    ii, jj, rr = (axis_index(a) for a in (i, j, r))
    body, first = Body(), first or dtype
    new = body.add

    def rounded(value: int) -> int:
        return new(Compute, F32, "cast", (new(Compute, dtype, "cast", (value,)),))

    x = new(Load, first, 1, ii * k + rr)
    left = rounded(x) if first is not dtype else new(Compute, F32, "cast", (x,))
    right = rounded(new(Compute, F32, "cast", (new(Load, dtype, 0, jj * k + rr),)))
    total = new(Reduce, F32, "sum", new(Compute, F32, "mul", (left, right)))
    stages = [body.stage(r)]
    buffers = [BufferParam(dtype, "in", n * k), BufferParam(first, "in", m * k)]
    value = rounded(total)
    for part in parts:
        if part in ("bias", "residual"):
            at = jj if part == "bias" else ii * n + jj
            more = new(Compute, F32, "cast", (new(Load, dtype, len(buffers), at),))
            buffers.append(BufferParam(dtype, "in", n if part == "bias" else m * n))
            value = rounded(new(Compute, F32, "add", (value, more)))
        elif part == "silu":
            gate = new(Compute, F32, "sigmoid", (value,))
            value = rounded(new(Compute, F32, "mul", (value, gate)))
        elif part == "gelu":
            scaled = new(Compute, F32, "mul", (value, new(Const, F32, 0.7071067811865476)))
            error = new(
                Compute, F32, "add", (new(Compute, F32, "erf", (scaled,)), new(Const, F32, 1.0))
            )
            half = new(Compute, F32, "mul", (value, new(Const, F32, 0.5)))
            value = rounded(new(Compute, F32, "mul", (half, error)))  # fmt: skip
    out = F32 if "wide" in parts else dtype
    body.store(
        len(buffers), ii * n + jj, value if out is F32 else new(Compute, out, "cast", (value,))
    )
    buffers.append(BufferParam(out, "out", m * n))
    stages.append(body.stage())
    symbols = (m,) if isinstance(m, sympy.Symbol) else ()
    return LoopNest((i, j), tuple(stages), tuple(buffers), symbols)


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name: str) -> None:
    Case(linear(21, 34, 40, F16, EPILOGUES[name]), 0).check()


def test_columns_that_are_not_known() -> None:
    """One kernel for all numbers of rows of x."""
    m = sympy.Symbol("n0", integer=True, positive=True)
    nest = linear(m, 40, 72, BF16, ("bias",))
    cases = [Case(nest, 0, sizes=(count,)) for count in (1, 70)]
    assert cases[0].code.text == cases[1].code.text
    for case in cases:
        case.check()


def test_a_factor_that_is_rounded_on_the_way() -> None:
    Case(linear(18, 40, 72, F16, first=F32), 0).check()


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_what_is_computed_before_the_loop(dtype: DType) -> None:
    Case(scaled(18, 40, 72, dtype), 1).check()


full = pytest.mark.full
TILES = [
    (128, 128, 2, 4),
    (64, 32, 2, 1),
    *(pytest.param(t, marks=full) for t in ((128, 64, 2, 2), (64, 64, 1, 2), (128, 32, 4, 1))),
]


@pytest.mark.parametrize("sizes", TILES, ids=str)
def test_tiles(sizes: tuple[int, int, int, int]) -> None:
    """Of all sizes, with edges, through all stages of the pipeline and round again."""
    Case(linear(sizes[1] + 5, sizes[0] + 7, 264, BF16), 0, Tiles(*sizes, 3)).check()


@pytest.mark.parametrize("dtype", [F16, I8])
@pytest.mark.parametrize("columns", [32, *(pytest.param(n, marks=full) for n in (64, 128))])
def test_tiles_with_contiguous_columns(columns: int, dtype: DType) -> None:
    tiles = Tiles(64, columns, 1, 2, 4)
    Case(product(70, columns + 16, 272, dtype), 0, tiles).check()


@pytest.mark.parametrize("sizes", TILES, ids=str)
def test_tiles_of_bytes(sizes: tuple[int, int, int, int]) -> None:
    nest = product(sizes[1] + 5, sizes[0] + 7, 528, I8, transposed=True)
    Case(nest, 1, Tiles(*sizes, 3)).check()


def test_threads_in_the_other_order() -> None:
    Case(linear(40, 40, 328, BF16), 0).check(is_reversed=True)


def test_batches_and_views_are_columns() -> None:
    """A result that is stored as [b, heads, s, width], of x [b, s, k]."""
    axes = Axis("b", 2), Axis("s", 5), Axis("h", 3), Axis("e", 8)
    r = Axis("r", 40)
    bb, ss, hh, ee, rr = (axis_index(a) for a in (*axes, r))
    body = Body()
    x = body.add(Compute, F32, "cast", (body.add(Load, F16, 0, bb * 200 + ss * 40 + rr),))
    w = body.add(Compute, F32, "cast", (body.add(Load, F16, 1, hh * 320 + ee * 40 + rr),))
    total = body.add(Reduce, F32, "sum", body.add(Compute, F32, "mul", (x, w)))
    stages = [body.stage(r)]
    rounded = body.add(Compute, F16, "cast", (total,))
    body.store(2, bb * 120 + hh * 40 + ss * 8 + ee, rounded)
    stages.append(body.stage())
    buffers = [BufferParam(F16, role, n) for role, n in (("in", 400), ("in", 960), ("out", 240))]
    Case(LoopNest(axes, tuple(stages), tuple(buffers)), 1).check()


def test_every_op_that_may_surround_a_product() -> None:
    assert set(TABLE) == PLAIN_OPS
    nest = linear(5, 8, 4, F16, ("wide",))
    total = max(i.id for i in nest.stages[0].body if not isinstance(i, L.Store))
    body, out = Body(total + 1), list(nest.buffers[:2])
    at = nest.stages[1].body[-1].index
    one, half, huge = (body.add(Const, F32, x) for x in (1.0, 0.5, float("inf")))
    small = body.add(Compute, F32, "mul", (total, body.add(Const, F32, 0.125)))
    above = body.add(Compute, BOOL, "gt", (small, half))
    whole = body.add(Compute, DType.I32, "cast", (total,))
    three = body.add(Const, DType.I32, -3)
    unsure = body.add(
        Compute, F32, "where", (above, body.add(Compute, F32, "sub", (huge, huge)), small)
    )

    def keep(value: int, dtype: DType) -> None:
        body.store(len(out), at, value)
        out.append(BufferParam(dtype, "out", 40))

    for op in sorted(PLAIN_OPS - {"where", "cast", "and", "or", "xor", "not", "isnan"}):
        args = (small, half) if op in _BINARY else (small,)
        compares = op in ("eq", "ne", "lt", "le", "gt", "ge")
        keep(body.add(Compute, BOOL if compares else F32, op, args), BOOL if compares else F32)
    for op in ("add", "sub", "mul", "maximum", "minimum", "and", "or", "xor"):
        keep(body.add(Compute, DType.I32, op, (whole, three)), DType.I32)
    for op in ("neg", "abs", "sign", "not"):
        keep(body.add(Compute, DType.I32, op, (whole,)), DType.I32)
    keep(body.add(Compute, BOOL, "isnan", (unsure,)), BOOL)
    for op in ("maximum", "minimum", "fmax", "fmin"):
        keep(body.add(Compute, F32, op, (one, unsure)), F32)
        keep(body.add(Compute, F32, op, (unsure, one)), F32)
    keep(body.add(Compute, BOOL, "not", (above,)), BOOL)
    keep(body.add(Load, F16, 1, axis_index(nest.axes[0]) * 4, above, 0.25), F16)
    for dtype in (BF16, F16, DType.F64, DType.I64, DType.U8, BOOL):
        keep(body.add(Compute, dtype, "cast", (total,)), dtype)
    nest = replace(nest, stages=(nest.stages[0], body.stage()), buffers=tuple(out))
    case = Case(nest, 0)
    for got, want, param in zip(case.run(), case.wanted(), nest.buffers, strict=True):
        if param.role == "out":
            torch.testing.assert_close(got, want, rtol=4e-3 if param.dtype in (F16, BF16) else 2e-6,
                                       atol=1e-6, equal_nan=True)  # fmt: skip


_BINARY = frozenset((
    "add", "sub", "mul", "div", "pow", "atan2", "hypot", "copysign", "maximum", "minimum", "fmax", "fmin",
    "eq", "ne", "lt", "le", "gt", "ge",
))  # fmt: skip


def test_zeros_that_are_not_kept_are_not_multiplied() -> None:
    """Unlike in a dense product, where a zero times infinity is nan (docs/sparse.md)."""
    case = Case(linear(3, 8, 16, F16), 0)
    weight = case.memory[0].reshape(8, 16)
    weight[:] = torch.tensor([1.0, 0.0, 2.0, 0.0]).repeat(8, 4)
    weight[0, :4] = 0.0  # two of these are kept, so that two are multiplied
    case.memory[1][:] = torch.inf
    got = case.run(compressed=compress_for_mma(case.form, weight))[2].reshape(3, 8)
    assert bool(torch.isnan(got[:, 0]).all()) and bool((got[:, 1:] == torch.inf).all())


# --- what is wrong must be noticed


def _differs(
    case: Case, code: KernelCode | None = None, compressed: torch.Tensor | None = None
) -> bool:
    """Whether some order of threads shows that it is wrong."""
    want, slack = case.wanted()[-1], 1e-2 if case.factors.dtype.is_float else 0.0
    for is_reversed in (False, True):
        try:
            got = case.run(code, compressed, is_reversed)[-1]
        except EmulatorError:
            return True
        if not torch.allclose(got.double(), want.double(), rtol=slack, atol=slack):
            return True
    return False


def _are_noticed(case: Case, wrong: Mapping[str, torch.Tensor]) -> None:
    """Asserts that the kernel gives other results with each of these metadata."""
    values = case.compressed[: case.form.metadata_offset]
    for what, metadata in wrong.items():
        found = torch.cat([values, metadata.reshape(-1).view(torch.uint8)])
        assert _differs(case, compressed=found), what


def test_wrong_metadata_are_noticed() -> None:
    case = Case(linear(16, 64, 128, F16), 0)
    assert not _differs(case)
    at = case.form.metadata_offset
    metadata = case.compressed[at:].view(torch.int32).reshape(-1, 8, 4)
    wrong = {
        "rows g and g + 8": (metadata << 16) | (metadata >> 16 & 0xFFFF),
        "threads of a pair": metadata[..., [1, 0, 3, 2]],
        "pairs of threads": metadata[..., [2, 3, 0, 1]],
        "one bit": metadata ^ 1,
    }
    _are_noticed(case, wrong)


MUTATIONS = {
    "copies that are not waited for": ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>"),
    "no barrier before a stage is read": ("__syncthreads();  // this", "// this"),
    "the metadata of other rows": ("mma_sp<SHARING - 1>", "mma_sp<0>"),
    "chunks where they are not": ("4 * step + lane / 8", "4 * step + (lane / 8 ^ 1)"),
    "a copy beyond the end": ("column < COLUMNS && depth < DEPTH", "true"),
}


def test_wrong_metadata_of_bytes_are_noticed() -> None:
    case = Case(product(16, 64, 256, I8, transposed=True), 1)
    assert not _differs(case)
    at = case.form.metadata_offset
    metadata = case.compressed[at:].view(torch.int32).reshape(-1, 2, 8, 4)
    wrong = {
        "rows g and g + 8": metadata[..., [1, 0, 3, 2]],
        "halves along k": metadata[..., [2, 3, 0, 1]],
        "weights of a word": (metadata << 16) | (metadata >> 16 & 0xFFFF),
        "instructions": metadata[:, [1, 0]],
        "one bit": metadata ^ 1,
    }
    _are_noticed(case, wrong)


MUTATIONS_OF_BYTES = {
    "the metadata of other rows": ("i % 2 / SHARING", "0"),
    "rows along k in another order": ("depth_at(down)", "down"),
    "columns that are not dealt out": ("0x7531", "0x6420"),
    "columns of other tiles": ("j % TOGETHER;", "1 - j % TOGETHER;"),
}


WRONG = only_interpreted("hardware need not notice")


@WRONG
@pytest.mark.parametrize("what", MUTATIONS_OF_BYTES)
def test_wrong_kernels_of_bytes_are_noticed(what: str) -> None:
    old, new = MUTATIONS_OF_BYTES[what]
    case = Case(product(64, 48, 272, I8), 0)
    assert old in case.code.text and not _differs(case)
    assert _differs(case, replace(case.code, text=case.code.text.replace(old, new)))


@WRONG
@pytest.mark.parametrize("what", MUTATIONS)
def test_wrong_kernels_are_noticed(what: str) -> None:
    old, new = MUTATIONS[what]
    case = Case(linear(13, 64, 328, F16), 0)
    assert old in case.code.text
    assert _differs(case, replace(case.code, text=case.code.text.replace(old, new)))


def test_tiles_fit_every_gpu() -> None:
    for arch in (80, 86, 89, 90, 100, 120):
        target = gpu_target(f"sm_{arch}")
        for rows, columns in ((4096, 4096), (4096, 1), (64, 64), (11008, 100)):
            for dtype in MMAS:
                tiles = choose_tiles(dtype, rows, columns, target)
                for rows_are_fast in (False, True):
                    assert tiles.shared_bytes(dtype, rows_are_fast) <= target.shared_bytes
    assert choose_tiles(F16, 4096, 4096, TARGET).columns == 128
    assert choose_tiles(F16, 4096, 8, TARGET).columns == 16
