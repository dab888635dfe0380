"""Pauses Python's cycle collector.

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

_lock = threading.Lock()
_pauses = 0
_resume = False


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
