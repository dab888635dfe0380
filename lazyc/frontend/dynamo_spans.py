"""Leaves Dynamo's spans out of what it generates around a compiled graph.

So that profiles show how long it takes to fetch a graph's arguments ("Pregraph bytecode"), Dynamo calls two
functions before each call of the graph, profiler or not: a sixth of what calling a small graph takes. Its flag
``record_runtime_overhead`` is read when it generates that code, which is right after the backend has returned.
"""

from __future__ import annotations

from typing import Any

from torch._dynamo import config
from torch._dynamo.callback import callback_handler
from torch._guards import CompileContext


def leave_out_spans() -> None:
    """For what Dynamo compiles now on this thread, if it does. Its flag is as before when it has."""
    if CompileContext.try_get() is None or not config.record_runtime_overhead:
        return
    config.record_runtime_overhead = False
    callback_handler.register_end_callback(_put_back)


def _put_back(_: Any) -> None:
    config.record_runtime_overhead = True
    # A new list: Dynamo is going through this one.
    callback_handler.end_callbacks = [
        c for c in callback_handler.end_callbacks if c is not _put_back
    ]
