"""Verifier of the Graph IR: what every pass may rely on, checked again from scratch.

Run between passes in tests always, in production under a flag.
"""

from __future__ import annotations

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output
from lazyc.ir.ops import OPS, IRError, Trait
from lazyc.ir.printer import node_text
from lazyc.ir.types import OpaqueType, SymbolSource, TensorType, free_symbols, storage_extent


def verify_graph(graph: Graph) -> None:
    """Raises IRError, naming the node, when the Graph breaks a rule of its IR."""
    known: set[Node] = set()
    taken: set[int] = set()
    symbols = _check_symbols(graph)
    for place, node in enumerate(graph.nodes):
        try:
            _check_node(graph, node, place, known)
            _check_leaf(graph, node, taken)
            if isinstance(node.type, TensorType) and node.op != "input":
                _check_bound(free_symbols(node.type.shape), symbols)
        except IRError as error:
            raise IRError(f"{error}\n  in {node_text(node, graph.provenance.get(node))}") from None
        known.add(node)
    for output in graph.outputs:
        _check_output(graph, output, known, taken)
    _check_mutations(graph, known)


def _check_node(graph: Graph, node: Node, place: int, known: set[Node]) -> None:
    if node.id != place:
        raise IRError(f"node %{node.id} stands at place {place}")
    if node.op not in OPS:
        raise IRError(f"unknown op {node.op}")
    for arg in node.inputs:
        if arg not in known:
            raise IRError(f"%{arg.id} is read before it is defined")
    spec = node.spec
    if spec.arity is not None and spec.arity != len(node.inputs):
        raise IRError(f"takes {spec.arity} inputs, got {len(node.inputs)}")
    if type(node.attrs) is not spec.attrs:
        raise IRError(f"attrs must be {spec.attrs.__name__}")
    if node.op == "project":
        _check_project(node)
    elif (inferred := spec.infer([n.type for n in node.inputs], node.attrs)) != node.type:
        raise IRError(f"type is {node.type}, its inputs give {inferred}")
    if spec.has(Trait.BARRIER):
        _check_eager(node)


def _check_project(node: Node) -> None:
    source = node.inputs[0]
    if not isinstance(source.attrs, A.EagerAttrs) or not source.attrs.is_tuple:
        raise IRError(f"%{source.id} is no eager call with several results")
    if not 0 <= node.attrs.index < len(source.attrs.outputs):
        raise IRError(f"%{source.id} has no result {node.attrs.index}")
    if source.attrs.outputs[node.attrs.index] != node.type:
        raise IRError(f"result {node.attrs.index} is {source.attrs.outputs[node.attrs.index]}")


def _check_eager(node: Node) -> None:
    attrs: A.EagerAttrs = node.attrs
    if len(attrs.input_strides) != len(node.inputs):
        raise IRError(f"{len(attrs.input_strides)} input strides for {len(node.inputs)} inputs")
    if len(attrs.strides) != len(attrs.outputs):
        raise IRError(f"{len(attrs.strides)} strides for {len(attrs.outputs)} results")
    for t, strides in (
        *zip((n.type for n in node.inputs), attrs.input_strides, strict=True),
        *zip(attrs.outputs, attrs.strides, strict=True),
    ):
        if isinstance(t, OpaqueType) != (strides is None):
            raise IRError(f"strides {strides} for {t}")
        if isinstance(t, TensorType) and strides is not None and len(strides) != t.rank:
            raise IRError(f"strides {strides} for {t}")
    if any(not 0 <= k < len(node.inputs) for k in (*attrs.mutates, *attrs.aliases)):
        raise IRError("mutates or aliases an input that it does not have")


def _check_leaf(graph: Graph, node: Node, taken: set[int]) -> None:
    if isinstance(node.attrs, A.InputAttrs):
        if node.attrs.index in taken:
            raise IRError(f"argument {node.attrs.index} has two input nodes")
        taken.add(node.attrs.index)
    if isinstance(node.attrs, A.TensorConstantAttrs):
        if not 0 <= node.attrs.index < len(graph.constants):
            raise IRError(f"there is no constant {node.attrs.index}")
        constant = graph.constants[node.attrs.index]
        t = node.type
        if isinstance(t, TensorType) and (
            tuple(constant.shape) != t.shape or constant.dtype != t.dtype.torch
        ):
            raise IRError(f"constant is {constant.dtype}{tuple(constant.shape)}")


def _check_symbols(graph: Graph) -> set[str]:
    inputs = {n.attrs.index: n for n in graph.inputs}
    for source in graph.symbols:
        node = inputs.get(source.input)
        if node is None:
            raise IRError(f"symbol {source.symbol} comes from argument {source.input}: not there")
        if not _provides(node, source):
            raise IRError(f"symbol {source.symbol} is no size of %{node.id}")
    return {s.symbol.name for s in graph.symbols}


def _provides(node: Node, source: SymbolSource) -> bool:
    if source.dim is None:
        return isinstance(node.type, OpaqueType)
    shape = node.type.shape if isinstance(node.type, TensorType) else ()
    return source.dim < len(shape) and shape[source.dim] == source.symbol


def _check_bound(used: set, symbols: set[str]) -> None:  # type: ignore[type-arg]
    unbound = sorted(s.name for s in used if s.name not in symbols)
    if unbound:
        raise IRError(f"no argument gives symbol {', '.join(unbound)}")


def _check_output(graph: Graph, output: Output, known: set[Node], taken: set[int]) -> None:
    value = output.value
    if not isinstance(value, Node):
        return
    if value not in known:
        raise IRError(f"output %{value.id} is no node of the graph")
    if isinstance(value.type, TensorType) and (
        output.strides is None or len(output.strides) != value.type.rank
    ):
        raise IRError(f"output %{value.id} : {value.type} has strides {output.strides}")
    if output.alias_of is not None and output.alias_of not in taken:
        raise IRError(f"output %{value.id} is an alias of argument {output.alias_of}: not there")
    if output.memory is not None:
        _check_view(output, value)


def _check_view(output: Output, value: Node) -> None:
    where = f"output %{value.id}, a view in memory {output.memory},"
    if output.alias_of is not None or not isinstance(value.type, TensorType):
        raise IRError(f"{where} is an alias of an argument too, or no tensor")
    shape, strides = output.view_shape, output.view_strides
    if len(shape) != len(strides):
        raise IRError(f"{where} has shape {shape} and strides {strides}")
    assert output.strides is not None
    end = storage_extent(value.shape, output.strides)
    reach = storage_extent(shape, strides)
    numbers = (output.offset, end, reach)
    if all(isinstance(n, int) for n in numbers) and not (
        reach == 0 or 0 <= output.offset <= end - reach  # type: ignore[operator]
    ):
        raise IRError(f"{where} reaches out of it")


def _check_mutations(graph: Graph, known: set[Node]) -> None:
    seen: set[Node] = set()
    for target, value in graph.mutations:
        if target not in known or value not in known:
            raise IRError(f"mutation of %{target.id} by %{value.id}: no node of the graph")
        if target.op != "input" or target in seen:
            raise IRError(f"%{target.id} is mutated twice or is no input")
        if target.type != value.type:
            raise IRError(f"mutation of %{target.id} : {target.type} by {value.type}")
        seen.add(target)
