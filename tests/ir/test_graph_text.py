from __future__ import annotations

import math

import pytest
import sympy
import torch

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Output, Provenance
from lazyc.ir.ops import IRError
from lazyc.ir.parser import parse_graph
from lazyc.ir.printer import dim_text, print_graph
from lazyc.ir.types import DType, OpaqueType, SymbolSource, TensorType

S0 = sympy.Symbol("s0", integer=True, positive=True)
S1 = sympy.Symbol("s1", integer=True, positive=True)


def example() -> Graph:
    graph = Graph(constants=[torch.arange(3)])
    x = graph.add(
        "input", (), A.InputAttrs(0, "x", TensorType(DType.F32, (S0, 8)), (8, 1), alignment=64)
    )
    z = graph.add("input", (), A.InputAttrs(1, "z", OpaqueType("complex64[3]"), None))
    graph.symbols.append(SymbolSource(S0, 0, 0))
    where = Provenance("aten.exp.default", "model.py:12")
    y = graph.add("exp", (x,), provenance=where)
    wide = graph.add("reshape", (y,), A.ShapeAttrs((2 * S0, 4)))
    graph.add("tensor_constant", (), A.TensorConstantAttrs(0, TensorType(DType.I64, (3,)), (1,)))
    eager = A.EagerAttrs(
        "aten.sort.stable",
        (A.ArgRef(0), (1, None, True), "text \"quoted\", (", -1.5, math.inf, 2 * S0 + 1),
        (("dtype", torch.float64), ("device", torch.device("cuda:1")), ("z", A.ArgRef(1))),
        (TensorType(DType.F32, (2 * S0, 4)), OpaqueType("tuple")),
        ((4, 1), None),
        ((4, 1), None),
        True,
        "no lowering",
        serial=3,
    )  # fmt: skip
    pair = graph.add("eager", (wide, z), eager)
    first = graph.add("project", (pair,), A.ProjectAttrs(0), None, eager.outputs[0])
    graph.mutations.append((x, y))
    graph.outputs += [
        Output(first, (4, 1)), Output(None), Output(2 * S0), Output(x, (8, 1), 0, S0),
    ]  # fmt: skip
    return graph


def test_text_is_readable() -> None:
    lines = print_graph(example()).splitlines()
    assert lines[0] == "symbol s0 = arg 0 dim 0"
    assert lines[1] == '%0 = input(index=0, name="x", strides=(8, 1), alignment=64) : f32[s0, 8]'
    assert lines[3] == "%2 = exp(%0) : f32[s0, 8]  # aten.exp.default model.py:12"
    assert lines[-5:] == [
        "mutate %0 = %2",
        "return %6 strides=(4, 1)",
        "return None",
        "return 2*s0",
        "return %0 strides=(8, 1) alias_of=0 offset=s0",
    ]


def test_round_trip() -> None:
    graph = example()
    text = print_graph(graph)
    read = parse_graph(text, graph.constants)
    assert print_graph(read) == text
    assert [n.attrs for n in read.nodes] == [n.attrs for n in graph.nodes]
    assert [n.type for n in read.nodes] == [n.type for n in graph.nodes]
    assert read.symbols == graph.symbols


def test_provenance_is_left_out_of_the_canonical_text() -> None:
    a, b = example(), example()
    b.provenance.clear()
    assert print_graph(a) != print_graph(b)
    assert print_graph(a, provenance=False) == print_graph(b, provenance=False)


@pytest.mark.parametrize(
    "value", [1.0, 1, True, -0.0, 0.0, math.nan, math.inf, -math.inf, 1e-45, 1e300]
)
def test_scalars_keep_type_and_sign(value: float) -> None:
    dtype = DType.BOOL if value is True else DType.F64 if isinstance(value, float) else DType.I64
    graph = Graph()
    graph.add("constant", (), A.ConstantAttrs(value, dtype))
    text = print_graph(graph)
    read = parse_graph(text).nodes[0].attrs.value
    assert type(read) is type(value)
    assert math.copysign(1, read) == math.copysign(1, value) and repr(read) == repr(value)


def test_symbolic_text_does_not_depend_on_how_it_was_built() -> None:
    assert dim_text(S0 * 2 + S1) == dim_text(S1 + 2 * S0)
    assert dim_text(S0 * S1**2 - 3) == dim_text(-3 + S1 * S0 * S1)
    assert dim_text(S0 + 1) != dim_text(S0 + 2)
    read = parse_graph(
        f"%0 = iota(size={dim_text(3 * S0 * S1 - S1 + 7)}, dtype=i64) : i64[{dim_text(3 * S0 * S1 - S1 + 7)}]"
    )
    assert read.nodes[0].shape[0] == 3 * S0 * S1 - S1 + 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("%0 = frobnicate() : f32[]", "unknown op"),
        ("%0 = constant(value=1.0) : f32[]", "no value for dtype"),
        ("%0 = constant(value=1.0, dtype=f32) : f32[3]", "the text says"),
        ("%0 = iota(size=foo(3), dtype=i64) : i64[3]", "unknown function"),
        ("hello", "cannot read"),
        ("%0 = iota(size=;) : i64[3]", "cannot read"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(IRError, match=message):
        parse_graph(text)
