"""Kernels for an NVIDIA GPU, from text to machine code."""

from __future__ import annotations

from collections.abc import Mapping

import triton

from lazyc.codegen.base import KernelCode, LaunchedKernel, Ref
from lazyc.codegen.cuda import nvrtc
from lazyc.codegen.cuda.sparse_24 import generate as generate_24
from lazyc.codegen.gpu_target import GpuTarget
from lazyc.codegen.triton.block_sparse import block_sparse_kernel
from lazyc.codegen.triton.compile import compile_kernel
from lazyc.codegen.triton.kernel import generate
from lazyc.errors import CodeNotLoaded
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelSource
from lazyc.ir.sparse import BLOCKS, Sparsity
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.types import DType


class CudaGenerator:
    """A ``Generator`` for one architecture. It compiles on any machine."""

    keeps_code = True
    has_products = True
    sparse_products: frozenset[tuple[Sparsity, DType]] = frozenset(
        {
            *(("2:4", dtype) for dtype in (DType.F16, DType.BF16)),
            *((block, dtype) for block in BLOCKS for dtype in (DType.F16, DType.BF16, DType.F32)),
        }
    )
    suffix = "py"

    def __init__(self, target: GpuTarget) -> None:
        self._target = target

    @property
    def key(self) -> str:
        major, minor = nvrtc.version() or ("none", "")
        return f"{self._target.key()}|triton {triton.__version__}|nvrtc {major}.{minor}"

    def generate(self, source: KernelSource, symbol: str) -> KernelCode:
        if isinstance(source, SparseContraction):
            if source.sparsity == "2:4":
                return generate_24(source, symbol, self._target)
            return block_sparse_kernel(source, symbol)
        assert isinstance(source, LoopNest)
        return generate(source, symbol)

    def compile(self, code: KernelCode) -> bytes:
        """A cubin. Raises MissingPackage for CUDA C++ without its compiler."""
        if code.is_cuda:
            return nvrtc.compile_cuda(code, self._target).cubin
        return compile_kernel(code, self._target).cubin

    def load(self, objects: Mapping[Ref, bytes]) -> dict[str, LaunchedKernel]:
        if not objects:
            return {}
        raise CodeNotLoaded(
            f"its kernels were compiled for {self._target.name}, which lazyc cannot run yet"
        )
