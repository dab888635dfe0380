"""Kernels of a process: generated once for each source and target, kept in memory and on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lazyc.codegen.base import Generator, Kernel, KernelCode, Ref
from lazyc.ir.loops import LoopNest
from lazyc.ir.nest_text import print_nest
from lazyc.ir.program import KernelSource
from lazyc.report import events as E
from lazyc.report.spans import Spans
from lazyc.runtime.cache import DiskCache
from lazyc.runtime.key import nest_key


def source_text(source: KernelSource) -> str:
    """The canonical text of what a kernel is made of: equal kernels have equal text."""
    return print_nest(source) if isinstance(source, LoopNest) else source.text


class Timings:
    """Seconds by stage, and how many kernels were made and found, in one compilation."""

    def __init__(self, spans: Spans) -> None:
        self.seconds: dict[str, float] = {}
        self.made = 0
        self.reused = 0
        self._spans = spans
        self._inner = 0.0  # seconds of stages within the one that runs

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charges the time within it to a stage, except what a stage within it is charged."""
        outer, self._inner = self._inner, 0.0
        start = time.perf_counter()
        try:
            with self._spans.span("compile", name):
                yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._inner
            self._inner = outer + spent


class KernelStore:
    """Loaded kernels by symbol. A symbol is derived from the kernel's key, so equal kernels of any
    graph share code. Safe to call from several threads."""

    def __init__(self, generator: Generator, disk: DiskCache, events: E.EventStream) -> None:
        self._generator = generator
        self._disk = disk
        self._events = events
        self._loaded: dict[str, Kernel] = {}
        self._refs: dict[str, Ref] = {}  # by the source's key
        self._objects: dict[str, bytes] = {}  # by symbol
        self._lock = threading.Lock()

    def make(
        self, sources: Mapping[str, KernelSource], timings: Timings
    ) -> tuple[dict[str, Kernel], dict[str, Ref]]:
        """The loaded kernel and its record for each source, compiled where there is none yet."""
        refs: dict[str, Ref] = {}
        unlinked: dict[Ref, bytes] = {}
        with self._lock, timings.stage("kernels"):
            for key, source in sources.items():
                ref = self._refs.get(key)
                if ref is None:
                    ref, object_code = self._compile(source, timings)
                    unlinked[ref] = object_code
                else:
                    timings.reused += 1
                refs[key] = ref
            self._link(unlinked, timings)
            self._refs |= refs
            loaded = {key: self._loaded[ref.symbol] for key, ref in refs.items()}
        return loaded, refs

    def _compile(self, source: KernelSource, timings: Timings) -> tuple[Ref, bytes]:
        disk_key = nest_key(source_text(source), self._generator.key)
        symbol = f"lazyc_{disk_key[:24]}"
        with timings.stage("generate"):
            code = self._generator.generate(source, symbol)
        entry = self._disk.load("kernels", disk_key)
        if entry is not None and set(entry.parts) == {"object"}:
            timings.reused += 1
            return code.ref, entry.parts["object"]
        start = time.perf_counter()
        with timings.stage("llvm"):
            object_code = self._generator.compile(code)
        timings.made += 1
        self._events.emit(E.KernelCompiled(disk_key, time.perf_counter() - start, source.comment))
        self._disk.store("kernels", disk_key, {"symbol": symbol}, {"object": object_code})
        return code.ref, object_code

    def generate(self, source: KernelSource, symbol: str) -> KernelCode:
        """The code of a kernel as text, for reading."""
        return self._generator.generate(source, symbol)

    def restore(
        self, refs: Mapping[str, Ref], objects: Mapping[str, bytes], timings: Timings
    ) -> dict[str, Kernel]:
        """Loads the kernels of a Program from the disk cache, without generating any code."""
        with self._lock:
            self._link(
                {r: objects[k] for k, r in refs.items() if r.symbol not in self._loaded}, timings
            )
            self._refs = {**refs, **self._refs}
            timings.reused += len(refs)
            return {key: self._loaded[ref.symbol] for key, ref in refs.items()}

    def object_code(self, ref: Ref) -> bytes:
        """The object file of a kernel that this store made or restored."""
        return self._objects[ref.symbol]

    def _link(self, objects: Mapping[Ref, bytes], timings: Timings) -> None:
        with timings.stage("load"):
            self._loaded |= self._generator.load(objects)
            self._objects |= {ref.symbol: code for ref, code in objects.items()}
