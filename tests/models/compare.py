"""Running a model in eager, compiled and in float64, and judging the results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.gpu import DEVICE
from tests.models.families import Family

# Part of the largest result's size that rounding may account for where eager is right by luck.
SLACK = 1e-6

Results = dict[str, torch.Tensor]
Compile = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Run:
    """Named results of one run: outputs, gradients, and buffers as the run left them."""

    outputs: Results
    gradients: Results
    buffers: Results


def inference(family: Family, compile: Compile, dtype: torch.dtype) -> Run:
    """The family's output in evaluation mode, without gradients."""
    model = family.build().eval().to(DEVICE, dtype)
    with torch.no_grad():
        out = compile(model)(**_in_dtype(family.inputs(), dtype))
    return Run({family.output: getattr(out, family.output)}, {}, {})


def training(family: Family, compile: Compile, dtype: torch.dtype) -> Run:
    """Loss, output and all gradients of one step in training mode, and the buffers after it."""
    model = family.build().train().to(DEVICE, dtype)
    inputs = _in_dtype(family.inputs(), dtype)
    out = compile(model)(**inputs)
    result = getattr(out, family.output)
    loss = out.loss if "labels" in inputs else result.square().mean()
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    return Run({"loss": loss.detach(), family.output: result.detach()}, gradients, buffers)


def _in_dtype(inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: copy.copy(x).to(DEVICE, dtype) if x.is_floating_point() else x.to(DEVICE)
        for name, x in inputs.items()
    }


def differences(eager: Run, compiled: Run, exact: Run) -> list[str]:
    """What is wrong with the compiled run: missing results, or errors above twice eager's."""
    found = []
    for kind in ("outputs", "gradients", "buffers"):
        found += _differ(getattr(eager, kind), getattr(compiled, kind), getattr(exact, kind))
    return found


def _differ(eager: Results, compiled: Results, exact: Results) -> list[str]:
    if eager.keys() != compiled.keys():
        return [f"results differ: {sorted(eager.keys() ^ compiled.keys())}"]
    sizes = [_rms(t.double()) for t in exact.values()]
    slack = SLACK * max(sizes, default=0.0)
    found = []
    for name, reference in exact.items():
        one, other = eager[name], compiled[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            found.append(f"{name}: {other.dtype}{list(other.shape)}")
            continue
        allowed = 2 * _rms(one.double() - reference.double()) + slack
        error = _rms(other.double() - reference.double())
        if not error <= allowed:  # nan counts as wrong
            found.append(f"{name}: error {error:.3e}, allowed {allowed:.3e}")
    return found


def _rms(x: torch.Tensor) -> float:
    return float(x.detach().square().mean().sqrt()) if x.numel() else 0.0
