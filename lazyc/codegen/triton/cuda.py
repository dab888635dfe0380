"""Kernels for an NVIDIA GPU, from text to machine code."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import triton

from lazyc.codegen.base import KernelCode, LaunchedKernel, LaunchRef, Ref
from lazyc.codegen.gpu_target import GpuTarget
from lazyc.codegen.triton.compile import Compiled, compile_kernel
from lazyc.codegen.triton.kernel import generate
from lazyc.errors import CodeNotLoaded
from lazyc.ir.loops import LoopNest

_LENGTH = struct.Struct("<I")  # of the header, in front of it


class CudaGenerator:
    """A ``Generator`` for one architecture. It compiles on any machine."""

    keeps_code = True
    has_products = True
    suffix = "py"

    def __init__(self, target: GpuTarget) -> None:
        self._target = target

    @property
    def key(self) -> str:
        return f"{self._target.key()}|triton {triton.__version__}"

    def generate(self, nest: LoopNest, symbol: str) -> KernelCode:
        return generate(nest, symbol)

    def compile(self, code: KernelCode) -> bytes:
        """A cubin, and in front of it what a launch must know."""
        assert isinstance(code.ref, LaunchRef)
        return _packed(compile_kernel(code, self._target))

    def load(self, objects: Mapping[Ref, bytes]) -> dict[str, LaunchedKernel]:
        if not objects:
            return {}
        raise CodeNotLoaded(
            f"code for {self._target.name} was compiled, and lazyc cannot run it yet; it is in the disk cache"
        )


def _packed(made: Compiled) -> bytes:
    header = json.dumps(
        {
            "shared_bytes": made.shared_bytes,
            "registers": made.registers,
            "local_bytes": made.local_bytes,
        }
    ).encode()
    return _LENGTH.pack(len(header)) + header + made.cubin
