"""Runs passes over a Graph: times each, signs its decisions, and verifies what it returns when asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lazyc.ir.decisions import signed
from lazyc.ir.graph import Graph
from lazyc.ir.verify import verify_graph


@dataclass(frozen=True, slots=True)
class Pass:
    name: str
    run: Callable[[Graph], Graph]


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass did: the Graph after it, and the seconds that it took."""

    name: str
    graph: Graph
    seconds: float


class PassFailed(Exception):
    """A pass raised, or returned a Graph that does not verify; the cause is chained."""

    def __init__(self, name: str) -> None:
        super().__init__(f"pass {name} failed")
        self.name = name


def run_passes(graph: Graph, passes: Sequence[Pass], verify: bool) -> list[PassResult]:
    """Applies the passes in order; returns the result of each. Raises PassFailed."""
    results: list[PassResult] = []
    for item in passes:
        start, known = time.perf_counter(), len(graph.decisions)
        try:
            graph = item.run(graph)
            graph.decisions[known:] = signed(graph.decisions[known:], item.name)
            if verify:
                verify_graph(graph)
        except Exception as error:
            raise PassFailed(item.name) from error
        results.append(PassResult(item.name, graph, time.perf_counter() - start))
    return results
