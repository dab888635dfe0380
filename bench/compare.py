"""One workload under several backends in one process: ``python -m bench.compare NAME ...``.

Started by ``bench.quick`` as a pinned child of its own; prints one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import time
from dataclasses import dataclass

import torch

from bench import counters
from bench.backends import compiler
from bench.measure import MemoryMeter, interleave, relative_error
from bench.models import Step, Workload, workload
from bench.process import exit_if_threads_are_bad

# A machine that others share may be busy for some seconds.
LEAST_SECONDS = 15.0


@dataclass(frozen=True)
class Row:
    """What one backend did on one workload: seconds, bytes, and error relative to float64.

    ``failure`` is the first line of the exception when the backend could not run it (all figures
    are then 0). ``fallbacks`` counts the operators that lazyc left to eager (0 for other backends).
    """

    backend: str
    minimum: float = 0.0
    median: float = 0.0
    first_call: float = 0.0
    error: float = 0.0
    peak_bytes: int | None = None
    fallbacks: int = 0
    failure: str = ""


def compare(job: Workload, backends: list[str], rounds: int) -> list[Row]:
    """Binds, checks and times ``job`` under every backend, interleaved: ``rounds`` times, or more
    where they are done sooner than ``LEAST_SECONDS``."""
    reference = [t.clone() for t in job.bind(lambda model: model, torch.float64)()]
    gc.collect()
    rows: dict[str, Row] = {}
    steps: dict[str, Step] = {}
    for name in backends:
        meter = MemoryMeter()
        before = counters.read()
        try:
            step = job.bind(compiler(name), torch.float32)
            start = time.perf_counter()
            first = step()
            seconds = time.perf_counter() - start
            error = relative_error(first, reference)
            del first
            step()
            peak = meter.peak_of(step)
        except Exception as failure:  # noqa: BLE001 - a backend that fails is a result
            text = str(failure).strip().splitlines() or [""]
            rows[name] = Row(name, failure=f"{type(failure).__name__}: {text[0]}")
            continue
        steps[name] = step
        rows[name] = Row(
            name,
            first_call=seconds,
            error=error,
            peak_bytes=peak,
            fallbacks=counters.read().since(before).fallbacks,
        )
    for name, timing in interleave(steps, rounds, at_least=LEAST_SECONDS).items():
        rows[name] = dataclasses.replace(rows[name], minimum=timing.minimum, median=timing.median)
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("--backends", required=True, help="comma-separated")
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    exit_if_threads_are_bad()
    rows = compare(workload(args.workload), args.backends.split(","), args.rounds)
    print(json.dumps([dataclasses.asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
