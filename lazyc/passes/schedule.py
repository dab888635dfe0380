"""Graph -> Program: realize, fuse, lay out, lower, put the steps in order.

before   %3 = add(%1, %2)   %4 = matmul(%3, %w)   %5 = reduce_max(%4)
after    kernel k0 -> b3;  gemm b3, w -> b4;  kernel k1: b4 -> b5
"""

from __future__ import annotations

from lazyc.ir.decisions import signed
from lazyc.ir.graph import Graph
from lazyc.ir.program import Program
from lazyc.passes.emit import emit_program
from lazyc.passes.fusion import fuse
from lazyc.passes.layout_decisions import layout_decisions
from lazyc.passes.plan import make_plan
from lazyc.passes.units import make_units


def schedule(
    graph: Graph,
    fusion: bool = True,
    layout: bool = True,
    device: str = "cpu",
    keeps: bool = True,
) -> Program:
    """The Program of a verified Graph that the passes of ``pipeline`` have gone over, with their decisions,
    for ``device``. ``layout`` as in ``choose_strides``; ``keeps``: work on parameters and constants alone
    is kept between calls.

    Raises plan.Unschedulable.
    """
    plan = make_plan(graph, layout, device, keeps)
    graph.decisions += signed(layout_decisions(plan), "layout")
    units = make_units(plan)
    if fusion:
        fuse(units)
    return emit_program(plan, units)
