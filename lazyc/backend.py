"""``torch.compile(model, backend="lazyc")``: the entry point, and what happens when lazyc cannot.

A graph that lazyc does not take runs in eager and is counted. A bug of lazyc's, or an installation
that it cannot work with, costs one warning and runs in eager too, or (strict) raises. Options come
from the environment and from ``torch.compile(options={...})``.
"""

from __future__ import annotations

import functools
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from lazyc import collector
from lazyc.config import Config
from lazyc.errors import CompilerBug, CompilerBugWarning, LazycWarning, UnsupportedVersion
from lazyc.report import events as E
from lazyc.report.metrics import Metrics
from lazyc.report.text import printer
from lazyc.report.trace import TraceWriter
from lazyc.version import check_versions

if TYPE_CHECKING:
    from lazyc.compiler import Compiler
    from lazyc.frontend.autograd import GraphKind
    from lazyc.ir.graph import Graph

Boxed: TypeAlias = Callable[[list[Any]], Sequence[Any]]

EVENTS = E.EventStream()
METRICS = Metrics()
EVENTS.subscribe(METRICS.listen)


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
    try:
        check_versions()
    except UnsupportedVersion as error:
        if config.strict:
            raise
        warnings.warn(str(error), LazycWarning, stacklevel=2)
        return gm.forward
    # These need a torch that check_versions accepts.
    from lazyc.frontend.autograd import make_backend
    from lazyc.frontend.recompiles import recompile

    compile_graph = functools.partial(_compile_graph, config)
    import_failed = functools.partial(_import_failed, config)
    restore = functools.partial(_restore, config)
    backend = make_backend(compile_graph, import_failed, restore, _left_to_eager)
    with collector.paused():
        compiled = backend(gm, example_inputs)
    if EVENTS.listening and (again := recompile(gm)) is not None:
        spent = time.time() - again.started
        EVENTS.emit(E.Recompiled(again.line, again.changed, again.fix, again.count, spent))
    return compiled


class Session:
    """The compilers of this process, one for each Config; they share events and metrics."""

    def __init__(self, events: E.EventStream) -> None:
        self._events = events
        self._compilers: dict[Config, Compiler] = {}
        self._printing: set[tuple[int, str]] = set()
        self._tracing: set[str] = set()
        self._lock = threading.Lock()

    def compiler(self, config: Config) -> Compiler:
        """The compiler for a Config, made on first use."""
        from lazyc.codegen.target import host_target
        from lazyc.compiler import Compiler
        from lazyc.runtime.host import create_host

        with self._lock:
            found = self._compilers.get(config)
            if found is None:
                output = (config.debug, config.debug_file)
                if config.debug and output not in self._printing:
                    self._printing.add(output)
                    self._events.subscribe(printer(config))
                if config.trace and config.trace not in self._tracing:
                    self._tracing.add(config.trace)
                    self._events.subscribe(TraceWriter(Path(config.trace)))
                host = create_host(config.output_pool_mb << 20)
                target = host_target(config.target or None)
                found = self._compilers[config] = Compiler(config, target, host, self._events)
            return found


_SESSION = Session(EVENTS)


def _restore(config: Config, capture: str, gm: torch.fx.GraphModule) -> Boxed | None:
    try:
        inputs = len(gm.graph.find_nodes(op="placeholder"))
        found = _SESSION.compiler(config).restore(capture, len(gm.graph.nodes), inputs)
    except Exception as error:  # noqa: BLE001 - any failure of ours must leave the model running
        return _failed(config, error, gm)
    if found is None:
        return None
    executable, may_fail = found
    return _rerun_on_error(executable, gm) if may_fail else executable


def _compile_graph(
    config: Config, graph: Graph, gm: torch.fx.GraphModule, kind: GraphKind, capture: str | None
) -> Boxed:
    from lazyc.compiler import may_report_errors
    from lazyc.passes.plan import Unschedulable

    try:
        executable = _SESSION.compiler(config).compile(graph, capture)
    except Unschedulable as error:
        return _in_eager(gm, str(error))
    except Exception as error:  # noqa: BLE001 - any failure of ours must leave the model running
        return _failed(config, error, gm)
    return _rerun_on_error(executable, gm) if may_report_errors(graph) else executable


def _rerun_on_error(executable: Boxed, gm: torch.fx.GraphModule) -> Boxed:
    """In eager again where a kernel reports an error, such as an index out of range: eager raises its
    own error for it."""
    from lazyc.runtime.runner import KernelError

    def call(args: list[Any]) -> Sequence[Any]:
        kept = tuple(args)
        try:
            return executable(args)
        except KernelError:
            return gm(*kept)

    return call


def _import_failed(
    config: Config, error: Exception, gm: torch.fx.GraphModule, kind: GraphKind
) -> Boxed:
    from lazyc.frontend.fx_import import Unsupported

    if isinstance(error, Unsupported):
        return _in_eager(gm, str(error))
    return _failed(config, error, gm)


def _left_to_eager(op: str, reason: str, line: str) -> None:
    EVENTS.emit(E.Fallback(op, reason, line))


def _in_eager(gm: torch.fx.GraphModule, reason: str) -> Boxed:
    from lazyc.frontend.autograd import run_in_eager

    EVENTS.emit(E.Fallback("graph", reason))
    return run_in_eager(gm)


def _failed(config: Config, error: Exception, gm: torch.fx.GraphModule) -> Boxed:
    from lazyc.frontend.autograd import run_in_eager

    bug = error if isinstance(error, CompilerBug) else CompilerBug("compilation", error)
    if config.strict:
        raise bug from bug.cause
    EVENTS.emit(E.CompilerBugFound(bug.stage, bug.op, bug.line, str(bug)))
    warnings.warn(str(bug), CompilerBugWarning, stacklevel=2)
    return run_in_eager(gm)
