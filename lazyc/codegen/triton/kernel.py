"""``generate``: a LoopNest as the source of one Triton kernel."""

from __future__ import annotations

from dataclasses import replace

from lazyc.codegen.base import KernelCode, LaunchRef
from lazyc.codegen.gpu_target import Float32Products, GpuTarget
from lazyc.codegen.triton.attention import Attention, attention_kernel
from lazyc.codegen.triton.blocks import Blocks
from lazyc.codegen.triton.choices import Choice, Form, choices, form_of, rule_of
from lazyc.codegen.triton.contraction import Contraction, contraction_kernel
from lazyc.codegen.triton.loop_kernel import loop_kernel
from lazyc.codegen.triton.score_sums import ScoreSums, score_sums_kernel
from lazyc.codegen.triton.tiles import Tiles
from lazyc.ir.loops import LoopNest


def generate(
    nest: LoopNest,
    symbol: str,
    reports_division: bool = True,
    float32: Float32Products = "ieee",
) -> KernelCode:
    """The kernel of a LoopNest with the tiles or blocks of the rules. Raises CodegenError for what it has no
    code for.

    ``reports_division``: whether an integer division by zero is an error; ``float32``: how products in single
    precision are computed.
    """
    form = form_of(nest)
    return _kernel(form, rule_of(form, float32), symbol, reports_division, float32)


def kernel_for(
    nest: LoopNest, symbol: str, target: GpuTarget, reports_division: bool = True
) -> KernelCode:
    """As ``generate``, for a target: where its numbers clearly ask for it, with other tiles or blocks."""
    form = form_of(nest)
    first, *others = choices(form, target)
    code = _kernel(form, first, symbol, reports_division, target.float32)
    assert isinstance(code.ref, LaunchRef)
    return replace(code, ref=replace(code.ref, alternatives=len(others)))


def alternatives(
    nest: LoopNest, symbol: str, target: GpuTarget, reports_division: bool = True
) -> list[KernelCode]:
    """The kernel by other choices, the likely fastest first; each with a symbol of its own."""
    form = form_of(nest)
    return [
        _kernel(form, choice, f"{symbol}_{k}", reports_division, target.float32)
        for k, choice in enumerate(choices(form, target)[1:], 1)
    ]


def _kernel(
    form: Form,
    choice: Choice,
    symbol: str,
    reports_division: bool,
    float32: Float32Products,
) -> KernelCode:
    match form, choice:
        case Attention(), Tiles():
            code = attention_kernel(form, symbol, choice, reports_division, float32)
        case ScoreSums(), Tiles():
            code = score_sums_kernel(form, symbol, choice, reports_division, float32)
        case Contraction(), Tiles():
            code = contraction_kernel(form, symbol, choice, reports_division, float32)
        case LoopNest(), Blocks():
            code = loop_kernel(form, symbol, choice, reports_division)
        case _:
            raise AssertionError(f"{type(choice).__name__} for {type(form).__name__}")
    return replace(code, choice=str(choice))
