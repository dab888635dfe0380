"""Processes for measuring: pinned threads set before torch is imported, and fresh children.

Without ``OMP_PROC_BIND=true`` two OpenMP threads sometimes share one core for the whole life of a
process, and each parallel region then costs a scheduler slice of several milliseconds. A process
that shows this cannot be mended; it is thrown away and another one is started.

Import this module before torch: it notes the cores that are there to use, and the environment is
still free to change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

# With OMP_PROC_BIND, importing torch binds this thread to one core, and children inherit that.
_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else frozenset[int]()
# Exit code of a child whose parallel regions are slow (EX_TEMPFAIL of sysexits.h).
BAD_THREADS = 75
ATTEMPTS = 6
# A parallel region takes some 10 microseconds; one that waits for a scheduler slice takes 4000.
REGION_LIMIT_SECONDS = 1e-3


def pinned_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of the environment with OpenMP threads bound to cores and no network for models.

    Python keeps the bytecode of modules, as it does unless told not to: torch's was compiled when it
    was installed, and the first call of a source tree's lazyc would count compiling its modules.
    """
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_PROC_BIND": "true", "HF_HUB_OFFLINE": "1", **(extra or {})}


def cache_environment(folder: str) -> dict[str, str]:
    """Variables that put the disk caches of lazyc and Inductor under ``folder``."""
    return {
        "LAZYC_CACHE_DIR": os.path.join(folder, "lazyc"),
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor"),
    }


def ensure_pinned() -> None:
    """Starts this program again with pinned threads unless they are already pinned."""
    if os.environ.get("OMP_PROC_BIND") != "true":
        os.execve(sys.executable, sys.orig_argv, pinned_environment())


def parallel_region_seconds(trials: int = 101) -> float:
    """Median time of a small parallel add in torch's OpenMP pool."""
    import torch

    a = torch.ones(1 << 17)
    out = torch.empty_like(a)
    samples = []
    for _ in range(trials):
        start = time.perf_counter()
        torch.add(a, a, out=out)
        samples.append(time.perf_counter() - start)
    return sorted(samples)[trials // 2]


def exit_if_threads_are_bad() -> None:
    """Ends the process with BAD_THREADS when its parallel regions show two threads on one core."""
    if parallel_region_seconds() > REGION_LIMIT_SECONDS:
        print("threads share a core: this process is thrown away", file=sys.stderr)
        sys.exit(BAD_THREADS)


def run_child(
    module: str,
    args: Sequence[str],
    extra_environment: Mapping[str, str] | None = None,
    timeout: float = 900.0,
) -> Any:
    """Runs ``python -m module args`` pinned and returns the JSON of its last line of output.

    A child that ends with BAD_THREADS is started again, at most ATTEMPTS times in all. Raises
    RuntimeError with the end of its error output when it fails otherwise.
    """
    command = [sys.executable, "-m", module, *args]
    if _CPUS:
        os.sched_setaffinity(0, _CPUS)
    for _ in range(ATTEMPTS):
        done = subprocess.run(
            command,
            env=pinned_environment(extra_environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode == 0:
            return json.loads(done.stdout.strip().splitlines()[-1])
        if done.returncode != BAD_THREADS:
            tail = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    raise RuntimeError(f"{' '.join(command)}: {ATTEMPTS} processes in a row had bad threads")
