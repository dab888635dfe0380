"""Products of half types by oneDNN's micro kernels, and the code that copies their factors in the order that they take.

torch exports the kernels that its own flash attention calls: ``brgemm(m, n, k, lda, ldb, ldc, adds, a, b, c, packed)``
with a[m, k] by rows, and b[k, n] with pairs of rows interleaved, which is how AMX reads it:

    b by rows    k0n0 k0n1 ...  /  k1n0 k1n1 ...        packed    k0n0 k1n0 k0n1 k1n1 ...

They make code for each set of sizes at its first use, on each thread, and leave the tile registers configured until
they are released, which others that use AMX, MKL for one, must not find. ``could_pack`` says whether this CPU has
tiles for a type, and that oneDNN is not switched off (``torch.backends.mkldnn``), which may be so at any call.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm
import torch

from lazyc.ir.types import DType
from lazyc.runtime.threads import symbol_address

_SPACE = "_ZN2at6native7cpublas"
# c10::ScalarType, which could_pack takes, and the mangled name of that type as the factors of brgemm.
_TYPES = {DType.F16: (5, "4HalfE"), DType.BF16: (15, "8BFloat16E")}


@dataclass(frozen=True, slots=True)
class HalfKernel:
    """Addresses of brgemm for one type, and of what is called before and after; ``scalar_type`` is torch's number
    of the type."""

    multiply: int
    release: int
    could_pack: int
    scalar_type: int

    @property
    def is_usable(self) -> bool:
        """Whether this CPU has tiles for it and oneDNN is switched on, which the driver asks at each call."""
        function = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_int8)(self.could_pack)
        return bool(function(self.scalar_type))


def find_half_kernels(library: ctypes.CDLL | None) -> dict[DType, HalfKernel]:
    """The kernels that ``library`` (libtorch_cpu) exports; those of a type that this CPU has no tiles for are left out.
    The same at any time of a process, whether oneDNN is switched on or not."""
    release = symbol_address(library, f"{_SPACE}14brgemm_releaseEb")
    could_pack = symbol_address(library, f"{_SPACE}10could_packEN3c1010ScalarTypeE")
    found: dict[DType, HalfKernel] = {}
    for dtype, (number, name) in _TYPES.items():
        multiply = symbol_address(library, f"{_SPACE}6brgemmEllllllbPKN3c10{name}S5_Pfb")
        if multiply and release and could_pack:
            found[dtype] = HalfKernel(multiply, release, could_pack, number)
    before = torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(True)
        return {dtype: kernel for dtype, kernel in found.items() if kernel.is_usable}
    finally:
        torch._C._set_mkldnn_enabled(before)


@dataclass(frozen=True, slots=True)
class Copies:
    """Addresses of the code that copies factors: ``f(from, ld, k, n, to)``.

    ``by_rows`` and ``by_columns`` pack b[k, n], k even, which is stored so. ``transposed`` writes [n, k] by rows
    from [k, n] by rows: an a that is stored by columns.
    """

    by_rows: int
    by_columns: int
    transposed: int


# Never dropped: tables hold addresses of their code. Two threads may both make the first.
_engines: list[object] = []


@cache
def build_copies() -> Copies:
    """Compiles the code for this CPU."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=2, jit=True
    )
    module = llvm.parse_assembly(_COPIES_IR)
    module.verify()
    # use_lmm: code and constants together, as in codegen.llvm.loader.
    engine = llvm.create_mcjit_compiler(module, machine, use_lmm=True)
    engine.finalize_object()
    names = ("by_rows", "by_columns", "transposed")
    by_rows, by_columns, transposed = map(engine.get_function_address, names)
    _engines.append((engine, machine))
    return Copies(by_rows, by_columns, transposed)


_PAIRS = ", ".join(f"i32 {k // 2 + 32 * (k % 2)}" for k in range(64))
_LANES = ", ".join(f"i64 {k}" for k in range(16))
_COPIES_IR = rf"""
declare <16 x i32> @llvm.masked.gather.v16i32.v16p0(<16 x ptr>, i32, <16 x i1>, <16 x i32>)

; to[k / 2][n][2] from rows k and k + 1
define void @by_rows(ptr %from, i64 %ld, i64 %k, i64 %n, ptr %to) {{
entry:
  %whole = and i64 %n, -32
  br label %rows
rows:
  %i = phi i64 [ 0, %entry ], [ %i2, %following ]
  %more = icmp ult i64 %i, %k
  br i1 %more, label %open, label %done
open:
  %at = mul i64 %i, %ld
  %p0 = getelementptr i16, ptr %from, i64 %at
  %p1 = getelementptr i16, ptr %p0, i64 %ld
  %out = mul i64 %i, %n
  %q = getelementptr i16, ptr %to, i64 %out
  br label %vectors
vectors:
  %j = phi i64 [ 0, %open ], [ %j32, %vector ]
  %fits = icmp ult i64 %j, %whole
  br i1 %fits, label %vector, label %ones
vector:
  %a = getelementptr i16, ptr %p0, i64 %j
  %b = getelementptr i16, ptr %p1, i64 %j
  %va = load <32 x i16>, ptr %a, align 2
  %vb = load <32 x i16>, ptr %b, align 2
  %v = shufflevector <32 x i16> %va, <32 x i16> %vb, <64 x i32> <{_PAIRS}>
  %jj = shl i64 %j, 1
  %c = getelementptr i16, ptr %q, i64 %jj
  store <64 x i16> %v, ptr %c, align 2
  %j32 = add i64 %j, 32
  br label %vectors
ones:
  %o = phi i64 [ %j, %vectors ], [ %o1, %one ]
  %left = icmp ult i64 %o, %n
  br i1 %left, label %one, label %following
one:
  %a1 = getelementptr i16, ptr %p0, i64 %o
  %b1 = getelementptr i16, ptr %p1, i64 %o
  %x = load i16, ptr %a1
  %y = load i16, ptr %b1
  %oo = shl i64 %o, 1
  %c1 = getelementptr i16, ptr %q, i64 %oo
  %d1 = getelementptr i16, ptr %c1, i64 1
  store i16 %x, ptr %c1
  store i16 %y, ptr %d1
  %o1 = add i64 %o, 1
  br label %ones
following:
  %i2 = add i64 %i, 2
  br label %rows
done:
  ret void
}}

; to[k / 2][n][2] from columns: pairs are next to each other
define void @by_columns(ptr %from, i64 %ld, i64 %k, i64 %n, ptr %to) {{
entry:
  %whole = and i64 %n, -16
  %ld0 = insertelement <16 x i64> poison, i64 %ld, i32 0
  %lds = shufflevector <16 x i64> %ld0, <16 x i64> poison, <16 x i32> zeroinitializer
  %steps = mul <16 x i64> %lds, <{_LANES}>
  br label %groups
groups:
  %j = phi i64 [ 0, %entry ], [ %j16, %group ]
  %fits = icmp ult i64 %j, %whole
  br i1 %fits, label %open, label %ones
open:
  %at = mul i64 %j, %ld
  %p = getelementptr i16, ptr %from, i64 %at
  br label %vectors
vectors:
  %i = phi i64 [ 0, %open ], [ %i2, %vector ]
  %more = icmp ult i64 %i, %k
  br i1 %more, label %vector, label %group
vector:
  %pi = getelementptr i16, ptr %p, i64 %i
  %ps = getelementptr i16, ptr %pi, <16 x i64> %steps
  %v = call <16 x i32> @llvm.masked.gather.v16i32.v16p0(<16 x ptr> %ps, i32 2, <16 x i1> splat (i1 true), <16 x i32> poison)
  %half = lshr i64 %i, 1
  %row = mul i64 %half, %n
  %place = add i64 %row, %j
  %q = getelementptr i32, ptr %to, i64 %place
  store <16 x i32> %v, ptr %q, align 2
  %i2 = add i64 %i, 2
  br label %vectors
group:
  %j16 = add i64 %j, 16
  br label %groups
ones:
  %o = phi i64 [ %j, %groups ], [ %o1, %next ]
  %left = icmp ult i64 %o, %n
  br i1 %left, label %column, label %done
column:
  %ato = mul i64 %o, %ld
  %po = getelementptr i16, ptr %from, i64 %ato
  br label %pairs
pairs:
  %l = phi i64 [ 0, %column ], [ %l2, %pair ]
  %morel = icmp ult i64 %l, %k
  br i1 %morel, label %pair, label %next
pair:
  %pl = getelementptr i16, ptr %po, i64 %l
  %x = load i32, ptr %pl, align 2
  %halfl = lshr i64 %l, 1
  %rowl = mul i64 %halfl, %n
  %placel = add i64 %rowl, %o
  %ql = getelementptr i32, ptr %to, i64 %placel
  store i32 %x, ptr %ql, align 2
  %l2 = add i64 %l, 2
  br label %pairs
next:
  %o1 = add i64 %o, 1
  br label %ones
done:
  ret void
}}

; to[n][k] from [k][n]
define void @transposed(ptr %from, i64 %ld, i64 %k, i64 %n, ptr %to) {{
entry:
  br label %columns
columns:
  %j = phi i64 [ 0, %entry ], [ %j1, %next ]
  %more = icmp ult i64 %j, %n
  br i1 %more, label %open, label %done
open:
  %p = getelementptr i16, ptr %from, i64 %j
  %out = mul i64 %j, %k
  %q = getelementptr i16, ptr %to, i64 %out
  br label %rows
rows:
  %i = phi i64 [ 0, %open ], [ %i1, %one ]
  %left = icmp ult i64 %i, %k
  br i1 %left, label %one, label %next
one:
  %at = mul i64 %i, %ld
  %a = getelementptr i16, ptr %p, i64 %at
  %x = load i16, ptr %a
  %c = getelementptr i16, ptr %q, i64 %i
  store i16 %x, ptr %c
  %i1 = add i64 %i, 1
  br label %rows
next:
  %j1 = add i64 %j, 1
  br label %columns
done:
  ret void
}}
"""
