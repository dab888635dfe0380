"""A pruned MLP for one row at a time: its 2:4 weights are read in compressed form.

python examples/sparse.py
"""

from __future__ import annotations

import torch

import lazyc


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)
    ).eval()
    pruned = lazyc.sparse.prune_24(model)
    compiled = torch.compile(model, backend="lazyc")
    x = torch.randn(1, 256)
    with torch.no_grad():
        difference = (compiled(x) - model(x)).abs().max()
    print(
        f"lazyc: layers {', '.join(pruned)} are 2:4; largest difference to eager {difference:.1e}"
    )
    print(lazyc.metrics.report())


if __name__ == "__main__":
    main()
