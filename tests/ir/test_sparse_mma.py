"""The compressed form for the sparse tensor cores: it loses nothing, and lies as the hardware wants it."""

from __future__ import annotations

import pytest
import torch
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass as torchs_form,
)

from lazyc.ir.sparse_mma import MMAS, MmaFormat, compress_for_mma, decompress_for_mma
from lazyc.ir.types import DType
from tests.ir.test_sparse import random_24

SHAPES = [(32, 64), (64, 128), (5, 4), (33, 100), (96, 192)]


@pytest.mark.parametrize("dtype", MMAS)
@pytest.mark.parametrize(("rows", "depth"), SHAPES)
def test_what_was_compressed_comes_back(rows: int, depth: int, dtype: DType) -> None:
    weight, form = random_24(rows, depth, dtype.torch), MmaFormat(dtype, rows, depth)
    weight[0, :4] = 0  # a group with fewer than two weights
    compressed = compress_for_mma(form, weight)
    assert compressed is not None and compressed.numel() == form.nbytes
    assert torch.equal(decompress_for_mma(form, compressed), weight)


def test_none_for_other_weights() -> None:
    assert compress_for_mma(MmaFormat(DType.F16, 8, 8), torch.ones(8, 8).half()) is None


@pytest.mark.parametrize("dtype", MMAS)
def test_metadata_are_those_that_cutlass_takes(dtype: DType) -> None:
    """torch's kernels for 2:4 weights use the same instruction: its words are [step][rows][32
    threads], ours [32 rows][step][rows of a word][32 threads]."""
    rows, depth = 96, 256
    # Two of four are not zero: where fewer are, the choice of what to keep is free.
    groups = torch.rand(rows * depth // 4, 4) * 100 + 1
    groups.scatter_(1, torch.rand_like(groups).argsort(1)[:, :2], 0.0)
    weight, form = groups.to(dtype.torch).reshape(rows, depth), MmaFormat(dtype, rows, depth)
    compressed = compress_for_mma(form, weight)
    assert compressed is not None
    ours = compressed[form.metadata_offset :].view(torch.int32)
    _, theirs = torchs_form(weight)
    words = theirs.contiguous().view(torch.int32)
    words = words.reshape(form.steps, form.groups, form.mma.words, 32)
    assert torch.equal(ours.reshape(form.groups, form.steps, -1, 32), words.transpose(0, 1))
