"""Timelines: what lazyc and the user's code did when.

    with lazyc.profiler.record("trace.json"):
        for step, batch in enumerate(batches):
            with lazyc.profiler.StepTrace(step):
                with lazyc.profiler.trace("forward"):
                    loss = loss_of(model, batch)
                ...

The file opens in https://ui.perfetto.dev. Inside ``torch.profiler.profile`` the same spans are part of
torch's trace. Kernels are timed one by one while a recording or torch's profiler runs; otherwise a call
of a compiled program costs one branch more than it would without this module. See docs/profiling.md.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from lazyc.backend import SPANS
from lazyc.report.chrome import TraceFile

__all__ = ["StepTrace", "record", "trace"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class trace:
    """Annotates what runs within it, as a context manager or as a decorator, with ``name``.

    It may be nested, and used again, also by a function that calls itself. As a context manager an
    object belongs to one thread; a decorated function may be called from any. Inside a function that
    ``torch.compile`` compiles it does nothing: what it would surround becomes part of larger kernels.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._args: dict[str, Any] = {}
        self._open: list[Any] = []

    def __enter__(self) -> None:
        if not torch.compiler.is_compiling():
            span = SPANS.span("user", self._name, **self._args)
            self._open.append(span)
            span.__enter__()

    def __exit__(self, *error: Any) -> None:
        if not torch.compiler.is_compiling():
            self._open.pop().__exit__(*error)

    def __call__(self, function: _Function) -> _Function:
        @functools.wraps(function)
        def annotated(*args: Any, **kwargs: Any) -> Any:
            with trace(self._name):  # of its own: several threads may call at once
                return function(*args, **kwargs)

        return annotated  # type: ignore[return-value]  # takes and returns what ``function`` does


class StepTrace(trace):
    """Annotates step number ``step_num`` of a loop, as ``name#step_num``.

    It runs nothing that waits, unlike PyTorch/XLA's: with ``lazyc.lazy()`` call ``lazyc.mark_step()``
    as the last thing within it, so that the work of a step is inside its span.
    """

    def __init__(self, step_num: int, name: str = "step") -> None:
        super().__init__(f"{name}#{step_num}")
        self._args = {"step_num": step_num}


@contextmanager
def record(path: str | os.PathLike[str]) -> Iterator[None]:
    """Writes the spans of all threads within it to ``path``, as a trace for Perfetto (Chrome's trace
    event format, JSON), when it ends: also when that is by an exception or by Ctrl-C.

    A file that exists is replaced, all at once. Spans that begin before it or end after it are left
    out. Recordings may be nested or overlap in threads; each has all spans of its own time. A child
    process that is forked within it records nothing and writes nothing.

    Raises OSError, before anything within it runs, where ``path`` cannot be written.
    """
    file = TraceFile(path)
    with SPANS.record() as recording:
        try:
            yield
        finally:
            if os.getpid() == recording.process:
                file.write(recording)
