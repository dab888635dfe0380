"""The event stream: everything that lazyc tells about itself, as typed records.

One stream is made by the composition root and passed down; metrics, debug output and reports are
listeners. Events are about compilation and its consequences, not about every call of a compiled
program. An emitter on a hot path asks ``stream.listening`` before it builds an event.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lazyc.forks import renew_in_child


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class CompileStarted(Event):
    """Compilation of graph number ``graph`` (counted in this process) began."""

    graph: int
    nodes: int
    inputs: int


@dataclass(frozen=True, slots=True)
class CompileFinished(Event):
    """A graph is ready to run. ``seconds`` are (stage, seconds) in the order they ran.

    ``kernels_made`` were generated and compiled now, ``kernels_reused`` were already there (an
    equal kernel in this graph, this process or on disk); ``fallbacks`` are operators left to eager.
    ``kernel_calls`` are the kernels that one run calls.
    """

    graph: int
    seconds: tuple[tuple[str, float], ...]
    kernels_made: int = 0
    kernels_reused: int = 0
    fallbacks: int = 0
    kernel_calls: int = 0

    @property
    def total(self) -> float:
        return sum(s for _, s in self.seconds)


@dataclass(frozen=True, slots=True)
class PassFinished(Event):
    """One pass over a graph; ``before`` and ``after`` count nodes."""

    name: str
    seconds: float
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Decided(Event):
    """What pass ``by`` chose about layout or padding in graph number ``graph``, also one whose program was
    found in the cache. Fields as in ir.decisions.Decision."""

    graph: int
    by: str
    what: str
    why: str
    line: str = ""
    bytes_copied: int | None = 0
    bytes_kept: int | None = 0
    bytes_saved: int | None = 0
    seconds_saved: float = 0.0


CacheKind: TypeAlias = Literal["captures", "programs", "kernels", "choices", "checks"]
CacheLevel: TypeAlias = Literal["memory", "disk"]


@dataclass(frozen=True, slots=True)
class CacheHit(Event):
    level: CacheLevel
    kind: CacheKind
    key: str


@dataclass(frozen=True, slots=True)
class CacheMiss(Event):
    """Nothing under ``key``. ``reason`` says what differs from the nearest entry, where known. ``compiles``:
    there is no other place to look at, so a program is compiled."""

    level: CacheLevel
    kind: CacheKind
    key: str
    reason: str = ""
    compiles: bool = False


@dataclass(frozen=True, slots=True)
class CacheRejected(Event):
    """A file of the disk cache did not verify (``reason``); it is removed and counts as a miss."""

    kind: CacheKind
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class CacheEvicted(Event):
    """The disk cache went over its size limit and lost its longest unused entries."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CacheDisabled(Event):
    """The disk cache is off for the rest of this process, because of ``reason``."""

    reason: str


@dataclass(frozen=True, slots=True)
class KernelCompiled(Event):
    """A kernel was generated and compiled; ``comment`` names the operators and lines it is from."""

    key: str
    seconds: float
    comment: str = ""


@dataclass(frozen=True, slots=True)
class KernelTuned(Event):
    """A kernel was timed on the GPU by several tiles or blocks, in ``seconds`` with compilation. ``times``:
    (choice, seconds of a launch), that of the rules first; ``dropped``: choices that failed or spill registers;
    ``late``: how many there was no time for. ``winner`` is what it has from now on; ``comment`` names the
    operators and lines it is from."""

    comment: str
    times: tuple[tuple[str, float], ...]
    dropped: tuple[str, ...]
    late: int
    winner: str
    seconds: float

    @property
    def gain(self) -> float:
        """How many times as fast the winner is as the rules' choice."""
        known = dict(self.times)
        first = self.times[0][1] if self.times else 0.0
        return first / known[self.winner] if known.get(self.winner) else 1.0


@dataclass(frozen=True, slots=True)
class AttentionChosen(Event):
    """How attention, at the user's ``line``, is computed, and the ``reason``; told for programs from the cache
    too. The ``kernel`` has the name that ``torch.nn.attention.SDPBackend`` gives to such: ``flash`` (GPUs) keeps
    no scores, ``memory-efficient`` (the CPU, at the sizes of a call) a block of rows of them, ``math`` all."""

    kernel: str
    reason: str
    line: str


@dataclass(frozen=True, slots=True)
class RowTilesChosen(Event):
    """Products and the kernels between them, from the product that ``comment`` names (operator and the
    user's line) on, run a block of rows at a time, or (not ``is_tiled``) one after another, at the sizes
    of a call, because of ``reason``. What is a softmax between two products is told as AttentionChosen."""

    is_tiled: bool
    reason: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Recompiled(Event):
    """A function was compiled again, ``count`` times by now, because of what ``changed`` since.

    ``seconds``: from Dynamo's start with it to code that is ready. ``fix`` is what would avoid it.
    """

    line: str
    changed: str
    fix: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Fallback(Event):
    """Operator ``op`` at the user's ``line`` runs in eager, because of ``reason``."""

    op: str
    reason: str
    line: str = ""


# Why recorded work runs. region_end: something that cannot be recorded takes pending values. value_read: print, item,
# bool, numpy, tolist, saving, an eager operator.
Cause: TypeAlias = Literal[
    "mark_step", "region_end", "value_read", "size_cap", "memory_cap", "fork"
]


@dataclass(frozen=True, slots=True)
class Flushed(Event):
    """Recorded work ran: ``regions`` of it with ``operators``, as one program.

    ``what`` is the call that needed a value, at the user's ``line``. ``results`` values were wanted;
    ``compiled`` tells whether the program was new.
    """

    cause: Cause
    what: str
    line: str
    regions: int
    operators: int
    results: int
    compiled: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class NeverComputed(Event):
    """Recorded work (``operators``, recorded at ``line``) was dropped: nobody asked for its results."""

    line: str
    operators: int


@dataclass(frozen=True, slots=True)
class NotLazy(Event):
    """A compiled region, or an operator in recorded code, at the user's ``line`` runs at once when it is
    called, because of ``reason``."""

    line: str
    reason: str


@dataclass(frozen=True, slots=True)
class Padded(Event):
    """A graph is compiled for sizes rounded up: ``sizes`` tells which, as "s0 = 100 -> 128"."""

    sizes: str


@dataclass(frozen=True, slots=True)
class CompilerBugFound(Event):
    """A bug inside lazyc; the graph runs in eager. Fields as in errors.CompilerBug."""

    stage: str
    op: str
    line: str
    message: str


@dataclass(frozen=True, slots=True)
class WeightsPacked(Event):
    """Weights were repacked, or compressed, for the matrix product: on first use, or since a weight
    ``changed``."""

    count: int
    bytes: int
    changed: bool


@dataclass(frozen=True, slots=True)
class SparseProduct(Event):
    """A product [m, n, k] (``sizes``; of a GPU's kernel that is no such product, the weight's) whose weight is
    declared sparse: ``is_used`` tells whether it has a kernel for such weights, ``reason`` why, ``comment``
    the operator and the user's line."""

    sparsity: str
    sizes: tuple[str, ...]
    is_used: bool
    reason: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class WeightNotSparse(Event):
    """The values of a weight of ``shape`` are not as sparse as it is declared: until they change, its
    product (``comment``: operator and line) is a dense one."""

    sparsity: str
    shape: tuple[int, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Artifact(Event):
    """A text of compilation number ``graph`` (IR, code) under a file name; only with ``LAZYC_TRACE``, and at debug
    level 3."""

    graph: int
    name: str
    text: str


Listener: TypeAlias = Callable[[Event], None]


class EventStream:
    """Hands each event to every listener, in the emitting thread, in order of subscription."""

    __slots__ = ("__weakref__", "_counters", "_listeners", "_lock", "listening", "reporting")

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()
        self._counters: tuple[Listener, ...] = ()
        self._lock = threading.Lock()
        renew_in_child(self)
        self.listening = False  # whether anybody hears; the one branch of a hot path
        self.reporting = False  # whether anybody shows events, which is what reasons are looked for

    def subscribe(self, listener: Listener, only_counts: bool = False) -> Callable[[], None]:
        """Adds a listener; returns the function that removes it again (harmless to call twice). One that
        ``only_counts`` does not need what takes time to find out."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
            if only_counts:
                self._counters = (*self._counters, listener)
            self._note()

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(x for x in self._listeners if x is not listener)
                self._counters = tuple(x for x in self._counters if x is not listener)
                self._note()

        return unsubscribe

    def _note(self) -> None:
        self.listening = bool(self._listeners)
        self.reporting = len(self._listeners) > len(self._counters)

    def emit(self, event: Event) -> None:
        if self.listening:
            for listener in self._listeners:
                listener(event)


def as_dict(event: Event) -> dict[str, Any]:
    """The event's fields, with its class name under "event"."""
    return {"event": type(event).__name__, **dataclasses.asdict(event)}


def as_json(event: Event) -> str:
    """One line of JSON."""
    return json.dumps(as_dict(event))
