"""Seconds until the first result of GPT-2: ``python -m bench first-call``.

Each figure comes from a fresh process. The clock starts when torch, transformers and the model
(random weights) are there, and stops when the first result is: it counts the import of the backend,
Dynamo, AOTAutograd, the backend itself, loading of its code, and the call. "Cold" starts with empty
caches, "warm" is a second process with the caches that the cold one wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import process


@dataclass(frozen=True)
class FirstCall:
    """Least seconds of ``attempts`` processes, with an empty and with a filled cache."""

    backend: str
    cold: float
    warm: float
    attempts: int


def measure_all(
    backends: Sequence[str], attempts: int, budget: float = math.inf
) -> list[FirstCall]:
    """Cold and warm first calls of each backend but eager, ``attempts`` times in pairs of new processes.

    The backends take turns. One that has taken ``budget`` seconds gets no further turn.
    """
    names = [name for name in backends if name != "eager"]
    cold: dict[str, list[float]] = {name: [] for name in names}
    warm: dict[str, list[float]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    for _ in range(attempts):
        for name in names:
            if spent[name] > budget:
                continue
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(prefix="first-call-") as folder:
                # Strict: eager in place of a failed compilation is no first call.
                caches = process.cache_environment(folder) | {"LAZYC_STRICT": "1"}
                for samples in (cold, warm):
                    found = process.run_child("bench.first_call", [name], caches)
                    samples[name].append(found["seconds"])
            spent[name] += time.perf_counter() - start
    return [FirstCall(n, min(cold[n]), min(warm[n]), len(cold[n])) for n in names]


def main() -> None:
    """The child: one first call in this process, printed as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend")
    args = parser.parse_args()
    import torch

    from bench.backends import compiler
    from bench.models import gpt2, workload

    process.exit_if_threads_are_bad()
    gpt2()
    job = workload("gpt2")
    start = time.perf_counter()
    job.bind(compiler(args.backend), torch.float32)()
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
