"""What a code generator may assume about an NVIDIA GPU, by its compute capability."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lazyc.codegen.product_costs import ProductCosts
from lazyc.errors import ConfigError

# How f32 is multiplied: exactly, or by tensor cores that take 10 bits of each factor's mantissa (NVIDIA, "NVIDIA A100
# Tensor Core GPU Architecture", 2020, TF32).
Float32Products = Literal["ieee", "tf32"]
# How tensor cores are driven: by a warp, by four warps, or through memory of their own.
TensorCores = Literal["mma", "wgmma", "tcgen05"]
_LANES = 32  # that load in one clock of a multiprocessor
_LAUNCH_SECONDS = 3e-6
_CACHE = 3  # times as fast as memory is what multiprocessors share as a cache, roughly


@dataclass(frozen=True, slots=True)
class _Chip:
    """``shared_kib`` and ``threads`` of a multiprocessor: NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities", table of technical
    specifications. The rest is from the data sheet of the GPU that is named: multiprocessors, GHz under
    load, operations a clock and multiprocessor in products of f16 (dense, summed in f32) and of f32
    without tensor cores, GB/s of memory. It ranks ways to compute a product, and need not be exact."""

    shared_kib: int
    multiprocessors: int
    ghz: float
    half_operations: int
    single_operations: int
    gigabytes: float
    tensor_cores: TensorCores = "mma"
    threads: int = 2048

    def product_costs(self, float32: Float32Products) -> ProductCosts:
        clocks = self.multiprocessors * self.ghz * 1e9
        # A number of 32 bits takes the place of two halves.
        single = self.half_operations // 2 if float32 == "tf32" else self.single_operations
        return ProductCosts(
            half_flops=clocks * self.half_operations,
            single_flops=clocks * single,
            bytes_per_second=self.gigabytes * 1e9,
            loads_per_second=clocks * _LANES,
            kernel_seconds=_LAUNCH_SECONDS,
        )


_CHIPS = {
    80: _Chip(163, 108, 1.41, 2048, 128, 2039),  # A100 SXM 80 GB
    86: _Chip(99, 84, 1.80, 1024, 256, 768, threads=1536),  # RTX A6000
    89: _Chip(99, 142, 2.52, 1024, 256, 864, threads=1536),  # L40S
    90: _Chip(227, 132, 1.83, 4096, 256, 3350, "wgmma"),  # H100 SXM
    100: _Chip(227, 148, 1.86, 8192, 256, 8000, "tcgen05"),  # B200
    120: _Chip(99, 170, 2.41, 512, 256, 1792, threads=1536),  # RTX 5090
}


@dataclass(frozen=True, slots=True)
class GpuTarget:
    """One architecture. ``arch``: compute capability times ten (90 for sm_90). ``shared_bytes``: most
    shared memory that a block may take; ``registers``: of a multiprocessor, 32 bits each, of which a
    thread may have ``thread_registers``; ``vector_bytes``: the widest load of a thread; ``float32``: how
    products in f32 are computed there. ``threads``: of all blocks that a multiprocessor runs at one time."""

    arch: int
    shared_bytes: int
    tensor_cores: TensorCores
    product_costs: ProductCosts
    multiprocessors: int
    threads: int
    registers: int = 65536
    thread_registers: int = 255
    vector_bytes: int = 16
    warp: int = 32
    float32: Float32Products = "ieee"

    @property
    def cache_bytes_per_second(self) -> float:
        return _CACHE * self.product_costs.bytes_per_second

    @property
    def name(self) -> str:
        return f"sm_{self.arch}"

    def key(self) -> str:
        return f"cuda|{self.name}|{self.float32}"


def gpu_target(name: str, float32: Float32Products = "ieee") -> GpuTarget:
    """The target of a name like "cuda:sm_90" or "sm_90". Raises ConfigError."""
    found = re.fullmatch(r"(?:cuda:)?sm_(\d+)", name)
    arch = int(found[1]) if found else 0
    chip = _CHIPS.get(arch)
    if chip is None:
        known = ", ".join(f"cuda:sm_{a}" for a in _CHIPS)
        raise ConfigError(f"target {name!r}: lazyc knows {known}.")
    return GpuTarget(
        arch,
        chip.shared_kib << 10,
        chip.tensor_cores,
        chip.product_costs(float32),
        chip.multiprocessors,
        chip.threads,
        float32=float32,
    )
