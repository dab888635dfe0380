"""Long products of few tiles in parts: the model, the Graph, results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton.contraction import Contraction
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph
from lazyc.ir.interp import run_graph
from lazyc.ir.sparse import Sparsity
from lazyc.ir.types import DType, TensorType
from lazyc.passes.manager import run_passes
from lazyc.passes.pipeline import pipeline
from lazyc.passes.products_as_loops import products_as_loops
from lazyc.passes.schedule import schedule
from lazyc.passes.split_products import Product, choose, split_products
from tests.passes.build import Make, kernels, run_program

BF16 = DType.BF16
H100 = gpu_target("sm_90").product_costs
FREE = replace(H100, kernel_seconds=0.0, bytes_per_second=1e30, half_flops=1.0, single_flops=1.0)


# --- the model ------------------------------------------------------------------------------------


def test_the_gradient_of_a_weight_fills_the_gpu() -> None:
    """[64, 576] elements that are sums over 32 images of 56 x 56: 9 tiles."""
    found = choose(Product(BF16, 1, 64, 576, (32, 56, 56)), H100)
    assert found is not None and found.parts * 9 >= H100.programs
    assert (found.whole, found.parts) == (0, found.part)


def test_parts_may_be_several_dims() -> None:
    found = choose(Product(BF16, 1, 64, 64, (2, 112, 112)), H100)
    assert found is not None and found.whole == 1 and found.parts == 2 * found.part > 2


@pytest.mark.parametrize(
    "product",
    [
        Product(BF16, 1, 4096, 4096, (4096,)),  # tiles enough
        Product(BF16, 1, 64, 64, (512,)),  # done before another kernel would start
        Product(BF16, 1, 64, 64, (100003,)),  # a prime
    ],
    ids=str,
)
def test_others_stay(product: Product) -> None:
    assert choose(product, H100) is None


def test_a_part_is_long() -> None:
    found = choose(Product(BF16, 1, 64, 64, (2048,)), FREE)
    assert found is not None and found.parts == 2048 // 256


# --- the Graph ------------------------------------------------------------------------------------


def long_product(dtype: DType = DType.F32) -> Graph:
    b = Make()
    left, right = b.input(16, 1024, dtype=dtype), b.input(1024, 17, dtype=dtype)
    return b.outputs(b.emit("matmul", left, right))


@pytest.mark.parametrize("dtype", [DType.F32, BF16], ids=str)
def test_results(dtype: DType) -> None:
    """In four parts, as batches of one contraction that keeps its half type, and a sum."""
    graph = long_product(dtype)
    made = run_passes(graph, pipeline(True, True, FREE), verify=True)[-1].graph
    (decision,) = (d for d in made.decisions if d.by == "split_products")
    assert "in 4 parts" in decision.what and decision.bytes_copied == 4 * 16 * 17 * 4
    torch.manual_seed(0)
    args = [torch.randn(n.shape).to(dtype.torch) for n in graph.inputs]
    program = schedule(made)
    (got,) = run_program(program, args)
    want = (args[0].double() @ args[1].double()).to(dtype.torch)
    torch.testing.assert_close(got, want, rtol=2**-7 if dtype is BF16 else 1e-5, atol=1e-4)
    found = [Contraction.find(program.nests[s.nest]) for s in kernels(program)]
    (first,) = (c for c in found if c is not None)
    assert len(found) == 2 and first.loop.axes[0].size == 256
    assert {b.dtype for b in first.nest.buffers if b.role == "in"} == {dtype}


def test_the_graph_computes_the_same() -> None:
    graph = products_as_loops(long_product())
    args = [torch.randn(n.shape) for n in graph.inputs]
    (want,), (got,) = run_graph(graph, args), run_graph(split_products(graph, FREE), args)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sparsity", [None, "2:4"])
def test_sparse_weights_stay_whole(sparsity: Sparsity | None) -> None:
    b = Make()
    type_ = TensorType(BF16, (64, 1024))
    weight = b.emit("input", attrs=A.InputAttrs(0, "w", type_, (1024, 1), True, sparsity=sparsity))
    x = b.emit("input", attrs=A.InputAttrs(1, "x", type_, (1024, 1)))
    graph = products_as_loops(b.outputs(b.emit("matmul", x, b.permute(weight, (1, 0)))))
    assert bool(split_products(graph, FREE).decisions) == (sparsity is None)
