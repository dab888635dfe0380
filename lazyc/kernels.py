"""Kernels of a process: generated once for each LoopNest and target, kept in memory and on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from lazyc.codegen import llvm
from lazyc.codegen.base import KernelCode
from lazyc.codegen.target import Target
from lazyc.ir.loops import LoopNest
from lazyc.ir.nest_text import print_nest
from lazyc.report import events as E
from lazyc.runtime.binding import LoadedKernel
from lazyc.runtime.cache import DiskCache
from lazyc.runtime.key import nest_key
from lazyc.runtime.serialize import KernelRef


@dataclass
class Timings:
    """Seconds by stage, and how many kernels were made and found, in one compilation."""

    seconds: dict[str, float] = field(default_factory=dict)
    made: int = 0
    reused: int = 0

    def add(self, stage: str, start: float) -> None:
        """Charges the time since ``start`` (``time.perf_counter``) to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class KernelStore:
    """Loaded kernels by symbol. A symbol is derived from the kernel's key, so equal kernels of any
    graph share code. Safe to call from several threads."""

    def __init__(self, target: Target, disk: DiskCache, events: E.EventStream) -> None:
        self._target = target
        self._target_key = target.key()
        self._disk = disk
        self._events = events
        self._loader = llvm.Loader(target)
        self._loaded: dict[str, LoadedKernel] = {}
        self._refs: dict[str, KernelRef] = {}  # by the nest's key
        self._objects: dict[str, bytes] = {}  # by symbol
        self._lock = threading.Lock()

    def make(
        self, nests: Mapping[str, LoopNest], timings: Timings
    ) -> tuple[dict[str, LoadedKernel], dict[str, KernelRef]]:
        """The loaded kernel and its record for each nest, compiled where there is none yet."""
        refs: dict[str, KernelRef] = {}
        unlinked: dict[KernelRef, bytes] = {}
        with self._lock:
            start = time.perf_counter()
            for key, nest in nests.items():
                ref = self._refs.get(key)
                if ref is None:
                    ref, object_code = self._compile(nest, timings)
                    unlinked[ref] = object_code
                else:
                    timings.reused += 1
                refs[key] = ref
            self._link(unlinked, timings)
            self._refs |= refs
            loaded = {key: self._loaded[ref.symbol] for key, ref in refs.items()}
            timings.add("kernels", start)
        return loaded, refs

    def _compile(self, nest: LoopNest, timings: Timings) -> tuple[KernelRef, bytes]:
        text = print_nest(nest)
        disk_key = nest_key(text, self._target_key)
        symbol = f"lazyc_{disk_key[:24]}"
        start = time.perf_counter()
        code = llvm.generate(nest, symbol, self._target)
        timings.add("generate", start)
        ref = KernelRef(symbol, code.items, code.grain)
        entry = self._disk.load("kernels", disk_key)
        if entry is not None and set(entry.parts) == {"object"}:
            timings.reused += 1
            return ref, entry.parts["object"]
        start = time.perf_counter()
        object_code = llvm.compile_text(code.text, self._target)
        timings.add("llvm", start)
        timings.made += 1
        self._events.emit(E.KernelCompiled(disk_key, time.perf_counter() - start, nest.comment))
        self._disk.store("kernels", disk_key, {"symbol": symbol}, {"object": object_code})
        return ref, object_code

    def generate(self, nest: LoopNest, symbol: str) -> KernelCode:
        """The code of a kernel as text, for reading."""
        return llvm.generate(nest, symbol, self._target)

    def restore(
        self, refs: Mapping[str, KernelRef], objects: Mapping[str, bytes], timings: Timings
    ) -> dict[str, LoadedKernel]:
        """Loads the kernels of a Program from the disk cache, without generating any code."""
        with self._lock:
            self._link(
                {r: objects[k] for k, r in refs.items() if r.symbol not in self._loaded}, timings
            )
            self._refs = {**refs, **self._refs}
            timings.reused += len(refs)
            return {key: self._loaded[ref.symbol] for key, ref in refs.items()}

    def object_code(self, ref: KernelRef) -> bytes:
        """The object file of a kernel that this store made or restored."""
        return self._objects[ref.symbol]

    def _link(self, objects: Mapping[KernelRef, bytes], timings: Timings) -> None:
        start = time.perf_counter()
        self._loader.add(list(objects.values()))
        for ref, object_code in objects.items():
            self._objects[ref.symbol] = object_code
            address = self._loader.address(ref.symbol)
            self._loaded[ref.symbol] = LoadedKernel(address, ref.items, ref.grain)
        timings.add("load", start)
