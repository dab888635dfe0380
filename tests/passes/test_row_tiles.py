"""Chains of products and kernels that go along the same rows are found, and others are not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lazyc.ir import attrs as A
from lazyc.ir import program as P
from lazyc.ir.graph import Graph, Node
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.program_verify import verify_program
from lazyc.passes.row_tiles import find_row_tiles
from lazyc.passes.schedule import schedule
from tests.passes.build import Make, check, run_program

BATCH, ROWS, KEYS, WIDTH = 3, 5, 7, 4


def softmax(b: Make, scores: Node) -> Node:
    axis = len(scores.shape) - 1
    shown = b.emit("exp", b.sub(scores, b.reduce("max", scores, axis, keepdim=True)))
    return b.div(shown, b.reduce("sum", shown, axis, keepdim=True))


def inputs(b: Make) -> tuple[Node, Node, Node]:
    """q, k and v."""
    return (
        b.input(BATCH, ROWS, WIDTH),
        b.input(BATCH, KEYS, WIDTH),
        b.input(BATCH, KEYS, WIDTH),
    )


def scores_of(b: Make, q: Node, k: Node) -> Node:
    return b.emit("matmul", q, b.transpose(k, -1, -2))


def verified(graph: Graph, seed: int = 0) -> P.Program:
    """The Program, whose results are right with its steps in their new order."""
    torch.manual_seed(seed)
    args = [torch.randn(*map(int, n.type.shape)) for n in graph.inputs]
    program = check(graph, *args)
    found = find_row_tiles(program)
    verify_program(found)
    for got, want in zip(run_program(found, args), run_program(program, args), strict=True):
        assert torch.equal(got, want)
    return found


def widths(program: P.Program) -> list[list[int]]:
    """The elements of a row of each private buffer, for each chain."""
    return [sorted(int(w) for _, w in t.private) for t in program.tiles]


def test_attention() -> None:
    b = Make()
    q, k, v = inputs(b)
    program = verified(b.outputs(b.emit("matmul", softmax(b, scores_of(b, q, k)), v)))
    (tiles,) = program.tiles
    assert [s.dim for s in tiles.steps] == ["m", "", "m"] and tiles.steps[1].axes
    assert (tiles.batch, tiles.rows) == (BATCH, ROWS)
    assert widths(program) == [[KEYS, KEYS]]


def test_gradients_of_keys_add_up_over_the_rows() -> None:
    b = Make()
    q, k, v = inputs(b)
    g = b.input(BATCH, ROWS, WIDTH)
    p = softmax(b, scores_of(b, q, k))
    grad = b.mul(p, scores_of(b, g, v))
    outs = [
        b.emit("matmul", grad, k),
        b.emit("matmul", b.transpose(grad, -1, -2), q),
        b.emit("matmul", b.transpose(p, -1, -2), g),
    ]
    program = verified(b.outputs(*outs))
    (tiles,) = program.tiles
    assert sorted(s.dim for s in tiles.steps if s.dim) == ["k", "k", "m", "m", "m"]
    assert set(widths(program)[0]) == {KEYS}


def test_rows_of_a_single_matrix() -> None:
    b = Make()
    x, w, u = b.input(9, 4), b.input(4, 6), b.input(6, 3)
    program = verified(b.outputs(b.emit("matmul", softmax(b, b.emit("matmul", x, w)), u)))
    (tiles,) = program.tiles
    assert (tiles.batch, tiles.rows) == (1, 9)


def test_scores_that_are_a_result_are_stored() -> None:
    b = Make()
    q, k, v = inputs(b)
    scores = scores_of(b, q, k)
    program = verified(b.outputs(b.emit("matmul", softmax(b, scores), v), scores))
    assert program.tiles == ()


def test_weights_that_are_a_result_are_stored() -> None:
    b = Make()
    q, k, v = inputs(b)
    p = softmax(b, scores_of(b, q, k))
    program = verified(b.outputs(b.emit("matmul", p, v), p))
    (tiles,) = program.tiles
    assert len(tiles.steps) == 2 and widths(program) == [[KEYS]]


def test_weights_that_are_added_up_over_the_rows_are_stored() -> None:
    b = Make()
    q, k, v = inputs(b)
    p = softmax(b, scores_of(b, q, k))
    program = verified(b.outputs(b.emit("matmul", p, v), b.reduce("sum", p, 1)))
    assert all(KEYS not in [w] * 2 for w in widths(program))
    stored = {buffer for t in program.tiles for buffer, _ in t.private}
    assert all(len(t.steps) == 2 for t in program.tiles) and len(stored) <= 1


def test_a_way_out_of_the_chain_and_back_keeps_it_stored() -> None:
    """The sum over all rows is needed before the first row can go on."""
    b = Make()
    q, k, v = inputs(b)
    scores = scores_of(b, q, k)
    total = b.reduce("sum", softmax(b, scores), 1, keepdim=True)
    program = verified(b.outputs(b.emit("matmul", b.mul(scores, b.expand(total, scores.shape)), v)))
    for tiles in program.tiles:
        products = [s for p in tiles.span if isinstance(s := program.steps[p], P.GemmStep)]
        assert len(products) < 2


def test_a_kernel_that_reads_other_rows_keeps_them_stored() -> None:
    b = Make()
    q, k, v = inputs(b)
    scores = scores_of(b, q, k)
    program = verified(b.outputs(b.emit("matmul", softmax(b, b.add(scores, b.flip(scores, 1))), v)))
    assert program.tiles == ()


def test_a_product_that_reads_rows_as_columns_goes_along_them() -> None:
    b = Make()
    q, k, v = inputs(b)
    p = softmax(b, scores_of(b, q, k))
    wide = b.input(BATCH, ROWS, WIDTH)
    turned = b.emit("matmul", b.transpose(p, 1, 2), wide)
    program = verified(b.outputs(turned, b.emit("matmul", p, v)))
    (tiles,) = program.tiles
    assert sorted(s.dim for s in tiles.steps) == ["", "k", "m", "m"]


def test_two_chains_side_by_side() -> None:
    b = Make()
    q, k, v = inputs(b)
    first = softmax(b, scores_of(b, q, k))
    second = softmax(b, scores_of(b, b.emit("exp", q), k))
    outs = [b.emit("matmul", first, v), b.emit("matmul", second, v)]
    program = verified(b.outputs(*outs))
    assert widths(program) == [[KEYS, KEYS]] * 2
    assert program.tiles[0].span.stop <= program.tiles[1].first


def test_one_after_the_other() -> None:
    """The second attention reads all of the first one's result: two chains."""
    b = Make()
    q, k, v = inputs(b)
    first = b.emit("matmul", softmax(b, scores_of(b, q, k)), v)
    second = b.emit("matmul", softmax(b, scores_of(b, first, first)), first)
    program = verified(b.outputs(second))
    assert len(program.tiles) == 2
    assert all(len(t.steps) == 3 for t in program.tiles)


def test_an_eager_call_between_keeps_them_apart() -> None:
    b = Make()
    q, k, v = inputs(b)
    program = schedule(b.outputs(b.emit("matmul", softmax(b, scores_of(b, q, k)), v)))
    call = P.EagerStep("aten.relu.default", (P.BufferRef(program.inputs[0]),), (), (), False, False)
    for place, count in ((0, 1), (1, 0), (2, 0), (3, 1)):
        steps = (*program.steps[:place], call, *program.steps[place:])
        found = find_row_tiles(replace(program, steps=steps, tiles=()))
        assert sum(len(t.steps) == 3 for t in found.tiles) == count


def test_a_write_to_an_argument_between_keeps_its_place() -> None:
    """A kernel that overwrites v runs behind the chain that reads it, or one that fills it before."""
    b = Make()
    q, k, v = inputs(b)
    program = schedule(b.outputs(b.emit("matmul", softmax(b, scores_of(b, q, k)), v)))
    other = Make()
    x = other.input(BATCH, KEYS, WIDTH)
    (copy,) = schedule(other.outputs(other.emit("exp", x))).steps
    assert isinstance(copy, P.KernelStep)
    nests = program.nests | schedule(other.graph).nests
    source, target = program.inputs[1], program.inputs[2]
    write = replace(copy, buffers=(source, target))  # v = exp(k), between the products
    steps = (*program.steps[:1], write, *program.steps[1:])
    found = find_row_tiles(replace(program, steps=steps, nests=nests, tiles=()))
    (tiles,) = found.tiles
    assert found.steps.index(write) < tiles.first
    steps = (*program.steps, replace(copy, buffers=(source, target)))
    found = find_row_tiles(replace(program, steps=steps, nests=nests, tiles=()))
    assert found.steps[-1] == write and found.tiles[0].first == 0
    write = replace(copy, buffers=(target, source))  # k = exp(v) after the product that reads k
    steps = (*program.steps[:1], write, *program.steps[1:])
    found = find_row_tiles(replace(program, steps=steps, nests=nests, tiles=()))
    assert found.steps.index(write) >= found.tiles[0].span.stop


@pytest.mark.parametrize("change", [{"accumulate": True}, {"pack_b": True}])
def test_products_that_run_as_a_whole_only(change: dict[str, bool]) -> None:
    b = Make()
    q, k, v = inputs(b)
    program = schedule(b.outputs(b.emit("matmul", softmax(b, scores_of(b, q, k)), v)))
    for place in (0, 2):
        steps = list(program.steps)
        step = steps[place]
        assert isinstance(step, P.GemmStep)
        steps[place] = replace(step, **change)  # type: ignore[arg-type]
        found = find_row_tiles(replace(program, steps=tuple(steps), tiles=()))
        assert all(place not in t.span for t in found.tiles)


def test_small_sizes() -> None:
    for batch, rows, keys in ((1, 1, 1), (2, 1, 3), (1, 4, 1)):
        b = Make()
        q, k = b.input(batch, rows, 2), b.input(batch, keys, 2)
        weights = b.emit("exp", scores_of(b, q, k))
        verified(b.outputs(b.emit("matmul", weights, k)))


def gradient_of_scores(b: Make, shape: tuple[int, ...]) -> Node:
    """A value of the shape [*batch, ROWS, KEYS] that products along its rows read."""
    *batch, rows, keys = shape
    q, k = b.input(*batch, rows, WIDTH), b.input(*batch, keys, WIDTH)
    return softmax(b, scores_of(b, q, k))


def summed(b: Make, x: Node, axes: tuple[int, ...]) -> Node:
    return b.emit("reduce_sum", x, attrs=A.ReduceAttrs(axes, is_alone=True))


@pytest.mark.parametrize(
    ("batch", "axes", "split"),
    [
        ((3, 4), (0,), (3, 4, 1)),
        ((3, 4), (1,), (1, 3, 4)),
        ((3, 4), (0, 1), (1, 1, 12)),
        ((12,), (0,), (1, 1, 12)),
        ((2, 3, 4), (0, 2), (2, 3, 4)),
    ],
)
def test_sums_of_matrices_go_by_rows_of_the_result(
    batch: tuple[int, ...], axes: tuple[int, ...], split: tuple[int, ...]
) -> None:
    b = Make()
    x = gradient_of_scores(b, (*batch, ROWS, KEYS))
    v = b.input(*batch, KEYS, WIDTH)
    program = verified(b.outputs(b.emit("matmul", x, v), summed(b, x, axes)))
    (tiles,) = program.tiles
    assert tiles.summed == split and tiles.batch == math.prod(batch)
    (how,) = [s for s in tiles.steps if s.sums is not None]
    assert how.sums is not None
    rows = torch.randn(2, split[1] * ROWS * KEYS)
    total = torch.full_like(rows[0], torch.nan)
    for step, added in zip(how.sums, rows, strict=True):
        run_nest(program.nests[step.nest], [added, total])
    torch.testing.assert_close(total, rows.sum(0))


def test_sums_of_other_matrices_are_not_of_one_chain() -> None:
    b = Make()
    x = gradient_of_scores(b, (3, 4, ROWS, KEYS))
    v = b.input(3, 4, KEYS, WIDTH)
    outs = b.emit("matmul", x, v), summed(b, x, (0,)), summed(b, x, (1,))
    assert all(not t.summed for t in verified(b.outputs(*outs)).tiles)
