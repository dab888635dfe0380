"""Kernels for an NVIDIA GPU, from text to loaded machine code."""

from __future__ import annotations

from collections.abc import Mapping

import triton

from lazyc.codegen.base import CodegenError, DeviceKernel, KernelCode, LaunchRef, Ref
from lazyc.codegen.cuda import nvrtc
from lazyc.codegen.cuda.sparse_24 import generate as generate_24
from lazyc.codegen.gpu_target import GpuTarget
from lazyc.codegen.product_costs import ProductCosts
from lazyc.codegen.triton.block_sparse import BLOCK_PRODUCTS, block_sparse_kernel
from lazyc.codegen.triton.compile import Compiled, compile_kernel
from lazyc.codegen.triton.cubin import DeviceCode
from lazyc.codegen.triton.kernel import alternatives, kernel_for
from lazyc.codegen.triton.libcuda import CudaDevice
from lazyc.errors import CodeNotLoaded
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelSource
from lazyc.ir.sparse import Sparsity
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.sparse_mma import MMAS
from lazyc.ir.types import DType


def generator_key(target: GpuTarget) -> str:
    """All that machine code depends on besides its source."""
    major, minor = nvrtc.version() or ("none", "")
    return f"{target.key()}|triton {triton.__version__}|nvrtc {major}.{minor}"


_SPARSE_PRODUCTS: frozenset[tuple[Sparsity, DType]] = frozenset(
    {*BLOCK_PRODUCTS, *(("2:4", dtype) for dtype in MMAS)}
)


class CudaGenerator:
    """A ``TunableGenerator`` for one architecture. It compiles on any machine, and loads where it was given a
    ``device``."""

    keeps_code = True
    sees_edits = False  # that would have to wait for the stream
    has_products = True
    sparse_products = _SPARSE_PRODUCTS
    product_tile = None
    prefers_library = True
    suffix = "py"

    def __init__(self, target: GpuTarget, device: CudaDevice | None = None) -> None:
        self._target = target
        self._device = device

    @property
    def product_costs(self) -> ProductCosts:
        return self._target.product_costs

    @property
    def key(self) -> str:
        return generator_key(self._target)

    def generate(self, source: KernelSource, symbol: str) -> KernelCode:
        if isinstance(source, SparseContraction):
            if source.sparsity == "2:4":
                return generate_24(source, symbol, self._target)
            return block_sparse_kernel(source, symbol, self._target.float32)
        assert isinstance(source, LoopNest)
        # As in eager, a division of integers by zero is no error on a GPU.
        return kernel_for(source, symbol, self._target, reports_division=False)

    def alternatives(self, nest: LoopNest, symbol: str) -> list[KernelCode]:
        return alternatives(nest, symbol, self._target, reports_division=False)

    def compile_alternative(self, code: KernelCode) -> bytes | None:
        made = compile_kernel(code, self._target)
        fits = made.shared_bytes <= self._target.shared_bytes
        if made.spilled_bytes or made.scratch_bytes or not fits:
            return None
        return self._dump(made)

    def _dump(self, made: Compiled) -> bytes:
        return DeviceCode(self._target.arch, made.warps, made.shared_bytes, made.cubin).dump()

    def compile(self, code: KernelCode) -> bytes:
        """A ``DeviceCode``. Raises MissingPackage for CUDA C++ without its compiler."""
        if code.is_cuda:
            assert isinstance(code.ref, LaunchRef)
            cubin = nvrtc.compile_cuda(code, self._target).cubin
            return DeviceCode(self._target.arch, code.ref.warps, code.shared_bytes, cubin).dump()
        made = compile_kernel(code, self._target)
        if made.scratch_bytes:
            raise CodegenError("Triton wants memory of its own for a kernel")
        return self._dump(made)

    def load(self, objects: Mapping[Ref, bytes]) -> dict[str, DeviceKernel]:
        return {ref.symbol: self._load(ref, data) for ref, data in objects.items()}

    def _load(self, ref: Ref, data: bytes) -> DeviceKernel:
        assert isinstance(ref, LaunchRef)
        device = self._device
        if device is None:
            raise CodeNotLoaded(
                f"its kernels were compiled for {self._target.name}, and its tensors are on the CPU"
            )
        code = DeviceCode.load(data)
        function = device.load(code.cubin, ref.symbol, code.shared_bytes)
        return DeviceKernel(
            device.launcher, function, 32 * code.warps, code.shared_bytes,
            ref.programs, ref.points, ref.sizes, ref.symbol, ref.alternatives,
        )  # fmt: skip
