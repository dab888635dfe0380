"""Kernels of products with block-sparse weights, on each target, against the dense product in f64."""

from __future__ import annotations

import pytest
import torch

from lazyc.codegen.target import Target
from lazyc.ir.block_sparse import compress_blocks, decompress_blocks
from lazyc.ir.sparse import BLOCKS, SparseProduct, Sparsity
from lazyc.ir.types import DType
from tests.codegen.sparse_harness import run

PAD = 3  # columns beyond those of a and c


def random_blocks(n: int, k: int, size: int) -> torch.Tensor:
    """A weight of which each fourth block is not zero, and no block of the last row."""
    kept = torch.zeros(n // size * (k // size))
    kept[::4] = 1
    kept = kept.reshape(n // size, 1, k // size, 1)
    kept[-1] = 0
    return (torch.randn(n // size, size, k // size, size) * kept).reshape(n, k)


def product(sparsity: Sparsity, m: int, n: int, k: int) -> SparseProduct:
    return SparseProduct(sparsity, DType.F32, m, n, k, k + PAD, n + PAD, BLOCKS[sparsity])


@pytest.mark.parametrize("sparsity", BLOCKS)
@pytest.mark.parametrize("m", [1, 7, 8, 19])
def test_numerics(m: int, sparsity: Sparsity, target: Target) -> None:
    n, k, size = 96, 160, BLOCKS[sparsity]
    w, a = random_blocks(n, k, size), torch.randn(m, k + PAD)
    a[:, k:] = torch.nan  # of rows that lie further apart than they are long
    p = product(sparsity, m, n, k)
    compressed = compress_blocks(p, w)
    assert compressed is not None and torch.equal(decompress_blocks(p, compressed), w)
    c = run(p, target, a, compressed, pieces=2)
    exact = a[:, :k].double() @ w.double().t()
    assert (c[:, :n].double() - exact).abs().max() <= 1e-6 * exact.abs().max()
    assert not c[:, n - size : n].any() and bool((c[:, n:] == 7).all())


def test_a_weight_of_zeros_and_one_that_is_too_dense(target: Target) -> None:
    p = product("block 16", 3, 32, 32)
    compressed = compress_blocks(p, torch.zeros(32, 32))
    assert not run(p, target, torch.randn(3, 35), compressed)[:, :32].any()
    one = torch.zeros(32, 32)
    one[17, 3] = torch.nan
    assert compress_blocks(p, one) is not None
    one[:, 20] = 1.0
    assert compress_blocks(p, one) is None
