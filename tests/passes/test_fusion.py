"""Which operators share a kernel, and that fused Programs compute what the Graph says."""

from __future__ import annotations

import pytest
import torch

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph
from lazyc.ir.types import DType
from tests.passes.build import Make, check, kernels


def softmax_of_layer_norm(rows: int, cols: int) -> Graph:
    b = Make()
    x, w = b.input(rows, cols), b.input(cols)
    scale = b.constant(1 / cols, DType.F32, (rows,))
    mean = b.emit("mul", b.sum(x, 1), scale)
    centred = b.emit("sub", x, b.rows(mean, x))
    variance = b.emit("mul", b.sum(b.emit("mul", centred, centred), 1), scale)
    eps = b.constant(1e-5, DType.F32, (rows,))
    inverse = b.emit("rsqrt", b.emit("add", variance, eps))
    normal = b.emit("mul", centred, b.rows(inverse, x))
    y = b.emit("add", b.emit("mul", normal, b.expand(b.reshape(w, (1, cols)), x.shape)), x)
    e = b.emit("exp", b.emit("sub", y, b.rows(b.max(y, 1), x)))
    return b.outputs(b.emit("div", e, b.rows(b.sum(e, 1), x)))


def test_row_chain_is_one_kernel_without_temporaries() -> None:
    graph = softmax_of_layer_norm(24, 40)
    program = check(graph, torch.randn(24, 40), torch.randn(40))
    (step,) = kernels(program)
    nest = program.nests[step.nest]
    assert nest.vectorize == "inner"
    assert [a.size for a in nest.axes] == [24]
    assert not [b for b in program.buffers if b.kind == "temp"]


def test_without_fusion_each_root_is_a_kernel() -> None:
    graph = softmax_of_layer_norm(24, 40)
    program = check(graph, torch.randn(24, 40), torch.randn(40), fusion=False)
    assert len(kernels(program)) > 4


def test_pointwise_chain_collapses_to_one_axis() -> None:
    b = Make()
    x, y = b.input(4, 6, 8), b.input(4, 6, 8)
    graph = b.outputs(b.emit("tanh", b.emit("add", b.emit("mul", x, y), x)))
    program = check(graph, torch.randn(4, 6, 8), torch.randn(4, 6, 8))
    (step,) = kernels(program)
    nest = program.nests[step.nest]
    assert [a.size for a in nest.axes] == [192]
    assert [s.axes for s in nest.stages] == [()]


def test_residual_is_stored_once_and_normalised_in_the_same_kernel() -> None:
    b = Make()
    x, y, z = b.input(20, 32), b.input(20, 32), b.input(20, 32)
    total = b.emit("add", b.emit("add", x, y), z)
    graph = b.outputs(total, b.emit("sub", total, b.rows(b.max(total, 1), total)))
    program = check(graph, *(torch.randn(20, 32) for _ in range(3)))
    assert len(kernels(program)) == 1


def test_column_and_row_reductions_are_separate_kernels() -> None:
    b = Make()
    x = b.input(20, 48)
    graph = b.outputs(b.sum(x, 0), b.sum(x, 1))
    program = check(graph, torch.randn(20, 48))
    assert len(kernels(program)) == 2


def test_two_column_reductions_of_one_input_share_a_kernel() -> None:
    b = Make()
    x, y = b.input(64, 48), b.input(64, 48)
    graph = b.outputs(b.sum(x, 0), b.sum(b.emit("mul", x, y), 0))
    program = check(graph, torch.randn(64, 48), torch.randn(64, 48))
    (step,) = kernels(program)
    assert program.nests[step.nest].vectorize == "outer"


def test_fusion_makes_no_cycle_through_a_library_call() -> None:
    # p feeds the product directly and the sum after it: fusing p with the sum would be a cycle.
    b = Make()
    x, w = b.input(16, 16), b.input(16, 16)
    p = b.emit("exp", x)
    graph = b.outputs(b.emit("add", b.emit("matmul", p, w), p))
    program = check(graph, torch.randn(16, 16), torch.randn(16, 16))
    assert [type(s).__name__ for s in program.steps] == ["KernelStep", "GemmStep", "KernelStep"]


def test_read_of_another_row_is_not_fused() -> None:
    b = Make()
    x = b.input(16, 8)
    e = b.emit("exp", b.emit("exp", x))
    flipped = b.emit("slice", e, attrs=A.SliceAttrs((15, 0), (16, 8), (-1, 1)))
    graph = b.outputs(e, b.emit("add", e, flipped))
    check(graph, torch.randn(16, 8))


def test_read_of_another_element_of_the_row_goes_through_memory() -> None:
    b = Make()
    x = b.input(16, 8)
    shifted = b.emit("sub", x, b.rows(b.max(x, 1), x))
    e = b.emit("exp", shifted)
    flipped = b.emit("slice", e, attrs=A.SliceAttrs((0, 7), (16, 8), (1, -1)))
    graph = b.outputs(b.emit("add", e, flipped))
    check(graph, torch.randn(16, 8))


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (1, 1), (1, 7), (7, 1)])
def test_degenerate_shapes(shape: tuple[int, int]) -> None:
    b = Make()
    x = b.input(*shape)
    graph = b.outputs(b.emit("exp", x), b.sum(x, 1), b.sum(x, 0, 1))
    check(graph, torch.randn(shape))


def test_gather_fuses_with_its_reader() -> None:
    b = Make()
    table = b.input(10, 16)
    ids = b.input(5, dtype=DType.I64)
    rows = b.expand(b.reshape(ids, (5, 1)), (5, 16))
    cols = b.iota_along((5, 16), 1)
    taken = b.emit("gather", table, rows, cols, attrs=A.GatherAttrs(checked=True))
    graph = b.outputs(b.emit("mul", taken, taken))
    program = check(graph, torch.randn(10, 16), torch.tensor([3, 0, 9, 3, 1]))
    (step,) = kernels(program)
    assert [a.size for a in program.nests[step.nest].axes] == [5, 16]


def test_scatter_add_keeps_repeated_rows() -> None:
    b = Make()
    base, update = b.input(6, 8), b.input(4, 8)
    ids = b.input(4, dtype=DType.I64)
    rows = b.expand(b.reshape(ids, (4, 1)), (4, 8))
    cols = b.iota_along((4, 8), 1)
    attrs = A.ScatterAttrs("add", checked=True)
    graph = b.outputs(b.emit("scatter", base, update, rows, cols, attrs=attrs))
    program = check(graph, torch.randn(6, 8), torch.randn(4, 8), torch.tensor([2, 2, 0, 2]))
    nest = program.nests[kernels(program)[1].nest]
    assert [a.size for a in nest.axes] == [8]  # columns cannot collide, rows can


def test_cat_and_pad_are_read_through_masks() -> None:
    b = Make()
    x, y = b.input(3, 5), b.input(4, 5)
    joined = b.emit("cat", x, y, attrs=A.CatAttrs(0))
    padded = b.emit("pad", joined, attrs=A.PadAttrs((0, 2), (0, 1), -1.5))
    program = check(b.outputs(b.emit("exp", padded)), torch.randn(3, 5), torch.randn(4, 5))
    assert len(kernels(program)) == 1


@pytest.mark.parametrize("kind", ["scan_sum", "scan_max"])
@pytest.mark.parametrize("axis", [0, 1])
def test_scans_fuse_with_what_surrounds_them(kind: str, axis: int) -> None:
    b = Make()
    x = b.input(9, 12)
    scanned = b.emit(kind, b.emit("mul", x, x), attrs=A.ScanAttrs(axis))
    program = check(b.outputs(b.emit("sqrt", scanned)), torch.randn(9, 12))
    assert len(kernels(program)) == 1


def test_equal_blocks_share_a_nest() -> None:
    b = Make()
    x = b.input(8, 32)
    w = b.input(32, 32)
    for _ in range(4):
        x = b.emit("tanh", b.emit("matmul", x, w))
    program = check(b.outputs(x), torch.randn(8, 32), torch.randn(32, 32) / 6)
    assert len(kernels(program)) == 4
    assert len(program.nests) == 1
