"""What lazyc's own counters say, as differences between two moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lazyc


@dataclass(frozen=True)
class Counters:
    """lazyc's counters at a moment: operators left to eager, kernels, and seconds by stage."""

    graphs: int
    kernels_made: int
    kernels_reused: int
    fallbacks: int
    bugs: int
    seconds: dict[str, float]

    def since(self, before: Counters) -> Counters:
        """What was added between ``before`` and this moment."""
        return Counters(
            self.graphs - before.graphs,
            self.kernels_made - before.kernels_made,
            self.kernels_reused - before.kernels_reused,
            self.fallbacks - before.fallbacks,
            self.bugs - before.bugs,
            {k: v - before.seconds.get(k, 0.0) for k, v in self.seconds.items()},
        )


def read() -> Counters:
    """The counters now; all of this process's compilations with lazyc, on any thread."""
    found: dict[str, Any] = lazyc.metrics.snapshot()
    return Counters(
        found["graphs_compiled"],
        found["kernels_made"],
        found["kernels_reused"],
        sum(f["count"] for f in found["fallbacks"]),
        sum(found["compiler_bugs"].values()),
        dict(found["compile_seconds"]),
    )
