"""Kernels of products with 2:4 weights, on each target, against the dense product in f64."""

from __future__ import annotations

import pytest
import torch

from lazyc.codegen.llvm import assembly
from lazyc.codegen.llvm.sparse_24 import expanded_at_once, generate_24
from lazyc.codegen.target import Target, host_target
from lazyc.ir.sparse import SparseProduct, compress_24
from lazyc.ir.types import DType
from tests.codegen.sparse_harness import run
from tests.ir.test_sparse import random_24

PAD = 3  # columns beyond those of a and c

SHAPES = [
    (1, 64, 64, 8),
    (1, 37, 256, 8),  # the last tile is filled in part
    (2, 5, 100, 8),  # so is the last word
    (3, 13, 20, 4),
    (5, 7, 36, 2),
    (7, 1, 4, 1),  # one group
    (16, 9, 48, 2),  # the rows of a in two passes
]


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
@pytest.mark.parametrize(("m", "n", "k", "tile"), SHAPES)
def test_numerics(m: int, n: int, k: int, tile: int, dtype: DType, target: Target) -> None:
    w, a = random_24(n, k, dtype.torch), torch.randn(m, k + PAD).to(dtype.torch)
    a[:, k:] = torch.nan  # of rows that lie further apart than they are long
    p = SparseProduct("2:4", dtype, m, n, k, k + PAD, n + PAD, tile)
    c = run(p, target, a, compress_24(p, w), pieces=3)
    exact = a[:, :k].double() @ w.double().t()
    error = (c[:, :n].double() - exact).abs().max()
    dense = ((a[:, :k] @ w.t()).double() - exact).abs().max()
    # That of another order of sums, or of rounding the result.
    step = torch.finfo(dtype.torch).eps * exact.abs().max()
    assert error <= torch.maximum(2 * dense, step)
    assert bool((c[:, n:] == 7).all())


def test_what_is_not_finite_reaches_the_result(target: Target) -> None:
    """As in a dense product, where a zero times infinity is nan."""
    p = SparseProduct("2:4", DType.F32, 1, 5, 20, 20, 5, 4)
    w, a = random_24(5, 20), torch.randn(1, 20)
    w[0], w[1, 4:8] = 0.0, torch.tensor([torch.inf, 0.0, 0.0, 0.0])
    a[0, 17] = torch.inf
    assert torch.equal(torch.isnan(run(p, target, a, compress_24(p, w))), torch.isnan(a @ w.t()))
    a[0, 17] = 1.0
    torch.testing.assert_close(run(p, target, a, compress_24(p, w)), a @ w.t())


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_avx512_expands_in_registers(dtype: DType) -> None:
    target = host_target()
    if ("2:4", dtype) not in expanded_at_once(target):
        pytest.skip("this CPU has no instruction for it")
    p = SparseProduct("2:4", dtype, 1, 64, 64, 64, 64, 8)
    text = assembly(generate_24(p, "f", target).text, target)
    assert ("vexpandps" if dtype is DType.F32 else "vpexpandw") in text
    assert text.count("vfmadd") == 8  # no word is left for a second copy of the loop
