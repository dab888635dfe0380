"""``generate``: a LoopNest as the source of one Triton kernel."""

from __future__ import annotations

from lazyc.codegen.base import KernelCode
from lazyc.codegen.triton.attention import Attention, attention_kernel
from lazyc.codegen.triton.blocks import choose_blocks
from lazyc.codegen.triton.contraction import Contraction, contraction_kernel
from lazyc.codegen.triton.loop_kernel import loop_kernel
from lazyc.ir.loops import LoopNest


def generate(nest: LoopNest, symbol: str) -> KernelCode:
    """The kernel of a LoopNest. Raises CodegenError for what it has no code for."""
    attention = Attention.find(nest)
    if attention is not None:
        return attention_kernel(attention, symbol)
    contraction = Contraction.find(nest)
    if contraction is not None:
        return contraction_kernel(contraction, symbol)
    return loop_kernel(nest, symbol, choose_blocks(nest))
