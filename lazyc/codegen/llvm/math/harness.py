"""Runs one math function over arrays, for its tests and its benchmark."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from lazyc.codegen.llvm.compile import assembly, compile_text
from lazyc.codegen.llvm.loader import Loader
from lazyc.codegen.llvm.math import MathFunction, arity, emit, native_lanes
from lazyc.codegen.target import Target
from lazyc.ir.types import DType

_LLVM = {DType.F32: "float", DType.F64: "double"}


@dataclass(frozen=True)
class ArrayFunction:
    """A math function compiled as a loop over arrays whose length is a multiple of ``lanes``."""

    lanes: int
    address: int
    loader: Loader  # owns the code
    assembly: str

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """The function of each element; any length (the end is filled up with zeros)."""
        count = len(arrays[0])
        padded = -(-count // self.lanes) * self.lanes
        full = [np.pad(a, (0, padded - count)) for a in arrays]
        out = np.empty_like(full[0])
        self.run(out, *full)
        return out[:count]

    def run(self, out: np.ndarray, *arrays: np.ndarray, rounds: int = 1) -> None:
        """Writes into ``out``; every array has the same length, a multiple of ``lanes``."""
        pointers = [a.ctypes.data for a in (out, *arrays)]
        types = [ctypes.c_void_p] * len(pointers)
        function = ctypes.CFUNCTYPE(None, *types, ctypes.c_int64, ctypes.c_int64)(self.address)
        function(*pointers, len(out), rounds)


def module_text(function: MathFunction, main: str) -> str:
    """A module of one math function and what calls it."""
    helpers = (h.text for h in function.helpers)
    return "\n".join([*function.declares, *helpers, function.text, main])


def loop_text(symbol: str, kind: str, lanes: int, inputs: int) -> str:
    """``void run(out, in..., n, rounds)``: ``rounds`` passes over arrays of n elements."""
    vector = kind if lanes == 1 else f"<{lanes} x {kind}>"
    align = 4 if kind == "float" else 8
    params = ", ".join(f"ptr noalias %p{k}" for k in range(inputs))
    loads = "\n".join(
        f"  %q{k} = getelementptr {kind}, ptr %p{k}, i64 %i\n"
        f"  %x{k} = load {vector}, ptr %q{k}, align {align}"
        for k in range(inputs)
    )
    args = ", ".join(f"{vector} %x{k}" for k in range(inputs))
    return f"""
define void @run(ptr noalias %out, {params}, i64 %n, i64 %rounds) alignstack(64) {{
entry:
  br label %outer
outer:
  %round = phi i64 [ 0, %entry ], [ %round_next, %outer_end ]
  br label %loop
loop:
  %i = phi i64 [ 0, %outer ], [ %i_next, %loop ]
{loads}
  %y = call {vector} @{symbol}({args})
  %q = getelementptr {kind}, ptr %out, i64 %i
  store {vector} %y, ptr %q, align {align}
  %i_next = add i64 %i, {lanes}
  %more = icmp slt i64 %i_next, %n
  br i1 %more, label %loop, label %outer_end
outer_end:
  %round_next = add i64 %round, 1
  %again = icmp slt i64 %round_next, %rounds
  br i1 %again, label %outer, label %exit
exit:
  ret void
}}"""


def array_function(
    name: str, target: Target, dtype: DType = DType.F32, lanes: int | None = None
) -> ArrayFunction:
    """Compiles ``name`` as a loop over arrays of ``dtype``, ``lanes`` (default: native) at once."""
    width = native_lanes(dtype, target) if lanes is None else lanes
    function = emit(name, dtype, width, target)
    loop = loop_text(function.symbol, _LLVM[dtype], width, arity(name))
    text = module_text(function, loop)
    loader = Loader(target)
    loader.add([compile_text(text, target)])
    return ArrayFunction(width, loader.address("run"), loader, assembly(text, target))
