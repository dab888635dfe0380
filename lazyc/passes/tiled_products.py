"""Gives matrix products the kernels that the target has for them.

before   gemm b3 = b0 @ b1  packed b
after    gemm b3 = b0 @ b1  packed b  tiles of 14 x 32

They take both factors in an order of their own: that of a weight is made once, others at each call.

MKL has kernels made for Intel's CPUs; what it runs on others leaves a third of their arithmetic unused, and
half of it in wide products (docs/numbers.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

from lazyc.ir.decisions import Decision
from lazyc.ir.program import GemmStep, Program
from lazyc.ir.tiled_product import LEAST_REPACKED, Tile
from lazyc.ir.types import DType

Gemm: TypeAlias = Literal["auto", "library", "generated"]


def choose_tiled_products(
    program: Program, gemm: Gemm, tile: Tile | None, prefers_library: bool
) -> Program:
    """``program`` for a target with kernels of this ``tile``; None: it has none."""
    if tile is None or gemm == "library" or (gemm == "auto" and prefers_library):
        return program
    steps, decisions = [], []
    for step in program.steps:
        if isinstance(step, GemmStep) and _is_served(step):
            step = replace(step, tile=tile)
            what = f"product [{step.m}, {step.k}] @ [{step.k}, {step.n}] by generated kernels"
            why = "the library has none made for this CPU" if gemm == "auto" else "option gemm"
            decisions.append(Decision(what, why, step.comment, by="tiled_products"))
        steps.append(step)
    return replace(program, steps=tuple(steps), decisions=(*program.decisions, *decisions))


def _is_served(step: GemmStep) -> bool:
    """A product of matrices that is worth to be packed for: with a weight that is kept packed, or large in
    all dims. Where there is a sparse kernel, the weight is dense for a few calls only, if at all."""
    if (
        step.dtype is not DType.F32
        or step.batch
        or (step.sparse is not None and step.sparse.kernel)
    ):
        return False
    sizes = (d for d in (step.m, step.n, step.k) if isinstance(d, int))
    return step.pack_b or all(d >= LEAST_REPACKED for d in sizes)
