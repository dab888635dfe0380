"""``lazyc.explain(fn, *args)``: what became of a function, from the events of compiling and running it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import graph_break_reasons

from lazyc import backend
from lazyc.config import Config
from lazyc.ir.program import EagerStep, GemmStep, KernelStep
from lazyc.report import events as E
from lazyc.report.text import format_event
from lazyc.runtime.eager import step_buffers
from lazyc.runtime.program import Executable
from lazyc.runtime.runner import Runner

_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class EagerOperator:
    """An operator that a compiled graph leaves to eager: calls and milliseconds of one call of the
    function, the reason, and the user's lines. Of a graph that is left to eager whole nothing is counted: 0."""

    op: str
    reason: str
    lines: tuple[str, ...]
    calls: int
    milliseconds: float


Choice: TypeAlias = (
    E.AttentionChosen | E.RowTilesChosen | E.SparseProduct | E.WeightNotSparse | E.KernelTuned
)


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found. Times in seconds; all but the first call's are of the second call.

    ``breaks`` pairs Dynamo's reason for a graph break with the user's line. ``flushes`` and
    ``not_lazy`` are filled with the option ``lazy``. ``bytes_moved`` adds up the buffers that each
    step of the programs reads or writes. ``choices`` tell how attention, chains of products and products
    with sparse weights run, and what kernels were timed, ``decisions`` are those about layout and padding; equal ones are printed once.
    ``compile_seconds`` are by stage; Dynamo's and AOTAutograd's are the rest of ``first_call``.
    """

    graphs: int
    breaks: tuple[tuple[str, str], ...]
    flushes: tuple[E.Flushed, ...]
    not_lazy: tuple[E.NotLazy, ...]
    choices: tuple[Choice, ...]
    eager: tuple[EagerOperator, ...]
    kernels_made: int
    kernels_reused: int
    kernel_calls: int
    products: int
    bytes_moved: int
    decisions: tuple[E.Decided, ...]
    compile_seconds: Mapping[str, float]
    first_call: float
    second_call: float

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def explain(
    fn: Callable[..., Any], *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Explanation:
    """Compiles ``fn`` with lazyc, calls it twice with the arguments, prints and returns what happened.

    ``options`` are those of ``torch.compile(options={...})``. Both calls have the effects of ``fn``.
    Raises what ``fn`` raises, and ConfigError for unknown options.
    """
    Config.from_env().with_options(options or {})  # else Dynamo wraps the error
    compiled = torch.compile(fn, backend=_fresh_backend(options))
    events: list[E.Event] = []
    known = set(backend.executables())
    breaks = len(graph_break_reasons)
    stop = backend.EVENTS.subscribe(events.append)
    try:
        # Each explanation compiles anew, which Dynamo would refuse after some.
        with dynamo_config.patch(recompile_limit=_NO_LIMIT, accumulated_recompile_limit=_NO_LIMIT):
            first = _timed(compiled, args, kwargs)
            made = [x for x in backend.executables() if x not in known]
            second_events = len(events)
            second, eager = _second_call(made, compiled, args, kwargs)
    finally:
        stop()
    finished = [e for e in events if isinstance(e, E.CompileFinished)]
    seconds: Counter[str] = Counter()
    for event in finished:
        seconds.update(dict(event.seconds))  # type: ignore[arg-type]  # a Counter of floats
    steps = [s for x in made for s in x.program.steps]
    found = Explanation(
        graphs=len(finished),
        breaks=tuple(_breaks(graph_break_reasons[breaks:])),
        flushes=tuple(e for e in events[second_events:] if isinstance(e, E.Flushed)),
        not_lazy=tuple(e for e in events if isinstance(e, E.NotLazy)),
        choices=tuple(e for e in events if isinstance(e, Choice)),
        eager=tuple(_with_lines(eager, [e for e in events if isinstance(e, E.Fallback)])),
        kernels_made=sum(e.kernels_made for e in finished),
        kernels_reused=sum(e.kernels_reused for e in finished),
        kernel_calls=sum(isinstance(s, KernelStep) for s in steps),
        products=sum(isinstance(s, GemmStep) for s in steps),
        bytes_moved=sum(map(_bytes_moved, made)),
        decisions=tuple(e for e in events if isinstance(e, E.Decided)),
        compile_seconds=dict(seconds),
        first_call=first,
        second_call=second,
    )
    print(found)
    return found


def _fresh_backend(options: Mapping[str, Any] | None) -> Callable[..., Any]:
    """A backend of its own, for which Dynamo compiles anew."""
    return partial(backend.lazyc, options=dict(options or {}))


def _timed(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    start = time.perf_counter()
    result = fn(*args, **kwargs)
    backend.mark_step()
    del result
    return time.perf_counter() - start


def _second_call(
    executables: Sequence[Executable],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[float, list[EagerOperator]]:
    """Seconds of a call, and the operators that ran in eager in it."""
    before = {id(s): s.calls for x in executables for s in x.eager_log.stats.values()}
    for executable in executables:
        executable.eager_log.timed = True
    try:
        seconds = _timed(fn, args, kwargs)
    finally:
        for executable in executables:
            executable.eager_log.timed = False
    found = [
        EagerOperator(s.target, s.reason, (), s.calls - before.get(id(s), 0), 1e3 * s.seconds)
        for x in executables
        for s in x.eager_log.stats.values()
        if s.is_fallback
    ]
    return seconds, sorted(found, key=lambda x: -x.milliseconds)


def _with_lines(
    found: Sequence[EagerOperator], events: Sequence[E.Fallback]
) -> Iterator[EagerOperator]:
    """The operators with the user's lines; and graphs that have no program at all."""
    for x in found:
        lines = dict.fromkeys(e.line for e in events if e.op == x.op and e.line)
        yield EagerOperator(x.op, x.reason, tuple(lines), x.calls, x.milliseconds)
    known = {x.op for x in found}
    for e in events:
        if e.op not in known:
            yield EagerOperator(e.op, e.reason, (e.line,) if e.line else (), 0, 0.0)


def _breaks(reasons: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for reason in reasons:
        if reason.graph_break:
            frame = reason.user_stack[-1] if reason.user_stack else None
            line = f"{os.path.basename(frame.filename)}:{frame.lineno}" if frame else ""
            yield _explanation(reason.reason), line


def _explanation(text: str) -> str:
    """Dynamo's explanation in one line, else its headline."""
    lines = [line.strip() for line in text.splitlines()]
    marked = (x.removeprefix("Explanation: ") for x in lines if x.startswith("Explanation: "))
    return next(marked, lines[0] if lines else "")


def _bytes_moved(executable: Executable) -> int:
    """Bytes of the buffers that each step reads or writes, at the sizes of the last call."""
    runner = executable.last_runner
    if runner is None:
        return 0
    return sum(_buffer_bytes(runner, b) for s in executable.program.steps for b in _touched(s))


def _touched(step: Any) -> set[int]:
    if isinstance(step, KernelStep):
        return set(step.buffers)
    if isinstance(step, GemmStep):
        return {step.a.buffer, step.b.buffer, step.c.buffer}
    if isinstance(step, EagerStep):
        return {*step_buffers(step), *step.outputs}
    return set()


def _buffer_bytes(runner: Runner, buffer: int) -> int:
    layout = runner.plan.layouts[buffer]
    if layout is None:
        return 0
    return torch.Size(layout.shape).numel() * layout.dtype.itemsize


def _lines(x: Explanation) -> Iterator[str]:
    yield (
        f"{x.graphs} graphs, {len(x.breaks)} graph breaks; {x.kernel_calls} kernel calls of "
        f"{x.kernels_made} kernels made now and {x.kernels_reused} reused; {x.products} matrix "
        f"products; {x.bytes_moved / 2**20:.1f} MiB read or written"
    )
    stages = ", ".join(f"{stage} {1e3 * s:.0f}" for stage, s in x.compile_seconds.items())
    yield f"first call {1e3 * x.first_call:.0f} ms ({stages}); second call {1e3 * x.second_call:.2f} ms"
    for reason, line in x.breaks:
        yield f"graph break at {line}: {reason}"
    for event in (*x.not_lazy, *x.flushes):
        yield format_event(event, 1)
    for event, count in Counter(x.choices).items():
        yield format_event(event, 1) + _times(count)
    yield from _decision_lines(x.decisions)
    for e in x.eager:
        at = f" at {', '.join(e.lines)}" if e.lines else ""
        counted = f" ({e.calls} calls, {e.milliseconds:.2f} ms)" if e.calls else ""
        yield f"eager: {e.op}{at}: {e.reason}{counted}"


def _decision_lines(decisions: Sequence[E.Decided]) -> Iterator[str]:
    """One line for those that differ in graph and line alone, with how many there were."""
    counts = Counter(replace(d, graph=0, line="") for d in decisions)
    for decision, count in counts.items():
        yield format_event(decision, 2) + _times(count)


def _times(count: int) -> str:
    return f" [{count} times]" if count > 1 else ""
