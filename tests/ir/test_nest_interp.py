"""The reference evaluator of LoopNests: against torch, and against nests that break a promise."""

from __future__ import annotations

import pytest
import sympy
import torch

from lazyc.ir.index import Axis, Index, axis_index, floordiv, mod, value_index
from lazyc.ir.loops import (
    ERROR_INDEX,
    ERROR_ZERO_DIVISION,
    BufferParam,
    CheckIndex,
    Compute,
    Const,
    IndexValue,
    Load,
    LoopNest,
    Random,
    Reduce,
    ReduceKind,
    Scan,
    Stage,
    Store,
)
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.ops import IRError
from lazyc.ir.types import DType

F32, I64, BOOL = DType.F32, DType.I64, DType.BOOL
ROW, COL = Axis("i", 3), Axis("j", 5)
AT_ROW, AT_COL = axis_index(ROW), axis_index(COL)
AT = AT_ROW * 5 + AT_COL


def one_stage(body, buffers, axes=(ROW,), inner=(COL,), symbols=()) -> LoopNest:
    return LoopNest(axes, (Stage(inner, tuple(body)),), buffers, symbols)


def buffer(role: str, numel: object = 15, dtype: DType = F32) -> BufferParam:
    return BufferParam(dtype, role, numel)  # type: ignore[arg-type]


def softmax_nest() -> LoopNest:
    """Rows of 5: maximum, sum of exponentials, quotient."""
    shifted = (Load(1, F32, 0, AT), Compute(2, F32, "sub", (1, 0)), Compute(3, F32, "exp", (2,)))
    return LoopNest(
        (ROW,),
        (
            Stage((COL,), (Load(9, F32, 0, AT), Reduce(0, F32, "max", 9))),
            Stage((COL,), (*shifted, Reduce(4, F32, "sum", 3))),
            Stage((COL,), (*shifted, Compute(5, F32, "div", (3, 4)), Store(1, AT, 5))),
        ),
        (buffer("in"), buffer("out")),
    )


def test_softmax_of_rows() -> None:
    x, out = torch.randn(3, 5), torch.empty(15)
    assert run_nest(softmax_nest(), [x.reshape(-1), out]) == 0
    torch.testing.assert_close(out.reshape(3, 5), x.softmax(1))


def test_symbolic_sizes_and_numpy_buffers() -> None:
    n = sympy.Symbol("n0", integer=True, positive=True)
    axis = Axis("i", n)
    reverse = axis_index(axis) * -1 + (n - 1)
    nest = one_stage(
        (Load(0, F32, 0, axis_index(axis)), Store(1, reverse, 0)),
        (buffer("in", n), buffer("out", n)),
        axes=(axis,),
        inner=(),
        symbols=(n,),
    )
    x, out = torch.randn(7), torch.empty(7)
    run_nest(nest, [x.numpy(), out.numpy()], {n: 7})
    assert torch.equal(out, x.flip(0))


def test_masked_load_and_store() -> None:
    """A pad by one on the left: out[i, j] = in[i, j-1], 7 where j = 0; row 1 is left alone."""
    body = (
        IndexValue(0, AT_COL),
        Const(1, I64, 0),
        Compute(2, BOOL, "gt", (0, 1)),
        Load(3, F32, 0, AT - 1, mask=2, other=7),
        IndexValue(4, AT_ROW),
        Const(5, I64, 1),
        Compute(6, BOOL, "ne", (4, 5)),
        Store(1, AT, 3, mask=6),
    )
    x, out = torch.randn(15), torch.zeros(15)
    run_nest(one_stage(body, (buffer("in"), buffer("out"))), [x, out])
    expected = torch.cat([torch.full((3, 1), 7.0), x.reshape(3, 5)[:, :4]], 1)
    expected[1] = 0
    assert torch.equal(out.reshape(3, 5), expected)


@pytest.mark.parametrize("kind", ["argmax", "argmin"])
def test_arg_extreme_takes_the_first_and_nan_wins(kind: ReduceKind) -> None:
    x = torch.tensor([[1.0, 3, 3, -1, -1], [2, float("nan"), 9, float("nan"), -9], [4, 4, 4, 4, 4]])
    body = (Load(0, F32, 0, AT), IndexValue(1, AT_COL), Reduce(2, I64, kind, 0, position=1))
    nest = LoopNest(
        (ROW,),
        (Stage((COL,), body), Stage((), (Store(1, AT_ROW, 2),))),
        (buffer("in"), buffer("out", 3, I64)),
    )
    out = torch.empty(3, dtype=torch.int64)
    run_nest(nest, [x.reshape(-1), out])
    assert out.tolist() == ([1, 1, 0] if kind == "argmax" else [3, 1, 0])


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("sum", F32, 0.0),
        ("prod", I64, 1),
        ("max", F32, float("-inf")),
        ("min", I64, 2**63 - 1),
        ("max", BOOL, False),
    ],
)
def test_identity_of_an_empty_reduction(kind: str, dtype: DType, expected: object) -> None:
    empty = Axis("j", 0)
    body = (Load(0, dtype, 0, axis_index(empty)), Reduce(1, dtype, kind, 0))  # type: ignore[arg-type]
    nest = LoopNest(
        (),
        (Stage((empty,), body), Stage((), (Store(1, Index(0), 1),))),
        (buffer("in", 0, dtype), buffer("out", 1, dtype)),
    )
    out = torch.empty(1, dtype=dtype.torch)
    run_nest(nest, [torch.empty(0, dtype=dtype.torch), out])
    assert out.item() == expected


def test_scan_through_scratch() -> None:
    """Running sums kept in scratch, then read backwards."""
    scratch, backwards = AT_COL, AT_COL * -1 + 4
    nest = LoopNest(
        (ROW,),
        (
            Stage((COL,), (Load(0, F32, 0, AT), Scan(1, F32, "sum", 0), Store(1, scratch, 1))),
            Stage((COL,), (Load(2, F32, 1, backwards), Store(2, AT, 2))),
        ),
        (buffer("in"), buffer("scratch", 5), buffer("out")),
    )
    x, out = torch.randn(3, 5), torch.empty(15)
    run_nest(nest, [x.reshape(-1), out])
    torch.testing.assert_close(out.reshape(3, 5), x.cumsum(1).flip(1))


def test_recurrence_through_scratch_runs_in_loop_order() -> None:
    """state[j+1] = state[j] / 2 + x[j], and the sum of the running maxima of the states."""
    half = (Const(1, F32, 0.5), Load(2, F32, 1, AT_COL), Compute(3, F32, "mul", (1, 2)))
    body = (
        *half,
        Load(4, F32, 0, AT),
        Compute(5, F32, "add", (3, 4)),
        Store(1, AT_COL + 1, 5),
        Scan(6, F32, "max", 5),
        Reduce(7, F32, "sum", 6),
    )
    start = (Const(0, F32, 0.0), Store(1, Index(0), 0))
    nest = LoopNest(
        (ROW,),
        (Stage((), start), Stage((COL,), body), Stage((), (Store(2, AT_ROW, 7),))),
        (buffer("in"), buffer("scratch", 6), buffer("out", 3)),
    )
    x, out = torch.randn(3, 5), torch.empty(3)
    run_nest(nest, [x.reshape(-1), out])
    states = [torch.zeros(3)]
    for column in x.unbind(1):
        states.append(states[-1] / 2 + column)
    torch.testing.assert_close(out, torch.stack(states[1:], 1).cummax(1).values.sum(1))


@pytest.mark.parametrize("mode", ["set", "add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", [F32, DType.BF16, I64])
def test_scatter_meets_in_loop_order(mode: str, dtype: DType) -> None:
    at = torch.tensor([2, 0, 2, 2, 1])
    update = torch.tensor([3, 5, -7, 2, 4]).to(dtype.torch)
    base = torch.tensor([10, 20, 30, 40]).to(dtype.torch)
    body = (
        Load(0, I64, 0, AT_COL),
        CheckIndex(1, 0, 4),
        Load(2, dtype, 1, AT_COL),
        Store(2, value_index(1, 4), 2, mode),  # type: ignore[arg-type]
    )
    buffers = (buffer("in", 5, I64), buffer("in", 5, dtype), buffer("inout", 4, dtype))
    out = base.clone()
    assert run_nest(one_stage(body, buffers, axes=()), [at, update, out]) == 0
    expected = base.clone()
    for k, value in zip(at.tolist(), update, strict=True):
        old = expected[k].clone()
        expected[k] = {
            "set": value,
            "add": old + value,
            "mul": old * value,
            "max": old.maximum(value),
            "min": old.minimum(value),
        }[mode]
    assert torch.equal(out, expected)


def test_gather_out_of_range_sets_the_error_word_unless_masked() -> None:
    at = torch.tensor([0, 4, -1, 2, 9])
    source, out = torch.arange(5.0), torch.empty(5)
    body = (Load(0, I64, 0, AT_COL), CheckIndex(1, 0, 5), Load(2, F32, 1, value_index(1, 5)))
    nest = one_stage(
        (*body, Store(2, AT_COL, 2)),
        (buffer("in", 5, I64), buffer("in", 5), buffer("out", 5)),
        axes=(),
    )
    assert run_nest(nest, [at, source, out]) == ERROR_INDEX
    assert out.tolist() == [0, 4, 0, 2, 0]
    masked = (
        Load(0, I64, 0, AT_COL),
        Const(3, I64, 5),
        Const(4, I64, 0),
        Compute(5, BOOL, "lt", (0, 3)),
        Compute(6, BOOL, "ge", (0, 4)),
        Compute(7, BOOL, "and", (5, 6)),
        CheckIndex(1, 0, 5, mask=7),
        Load(2, F32, 1, value_index(1, 5), mask=7, other=-1),
        Store(2, AT_COL, 2),
    )
    nest = one_stage(masked, nest.buffers, axes=())
    assert run_nest(nest, [at, source, out]) == 0
    assert out.tolist() == [0, 4, -1, 2, -1]


@pytest.mark.parametrize("op", ["floor_div", "trunc_div", "rem", "mod"])
def test_integer_division_has_no_traps(op: str) -> None:
    low = torch.iinfo(torch.int64).min
    a = torch.tensor([7, -7, 5, low, low])
    b = torch.tensor([2, 2, 0, -1, 3])
    out = torch.empty(5, dtype=torch.int64)
    body = (
        Load(0, I64, 0, AT_COL),
        Load(1, I64, 1, AT_COL),
        Compute(2, I64, op, (0, 1)),
        Store(2, AT_COL, 2),
    )
    nest = one_stage(body, tuple(buffer(r, 5, I64) for r in ("in", "in", "out")), axes=())
    assert run_nest(nest, [a, b, out]) == ERROR_ZERO_DIVISION
    expected = {
        "floor_div": [3, -4, 0, low, low // 3],
        "trunc_div": [3, -3, 0, low, -(-low // 3)],
        "rem": [1, -1, 0, 0, -(-low % 3)],
        "mod": [1, 1, 0, 0, low % 3],
    }[op]
    assert out.tolist() == expected


def test_index_arithmetic_and_bitcast() -> None:
    """out[k] = bits of in[(k % 3) * 5 + k // 3]: a transpose."""
    axis = Axis("k", 15)
    k = axis_index(axis)
    source = mod(k, 3) * 5 + floordiv(k, 3)
    body = (Load(0, F32, 0, source), Compute(1, DType.I32, "bitcast", (0,)), Store(1, k, 1))
    nest = one_stage(body, (buffer("in"), buffer("out", 15, DType.I32)), axes=(axis,), inner=())
    x, out = torch.randn(3, 5), torch.empty(15, dtype=torch.int32)
    run_nest(nest, [x.reshape(-1), out])
    assert torch.equal(out.view(torch.float32).reshape(5, 3), x.T)


def test_random_follows_the_graph_op() -> None:
    from lazyc.ir.attrs import RandomAttrs
    from lazyc.ir.ops import OPS

    body = (Load(0, I64, 0, Index(0)), Random(1, F32, "uniform", 0, AT + 100), Store(1, AT, 1))
    seed, out = torch.tensor([1234567890123]), torch.empty(15)
    run_nest(one_stage(body, (buffer("in", 1, I64), buffer("out"))), [seed, out])
    attrs = RandomAttrs("uniform", (15,), F32, 100)
    assert torch.equal(out, OPS["random"].evaluate([seed[0]], attrs, {}))


def test_half_memory_computes_in_f32() -> None:
    body = (
        Load(0, DType.BF16, 0, AT),
        Compute(1, F32, "cast", (0,)),
        Compute(2, F32, "mul", (1, 1)),
        Compute(3, DType.BF16, "cast", (2,)),
        Store(1, AT, 3),
    )
    buffers = (buffer("in", 15, DType.BF16), buffer("out", 15, DType.BF16))
    x, out = torch.randn(15, dtype=torch.bfloat16), torch.empty(15, dtype=torch.bfloat16)
    run_nest(one_stage(body, buffers), [x, out])
    assert torch.equal(out, x * x)


def test_no_outer_points_does_nothing() -> None:
    nest = one_stage(
        (Load(0, F32, 0, AT_COL), Store(1, AT_COL, 0)),
        (buffer("in", 5), buffer("out", 5)),
        (Axis("i", 0),),
    )
    out = torch.zeros(5)
    assert run_nest(nest, [torch.ones(5), out]) == 0
    assert not out.any()


def copy(load: Index, store: Index, roles: tuple[str, str] = ("in", "out")) -> LoopNest:
    body = (Load(0, F32, 0, load), Store(1, store, 0))
    return one_stage(body, (buffer(roles[0]), buffer(roles[1])))


@pytest.mark.parametrize(
    ("nest", "message"),
    [
        (copy(AT + 1, AT), "index 15 in a buffer of 15"),
        (copy(AT, AT - 1), "index -1 in a buffer of 15"),
        (copy(AT, AT_COL), "two outer points write"),
        (copy(AT, AT_ROW), "two iterations store"),
        (copy(AT, AT, ("out", "out")), "only written"),
        (copy(AT, AT, ("in", "in")), "only read"),
        (
            one_stage((Load(0, F32, 0, AT_COL), Store(0, AT, 0)), (buffer("inout"),)),
            "reads an element that another one writes",
        ),
        (one_stage((Load(0, F32, 0, AT), Store(1, AT, 0)), (buffer("in"), buffer("out", 15, I64))),
         "a store of"),
    ],
)  # fmt: skip
def test_broken_promises_raise(nest: LoopNest, message: str) -> None:
    with pytest.raises(IRError, match=message):
        run_nest(nest, [torch.zeros(15, dtype=b.dtype.torch) for b in nest.buffers])
