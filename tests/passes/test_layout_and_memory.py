"""Strides of outputs, views passed without copies, mutations, and what lives between calls."""

from __future__ import annotations

import pytest
import torch

from lazyc.ir import attrs as A
from lazyc.ir import program as P
from lazyc.ir.graph import Output
from lazyc.ir.ops import IRError
from lazyc.ir.parser import parse_graph
from lazyc.ir.printer import print_graph
from lazyc.ir.types import contiguous_strides
from lazyc.ir.verify import verify_graph
from lazyc.passes.schedule import schedule
from tests.passes.build import Make, check, kernels, run_program


def test_view_of_a_product_is_handed_out_without_a_copy() -> None:
    b = Make()
    x, w = b.input(6, 8), b.input(8, 4)
    graph = b.outputs(b.reshape(b.emit("matmul", x, w), (2, 3, 4)))
    program = check(graph, torch.randn(6, 8), torch.randn(8, 4))
    assert not kernels(program)


def test_transposed_operands_are_read_in_place() -> None:
    b = Make()
    x, w = b.input(6, 8), b.input(4, 8)
    graph = b.outputs(b.emit("matmul", x, b.permute(w, (1, 0))))
    program = check(graph, torch.randn(6, 8), torch.randn(4, 8))
    (step,) = program.steps
    assert isinstance(step, P.GemmStep)
    assert (step.b.row_stride, step.b.col_stride) == (1, 8)


def test_heads_are_read_in_place_and_written_in_the_order_of_the_reader() -> None:
    batch, heads, length, size = 2, 3, 5, 4
    b = Make()
    x, w = b.input(batch, length, heads * size), b.input(batch, heads, length, length)
    split = b.permute(b.reshape(x, (batch, length, heads, size)), (0, 2, 1, 3))
    joined = b.permute(b.emit("matmul", w, split), (0, 2, 1, 3))
    graph = b.outputs(b.reshape(joined, (batch, length, heads * size)))
    program = check(
        graph, torch.randn(batch, length, heads * size), torch.randn(batch, heads, length, length)
    )
    assert [type(s) for s in program.steps] == [P.GemmStep]


def test_output_strides_are_honoured() -> None:
    b = Make()
    x = b.input(4, 6)
    graph = b.outputs(b.emit("exp", x), strides=[(1, 4)])
    check(graph, torch.randn(4, 6))


def test_same_value_with_two_layouts_is_copied() -> None:
    b = Make()
    e = b.emit("exp", b.input(4, 6))
    graph = b.outputs(e, e, strides=[(6, 1), (1, 4)])
    check(graph, torch.randn(4, 6))


def shared(value, number: int, shape: tuple, strides: tuple, offset: int = 0) -> Output:
    return Output(value, contiguous_strides(value.shape), None, offset, number, shape, strides)


def test_views_share_memory() -> None:
    b = Make()
    e = b.emit("exp", b.input(4, 6))
    graph = b.outputs()
    graph.outputs = [
        shared(e, 0, (4, 6), (6, 1)), shared(e, 0, (6, 3), (1, 6), 6), shared(e, 1, (24,), (1,)),
        Output(e, (6, 1)), Output(e, (6, 1)),
    ]  # fmt: skip
    text = print_graph(graph)
    assert print_graph(parse_graph(text)) == text
    program = check(graph, torch.randn(4, 6))
    assert len({o.buffer for o in program.outputs}) == 4
    results = run_program(program, [torch.zeros(4, 6)])
    results[0].fill_(7.0)
    assert [t.min().item() for t in results] == [7, 7, 1, 1, 1]


def test_a_view_that_reaches_out_of_its_memory_is_refused() -> None:
    b = Make()
    e = b.emit("exp", b.input(4, 6))
    graph = b.outputs()
    graph.outputs = [shared(e, 0, (4, 6), (6, 1), 1)]
    with pytest.raises(IRError, match="reaches out"):
        verify_graph(graph)


def test_an_input_handed_out_is_a_copy() -> None:
    b = Make()
    x = b.input(4, 6)
    args = [torch.randn(4, 6)]
    program = check(b.outputs(x), *args)
    assert program.buffers[program.outputs[0].buffer].kind == "output"


def test_mutation_in_place_reads_the_old_value() -> None:
    b = Make()
    x, y = b.input(4, 6), b.input(4, 6)
    graph = b.outputs(b.emit("mul", x, y))
    graph.mutations = [(x, b.emit("add", x, y))]
    check(graph, torch.randn(4, 6), torch.randn(4, 6))


def test_mutation_by_another_element_of_itself() -> None:
    b = Make()
    x = b.input(5, 3)
    graph = b.outputs()
    flipped = b.emit("slice", x, attrs=A.SliceAttrs((4, 0), (5, 3), (-1, 1)))
    graph.mutations = [(x, flipped)]
    check(graph, torch.randn(5, 3))


def test_swap_of_two_inputs() -> None:
    b = Make()
    x, y = b.input(4), b.input(4)
    graph = b.outputs()
    graph.mutations = [(x, y), (y, x)]
    check(graph, torch.randn(4), torch.randn(4))


def test_two_mutations_that_read_each_other() -> None:
    b = Make()
    x, y = b.input(4), b.input(4)
    graph = b.outputs(b.emit("add", x, y))
    graph.mutations = [(x, b.emit("mul", x, y)), (y, b.emit("sub", x, y))]
    check(graph, torch.randn(4), torch.randn(4))


def test_work_on_parameters_alone_is_kept() -> None:
    b = Make()
    x, w = b.input(4, 6), b.input(6, 5, parameter=True)
    graph = b.outputs(b.emit("matmul", x, b.emit("exp", w)))
    program = check(graph, torch.randn(4, 6), torch.randn(6, 5))
    assert [type(s) for s in program.packed] == [P.KernelStep]
    assert [type(s) for s in program.steps] == [P.GemmStep]
    assert program.parameters == (1,)


def test_work_on_a_parameter_that_is_written_to_is_done_at_each_call() -> None:
    b = Make()
    x, w = b.input(4, 6), b.input(6, 5, parameter=True)
    graph = b.outputs(b.emit("matmul", x, b.emit("exp", w)))
    graph.mutations = [(w, b.emit("neg", w))]
    program = check(graph, torch.randn(4, 6), torch.randn(6, 5))
    assert not program.packed


def test_large_rows_spill_to_memory_instead_of_scratch() -> None:
    b = Make()
    x = b.input(20, 10000)
    e = b.emit("exp", b.emit("sub", x, b.rows(b.max(x, 1), x)))
    graph = b.outputs(b.emit("mul", e, b.rows(b.sum(e, 1), x)))
    program = check(graph, torch.randn(20, 10000) * 0.01)
    nest = program.nests[kernels(program)[0].nest]
    assert not [p for p in nest.buffers if p.role == "scratch"]


def test_expanded_output_is_dense() -> None:
    b = Make()
    row = b.emit("exp", b.input(1, 6))
    graph = b.outputs(b.expand(row, (4, 6)), strides=[(0, 1)])
    program = schedule(graph)
    assert program.outputs[0].strides == (6, 1)
    (result,) = run_program(program, [torch.zeros(1, 6)])
    torch.testing.assert_close(result, torch.ones(4, 6))


def test_a_view_of_an_input_is_not_computed() -> None:
    """Its strides are no layout for what computes with the same values."""
    b = Make()
    wide = b.expand(b.reshape(b.input(1), (1,)), (4,))
    double = b.emit("add", wide, wide)
    graph = b.outputs(wide, b.emit("slice", double, attrs=A.SliceAttrs((1,), (3,), (1,))))
    graph.outputs[0] = Output(wide, (0,), alias_of=0)
    program = check(graph, torch.randn(1))
    assert len(kernels(program)) == 1
