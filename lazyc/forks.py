"""What lets a child process of fork() go on where threads of its parent were at work.

The child has the memory of its parent but, of its threads, only the one that forked. A lock that another
thread held stays locked there for good, and what it was doing stays half done. So the fork waits for
compilations (LLVM keeps state of its own) and for weights that are being packed, which takes seconds at most;
locks that are held for a moment, around something that Python does in one step, are new ones in the child.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_PLAIN = type(threading.Lock())
_waited_for: weakref.WeakSet[Any] = weakref.WeakSet()
_held: list[Any] = []
_renewing: weakref.WeakSet[Any] = weakref.WeakSet()
_tasks: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def wait_before_fork(lock: Any) -> None:
    """A fork waits for this RLock, and holds it: what it guards is whole in the child. Whoever holds it must not
    wait for the thread that forks."""
    _waited_for.add(lock)


def join_before_fork(thread: threading.Thread) -> None:
    """A fork waits for this thread to end. It must not wait for the thread that forks."""
    _tasks.add(thread)


def renew_in_child(owner: Any) -> None:
    """``owner._lock`` is a new one in a child. ``owner`` must have weak references."""
    _renewing.add(owner)


def _before() -> None:
    for thread in list(_tasks):
        thread.join()
    for lock in list(_waited_for):
        lock.acquire()
        _held.append(lock)


def _release() -> None:
    while _held:
        _held.pop().release()


def _in_child() -> None:
    for owner in list(_renewing):
        is_plain = isinstance(owner._lock, _PLAIN)
        owner._lock = threading.Lock() if is_plain else threading.RLock()
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_in_child)
