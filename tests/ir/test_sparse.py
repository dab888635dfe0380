"""The compressed form of 2:4 weights."""

from __future__ import annotations

import pytest
import torch

from lazyc.ir.sparse import SparseProduct, compress_24, declare, declared, decompress_24, is_24
from lazyc.ir.types import DType


def product(n: int, k: int, tile: int = 4, dtype: DType = DType.F32) -> SparseProduct:
    return SparseProduct("2:4", dtype, 1, n, k, k, n, tile)


def random_24(n: int, k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A weight with none, one or two nonzeros at any places of each group."""
    order = torch.rand(n, k // 4, 4).argsort(-1)
    count = torch.randint(0, 3, (n, k // 4, 1))
    if dtype.is_floating_point:
        values = torch.randn(n, k // 4, 4)
    else:
        values = torch.randint(torch.iinfo(dtype).min, torch.iinfo(dtype).max + 1, (n, k // 4, 4))
    return (values * (order < count)).reshape(n, k).to(dtype)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
@pytest.mark.parametrize(("n", "k", "tile"), [(8, 64, 4), (13, 20, 4), (1, 4, 8), (9, 100, 2)])
def test_round_trip(n: int, k: int, tile: int, dtype: DType) -> None:
    weight, p = random_24(n, k, dtype.torch), product(n, k, tile, dtype)
    compressed = compress_24(p, weight)
    assert compressed is not None and compressed.nbytes == p.nbytes
    assert torch.equal(decompress_24(p, compressed), weight)


def test_every_pattern_of_a_group() -> None:
    patterns = [[code >> i & 1 for i in range(4)] for code in range(16)]
    for pattern in patterns:
        weight = torch.tensor([pattern], dtype=torch.float32) * torch.tensor([1.0, 2.0, 3.0, 4.0])
        compressed = compress_24(product(1, 4), weight)
        assert is_24(weight) == (sum(pattern) <= 2) == (compressed is not None)
        if compressed is not None:
            assert torch.equal(decompress_24(product(1, 4), compressed), weight)


def test_a_large_weight_takes_little_more_than_half() -> None:
    p = product(64, 256)
    assert p.nbytes == 64 * 256 * (4 / 2 + 1 / 8)


def test_values_that_are_no_plain_numbers() -> None:
    weight = torch.tensor([[torch.nan, torch.inf, -0.0, 0.0]])
    compressed = compress_24(product(1, 4), weight)
    assert compressed is not None
    found = decompress_24(product(1, 4), compressed)
    assert torch.isnan(found[0, 0]) and found[0, 1] == torch.inf and not found[0, 2:].any()
    assert not is_24(torch.tensor([[torch.nan, torch.inf, 1e-45, 0.0]]))


def test_strided_weights() -> None:
    weight = random_24(16, 8).t().contiguous().t()
    compressed = compress_24(product(16, 8), weight)
    assert compressed is not None
    assert torch.equal(decompress_24(product(16, 8), compressed), weight)


def test_marks() -> None:
    weight = torch.zeros(4, 4)
    assert declared(weight) is None
    declare(weight, "2:4")
    assert declared(weight) == "2:4"
    weight._lazyc_sparsity = "anything"  # type: ignore[attr-defined]
    assert declared(weight) is None


def test_kernels_differ_in_all_but_the_comment() -> None:
    base = product(8, 8)
    others = [
        SparseProduct("2:4", DType.BF16, 1, 8, 8, 8, 8, 4),
        SparseProduct("2:4", DType.F32, 2, 8, 8, 8, 8, 4),
        SparseProduct("2:4", DType.F32, 1, 9, 8, 8, 8, 4),
        SparseProduct("2:4", DType.F32, 1, 8, 12, 8, 8, 4),
        SparseProduct("2:4", DType.F32, 1, 8, 8, 9, 8, 4),
        SparseProduct("2:4", DType.F32, 1, 8, 8, 8, 9, 4),
        SparseProduct("2:4", DType.F32, 1, 8, 8, 8, 8, 2),
    ]
    assert len({p.key for p in (base, *others)}) == 8
    assert SparseProduct("2:4", DType.F32, 1, 8, 8, 8, 8, 4, "model.py:3").key == base.key
