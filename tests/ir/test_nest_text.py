"""The text of loop nests and their verifier."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy

from lazyc.ir.index import Axis, Index, axis_index, floordiv, value_index
from lazyc.ir.loops import (
    BufferParam,
    CheckIndex,
    Compute,
    Const,
    IndexValue,
    Instr,
    Load,
    LoopNest,
    Random,
    Reduce,
    Scan,
    Stage,
    Store,
)
from lazyc.ir.nest_text import print_nest
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.ops import IRError
from lazyc.ir.types import DType

F32, I64, BOOL, BF16 = DType.F32, DType.I64, DType.BOOL, DType.BF16
N = sympy.Symbol("n0", integer=True, positive=True)
ROWS, J = Axis("i", N), Axis("j", 8)
AT = axis_index(ROWS) * 8 + axis_index(J)

NEST = LoopNest(
    (ROWS,),
    (
        Stage(
            (J,), (Load(0, BF16, 0, AT), Compute(1, F32, "cast", (0,)), Reduce(2, F32, "max", 1))
        ),
        Stage((), (Load(3, I64, 1, axis_index(ROWS)), CheckIndex(4, 3, 50))),
        Stage(
            (J,),
            (
                Load(5, F32, 2, value_index(4, 50) * 8 + axis_index(J)),
                Compute(6, F32, "sub", (5, 2)),
                Const(7, F32, -0.0),
                Compute(8, BOOL, "gt", (6, 7)),
                Store(3, AT, 6, "add", 8),
            ),
        ),
    ),
    (
        BufferParam(BF16, "in", N * 8),
        BufferParam(I64, "in", N),
        BufferParam(F32, "in", 400),
        BufferParam(F32, "inout", N * 8),
    ),
    (N,),
    "inner",
    comment="model.py:12",
)

TEXT = """\
nest inner [i: n0] symbols(n0)
  b0: in bf16[8*n0]
  b1: in i64[n0]
  b2: in f32[400]
  b3: inout f32[8*n0]
  loop [j: 8]
    %0 = load b0[i*8 + j] : bf16
    %1 = cast %0 : f32
    %2 = reduce_max %1 : f32
  once
    %3 = load b1[i] : i64
    %4 = check %3 < 50 : i64
  loop [j: 8]
    %5 = load b2[%4*8 + j] : f32 where %4 < 50
    %6 = sub %5, %2 : f32
    %7 = const -0.0 : f32
    %8 = gt %6, %7 : b1
    store add b3[i*8 + j] = %6 if %8
"""


def test_text() -> None:
    assert print_nest(NEST) == TEXT


def test_comments_are_not_a_part_of_the_text() -> None:
    assert print_nest(replace(NEST, comment="other.py:3")) == TEXT


def body(*instrs: Instr) -> LoopNest:
    """A nest of one stage over J with four buffers."""
    buffers = (
        BufferParam(F32, "in", 8), BufferParam(F32, "out", 8), BufferParam(I64, "in", 8),
        BufferParam(BF16, "inout", 8),
    )  # fmt: skip
    return LoopNest((), (Stage((J,), instrs),), buffers)


AT_J = axis_index(J)
LOAD = Load(0, F32, 0, AT_J)
INT = Load(9, I64, 2, AT_J)

# Pairs of nests that differ in one thing only.
DIFFERENT = {
    "dtype": (body(Const(0, F32, 1)), body(Const(0, I64, 1))),
    "sign of zero": (body(Const(0, F32, 0.0)), body(Const(0, F32, -0.0))),
    "nan": (body(Const(0, F32, 0.0)), body(Const(0, F32, float("nan")))),
    "coefficient": (body(LOAD), body(Load(0, F32, 0, AT_J * 0))),
    "other": (
        body(Const(1, BOOL, True), Load(0, F32, 0, AT_J, 1, 0.0)),
        body(Const(1, BOOL, True), Load(0, F32, 0, AT_J, 1, 1.0)),
    ),
    "mask": (
        body(Const(1, BOOL, True), LOAD),
        body(Const(1, BOOL, True), Load(0, F32, 0, AT_J, 1, 0)),
    ),
    "mode": (body(LOAD, Store(1, AT_J, 0)), body(LOAD, Store(1, AT_J, 0, "max"))),
    "range of a loaded index": (
        body(INT, Load(0, F32, 0, value_index(9, 8))), body(INT, Load(0, F32, 0, value_index(9, 4))),
    ),
    "range inside of a division": (
        body(INT, Load(0, F32, 0, floordiv(value_index(9, 9), 3))),
        body(INT, Load(0, F32, 0, floordiv(value_index(9, 24), 3))),
    ),
    "operands": (
        body(LOAD, Compute(1, F32, "neg", (0,)), Compute(2, F32, "sub", (0, 1))),
        body(LOAD, Compute(1, F32, "neg", (0,)), Compute(2, F32, "sub", (1, 0))),
    ),
    "position": (
        body(LOAD, INT, Reduce(1, I64, "argmax", 0, 9)),
        body(LOAD, INT, Reduce(1, I64, "argmin", 0, 9)),
    ),
    "scan": (body(LOAD, Scan(1, F32, "sum", 0)), body(LOAD, Reduce(1, F32, "sum", 0))),
    "counter": (body(INT, Random(1, F32, "uniform", 9, AT_J)), body(INT, Random(1, F32, "uniform", 9, AT_J + 1))),
    "vectorize": (body(LOAD), replace(body(LOAD), vectorize="none")),
    "axis size": (body(LOAD), replace(body(LOAD), axes=(Axis("k", 2),))),
    "role": (body(LOAD), replace(body(LOAD), buffers=(BufferParam(F32, "inout", 8), *body().buffers[1:]))),
    "numel": (body(LOAD), replace(body(LOAD), buffers=(BufferParam(F32, "in", 9), *body().buffers[1:]))),
    "symbols": (body(LOAD), replace(body(LOAD), symbols=(N,))),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
def test_different_nests_have_different_text(what: str) -> None:
    left, right = DIFFERENT[what]
    assert print_nest(left) != print_nest(right)


def test_the_verifier_takes_a_good_nest() -> None:
    verify_nest(NEST)
    verify_nest(body(LOAD, Store(1, AT_J, 0)))


BAD = {
    "is not visible": body(Compute(1, F32, "neg", (0,))),
    "%0 is defined twice": body(LOAD, LOAD),
    "takes 2 operands": body(LOAD, Compute(1, F32, "add", (0,))),
    "operands differ in type": body(LOAD, INT, Compute(1, F32, "add", (0, 9))),
    "half types compute in f32": body(Load(0, BF16, 3, AT_J), Compute(1, BF16, "neg", (0,))),
    "takes integral types": body(LOAD, Compute(1, F32, "and", (0, 0))),
    "the result is f32, must be b1": body(LOAD, Compute(1, F32, "lt", (0, 0))),
    "is no pointwise op": body(LOAD, Compute(1, F32, "reduce_sum", (0,))),
    "the loaded value is i64": body(Load(0, I64, 0, AT_J)),
    "is only written": body(Load(0, F32, 1, AT_J)),
    "is only read": body(LOAD, Store(0, AT_J, 0)),
    "mode 'add' reads it": body(LOAD, Store(1, AT_J, 0, "add")),
    "there is no buffer b7": body(Load(0, F32, 7, AT_J)),
    "accessed at -1": body(Load(0, F32, 0, AT_J + -1)),
    "accessed at 8": body(Load(0, F32, 0, AT_J + 1)),
    "axis k is not open": body(Load(0, F32, 0, axis_index(Axis("k", 8)))),
    "is no integer": body(LOAD, Load(1, F32, 0, value_index(0, 8))),
    "the mask is f32": body(LOAD, Load(1, F32, 0, AT_J, 0)),
    "the checked index is f32": body(LOAD, CheckIndex(1, 0, 8)),
    "the seed is f32": body(LOAD, Random(1, F32, "uniform", 0, AT_J)),
    "argmax without a position": body(LOAD, Reduce(1, I64, "argmax", 0)),
    "the position is f32": body(LOAD, Reduce(1, I64, "argmax", 0, 0)),
    "sum of b1": body(Const(0, BOOL, True), Reduce(1, BOOL, "sum", 0)),
    "not among the symbols": body(Load(0, F32, 0, axis_index(J) * N)),
    "no fixed number": replace(
        body(LOAD), symbols=(N,), buffers=(BufferParam(F32, "in", 8), BufferParam(F32, "scratch", N))
    ),
    "axis j is defined twice": replace(body(LOAD), axes=(J,)),
    "along k store to one element": replace(body(LOAD, Store(1, AT_J, 0)), axes=(Axis("k", 2),)),
    "an index is i32": body(IndexValue(0, AT_J, DType.I32)),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_the_verifier_names_what_is_wrong(message: str) -> None:
    with pytest.raises(IRError, match=message):
        verify_nest(BAD[message])


def test_values_of_a_loop_stay_in_it() -> None:
    stages = (Stage((J,), (LOAD,)), Stage((J,), (Compute(1, F32, "neg", (0,)),)))
    with pytest.raises(IRError, match="%0 is not visible"):
        verify_nest(replace(body(), stages=stages))
    reads_too_early = body(LOAD, Reduce(1, F32, "sum", 0), Compute(2, F32, "neg", (1,)))
    with pytest.raises(IRError, match="%1 is not visible"):
        verify_nest(reads_too_early)


def test_an_access_that_never_runs_may_be_out_of_range() -> None:
    empty = Axis("e", 0)
    verify_nest(
        replace(body(), stages=(Stage((empty,), (Load(0, F32, 0, axis_index(empty) + 99),)),))
    )
    verify_nest(body(Const(1, BOOL, False), Load(0, F32, 0, Index(99), 1)))
