"""Twelve families of transformers models: inference and gradients equal to eager, all compiled."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import lazyc
from tests.gpu import DEVICE
from tests.models.compare import Run, differences, inference, training
from tests.models.families import FAMILIES, Family

pytestmark = pytest.mark.gpu
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
with_lazyc = functools.partial(torch.compile, backend="lazyc", fullgraph=True)

# Left to torch: gradients of convolutions are library calls, and writes through strides (in the
# gradient of Swin's shifted windows) have no lowering.
BY_CHOICE = {"aten.convolution_backward.default", "aten.as_strided_scatter.default"}
if DEVICE != "cpu":
    BY_CHOICE.add(
        "aten.convolution.default"
    )  # cuDNN has kernels for those of channels by themselves


def in_eager(model: nn.Module) -> nn.Module:
    return model


def compiled_graphs(before: dict[str, Any]) -> int:
    """Graphs that lazyc compiled since ``before``; none of them, and no op, was left to eager."""
    now = lazyc.metrics.snapshot()
    assert now["compiler_bugs"] == before["compiler_bugs"]
    assert _left_to_eager(now) == _left_to_eager(before)
    return now["graphs_compiled"] - before["graphs_compiled"]


def _left_to_eager(snapshot: dict[str, Any]) -> list[dict[str, Any]]:
    return [f for f in snapshot["fallbacks"] if f["op"] not in BY_CHOICE]


def check(eager: Run, compiled: Run, exact: Run) -> None:
    assert not (wrong := differences(eager, compiled, exact)), "\n".join(wrong)


@families
def test_inference(family: Family) -> None:
    before = lazyc.metrics.snapshot()
    compiled = inference(family, with_lazyc, torch.float32)
    assert compiled_graphs(before) == 1
    eager = inference(family, in_eager, torch.float32)
    check(eager, compiled, inference(family, in_eager, torch.float64))


@families
def test_training_step(family: Family) -> None:
    before = lazyc.metrics.snapshot()
    compiled = training(family, with_lazyc, torch.float32)
    assert compiled_graphs(before) == 2  # forward and backward
    eager = training(family, in_eager, torch.float32)
    assert eager.gradients
    check(eager, compiled, training(family, in_eager, torch.float64))
