"""Products of half types get results in f32 where they can be too large to be stored."""

from __future__ import annotations

import pytest
import torch

from lazyc.ir import program as P
from lazyc.ir.graph import Graph, Node
from lazyc.ir.interp import run_graph
from lazyc.ir.types import DType
from lazyc.passes import half_products as passes
from lazyc.passes.half_products import half_products
from lazyc.passes.schedule import schedule
from tests.passes.build import Make

HALVES = (DType.F16, DType.BF16)


def factors(b: Make, dtype: DType, *lead: int) -> tuple[Node, Node]:
    return b.cast(b.input(*lead, 5, 4), dtype), b.cast(b.input(*lead, 4, 7), dtype)


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes if n.op.endswith("matmul")]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LEAST_BYTES", 3 * 5 * 7 * 4)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("dtype", HALVES)
def test_a_large_product_is_rounded_by_its_readers(dtype: DType) -> None:
    b = Make()
    graph = b.outputs(b.emit("matmul", *factors(b, dtype, 3)))
    found = half_products(graph)
    assert ops(found) == ["wide_matmul"] and found.outputs[0].value.dtype is dtype  # type: ignore[union-attr]
    args = [torch.randn(3, 5, 4), torch.randn(3, 4, 7)]
    for got, want in zip(run_graph(found, args), run_graph(graph, args), strict=True):
        torch.testing.assert_close(got, want, rtol=2 * torch.finfo(want.dtype).eps, atol=1e-6)
    (step,) = [s for s in schedule(found).steps if isinstance(s, P.GemmStep)]
    assert step.is_wide and (step.dtype, step.result_dtype) == (dtype, DType.F32)


@pytest.mark.parametrize("dtype", HALVES)
def test_small_products_and_those_of_layers_are_left_alone(
    dtype: DType, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = Make()
    assert ops(half_products(b.outputs(b.emit("matmul", *factors(b, dtype, 3))))) == ["matmul"]
    monkeypatch.setattr(passes, "LEAST_BYTES", 0)
    b = Make()
    assert ops(half_products(b.outputs(b.emit("matmul", *factors(b, dtype))))) == ["matmul"]


@pytest.mark.parametrize(("dtype", "op"), [(DType.BF16, "wide_matmul"), (DType.F16, "matmul")])
def test_widened_factors(dtype: DType, op: str) -> None:
    b = Make()
    wide = (b.cast(x, DType.F32) for x in factors(b, dtype, 3))
    assert ops(half_products(b.outputs(b.emit("matmul", *wide)))) == [op]
