"""Dots, loops of their own inside of a body: what they compute, what they may not, and their text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lazyc.ir.index import Axis, axis_index
from lazyc.ir.loops import BufferParam, Compute, Dot, Load, LoopNest, Reduce, Stage, Store
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.nest_text import print_nest
from lazyc.ir.nest_values import axes_of_values, inside_of_dots
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.ops import IRError
from lazyc.ir.types import DType

F32, BF16 = DType.F32, DType.BF16
ROW, COL, DEPTH = Axis("i", 3), Axis("j", 4), Axis("e", 5)
at_i, at_j, at_e = (axis_index(a) for a in (ROW, COL, DEPTH))

# out[i] = max_j sum_e exp(a[i, e]) * b[j, e]
BODY = (
    Load(0, F32, 0, at_i * 5 + at_e),
    Compute(1, F32, "exp", (0,)),
    Load(2, F32, 1, at_j * 5 + at_e),
    Dot(3, F32, (DEPTH,), 1, 2),
    Reduce(4, F32, "max", 3),
)
BUFFERS = (BufferParam(F32, "in", 15), BufferParam(F32, "in", 20), BufferParam(F32, "out", 3))
NEST = LoopNest(
    (ROW,), (Stage((COL,), BODY), Stage((), (Store(2, at_i, 4),))), BUFFERS, (), "inner"
)


def test_value() -> None:
    verify_nest(NEST)
    a, b, out = torch.randn(3, 5), torch.randn(4, 5), torch.empty(3)
    assert run_nest(NEST, [a.flatten(), b.flatten(), out]) == 0
    torch.testing.assert_close(out, (a.exp() @ b.T).amax(1))


def test_a_dot_inside_of_a_dot() -> None:
    """``out[i] = sum_j (sum_e a[i, e] * b[j, e]) * c[j]``"""
    body = (
        Load(0, F32, 0, at_i * 5 + at_e),
        Load(1, F32, 1, at_j * 5 + at_e),
        Dot(2, F32, (DEPTH,), 0, 1),
        Load(3, F32, 2, at_j),
        Dot(4, F32, (COL,), 2, 3),
        Store(3, at_i, 4),
    )
    buffers = (*BUFFERS[:2], BufferParam(F32, "in", 4), BUFFERS[2])
    nest = LoopNest((ROW,), (Stage((), body),), buffers, (), "outer")
    verify_nest(nest)
    a, b, c, out = torch.randn(3, 5), torch.randn(4, 5), torch.randn(4), torch.empty(3)
    assert run_nest(nest, [a.flatten(), b.flatten(), c, out]) == 0
    torch.testing.assert_close(out, a @ b.T @ c)


def test_what_values_vary_along() -> None:
    assert inside_of_dots(BODY) == {0, 1, 2}
    varies = axes_of_values(NEST.stages)
    assert varies[1] == {ROW, DEPTH}
    assert varies[3] == {ROW, COL}
    assert varies[4] == {ROW}


def test_text() -> None:
    assert "    %3 = dot [e: 5] %1, %2 : f32\n" in print_nest(NEST)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((*BODY[:3], Reduce(3, F32, "max", 1)), "axes of a dot|not open"),
        ((*BODY[:3], replace(BODY[3], axes=(COL,))), "defined twice"),
        ((*BODY[:3], replace(BODY[3], axes=())), "without axes|not open"),
        ((*BODY[:3], replace(BODY[3], dtype=BF16)), "the result is bf16"),
        ((*BODY[:3], replace(BODY[3], right=9)), "%9 is not visible"),
        ((*BODY[:4], Store(2, at_i, 1)), "varies along the axes of a dot"),
        ((*BODY[:4], Store(2, at_e, 3)), "axes of a dot|accessed at"),
    ],
)
def test_broken_rules(body: tuple, message: str) -> None:
    with pytest.raises(IRError, match=message):
        verify_nest(replace(NEST, stages=(Stage((COL,), body),)))


def test_what_is_inside_of_a_dot_stays_in_its_stage() -> None:
    later = Stage((), (Store(2, at_i, 1),))
    with pytest.raises(IRError, match="%1 is not visible"):
        verify_nest(
            replace(NEST, stages=(Stage((), (*BODY[:2], Dot(3, F32, (DEPTH,), 1, 1))), later))
        )
