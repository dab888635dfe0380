"""Trains a small network in eager and under lazyc from the same start; the losses agree.

python examples/training.py
"""

from __future__ import annotations

import copy

import torch
from torch import nn


def train(model: nn.Module, steps: int) -> list[float]:
    """The losses of some steps of regression on the sine of a sum."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        x = torch.randn(64, 8, generator=generator)
        loss = nn.functional.mse_loss(model(x), torch.sin(x.sum(1, keepdim=True)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, 1))
    compiled = torch.compile(copy.deepcopy(model), backend="lazyc")
    pairs = zip(train(model, 20), train(compiled, 20), strict=True)
    for step, (eager, lazy) in enumerate(pairs):
        print(f"step {step:2}  eager {eager:.6f}  lazyc {lazy:.6f}")
        assert abs(eager - lazy) < 1e-3


if __name__ == "__main__":
    main()
