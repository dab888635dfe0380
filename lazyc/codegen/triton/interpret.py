"""Runs generated kernels on CPU tensors, in Triton's interpreter."""

# pyright: reportMissingImports=false
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import (
    InterpretedFunction,
    ReduceOps,
    ScanOps,
    TensorHandle,
    interpreter_builder,
)
from triton.runtime.interpreter import _get_np_dtype as _numpy_type

from lazyc.codegen.base import KernelCode, LaunchedKernel, LaunchRef, Ref
from lazyc.codegen.gpu_target import Float32Products, gpu_target
from lazyc.codegen.triton.block_sparse import BLOCK_PRODUCTS, block_sparse_kernel
from lazyc.codegen.triton.kernel import kernel_for
from lazyc.codegen.triton.source import load
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelSource
from lazyc.ir.sparse import Sparsity
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.types import DType

_STANDS_FOR = "sm_90"
# The interpreter replaces functions of the language while it runs.
_one_at_a_time = threading.RLock()


class InterpretedGenerator:
    """A ``Generator`` whose kernels are those of a GPU (``_STANDS_FOR``), run on tensors of the CPU; ``float32``: how
    products in single precision are computed there."""

    keeps_code = False
    sees_edits = True
    has_products = True
    sparse_products: frozenset[tuple[Sparsity, DType]] = BLOCK_PRODUCTS
    product_tile = None
    prefers_library = True
    suffix = "py"

    def __init__(self, float32: Float32Products = "ieee") -> None:
        target = self._target = gpu_target(_STANDS_FOR, float32)
        self._float32: Float32Products = float32
        self.product_costs = target.product_costs
        self.key = f"triton-interpret|{target.key()}|{triton.__version__}"

    def generate(self, source: KernelSource, symbol: str) -> KernelCode:
        if isinstance(source, SparseContraction):
            return block_sparse_kernel(source, symbol, self._float32)
        assert isinstance(source, LoopNest)
        return kernel_for(source, symbol, self._target)

    def compile(self, code: KernelCode) -> bytes:
        return code.text.encode()

    def load(self, objects: Mapping[Ref, bytes]) -> dict[str, LaunchedKernel]:
        return {ref.symbol: _loaded(ref, text.decode()) for ref, text in objects.items()}


def _loaded(ref: Ref, text: str) -> LaunchedKernel:
    assert isinstance(ref, LaunchRef)
    function = InterpretedFunction(load(ref.symbol, text, _Libdevice()))

    def launch(
        programs: int, memory: Sequence[torch.Tensor], sizes: Sequence[int], error: torch.Tensor
    ) -> None:
        with _one_at_a_time, np.errstate(all="ignore"), _amended():
            function[programs,](*memory, *sizes, error)

    return LaunchedKernel(launch, ref.programs, ref.points, ref.sizes)


@contextmanager
def _amended() -> Iterator[None]:
    """The interpreter with conversions as the hardware has them (its own cut off what does not fit bf16,
    and take bf16 for an integer where another type is wanted), and with reductions and scans by functions
    that it does not know computed for all lanes at once (its own take a call for each element)."""
    with ExitStack() as stack:
        for name in _CONVERSIONS:
            stack.enter_context(patch.object(interpreter_builder, name, _convert))
        stack.enter_context(patch.object(interpreter_builder, "create_dot", _dot))
        stack.enter_context(patch.object(ReduceOps, "generic_reduce", _reduce))
        stack.enter_context(patch.object(ScanOps, "generic_scan", _scan))
        yield


def _dot(a: Any, b: Any, total: Any, precision: Any, most_inexact: Any) -> TensorHandle:
    """A product of tiles, added to ``total`` (f32, or i32 for bytes)."""
    left, right = (_values(x) for x in (a, b))
    if precision == ir.INPUT_PRECISION.TF32:
        left, right = (_cut_to_tf32(x) for x in (left, right))
    product = np.matmul(left, right, dtype=total.data.dtype)
    return TensorHandle(product + total.data, total.dtype.scalar)


def _cut_to_tf32(x: Any) -> Any:
    """What tensor cores take of f32: 10 bits of its mantissa, the others cut off."""
    if x.dtype != np.float32:
        return x
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _values(x: Any) -> Any:
    """The elements of a handle as numpy knows them: bf16 is bits there."""
    if x.dtype.scalar != tl.bfloat16:
        return x.data
    bits = torch.from_numpy(np.ascontiguousarray(x.data).view(np.int16))
    return bits.view(torch.bfloat16).float().numpy()


def _reduce(ops: Any, given: Any) -> list[Any]:
    """By halves, as the lanes of a warp do it."""
    (x,) = given
    left = x.handle.data
    while (size := left.shape[ops.axis]) > 1:
        halves = (ops.to_tensor(h, x.dtype) for h in np.split(left, [size // 2], ops.axis))
        left = ops.combine_fn.fn(*halves).handle.data
    kept = left if ops.keep_dims else np.squeeze(left, ops.axis)
    return [ops.to_tensor(kept, x.dtype)]


def _scan(ops: Any, given: Any) -> list[Any]:
    """Step i adds what is 2**i elements before (W. D. Hillis and G. L. Steele, "Data parallel
    algorithms", CACM 29, 1986)."""
    (x,) = given
    data, step = x.handle.data, 1
    while step < data.shape[ops.axis]:
        first = np.split(data, [step], ops.axis)[0]
        before = np.split(data, [data.shape[ops.axis] - step], ops.axis)[0]
        shifted = np.concatenate([first, before], ops.axis)  # sizes stay powers of two
        both = (ops.to_tensor(v, x.dtype) for v in (shifted, data))
        combined = np.split(ops.combine_fn.fn(*both).handle.data, [step], ops.axis)[1]
        data = np.concatenate([first, combined], ops.axis)
        step *= 2
    return [ops.to_tensor(data, x.dtype)]


_CONVERSIONS = (
    "create_si_to_fp", "create_ui_to_fp", "create_fp_to_si", "create_fp_to_ui", "create_fp_ext",
    "create_fp_trunc", "create_fp_to_fp",
)  # fmt: skip


def _convert(source: Any, to: Any, *options: Any) -> TensorHandle:
    data = _values(source)
    if to.scalar == tl.bfloat16:
        rounded = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
    return TensorHandle(data.astype(_numpy_type(to)), to.scalar)


class _Libdevice:
    """NVIDIA's libdevice for the interpreter, by torch's functions in double precision."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function, wide = _FUNCTIONS[name]

        def call(*args: Any) -> Any:
            given = np.broadcast_arrays(*(a.handle.data for a in args))
            tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in given]
            dtype = tensors[0].dtype
            made = function(*(t.double() for t in tensors) if wide else tensors)
            dtype_of_result = args[0].dtype
            data = made.to(dtype).numpy()
            block = tl.block_type(dtype_of_result, list(data.shape))
            return tl.tensor(TensorHandle(data, dtype_of_result), block)

        return call


_FUNCTIONS: dict[str, tuple[Callable[..., torch.Tensor], bool]] = {
    **{
        name: (getattr(torch, name), True)
        for name in (
            "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin",
            "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc",
            "lgamma", "atan2", "hypot", "rsqrt", "pow",
        )
    },
    **{name: (getattr(torch, name), False) for name in ("copysign", "nextafter", "trunc", "floor", "ceil", "fmod")},
    "rint": (torch.round, False),
}  # fmt: skip
