"""Convolution nets through torch.compile: numerics, layouts at the border, and weights that change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lazyc


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018) with a dense convolution in front."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(
                inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False
            )
            norm = nn.BatchNorm2d(outputs)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            return nn.Sequential(layer, norm)

        self.first = unit(3, channels, 3)
        self.dense = unit(channels, channels, 3)
        self.expand = unit(channels, 48, 1)
        self.depthwise = unit(48, 48, 3, groups=48)
        self.project = unit(48, channels, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.first(x)))
        x = nn.functional.gelu(self.dense(x))
        y = nn.functional.relu6(self.expand(x))
        y = nn.functional.hardswish(self.depthwise(y))
        return x + self.project(y)


def test_weights_that_are_channels_last() -> None:
    """The copy that oneDNN's reordering takes is made before it, with it once, and again for other weights."""
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3))
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, 16, 28, 28).to(memory_format=torch.channels_last)
    fast = compiled(model)
    for factor in (1.0, -0.5):
        model[0].weight.mul_(factor)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    calls = lazyc.metrics.snapshot()["weights_packed"]
    fast(x)
    assert lazyc.metrics.snapshot()["weights_packed"] == calls


def block() -> Block:
    return Block().eval().requires_grad_(False)


def compiled(model: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The model compiled; fails where anything falls back to eager."""
    before = lazyc.metrics.snapshot()
    fast = torch.compile(model, backend="lazyc", fullgraph=True, **options)

    def call(*args: Any) -> Any:
        result = fast(*args)
        now = lazyc.metrics.snapshot()
        assert (now["fallbacks"], now["compiler_bugs"]) == (
            before["fallbacks"],
            before["compiler_bugs"],
        )
        return result

    return call


def judge(model: nn.Module, got: torch.Tensor, x: torch.Tensor) -> None:
    """The error against float64 is at most twice eager's."""
    eager = model(x)
    model.double()
    exact = model(x.double())
    model.float()
    assert got.stride() == eager.stride() and got.dtype == eager.dtype
    slack = 1e-6 * exact.abs().max()
    assert (got - exact).abs().max() <= 2 * (eager - exact).abs().max() + slack


@pytest.mark.parametrize("batch", [1, 3])
def test_block(batch: int) -> None:
    model, x = block(), torch.randn(batch, 3, 32, 30)
    judge(model, compiled(model)(x), x)


def test_layout_of_a_channels_last_model_is_kept() -> None:
    model = block().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    got = compiled(model)(x)
    assert got.is_contiguous(memory_format=torch.channels_last)
    judge(model, got, x)


def test_a_changed_weight_is_packed_again() -> None:
    model, x = block(), torch.randn(1, 3, 32, 32)
    fast = compiled(model)
    fast(x)
    for layer in (model.dense[0], model.expand[0], model.depthwise[1]):
        layer.weight.mul_(2)  # type: ignore[operator]
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    model.project[1].running_var.add_(1)  # type: ignore[operator]
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_batches_that_vary() -> None:
    model = block()
    fast = compiled(model)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 3, 32, 32)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_images_that_vary() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3)
    )
    model.eval().requires_grad_(False)
    fast = compiled(model, dynamic=True)
    for size in (20, 24, 33):
        x = torch.randn(1, 3, size, size + 2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_without_packing() -> None:
    model, x = block(), torch.randn(1, 3, 32, 32)
    judge(model, compiled(model, options={"pack_weights": False})(x), x)


def test_inference_mode() -> None:
    model, x = block(), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_training_leaves_convolutions_as_they_are() -> None:
    model, x = Block().train(), torch.randn(2, 3, 32, 32)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    results = []
    for run in (model, torch.compile(model, backend="lazyc", fullgraph=True)):
        model.load_state_dict(state)
        model.zero_grad()
        run(x).square().mean().backward()
        results.append([p.grad.clone() for p in model.parameters()])  # type: ignore[union-attr]
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype) -> None:
    model, x = block().to(dtype), torch.randn(1, 3, 32, 32).to(dtype)
    got, eager = compiled(model)(x), model(x)
    model.double()
    exact = model(x.double())
    assert (got - exact).abs().max() <= 3 * (eager - exact).abs().max()
