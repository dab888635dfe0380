"""What graph breaks cost, and what recording across them gives back.

python examples/graph_breaks.py [size of the chain's matrices, 4096 if not given]

A memory-bound chain, one of functions that take longer to compute, and a transformer block, each cut into
four regions by three prints, run in eager, compiled without and with the option lazy, and compiled from a
version without the prints.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, MethodType

if os.environ.get("OMP_PROC_BIND") != "true" and __name__ == "__main__":
    # Else two threads sometimes share one core, and times say nothing. Before torch is imported.
    os.environ["OMP_PROC_BIND"] = "true"

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import lazyc

# Of each comparison. Times of one kernel of 10 ms differ by more than what a break takes.
LEAST_ROUNDS, SECONDS = 30, 15.0
SLOW_ROUNDS = 10  # of eager, and of what is compiled in pieces: their figures are many times larger
BREAKS = 3
Say = Callable[[str], None]


def silent(text: str) -> None:
    """In place of print: Dynamo traces through it, so there is no graph break."""


def arithmetic(x: torch.Tensor, y: torch.Tensor, say: Say) -> torch.Tensor:
    """Pointwise work that takes as long as its matrices take from and to memory."""
    a = x * y + x
    say("clip")
    b = a.clamp(-2, 2) - 0.5 * y
    say("square")
    c = b * b + x
    say("divide")
    return c / (1 + c.abs())


def functions(x: torch.Tensor, y: torch.Tensor, say: Say) -> torch.Tensor:
    """The same with functions: fused, they take longer than memory does."""
    a = F.gelu(x * y + x)
    say("gate")
    b = a * torch.sigmoid(y)
    say("subtract")
    c = b - 0.5 * torch.tanh(x)
    say("divide")
    return c / (1 + c.abs())


class Block(torch.nn.Module):
    """A transformer block; x: (batch, length, width)."""

    def __init__(self, width: int = 256, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.proj = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, say: Say) -> torch.Tensor:
        split = [t.unflatten(-1, (self.heads, -1)) for t in self.qkv(self.norms[0](x)).chunk(3, -1)]
        q, k, v = (t.transpose(1, 2) for t in split)
        say("attention")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        say("projection")
        x = x + self.proj(y.transpose(1, 2).flatten(-2))
        say("feed-forward")
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


@dataclass(frozen=True)
class Row:
    """Seconds of a call, the least and the median; kernels and flushes of one call."""

    name: str
    seconds: float
    median: float
    kernels: int
    flushes: int


class Way:
    """A way to run a function: how long it takes, and what it takes of lazyc."""

    def __init__(self, name: str, fn: Callable[..., torch.Tensor], args: tuple, say: Say) -> None:
        self.name, self.fn, self.args, self.say = name, fn, args, say
        self.seconds: list[float] = []

    def call(self) -> torch.Tensor:
        result = self.fn(*self.args, self.say)
        lazyc.mark_step()
        return result

    def start(self, expected: torch.Tensor) -> None:
        """Compiles, compares the result, and counts kernels and flushes of a call."""
        before = lazyc.metrics.snapshot()
        torch.testing.assert_close(self.call() + 0, expected)
        compiled = lazyc.metrics.snapshot()
        self.call()
        after = lazyc.metrics.snapshot()
        self.kernels = compiled["kernel_calls"] - before["kernel_calls"]
        self.flushes = sum(after["flushes"].values()) - sum(compiled["flushes"].values())

    def time(self) -> None:
        began = time.perf_counter()
        result = self.call()
        self.seconds.append(time.perf_counter() - began)
        del result


def own_code(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The same function, or module with the same weights, with code that is compiled for it alone: Dynamo keeps
    what it compiles by code, and looks through it at each call."""
    if isinstance(fn, torch.nn.Module):
        twin = copy.copy(fn)
        twin.forward = MethodType(own_code(type(fn).forward), twin)
        return twin
    return FunctionType(fn.__code__.replace(), fn.__globals__, fn.__name__)


def compare(fn: Callable[..., torch.Tensor], args: tuple) -> list[Row]:
    """The four ways to run ``fn``, by turns; the results must agree."""
    lazy = torch.compile(own_code(fn), backend="lazyc", options={"lazy": True})
    plain = torch.compile(own_code(fn), backend="lazyc")
    whole = torch.compile(own_code(fn), backend="lazyc")
    ways = [
        Way("eager", fn, args, print),
        Way("compiled", plain, args, print),
        Way("compiled, lazy", lazy, args, print),
        Way("compiled, no prints", whole, args, silent),
    ]
    order = random.Random(0)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        expected = fn(*args, print)
        for way in ways:
            way.start(expected)
        began, rounds = time.perf_counter(), 0
        while rounds < LEAST_ROUNDS or time.perf_counter() - began < SECONDS:
            rounds += 1
            taking_part = ways if rounds <= SLOW_ROUNDS else ways[2:]
            # In any order: what ran before decides which matrices lie in the caches.
            for way in order.sample(taking_part, len(taking_part)):
                way.time()
    return [
        Row(way.name, min(way.seconds), statistics.median(way.seconds), way.kernels, way.flushes)
        for way in ways
    ]


def show(title: str, rows: list[Row]) -> None:
    uncut = rows[-1]
    table = Table(title=title, caption="least / median")
    for column in ("", "ms", "x eager", "us per break", "kernels", "flushes"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        least, middle = row.seconds - uncut.seconds, row.median - uncut.median
        cost = f"{1e6 * least / BREAKS:.0f} / {1e6 * middle / BREAKS:.0f}"
        table.add_row(
            row.name, f"{1e3 * row.seconds:.2f} / {1e3 * row.median:.2f}",
            f"{rows[0].seconds / row.seconds:.2f}", "" if row is uncut else cost,
            str(row.kernels), str(row.flushes),
        )  # fmt: skip
    Console().print(table)


@torch.no_grad()
def main(size: int) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(size, size), torch.randn(size, size)
    show(f"lazyc: chain of arithmetic on {size} x {size}", compare(arithmetic, matrices))
    show(f"lazyc: chain of functions on {size} x {size}", compare(functions, matrices))
    show("lazyc: transformer block, (1, 64, 256)", compare(Block(), (torch.randn(1, 64, 256),)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4096)
