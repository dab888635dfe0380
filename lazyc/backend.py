"""``torch.compile(model, backend="lazyc")``: the entry point, and what happens when lazyc fails.

A graph that lazyc cannot take, or that a bug stops, runs in eager: with one warning, or (strict) by
raising. Options come from the environment and from ``torch.compile(options={...})``.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lazyc.compiler import Compiler, may_report_errors
from lazyc.config import Config
from lazyc.errors import CompilerBug, CompilerBugWarning
from lazyc.frontend.autograd import GraphKind, make_backend, run_in_eager
from lazyc.frontend.fx_import import Unsupported
from lazyc.ir.graph import Graph
from lazyc.passes.plan import Unschedulable
from lazyc.report import events as E
from lazyc.report.metrics import Metrics
from lazyc.runtime.runner import KernelError

EVENTS = E.EventStream()
METRICS = Metrics()
EVENTS.subscribe(METRICS.listen)


class Session:
    """The compilers of this process, one for each Config."""

    def __init__(self) -> None:
        self._compilers: dict[Config, Compiler] = {}
        self._lock = threading.Lock()

    def compiler(self, config: Config) -> Compiler:
        from lazyc.codegen.target import host_target
        from lazyc.runtime.host import create_host

        with self._lock:
            found = self._compilers.get(config)
            if found is None:
                host = create_host(config.output_pool_mb << 20)
                found = Compiler(config, host_target(config.target or None), host, EVENTS)
                self._compilers[config] = found
            return found


SESSION = Session()


def lazyc(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    options: dict[str, Any] | None = None,
    **_: Any,
) -> Callable[..., Any]:
    """The Dynamo backend. Raises ConfigError for unknown options or values."""
    config = Config.from_env().with_options(options or {})
    compile_graph = functools.partial(_compile_graph, config)
    import_failed = functools.partial(_import_failed, config)
    return make_backend(compile_graph, import_failed)(gm, example_inputs)


def _compile_graph(
    config: Config, graph: Graph, gm: torch.fx.GraphModule, kind: GraphKind
) -> Callable[[list[Any]], Sequence[Any]]:
    try:
        executable = SESSION.compiler(config).compile(graph)
    except Unschedulable as error:
        return _in_eager(gm, str(error))
    except Exception as error:  # noqa: BLE001 - any failure of ours must leave the model running
        return _failed(config, error, gm)
    if not may_report_errors(graph):
        return executable

    def call(args: list[Any]) -> Sequence[Any]:
        kept = tuple(args)
        try:
            return executable(args)
        except KernelError:
            return gm(*kept)

    return call


def _import_failed(
    config: Config, error: Exception, gm: torch.fx.GraphModule, kind: GraphKind
) -> Callable[[list[Any]], Sequence[Any]]:
    if isinstance(error, Unsupported):
        return _in_eager(gm, str(error))
    return _failed(config, error, gm)


def _in_eager(gm: torch.fx.GraphModule, reason: str) -> Callable[[list[Any]], Sequence[Any]]:
    EVENTS.emit(E.Fallback("graph", reason))
    return run_in_eager(gm)


def _failed(
    config: Config, error: Exception, gm: torch.fx.GraphModule
) -> Callable[[list[Any]], Sequence[Any]]:
    bug = error if isinstance(error, CompilerBug) else CompilerBug("compilation", error)
    if config.strict:
        raise bug from bug.cause
    EVENTS.emit(E.CompilerBugFound(bug.stage, bug.op, bug.line, str(bug)))
    warnings.warn(str(bug), CompilerBugWarning, stacklevel=2)
    return run_in_eager(gm)
