"""Products with sparse weights beside the same products with dense ones: ``python -m bench sparse``.

Both are lazyc's: two copies of a model with equal weights, of which only one is declared sparse.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from rich.table import Table

import lazyc
from bench.measure import Timing, interleave, relative_error
from lazyc.backend import EVENTS
from lazyc.backend import lazyc as lazyc_backend
from lazyc.passes import sparse_products
from lazyc.report import events as E

BUDGET = 8.0  # seconds of a case
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Case:
    """A model ``make()`` on [rows, width] inputs, made sparse by ``sparsify``. ``target``: times faster
    than dense, by the least times; 0 for none."""

    name: str
    make: Callable[[], torch.nn.Module]
    rows: int
    sparsify: Callable[[torch.nn.Module], object]
    target: float = 0.0
    dtype: torch.dtype = torch.float32
    width: int = 4096


@dataclass(frozen=True)
class Line:
    """What was measured of a case. ``used``: products that read a compressed weight; ``error``: of the
    result against f64, relative."""

    case: Case
    dense: Timing
    sparse: Timing
    used: int
    error: float

    @property
    def speedup(self) -> float:
        return self.dense.minimum / self.sparse.minimum

    @property
    def passed(self) -> bool:
        return self.speedup >= self.case.target and self.error <= TOLERANCE[self.case.dtype]


def _linear() -> torch.nn.Module:
    return torch.nn.Linear(4096, 4096, bias=False)


def _mlp() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(2048, 8192), torch.nn.GELU(), torch.nn.Linear(8192, 2048)
    )


def _blocks(size: int) -> Callable[[torch.nn.Module], object]:
    return partial(lazyc.sparse.to_block_sparse, block=(size, size), sparsity=0.9)


_24 = lazyc.sparse.prune_24
CASES = (
    Case("2:4, f32, 1 row", _linear, 1, _24, 1.7),
    Case("2:4, f32, 4 rows", _linear, 4, _24),
    Case("2:4, f32, 8 rows", _linear, 8, _24),
    Case("2:4, f32, 16 rows", _linear, 16, _24),
    Case("2:4, bf16, 1 row", _linear, 1, _24, dtype=torch.bfloat16),
    Case("2:4, bf16, 4 rows", _linear, 4, _24, dtype=torch.bfloat16),
    Case("2:4, MLP 2048-8192-2048, f32, 1 row", _mlp, 1, _24, 1.5, width=2048),
    Case("90 % of blocks 16x16, f32, 128 rows", _linear, 128, _blocks(16), 3.0),
    Case("90 % of blocks 32x32, f32, 128 rows", _linear, 128, _blocks(32), 3.0),
)


def measure(case: Case, rounds: int, cpu_time: bool = False) -> Line:
    """The times of both copies, a call of each in turn; ``cpu_time``: of this thread alone."""
    torch.manual_seed(0)
    clock = time.thread_time if cpu_time else time.perf_counter
    torch._dynamo.reset()
    sparse = case.make().to(case.dtype).eval()
    case.sparsify(sparse)
    dense = copy.deepcopy(sparse)  # copies are not marked
    x = torch.randn(case.rows, case.width).to(case.dtype)
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    with torch.no_grad():
        calls = {
            # A backend of its own each: Dynamo would call what it compiled for the one with both.
            name: partial(torch.compile(model, backend=partial(lazyc_backend), dynamic=False), x)
            for name, model in (("dense", dense), ("sparse", sparse))
        }
        result = calls["sparse"]()
        times = interleave(calls, rounds, budget=BUDGET, clock=clock)
        exact = dense.double()(x.double())
    stop()
    used = sum(isinstance(e, E.SparseProduct) and e.is_used for e in heard)
    error = relative_error([result], [exact])
    return Line(case, times["dense"], times["sparse"], used, error)


GRID_ROWS = (1, 2, 4, 6, 8, 12, 16, 24)
GRID_WEIGHTS = ((256, 256), (512, 512), (1024, 1024), (256, 4096), (2048, 2048), (4096, 4096))


def grid(rounds: int) -> Iterator[tuple[torch.dtype, int, int, list[Line]]]:
    """2:4 products of [rows, k] and [n, k] weights, compressed whatever lazyc would choose: dtype, n, k, and a line
    for each of ``GRID_ROWS``. Several layers, so that small weights do not come from the first cache alone."""
    free = {d: [(math.inf, max(GRID_ROWS))] for d in sparse_products.MOST_ROWS}
    with (
        TemporaryDirectory() as folder,  # not what was compiled for what lazyc chooses, nor kept for it
        patch.dict(os.environ, LAZYC_CACHE_DIR=folder),
        patch.object(sparse_products, "MOST_ROWS", free),
    ):
        for dtype in free:
            for n, k in GRID_WEIGHTS:
                make = partial(_layers, n, k, 4 if n * k <= 1 << 20 else 1)
                cases = [Case("", make, m, _24, dtype=dtype.torch, width=k) for m in GRID_ROWS]
                yield dtype.torch, n, k, [measure(case, rounds) for case in cases]


def _layers(n: int, k: int, pairs: int) -> torch.nn.Module:
    made: list[torch.nn.Module] = []
    for _ in range(pairs):
        made += torch.nn.Linear(k, n, bias=False), torch.nn.Linear(n, k, bias=False)
    return torch.nn.Sequential(*made)


def grid_table(found: Iterable[tuple[torch.dtype, int, int, list[Line]]]) -> Table:
    """Times faster than dense, by the least and the median times."""
    made = Table()
    made.add_column("weights", no_wrap=True)
    for m in GRID_ROWS:
        made.add_column(f"{m} rows")
    for dtype, n, k, lines in found:
        times = (f"{x.speedup:.2f} / {x.dense.median / x.sparse.median:.2f}" for x in lines)
        made.add_row(f"{dtype} [{n}, {k}]".removeprefix("torch."), *times)
    return made


def table(lines: list[Line]) -> Table:
    """Milliseconds, least and median, and what they are to each other."""
    found = Table("", "dense, ms", "sparse, ms", "times", "target", "products", "error")
    for x in lines:
        times = (f"{1e3 * t.minimum:.2f} / {1e3 * t.median:.2f}" for t in (x.dense, x.sparse))
        ratio = f"{x.speedup:.2f} / {x.dense.median / x.sparse.median:.2f}"
        target = f"{x.case.target:.1f}" if x.case.target else ""
        found.add_row(x.case.name, *times, ratio, target, str(x.used), f"{x.error:.0e}")
    return found
