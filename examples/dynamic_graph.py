"""A recorded loop whose graph grows, beside one whose graph stays the same.

python examples/dynamic_graph.py [number of steps, 30 if not given] [file for a plot, such as steps.png]

Both loops train a small network under ``lazyc.lazy()`` and keep the losses. The first joins them with
``torch.cat``: each step has a tensor of another size, so each step is another program and is compiled anew.
The second keeps them in a list. The report names the line, the dim that grows, and what to do about it.
Without a file the times are drawn in the terminal; a file needs matplotlib.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

import lazyc

Step = Callable[[], None]


def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def loss_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """One training step on a fixed batch."""
    x = torch.linspace(-1, 1, 64 * 16).view(64, 16)
    loss = (model(x) - x.sum(1, keepdim=True).sin()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def growing() -> Step:
    """Losses in one tensor, which is longer in each step."""
    model, optimizer = network()
    losses = torch.zeros(1)

    def step() -> None:
        nonlocal losses
        losses = torch.cat([losses, loss_of(model, optimizer)[None]])
        lazyc.mark_step()

    return step


def steady() -> Step:
    """Losses in a list."""
    model, optimizer = network()
    losses: list[torch.Tensor] = []

    def step() -> None:
        losses.append(loss_of(model, optimizer))
        lazyc.mark_step()

    return step


def times(step: Step, steps: int) -> list[float]:
    """Milliseconds of each step."""
    found = []
    with lazyc.lazy():
        for _ in range(steps):
            start = time.perf_counter()
            step()
            found.append(1e3 * (time.perf_counter() - start))
    return found


def draw(console: Console, title: str, milliseconds: list[float]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("step", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("", width=60)
    longest = max(milliseconds[1:], default=1.0)  # the first step is always compiled
    for number, value in enumerate(milliseconds, 1):
        bar = Bar(longest, 0, min(value, longest), width=60)
        table.add_row(str(number), f"{value:.1f}", bar)
    console.print(table)


def plot(file: str, series: dict[str, list[float]]) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        sys.exit(f"no matplotlib, so {file} is not written; `pip install matplotlib`")
    _, axes = pyplot.subplots()
    for name, values in series.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    axes.set(xlabel="step", ylabel="ms", yscale="log", title="lazyc.lazy()")
    axes.legend()
    pyplot.savefig(file)
    print(f"wrote {file}")


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    console = Console(width=100)
    series: dict[str, list[float]] = {}
    for name, make in (("torch.cat", growing), ("a list", steady)):
        lazyc.metrics.reset()
        series[name] = times(make(), steps)
        found = lazyc.metrics.snapshot()
        again = sum(row["count"] for row in found["recompiles"])
        draw(console, f"lazyc.lazy(), losses in {name}: compiled again {again} times", series[name])
        rows = found["recompiles"][:3]
        texts = [f"  {row['line']} {row['changed']}" for row in rows]
        texts += sorted({f"  to avoid it: {row['fix']}" for row in rows})
        console.print(*texts, sep="\n", highlight=False, markup=False)
    if len(sys.argv) > 2:
        plot(sys.argv[2], series)
    print("LAZYC_DEBUG=1 prints each of these when it happens, and how to avoid it.")


if __name__ == "__main__":
    main()
