"""Gives products with weights that are kept packed the kernels that the target has for them.

before   gemm b3 = b0 @ b1  packed b
after    gemm b3 = b0 @ b1  packed b for tiles of 14 x 32

MKL has kernels made for Intel's CPUs; what it runs on others leaves a third of their arithmetic unused, and
half of it in wide products (docs/numbers.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

from lazyc.ir.decisions import Decision
from lazyc.ir.program import GemmStep, Program
from lazyc.ir.tiled_product import Tile
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
    """A product with a weight that is kept packed. Where there is a sparse kernel, the weight is dense for a
    few calls only, if at all: not worth to be packed."""
    is_dense = step.sparse is None or step.sparse.kernel is None
    return step.pack_b and step.dtype is DType.F32 and not step.batch and is_dense
