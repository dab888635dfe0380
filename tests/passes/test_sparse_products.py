"""Which products get a kernel that reads a compressed weight, and why others do not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
import sympy

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph
from lazyc.ir.program import Buffer, GemmStep, Operand, Program, SparseChoice
from lazyc.ir.sparse import SparseProduct, Sparsity
from lazyc.ir.types import DType, TensorType
from lazyc.passes.sparse_products import choose_sparse_kernels

KERNELS: frozenset[tuple[Sparsity, DType]] = frozenset(
    {("2:4", DType.F32), ("block 16", DType.F32)}
)
M, N, K = 2, 24, 16
STEP = GemmStep(
    DType.F32, (), M, N, K, Operand(0, 5, 40, 1), Operand(1, 0, 1, K), Operand(2, 0, N, 1),
    pack_b=True, comment="aten.mm model.py:3",
)  # fmt: skip


def chosen(
    step: GemmStep = STEP,
    declared: Sparsity | None = "2:4",
    shape: tuple[int, int] = (N, K),
    kernels: Collection[tuple[Sparsity, DType]] = KERNELS,
) -> SparseChoice | None:
    graph = Graph()
    attrs = A.InputAttrs(1, "w", TensorType(step.dtype, shape), (shape[1], 1), True)
    graph.add("input", (), replace(attrs, sparsity=declared))
    buffers = (
        Buffer(0, "input", step.dtype, (M, 40), (40, 1), 0),
        Buffer(1, "input", step.dtype, shape, (shape[1], 1), 1),
        Buffer(2, "output", step.dtype, (M, N), (N, 1)),
    )
    program = Program((0, 1), buffers, (step,), (), {}, parameters=(1,))
    (found,) = choose_sparse_kernels(program, graph, kernels).steps
    assert isinstance(found, GemmStep)
    return found.sparse


def test_a_kernel() -> None:
    found = chosen()
    assert found is not None
    assert found.kernel == SparseProduct("2:4", DType.F32, M, N, K, 40, N, 8)
    assert found.kernel is not None and found.kernel.comment == "aten.mm model.py:3"
    assert found.reason == "reads 0.0 of 0.0 MiB"


def test_none_for_other_weights() -> None:
    assert chosen(declared=None) is None
    assert chosen(replace(STEP, pack_b=False)) is None  # the Graph writes to it, say
    assert chosen(replace(STEP, b=Operand(0, 0, 1, K))) is None


DENSE = {
    "not fixed": replace(STEP, m=sympy.Symbol("s0", integer=True)),
    "no elements": replace(STEP, m=0),
    "more than 2 rows": replace(STEP, m=3),
    "contiguous rows": replace(STEP, b=Operand(1, 0, N, 1)),
    "whole": replace(STEP, n=N - 1),
    "no kernel for bf16": replace(STEP, dtype=DType.BF16),
    "of its other factor": replace(STEP, a=Operand(0, 0, 1, M)),
}


@pytest.mark.parametrize("reason", DENSE)
def test_dense_with_a_reason(reason: str) -> None:
    found = chosen(DENSE[reason])
    assert found is not None and found.kernel is None and reason in found.reason


@pytest.mark.parametrize(
    ("dtype", "n", "k", "most"),
    [
        (DType.F32, 256, 256, 2), (DType.F32, 512, 512, 8), (DType.F32, 256, 4096, 8),
        (DType.F32, 4096, 256, 8), (DType.F32, 2048, 2048, 8), (DType.F32, 4096, 4096, 24),
        (DType.BF16, 256, 256, 24), (DType.BF16, 512, 512, 16), (DType.BF16, 1024, 1024, 8),
        (DType.BF16, 256, 4096, 8), (DType.BF16, 4096, 4096, 6),
    ],
)  # fmt: skip
def test_the_most_rows_depend_on_the_weight(dtype: DType, n: int, k: int, most: int) -> None:
    kernels: set[tuple[Sparsity, DType]] = {("2:4", dtype)}
    a, b, c = Operand(0, 0, k, 1), Operand(1, 0, 1, k), Operand(2, 0, n, 1)
    for m, is_used in ((1, True), (most, True), (most + 1, False)):
        step = GemmStep(dtype, (), m, n, k, a, b, c, pack_b=True)
        found = chosen(step, shape=(n, k), kernels=kernels)
        assert found is not None and (found.kernel is not None) is is_used
        assert is_used or f"of more than {most} rows" in found.reason


def test_groups_that_are_not_whole() -> None:
    found = chosen(replace(STEP, k=14, b=Operand(1, 0, 1, 14)), shape=(N, 14))
    assert found is not None and found.kernel is None
    assert "[24, 14] weights are no whole groups of 4" in found.reason


def test_blocks() -> None:
    """Of any number of rows, where both dims are whole blocks."""
    step = replace(STEP, m=100, n=32, a=Operand(0, 0, 40, 1), c=Operand(2, 0, 32, 1))
    found = chosen(step, "block 16", (32, K))
    assert found is not None
    assert found.kernel == SparseProduct("block 16", DType.F32, 100, 32, K, 40, 32, 16)
    ragged, wide = chosen(STEP, "block 16"), chosen(step, "block 32", (32, K))
    assert ragged is not None and ragged.kernel is None and "groups of 16" in ragged.reason
    assert wide is not None and wide.kernel is None and "groups of 32" in wide.reason
