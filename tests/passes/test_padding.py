"""Operands of products padded where the model of the target says that it pays: the model, the Graph, results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import sympy
import torch

from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.product_costs import ProductCosts
from lazyc.codegen.target import host_target
from lazyc.ir import attrs as A
from lazyc.ir import program as P
from lazyc.ir.graph import Graph, Node
from lazyc.ir.interp import run_graph
from lazyc.ir.printer import print_graph
from lazyc.ir.types import DType, SymbolSource
from lazyc.ir.verify import verify_graph
from lazyc.passes.manager import run_passes
from lazyc.passes.padding import Factor, Padding, Product, choose, pad_products, padded_size
from lazyc.passes.pipeline import pipeline
from lazyc.passes.schedule import schedule
from tests.passes.build import Make, kernels, run_program

F32, BF16 = DType.F32, DType.BF16
H100 = gpu_target("sm_90").product_costs
# So slow to load that copies pay, whatever the sizes; no dim is too small.
SLOW = replace(H100, loads_per_second=1e6, least=2, kernel_seconds=0.0)


# --- the model ------------------------------------------------------------------------------------


def product(
    m: int, n: int, k: int, left: int = 16, right: int = 16, lasts: bool = False, **rest: bool
) -> Product:
    """A bf16 product whose factors are row-major and loaded ``left`` and ``right`` bytes at a time."""
    first = Factor(
        rest.get("left_by_columns", False), left, m * k, False, rest.get("computed", False)
    )
    second = Factor(rest.get("right_by_columns", False), right, k * n, lasts, False)
    return Product(BF16, 1, m, n, k, first, second, rest.get("varies", False))


def dims(found: Padding | None) -> tuple[int, int, int] | None:
    return None if found is None else (found.m, found.n, found.k)


def test_a_weight_is_padded_once() -> None:
    found = choose(product(1024, 50257, 768, right=2, lasts=True), H100)
    assert found is not None and dims(found) == (1024, 50304, 768)
    assert (found.left_width, found.right_width) == (16, 16)
    assert (found.copied, found.kept) == (0, 50304 * 768 * 2)
    # The right factor is read for each of 8 tiles of rows, in loads of 16 instead of 2 bytes.
    fewer = 768 * (50257 / 2 - 50257 / 16) * 2 * 8
    assert found.seconds == pytest.approx(fewer / H100.loads_per_second)


def test_a_copy_at_each_call_is_a_price() -> None:
    few, many = (product(8192, n, 50257, left=2) for n in (128, 4096))
    assert choose(few, H100) is None  # the copies take longer than all of the loads
    found = choose(many, H100)
    assert found is not None and dims(found) == (8192, 4096, 50304)
    assert found.copied == (8192 + 4096) * 50304 * 2
    free = choose(replace(many, left=replace(many.left, lasts=True)), H100)
    assert free is not None and free.seconds > found.seconds
    assert (free.copied, free.kept) == (4096 * 50304 * 2, 8192 * 50304 * 2)


def test_what_a_kernel_writes_for_the_product_is_written_padded() -> None:
    found = choose(product(8192, 768, 50257, left=2, computed=True), H100)
    assert found is not None and found.copied == 8192 * 47 * 2 + 768 * 50304 * 2


def test_small_products_do_not_pay_for_a_kernel() -> None:
    small = product(32, 32, 33, left=2, right=2)
    assert choose(small, H100) is None
    assert choose(small, replace(H100, kernel_seconds=0.0, loads_per_second=1e9)) is not None


def test_factors_that_are_loaded_whole_are_left_alone() -> None:
    assert choose(product(1000, 1000, 1000), SLOW) is None
    # Narrow along a dim that padding does not move: rows of a slice.
    assert choose(product(64, 64, 64, left=2, right=2), SLOW) is None


def test_what_is_not_padded_is_loaded_as_before() -> None:
    """Rows of a slice on the left, which padding does not move; an odd weight on the right."""
    found = choose(product(64, 35, 64, left=2, right=2, lasts=True), SLOW)
    assert found is not None and dims(found) == (64, 40, 64)
    assert (found.left_width, found.right_width) == (2, 16)


def test_dims_are_padded_that_are_contiguous() -> None:
    narrow = {"left": 2, "right": 2, "left_by_columns": True, "lasts": True}
    assert dims(choose(product(33, 34, 35, **narrow), SLOW)) == (40, 40, 35)
    narrow["right_by_columns"] = True
    assert dims(choose(product(33, 34, 35, **narrow), SLOW)) == (40, 34, 40)


def test_where_sizes_change_only_weights_are_padded() -> None:
    assert dims(choose(product(128, 35, 64, right=2, lasts=True, varies=True), SLOW)) == (
        128,
        40,
        64,
    )
    assert choose(product(128, 35, 64, right=2, varies=True), SLOW) is None


@pytest.mark.parametrize(
    ("size", "itemsize", "padded"),
    [(50257, 2, 50304), (50257, 4, 50304), (1000, 2, 1024), (33, 2, 40), (33, 4, 36), (9, 2, 16)],
)
def test_sizes_are_rounded_up_to_tiles_where_that_adds_little(
    size: int, itemsize: int, padded: int
) -> None:
    assert padded_size(size, itemsize, H100) == padded


def test_the_cpu_never_pads() -> None:
    costs = host_target().product_costs
    assert costs.loads_per_second == math.inf
    b = Make()
    w = b.input(64, 33, parameter=True)
    graph = b.outputs(b.emit("matmul", b.input(64, 64), w))
    assert pad_products(graph, costs) is graph
    assert choose(product(8192, 4096, 50257, left=2, right=2, lasts=True), costs) is None


# --- the Graph ------------------------------------------------------------------------------------


def padded(graph: Graph, costs: ProductCosts = SLOW) -> Graph:
    found = pad_products(graph, costs)
    verify_graph(found)
    return found


COLUMNS = """\
%0 = input(index=0, name="x0", strides=(64, 1)) : bf16[32, 64]
%1 = input(index=1, name="x1", strides=(33, 1), is_parameter=True) : bf16[64, 33]
%2 = pad(%1, low=(0, 0), high=(0, 7), value=0.0) : bf16[64, 40]
%3 = slice(%2, starts=(0, 0), sizes=(64, 33), steps=(1, 1)) : bf16[64, 33]
%4 = matmul(%0, %3) : bf16[32, 33]
return %4 strides=(33, 1)
"""


def test_columns_of_a_weight() -> None:
    b = Make()
    x, w = b.input(32, 64, dtype=BF16), b.input(64, 33, dtype=BF16, parameter=True)
    graph = padded(b.outputs(b.emit("matmul", x, w)))
    assert print_graph(graph) == COLUMNS
    (decision,) = graph.decisions
    assert decision.what == "product of bf16[32, 64] and bf16[64, 33]: n 33 -> 40"
    assert decision.why == "loads are wider: 2 -> 16 B"
    assert (decision.bytes_copied, decision.bytes_kept) == (0, 64 * 40 * 2)
    assert decision.seconds_saved > 0


DEPTH = """\
%0 = input(index=0, name="x0", strides=(33, 1)) : f32[32, 33]
%1 = input(index=1, name="x1", strides=(33, 1)) : f32[48, 33]
%2 = permute(%1, dims=(1, 0)) : f32[33, 48]
%3 = pad(%0, low=(0, 0), high=(0, 3), value=0.0) : f32[32, 36]
%4 = pad(%1, low=(0, 0), high=(0, 3), value=0.0) : f32[48, 36]
%5 = permute(%4, dims=(1, 0)) : f32[36, 48]
%6 = matmul(%3, %5) : f32[32, 48]
return %6 strides=(48, 1)
"""


def test_the_depth_of_both() -> None:
    b = Make()
    x, w = b.input(32, 33), b.input(48, 33)
    graph = padded(b.outputs(b.emit("matmul", x, b.permute(w, (1, 0)))))
    assert print_graph(graph) == DEPTH


def left_alone(make: Callable[[Make], Node], costs: ProductCosts = SLOW) -> bool:
    b = Make()
    graph = b.outputs(make(b))
    found = padded(graph, costs)
    return not found.decisions and all(n.op != "pad" for n in found.nodes)


N = sympy.Symbol("n0", integer=True, positive=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda b: b.emit("matmul", b.input(32, 33, dtype=DType.F64), b.input(33, 35, dtype=DType.F64)),
        lambda b: b.emit("matmul", b.input(32, 33, dtype=DType.I64), b.input(33, 35, dtype=DType.I64)),
        lambda b: b.emit("matmul", b.input(32, 64), b.input(64, 36)),
        lambda b: b.emit("matmul", b.input(1, 33), b.input(33, 35)),
        lambda b: b.emit("matmul", b.input(32, 0), b.input(0, 35)),
        lambda b: b.emit("matmul", b.input(0, 33), b.input(33, 35)),
        lambda b: b.emit("matmul", b.input(0, 32, 33), b.input(0, 33, 35)),
    ],
    ids=["f64", "i64", "aligned", "a row", "no depth", "no rows", "no batch"],
)  # fmt: skip
def test_left_alone(make: Callable[[Make], Node]) -> None:
    assert left_alone(make)


def test_sizes_that_change() -> None:
    b = Make()
    x = b.input(N, 64)  # type: ignore[arg-type]
    b.graph.symbols.append(SymbolSource(N, 0, 0))
    known, weight = b.input(64, 35), b.input(64, 33, parameter=True)
    graph = padded(b.outputs(b.emit("matmul", x, known), b.emit("matmul", x, weight)))
    (decision,) = graph.decisions
    assert "n 33 -> 36" in decision.what


# --- results --------------------------------------------------------------------------------------

SHAPES = [
    # (left, left by columns, right, right by columns)
    ((20, 24), False, (24, 17), False),
    ((20, 17), False, (17, 24), False),
    ((20, 17), False, (24, 17), True),
    ((17, 20), True, (17, 19), False),
    ((17, 19), True, (21, 17), True),
    ((3, 18, 17), False, (3, 17, 21), False),
    ((2, 3, 17, 18), True, (2, 3, 17, 21), False),
]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("lasts", [False, True], ids=["argument", "weight"])
@pytest.mark.parametrize("has_products", [False, True], ids=["calls", "kernels"])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_results(case: tuple, has_products: bool, lasts: bool, dtype: DType) -> None:
    """The Program of the padded Graph against that of the Graph as it is, bit for bit, and against torch
    in float64; padding of weights is no work of a call."""
    left, left_turned, right, right_turned = case
    b = Make()
    x, w = b.input(*left, dtype=dtype), b.input(*right, dtype=dtype, parameter=lasts)
    swap = (*range(len(left) - 2), len(left) - 1, len(left) - 2)
    first = b.permute(x, swap) if left_turned else x
    second = b.permute(w, swap) if right_turned else w
    graph = b.outputs(b.emit("matmul", first, second))
    torch.manual_seed(0)
    args = [torch.randint(-8, 9, s).to(dtype.torch) for s in (left, right)]  # sums are exact

    def program(costs: ProductCosts | None) -> P.Program:
        passes = pipeline(True, has_products, costs)
        made = run_passes(graph, passes, verify=True)[-1].graph
        assert any(d.by == "padding" for d in made.decisions) == (costs is not None)
        return schedule(made)

    (got,), (plain,) = (run_program(program(costs), args) for costs in (SLOW, None))
    assert torch.equal(got, plain) and got.stride() == plain.stride()
    wide = [a.double().mT if t else a.double() for a, t in zip(args, (left_turned, right_turned), strict=True)]  # fmt: skip
    torch.testing.assert_close(got.double(), wide[0] @ wide[1], rtol=2**-8, atol=0)


@pytest.mark.parametrize("has_products", [False, True], ids=["calls", "kernels"])
def test_a_factor_with_strides(has_products: bool) -> None:
    """One that lies in no whole rows is copied to such that do, where its depth is padded."""
    b = Make()
    x, w = b.input(18, 17, strides=(60, 3)), b.input(17, 20)
    graph = b.outputs(b.emit("matmul", x, w))
    args = [torch.randn(18, 60)[:, :51:3], torch.randn(17, 20)]
    (want,) = run_graph(graph, args)
    made = run_passes(graph, pipeline(True, has_products, SLOW), verify=True)[-1].graph
    (decision,) = (d for d in made.decisions if d.by == "padding")
    assert "k 17 -> 20" in decision.what and "4 -> 16 B" in decision.why
    (got,) = run_program(schedule(made), args)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("has_products", [False, True], ids=["calls", "kernels"])
def test_what_is_not_finite_stays_where_it_is(has_products: bool) -> None:
    """Padding is multiplied by padding alone: an infinity or nan next to it makes no other nan."""
    b = Make()
    x, w = b.input(18, 17), b.input(17, 19)
    graph = b.outputs(b.emit("matmul", x, w))
    a, c = torch.ones(18, 17), torch.ones(17, 19)
    a[3, 16], a[5, 0], c[16, 18], c[2, 4] = math.inf, math.nan, -math.inf, math.nan
    (want,) = run_graph(graph, [a, c])
    made = run_passes(graph, pipeline(True, has_products, SLOW), verify=True)[-1].graph
    (got,) = run_program(schedule(made), [a, c])
    torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)


def test_a_weight_is_padded_before_the_calls() -> None:
    b = Make()
    x, w = b.input(20, 24), b.input(24, 17, parameter=True)
    graph = run_passes(b.outputs(b.emit("matmul", x, w)), pipeline(True, False, SLOW), True)[
        -1
    ].graph
    program = schedule(graph)
    assert [type(s) for s in program.steps] == [P.GemmStep] and len(program.packed) == 1
    (step,) = program.steps
    assert isinstance(step, P.GemmStep) and step.b.row_stride == 20 and step.pack_b


def test_one_copy_serves_both_products_of_a_backward_pass() -> None:
    """``grad @ w`` and ``grad.T @ x`` read the same padded gradient, which its kernel writes so."""
    b = Make()
    logits, w, x = b.input(24, 17), b.input(17, 20), b.input(24, 20)
    grad = b.emit("exp", b.emit("mul", b.emit("exp", logits), logits))
    graph = b.outputs(b.emit("matmul", grad, w), b.emit("matmul", b.permute(grad, (1, 0)), x))
    made = run_passes(graph, pipeline(True, True, SLOW), verify=True)[-1].graph
    grads = [n for n in made.nodes if n.op == "pad" and n.inputs[0].op == "exp"]
    assert [n.attrs for n in grads] == [A.PadAttrs((0, 0), (0, 3), 0.0)]
    program = schedule(made)
    assert len(kernels(program)) == 4  # the gradient, the padded weight, two products
    args = [torch.rand(24, 17), torch.rand(17, 20), torch.rand(24, 20)]
    for got, want in zip(run_program(program, args), run_graph(graph, args), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_not_kept_is_copied_at_each_call() -> None:
    """The model counts the copy, and the program packs nothing."""
    for keeps in (True, False):
        b = Make()
        x, w = b.input(64, 32, dtype=BF16), b.input(32, 35, dtype=BF16, parameter=True)
        passes = pipeline(keeps, True, SLOW)
        graph = run_passes(b.outputs(b.emit("matmul", x, w)), passes, verify=True)[-1].graph
        (decision,) = (d for d in graph.decisions if d.by == "padding")
        assert (decision.bytes_copied == 0) == keeps
        assert bool(schedule(graph, keeps=keeps).packed) == keeps
