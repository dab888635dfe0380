"""Microseconds that recording an operator costs: ``python -m bench record-overhead``.

Operators on 16x16 floats within ``lazyc.lazy()``, 100 of them before each ``lazyc.mark_step()``, whose time is
left out: what is timed is Python's way from the call to a tensor that waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from rich.table import Table

import lazyc

TARGET = 25.0  # microseconds
OPERATORS = 100
Loop = Callable[[], torch.Tensor]


def loops() -> Mapping[str, Loop]:
    """Functions of 100 operators each."""
    x, weight = torch.randn(16, 16), torch.randn(16, 16, requires_grad=True)

    def repeated(step: Callable[[torch.Tensor], torch.Tensor], length: int) -> Loop:
        def loop() -> torch.Tensor:
            y = x
            for _ in range(OPERATORS // length):
                y = step(y)
            return y

        return loop

    return {
        "pointwise, of results": repeated(lambda y: ((y + y) * y).relu() - y, 4),
        "pointwise, of a result and a tensor": repeated(lambda y: ((y + x) * x).relu() - x, 4),
        "with gradients": repeated(lambda y: ((y + weight) * weight).relu() - y, 4),
        "views and products": repeated(lambda y: (y.t() @ y).view(4, 64).view(16, 16), 4),
        "in place": repeated(lambda y: (y * y).add_(y).mul_(y).relu_(), 4),
    }


def measure(rounds: int) -> dict[str, float]:
    """Least microseconds an operator."""
    found: dict[str, float] = {}
    with lazyc.lazy():
        for name, loop in loops().items():
            samples = []
            for _ in range(rounds):
                start = time.perf_counter()
                kept = loop()
                samples.append(time.perf_counter() - start)
                lazyc.mark_step()
                del kept
            found[name] = min(samples) / OPERATORS * 1e6
    return found


def table(times: Mapping[str, float]) -> Table:
    found = Table(title="us to record an operator")
    found.add_column("operators")
    found.add_column("us", justify="right")
    found.add_column("")
    for name, value in times.items():
        found.add_row(name, f"{value:.1f}", "pass" if value <= TARGET else "miss")
    return found
