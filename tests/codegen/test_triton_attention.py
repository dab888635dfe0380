"""Attention without stored scores as Triton kernels, against the evaluator of nests."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from lazyc.codegen.triton.attention import Attention
from lazyc.codegen.triton.bounds import limits
from lazyc.codegen.triton.choices import form_of
from lazyc.codegen.triton.kernel import generate
from lazyc.codegen.triton.score_sums import ScoreSums
from lazyc.ir.index import Axis, Index, axis_index
from lazyc.ir.loops import (
    BufferParam,
    Compute,
    Const,
    Dot,
    IndexValue,
    Instr,
    Load,
    LoopNest,
    Reduce,
    Stage,
    Store,
)  # fmt: skip
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.nest_values import fits_32_bits
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.program import KernelStep
from lazyc.ir.types import DType
from lazyc.passes.attention import attention
from lazyc.passes.products_as_loops import products_as_loops
from lazyc.passes.schedule import schedule
from tests.codegen.attention_graphs import (
    Hide,
    Sizes,
    attention_nests,
    causal,
    score_sum_nest,
    window,
)
from tests.codegen.harness import run
from tests.gpu import KERNELS
from tests.passes.build import Make

pytestmark = pytest.mark.gpu

F32, F16, BF16, I64, BOOL = DType.F32, DType.F16, DType.BF16, DType.I64, DType.BOOL


def check(nest: LoopNest, tolerance: float = 2e-5, *given: torch.Tensor) -> list[torch.Tensor]:
    """Both compute the same; the results. ``given``: buffers in place of random ones."""
    verify_nest(nest)
    assert isinstance(form_of(nest), Attention | ScoreSums)
    assert "tl.dot" in generate(nest, "k").text
    torch.manual_seed(0)
    memory = []
    for param in nest.buffers:
        assert isinstance(param.numel, int)
        data = (
            0.5 * torch.randn(param.numel)
            if param.role == "in"
            else torch.full((param.numel,), 7.0)
        )
        memory.append(data.to(param.dtype.torch))
    memory[: len(given)] = [x.clone() for x in given]
    wanted = [x.clone() for x in memory]
    assert run_nest(nest, wanted) == 0
    assert run(nest, KERNELS, *memory) == 0
    results = []
    for param, got, want in zip(nest.buffers, memory, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
        if param.role == "out":
            results.append(got)
    return results


def near(dtype: DType) -> float:
    return {F32: 2e-5, F16: 3e-3, BF16: 3e-2}[dtype]


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("hide", [None, causal, window])
def test_forward(dtype: DType, hide: Hide | None) -> None:
    (nest,) = attention_nests(Sizes(queries=70, keys=70), dtype, hide)
    check(nest, near(dtype))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("hide", [None, causal, window])
def test_backward(dtype: DType, hide: Hide | None) -> None:
    nests = attention_nests(Sizes(queries=70, keys=70), dtype, hide, backward=True)
    assert [len(Attention.find(n).sums) for n in nests] == [1, 2]  # type: ignore[union-attr]
    for nest in nests:
        check(nest, near(dtype))


@pytest.mark.parametrize("counter", [0, (1 << 33) - 50])
@pytest.mark.parametrize("backward", [False, True])
def test_dropout(backward: bool, counter: int) -> None:
    """Counters may be long where nothing else is: they count scores, which no buffer holds."""
    nests = attention_nests(Sizes(40, 70, drop=0.4, counter=counter), F32, causal, backward)
    for nest in nests:
        assert fits_32_bits(nest)
        check(nest)
        assert (".to(tl.int64) * 70" in generate(nest, "k").text) == (counter > 0)


@pytest.mark.parametrize("backward", [False, True])
def test_sums_over_other_scores_are_kernels_of_their_own(backward: bool) -> None:
    """A kernel walks one block of scores. With the same keys and values, two queries have two."""
    m = Make()
    first, second, k, v = (m.input(2, 40, 16) for _ in range(4))
    lse = m.input(2, 40)
    results = []
    for q in (first, second):
        scores = m.emit("matmul", q, m.transpose(k, -1, -2))
        weights = m.exp(m.sub(scores, m.reduce("max", scores, 2, keepdim=True)))
        if backward:
            weights = m.transpose(m.exp(m.sub(scores, m.unsqueeze(lse, 2))), -1, -2)
        else:
            weights = m.div(weights, m.reduce("sum", weights, 2, keepdim=True))
        results.append(m.emit("matmul", weights, v))
    program = schedule(products_as_loops(attention(m.outputs(*results), "flash")))
    assert len([s for s in program.steps if isinstance(s, KernelStep)]) == 2


LONG = pytest.mark.full
SIZES = [
    Sizes(40, 2), Sizes(17, 33, 24), Sizes(20, 70, 40, heads=1), Sizes(20, 20, 1),
    Sizes(20, 24, 16, groups=3), Sizes(5, 24, 16, groups=4), Sizes(1, 24, 16, groups=4),
    pytest.param(Sizes(16, 16, 256, heads=1), marks=LONG),
    pytest.param(Sizes(33, 130, 40), marks=LONG),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_sizes(sizes: Sizes, backward: bool) -> None:
    for nest in attention_nests(sizes, F32, None, backward):
        if sizes.width == 1:  # no dot: a product of two numbers
            assert Attention.find(nest) is None
        else:
            check(nest, 5e-5)


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("hide", [None, causal, window])
def test_sums_of_scores(dtype: DType, hide: Hide | None) -> None:
    nest = score_sum_nest(Sizes(70, 90, 24, heads=3), dtype, hide)
    assert isinstance(form_of(nest), ScoreSums)
    check(nest, near(dtype))


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(40, 2), Sizes(2, 40), Sizes(20, 24, 16, groups=3), Sizes(5, 24, 40, groups=4),
        Sizes(33, 17, 3), Sizes(40, 70, drop=0.4, counter=(1 << 33) - 50),
    ],
    ids=str,
)  # fmt: skip
def test_sizes_of_sums_of_scores(sizes: Sizes) -> None:
    nest = score_sum_nest(sizes, F32, causal)
    assert isinstance(form_of(nest), ScoreSums)
    check(nest)


def test_rows_without_keys_and_what_is_no_number() -> None:
    """A row that sees no key is nan throughout; nan goes to the rows that see it."""

    def hide(m, i, j):  # type: ignore[no-untyped-def]
        return m.emit("or", m.compare("gt", j, i), m.compare("lt", i, 3))

    (nest,) = attention_nests(Sizes(20, 20, heads=1), F32, hide)
    data = [torch.randn(320) for _ in range(3)]
    data[1].view(20, 16)[10, 2] = float("nan")
    out, top, total = check(nest, 2e-5, *data)
    out = out.view(20, 16)
    assert out[:3].isnan().all() and out[3:10].isfinite().all() and out[10:].isnan().all()
    assert (top[:3] == float("-inf")).all() and total[:3].isnan().all()


def test_infinite_scores() -> None:
    (nest,) = attention_nests(Sizes(20, 20, heads=1))
    data = [torch.rand(320) for _ in range(3)]
    data[1].view(20, 16)[7] = float("inf")
    out, _, _ = check(nest, 2e-5, *data)
    assert out.isnan().all()


@pytest.mark.parametrize("backward", [False, True])
def test_tiles_that_nobody_sees_are_not_visited(backward: bool) -> None:
    sizes = Sizes(128, 128, heads=1)
    for nest in attention_nests(sizes, F32, window, backward):
        (head,) = re.findall(r"for r in range\((\w+), (\w+), 32\)", generate(nest, "k").text)
        assert head[0].startswith("v") and head[1].startswith("v")
    for nest in attention_nests(sizes, F32, None, backward):
        assert "for r in range(0, 128, 32)" in generate(nest, "k").text
    nest = attention_nests(sizes, F32, causal)[0]
    text = generate(nest, "k").text
    assert re.search(r"for r in range\(0, v\d+, 32\)", text)
    # What is not visited is not missed: garbage there changes nothing.
    data = [torch.randn(128 * 16) for _ in range(3)]
    out = check(nest, 2e-5, *data)[0].view(128, 16)[:60]
    for x in data[1:]:
        x.view(128, 16)[100:] = float("nan")
    buffers = [*data, *(torch.empty(int(b.numel)) for b in nest.buffers[3:])]  # type: ignore[arg-type]
    run(nest, KERNELS, *buffers)
    assert torch.equal(buffers[3].view(128, 16)[:60], out)


# --- limits ---------------------------------------------------------------------------------------

ROW, KEY = Axis("i", 64), Axis("j", 64)
AT = {0: IndexValue(0, axis_index(ROW)), 1: IndexValue(1, axis_index(KEY))}


def found(*instrs: Instr, dead: str = "lowest") -> list[tuple[str, bool]]:
    known = {**AT, **{i.id: i for i in instrs if not isinstance(i, Store)}}
    last = instrs[-1]
    assert not isinstance(last, Store)
    return [(str(x.index), x.is_upper) for x in limits(known, last.id, dead, KEY)]  # type: ignore[arg-type]


SCORE, LOWEST, ZERO = Load(2, F32, 0, Index(0)), Const(3, F32, float("-inf")), Const(4, F32, 0.0)


def test_limits_of_masks() -> None:
    le = Compute(5, BOOL, "le", (1, 0))
    masked = Compute(6, F32, "where", (5, 2, 3))
    base = (SCORE, LOWEST, ZERO, le)
    assert found(*base, masked) == [("i", True)]
    assert found(*base, replace(masked, args=(5, 3, 2))) == [("i + 1", False)]
    assert found(*base, replace(le, op="lt"), masked) == [("i + -1", True)]
    assert found(*base, replace(le, op="gt"), masked) == [("i + 1", False)]
    # An added mask, scaled; and its exponential, which is 0.
    mask = Compute(6, F32, "where", (5, 4, 3))
    added = Compute(7, F32, "add", (2, 6))
    assert found(*base, mask, added) == [("i", True)]
    weight = Compute(8, F32, "exp", (7,))
    product = Compute(9, F32, "mul", (weight.id, 2))
    assert found(*base, mask, added, weight, product, dead="zero") == [("i", True)]
    assert found(*base, mask, added, weight, product) == []


def test_limits_of_windows() -> None:
    distance = Compute(5, I64, "sub", (0, 1))
    wide = Const(6, I64, 9)
    far, future = Compute(7, BOOL, "ge", (5, 6)), Compute(8, BOOL, "lt", (0, 1))
    either = Compute(9, BOOL, "or", (7, 8))
    masked = Compute(10, F32, "where", (9, 3, 2))
    assert found(SCORE, LOWEST, distance, wide, far, future, either, masked) == [
        ("i + -8", False), ("i", True),
    ]  # fmt: skip
    both = replace(either, op="and")  # hidden only where both say so
    assert found(SCORE, LOWEST, distance, wide, far, future, both, masked) == []


def test_what_gives_no_limit() -> None:
    le = Compute(5, BOOL, "le", (1, 0))
    for value in (-1e30, 0.0):  # not -inf: a row may have nothing else
        other = Const(3, F32, value)
        assert found(SCORE, other, le, Compute(6, F32, "where", (5, 2, 3))) == []
    loaded = Load(5, BOOL, 1, axis_index(KEY))
    assert found(SCORE, LOWEST, loaded, Compute(6, F32, "where", (5, 2, 3))) == []


# --- dots that are no attention -------------------------------------------------------------------


def test_any_dot_has_code() -> None:
    """``out[i] = exp(sum_e a[i, e] * b[e])``, and a dot of a dot."""
    i, j, e = Axis("i", 50), Axis("j", 5), Axis("e", 7)
    at_i, at_j, at_e = (axis_index(a) for a in (i, j, e))
    body = (
        Load(0, F32, 0, at_i * 7 + at_e),
        Load(1, F32, 1, at_j * 7 + at_e),
        Dot(2, F32, (e,), 0, 1),
        Load(3, F32, 2, at_j),
        Dot(4, F32, (j,), 2, 3),
        Compute(5, F32, "exp", (4,)),
        Store(3, at_i, 5),
    )
    buffers = (
        BufferParam(F32, "in", 350), BufferParam(F32, "in", 35), BufferParam(F32, "in", 5),
        BufferParam(F32, "out", 50),
    )  # fmt: skip
    nest = LoopNest((i,), (Stage((), body),), buffers, (), "outer")
    verify_nest(nest)
    a, b, c, out = 0.3 * torch.randn(50, 7), torch.randn(5, 7), torch.randn(5), torch.empty(50)
    assert run(nest, KERNELS, a.flatten(), b.flatten(), c, out) == 0
    torch.testing.assert_close(out, (a @ b.T @ c).exp())


def test_attention_in_double_precision_has_code() -> None:
    i, j, e = Axis("i", 20), Axis("j", 30), Axis("e", 4)
    at_i, at_j, at_e = (axis_index(a) for a in (i, j, e))
    f64 = DType.F64
    body = (
        Load(0, f64, 0, at_i * 4 + at_e),
        Load(1, f64, 1, at_j * 4 + at_e),
        Dot(2, f64, (e,), 0, 1),
        Reduce(3, f64, "max", 2),
    )
    buffers = (BufferParam(f64, "in", 80), BufferParam(f64, "in", 120), BufferParam(f64, "out", 20))
    nest = LoopNest(
        (i,), (Stage((j,), body), Stage((), (Store(2, at_i, 3),))), buffers, (), "inner"
    )
    assert Attention.find(nest) is None
    a, b = torch.randn(20, 4).double(), torch.randn(30, 4).double()
    out = torch.empty(20).double()
    assert run(nest, KERNELS, a.flatten(), b.flatten(), out) == 0
    torch.testing.assert_close(out, (a @ b.T).amax(1))
