"""Products with few tiles: the sum over k in parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.product_costs import ProductCosts
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph
from lazyc.ir.interp import run_graph
from lazyc.ir.types import DType, TensorType
from lazyc.ir.verify import verify_graph
from lazyc.passes.products_as_loops import products_as_loops
from lazyc.passes.schedule import schedule
from lazyc.passes.split_products import Product, choose_parts, seconds, split_products
from tests.passes.build import Make, kernels, run_program

H100 = gpu_target("sm_90").product_costs
# So slow at arithmetic that even small products are worth to be cut.
SLOW = ProductCosts(half_flops=1e9, single_flops=1e9, bytes_per_second=1e12, multiprocessors=132)
CPU = ProductCosts(half_flops=1e12, single_flops=1e12, bytes_per_second=1e11)


def product(
    *batch: int, m: int = 16, n: int = 32, k: int = 1024, dtype: DType = DType.F32
) -> Graph:
    b = Make()
    x, y = b.input(*batch, m, k, dtype=dtype), b.input(*batch, k, n, dtype=dtype)
    return b.outputs(b.emit("exp", b.emit("matmul", x, y)))


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_parts_are_added_in_the_kernel_that_reads_the_sum(batch, dtype) -> None:
    graph = product(*batch, dtype=dtype)
    found = products_as_loops(split_products(graph, SLOW))
    verify_graph(found)
    (decision,) = found.decisions
    args = [torch.randn(*batch, *s).mul(0.05).to(dtype.torch) for s in ((16, 1024), (1024, 32))]
    (want,) = run_graph(graph, args)
    (got,) = run_graph(found, args)
    torch.testing.assert_close(got, want)
    program = schedule(found)
    first, second = kernels(program)  # the parts; their sum and exp
    parts = program.buffers[first.buffers[-1]]
    assert parts.dtype is DType.F32 and parts.shape == (4, *batch, 16, 32)
    assert first.buffers[-1] in second.buffers
    assert decision.what == "product of [16, 1024] and [1024, 32] in 4 parts"
    assert decision.why == f"{(batch or (1,))[0]} tiles for 132 multiprocessors"
    assert decision.bytes_copied == 4 * 4 * 16 * 32 * (batch or (1,))[0]
    assert decision.seconds_saved > 0


def test_what_stays_whole() -> None:
    for costs, graph in (
        (CPU, product()),
        (SLOW, product(k=1023)),
        (SLOW, product(k=256)),
        (H100, product(m=4096, n=4096)),
        (SLOW, product(m=8)),
        (SLOW, product(200)),
        (SLOW, product(m=0)),
    ):
        assert [n.op for n in split_products(graph, costs).nodes] == [n.op for n in graph.nodes]


def test_sparse_weights_stay_whole() -> None:
    b = Make()
    x, attrs = (
        b.input(16, 1024),
        A.InputAttrs(1, "w", TensorType(DType.F32, (32, 1024)), (1024, 1), True),
    )
    weight = b.emit("input", attrs=replace(attrs, sparsity="2:4"))
    graph = b.outputs(b.emit("matmul", x, b.permute(weight, (1, 0))))
    assert not split_products(graph, SLOW).decisions


def test_a_program() -> None:
    args = [torch.randn(16, 512), torch.randn(512, 16)]
    graph = product(n=16, k=512)
    (want,) = run_graph(graph, args)
    program = schedule(products_as_loops(split_products(graph, SLOW)))
    assert len(kernels(program)) == 2
    torch.testing.assert_close(run_program(program, args), [want], rtol=1e-4, atol=1e-4)


def test_the_model() -> None:
    """More parts help until the GPU is busy, or their results are the traffic."""
    small = Product(1, 64, 64, 1 << 16, DType.F16)
    times = [seconds(small, p, H100) for p in (1, 2, 4, 8, 16)]
    assert times == sorted(times, reverse=True)
    assert choose_parts(small, H100) == 32
    assert choose_parts(Product(1, 1024, 1024, 1024, DType.F16), H100) == 1
    assert choose_parts(Product(1, 64, 64, 512, DType.F64), H100) == 1
