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
from collections.abc import Callable
from typing import Any

_PLAIN = type(threading.Lock())
_registry = threading.Lock()  # of the three below; held for a moment only
_waited_for: weakref.WeakSet[Any] = weakref.WeakSet()
_tasks: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_renewing: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_held: list[Any] = []


def wait_before_fork(lock: Any) -> None:
    """A fork waits for this RLock, and holds it: what it guards is whole in the child. Whoever holds it must not
    wait for the thread that forks."""
    with _registry:
        _waited_for.add(lock)


def join_before_fork(thread: threading.Thread) -> None:
    """A fork waits for this thread to end. It must not wait for the thread that forks."""
    with _registry:
        _tasks.add(thread)


def new_lock(owner: Any) -> None:
    """Gives ``owner._lock`` a new one of its kind."""
    is_plain = isinstance(owner._lock, _PLAIN)
    owner._lock = threading.Lock() if is_plain else threading.RLock()


def renew_in_child(owner: Any, renew: Callable[[Any], None] = new_lock) -> None:
    """A child calls ``renew(owner)``: a function that keeps no owner alive. ``owner`` must have weak references."""
    with _registry:
        _renewing[owner] = renew


def _before() -> None:
    with _registry:
        tasks, locks = list(_tasks), list(_waited_for)
    for thread in tasks:
        thread.join()
    for lock in locks:
        lock.acquire()
        _held.append(lock)


def _release() -> None:
    while _held:
        _held.pop().release()


def _in_child() -> None:
    global _registry
    _registry = threading.Lock()
    for owner, renew in list(_renewing.items()):
        renew(owner)
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_in_child)
