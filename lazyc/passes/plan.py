"""What is decided about a Graph before its steps are written: memory, layout, operands, outputs.

Library calls and the caller want memory with certain strides. A value that is a strided view of
memory already there is passed as that view; another one gets memory of its own, or a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node, Output, depends_on
from lazyc.ir.ops import Trait
from lazyc.ir.types import Shape, TensorType, contiguous_strides, numel
from lazyc.passes.contraction import (
    MatrixView,
    as_matrix,
    is_copy,
    is_library_product,
    stored_factors,
)
from lazyc.passes.lasting import kept_values
from lazyc.passes.layout import choose_strides, same_strides
from lazyc.passes.realize import live_nodes, realized_nodes, view_base
from lazyc.passes.regions import Target, is_alone
from lazyc.passes.strided import StridedView, storable_strides, strided_view

_MAX_ROUNDS = 8


class Unschedulable(Exception):
    """The Graph holds something that no Program can express; the reason says what."""


# Who gets memory: one output, or the outputs that are views in one memory.
Claim: TypeAlias = tuple[Literal["output", "memory"], int]


@dataclass
class Plan:
    """``factors``: the operands of each matmul. ``arguments``: for (eager node, argument) the view to
    pass, or the copy. ``copies``: values to copy to other strides. ``results``: for each output the
    value whose memory is handed out, a view of such memory, or the copy. ``keeps``: whether work on
    parameters and constants alone is kept between calls.

    For reports: ``reasons`` as in ``Layouts``, ``kept`` values that are made of weights once, and
    ``copied_operands``, those that got memory because BLAS could not read them where they were."""

    graph: Graph
    nodes: list[Node]
    realized: set[Node]
    strides: dict[Node, Shape]
    reasons: dict[Node, str]
    kept: frozenset[Node]
    copied_operands: set[Node]
    keeps: bool = True
    factors: dict[Node, tuple[MatrixView, ...]] = field(default_factory=dict)
    arguments: dict[tuple[Node, int], StridedView | Target] = field(default_factory=dict)
    copies: dict[tuple[Node, Shape, Claim | None], Target] = field(default_factory=dict)
    results: dict[int, StridedView | Target] = field(default_factory=dict)

    def copy(self, node: Node, strides: Shape) -> Target:
        """The copy of a value to these strides, for reading."""
        return self.copies.setdefault((node, strides, None), Target(None, strides))

    def hands_out(self, node: Node) -> bool:
        """Whether the caller gets the memory of a value."""
        return any(
            isinstance(place, StridedView) and place.base is node for place in self.results.values()
        ) or any(o.value is node for o in self.graph.outputs)


def make_plan(graph: Graph, layout: bool = True, device: str = "cpu", keeps: bool = True) -> Plan:
    """Decides until nothing changes; ``layout`` as in ``choose_strides``, ``keeps`` as in Plan; all tensors
    are on ``device``. Raises Unschedulable."""
    for node in live_nodes(graph):
        on_device = not isinstance(node.type, TensorType) or node.type.device == device
        if not on_device and node.op != "seed":  # which is drawn where it is read
            raise Unschedulable(f"tensors on {node.tensor.device} in a program for {device}")
    for node in graph.nodes:
        if isinstance(node.attrs, A.EagerAttrs) and node.attrs.mutates:
            raise Unschedulable(f"{node.attrs.target} writes to its arguments")
    graph.outputs = [_storable(o) for o in graph.outputs]
    graph.mutations = [(t, _apart(graph, v)) for t, v in graph.mutations if t is not v]
    targets = {t for t, _ in graph.mutations}
    forced: set[Node] = {v for _, v in graph.mutations if depends_on(v, targets)}
    forced |= {v for _, v in graph.mutations if v.spec.has(Trait.VIEW)}
    kept = kept_values(graph) if keeps else frozenset[Node]()
    forced |= kept | stored_factors(live_nodes(graph))
    forced |= {n for n in live_nodes(graph) if is_copy(n)}
    forced |= {_summed(n.inputs[0]) for n in live_nodes(graph) if is_alone(n)}
    copied_operands: set[Node] = set()
    for _ in range(_MAX_ROUNDS):
        realized = realized_nodes(graph, frozenset(forced))
        layouts = choose_strides(graph, realized, layout)
        plan = Plan(
            graph,
            live_nodes(graph),
            realized,
            layouts.strides,
            layouts.reasons,
            kept,
            copied_operands,
            keeps,
        )
        operands = _library_operands(plan)
        copied_operands |= operands
        missing = operands | _eager_arguments(plan) | _outputs(plan)
        if missing <= forced:
            return plan
        forced |= missing
    raise AssertionError("operands do not settle")


def _summed(x: Node) -> Node:
    """What is in memory of what a kernel adds up that does nothing else: a value before it is widened."""
    base = view_base(x)
    if base.op == "cast" and base.inputs[0].dtype.is_widened:
        return view_base(base.inputs[0])
    return base


def _storable(output: Output) -> Output:
    """An output whose elements have a place each; one that eager expands is handed out dense."""
    node, strides = output.value, output.strides
    if output.alias_of is not None or strides is None or not isinstance(node, Node):
        return output
    return replace(output, strides=storable_strides(node.shape, strides))


def _apart(graph: Graph, value: Node) -> Node:
    """A value that is an input, as a node that can have memory of its own: the input may be written
    to before the value is read."""
    if value.op != "input":
        return value
    return graph.add("reshape", (value,), A.ShapeAttrs(value.shape))


def _library_operands(plan: Plan) -> set[Node]:
    missing: set[Node] = set()
    for node in plan.nodes:
        if not is_library_product(node):
            continue
        views = [strided_view(arg, plan.realized, plan.strides) for arg in node.inputs]
        found = [None if v is None else as_matrix(v) for v in views]
        missing |= {a for a, m in zip(node.inputs, found, strict=True) if m is None}
        plan.factors[node] = tuple(m for m in found if m is not None)
    return missing


def _eager_arguments(plan: Plan) -> set[Node]:
    missing: set[Node] = set()
    for node in plan.nodes:
        wanted: tuple[Shape | None, ...]
        if node.op == "convolution":
            wanted = tuple(contiguous_strides(a.shape) for a in node.inputs)
        elif isinstance(node.attrs, A.EagerAttrs):
            wanted = node.attrs.input_strides
        else:
            continue
        for k, (arg, strides) in enumerate(zip(node.inputs, wanted, strict=True)):
            if strides is None or not isinstance(arg.type, TensorType):
                continue
            view = strided_view(arg, plan.realized, plan.strides)
            if view is not None and same_strides(arg.shape, view.strides, strides):
                plan.arguments[node, k] = StridedView(view.base, view.shape, strides, view.offset)
            elif arg in plan.realized:
                wanted_strides = storable_strides(arg.shape, strides)
                plan.arguments[node, k] = plan.copy(arg, wanted_strides)
            else:
                missing.add(arg)
    return missing


def _outputs(plan: Plan) -> set[Node]:
    """A value's memory is handed out once; for whoever else wants it there is a copy."""
    claims: dict[Claim, tuple[Node, Shape]] = {}
    holders: dict[Claim, list[int]] = {}
    for number, output in enumerate(plan.graph.outputs):
        node, strides = output.value, output.strides
        if not isinstance(node, Node) or output.alias_of is not None:
            continue
        if strides is None or not isinstance(node.type, TensorType):
            continue
        claim = ("output", number) if output.memory is None else ("memory", output.memory)
        claims[claim] = node, strides
        holders.setdefault(claim, []).append(number)
    missing: set[Node] = set()
    taken: set[Node] = set()
    for whole in (True, False):
        for claim, (node, strides) in claims.items():
            if (node in plan.realized) != whole:
                continue
            place = (_claim_node if whole else _claim_view)(plan, claim, node, strides, taken)
            if place is None:
                missing.add(node)
                continue
            for number in holders[claim]:
                plan.results[number] = place
    return missing


def _claim_node(
    plan: Plan, claim: Claim, node: Node, strides: Shape, taken: set[Node]
) -> StridedView | Target:
    if (
        node in taken
        or node.op in ("input", "tensor_constant")
        or not same_strides(node.shape, plan.strides[node], strides)
    ):
        return plan.copies.setdefault((node, strides, claim), Target(None, strides))
    taken.add(node)
    return StridedView(node, node.shape, strides, 0)


def _claim_view(
    plan: Plan, claim: Claim, node: Node, strides: Shape, taken: set[Node]
) -> StridedView | None:
    """All of another value's memory; None where that does not do and the value needs its own."""
    view = strided_view(node, plan.realized, plan.strides)
    if (
        view is None
        or view.base in taken
        or not _can_hand_out(view)
        or not same_strides(node.shape, view.strides, strides)
    ):
        return None
    taken.add(view.base)
    return StridedView(view.base, view.shape, strides, 0)


def _can_hand_out(view: StridedView) -> bool:
    """All of the memory of a value that lazyc allocates, in another shape."""
    base = view.base
    if base.spec.has(Trait.LEAF) or base.op in ("eager", "project"):
        return False
    return view.offset == 0 and numel(view.shape) == numel(base.shape)
