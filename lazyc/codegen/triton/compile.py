"""Compiles generated kernels to machine code for a GPU, with or without that GPU: Triton's compiler."""

# pyright: reportMissingImports=false
from __future__ import annotations

import re
import struct
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.language.extra.cuda import libdevice
from triton.runtime.jit import JITFunction

from lazyc.codegen.base import KernelCode, LaunchRef
from lazyc.codegen.gpu_target import GpuTarget
from lazyc.codegen.triton.source import load
from lazyc.ir.types import DType

_NAMES = {
    DType.BOOL: "i1", DType.U8: "u8", DType.I8: "i8", DType.I16: "i16", DType.I32: "i32",
    DType.I64: "i64", DType.F16: "fp16", DType.BF16: "bf16", DType.F32: "fp32", DType.F64: "fp64",
}  # fmt: skip
_one_at_a_time = threading.Lock()  # Triton's settings are the process's
ALIGNMENT = 16  # bytes, of every pointer that a kernel is given
# Bytes: local memory is a multiple, and so is its part for the program's own arrays.
_FRAME_STEP = 8


class PtxFacts:
    """What the ``ptx`` of a kernel shows, and ``local_bytes``, the local memory of a thread."""

    __slots__ = ()
    ptx: str
    local_bytes: int

    @property
    def array_bytes(self) -> int:
        """Local memory that the program itself asks for: arrays whose index only a run tells, such as the digits of
        2/pi that sin and cos take of a large argument (Payne and Hanek)."""
        sizes = re.findall(r"\.local\b[^;\[]*__local_depot\d+\[(\d+)\]", self.ptx)
        return sum(-(-int(size) // _FRAME_STEP) * _FRAME_STEP for size in sizes)

    @property
    def spilled_bytes(self) -> int:
        """Local memory that registers are spilled to: what the program did not ask for."""
        return max(0, self.local_bytes - self.array_bytes)

    @property
    def loads(self) -> set[str]:
        """The instructions that load from global memory."""
        return set(re.findall(r"(?:ld\.global|cp\.async)[\w.:]*", self.ptx))

    @property
    def load_bits(self) -> set[int]:
        """The widths of the loads from global memory to registers."""
        found = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d+))?\.[bfus](\d+)\b", self.ptx)
        return {int(count or 1) * int(bits) for count, bits in found}

    @property
    def copy_bits(self) -> set[int]:
        """The widths of the copies from global to shared memory that run while others are computed with."""
        pattern = r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x[0-9a-f]+|\d+)"
        return {8 * int(size, 0) for size in re.findall(pattern, self.ptx)}

    @property
    def tensor_cores(self) -> set[str]:
        """The families of tensor core instructions."""
        return set(re.findall(r"(?<![\w.])(mma\.sp|mma|wgmma|tcgen05)(?=[.:])", self.ptx))


@dataclass(frozen=True, slots=True)
class Compiled(PtxFacts):
    """Machine code of a kernel. ``warps`` and ``shared_bytes``: of a block; ``registers``: of a thread;
    ``local_bytes``: memory of a thread; ``scratch_bytes``: global memory that Triton wants for a kernel besides its
    arguments."""

    cubin: bytes
    ptx: str
    warps: int
    shared_bytes: int
    registers: int
    local_bytes: int
    scratch_bytes: int


def compile_kernel(code: KernelCode, target: GpuTarget) -> Compiled:
    """The machine code of a kernel.

    Left alone, ptxas may spill registers so that more blocks fit. It is then told how many a thread may
    have, and keeps to what fits one block.
    """
    made = _compile(code, target, {})
    if made.spilled_bytes:
        most = target.registers // (made.warps * target.warp) // 8 * 8
        again = _compile(code, target, {"maxnreg": min(most, target.thread_registers)})
        if again.spilled_bytes < made.spilled_bytes:
            return again
    return made


def _compile(code: KernelCode, target: GpuTarget, more: Mapping[str, int]) -> Compiled:
    ref = code.ref
    assert isinstance(ref, LaunchRef)
    signature = {f"b{k}": f"*{_NAMES[dtype]}" for k, dtype in enumerate(code.params)}
    signature |= {f"d{k}": "i64" for k in range(len(ref.sizes))} | {"error": "*i32"}
    aligned = {(k,): [["tt.divisibility", ALIGNMENT]] for k in range(len(code.params))}
    function = JITFunction(load(ref.symbol, code.text, libdevice))
    source = ASTSource(fn=function, signature=signature, constexprs={}, attrs=aligned)
    # Guards against overflow report in Triton's debug mode only; without it their code is made, and dropped.
    options = {"num_warps": ref.warps, "num_stages": ref.stages, "sanitize_overflow": False, **more}
    # What Triton keeps on disk by itself is of no use: lazyc's own cache keeps the result.
    folder_made = tempfile.TemporaryDirectory(prefix="lazyc-triton-")
    with _one_at_a_time, folder_made as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        made = triton.compile(source, target=GPUTarget("cuda", target.arch, 32), options=options)
        cubin, ptx, facts = made.asm["cubin"], made.asm["ptx"], made.metadata
    registers, local = resources(cubin, ref.symbol)
    scratch = facts.global_scratch_size + facts.profile_scratch_size
    return Compiled(cubin, ptx, facts.num_warps, facts.shared, registers, local, scratch)


# --- the ELF file ---------------------------------------------------------------------------------

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
_REGISTERS, _FRAME = 0x2F, 0x11  # attributes EIATTR_REGCOUNT and EIATTR_FRAME_SIZE of .nv.info


def resources(cubin: bytes, symbol: str) -> tuple[int, int]:
    """Registers of a thread, and bytes of its local memory."""
    header = _ELF_HEADER.unpack_from(cubin)
    table, size, count, names = header[6], header[11], header[12], header[13]
    sections = [_ELF_SECTION.unpack_from(cubin, table + k * size) for k in range(count)]
    found: dict[int, list[int]] = {_REGISTERS: [], _FRAME: []}
    for section in sections:
        start = sections[names][4] + section[0]
        name = cubin[start : cubin.index(b"\0", start)].decode()
        if name != ".nv.info":
            continue
        at, end = section[4], section[4] + section[5]
        while at < end:
            form, attribute, length = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if form != 4:  # the value is in the header itself
                continue
            if attribute in found and length == 8:
                found[attribute].append(struct.unpack_from("<II", cubin, at)[1])
            at += length
    return max(found[_REGISTERS], default=0), max(found[_FRAME], default=0)
