"""``generate``: a LoopNest as the source of one Triton kernel."""

from __future__ import annotations

from lazyc.codegen.base import KernelCode
from lazyc.codegen.gpu_target import Float32Products
from lazyc.codegen.triton.attention import Attention, attention_kernel
from lazyc.codegen.triton.blocks import choose_blocks
from lazyc.codegen.triton.contraction import Contraction, contraction_kernel
from lazyc.codegen.triton.loop_kernel import loop_kernel
from lazyc.codegen.triton.tile_rules import attention_tiles, contraction_tiles
from lazyc.ir.loops import LoopNest


def generate(
    nest: LoopNest,
    symbol: str,
    reports_division: bool = True,
    float32: Float32Products = "ieee",
) -> KernelCode:
    """The kernel of a LoopNest. Raises CodegenError for what it has no code for.

    ``reports_division``: whether an integer division by zero is an error; ``float32``: how products in single
    precision are computed.
    """
    attention = Attention.find(nest)
    if attention is not None:
        tiles = attention_tiles(attention, float32)
        return attention_kernel(attention, symbol, tiles, reports_division, float32)
    contraction = Contraction.find(nest)
    if contraction is not None:
        tiles = contraction_tiles(contraction, float32)
        return contraction_kernel(contraction, symbol, tiles, reports_division, float32)
    return loop_kernel(nest, symbol, choose_blocks(nest), reports_division)
