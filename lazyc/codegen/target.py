"""What a code generator may assume about the machine: instruction set, vector width, cache sizes."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

from lazyc.codegen.product_costs import ProductCosts
from lazyc.errors import ConfigError

# What each x86 target adds to the one before it; "baseline" is what every x86-64 CPU has.
_AVX2 = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi", "bmi2",
         "lzcnt", "movbe")  # fmt: skip
_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_NEEDED = {"avx512": (*_AVX2, *_AVX512), "avx2": _AVX2, "baseline": ()}
_VECTOR_BYTES = {"avx512": 64, "avx2": 32, "baseline": 16}
_AMD = ("znver", "bdver", "btver", "amdfam", "k8")  # how LLVM's names of AMD's CPUs begin
_DEFAULT_CACHE_BYTES = (32 << 10, 1 << 20)


@dataclass(frozen=True, slots=True)
class Target:
    """One CPU as the code generator sees it.

    ``name`` is "avx512", "avx2" or "baseline" (SSE2 on x86-64, NEON on aarch64). ``features`` is
    LLVM's feature string: the host's features cut down to the named set. ``vector_bytes`` is the size
    of a vector register, ``cache_bytes`` the sizes of the L1 data and the L2 cache. ``suits_mkl``: MKL has
    kernels made for this CPU.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    cache_bytes: tuple[int, int]
    suits_mkl: bool = True

    def has(self, feature: str) -> bool:
        """Whether LLVM may use an x86 feature such as "f16c"."""
        return f"+{feature}" in self.features.split(",")

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith("x86_64")

    @property
    def has_fma(self) -> bool:
        """``llvm.fma`` is an instruction (else: a slow call of libm)."""
        return self.has("fma") if self.is_x86 else True

    @property
    def has_rounding(self) -> bool:
        """floor, ceil, trunc and roundeven are instructions."""
        return self.has("sse4.1") if self.is_x86 else True

    @property
    def has_half(self) -> bool:
        """Conversions between f16 and f32 are instructions."""
        return self.has("f16c") if self.is_x86 else True

    @property
    def registers(self) -> int:
        """Number of vector registers."""
        return 16 if self.name in ("avx2", "baseline") and self.is_x86 else 32

    @property
    def product_costs(self) -> ProductCosts:
        """That the width of loads makes no difference to products here: MKL and oneDNN copy factors into
        tiles of their own before they multiply, wherever rows begin (``python -m bench padding``: with
        padding 0.97 to 1.02 of the speed, but for a single row in bf16)."""
        return ProductCosts(half_flops=math.inf, single_flops=math.inf, bytes_per_second=math.inf)

    def key(self) -> str:
        """Everything that generated code depends on, as text for the cache key."""
        caches = ",".join(map(str, self.cache_bytes))
        library = "mkl" if self.suits_mkl else ""
        return "|".join((self.name, self.triple, self.cpu, self.features, caches, library))


def available_targets() -> tuple[str, ...]:
    """The target names that this machine can run, best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ("baseline",)
    features = llvm.get_host_cpu_features()
    return tuple(
        name for name, needed in _NEEDED.items() if all(features.get(f, False) for f in needed)
    )


@cache
def host_target(force: str | None = None) -> Target:
    """The best target that this machine has, or the one named ``force``.

    Raises ConfigError when the machine cannot run ``force``.
    """
    names = available_targets()
    if force and force not in names:
        raise ConfigError(f"target {force!r}: this machine runs {', '.join(names)}.")
    name = force or names[0]
    suits_mkl = not llvm.get_host_cpu_name().startswith(_AMD)
    triple = llvm.get_process_triple()
    caches = _cache_bytes()
    if not triple.startswith("x86_64"):
        features = llvm.get_host_cpu_features().flatten()
        return Target(name, triple, llvm.get_host_cpu_name(), features, 16, caches)
    if name == "avx512":
        # The whole host, and vectors of 512 bits whatever the CPU's own preference.
        features = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"
        return Target(name, triple, llvm.get_host_cpu_name(), features, 64, caches, suits_mkl)
    # Below the host: a plain CPU plus just the features that the name stands for.
    features = ",".join(f"+{f}" for f in _NEEDED[name])
    return Target(name, triple, "x86-64", features, _VECTOR_BYTES[name], caches, suits_mkl)


def _cache_bytes() -> tuple[int, int]:
    """Sizes of the L1 data and L2 cache as the kernel reports them, else common ones."""
    found: dict[int, int] = dict(zip((1, 2), _DEFAULT_CACHE_BYTES, strict=True))
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level = int((index / "level").read_text())
            kind = (index / "type").read_text().strip()
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if level in found and kind in ("Data", "Unified") and size.endswith("K"):
            found[level] = int(size[:-1]) << 10
    return found[1], found[2]
