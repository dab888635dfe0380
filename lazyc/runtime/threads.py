"""The OpenMP runtime that torch loaded, and how many threads a call may use.

Kernels run on torch's own pool (``GOMP_parallel``), so there is never a second set of threads. GNU
OpenMP's pool does not survive ``fork()``: a child that enters a parallel region waits for threads
that do not exist. Such a child therefore runs everything on one thread, MKL included.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from lazyc.forks import renew_in_child


def torch_library() -> ctypes.CDLL | None:
    """Handle of the libtorch_cpu that this process uses; None where it is linked otherwise."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def symbol_address(library: ctypes.CDLL | None, name: str) -> int:
    """Address of an exported function, also of a library that ``library`` depends on; 0 if absent."""
    if library is None:
        return 0
    try:
        function = getattr(library, name)
    except AttributeError:
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@dataclass(frozen=True, slots=True)
class OpenMP:
    """Addresses of the entry points that the driver calls; all 0 where there is no GNU OpenMP."""

    parallel: int = 0
    thread_num: int = 0
    num_threads: int = 0

    @property
    def available(self) -> bool:
        return bool(self.parallel and self.thread_num and self.num_threads)


def find_openmp(library: ctypes.CDLL | None) -> OpenMP:
    """The OpenMP that ``library`` (torch's) is linked with: looked up through its own dependencies,
    so that a second libgomp in the process, from another package, is never taken."""
    found = OpenMP(
        symbol_address(library, "GOMP_parallel"),
        symbol_address(library, "omp_get_thread_num"),
        symbol_address(library, "omp_get_num_threads"),
    )
    return found if found.available else OpenMP()


def leave_bound_cores(library: ctypes.CDLL | None) -> None:
    """Lets the calling thread run on every core that OpenMP may use. (``OMP_PROC_BIND`` binds the main
    thread to one core, and threads that it starts inherit that.)"""
    if not hasattr(os, "sched_setaffinity") or not symbol_address(library, "omp_get_num_places"):
        return
    assert library is not None
    cores: set[int] = set()
    for place in range(library.omp_get_num_places()):
        numbers = (ctypes.c_int * library.omp_get_place_num_procs(place))()
        library.omp_get_place_proc_ids(place, numbers)
        cores.update(numbers)
    if cores:
        with suppress(OSError):
            os.sched_setaffinity(0, cores)


def _one() -> int:
    return 1


class ThreadCount:
    """How many threads a call may use: ``get()``, asked at each call.

    That is ``torch.get_num_threads()``; 1 where there is no OpenMP, and 1 in a forked child.
    """

    __slots__ = ("__weakref__", "_library", "get")

    get: Callable[[], int]

    def __init__(self, library: ctypes.CDLL | None, openmp: OpenMP) -> None:
        self._library = library
        self.get = torch.get_num_threads if openmp.available else _one
        renew_in_child(self, ThreadCount._after_fork)

    def _after_fork(self) -> None:
        self.get = _one
        if symbol_address(self._library, "MKL_Set_Num_Threads_Local"):
            assert self._library is not None
            self._library.MKL_Set_Num_Threads_Local(ctypes.c_int(1))
