from __future__ import annotations

import dataclasses

import pytest
import torch

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output
from lazyc.ir.ops import IRError
from lazyc.ir.parser import parse_graph
from lazyc.ir.types import DType, TensorType
from lazyc.ir.verify import verify_graph

GOOD = """
symbol s0 = arg 0 dim 0
%0 = input(index=0, name="x", strides=(4, 1)) : f32[s0, 4]
%1 = exp(%0) : f32[s0, 4]
%2 = reduce_sum(%1, axes=(1,)) : f32[s0]
%3 = eager(%1, target="aten.sort.default", args=($0,), kwargs=(), outputs=(f32[s0, 4], i64[s0, 4]), strides=((4, 1), (4, 1)), input_strides=((4, 1),), is_tuple=True, reason="no lowering") : opaque<"tuple2">
%4 = project(%3, index=1) : i64[s0, 4]
mutate %0 = %1
return %2 strides=(1,)
return %4 strides=(4, 1)
"""


def good() -> Graph:
    return parse_graph(GOOD)


def replaced(graph: Graph, place: int, **changes: object) -> None:
    """Puts a changed copy of a node in its place; users still refer to the old one."""
    old = graph.nodes[place]
    new = dataclasses.replace(old, **changes)  # type: ignore[arg-type]
    graph.nodes[place] = new
    for k, node in enumerate(graph.nodes):
        if old in node.inputs:
            inputs = tuple(new if n is old else n for n in node.inputs)
            replaced(graph, k, inputs=inputs)
    graph.outputs = [
        dataclasses.replace(o, value=new) if o.value is old else o for o in graph.outputs
    ]
    graph.mutations = [(new if t is old else t, new if v is old else v) for t, v in graph.mutations]


def test_good_graph_passes() -> None:
    verify_graph(good())
    verify_graph(Graph())


def _wrong_type(g: Graph) -> None:
    replaced(g, 1, type=TensorType(DType.F64, g.nodes[1].shape))


def _swapped(g: Graph) -> None:
    g.nodes[1], g.nodes[2] = g.nodes[2], g.nodes[1]


def _foreign_input(g: Graph) -> None:
    stranger = Node(1, "exp", (g.nodes[0],), A.NO_ATTRS, g.nodes[0].type)
    replaced(g, 2, inputs=(stranger,))


def _wrong_attrs(g: Graph) -> None:
    replaced(g, 1, attrs=A.CastAttrs(DType.F32))


def _wrong_arity(g: Graph) -> None:
    replaced(g, 1, inputs=(g.nodes[0], g.nodes[0]))


def _bad_axes(g: Graph) -> None:
    replaced(g, 2, attrs=A.ReduceAttrs((2,)))


def _bad_projection(g: Graph) -> None:
    replaced(g, 4, attrs=A.ProjectAttrs(2))


def _projection_of_a_tensor(g: Graph) -> None:
    replaced(g, 4, inputs=(g.nodes[1],))


def _strides_of_result(g: Graph) -> None:
    attrs = dataclasses.replace(g.nodes[3].attrs, strides=((4, 1), None))
    replaced(g, 3, attrs=attrs)


def _strides_of_input(g: Graph) -> None:
    replaced(g, 3, attrs=dataclasses.replace(g.nodes[3].attrs, input_strides=()))


def _unknown_mutated(g: Graph) -> None:
    replaced(g, 3, attrs=dataclasses.replace(g.nodes[3].attrs, mutates=(1,)))


def _output_from_elsewhere(g: Graph) -> None:
    g.outputs.append(Output(good().nodes[1], (4, 1)))


def _output_without_strides(g: Graph) -> None:
    g.outputs.append(Output(g.nodes[1]))


def _alias_of_nothing(g: Graph) -> None:
    g.outputs.append(Output(g.nodes[1], (4, 1), alias_of=5))


def _mutated_twice(g: Graph) -> None:
    g.mutations.append(g.mutations[0])


def _mutation_of_no_input(g: Graph) -> None:
    g.mutations.append((g.nodes[1], g.nodes[0]))


def _mutation_of_another_type(g: Graph) -> None:
    g.mutations[0] = (g.nodes[0], g.nodes[2])


def _unbound_symbol(g: Graph) -> None:
    g.symbols.clear()


def _symbol_of_another_dim(g: Graph) -> None:
    g.symbols[0] = dataclasses.replace(g.symbols[0], dim=1)


def _two_inputs_of_one_argument(g: Graph) -> None:
    attrs = A.InputAttrs(0, "y", g.nodes[0].type, (4, 1))
    g.add("input", (), attrs)


def _missing_constant(g: Graph) -> None:
    g.add("tensor_constant", (), A.TensorConstantAttrs(0, TensorType(DType.F32, ()), ()))


def _constant_of_another_type(g: Graph) -> None:
    g.constants.append(torch.zeros(3))
    g.add("tensor_constant", (), A.TensorConstantAttrs(0, TensorType(DType.F64, (3,)), (1,)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_wrong_type, "its inputs give"),
        (_swapped, "stands at place|before it is defined"),
        (_foreign_input, "before it is defined"),
        (_wrong_attrs, "attrs must be|its inputs give"),
        (_wrong_arity, "takes 1 inputs"),
        (_bad_axes, "bad axes"),
        (_bad_projection, "has no result 2"),
        (_projection_of_a_tensor, "no eager call"),
        (_strides_of_result, "strides None"),
        (_strides_of_input, "0 input strides"),
        (_unknown_mutated, "does not have"),
        (_output_from_elsewhere, "no node of the graph"),
        (_output_without_strides, "has strides None"),
        (_alias_of_nothing, "argument 5"),
        (_mutated_twice, "mutated twice"),
        (_mutation_of_no_input, "is no input"),
        (_mutation_of_another_type, "mutation of %0"),
        (_unbound_symbol, "no argument gives symbol s0"),
        (_symbol_of_another_dim, "is no size"),
        (_two_inputs_of_one_argument, "two input nodes"),
        (_missing_constant, "no constant 0"),
        (_constant_of_another_type, "constant is"),
    ],
)
def test_damage_is_found(damage, message: str) -> None:  # type: ignore[no-untyped-def]
    graph = good()
    damage(graph)
    with pytest.raises(IRError, match=message):
        verify_graph(graph)


def test_message_names_the_node_and_the_users_line() -> None:
    graph = parse_graph("%0 = iota(size=3, dtype=i64) : i64[3]  # aten.arange.default model.py:7")
    replaced(graph, 0, type=TensorType(DType.I64, (4,)))
    graph.provenance[graph.nodes[0]] = next(iter(graph.provenance.values()))
    with pytest.raises(IRError, match=r"%0 = iota.*model\.py:7"):
        verify_graph(graph)
