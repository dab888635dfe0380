"""Seconds that a call with a new shape takes, for each value of the option on_new_shape: ``python -m bench new-shape``.

A transformer of four layers, compiled for one length (with code for each, as Dynamo makes it where sizes are not
marked), is called with lengths it has not seen, from an empty cache. What Dynamo takes to trace a call is in all of
them but "error", for which the call is over once it has seen the shape.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

POLICIES = ("compile", "eager", "background", "error")
WIDTH, HEADS, LAYERS, LENGTH = 128, 4, 4, 32
NEW = 4  # lengths; Dynamo compiles up to eight versions of a function


@dataclass(frozen=True)
class Served:
    """Seconds of the calls with new lengths, and of one of them later."""

    policy: str
    first: list[float]
    later: float


def _model() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True)
    # Not eval(): for that torch has an operator of its own, which nobody compiles.
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).train()


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def measure(policy: str) -> Served:
    torch._dynamo.reset()
    model = _model()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"on_new_shape": policy, "cache_dir": folder}
        compiled = torch.compile(model, backend="lazyc", dynamic=False, options=options)
        compiled(torch.randn(1, LENGTH, WIDTH))
        first, x = [], torch.empty(0)

        refused = suppress(BackendCompilerFailed) if policy == "error" else nullcontext()

        def call() -> None:
            with refused:
                compiled(x)

        for k in range(1, NEW + 1):
            x = torch.randn(1, LENGTH + k, WIDTH)
            first.append(_seconds(call))
        if policy == "background":
            time.sleep(2 + sum(first))  # until the worker has compiled the last one
            call()
        later = min(_seconds(call) for _ in range(20))
    return Served(policy, first, later)


def table(found: list[Served]) -> Table:
    result = Table("on_new_shape", "a new length, s (least / median)", "later, ms")
    for served in found:
        first = f"{min(served.first):.2f} / {statistics.median(served.first):.2f}"
        result.add_row(served.policy, first, f"{1e3 * served.later:.2f}")
    return result
