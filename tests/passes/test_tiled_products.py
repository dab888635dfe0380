"""Which products are left to the library, and which get kernels of lazyc's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy

from lazyc.ir.program import GemmStep, Operand, Program, SparseChoice
from lazyc.ir.sparse import SparseProduct
from lazyc.ir.tiled_product import Tile
from lazyc.ir.types import DType
from lazyc.passes.tiled_products import Gemm, choose_tiled_products

TILE = Tile(14, 32, 512, 18)
STEP = GemmStep(
    DType.F32, (), 2, 24, 16, Operand(0, 0, 16, 1), Operand(1, 0, 1, 16), Operand(2, 0, 24, 1),
    pack_b=True, comment="aten.mm model.py:3",
)  # fmt: skip


def chosen(
    step: GemmStep = STEP, gemm: Gemm = "auto", tile: Tile | None = TILE, library: bool = False
) -> tuple[Tile | None, list[str]]:
    program = choose_tiled_products(Program((), (), (step,), (), {}), gemm, tile, library)
    (found,) = program.steps
    assert isinstance(found, GemmStep)
    return found.tile, [d.why for d in program.decisions]


def test_by_the_library_where_it_suits_the_cpu() -> None:
    assert chosen(library=True) == (None, [])
    assert chosen() == (TILE, ["the library has none made for this CPU"])


def test_by_option() -> None:
    assert chosen(gemm="library") == (None, [])
    assert chosen(gemm="generated", library=True) == (TILE, ["option gemm"])
    assert chosen(gemm="generated", tile=None) == (None, [])  # a target without such kernels


SPARSE = SparseChoice("2:4", SparseProduct("2:4", DType.F32, 2, 24, 16, 16, 24, 8), "")


@pytest.mark.parametrize(
    "change", [{"pack_b": False}, {"dtype": DType.F64}, {"batch": (2,)}, {"sparse": SPARSE}]
)
def test_other_products_are_left_to_the_library(change: dict[str, object]) -> None:
    assert chosen(replace(STEP, **change), gemm="generated") == (None, [])


def test_large_products_are_packed_for_each_time() -> None:
    step = replace(STEP, pack_b=False, m=64, n=200, k=64)
    assert chosen(step)[0] == TILE
    assert chosen(replace(step, k=63))[0] is None
    assert (
        chosen(replace(step, m=sympy.Symbol("s0", integer=True)))[0] == TILE
    )  # where it turns out large
