"""What every Program of a device shares: the native driver, BLAS, threads, and memory pools."""

from __future__ import annotations

from ctypes import CDLL
from dataclasses import dataclass

from lazyc.report.events import EventStream
from lazyc.report.spans import Spans
from lazyc.runtime.device import Device, DeviceArenas, DeviceOutputs
from lazyc.runtime.driver import Driver, build_driver
from lazyc.runtime.library import Blas, find_blas
from lazyc.runtime.memory import ArenaPool
from lazyc.runtime.outputs import OutputPool
from lazyc.runtime.threads import ThreadCount, find_openmp, torch_library


@dataclass(frozen=True, slots=True)
class Host:
    """Made once (``create_host``) and passed to each Executable. ``spans``: who watches them; ``events``:
    who is told of weights that are packed, and of what runs by blocks of rows. ``cache_bytes``: of a core's
    second cache. ``device``: where tensors are, None for the CPU. ``cuda_graphs``: calls that can be are replayed from CUDA graphs."""

    driver: Driver
    blas: Blas
    threads: ThreadCount
    arenas: ArenaPool | DeviceArenas
    outputs: OutputPool | DeviceOutputs
    spans: Spans
    events: EventStream
    library: CDLL | None  # torch's
    cache_bytes: int
    device: Device | None = None
    cuda_graphs: bool = False


def create_host(
    output_pool_bytes: int = 512 << 20,
    spans: Spans | None = None,
    events: EventStream | None = None,
    device: Device | None = None,
    cuda_graphs: bool = False,
    cache_bytes: int = 1 << 20,
) -> Host:
    """Finds torch's libraries and compiles the driver. ``output_pool_bytes``: see OutputPool;
    ``spans`` and ``events``: default, those that nobody else has; ``device``: where tensors are, if not on
    the CPU; ``cuda_graphs``, ``cache_bytes``: as in Host."""
    library = torch_library()
    openmp = find_openmp(library)
    return Host(
        driver=build_driver(openmp),
        blas=find_blas(library),
        threads=ThreadCount(library, openmp),
        arenas=ArenaPool() if device is None else DeviceArenas(device),
        outputs=(
            OutputPool(max_bytes=output_pool_bytes) if device is None else DeviceOutputs(device)
        ),
        spans=Spans() if spans is None else spans,
        events=EventStream() if events is None else events,
        library=library,
        cache_bytes=cache_bytes,
        device=device,
        cuda_graphs=cuda_graphs,
    )
