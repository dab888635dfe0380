"""The composition root: Graph -> key -> cached Program, or passes -> schedule -> kernels -> Program.

This is the only module that knows the whole path. ``Compiler.compile`` reads like the list above.
"""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import cast

from lazyc.codegen.base import Generator, Kernel, Ref, TunableGenerator
from lazyc.config import AttentionKernel, Config
from lazyc.errors import (
    CacheCorrupt,
    CodeNotLoaded,
    CompilerBug,
    MissingPackage,
    MissingPackageWarning,
    NotCacheable,
)
from lazyc.forks import wait_before_fork
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.nest_verify import verify_nest
from lazyc.ir.printer import print_graph
from lazyc.ir.program import (
    EagerStep,
    GemmStep,
    KernelSource,
    KernelStep,
    Program,
    SparseFactor,
)
from lazyc.ir.program_text import print_program
from lazyc.ir.program_verify import verify_program
from lazyc.ir.types import TensorType
from lazyc.ir.verify import verify_graph
from lazyc.kernels import KernelStore, Timings, source_text
from lazyc.passes.manager import PassFailed, run_passes
from lazyc.passes.pipeline import pipeline
from lazyc.passes.row_tiles import find_row_tiles
from lazyc.passes.schedule import schedule
from lazyc.passes.sparse_contractions import (
    choose_sparse_contractions,
    without_sparse_contractions,
)
from lazyc.passes.sparse_products import choose_sparse_kernels
from lazyc.passes.tiled_products import Gemm, choose_tiled_products
from lazyc.report import events as E
from lazyc.report.spans import Spans
from lazyc.runtime.cache import DiskCache
from lazyc.runtime.explain import why_missed
from lazyc.runtime.host import Host
from lazyc.runtime.key import capture_parts, combine, key_parts
from lazyc.runtime.program import Executable
from lazyc.runtime.serialize import dump_program, load_program
from lazyc.runtime.tuning import Tuner

_graph_numbers = itertools.count()
_MOST_PARTS = 32  # programs whose keys are kept to explain a miss


class Compiler:
    """Compiles Graphs for one target with one Config; keeps Programs and kernels for reuse. ``tunable``: the
    generator, where its kernels are to be timed on the device (option ``autotune``)."""

    def __init__(
        self,
        config: Config,
        generator: Generator,
        host: Host,
        events: E.EventStream,
        spans: Spans,
        tunable: TunableGenerator | None = None,
    ) -> None:
        self._config = config
        self._generator = generator
        self._host = host
        self._device = "cpu" if host.device is None else host.device.name
        # What nobody asked for must not go stale.
        self._keeps = config.pack_weights and (generator.sees_edits or config.keep_gpu_weights)
        self._events = events
        self._spans = spans
        on_disk = config if generator.keeps_code else replace(config, disk_cache=False)
        self._disk = DiskCache(on_disk, events, self._generator.key)
        self._kernels = KernelStore(generator, self._disk, events)
        # Programs depend on what the library multiplies by blocks, too.
        halves = () if generator.has_products else sorted(d.name for d in host.blas.half_kernels)
        self._made_for = " ".join((generator.key, *halves))
        self._tuner = None
        if tunable is not None and host.device is not None and config.autotune:
            seconds = float(config.autotune_seconds)
            self._tuner = Tuner(tunable, host.device, self._disk, events, seconds)
        self._programs: dict[str, tuple[Program, dict[str, Kernel]]] = {}
        # Of the last programs, where the disk cache knows none: for reports of misses.
        self._parts: OrderedDict[str, Mapping[str, str]] = OrderedDict()
        self._captures: dict[str, tuple[str, bool]] = {}
        self._lock = threading.RLock()
        wait_before_fork(self._lock)
        # All that are still in use, for reports.
        self.executables: weakref.WeakSet[Executable] = weakref.WeakSet()

    def compile(self, graph: Graph, capture: str | None = None) -> Executable:
        """The Executable of a Graph. Raises CompilerBug, or Unschedulable for what no Program says.

        ``capture`` (``frontend.capture_key``): the key under which ``restore`` is to find it.
        """
        number = next(_graph_numbers)
        timings = Timings(self._spans)
        self._events.emit(E.CompileStarted(number, len(graph.nodes), len(graph.inputs)))
        with self._spans.span("compile", f"graph {number}", nodes=len(graph.nodes)):
            with self._lock:
                with timings.stage("key"):
                    parts = self._key_parts(graph)
                    key = combine(parts) if parts is not None else None
                found = self._lookup(key, parts, timings)
                if found is None:
                    found = self._build(number, graph, key, parts, timings)
                if capture is not None and key is not None:
                    self._store_capture(capture, key, may_report_errors(graph))
            return self._finish(number, *found, timings)

    def restore(self, capture: str, nodes: int, inputs: int) -> tuple[Executable, bool] | None:
        """The Executable of the Graph that was compiled with this ``capture``, and whether a kernel of
        it may report errors; None where there was none. (``nodes`` and ``inputs`` are for reports.)
        """
        timings = Timings(self._spans)
        with self._spans.span("compile", "restore") as span:
            with self._lock:
                with timings.stage("key"):
                    entry = self._load_capture(self._capture_key(capture))
                found = self._lookup(entry[0], None, timings) if entry is not None else None
            if entry is None or found is None:
                return None
            number = next(_graph_numbers)
            span.note(graph=number)
            self._events.emit(E.CompileStarted(number, nodes, inputs))
            return self._finish(number, *found, timings), entry[1]

    def bytes_used(self) -> dict[str, int]:
        """Bytes that its programs took for results and temporaries, so far."""
        outputs, arenas = self._host.outputs, self._host.arenas
        return {
            "output_bytes_allocated": outputs.allocated_bytes,
            "output_bytes_recycled": outputs.recycled_bytes,
            "arena_bytes_allocated": arenas.allocated_bytes,
            "arena_bytes_recycled": arenas.recycled_bytes,
        }

    def _finish(
        self, number: int, program: Program, kernels: dict[str, Kernel], timings: Timings
    ) -> Executable:
        fallbacks = self._report_fallbacks(program)
        self._report_sparse(program)
        self._report_decisions(number, program)
        with timings.stage("bind"):
            executable = Executable(
                program, kernels, self._host, name=f"graph {number}", tuner=self._tuner
            )
            self.executables.add(executable)
        seconds = tuple(timings.seconds.items())
        self._events.emit(
            E.CompileFinished(
                number,
                seconds,
                timings.made,
                timings.reused,
                fallbacks,
                sum(isinstance(s, KernelStep) for s in program.steps),
            )
        )
        return executable

    # --- the cache --------------------------------------------------------------------------------

    def _key_parts(self, graph: Graph) -> dict[str, str] | None:
        try:
            return key_parts(graph, self._made_for, self._config)
        except NotCacheable:
            return None

    def _lookup(
        self, key: str | None, parts: Mapping[str, str] | None, timings: Timings
    ) -> tuple[Program, dict[str, Kernel]] | None:
        if key is None or self._config.trace:
            return None
        found = self._programs.get(key)
        if found is not None:
            self._events.emit(E.CacheHit("memory", "programs", key))
            timings.reused += len(found[1])
            return found
        is_last = not self._disk.is_readable
        reason = self._why_missed(key, parts) if is_last and parts is not None else ""
        self._events.emit(E.CacheMiss("memory", "programs", key, reason, is_last))
        with timings.stage("load"):
            entry = self._disk.load("programs", key, parts)
            if entry is None:
                return None
            try:
                objects = {n.removeprefix("object "): data for n, data in entry.parts.items()}
                program, refs = load_program(
                    {n: d for n, d in entry.parts.items() if not n.startswith("object ")}
                )
                kernels = self._kernels.restore(refs, objects, timings)
            except (CacheCorrupt, KeyError):
                return None
            if self._tuner is not None and self._waits_for_tuning(self._tuner, program, kernels):
                return None  # what is loaded has no nests to make other kernels of
        self._programs[key] = (program, kernels)
        return program, kernels

    def _why_missed(self, key: str, parts: Mapping[str, str]) -> str:
        """What differs from the nearest program of this process."""
        reason = ""
        if self._events.reporting:
            reason = why_missed(parts, [*self._parts.values()])
        self._parts[key] = parts
        if len(self._parts) > _MOST_PARTS:
            self._parts.popitem(last=False)
        return reason

    def _waits_for_tuning(
        self, tuner: Tuner, program: Program, kernels: Mapping[str, Kernel]
    ) -> bool:
        """Whether it is not known which is the fastest of some kernel. (The dense kernel of a product with a
        sparse weight has no turn before the weight is dense.)"""
        run = [s.nest for s in program.steps if isinstance(s, KernelStep) and not _is_sparse(s)]
        return any(tuner.winner(kernels[nest]) is None for nest in run)

    def _capture_key(self, capture: str) -> str:
        return combine(capture_parts(capture, self._made_for, self._config))

    def _load_capture(self, key: str) -> tuple[str, bool] | None:
        found = self._captures.get(key)
        if found is not None:
            self._events.emit(E.CacheHit("memory", "captures", key))
            return found
        self._events.emit(E.CacheMiss("memory", "captures", key))
        entry = self._disk.load("captures", key)
        if entry is None:
            return None
        program, may_fail = entry.header.get("program"), entry.header.get("may_report_errors")
        if not isinstance(program, str) or not isinstance(may_fail, bool):
            return None
        self._captures[key] = program, may_fail
        return program, may_fail

    def _store_capture(self, capture: str, program: str, may_fail: bool) -> None:
        key = self._capture_key(capture)
        if key not in self._captures:
            self._captures[key] = program, may_fail
            header = {"program": program, "may_report_errors": may_fail}
            self._disk.store("captures", key, header, {})

    def _store(
        self, key: str, parts: Mapping[str, str], program: Program, refs: Mapping[str, Ref]
    ) -> None:
        try:
            data = dump_program(program, refs)
        except NotCacheable:
            return
        data |= {f"object {k}": self._kernels.object_code(ref) for k, ref in refs.items()}
        self._disk.store("programs", key, {"key_parts": dict(parts)}, data)

    # --- passes, schedule, code -------------------------------------------------------------------

    def _build(
        self,
        number: int,
        graph: Graph,
        key: str | None,
        parts: Mapping[str, str] | None,
        timings: Timings,
    ) -> tuple[Program, dict[str, Kernel]]:
        with timings.stage("passes"):
            graph = self._run_passes(number, graph)
        with timings.stage("schedule"):
            program = self._schedule(graph)
        if self._shows_texts:
            self._events.emit(E.Artifact(number, "program.txt", print_program(program)))
            for name, source in program.kernel_sources().items():
                self._trace_kernel(number, name, source)
        try:
            try:
                kernels, refs = self._kernels.make(program.kernel_sources(), timings)
            except MissingPackage as missing:
                text = f"{missing} Products with such weights are dense meanwhile."
                warnings.warn(text, MissingPackageWarning, stacklevel=2)
                program = without_sparse_contractions(program, f"{missing.what} is not installed")
                kernels, refs = self._kernels.make(program.kernel_sources(), timings)
        except MissingPackageWarning:  # where warnings are errors
            raise
        except CodeNotLoaded:
            self._report_sparse(program)
            self._report_decisions(number, program)
            raise
        except Exception as error:
            raise CompilerBug("code generation", error) from error
        if key is not None and parts is not None:
            with timings.stage("store"):
                self._programs[key] = (program, kernels)
                self._store(key, parts, program, refs)
        return program, kernels

    def _trace_kernel(self, number: int, name: str, source: KernelSource) -> None:
        stem = f"kernel-{name[:16]}"
        self._events.emit(E.Artifact(number, f"{stem}.nest", source_text(source)))
        code = self._kernels.generate(source, stem.replace("-", "_"))
        suffix = "cu" if code.is_cuda else self._generator.suffix
        self._events.emit(E.Artifact(number, f"{stem}.{suffix}", code.text))

    @property
    def _shows_texts(self) -> bool:
        """Whether somebody reads IR and code."""
        return bool(self._config.trace) or self._config.debug >= 3

    def _run_passes(self, number: int, graph: Graph) -> Graph:
        if self._shows_texts:
            self._events.emit(E.Artifact(number, "00-captured.txt", print_graph(graph)))
        try:
            if self._config.verify:
                verify_graph(graph)
            passes = pipeline(
                self._keeps,
                self._generator.has_products,
                self._generator.product_costs,
                self._config.disabled_passes,
                cast(AttentionKernel, self._config.attention),
                frozenset(self._host.blas.half_kernels),
            )
            results = run_passes(graph, passes, self._config.verify)
        except PassFailed as failure:
            cause = failure.__cause__
            assert cause is not None
            raise CompilerBug(f"pass {failure.name}", cause) from cause
        before = len(graph.nodes)
        for k, result in enumerate(results, 1):
            if self._shows_texts:
                name = f"{k:02}-{result.name}.txt"
                self._events.emit(E.Artifact(number, name, print_graph(result.graph)))
            if self._events.listening:
                after = len(result.graph.nodes)
                self._events.emit(E.PassFinished(result.name, result.seconds, before, after))
                before = after
        return results[-1].graph

    def _schedule(self, graph: Graph) -> Program:
        layout = "layout" not in self._config.disabled_passes
        program = schedule(graph, self._config.fusion, layout, self._device, self._keeps)
        kernels = self._generator.sparse_products
        if self._config.pack_weights and self._generator.has_products:
            program = choose_sparse_contractions(program, graph, kernels)
        elif self._config.pack_weights:
            program = choose_sparse_kernels(program, graph, kernels)
        program = choose_tiled_products(
            program,
            cast(Gemm, self._config.gemm),
            self._generator.product_tile,
            self._generator.prefers_library,
        )
        if "row_tiles" not in self._config.disabled_passes and not self._generator.has_products:
            program = find_row_tiles(program, cast(AttentionKernel, self._config.attention))
        if self._config.verify:
            try:
                for nest in program.nests.values():
                    verify_nest(nest)
                verify_program(program)
            except Exception as error:
                raise CompilerBug("schedule", error) from error
        return program

    def _report_fallbacks(self, program: Program) -> int:
        count = 0
        for step in program.steps:
            if isinstance(step, EagerStep) and step.is_fallback:
                count += 1
                op, _, line = step.comment.partition(" ")
                self._events.emit(E.Fallback(op or step.target, step.reason, line))
        return count

    def _report_sparse(self, program: Program) -> None:
        for step in program.steps:
            if not isinstance(step, GemmStep | KernelStep) or step.sparse is None:
                continue
            found = step.sparse
            if isinstance(found, SparseFactor):
                is_used, shape = found.is_used, found.sizes
            else:
                assert isinstance(step, GemmStep)
                is_used, shape = found.kernel is not None, (step.m, step.n, step.k)
            sizes = tuple(map(str, shape))
            self._events.emit(
                E.SparseProduct(found.sparsity, sizes, is_used, found.reason, step.comment)
            )

    def _report_decisions(self, number: int, program: Program) -> None:
        if not self._events.listening:
            return
        for d in program.decisions:
            if d.by == "attention":
                self._events.emit(E.AttentionChosen(d.what, d.why, d.line))
            else:
                self._events.emit(E.Decided(graph=number, **asdict(d)))


def _is_sparse(step: KernelStep) -> bool:
    return step.sparse is not None and step.sparse.is_used


def device_of(graph: Graph) -> str:
    """The device of a Graph's tensors: of the first input that has one, else of the results."""
    for node in (*graph.inputs, *(o.value for o in graph.outputs)):
        if isinstance(node, Node) and isinstance(node.type, TensorType):
            return node.type.device
    return "cpu"


def may_report_errors(graph: Graph) -> bool:
    """Whether a kernel of the Graph can set an error bit: a checked index, an integer division."""
    for node in graph.nodes:
        if isinstance(node.attrs, A.GatherAttrs | A.ScatterAttrs) and node.attrs.checked:
            return True
        if node.op in ("floor_div", "trunc_div", "rem", "mod") and not node.dtype.is_float:
            return True
    return False
