"""The pause of the cycle collector: nested, in threads, and where it was off before."""

from __future__ import annotations

import gc
import threading

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
