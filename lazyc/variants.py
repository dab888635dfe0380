"""Functions that are compiled more than once: for sizes rounded up, and for shapes that turn up later."""

from __future__ import annotations

import atexit
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import sympy

from lazyc.errors import NewShape
from lazyc.forks import renew_in_child
from lazyc.ir.graph import Graph
from lazyc.report import events as E

Boxed: TypeAlias = Callable[[list[Any]], Sequence[Any]]
# What runs a Graph, with the symbols rounded up to the given sizes.
Compile: TypeAlias = Callable[[Graph, Mapping[sympy.Symbol, int]], Boxed]
Room: TypeAlias = Callable[[int], "int | None"]
CountPadding: TypeAlias = Callable[[int, int], None]  # elements that count, elements computed


def for_new_shape(
    policy: str,
    new: NewShape | None,
    make: Callable[[], Boxed],
    in_eager: Boxed,
    events: E.EventStream,
) -> Boxed:
    """What serves a shape as the option ``on_new_shape`` says; ``new`` tells what is new about it, and is
    None for a first shape, which is compiled.

    Raises ``new`` where the option is "error".
    """
    if new is None or policy == "compile":
        return make()
    if policy == "error":
        raise new
    if policy == "eager":
        events.emit(E.Fallback("graph", f"a new shape: {new.what}", new.line))
        return in_eager
    return InBackground(make, in_eager)


class InBackground:
    """Serves by ``meanwhile`` until ``make``, run in a worker thread, has returned."""

    def __init__(self, make: Callable[[], Boxed], meanwhile: Boxed) -> None:
        self._make: Callable[[], Boxed] | None = make
        self._serving = meanwhile
        self._made: Future[Boxed] | None = _workers.get().submit(make)
        renew_in_child(self, InBackground._begin_again)

    @property
    def is_made(self) -> bool:
        """Whether the next call is served by what ``make`` returned, or raises what it raised."""
        return self._make is None or (self._made is not None and self._made.done())

    def __call__(self, args: list[Any]) -> Sequence[Any]:
        # In this order, and cleared in the other one: another thread may be here too.
        made, make = self._made, self._make
        if made is not None and made.done():
            self._make = self._made = None
            self._serving = made.result()  # raises what compiling raised
        elif made is None and make is not None:
            self._made = _workers.get().submit(make)
        return self._serving(args)

    def _begin_again(self) -> None:
        """In a child process, whose parent's worker is not there: ``make`` runs anew, from the next call on."""
        if self._made is not None and not self._made.done():
            self._made = None


class _Workers:
    """The thread that compiles in the background, made on first use. It is only one: compilation holds
    Python's lock most of the time, and is to disturb little."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def get(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "lazyc-compile")
            return self._pool

    def stop(self) -> None:
        """Lets what is being compiled end, and nothing else begin."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)

    def forget(self) -> None:
        """In a child process, which has none of its parent's threads."""
        self._lock, self._pool = threading.Lock(), None


_workers = _Workers()
atexit.register(_workers.stop)
renew_in_child(_workers, _Workers.forget)


class Bucketed:
    """A Graph with sizes that change, compiled for sizes rounded up, once for each combination.

    ``rooms`` round the values of symbols up, or give None for what is larger than any bucket; the program
    then is one for all sizes. ``in_eager`` is the same in torch; it may serve buckets after the first, or
    from the first where that ``is_new``, as ``on_new_shape`` says. ``count`` is told of every padded call.
    """

    def __init__(
        self,
        graph: Graph,
        rooms: Mapping[sympy.Symbol, Room],
        compile: Compile,
        in_eager: Boxed,
        on_new_shape: str,
        is_new: bool,
        events: E.EventStream,
        count: CountPadding,
    ) -> None:
        self._graph = graph
        self._compile = compile
        self._in_eager = in_eager
        self._on_new_shape = on_new_shape
        self._is_new = is_new
        self._events = events
        self._count = count
        self._sources = [(s, rooms[s.symbol]) for s in graph.symbols if s.symbol in rooms]
        self._programs: dict[tuple[int | None, ...], Boxed] = {}
        self._lock = threading.RLock()
        renew_in_child(self)

    def __call__(self, args: list[Any]) -> Sequence[Any]:
        sizes: list[int] = []
        key: list[int | None] = []
        for source, room_of in self._sources:
            x = args[source.input]
            size = int(x if source.dim is None else x.shape[source.dim])
            sizes.append(size)
            key.append(room_of(size))
        rooms = tuple(key)
        program = self._programs.get(rooms)
        if program is None:
            program = self._add(rooms, sizes)
        waits = isinstance(program, InBackground) and not program.is_made
        if program is not self._in_eager and not waits:
            room = math.prod(s if r is None else r for s, r in zip(sizes, rooms, strict=True))
            self._count(math.prod(sizes), room)
        return program(args)

    def _add(self, rooms: tuple[int | None, ...], sizes: Sequence[int]) -> Boxed:
        with self._lock:
            program = self._programs.get(rooms)
            if program is None:
                pairs = zip(self._sources, sizes, rooms, strict=True)
                shown = ", ".join(
                    f"{s.symbol.name} = {n} -> {r or 'any'}" for (s, _), n, r in pairs
                )

                def make() -> Boxed:
                    return self._make(rooms, shown)

                new = NewShape(shown) if self._programs or self._is_new else None
                program = for_new_shape(self._on_new_shape, new, make, self._in_eager, self._events)
                self._programs[rooms] = program
            return program

    def _make(self, rooms: tuple[int | None, ...], shown: str) -> Boxed:
        chosen = {
            s.symbol: room
            for (s, _), room in zip(self._sources, rooms, strict=True)
            if room is not None
        }
        if chosen:
            self._events.emit(E.Padded(shown))
        return self._compile(self._graph, chosen)
