"""Runs one math function over arrays, for its tests and its benchmark."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np

from lazyc.codegen.llvm.math import MathFunction, arity, emit, native_lanes, resolve
from lazyc.codegen.target import Target
from lazyc.ir.types import DType

_LLVM = {DType.F32: "float", DType.F64: "double"}


@dataclass(frozen=True)
class ArrayFunction:
    """A math function compiled as a loop over arrays whose length is a multiple of ``lanes``."""

    lanes: int
    address: int
    engine: llvm.ExecutionEngine  # owns the code
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
define void @run(ptr noalias %out, {params}, i64 %n, i64 %rounds) {{
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


def compile_module(text: str, target: Target) -> tuple[llvm.ExecutionEngine, str]:
    """Optimises and loads a module; returns the owner of the code and its assembly."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3
    )
    module = llvm.parse_assembly(text)
    module.verify()
    for declared in module.functions:
        if declared.is_declaration and not declared.name.startswith("llvm."):
            llvm.add_symbol(declared.name, resolve(declared.name))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    assembly = machine.emit_assembly(module)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, assembly


def array_function(
    name: str, target: Target, dtype: DType = DType.F32, lanes: int | None = None
) -> ArrayFunction:
    """Compiles ``name`` as a loop over arrays of ``dtype``, ``lanes`` (default: native) at once."""
    width = native_lanes(dtype, target) if lanes is None else lanes
    function = emit(name, dtype, width, target)
    loop = loop_text(function.symbol, _LLVM[dtype], width, arity(name))
    engine, assembly = compile_module(module_text(function, loop), target)
    return ArrayFunction(width, engine.get_function_address("run"), engine, assembly)
