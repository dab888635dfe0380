"""Copies of factors in the order in which oneDNN's kernels of half types take them."""

from __future__ import annotations

import ctypes

import pytest
import torch

from lazyc.ir.types import DType
from lazyc.runtime.half_tiles import build_copies, find_half_kernels
from lazyc.runtime.threads import torch_library

Tensor = torch.Tensor
WORD = ctypes.c_int64
SIZES = [(2, 1), (2, 32), (62, 37), (64, 50), (6, 16)]


def copied(address: int, source: Tensor, k: int, n: int) -> Tensor:
    """What a copy makes; behind it lies a number that it must not touch."""
    out = torch.full((k * n + 1,), 7.0, dtype=source.dtype)
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, WORD, WORD, WORD, ctypes.c_void_p)
    signature(address)(source.data_ptr(), source.stride(0), k, n, out.data_ptr())
    assert out[-1] == 7
    return out[:-1]


def pairs(b: Tensor) -> Tensor:
    k, n = b.shape
    return b.reshape(k // 2, 2, n).transpose(1, 2).reshape(-1)


@pytest.mark.parametrize(("k", "n"), SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_copies(k: int, n: int, dtype: torch.dtype) -> None:
    code = build_copies()
    rows, columns = torch.randn(k, n + 3).to(dtype), torch.randn(n, k + 5).to(dtype)
    assert torch.equal(copied(code.by_rows, rows, k, n), pairs(rows[:, :n]))
    assert torch.equal(copied(code.by_columns, columns, k, n), pairs(columns[:, :k].T))
    assert torch.equal(copied(code.transposed, rows, k, n), rows[:, :n].T.reshape(-1))


def test_kernels_are_those_that_can_run() -> None:
    """The same whether oneDNN is switched on or not; none without a library."""
    assert find_half_kernels(None) == {}
    with torch.backends.mkldnn.flags(enabled=False):
        switched_off = find_half_kernels(torch_library())
        assert not any(kernel.is_usable for kernel in switched_off.values())
    assert find_half_kernels(torch_library()) == switched_off
    assert switched_off.keys() <= {DType.F16, DType.BF16}
