"""How long a kernel is likely to run, from what one of its programs does: it ranks tiles and blocks.

Programs run in waves: as many at a time as registers, shared memory and threads of the multiprocessors
allow. A wave takes as long as the busiest of what it needs: arithmetic, traffic with the cache, the number of
loads, or the waits of each program for memory; and all of it no less than the memory's traffic. (Roofline:
S. Williams, A. Waterman and D. Patterson, CACM 52, 2009; occupancy: NVIDIA, CUDA C++ Best Practices Guide.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lazyc.codegen.gpu_target import GpuTarget

_MOST_BLOCKS = 32  # of a multiprocessor
_BLOCK_BYTES = 1 << 10  # of shared memory that every block takes
_WAIT_SECONDS = 6e-7  # for something in memory
_OVERLAP = 0.1  # share of all else that does not hide behind what takes longest
_SCHEDULERS = 4  # of a multiprocessor: with fewer warps some of its units have nothing to do


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel does. ``programs`` of ``warps``; each does ``flops`` operations, of which the target does
    ``flops_per_second``, moves ``nbytes`` by loads of ``load_bytes``, and waits ``waits`` times for memory. A
    block has ``shared_bytes``, a thread about ``registers``. ``memory_bytes``: what all read and write together
    if nothing is read twice."""

    programs: int
    warps: int
    flops: float
    flops_per_second: float
    nbytes: float
    load_bytes: int
    waits: float
    shared_bytes: int
    registers: int
    memory_bytes: float


def seconds(work: Work, target: GpuTarget) -> float | None:
    """The time of a kernel; None for one that does not fit a multiprocessor."""
    if work.shared_bytes > target.shared_bytes or work.registers > target.thread_registers:
        return None
    threads = work.warps * target.warp
    shared = (target.shared_bytes + _BLOCK_BYTES) // (work.shared_bytes + _BLOCK_BYTES)
    registers = target.registers // (threads * max(work.registers, 16))
    at_once = min(_MOST_BLOCKS, target.threads // threads, shared, registers)
    if at_once == 0:
        return None
    waves, rest = divmod(work.programs, at_once * target.multiprocessors)
    last = math.ceil(rest / target.multiprocessors)
    spent = waves * _wave(work, target, at_once) + (_wave(work, target, last) if last else 0)
    return max(spent, work.memory_bytes / target.product_costs.bytes_per_second)


def _wave(work: Work, target: GpuTarget, blocks: int) -> float:
    """Seconds of so many blocks at once on each multiprocessor."""
    costs, count = target.product_costs, target.multiprocessors
    busy = min(1.0, blocks * work.warps / _SCHEDULERS)
    parts = (
        blocks * work.flops * count / (work.flops_per_second * busy),
        blocks * work.nbytes * count / target.cache_bytes_per_second,
        blocks * work.nbytes / work.load_bytes * count / costs.loads_per_second,
        work.waits * _WAIT_SECONDS,
    )
    return max(parts) + _OVERLAP * (sum(parts) - max(parts))
