"""Compiled regions of Dynamo's that wait: a function cut by graph breaks becomes one program.

A region that may be recorded returns LazyTensors and runs when one of them is read, together with
the regions that it takes values from. Any other region is a barrier: what it takes is computed, and
it runs when it is called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lazyc.frontend.autograd import (
    Boxed,
    CompileGraph,
    ImportFailed,
    LeftToEager,
    Part,
    make_backend,
    run_in_eager,
)
from lazyc.frontend.fx_types import user_line
from lazyc.ir.graph import Graph
from lazyc.recording.barriers import Cause, barrier
from lazyc.recording.join import Fragment
from lazyc.recording.recorder import NotRecordable, Recorder
from lazyc.recording.tensor import LazyTensor, compute, example, record
from lazyc.report import events as E


def make_lazy_backend(
    compile_graph: CompileGraph,
    import_failed: ImportFailed,
    left_to_eager: LeftToEager,
    recorder: Recorder,
    events: E.EventStream,
) -> Callable[..., Callable[..., Any]]:
    """A Dynamo backend like ``make_backend``'s, whose regions wait in ``recorder`` where they can."""

    def backend(
        gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any
    ) -> Callable[..., Any]:
        region = _Region(compile_graph)
        placeholders = gm.graph.find_nodes(op="placeholder")
        examples = [example(x, n) for x, n in zip(example_inputs, placeholders, strict=True)]
        compiled = make_backend(region.compile, import_failed, left_to_eager=left_to_eager)(
            gm, examples, **options
        )
        fragment = region.fragment
        if fragment is None:
            events.emit(E.NotLazy(_line(gm), region.reason))
        why = f"a region that runs at once: {region.reason}"

        def call(*args: Any) -> Any:
            if fragment is not None:
                try:
                    return record(recorder, fragment, args)
                except NotRecordable as error:
                    return compiled(*_computed(args, f"a region that takes {error}"))
            return compiled(*_computed(args, why))

        return torch._dynamo.disable(call, reason="compiled by lazyc")

    return backend


class _Region:
    """Compiles the graphs of one region, and keeps the one that may wait."""

    def __init__(self, compile_graph: CompileGraph) -> None:
        self._compile = compile_graph
        self.fragment: Fragment | None = None
        self.reason = "it has no compiled code"

    def compile(self, graph: Graph, gm: torch.fx.GraphModule, part: Part) -> Boxed:
        if part.kind != "inference":
            self.reason = "it needs gradients"
        elif not part.is_plain:
            self.reason = "its results share memory with its arguments, or it writes to these"
        else:
            self.reason = barrier(graph)
        if self.reason:
            return self._compile(graph, gm, part)
        calls = [n for n in gm.graph.nodes if n.op == "call_function"]
        operators = sum(n.target is not operator.getitem for n in calls)
        self.fragment = Fragment.of(graph, run_in_eager(gm), operators, "a region")
        return _on_first_call(lambda: self._compile(graph, gm, part))


def _on_first_call(make: Callable[[], Boxed]) -> Boxed:
    made: list[Boxed] = []

    def call(args: list[Any]) -> Sequence[Any]:
        if not made:
            made.append(make())
        return made[0](args)

    return call


def _computed(args: Sequence[Any], what: str) -> list[Any]:
    return [compute(x, what, Cause.REGION_END) if isinstance(x, LazyTensor) else x for x in args]


def _line(gm: torch.fx.GraphModule) -> str:
    lines = (user_line(n.meta.get("stack_trace")) for n in gm.graph.nodes)
    return next((line for line in lines if line), "")
