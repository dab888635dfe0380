"""The steps of a Graph before fusion: one unit for each root and each library or eager call."""

from __future__ import annotations

import itertools

from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.ops import Trait
from lazyc.passes.fusion import Unit, UnitGraph
from lazyc.passes.lasting import Lasting
from lazyc.passes.plan import Plan
from lazyc.passes.regions import Access, Kernel, Root, Target, kernel_of, make_root
from lazyc.passes.strided import StridedView

GIVEN = frozenset({"input", "tensor_constant"})  # memory that is there before the first step


def make_units(plan: Plan) -> UnitGraph:
    """One unit for each root and library call, with the edges between them."""
    units: list[Unit] = []
    owner: dict[Node, int] = {}
    accesses: list[tuple[Access, ...]] = []
    roots: dict[Root, int] = {}

    def add(kernel: Kernel | None, nodes: list[Node], reads: tuple[Access, ...]) -> int:
        units.append(Unit(len(units), kernel, nodes, {a.node for a in reads}))
        accesses.append(reads)
        return units[-1].id

    for node in plan.nodes:
        if node not in plan.realized or node.op in GIVEN:
            continue
        if node.op == "row_statistic":
            continue
        if node.op == "project":
            owner[node] = owner[node.inputs[0]]
            units[owner[node]].nodes.append(node)
        elif node.spec.has(Trait.CONTRACTION | Trait.BARRIER | Trait.SCATTER) or node.op == "seed":
            owner[node] = add(None, [node], _library_reads(node, plan))
        else:
            root = make_root(node, plan.realized)
            owner[node] = roots[root] = add(kernel_of(root), [node], root.accesses)
    _add_statistics(plan, units, owner)
    for (node, _, _), target in plan.copies.items():
        root = make_root(node, plan.realized, target)
        roots[root] = add(kernel_of(root), [node], root.accesses)
    for node, value in plan.graph.mutations:
        assert isinstance(node.attrs, A.InputAttrs) and node.attrs.strides is not None
        root = make_root(value, plan.realized, Target(node, node.attrs.strides))
        roots[root] = add(kernel_of(root), [value], root.accesses)
    edges = _edges(plan, units, accesses, owner, roots)
    graph = UnitGraph(units, edges)
    if plan.keeps:
        _mark_static(plan, graph, owner)
    return graph


def _add_statistics(plan: Plan, units: list[Unit], owner: dict[Node, int]) -> None:
    """Statistics of rows of scores are made by the kernel that attends with these scores."""
    attends = {n.inputs[0]: n for n in plan.nodes if n.op == "attend"}
    for node in plan.nodes:
        if node.op == "row_statistic":
            owner[node] = owner[attends[node.inputs[0]]]
            unit = units[owner[node]]
            assert unit.kernel is not None
            unit.kernel.statistics.append(node)
            unit.nodes.append(node)


def _mark_static(plan: Plan, graph: UnitGraph, owner: dict[Node, int]) -> None:
    """Finds the units whose results depend on nothing but parameters and constants."""
    lasting = Lasting(plan.graph)
    copies: list[Unit] = []
    for unit in graph.order():
        effect = any(
            n.op == "seed" or (isinstance(n.attrs, A.EagerAttrs) and n.attrs.serial >= 0)
            for n in unit.nodes
        )
        targets = [r.into for r in unit.kernel.roots if r.into] if unit.kernel is not None else []
        writes = any(t.node is not None or t in plan.results.values() for t in targets)
        if effect or writes or any(plan.hands_out(n) for n in unit.nodes):
            continue
        # What comes before it but is not read by name: copies of arguments in the layout of a library call.
        unit.is_static = (
            bool(unit.reads)
            and all(n in owner or lasting.is_leaf(n) for n in unit.reads)
            and all(graph.units[p].is_static for p in unit.preds)
        )
        if unit.is_static and targets:
            copies.append(unit)
    for unit in copies:
        # Nothing else is kept for the sake of a copy.
        unit.is_static = any(graph.units[s].is_static for s in unit.succs)


def _library_reads(node: Node, plan: Plan) -> tuple[Access, ...]:
    if node in plan.factors:
        return tuple(Access(m.base, None) for m in plan.factors[node])
    if node.spec.has(Trait.SCATTER):
        return make_root(node, plan.realized).accesses
    found: list[Access] = []
    for k, arg in enumerate(node.inputs):
        view = plan.arguments.get((node, k))
        found.append(Access(view.base if isinstance(view, StridedView) else arg, None))
    return tuple(found)


def _edges(
    plan: Plan,
    units: list[Unit],
    accesses: list[tuple[Access, ...]],
    owner: dict[Node, int],
    roots: dict[Root, int],
) -> list[tuple[int, int]]:
    edges: list[tuple[int, int]] = []
    copy_unit = {root.into: uid for root, uid in roots.items() if root.into is not None}
    readers: dict[Node, list[int]] = {}
    for unit, reads in zip(units, accesses, strict=True):
        for access in reads:
            readers.setdefault(access.node, []).append(unit.id)
            if access.node in owner:
                edges.append((owner[access.node], unit.id))
    for (node, _), place in plan.arguments.items():
        if isinstance(place, Target):
            edges.append((copy_unit[place], owner[node]))
    effects = [
        owner[n] for n in plan.nodes if isinstance(n.attrs, A.EagerAttrs) and n.attrs.has_effect
    ]
    edges += itertools.pairwise(effects)
    for target, uid in copy_unit.items():
        if target.node is not None:  # a write to an input comes after everything that reads it
            edges += [(r, uid) for r in readers.get(target.node, ()) if r != uid]
    return edges
