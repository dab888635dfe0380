"""Whether a compiled random program agrees with eager, element by element.

The reference is eager in float64. A float result may be as far from it as eager is, times two (three
for half types), plus what rounding alone explains: eager's error may by luck be zero where the value
is poorly conditioned, so ``Program.noise`` measures how far rounding errors move the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.conformance.random_program import Program
from tests.gpu import DEVICE

FACTOR = {torch.float32: 2.0, torch.float64: 2.0, torch.bfloat16: 3.0}
NOISE = 4.0
TINY = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-3}


def verdict(program: Program, compiled: Callable[..., Any]) -> str:
    """ "" when outputs and mutated inputs of ``compiled`` are right, else the first difference."""
    expected = program.run(program.function())
    found = program.run(compiled, DEVICE)
    names = [*program.outputs, *(f"input {i.name}" for i in program.inputs)]
    if len(found) != len(expected):
        return f"{len(found)} results, eager {len(expected)}"
    results = zip(names, expected, found, program.reference(), program.noise(), strict=True)
    for name, eager, ours, exact, noise in results:
        why = _differ(eager, ours, exact, noise)
        if why:
            return f"{name}: {why}"
    return ""


def _differ(eager: torch.Tensor, ours: Any, exact: torch.Tensor, noise: torch.Tensor) -> str:
    if not isinstance(ours, torch.Tensor):
        return f"{type(ours).__name__}, eager a tensor"
    if (ours.dtype, ours.shape) != (eager.dtype, eager.shape):
        return f"{ours.dtype} {tuple(ours.shape)}, eager {eager.dtype} {tuple(eager.shape)}"
    if not eager.is_floating_point():
        wrong = ours != eager
        return _first(wrong, eager, ours, exact) if wrong.any() else ""
    wide, theirs = ours.double(), eager.double()
    finite = theirs.isfinite()
    same_special = (wide == theirs) | (wide.isnan() & theirs.isnan())
    factor, tiny = FACTOR[eager.dtype], TINY[eager.dtype]
    typical = noise.square().mean().sqrt() if noise.numel() else noise
    allowed = factor * ((theirs - exact).abs() + NOISE * noise + typical) + tiny
    # Where float64 itself has no number, eager's own value is the only guide.
    close = torch.where(exact.isfinite(), (wide - exact).abs() <= allowed, same_special)
    # What float64 gives is right too: eager's vectorized gelu of inf is nan.
    right = torch.where(finite, close, same_special | (wide == exact))
    return "" if right.all() else _first(~right, eager, ours, exact)


def _first(
    wrong: torch.Tensor, eager: torch.Tensor, ours: torch.Tensor, exact: torch.Tensor
) -> str:
    place = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements differ, first at {place}: "
        f"{ours[place].item()!r}, eager {eager[place].item()!r}, float64 {exact[place].item()!r}"
    )
