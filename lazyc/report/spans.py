"""Spans: what ran when, for timelines.

One ``Spans`` is made by the composition root and passed down like the event stream. Spans nest by time,
thread by thread. A span goes to every recording that is open (``lazyc.profiler``), and to torch's
profiler as a record function while that runs. Where neither is on, no span is made.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from lazyc.forks import new_lock, renew_in_child

# Its flag ``_is_profiler_enabled`` is what torch's own Python code asks before it makes a span.
torch_profiler = torch.autograd.profiler
_RecordFunction: Any = torch._C._profiler._RecordFunctionFast  # type: ignore[attr-defined]

Category: TypeAlias = Literal[
    "user", "compile", "record", "flush", "program", "kernel", "library", "fallback"
]


class FinishedSpan(NamedTuple):
    """``start`` and ``end`` in nanoseconds of ``time.perf_counter_ns``; ``thread`` as the operating
    system numbers it."""

    category: Category
    name: str
    start: int
    end: int
    thread: int
    args: dict[str, Any]


class Recording:
    """The spans of all threads that begin and end while it is open, in the order of their ends."""

    def __init__(self) -> None:
        self.start = time.perf_counter_ns()
        self.process = os.getpid()
        self.spans: list[FinishedSpan] = []
        self.threads: dict[int, str] = {}  # names

    def add(self, span: FinishedSpan) -> None:
        if span.start < self.start:
            return
        if span.thread not in self.threads:
            self.threads[span.thread] = threading.current_thread().name
        self.spans.append(span)


class Span:
    """A context manager for one span; use it once."""

    __slots__ = ("_category", "_function", "_name", "_spans", "_start", "args")

    def __init__(self, spans: Spans, category: Category, name: str, args: dict[str, Any]) -> None:
        self._spans = spans
        self._category: Category = category
        self._name = name
        self._function: Any = None
        self.args = args

    def note(self, **args: Any) -> None:
        """Adds to the span's arguments what is known later."""
        self.args = {**self.args, **args}

    def __enter__(self) -> Span:
        if torch_profiler._is_profiler_enabled:
            own = self._category == "user"
            label = self._name if own else f"lazyc.{self._category}: {self._name}"
            self._function = _RecordFunction(label)
            self._function.__enter__()
        self._start = time.perf_counter_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        end = time.perf_counter_ns()
        if self._function is not None:
            self._function.__exit__(None, None, None)
        recordings = self._spans.recordings
        if recordings:
            if kind is not None:
                self.note(error=kind.__name__)
            thread = threading.get_native_id()
            span = FinishedSpan(
                self._category, self._name, self._start, end, thread, self.args
            )  # fmt: skip
            for recording in recordings:
                recording.add(span)


class _NoSpan:
    """Stands for a span while nobody looks."""

    __slots__ = ()

    def note(self, **args: Any) -> None:
        pass

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


_NO_SPAN = _NoSpan()


class Spans:
    """Makes spans. All methods may be called from any thread.

    ``span`` is for work that takes microseconds and more. A hotter path asks what ``on`` asks, in
    place: ``spans.recordings or torch_profiler._is_profiler_enabled``.
    """

    __slots__ = ("__weakref__", "_lock", "recordings")

    def __init__(self) -> None:
        self.recordings: tuple[Recording, ...] = ()  # those that are open
        self._lock = threading.Lock()
        renew_in_child(self, Spans._forget)

    @property
    def on(self) -> bool:
        """Whether anybody looks."""
        return bool(self.recordings or torch_profiler._is_profiler_enabled)

    def span(self, category: Category, name: str, **args: Any) -> Span | _NoSpan:
        """A context manager around what the span tells of. ``args``: numbers and texts."""
        return Span(self, category, name, args) if self.on else _NO_SPAN

    @contextmanager
    def record(self) -> Iterator[Recording]:
        """A Recording, open within the block."""
        recording = Recording()
        with self._lock:
            self.recordings = (*self.recordings, recording)
        try:
            yield recording
        finally:
            with self._lock:
                self.recordings = tuple(r for r in self.recordings if r is not recording)

    def _forget(self) -> None:
        """In a child process: recordings are its parent's."""
        new_lock(self)
        self.recordings = ()
