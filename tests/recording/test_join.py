"""Joined Graphs: inner values, shared arguments, constants, results, and types that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lazyc.frontend.autograd import run_in_eager as gm_in_eager
from lazyc.frontend.fx_import import import_graph
from lazyc.ir.interp import run_graph
from lazyc.ir.ops import IRError
from lazyc.ir.verify import verify_graph
from lazyc.recording.join import Fragment, Part, join, run_in_eager
from tests.frontend.trace import trace


def fragment(fn, *args: torch.Tensor) -> Fragment:
    gm = trace(fn, *args)
    return Fragment.of(import_graph(gm), gm_in_eager(gm), 1, "test")


X, Y = torch.randn(3, 4), torch.randn(3, 4)
ADD = fragment(lambda x, y: (x + y, x - y), X, Y)
SCALE = fragment(lambda x: (x * torch.tensor([1.0, 2.0, 3.0, 4.0]),), X)


def check(parts: list[Part], results: list[tuple[int, int]], *args: torch.Tensor) -> list:
    """Runs the join by the interpreter and fragment by fragment; both must agree."""
    graph = join(parts, results)
    verify_graph(graph)
    found = run_graph(graph, list(args))
    for a, b in zip(found, run_in_eager(parts, results, list(args)), strict=True):
        torch.testing.assert_close(a, b)
    return list(found)


def test_what_one_returns_another_takes() -> None:
    parts = [Part(ADD, (0, 1)), Part(SCALE, ((0, 0),)), Part(ADD, ((1, 0), (0, 1)))]
    (found,) = check(parts, [(2, 0)], X, Y)
    torch.testing.assert_close(found, (X + Y) * torch.arange(1.0, 5.0) + (X - Y))
    assert len(join(parts, [(2, 0)]).inputs) == 2


def test_arguments_are_shared_and_equal_work_is_done_once() -> None:
    parts = [Part(ADD, (0, 1)), Part(ADD, (0, 1))]
    graph = join(parts, [(0, 0), (1, 0)])
    assert len(graph.inputs) == 2
    assert graph.outputs[0].value is graph.outputs[1].value
    check(parts, [(0, 0), (1, 0)], X, Y)


def test_constants_keep_their_places() -> None:
    other = fragment(lambda x: (x + torch.tensor([9.0, 8.0, 7.0, 6.0]),), X)
    parts = [Part(SCALE, (0,)), Part(other, ((0, 0),)), Part(SCALE, ((1, 0),))]
    (found,) = check(parts, [(2, 0)], X)
    scale = torch.arange(1.0, 5.0)
    torch.testing.assert_close(found, (X * scale + torch.tensor([9.0, 8.0, 7.0, 6.0])) * scale)


def test_results_that_share_memory_still_do() -> None:
    halves = fragment(lambda x: (x * 2).chunk(2, 1), X)
    parts = [Part(halves, (0,)), Part(halves, (1,))]
    a, b, c, d = check(parts, [(0, 0), (0, 1), (1, 0), (1, 1)], X, Y)
    storages = [t.untyped_storage().data_ptr() for t in (a, b, c, d)]
    assert storages[0] == storages[1] != storages[2] == storages[3]


def test_a_view_is_an_inner_value() -> None:
    halves = fragment(lambda x: (x * 2).chunk(2, 1), X)
    small = fragment(lambda x: (x + 1,), X[:, :2])
    (found,) = check([Part(halves, (0,)), Part(small, ((0, 1),))], [(1, 0)], X)
    torch.testing.assert_close(found, X[:, 2:] * 2 + 1)


def test_types_that_do_not_fit() -> None:
    small = fragment(lambda x: (x + 1,), X[:2])
    with pytest.raises(IRError, match="where"):
        join([Part(ADD, (0, 1)), Part(small, ((0, 0),))], [(1, 0)])
    with pytest.raises(IRError, match="several types"):
        join([Part(SCALE, (0,)), Part(small, (0,))], [(0, 0), (1, 0)])


def test_a_parameter_is_one_wherever_it_is_taken() -> None:
    gm = trace(lambda x, y: (x + y,), X, Y)
    marked = replace(ADD, graph=import_graph(gm, frozenset({1})))
    graph = join([Part(SCALE, (0,)), Part(marked, (1, 0))], [(1, 0)])
    assert [n.attrs.is_parameter for n in graph.inputs] == [True, False]
