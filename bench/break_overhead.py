"""Microseconds that a graph break costs: ``python -m bench break-overhead``.

A function of 16x16 floats, cut by three prints and not cut, each under a backend that compiles nothing
(what Dynamo takes: guards of each piece, the functions that resume) and under lazyc with the option lazy
(what it takes in all). Once with warm caches, and once with a copy of 64 MiB before each call, which leaves
the caches as a kernel on large matrices does.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from rich.table import Table

import lazyc

BREAKS = 3
SIDE = 4096  # of the matrices whose copy empties the caches
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cost:
    """Seconds of a break, from the least and the median times of a call."""

    backend: str
    caches: str
    least: float
    median: float


def silent(text: str) -> None:
    """In place of print: Dynamo traces through it."""


def chain(x: torch.Tensor, say: Say) -> torch.Tensor:
    x = x * 2 + 1
    say("first")
    x = x.relu() - 3
    say("second")
    x = x * x
    say("third")
    return x.tanh() + 1


def _copy(fn: FunctionType) -> FunctionType:
    """The same with code of its own, so that Dynamo does not look through what was compiled for others."""
    return FunctionType(fn.__code__.replace(), fn.__globals__, fn.__name__)


def _nothing(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """A backend whose pieces cost nothing: each gives the results of its first call."""
    results: list[Any] = []

    def run(*args: Any) -> Any:
        if not results:
            results.append(gm.forward(*args))
        return results[0]

    return torch._dynamo.disable(run)


@torch.no_grad()
def measure(rounds: int) -> list[Cost]:
    """Both backends, with warm and with emptied caches, in random turns."""
    args = (torch.randn(16, 16),)
    source, target = torch.randn(SIDE, SIDE), torch.empty(SIDE, SIDE)
    ways: dict[tuple[str, bool], Callable[[], Any]] = {}
    for is_cut, say in ((True, print), (False, silent)):
        dynamo = torch.compile(_copy(chain), backend=_nothing)
        lazy = torch.compile(_copy(chain), backend="lazyc", options={"lazy": True})
        ways["dynamo", is_cut] = _caller(dynamo, args, say)
        ways["lazyc", is_cut] = _caller(lazy, args, say)
    order, found = random.Random(0), []
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        for way in ways.values():
            for _ in range(3):
                way()
        for caches in ("warm", "emptied"):
            samples: dict[tuple[str, bool], list[float]] = {key: [] for key in ways}
            for _ in range(rounds):
                for key in order.sample(list(ways), len(ways)):
                    if caches == "emptied":
                        target.copy_(source)
                    start = time.perf_counter()
                    ways[key]()
                    samples[key].append(time.perf_counter() - start)
            for name in ("dynamo", "lazyc"):
                cut, whole = samples[name, True], samples[name, False]
                least = (min(cut) - min(whole)) / BREAKS
                median = (statistics.median(cut) - statistics.median(whole)) / BREAKS
                found.append(Cost(name, caches, least, median))
    return found


def _caller(fn: Callable[..., Any], args: tuple[Any, ...], say: Say) -> Callable[[], Any]:
    def call() -> Any:
        result = fn(*args, say)
        lazyc.mark_step()
        return result

    return call


def table(costs: Sequence[Cost]) -> Table:
    found = Table(title="us a graph break, least / median")
    for column in ("backend", "caches", "us"):
        found.add_column(column, justify="right" if column == "us" else "left")
    for cost in costs:
        found.add_row(
            cost.backend, cost.caches, f"{1e6 * cost.least:.0f} / {1e6 * cost.median:.0f}"
        )
    return found
