"""The pause of the cycle collector: nested, in threads, and where it was off before."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest
from torch._dynamo.callback import CallbackTrigger, CompilationCallbackHandler

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


@pytest.fixture
def handler() -> Iterator[CompilationCallbackHandler]:
    """Dynamo's way of telling of compilations, with the collector listening; thresholds are put back."""
    before = gc.get_threshold()
    handler = CompilationCallbackHandler()
    collector.relax_while_dynamo_compiles(handler)
    collector.relax_while_dynamo_compiles(handler)  # once is enough
    assert len(handler.start_callbacks) == len(handler.end_callbacks) == 1
    yield handler
    gc.set_threshold(*before)


def test_is_relaxed_while_dynamo_compiles(handler: CompilationCallbackHandler) -> None:
    gc.set_threshold(500, 7, 8)

    def fail() -> None:
        with handler.install_callbacks(CallbackTrigger.DYNAMO, "0"):
            assert gc.get_threshold() == (collector._RELAXED, 7, 8)
            raise ValueError("the function cannot be traced")

    with pytest.raises(ValueError, match="cannot be traced"):
        fail()
    assert gc.get_threshold() == (500, 7, 8)


@pytest.mark.parametrize("thresholds", [(0, 7, 8), (1_000_000, 7, 8)])
def test_stays_off_and_stays_rarer(
    handler: CompilationCallbackHandler, thresholds: tuple[int, int, int]
) -> None:
    gc.set_threshold(*thresholds)
    for _ in range(2):
        with handler.install_callbacks(CallbackTrigger.DYNAMO, "0"):
            assert gc.get_threshold() == thresholds
        assert gc.get_threshold() == thresholds


def test_thresholds_set_meanwhile_stay(handler: CompilationCallbackHandler) -> None:
    with handler.install_callbacks(CallbackTrigger.DYNAMO, "0"):
        gc.set_threshold(900, 9, 9)
    assert gc.get_threshold() == (900, 9, 9)


def test_a_model_is_compiled_with_the_collector_relaxed() -> None:
    """In a process of its own, where lazyc is found by its name alone."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["50000", "700"]


SCRIPT = """
import gc
import torch

gc.set_threshold(700, 10, 10)
compiled = torch.compile(torch.sin, backend="lazyc")

@torch._dynamo.callback.on_compile_start
def look(args):
    print(gc.get_threshold()[0])

compiled(torch.ones(3))
print(gc.get_threshold()[0])
"""
