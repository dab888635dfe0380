"""fork() while other threads of the process hold locks of lazyc, compile, or pack weights."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lazyc import forks
from lazyc.backend import EVENTS, METRICS

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() on this system"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


class Owner:
    def __init__(self) -> None:
        self._lock = threading.Lock()


@contextmanager
def held_by_another_thread(lock: threading.Lock, seconds: float | None = None) -> Iterator[None]:
    """For so long, or within the block."""
    taken, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            ended.wait(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def in_child(lock_of: Owner) -> int:
    """0 if a child process can take the lock."""
    child = os.fork()
    if child == 0:
        os._exit(0 if lock_of._lock.acquire(timeout=5) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_locks_of_other_threads_are_free_in_a_child() -> None:
    plain, renewed = Owner(), Owner()
    forks.renew_in_child(renewed)
    with held_by_another_thread(renewed._lock):
        assert in_child(renewed) == 0
        assert renewed._lock.locked()  # in the parent it stays what it was
    assert in_child(plain) == 0


def test_owners_may_forget_more() -> None:
    owner = Owner()
    forks.renew_in_child(owner, lambda owner: setattr(owner, "_lock", threading.BoundedSemaphore()))
    with held_by_another_thread(owner._lock):
        assert in_child(owner) == 0
    assert isinstance(owner._lock, type(threading.Lock()))


def test_a_fork_waits_for_what_is_at_work() -> None:
    owner = Owner()
    forks.wait_before_fork(owner._lock)
    done: list[int] = []
    thread = threading.Thread(target=lambda: (ended.wait(0.2), done.append(1)))
    ended = threading.Event()
    thread.start()
    forks.join_before_fork(thread)
    with held_by_another_thread(owner._lock, seconds=0.2):
        assert in_child(owner) == 0
        assert done == [1]
    assert owner._lock.acquire(timeout=5)


def test_owners_are_not_kept() -> None:
    owner = Owner()
    forks.renew_in_child(owner)
    forks.wait_before_fork(owner._lock)
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


def test_the_process_wide_ones_are_registered() -> None:
    assert {EVENTS, METRICS} <= set(forks._renewing)


_WHILE_COMPILING = """
import os, sys, threading
import torch
import lazyc
from lazyc.passes import pipeline
from lazyc import compiler

started = threading.Event()
build = compiler.Compiler._build

def slowly(self, *args):
    started.set()
    threading.Event().wait(0.5)
    return build(self, *args)

def step(n):
    with lazyc.lazy():
        x = torch.ones(n) * 2 + 1
        return float(x.sum())

assert step(3) == 9
compiler.Compiler._build = slowly
thread = threading.Thread(target=step, args=(4,))
thread.start()
started.wait()
child = os.fork()
if child == 0:
    os._exit(0 if step(5) == 15 and step(4) == 12 else 1)
thread.join()
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


def test_a_fork_while_another_thread_compiles(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WHILE_COMPILING],
        env={**os.environ, "LAZYC_CACHE_DIR": str(tmp_path), "LAZYC_STRICT": "1"},
        timeout=120, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
