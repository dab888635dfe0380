"""Nests that need many registers: gradients of two batch norms that share what reaches them."""

from __future__ import annotations

from lazyc.ir.graph import Node
from lazyc.ir.loops import LoopNest
from lazyc.ir.types import DType
from lazyc.passes.manager import run_passes
from lazyc.passes.pipeline import pipeline
from lazyc.passes.schedule import schedule
from tests.passes.build import Make, kernels


def gradients_of_norms(channels: int, count: int, norms: int = 2) -> LoopNest:
    """One kernel with 3 * ``norms`` sums and as many more that go across, over rows of ``count``."""
    b = Make()
    shape = channels, count
    shared = b.input(*shape)
    outs: list[Node] = []
    for _ in range(norms):
        x, grad = b.input(*shape, dtype=DType.BF16), b.input(*shape)
        mean, scale = (b.expand(b.input(channels, 1), shape) for _ in range(2))
        normal = b.mul(b.sub(b.cast(x, DType.F32), mean), scale)

        def total(value: Node) -> Node:
            return b.reduce("sum", value, 1, keepdim=True)

        first, second = total(b.mul(grad, normal)), total(grad)
        parts = [b.expand(b.div(t, float(count)), shape) for t in (first, second)]
        inner = b.sub(b.sub(grad, parts[1]), b.mul(normal, parts[0]))
        outs += [b.cast(b.mul(scale, inner), DType.BF16), total(b.mul(shared, normal)), first]
    outs.append(b.reduce("sum", shared, 1, keepdim=True))
    program = schedule(run_passes(b.outputs(*outs), pipeline(True, True), verify=True)[-1].graph)
    (step,) = kernels(program)
    return program.nests[step.nest]
