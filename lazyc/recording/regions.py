"""Compiled regions of Dynamo's that wait: a function cut by graph breaks becomes one program.

A region that may be recorded returns LazyTensors and runs when one of them is read, together with
the regions that it takes values from. Any other region is a barrier: what it takes is computed, and
it runs when it is called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lazyc.config import AttentionKernel
from lazyc.frontend.autograd import (
    AotBackend,
    Boxed,
    CompileGraph,
    ImportFailed,
    LeftToEager,
    Part,
    run_in_eager,
)
from lazyc.frontend.fx_types import user_frame
from lazyc.frontend.recompute import Recompute
from lazyc.ir.graph import Graph
from lazyc.ir.specialize import specialize
from lazyc.ir.types import TensorType
from lazyc.recording.barriers import Place, as_line, barrier, user_place
from lazyc.recording.guards import drop_hook_guards, drop_inner_guards
from lazyc.recording.join import Fragment
from lazyc.recording.recorder import NotRecordable, Recorder
from lazyc.recording.tensor import LazyTensor, compute, example, record
from lazyc.recording.untraced import as_class
from lazyc.report import events as E

# A region whose sizes change waits for this many combinations of them: each is a program of its own. With
# others it runs at once, by the code for any size.
_MOST_SIZES = 8


def make_lazy_backend(
    compile_graph: CompileGraph,
    import_failed: ImportFailed,
    left_to_eager: LeftToEager,
    recorder: Recorder,
    events: E.EventStream,
    has_products: bool = False,
    recompute: Recompute | None = None,
    attention: AttentionKernel = "auto",
    runs_at_once: str = "",
) -> Callable[..., Callable[..., Any]]:
    """A Dynamo backend like ``AotBackend``'s, whose regions wait in ``recorder`` where they can; ``runs_at_once``:
    why none may."""

    def backend(
        gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **options: Any
    ) -> Callable[..., Any]:
        through_autograd = partial(
            AotBackend,
            import_failed=import_failed,
            left_to_eager=left_to_eager,
            has_products=has_products,
            recompute=recompute,
            attention=attention,
        )
        if any(isinstance(x, LazyTensor) and x.requires_grad for x in example_inputs):
            # Autograd sees these, and not what they stand for.
            events.emit(E.NotLazy(_line(gm), "it needs gradients"))
            return through_autograd(compile_graph)(gm, example_inputs, **options)
        region = _Region(compile_graph, _line(gm), runs_at_once)
        placeholders = gm.graph.find_nodes(op="placeholder")
        drop_inner_guards(placeholders, example_inputs)
        examples = [example(x, n) for x, n in zip(example_inputs, placeholders, strict=True)]
        compiled = through_autograd(region.compile)(gm, examples, **options)
        if region.reason:
            events.emit(E.NotLazy(_line(gm), region.reason))
        if region.waiting is not None:
            drop_hook_guards()
        why = f"a region that runs at once: {region.reason}"

        def too_many() -> None:
            reason = f"it has sizes that change, and waits for {_MOST_SIZES} of them only"
            events.emit(E.NotLazy(_line(gm), reason))

        def call(_: type, *args: Any) -> Any:
            waiting = region.waiting
            if waiting is None:
                return compiled(*_computed(args, why))
            try:
                fragment = waiting.only or waiting.fragment(args, too_many)
            except Exception as error:  # noqa: BLE001 - reported; the region runs at once from now on
                region.waiting = None
                import_failed(error, gm, "inference")
                fragment = None
            if fragment is None:
                return compiled(*_computed(args, "a region that runs at once: its sizes change"))
            taken = waiting.taken(args) if waiting.sizes else args
            try:
                return record(recorder, fragment, taken, waiting.place or user_place())
            except NotRecordable as error:
                return compiled(*_computed(args, f"a region that takes {error}"))

        return as_class(call)

    return backend


class _Region:
    """Compiles the graphs of one region, and keeps the one that may wait."""

    def __init__(self, compile_graph: CompileGraph, line: str, runs_at_once: str) -> None:
        self._compile = compile_graph
        self._runs_at_once = runs_at_once
        self._name = f"the region at {line}" if line else "a region"
        self.waiting: _Waiting | None = None
        self.reason = "it has no compiled code"

    def compile(self, graph: Graph, gm: torch.fx.GraphModule, part: Part) -> Boxed:
        if part.kind != "inference":
            self.reason = "it needs gradients"
        elif not part.is_plain:
            self.reason = "its results share memory with its arguments, or it writes to these"
        else:
            self.reason = self._runs_at_once or barrier(graph)
        if self.reason:
            return self._compile(graph, gm, part)
        self.waiting = _Waiting(graph, gm, self._name)
        later = replace(part, arguments=())  # they would live as long as the region
        return _on_first_call(lambda: self._compile(graph, gm, later))


class _Waiting:
    """A region's Graph as fragments, one for each combination of its sizes that change."""

    def __init__(self, graph: Graph, gm: torch.fx.GraphModule, name: str) -> None:
        self._graph = graph
        self._name = name
        self._run = run_in_eager(gm)
        calls = [n for n in gm.graph.nodes if n.op == "call_function"]
        self._operators = sum(
            n.target is not operator.getitem and isinstance(n.target, torch._ops.OpOverload)
            for n in calls
        )
        self.sizes = [n.attrs.index for n in graph.inputs if not isinstance(n.type, TensorType)]
        self._fragments: dict[tuple[int, ...], Fragment] = {}
        self._is_full = False
        # The user's line of the region's first operator; None where that is inside torch.
        self.place = _place(gm)
        # The fragment for any arguments; None where sizes change.
        self.only = None if graph.symbols else self._fragment(graph)

    def fragment(self, args: Sequence[Any], too_many: Callable[[], None]) -> Fragment | None:
        """The fragment for these arguments; None where there are too many (``too_many`` is told once)."""
        sources = self._graph.symbols
        key = tuple(
            int(args[s.input] if s.dim is None else args[s.input].shape[s.dim]) for s in sources
        )
        found = self._fragments.get(key)
        if found is None and len(self._fragments) >= _MOST_SIZES:
            if not self._is_full:
                self._is_full = True
                too_many()
            return None
        if found is None:
            values = {s.symbol: k for s, k in zip(sources, key, strict=True)}
            sizes = {k: args[k] for k in self.sizes}
            found = self._fragment(specialize(self._graph, values), sizes)
            self._fragments[key] = found
        return found

    def _fragment(self, graph: Graph, sizes: Mapping[int, int] | None = None) -> Fragment:
        in_eager = _with_sizes(self._run, sizes) if sizes else self._run
        return Fragment.of(graph, in_eager, self._operators, self._name)

    def taken(self, args: Sequence[Any]) -> Sequence[torch.Tensor]:
        """The arguments that the fragment takes."""
        return [x for k, x in enumerate(args) if k not in self.sizes]


def _with_sizes(run: Boxed, sizes: Mapping[int, int]) -> Boxed:
    """``run`` with the sizes put back among its arguments, at these positions."""

    def call(args: list[Any]) -> Sequence[Any]:
        given = list(args)
        args.clear()
        for place in sorted(sizes):
            given.insert(place, sizes[place])
        return run(given)

    return call


def _on_first_call(make: Callable[[], Boxed]) -> Boxed:
    made: list[Boxed] = []

    def call(args: list[Any]) -> Sequence[Any]:
        if not made:
            made.append(make())
        return made[0](args)

    return call


def _computed(args: Sequence[Any], what: str) -> list[Any]:
    return [compute(x, what, "region_end") if isinstance(x, LazyTensor) else x for x in args]


def _line(gm: torch.fx.GraphModule) -> str:
    return as_line(_place(gm))


def _place(gm: torch.fx.GraphModule) -> Place | None:
    places = (user_frame(n.meta.get("stack_trace")) for n in gm.graph.nodes)
    return next((place for place in places if place is not None), None)
