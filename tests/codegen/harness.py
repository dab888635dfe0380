"""Compiles a LoopNest, runs it on torch tensors, and builds small nests."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, TypeAlias

import torch

from lazyc.codegen.base import KernelCode, LaunchRef
from lazyc.codegen.llvm import Loader, compile_text, generate
from lazyc.codegen.target import Target
from lazyc.ir.index import Axis, Index, axis_index
from lazyc.ir.loops import BufferParam, Compute, Instr, Load, LoopNest, Stage, Store
from lazyc.ir.ops import concrete
from lazyc.ir.types import DType, dtype_from_torch
from tests.gpu import KERNELS

_FUNCTION = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.POINTER(ctypes.c_int64),
)
AnyTarget: TypeAlias = Target | Literal["triton", "cuda"]
_LOADERS: dict[Target, Loader] = {}


class Kernel:
    """A loaded kernel."""

    def __init__(self, nest: LoopNest, target: Target, name: str) -> None:
        self.nest = nest
        self.code = generate(nest, name, target)
        loader = _LOADERS.setdefault(target, Loader(target))
        loader.add([compile_text(self.code.text, target)])
        self.function = _FUNCTION(loader.address(name))

    def __call__(self, *tensors: torch.Tensor, sizes: Sequence[int] = (), pieces: int = 1) -> int:
        """Runs all items, in ``pieces`` calls; returns the error bits."""
        pointers = (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))
        values = (ctypes.c_int64 * max(1, len(sizes)))(*sizes)
        known = dict(zip(self.nest.symbols, sizes, strict=True))
        items = concrete(self.code.ref.items, known)
        error = ctypes.c_int64(0)
        for k in range(pieces):
            begin, end = items * k // pieces, items * (k + 1) // pieces
            self.function(pointers, values, begin, end, ctypes.byref(error))
        return error.value


class TritonInterpreted:
    """A kernel of the GPU's, run by Triton's interpreter; ``code``: other than the generator's."""

    def __init__(self, nest: LoopNest, name: str, code: KernelCode | None = None) -> None:
        from lazyc.codegen.triton.interpret import InterpretedGenerator

        self.nest = nest
        generator = InterpretedGenerator()
        code = generator.generate(nest, name) if code is None else code
        self.kernel = generator.load({code.ref: generator.compile(code)})[code.ref.symbol]

    def __call__(self, *tensors: torch.Tensor, sizes: Sequence[int] = (), pieces: int = 1) -> int:
        """Runs all programs of the grid (``pieces`` is for the CPU's); returns the error bits."""
        known = dict(zip(self.nest.symbols, sizes, strict=True))
        programs = concrete(self.kernel.programs, known)
        given = iter(tensors)
        memory = [
            torch.empty(
                concrete(b.numel, known) * self.kernel.points * programs, dtype=b.dtype.torch
            )
            if b.role == "scratch"
            else next(given)
            for b in self.nest.buffers
        ]
        error = torch.zeros(1, dtype=torch.int32)
        sizes = [concrete(s, known) for s in self.kernel.sizes]
        if programs:
            self.kernel.launch(programs, memory, sizes, error)
        return int(error)


@cache
def gpu() -> tuple[Any, Any, Any]:
    """The first GPU: what loads kernels, its target, and the native driver, which launches them."""
    from lazyc.codegen.gpu_target import gpu_target
    from lazyc.codegen.triton.libcuda import CudaDevice, find_libcuda
    from lazyc.runtime.driver import build_driver
    from lazyc.runtime.threads import OpenMP

    torch.cuda.init()
    major, minor = torch.cuda.get_device_capability(0)
    target = gpu_target(f"sm_{major}{minor}")
    return CudaDevice(find_libcuda(), 0), target, build_driver(OpenMP())


class OnGpu:
    """A kernel on a GPU, with an error word of its own: Programs give it none, and it would fault."""

    def __init__(self, nest: LoopNest, name: str, code: KernelCode | None = None) -> None:
        from lazyc.codegen.cuda.nvrtc import compile_cuda
        from lazyc.codegen.triton.compile import compile_kernel
        from lazyc.codegen.triton.kernel import generate as generate_triton

        self.nest = nest
        device, target, self.driver = gpu()
        code = generate_triton(nest, name) if code is None else code
        name = code.ref.symbol
        self.ref, self.launcher = code.ref, device.launcher
        assert isinstance(self.ref, LaunchRef)
        if code.is_cuda:
            cubin, warps, shared = (
                compile_cuda(code, target).cubin,
                self.ref.warps,
                code.shared_bytes,
            )
        else:
            made = compile_kernel(code, target)
            cubin, warps, shared = made.cubin, made.warps, made.shared_bytes
        self.function = device.load(cubin, name, shared)
        self.threads, self.shared_bytes = 32 * warps, shared

    def __call__(self, *tensors: torch.Tensor, sizes: Sequence[int] = (), pieces: int = 1) -> int:
        """Runs all programs of the grid on copies of the tensors' memory; returns the error bits."""
        from lazyc.runtime.driver import LITERAL, TableWriter

        known = dict(zip(self.nest.symbols, sizes, strict=True))
        programs = concrete(self.ref.programs, known)
        storages = [torch.tensor([], dtype=t.dtype).set_(t.untyped_storage()) for t in tensors]
        there = [storage.cuda() for storage in storages]
        places = [x.data_ptr() + t.storage_offset() * t.itemsize
                  for x, t in zip(there, tensors, strict=True)]  # fmt: skip
        given, scratch = iter(places), []
        addresses = []
        for b in self.nest.buffers:
            if b.role == "scratch":
                count = concrete(b.numel, known) * self.ref.points * programs
                scratch.append(torch.empty(count, dtype=b.dtype.torch, device="cuda"))
                addresses.append(scratch[-1].data_ptr())
            else:
                addresses.append(next(given))
        error = torch.zeros(1, dtype=torch.int32, device="cuda")
        literals = [*addresses, *(concrete(s, known) for s in self.ref.sizes)]
        literals += [error.data_ptr(), 0, 0]
        table = TableWriter()
        arguments = [(LITERAL, word) for word in literals]
        table.launch(
            self.launcher, self.function, programs, self.threads, self.shared_bytes, 3, arguments
        )
        table.end()
        words = table.array()
        env = (ctypes.c_int64 * (4 + table.longest))()
        env[2], env[3] = ctypes.addressof(env) + 4 * 8, torch.cuda.current_stream().cuda_stream
        status = self.driver.run(ctypes.addressof(words), ctypes.addressof(env))
        assert status == 0, f"CUDA refused the launch: {status:#x}"
        for storage, x in zip(storages, there, strict=True):
            storage.copy_(x)
        return int(error)


@cache
def kernel(nest: LoopNest, target: AnyTarget) -> Kernel | TritonInterpreted | OnGpu:
    """The kernel of a nest, compiled once a target."""
    name = f"kernel_{len(_LOADERS)}_{kernel.cache_info().currsize}"
    if target == "cuda":
        return OnGpu(nest, name)
    return TritonInterpreted(nest, name) if target == "triton" else Kernel(nest, target, name)


def launched(
    nest: LoopNest, code: KernelCode, target: Literal["triton", "cuda"] = KERNELS
) -> TritonInterpreted | OnGpu:
    """A kernel of a GPU's with this code."""
    return (OnGpu if target == "cuda" else TritonInterpreted)(nest, "", code)


def run(nest: LoopNest, target: AnyTarget, *tensors: torch.Tensor, **options: object) -> int:
    return kernel(nest, target)(*tensors, **options)  # type: ignore[arg-type]


class Body:
    """Instructions of a nest under construction; ``add`` returns the new value's id."""

    def __init__(self, first: int = 0) -> None:
        self.instrs: list[Instr] = []
        self.next = first

    def add(self, instr: type, *fields: object, **more: object) -> int:
        self.instrs.append(instr(self.next, *fields, **more))
        self.next += 1
        return self.next - 1

    def store(self, *fields: object, **more: object) -> None:
        self.instrs.append(Store(*fields, **more))  # type: ignore[arg-type]

    def stage(self, *axes: Axis) -> Stage:
        """Everything since the last stage."""
        stage = Stage(axes, tuple(self.instrs))
        self.instrs = []
        return stage


def pointwise(
    op: str, inputs: Sequence[torch.dtype], result: torch.dtype, size: int, vectorize: str = "outer"
) -> LoopNest:
    """``out[i] = op(in0[i], ...)`` over ``size`` elements; half types compute in f32."""
    axis = Axis("i", size)
    at = axis_index(axis)
    body = Body()
    new = body.add
    args: list[int] = []
    kinds = [_dtype(d) for d in inputs]
    buffers = [BufferParam(d, "in", size) for d in kinds]
    for k, dtype in enumerate(kinds):
        value = new(Load, dtype, k, at)
        if op not in ("cast", "bitcast") and dtype.compute is not dtype:
            value = new(Compute, dtype.compute, "cast", (value,))
        args.append(value)
    out = _dtype(result)
    work = out if op in ("cast", "bitcast") else out.compute
    value = new(Compute, work, op, tuple(args))
    if work is not out:
        value = new(Compute, out, "cast", (value,))
    body.store(len(kinds), at, value)
    buffers.append(BufferParam(out, "out", size))
    inner = vectorize == "inner"
    return LoopNest(
        () if inner else (axis,),
        (body.stage(axis) if inner else body.stage(),),
        tuple(buffers),
        vectorize=vectorize,  # type: ignore[arg-type]
    )


def _dtype(dtype: torch.dtype) -> DType:
    found = dtype_from_torch(dtype)
    assert found is not None
    return found


def row_major(axes: Sequence[Axis]) -> Index:
    """The flat position of a point of ``axes``."""
    total = Index(0)
    for axis in axes:
        total = total * axis.size + axis_index(axis)
    return total
