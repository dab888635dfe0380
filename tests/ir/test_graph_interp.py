from __future__ import annotations

import torch

from lazyc.ir.interp import restride, run_graph
from lazyc.ir.parser import parse_graph


def test_symbols_come_from_arguments() -> None:
    graph = parse_graph("""
        symbol s0 = arg 0 dim 1
        symbol s1 = arg 1
        %0 = input(index=0, name="x", strides=(s0, 1)) : f32[2, s0]
        %1 = input(index=1, name="n", strides=None) : opaque<"SymInt">
        %2 = iota(size=s1*s0, dtype=i64) : i64[s0*s1]
        return %2 strides=(1,)
        return s0 + s1
        return None
    """)
    ramp, total, nothing = run_graph(graph, [torch.zeros(2, 3), 4])
    assert ramp.tolist() == list(range(12)) and total == 7 and nothing is None


def test_mutations_happen_after_all_reads() -> None:
    graph = parse_graph("""
        %0 = input(index=0, name="x", strides=(1,)) : f32[3]
        %1 = input(index=1, name="y", strides=(1,)) : f32[3]
        %2 = add(%0, %1) : f32[3]
        mutate %0 = %1
        mutate %1 = %0
        return %2 strides=(1,)
        return %0 strides=(1,)
    """)
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    total, old = run_graph(graph, [x, y])
    assert total.tolist() == [11, 22, 33] and old.tolist() == [1, 2, 3]
    assert x.tolist() == [10, 20, 30] and y.tolist() == [1, 2, 3]


def test_outputs_have_their_strides_and_aliases() -> None:
    graph = parse_graph("""
        %0 = input(index=0, name="x", strides=(3, 1)) : f32[2, 3]
        %1 = permute(%0, dims=(1, 0)) : f32[3, 2]
        %2 = slice(%0, starts=(1, 0), sizes=(1, 3), steps=(1, 1)) : f32[1, 3]
        return %1 strides=(2, 1)
        return %1 strides=(1, 3) alias_of=0 offset=0
        return %2 strides=(3, 1) alias_of=0 offset=3
        return %0 strides=(3, 1)
    """)
    x = torch.arange(6.0).reshape(2, 3)
    copy, view, row, own = run_graph(graph, [x])
    assert copy.stride() == (2, 1) and torch.equal(copy, x.t())
    assert view.data_ptr() == x.data_ptr() and torch.equal(view, x.t())
    assert row.data_ptr() == x[1].data_ptr() and torch.equal(row, x[1:])
    assert own.data_ptr() != x.data_ptr() and torch.equal(own, x)


def test_eager_calls_see_the_layout_that_they_ask_for() -> None:
    graph = parse_graph("""
        %0 = input(index=0, name="x", strides=(1, 2)) : f32[2, 3]
        %1 = eager(%0, target="aten.as_strided.default", args=($0, (6,), (1,)), kwargs=(), outputs=(f32[6],), strides=((1,),), input_strides=((1, 2),), is_tuple=False, reason="test", aliases=(0,)) : f32[6]
        return %1 strides=(1,)
    """)
    x = torch.arange(6.0).reshape(2, 3)  # row-major: not what the call saw in the trace
    assert run_graph(graph, [x])[0].tolist() == [0, 3, 1, 4, 2, 5]


def test_restride_keeps_expanded_dims() -> None:
    x = torch.arange(3.0).expand(2, 3)
    y = restride(x.clone(), (0, 1))
    assert y.stride() == (0, 1) and torch.equal(x, y)
    assert restride(x, (0, 1)) is x
