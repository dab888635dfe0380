"""Where the tests of GPU kernels run: in Triton's interpreter on tensors of the CPU, or on a GPU.

``pytest --device cuda -m gpu`` runs them on a GPU, which is what ``lazyc selftest --device cuda`` does. A module of such
tests is marked ``gpu``, takes its tensors and models ``on_device``, and compiles with ``OPTIONS``; tests of single kernels
run them as ``KERNELS``. conftest.py chooses the device before modules of tests are imported.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import pytest
import torch

DEVICE = "cpu"
KERNELS: Literal["triton", "cuda"] = "triton"
OPTIONS: dict[str, Any] = {"target": "triton-interpret"}

Placed = TypeVar("Placed", torch.Tensor, torch.nn.Module)


def choose(device: str) -> None:
    """Makes ``device`` the one of all tests."""
    global DEVICE, KERNELS, OPTIONS
    if device != "cpu":
        # The device of the tensors says what the target is.
        DEVICE, KERNELS, OPTIONS = device, "cuda", {}
        # Eager's convolutions are what results are compared with.
        torch.backends.cudnn.allow_tf32 = False


def on_device(x: Placed) -> Placed:
    """A tensor or a model there. Leaves that need gradients stay leaves."""
    if isinstance(x, torch.nn.Module):
        return x.to(DEVICE)
    return x.to(DEVICE) if x.device.type != torch.device(DEVICE).type else x


def only_interpreted(reason: str) -> pytest.MarkDecorator:
    """A test that has nothing to run on a GPU, or that knows what is different there."""
    return pytest.mark.skipif(DEVICE != "cpu", reason=reason)
