"""Products over merged batch dims: read in place over the dims as they were."""

from __future__ import annotations

import pytest
import torch

from lazyc.ir import program as P
from lazyc.ir.graph import Graph, Node
from lazyc.ir.interp import run_graph
from lazyc.passes.manager import run_passes
from lazyc.passes.pipeline import pipeline
from lazyc.passes.schedule import schedule
from lazyc.passes.split_batches import split_batches
from tests.passes.build import Make, kernels, run_program

BATCH, HEADS, LENGTH, SIZE = 2, 3, 5, 4


def heads(b: Make, x: Node) -> Node:
    """The heads of a [b, length, h*size] value, merged with the batch: [b*h, length, size]."""
    split = b.permute(b.reshape(x, (BATCH, LENGTH, HEADS, SIZE)), (0, 2, 1, 3))
    return b.reshape(split, (BATCH * HEADS, LENGTH, SIZE))


def attention(b: Make) -> Graph:
    """``softmax``-less attention of three inputs, as hand-written code has it, and a product after it."""
    q, k, v = (heads(b, b.input(BATCH, LENGTH, HEADS * SIZE)) for _ in range(3))
    scores = b.emit("exp", b.emit("matmul", q, b.permute(k, (0, 2, 1))))
    mixed = b.reshape(b.emit("matmul", scores, v), (BATCH, HEADS, LENGTH, SIZE))
    rows = b.reshape(b.permute(mixed, (0, 2, 1, 3)), (BATCH * LENGTH, HEADS * SIZE))
    return b.outputs(b.emit("matmul", rows, b.input(HEADS * SIZE, 7)))


def test_heads_of_attention_are_read_and_written_in_place() -> None:
    torch.manual_seed(0)
    args = [torch.randn(BATCH, LENGTH, HEADS * SIZE) for _ in range(3)]
    args.append(torch.randn(HEADS * SIZE, 7))
    (want,) = run_graph(attention(Make()), args)
    copies = []
    for disabled in ((), ("split_batches",)):
        graph = run_passes(attention(Make()), pipeline(disabled=disabled), verify=True)[-1].graph
        program = schedule(graph)
        (got,) = run_program(program, args)
        torch.testing.assert_close(got, want)
        copies.append(len(kernels(program)) - 1)  # besides exp
        decided = [d for d in graph.decisions if d.by == "split_batches"]
        assert len(decided) == (0 if disabled else 2)
        if decided:  # the first product reads two operands in place, the second one
            saved = 2 * 4 * BATCH * LENGTH * HEADS * SIZE
            assert [d.bytes_saved for d in decided] == [2 * saved, saved]
            assert [s.batch for s in program.steps if isinstance(s, P.GemmStep)][:2] == [(2, 3)] * 2
    assert copies == [0, 4]


@pytest.mark.parametrize(
    "shape", [(1, HEADS, LENGTH, SIZE), (BATCH, 1, LENGTH, SIZE), (0, HEADS, LENGTH, SIZE)], ids=str
)
def test_batches_that_can_be_read_merged_stay_so(shape: tuple[int, ...]) -> None:
    batch, count, length, size = shape
    b = Make()
    x = b.permute(b.input(batch, length, count, size), (0, 2, 1, 3))
    y = b.input(batch * count, size, 6)
    graph = b.outputs(b.emit("matmul", b.reshape(x, (batch * count, length, size)), y))
    assert split_batches(graph) is graph


def test_dims_of_size_one_are_left_out() -> None:
    """So that the result's readers find the dims that they permute."""
    b = Make()
    x = b.permute(b.input(BATCH, LENGTH, 1, HEADS, SIZE), (2, 0, 3, 1, 4))
    merged = b.reshape(x, (BATCH * HEADS, LENGTH, SIZE))
    y = b.input(BATCH * HEADS, SIZE, 6)
    graph = split_batches(b.outputs(b.emit("matmul", merged, y)))
    (product,) = (n for n in graph.nodes if n.op == "matmul")
    assert product.shape == (BATCH, HEADS, LENGTH, 6)
