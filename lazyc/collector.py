"""Pauses Python's cycle collector, or has it run less often.

A compilation makes hundreds of thousands of objects that live on, beside the millions that torch and
the model already have. The collector looks through all of them each time, which takes a tenth of a
first call. What was made during a pause then counts as old: else the first thing to happen after it
is a look through everything.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_RELAXED = 50_000  # objects made and not freed between collections; Python's own figure is 700
_lock = threading.Lock()
_pauses = 0
_resume = False
_thresholds: tuple[int, int, int] | None = None  # those that are to come back


@contextmanager
def paused() -> Iterator[None]:
    """No collection in any thread until the last one that entered has left."""
    global _pauses, _resume
    with _lock:
        if _pauses == 0:
            _resume = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _resume:
                _count_as_old()
                gc.enable()


def _count_as_old() -> None:
    """Puts all objects into the oldest generation, unless the process keeps some frozen."""
    if gc.get_freeze_count() == 0:
        gc.freeze()
        gc.unfreeze()


def relax_while_dynamo_compiles(handler: Any) -> None:
    """Has the collector look for garbage less often while Dynamo traces a function, which comes before the
    backend that is to compile it is known; ``handler`` is Dynamo's of callbacks. It is not paused: other backends
    take minutes."""
    if _relax not in handler.start_callbacks:
        handler.register_start_callback(_relax)
        handler.register_end_callback(_tighten)


def _relax(_: object) -> None:
    global _thresholds
    thresholds = gc.get_threshold()
    if 0 < thresholds[0] < _RELAXED:  # 0: it is off
        _thresholds = thresholds
        gc.set_threshold(_RELAXED, *thresholds[1:])


def _tighten(_: object) -> None:
    global _thresholds
    before, _thresholds = _thresholds, None
    if before is not None and gc.get_threshold()[0] == _RELAXED:  # else somebody has set others
        gc.set_threshold(*before)
