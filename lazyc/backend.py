"""``torch.compile(model, backend="lazyc")``: the entry point, and what happens when lazyc cannot.

A graph that lazyc does not take runs in eager and is counted. A bug of lazyc's, or an installation
that it cannot work with, costs one warning and runs in eager too, or (strict) raises. Options come
from the environment and from ``torch.compile(options={...})``.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from lazyc import collector
from lazyc.config import AttentionKernel, Config
from lazyc.errors import (
    CodeNotLoaded,
    CompilerBug,
    CompilerBugWarning,
    ConfigError,
    LazycWarning,
    NewShape,
    UnsupportedVersion,
)
from lazyc.forks import renew_in_child
from lazyc.report import events as E
from lazyc.report.metrics import Gauges, Metrics
from lazyc.report.spans import Spans
from lazyc.report.text import printer, writer
from lazyc.report.trace import TraceWriter
from lazyc.version import check_versions

if TYPE_CHECKING:
    import sympy

    from lazyc.codegen.base import Generator, TunableGenerator
    from lazyc.codegen.gpu_target import Float32Products
    from lazyc.compiler import Compiler
    from lazyc.frontend.autograd import GraphKind, Part
    from lazyc.frontend.recompute import Recompute
    from lazyc.ir.graph import Graph
    from lazyc.recording.recompiles import Difference
    from lazyc.recording.recorder import Recorder
    from lazyc.runtime.device import CudaGpu
    from lazyc.runtime.program import Executable
    from lazyc.variants import Room

Boxed: TypeAlias = Callable[[list[Any]], Sequence[Any]]

# Dynamo is not to trace lazyc itself, which would have it compile while it compiles.
_OWN = "a call of lazyc's own"

EVENTS = E.EventStream()
SPANS = Spans()


def lazyc(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    options: dict[str, Any] | None = None,
    **_: Any,
) -> Callable[..., Any]:
    """The Dynamo backend.

    ``options`` are those of ``docs/configuration.md``, over the environment's. Raises ConfigError for
    an unknown option or a bad value.
    """
    config = Config.from_env().with_options(options or {})
    _SESSION.report_as(config)
    try:
        check_versions()
    except UnsupportedVersion as error:
        if config.strict:
            raise
        warnings.warn(str(error), LazycWarning, stacklevel=2)
        return gm.forward
    # These need a torch that check_versions accepts.
    from lazyc.frontend.autograd import AotBackend
    from lazyc.frontend.dynamo_spans import leave_out_spans
    from lazyc.frontend.recompiles import recompile
    from lazyc.frontend.shapes import SizePolicy, size_policies, specialize
    from lazyc.variants import for_new_shape

    leave_out_spans()
    again = recompile(gm)
    new_shape = None
    if again is not None and again.is_of_shape:
        new_shape = NewShape(again.changed, again.line, again.fix)
        if config.on_new_shape in ("error", "eager"):  # which need no tracing
            return for_new_shape(
                config.on_new_shape, new_shape, lambda: gm.forward, gm.forward, EVENTS
            )
    policies = size_policies(gm, example_inputs, SizePolicy(config.shapes, config.bucket_sizes))
    specialize(gm, example_inputs, policies)
    rooms = {symbol: p.room for symbol, p in policies.items() if p.shapes == "bucket"}
    compile_graph = functools.partial(_compile_graph, config, rooms, new_shape)
    import_failed = functools.partial(_import_failed, config)
    device = _device_of(gm.graph.find_nodes(op="placeholder"))
    has_products = _has_gpu_code(config, device)
    attention = cast(AttentionKernel, config.attention)
    recompute = _recompute(attention, has_products)
    if config.lazy:
        from lazyc.recording.regions import make_lazy_backend

        recorder = _SESSION.recorder(config)
        backend = make_lazy_backend(
            compile_graph,
            import_failed,
            _left_to_eager,
            recorder,
            EVENTS,
            has_products,
            recompute,
            attention,
            "its sizes are rounded up to buckets" if rooms else "",
        )
    else:
        # What was compiled before is for any size.
        restore = _restore_nothing if rooms else functools.partial(_restore, config)
        backend = AotBackend(
            compile_graph,
            import_failed,
            restore,
            _left_to_eager,
            has_products,
            recompute,
            attention,
        )
    with collector.paused(), SPANS.span("compile", "frontend", nodes=len(gm.graph.nodes)):
        compiled = backend(gm, example_inputs)
    if EVENTS.listening and again is not None:
        spent = time.time() - again.started
        EVENTS.emit(E.Recompiled(again.line, again.changed, again.fix, again.count, spent))
    return compiled


def _least_half_bytes() -> dict[torch.dtype, int]:
    """Of scores of half types that are computed again on the CPU."""
    from lazyc.ir.types import DType
    from lazyc.passes.half_products import least_bytes
    from lazyc.runtime.half_tiles import find_half_kernels
    from lazyc.runtime.threads import torch_library

    packed = find_half_kernels(torch_library())
    halves = {torch.float16: DType.F16, torch.bfloat16: DType.BF16}
    return {dtype: least_bytes(ours, packed) for dtype, ours in halves.items()}


class Session:
    """The compilers of this process, one for each Config and device; they share events, spans and metrics."""

    def __init__(self, events: E.EventStream, spans: Spans) -> None:
        self._events = events
        self._spans = spans
        self._compilers: dict[tuple[Config, str, Float32Products], Compiler] = {}
        self._recorders: dict[Config, Recorder] = {}
        self._printing: dict[str, tuple[int, Callable[[], None]]] = {}
        self._tracing: set[str] = set()
        self._lock = threading.Lock()
        renew_in_child(self)

    def report_as(self, config: Config) -> None:
        """Prints and writes what ``config`` asks for from now on: once to a file, at the highest level that
        anybody asked for."""
        if not config.debug and not config.trace:
            return
        with self._lock:
            level, stop = self._printing.get(config.debug_file, (0, None))
            if config.debug > level:
                if stop is not None:
                    stop()
                else:
                    write = writer(config)
                    atexit.register(lambda: write(METRICS.report()))
                listener = self._events.subscribe(printer(config))
                self._printing[config.debug_file] = config.debug, listener
            if config.trace and config.trace not in self._tracing:
                self._tracing.add(config.trace)
                self._events.subscribe(TraceWriter(Path(config.trace)))

    def compiler(self, config: Config, device: str = "cpu") -> Compiler:
        """The compiler for a Config and the device of its tensors, made on first use. Raises CodeNotLoaded
        for a device that lazyc has no code for. Compilers for GPUs multiply f32 as torch is set to now."""
        from lazyc.compiler import Compiler
        from lazyc.runtime.host import create_host

        with self._lock:
            float32 = _float32_products() if _has_gpu_code(config, device) else "ieee"
            found = self._compilers.get((config, device, float32))
            if found is None:
                place = None if device == "cpu" else _gpu(device)
                tunable = None if place is None else _gpu_generator(place, float32)
                generator = tunable or _generator(config.target, float32)
                pool = config.output_pool_mb << 20
                host = create_host(
                    pool, self._spans, self._events, place, config.cuda_graphs, _cache_bytes(config)
                )
                found = Compiler(config, generator, host, self._events, self._spans, tunable)
                self._compilers[config, device, float32] = found
            return found

    def recorder(self, config: Config) -> Recorder:
        """The Recorder for a Config, made on first use."""
        from lazyc.recording.recorder import Recorder

        with self._lock:
            found = self._recorders.get(config)
            if found is None:
                found = self._recorders[config] = Recorder(
                    functools.partial(_compile_joined, config),
                    self._events,
                    self._spans,
                    config.lazy_max_operators,
                    config.lazy_max_mb << 20,
                )
            return found

    def compilers(self) -> list[Compiler]:
        """Those made so far."""
        with self._lock:
            return list(self._compilers.values())

    def recorders(self) -> list[Recorder]:
        """Those made so far."""
        with self._lock:
            return list(self._recorders.values())

    def flush(self, cause: E.Cause) -> None:
        """Runs all that waits in any Recorder."""
        for recorder in list(self._recorders.values()):
            recorder.flush_all(cause)

    def bytes_used(self) -> Counter[str]:
        """Bytes of outputs and arenas since the process began, for metrics."""
        used: Counter[str] = Counter()
        for compiler in self.compilers():
            used.update(compiler.bytes_used())
        return used

    def flushes(self) -> Counter[str]:
        """Runs of recorded work since the process began, by cause, for metrics."""
        # Copies, each made in one step: another thread may count just now.
        return sum((Counter(dict(r.flushes)) for r in self.recorders()), Counter[str]())

    def flushed(self) -> int:
        """Recorded operators that ran since the process began, for metrics."""
        return sum(recorder.flushed for recorder in self.recorders())

    def pending_peak(self) -> dict[str, int]:
        """The most that waited in any one Recorder, for metrics."""
        peaks = [recorder.peak for recorder in self.recorders()]
        return {
            "pending_peak_operators": max((p.operators for p in peaks), default=0),
            "pending_peak_bytes": max((p.nbytes for p in peaks), default=0),
        }

    def restart_peaks(self) -> None:
        for recorder in self.recorders():
            recorder.restart_peak()


# ``torch.compile`` imports this module after Dynamo, and before it traces the first function.
if "torch._dynamo" in sys.modules:
    collector.relax_while_dynamo_compiles(sys.modules["torch._dynamo"].callback_handler)
_SESSION = Session(EVENTS, SPANS)
METRICS = Metrics(
    Gauges(
        bytes_used=_SESSION.bytes_used,
        flushes=_SESSION.flushes,
        flushed=_SESSION.flushed,
        peaks=_SESSION.pending_peak,
        restart_peaks=_SESSION.restart_peaks,
    )
)
EVENTS.subscribe(METRICS.listen, only_counts=True)
# A child process has none of the threads that native code of its parent ran on.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=functools.partial(_SESSION.flush, "fork"))


def _recompute(attention: AttentionKernel, has_products: bool) -> Recompute | None:
    """Which hand-written attention is computed again in the backward pass."""
    from lazyc.frontend.recompute import BY_ROWS, IN_TILES, Recompute

    if attention == "math":
        return None
    if has_products:
        return IN_TILES
    if attention == "memory-efficient":
        return Recompute(doubles=True)
    return replace(BY_ROWS, least_half_bytes=_least_half_bytes())


def _is_gpu(target: str) -> bool:
    return target == "triton-interpret" or target.startswith("cuda:")


def _has_gpu_code(config: Config, device: str) -> bool:
    return device != "cpu" or _is_gpu(config.target)


def _float32_products() -> Float32Products:
    """What ``torch.set_float32_matmul_precision`` and ``torch.backends.cuda.matmul`` ask for."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _generator(target: str, float32: Float32Products) -> Generator:
    """What makes the kernels of a target (``Config.target``). Raises ConfigError."""
    if _is_gpu(target):
        try:
            from lazyc.codegen.triton.cuda import CudaGenerator
            from lazyc.codegen.triton.interpret import InterpretedGenerator
        except ImportError as error:
            raise ConfigError(f"target {target!r} needs the package triton: {error}") from error
        from lazyc.codegen.gpu_target import gpu_target

        is_cuda = target.startswith("cuda:")
        if is_cuda:
            return CudaGenerator(gpu_target(target, float32))
        return InterpretedGenerator(float32)
    from lazyc.codegen.llvm import LlvmGenerator
    from lazyc.codegen.target import host_target

    return LlvmGenerator(host_target(target or None))


def _cache_bytes(config: Config) -> int:
    """Of the second cache of a core of this machine."""
    from lazyc.codegen.target import host_target

    return host_target(None if _is_gpu(config.target) else config.target or None).cache_bytes[1]


def _gpu(device: str) -> CudaGpu:
    """A GPU by the name that torch has for it. Raises CodeNotLoaded for what is none."""
    from lazyc.runtime.device import CudaGpu

    found = torch.device(device)
    if found.type != "cuda" or torch.version.cuda is None:
        raise CodeNotLoaded(f"tensors on {device}, which lazyc has no code for")
    return CudaGpu(found.index or 0)


def _gpu_generator(gpu: CudaGpu, float32: Float32Products) -> TunableGenerator:
    """What makes and loads the kernels of a GPU. Raises CodeNotLoaded."""
    try:
        from lazyc.codegen.triton.cuda import CudaGenerator
    except ImportError as error:
        raise CodeNotLoaded(f"kernels for {gpu.name} need the package triton: {error}") from error
    from lazyc.codegen.gpu_target import gpu_target
    from lazyc.codegen.triton.libcuda import CudaDevice, find_libcuda

    major, minor = torch.cuda.get_device_capability(gpu.index)
    try:
        target = gpu_target(f"sm_{major}{minor}", float32)
    except ConfigError as error:
        raise CodeNotLoaded(f"{gpu.name}: {error}") from error
    return CudaGenerator(target, CudaDevice(find_libcuda(), gpu.index))


def executables() -> list[Executable]:
    """Every program of this process that is still in use."""
    return [x for compiler in _SESSION.compilers() for x in compiler.executables]


# Options of what Dynamo captures.
_ONLY_COMPILED = ("shapes", "buckets", "lazy")


@torch.compiler.disable(reason=_OWN)
@contextmanager
def lazy(**options: Any) -> Iterator[None]:
    """Records what eager code does within it, and runs it when a value is needed.

        with lazyc.lazy():
            for batch in batches:
                loss = model(batch).sum()
                loss.backward()
                optimizer.step()
                lazyc.mark_step()

    Results, gradients and states are those of eager code; random numbers too. A step that does the
    same as one before finds its program. ``options`` are those of ``docs/configuration.md``, over the
    environment's. Raises ConfigError for an unknown option or a bad value.
    """
    for name in _ONLY_COMPILED:
        if name in options:
            raise ConfigError(
                f"lazyc.lazy() has no option {name!r}: what it records is compiled for the sizes that it has."
                " torch.compile has it."
            )
    config = Config.from_env().with_options(options)
    _SESSION.report_as(config)
    try:
        check_versions()
    except UnsupportedVersion as error:
        if config.strict:
            raise
        warnings.warn(str(error), LazycWarning, stacklevel=3)
        yield
        return
    from lazyc.recording.mode import recording

    attention = cast(AttentionKernel, config.attention)
    with recording(_SESSION.recorder(config), functools.partial(_report, config), attention):
        yield


@torch.compiler.disable(reason=_OWN)
def mark_step() -> None:
    """Runs all recorded work that somebody can still ask for."""
    _SESSION.flush("mark_step")


def _restore_nothing(capture: str, gm: torch.fx.GraphModule, arguments: Sequence[Any]) -> None:
    return None


def _restore(
    config: Config, capture: str, gm: torch.fx.GraphModule, arguments: Sequence[Any]
) -> Boxed | None:
    from lazyc.frontend.autograd import run_in_eager

    try:
        inputs = gm.graph.find_nodes(op="placeholder")
        compiler = _SESSION.compiler(config, _device_of(inputs))
        found = compiler.restore(capture, len(gm.graph.nodes), len(inputs))
    except CodeNotLoaded as error:
        EVENTS.emit(E.Fallback("graph", str(error)))
        return _fallback(run_in_eager(gm), str(error))
    except Exception as error:  # noqa: BLE001 - any failure of ours must leave the model running
        _report(config, error)
        return _fallback(run_in_eager(gm), str(error))
    if found is None:
        return None
    executable, may_fail = found
    executable.prepare(arguments)
    return _rerun_on_error(executable, run_in_eager(gm)) if may_fail else executable


def _device_of(inputs: Sequence[torch.fx.Node]) -> str:
    """The device of the first argument that is a tensor."""
    for node in inputs:
        value = node.meta.get("example_value", node.meta.get("val"))
        if isinstance(value, torch.Tensor):
            return str(value.device)
    return "cpu"


def _compile_graph(
    config: Config,
    rooms: Mapping[sympy.Symbol, Room],
    new_shape: NewShape | None,
    graph: Graph,
    gm: torch.fx.GraphModule,
    part: Part,
) -> Boxed:
    """What runs a Graph. ``rooms`` round up the values of some symbols; ``new_shape`` says what changed
    where the function was compiled for other shapes before."""
    from lazyc.frontend.autograd import run_in_eager
    from lazyc.variants import Bucketed, for_new_shape

    in_eager = run_in_eager(gm)
    if any(s.symbol in rooms for s in graph.symbols):
        policy, count = config.on_new_shape, METRICS.count_padding
        compile = functools.partial(_compile_padded, config, in_eager)
        return Bucketed(
            graph, rooms, compile, in_eager, policy, new_shape is not None, EVENTS, count
        )

    # What compiles in the background would keep arguments alive.
    arguments = () if config.on_new_shape == "background" else part.arguments

    def make() -> Boxed:
        return _compile(config, graph, in_eager, part.capture, arguments)

    return for_new_shape(config.on_new_shape, new_shape, make, in_eager, EVENTS)


def _compile_padded(
    config: Config, in_eager: Boxed, graph: Graph, rooms: Mapping[sympy.Symbol, int]
) -> Boxed:
    """What runs a Graph with symbols rounded up to ``rooms``; one for any size where there are none."""
    from lazyc.passes.pad_to_bucket import pad_to_bucket

    if rooms:
        try:
            graph = pad_to_bucket(graph, rooms)
        except Exception as error:  # noqa: BLE001 - any failure of ours must leave the model running
            _report(config, CompilerBug("pass pad_to_bucket", error))
            return in_eager
    return _compile(config, graph, in_eager)


def _compile_joined(
    config: Config, graph: Graph, in_eager: Boxed, differs: Difference | None
) -> tuple[Boxed, bool]:
    """What runs recorded work, and whether it was compiled now: not where it ``differs`` from work before in
    shapes and ``on_new_shape`` says so. Raises NewShape where that is "error"."""
    from lazyc.recording.barriers import as_line
    from lazyc.variants import for_new_shape

    new_shape = None
    if differs is not None and differs.is_of_shape:
        new_shape = NewShape(differs.changed, as_line(differs.place), differs.fix)
    is_compiled = new_shape is None or config.on_new_shape == "compile"
    make = functools.partial(_compile, config, graph, in_eager)
    with collector.paused() if is_compiled else nullcontext():
        run = for_new_shape(config.on_new_shape, new_shape, make, in_eager, EVENTS)
    return run, is_compiled


def _compile(
    config: Config,
    graph: Graph,
    in_eager: Boxed,
    capture: str | None = None,
    arguments: Sequence[Any] = (),
) -> Boxed:
    """What runs a Graph: a compiled program, or ``in_eager`` where there can be none. ``arguments``: those of
    its first call, if known."""
    from lazyc.compiler import device_of, may_report_errors
    from lazyc.passes.plan import Unschedulable

    try:
        executable = _SESSION.compiler(config, device_of(graph)).compile(graph, capture)
        executable.prepare(arguments)
    except (Unschedulable, CodeNotLoaded) as error:
        EVENTS.emit(E.Fallback("graph", str(error)))
        return _fallback(in_eager, str(error))
    except Exception as error:  # noqa: BLE001 - any failure of ours must leave the model running
        _report(config, error)
        return _fallback(in_eager, str(error))
    return _rerun_on_error(executable, in_eager) if may_report_errors(graph) else executable


def _rerun_on_error(executable: Boxed, in_eager: Boxed) -> Boxed:
    """In eager again where a kernel reports an error, such as an index out of range: eager raises its
    own error for it."""
    from lazyc.runtime.runner import KernelError

    again = _fallback(in_eager, "a kernel reported an error")

    def call(args: list[Any]) -> Sequence[Any]:
        kept = list(args)
        try:
            return executable(args)
        except KernelError:
            return again(kept)

    return call


def _fallback(in_eager: Boxed, reason: str) -> Boxed:
    """A whole graph in eager, as a span."""

    def call(args: list[Any]) -> Sequence[Any]:
        with SPANS.span("fallback", "graph", reason=reason):
            return in_eager(args)

    return call


def _import_failed(
    config: Config, error: Exception, gm: torch.fx.GraphModule, kind: GraphKind
) -> Boxed:
    from lazyc.frontend.autograd import run_in_eager
    from lazyc.frontend.fx_import import Unsupported

    if isinstance(error, Unsupported):
        EVENTS.emit(E.Fallback("graph", str(error)))
    else:
        _report(config, error)
    return _fallback(run_in_eager(gm), str(error))


def _left_to_eager(op: str, reason: str, line: str) -> None:
    EVENTS.emit(E.Fallback(op, reason, line))


def _report(config: Config, error: Exception) -> None:
    """Warns of a bug; raises CompilerBug where the Config is strict."""
    bug = error if isinstance(error, CompilerBug) else CompilerBug("compilation", error)
    if config.strict:
        raise bug from bug.cause
    EVENTS.emit(E.CompilerBugFound(bug.stage, bug.op, bug.line, str(bug)))
    warnings.warn(str(bug), CompilerBugWarning, stacklevel=2)
