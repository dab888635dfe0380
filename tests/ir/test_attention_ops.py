"""The ops ``dot``, ``attend`` and ``row_statistic``: types, values, text."""

from __future__ import annotations

import math

import pytest
import torch

from lazyc.ir import attrs as A
from lazyc.ir.interp import run_graph
from lazyc.ir.ops import IRError
from lazyc.ir.parser import parse_graph
from lazyc.ir.printer import print_graph
from lazyc.ir.types import DType
from tests.passes.build import Make

ZERO, NAN = A.AttendAttrs("zero"), A.AttendAttrs("nan")


def make(v: DType = DType.F32, empty: A.EmptyRow = "nan", factor: bool = False) -> Make:
    m = Make()
    scores, values = m.input(2, 3, 5), m.input(2, 5, 4, dtype=v)
    given = (scores, values, m.input(2, 3, 5)) if factor else (scores, values)
    m.outputs(
        m.emit("attend", *given, attrs=A.AttendAttrs(empty)),
        *(
            m.emit("row_statistic", scores, attrs=A.RowStatisticAttrs(kind, empty))
            for kind in ("max", "sum")
        ),
    )
    return m


@pytest.mark.parametrize("factor", [False, True])
def test_values(factor: bool) -> None:
    args = [torch.randn(2, 3, 5), torch.randn(2, 5, 4)] + [torch.randn(2, 3, 5)] * factor
    out, top, total = run_graph(make(factor=factor).graph, args)
    weights = args[0].softmax(-1) * (args[2] if factor else 1)
    torch.testing.assert_close(out, weights @ args[1])
    torch.testing.assert_close(top + total.log(), args[0].logsumexp(-1))


def test_weights_are_rounded_to_a_half_type_of_the_values() -> None:
    args = [torch.randn(2, 3, 5), torch.randn(2, 5, 4).bfloat16()]
    out, *_ = run_graph(make(DType.BF16).graph, args)
    torch.testing.assert_close(out, args[0].softmax(-1).bfloat16().float() @ args[1].float())


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_rows_without_keys(empty: A.EmptyRow) -> None:
    scores = torch.randn(2, 3, 5)
    scores[1, 2] = -math.inf
    out, top, total = run_graph(make(empty=empty).graph, [scores, torch.randn(2, 5, 4)])
    assert top[1, 2] == -math.inf
    if empty == "zero":
        assert not out[1, 2].any() and total[1, 2] == 0
    else:
        assert out[1, 2].isnan().all() and total[1, 2].isnan()
    assert out[:, :2].isfinite().all()


def test_text() -> None:
    graph = make(factor=True).graph
    assert 'attend(%0, %1, %2, empty="nan") : f32[2, 3, 4]' in print_graph(graph)
    assert print_graph(parse_graph(print_graph(graph))) == print_graph(graph)


def test_types() -> None:
    m = Make()
    x, y, half = m.input(2, 3, 5), m.input(2, 4, 5), m.input(2, 3, 5, dtype=DType.BF16)
    for op, inputs, attrs in (
        ("dot", (x, y), A.NO_ATTRS),
        ("dot", (half, half), A.NO_ATTRS),
        ("attend", (x, y), NAN),
        ("attend", (half, m.input(2, 5, 4)), NAN),
        ("attend", (x, m.input(2, 5, 4), y), NAN),
        ("attend", (x, m.input(2, 5, 4, dtype=DType.F64)), NAN),
        ("attend", (m.input(2, 3, 0), m.input(2, 0, 4)), ZERO),
        ("row_statistic", (half,), A.RowStatisticAttrs("max", "nan")),
    ):
        with pytest.raises(IRError, match=f"{op}|scores"):
            m.emit(op, *inputs, attrs=attrs)
