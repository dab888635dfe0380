"""Training in eager code under ``lazyc.lazy()``: ``python -m bench lazy-training``.

Two copies of a small GPT take the same batches, one in eager and one recorded, a step of each in turn.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table

import lazyc
from bench import models
from bench.measure import Timing, status_bytes

BATCH, LENGTH, VOCABULARY = 4, 256, 8192
TOLERANCE = 1e-4
MEMORY_STEPS = 20  # of the recorded copy alone: what malloc keeps of eager steps goes up and down
MOST_GROWTH = 1.0  # MiB
SETTLED = 5  # steps after which nothing is compiled any more


@dataclass
class Run:
    """What one copy did. ``memory``: resident bytes of the process after steps of this copy alone."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    compiled: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    @property
    def timing(self) -> Timing:
        return Timing(tuple(self.seconds[SETTLED:]))


def batches(steps: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        yield torch.randint(VOCABULARY, (BATCH, LENGTH), generator=generator)


def trainer(model: torch.nn.Module, lazily: bool) -> Callable[[torch.Tensor], float]:
    """A function that takes one step and returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

    def step(tokens: torch.Tensor) -> float:
        with lazyc.lazy() if lazily else nullcontext():
            optimizer.zero_grad(set_to_none=True)
            loss: Any = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            if lazily:
                lazyc.mark_step()
            return float(loss.detach())

    return step


def measure(steps: int, tell: Callable[[str], None]) -> tuple[Run, Run]:
    """The two runs, eager first."""
    model = models.small_gpt()
    runs = Run(), Run()
    trainers = [trainer(copy.deepcopy(model), lazily) for lazily in (False, True)]
    lazyc.metrics.reset()
    for number, tokens in enumerate(batches(steps)):
        for run, step in list(zip(runs, trainers, strict=True))[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            run.losses.append(step(tokens))
            run.seconds.append(time.perf_counter() - start)
            run.compiled.append(lazyc.metrics.snapshot()["graphs_compiled"])
        eager, lazy = runs
        tell(
            f"step {number + 1}: loss {eager.losses[-1]:.5f} / {lazy.losses[-1]:.5f}, "
            f"{1e3 * eager.seconds[-1]:.0f} / {1e3 * lazy.seconds[-1]:.0f} ms"
        )
    for tokens in batches(MEMORY_STEPS):
        trainers[1](tokens)
        runs[1].memory.append(status_bytes("VmRSS") or 0)
    return runs


def difference(eager: Run, lazy: Run) -> float:
    """The largest difference of a loss, relative to eager's."""
    pairs = zip(eager.losses, lazy.losses, strict=True)
    return max(abs(a - b) / abs(a) for a, b in pairs)


def growth(lazy: Run) -> float:
    """MiB that the process has gained in steps that only the recorded copy took."""
    return (lazy.memory[-1] - lazy.memory[0]) / 2**20


def passed(eager: Run, lazy: Run) -> bool:
    """Equal losses, nothing compiled after the first step, no slower than eager, no memory gained."""
    return (
        difference(eager, lazy) < TOLERANCE
        and lazy.compiled[-1] == lazy.compiled[0]
        and lazy.timing.minimum <= eager.timing.minimum
        and growth(lazy) < MOST_GROWTH
    )


def table(eager: Run, lazy: Run) -> Table:
    found = Table(title=f"6-layer GPT, 4x256 tokens, AdamW, {len(eager.losses)} steps")
    for name in ("", "eager", "lazyc.lazy()"):
        found.add_column(name, justify="left" if not name else "right")
    runs = (eager, lazy)
    found.add_row("ms a step, least", *(f"{1e3 * r.timing.minimum:.1f}" for r in runs))
    found.add_row("ms a step, median", *(f"{1e3 * r.timing.median:.1f}" for r in runs))
    found.add_row("first step, s", *(f"{r.seconds[0]:.2f}" for r in runs))
    found.add_row("all steps, s", *(f"{sum(r.seconds):.1f}" for r in runs))
    found.add_row("last loss", *(f"{r.losses[-1]:.6f}" for r in runs))
    found.add_row("largest difference of a loss", "", f"{difference(*runs):.1e}")
    found.add_row("programs compiled in the first step", "", str(lazy.compiled[0]))
    found.add_row("programs compiled later", "", str(lazy.compiled[-1] - lazy.compiled[0]))
    found.add_row(f"MiB gained in {MEMORY_STEPS} more steps", "", f"{growth(lazy):.1f}")
    return found
