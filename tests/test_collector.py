"""The pause of the cycle collector: nested, in threads, and where it was off before."""

from __future__ import annotations

import gc
import threading
import weakref

from lazyc import collector


def test_the_last_one_out_resumes() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with collector.paused():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with collector.paused():
        thread.start()
        inside.wait()
        with collector.paused():
            assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_resumes_after_an_error_and_stays_off_where_it_was() -> None:
    gc.disable()
    try:
        with collector.paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    try:
        with collector.paused():
            raise ValueError
    except ValueError:
        assert gc.isenabled()


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_what_a_pause_made_counts_as_old() -> None:
    with collector.paused():
        made = weakref.ref(Cycle())
    gc.collect(1)
    assert made() is not None
    gc.collect()
    assert made() is None


def test_what_the_process_froze_stays_frozen() -> None:
    gc.collect()
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with collector.paused():
            made = [Cycle() for _ in range(10)]
        assert gc.get_freeze_count() <= count
        assert gc.get_freeze_count() > count - 1000
        del made
    finally:
        gc.unfreeze()
