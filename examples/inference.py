"""Compiles a small network for inference and shows what lazyc made of it.

python examples/inference.py
"""

from __future__ import annotations

import torch
from torch import nn

import lazyc


class Block(nn.Module):
    """A feed-forward block with a residual connection; x: (batch, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(256) for _ in range(4)), nn.Softmax(dim=-1)).eval()
    compiled = torch.compile(model, backend="lazyc")
    x = torch.randn(32, 256)
    with torch.no_grad():
        difference = (compiled(x) - model(x)).abs().max()
    print(f"largest difference from eager: {difference:.1e}")
    # The four blocks are equal, so their kernels are compiled once.
    print(lazyc.metrics.report())


if __name__ == "__main__":
    main()
