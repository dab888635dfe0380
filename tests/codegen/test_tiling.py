"""Transpositions in tiles: which nests are cut, and that the result is the same."""

from __future__ import annotations

import pytest
import torch

from lazyc.codegen.llvm.tiling import tiled
from lazyc.codegen.target import Target
from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, Compute, IndexValue, Load, LoopNest
from lazyc.ir.nest_text import print_nest
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.types import DType, dtype_from_torch
from tests.codegen.harness import Body, row_major, run


def transpose_nest(batch: int, rows: int, columns: int, dtype: DType) -> LoopNest:
    """out[b, i, j] = in[b, j, i] + i"""
    b, i, j = Axis("b", batch), Axis("i", rows), Axis("j", columns)
    body = Body()
    x = body.add(Load, dtype, 0, row_major((b, j, i)))
    at = body.add(IndexValue, axis_index(i))
    number = body.add(Compute, dtype, "cast", (at,))
    body.store(1, row_major((b, i, j)), body.add(Compute, dtype, "add", (x, number)))
    total = batch * rows * columns
    buffers = (BufferParam(dtype, "in", total), BufferParam(dtype, "out", total))
    return LoopNest((b, i, j), (body.stage(),), buffers)


def test_a_tile_is_a_line_of_neighbours() -> None:
    before = transpose_nest(2, 64, 100, DType.F32)
    after = tiled(before)
    verify_nest(after)
    assert print_nest(after) == (
        "nest outer [b: 2, iq: 4, j: 100]\n"
        "  b0: in f32[12800]\n"
        "  b1: out f32[12800]\n"
        "  loop [ir: 16]\n"
        "    %0 = load b0[b*6400 + iq*16 + ir + j*64] : f32\n"
        "    %1 = index [iq*16 + ir] : i64\n"
        "    %2 = cast %1 : f32\n"
        "    %3 = add %0, %2 : f32\n"
        "    store b1[b*6400 + iq*1600 + ir*100 + j] = %3\n"
    )


@pytest.mark.parametrize(
    "nest",
    [
        transpose_nest(2, 3, 100, DType.F32),  # lanes share lines already
        transpose_nest(2, 61, 100, DType.F32),  # no even cut
    ],
)
def test_left_alone(nest: LoopNest) -> None:
    assert tiled(nest) is nest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 16, 5), (2, 20, 33), (2, 61, 40), (1, 128, 1)])
def test_transposes(target: Target, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    batch, rows, columns = shape
    x = torch.randint(-1000, 1000, (batch, columns, rows)).to(dtype)
    kind = dtype_from_torch(dtype)
    assert kind is not None
    out = torch.full(shape, 777, dtype=dtype)
    assert run(transpose_nest(*shape, kind), target, x, out, pieces=3) == 0
    assert torch.equal(out, x.transpose(1, 2) + torch.arange(rows).to(dtype)[:, None])
