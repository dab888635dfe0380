"""Measuring in one process: interleaved times, memory, and error against a float64 reference."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

ROUNDS = 20
WARMUP = 3
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the least and the median of ``samples``."""

    samples: tuple[float, ...]

    @property
    def minimum(self) -> float:
        return min(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int = ROUNDS,
    inner: int = 1,
    warmup: int = WARMUP,
    budget: float = math.inf,
    at_least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times several calls in turn, so that a noisy moment of the machine meets all of them.

    Each round times every call once (``inner`` repetitions, divided out) and starts with another
    one. Results are dropped outside the timed span. Rounds go on until ``at_least`` seconds have
    passed, so that a busy second of a shared machine does not fill all rounds of short calls. After
    ``budget`` seconds no further round starts, except that three are always run. ``clock`` gives
    the seconds that are counted.
    """
    names = list(calls)
    for name in names:
        for _ in range(warmup):
            calls[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for turn in itertools.count():
        spent = time.perf_counter() - start
        if (turn >= rounds and spent > at_least) or (turn >= LEAST_ROUNDS and spent > budget):
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(_seconds(calls[name], inner, clock))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _seconds(call: Callable[[], Any], inner: int, clock: Callable[[], float]) -> float:
    result = None
    start = clock()
    for _ in range(inner):
        result = call()
    span = clock() - start
    del result
    return span / inner


def trim_memory() -> None:
    """Gives freed memory back to the system, so that resident memory shows what is in use."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def status_bytes(key: str) -> int | None:
    """A memory figure of this process from ``/proc/self/status``; None where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


@dataclass(frozen=True)
class MemoryMeter:
    """Resident memory added since the meter was made (before a backend's first call).

    What a backend keeps between calls (packed weights, arenas, its own code) counts as well as what
    one call needs, weights and inputs that existed before do not.
    """

    base: int | None = field(default_factory=lambda: (trim_memory(), status_bytes("VmRSS"))[1])

    def peak_of(self, call: Callable[[], Any]) -> int | None:
        """Bytes above the base at the highest point of one call; None where it cannot be told."""
        trim_memory()
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
                control.write("5")  # resets VmHWM, see proc(5)
        except OSError:
            return None
        call()
        peak = status_bytes("VmHWM")
        return None if peak is None or self.base is None else peak - self.base


def time_and_peak(step: Callable[[], Any], budget: float, on_gpu: bool) -> tuple[float, int | None]:
    """The least seconds of a call, of those within ``budget`` seconds, and the bytes that one adds at its peak: to a
    GPU's memory, or as ``MemoryMeter`` counts. To be called before the first one. ``step`` waits for the GPU."""
    meter = MemoryMeter()
    step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak: int | None = torch.cuda.max_memory_allocated() - before
    else:
        peak = meter.peak_of(step)
    return interleave({"": step}, ROUNDS, warmup=1, budget=budget)[""].minimum, peak


def relative_error(found: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Root mean square of the difference over that of the reference, worst of all tensors.

    ``reference`` holds float64 tensors. nan where only one of the two is nan; inf on a shape
    mismatch.
    """
    if len(found) != len(reference):
        return math.inf
    worst = 0.0
    for one, exact in zip(found, reference, strict=True):
        if one.shape != exact.shape:
            return math.inf
        difference = (one.detach().double() - exact.detach().double()).square().mean().sqrt()
        scale = exact.detach().double().square().mean().sqrt().clamp_min(1e-30)
        error = float(difference / scale)
        if not error <= worst:
            worst = error
    return worst
