"""What a code generator may assume about an NVIDIA GPU, by its compute capability."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lazyc.errors import ConfigError

# NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities", table of technical specifications.
_SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# How tensor cores are driven: by a warp, by four warps, or through memory of their own.
TensorCores = Literal["mma", "wgmma", "tcgen05"]
_TENSOR_CORES: dict[int, TensorCores] = {90: "wgmma", 100: "tcgen05"}


@dataclass(frozen=True, slots=True)
class GpuTarget:
    """One architecture. ``arch``: compute capability times ten (90 for sm_90). ``shared_bytes``: most
    shared memory that a block may take; ``registers``: of a multiprocessor, 32 bits each, of which a
    thread may have ``thread_registers``; ``vector_bytes``: the widest load of a thread."""

    arch: int
    shared_bytes: int
    tensor_cores: TensorCores
    registers: int = 65536
    thread_registers: int = 255
    vector_bytes: int = 16
    warp: int = 32

    @property
    def name(self) -> str:
        return f"sm_{self.arch}"

    def key(self) -> str:
        return f"cuda|{self.name}"


def gpu_target(name: str) -> GpuTarget:
    """The target of a name like "cuda:sm_90" or "sm_90". Raises ConfigError."""
    found = re.fullmatch(r"(?:cuda:)?sm_(\d+)", name)
    arch = int(found[1]) if found else 0
    if arch not in _SHARED_KIB:
        known = ", ".join(f"cuda:sm_{a}" for a in _SHARED_KIB)
        raise ConfigError(f"target {name!r}: lazyc knows {known}.")
    return GpuTarget(arch, _SHARED_KIB[arch] << 10, _TENSOR_CORES.get(arch, "mma"))
