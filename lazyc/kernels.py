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
        loaded: dict[str, LoadedKernel] = {}
        refs: dict[str, KernelRef] = {}
        with self._lock:
            for key, nest in nests.items():
                start = time.perf_counter()
                ref = self._refs.get(key)
                if ref is None:
                    ref = self._load(key, nest, timings)
                    self._refs[key] = ref
                else:
                    timings.reused += 1
                refs[key] = ref
                loaded[key] = self._loaded[ref.symbol]
                timings.add("kernels", start)
        return loaded, refs

    def _load(self, key: str, nest: LoopNest, timings: Timings) -> KernelRef:
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
            object_code = entry.parts["object"]
        else:
            start = time.perf_counter()
            object_code = llvm.compile_text(code.text, self._target)
            timings.add("llvm", start)
            timings.made += 1
            self._events.emit(E.KernelCompiled(disk_key, time.perf_counter() - start, nest.comment))
            self._disk.store("kernels", disk_key, {"symbol": symbol}, {"object": object_code})
        self._link(ref, object_code, timings)
        return ref

    def generate(self, nest: LoopNest, symbol: str) -> KernelCode:
        """The code of a kernel as text, for reading."""
        return llvm.generate(nest, symbol, self._target)

    def restore(
        self, refs: Mapping[str, KernelRef], objects: Mapping[str, bytes], timings: Timings
    ) -> dict[str, LoadedKernel]:
        """Loads the kernels of a Program from the disk cache, without generating any code."""
        with self._lock:
            for key, ref in refs.items():
                if ref.symbol not in self._loaded:
                    self._link(ref, objects[key], timings)
                self._refs.setdefault(key, ref)
                timings.reused += 1
            return {key: self._loaded[ref.symbol] for key, ref in refs.items()}

    def object_code(self, ref: KernelRef) -> bytes:
        """The object file of a kernel that this store made or restored."""
        return self._objects[ref.symbol]

    def _link(self, ref: KernelRef, object_code: bytes, timings: Timings) -> None:
        start = time.perf_counter()
        self._loader.add(object_code)
        self._objects[ref.symbol] = object_code
        self._loaded[ref.symbol] = LoadedKernel(
            self._loader.address(ref.symbol), ref.items, ref.grain
        )
        timings.add("load", start)
