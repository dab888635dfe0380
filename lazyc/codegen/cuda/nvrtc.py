"""Compiles CUDA C++ to machine code for a GPU, with or without that GPU: NVIDIA's NVRTC.

NVRTC comes with the packages cuda-bindings and nvidia-cuda-nvrtc, which ``pip install "lazyc[cuda]"`` brings.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from lazyc.codegen.base import CodegenError, KernelCode
from lazyc.codegen.gpu_target import GpuTarget
from lazyc.codegen.triton.compile import PtxFacts, resources
from lazyc.errors import MissingPackage


@dataclass(frozen=True, slots=True)
class CompiledCuda(PtxFacts):
    """Machine code of a kernel. ``registers`` and ``local_bytes``, memory: of a thread."""

    cubin: bytes
    ptx: str
    registers: int
    local_bytes: int


@cache
def version() -> tuple[int, int] | None:
    """Of NVRTC; None where it is not installed."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError):  # no package, or no library that fits it
        return None
    return (major, minor) if status == nvrtc.nvrtcResult.NVRTC_SUCCESS else None


def compile_cuda(code: KernelCode, target: GpuTarget) -> CompiledCuda:
    """The machine code of a kernel in CUDA C++. Raises MissingPackage without NVRTC, and CodegenError with its
    messages where it refuses the text.

    Left alone, the compiler may spill registers so that more blocks fit. It is then told that one suffices.
    """
    if version() is None:
        raise MissingPackage("2:4 weights on GPUs", "NVRTC", "cuda")
    made = _compile(code, target, ())
    if made.spilled_bytes:
        again = _compile(code, target, (b"--define-macro=LEAST_BLOCKS=1",))
        if again.spilled_bytes < made.spilled_bytes:
            return again
    return made


def _compile(code: KernelCode, target: GpuTarget, more: tuple[bytes, ...]) -> CompiledCuda:
    from cuda.bindings import nvrtc

    def call(function: Any, *args: Any) -> Any:
        status, *results = function(*args)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CodegenError(f"NVRTC: {function.__name__}: {status.name}")
        return results[0] if results else None

    symbol = code.ref.symbol
    program = call(nvrtc.nvrtcCreateProgram, code.text.encode(), f"{symbol}.cu".encode(), 0, [], [])
    try:
        options = [f"--gpu-architecture={target.name}".encode(), b"--std=c++17", *more]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * call(nvrtc.nvrtcGetProgramLogSize, program)
            call(nvrtc.nvrtcGetProgramLog, program, log)
            raise CodegenError(f"NVRTC refuses {symbol} for {target.name}: {log.decode()}")
        cubin = b" " * call(nvrtc.nvrtcGetCUBINSize, program)
        call(nvrtc.nvrtcGetCUBIN, program, cubin)
        ptx = b" " * call(nvrtc.nvrtcGetPTXSize, program)
        call(nvrtc.nvrtcGetPTX, program, ptx)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    registers, local = resources(cubin, symbol)
    return CompiledCuda(cubin, ptx.decode().rstrip("\0"), registers, local)
