"""Speed and accuracy of the vector math functions.

    python -m bench.math [--target avx512] [--dtype f32] [function ...]

One thread over an array that stays in the L1 cache; the best of several runs. Cycles are those of
a chain of dependent instructions timed beside it. The error is over random bit patterns and a dense
grid, against float64.
"""

from __future__ import annotations

import argparse
import ctypes
import time

import numpy as np

from lazyc.codegen.llvm.compile import compile_text
from lazyc.codegen.llvm.loader import Loader
from lazyc.codegen.llvm.math import BOUNDS, arity
from lazyc.codegen.llvm.math.harness import ArrayFunction, array_function
from lazyc.codegen.llvm.math.reference import max_ulp, sample
from lazyc.codegen.target import Target, available_targets, host_target
from lazyc.ir.types import DType

ELEMENTS = 2048
_CHAIN = """
define i64 @chain(i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
  %x = phi i64 [ %n, %entry ], [ %y, %loop ]
  %y = mul i64 %x, %x
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %n
  br i1 %more, label %loop, label %exit
exit:
  ret i64 %y
}"""
MULTIPLY_LATENCY = 3  # cycles of a dependent 64-bit multiplication on every x86 CPU of this decade


def clock_rate(target: Target) -> float:
    """Cycles a nanosecond of the running core."""
    loader = Loader(target)
    loader.add([compile_text(_CHAIN, target)])
    chain = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(loader.address("chain"))
    count, best = 1_000_000, float("inf")
    for _ in range(10):
        start = time.thread_time_ns()
        chain(count)
        best = min(best, time.thread_time_ns() - start)
    return count * MULTIPLY_LATENCY / best


def aligned_arrays(count: int, kind: type[np.floating]) -> list[np.ndarray]:
    """Arrays of ELEMENTS numbers that start at multiples of 64 bytes, so that no vector crosses a
    cache line, and 1 KiB apart modulo 4 KiB, so that no load seems to depend on a store before it.
    """
    size = ELEMENTS * np.dtype(kind).itemsize
    pitch = -(-size // 4096) * 4096 + 1024
    memory = np.zeros(count * pitch + 64, np.uint8)
    start = -memory.ctypes.data % 64
    starts = [start + k * pitch for k in range(count)]
    return [memory[at : at + size].view(kind) for at in starts]


def nanoseconds(function: ArrayFunction, inputs: int, dtype: DType) -> float:
    """Time of one element, arguments in (0.1, 4)."""
    kind = np.float32 if dtype is DType.F32 else np.float64
    rng = np.random.default_rng(0)
    out, *arrays = aligned_arrays(inputs + 1, kind)
    for array in arrays:
        array[:] = rng.uniform(0.1, 4.0, ELEMENTS)
    best, rounds = float("inf"), 500
    for _ in range(20):
        start = time.thread_time_ns()
        function.run(out, *arrays, rounds=rounds)
        best = min(best, (time.thread_time_ns() - start) / rounds)
    return best / ELEMENTS


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and accuracy of vector math.")
    parser.add_argument("functions", nargs="*", default=list(BOUNDS))
    parser.add_argument("--target", choices=available_targets())
    parser.add_argument("--dtype", choices=["f32", "f64"], default="f32")
    options = parser.parse_args()
    dtype = DType(options.dtype)
    targets = [options.target] if options.target else available_targets()
    for target in map(host_target, targets):
        rate = clock_rate(target)
        print(f"{target.name}, {dtype.value}, {rate:.2f} GHz")
        print(f"{'function':<12}{'ns/element':>12}{'cycles/vector':>15}{'max ULP':>10}{'bound':>7}")
        for name in options.functions:
            function = array_function(name, target, dtype)
            time_each = nanoseconds(function, arity(name), dtype)
            cycles = time_each * function.lanes * rate
            line = f"{name:<12}{time_each:>12.3f}{cycles:>15.1f}"
            if dtype is DType.F32:
                error = max_ulp(name, function, sample(arity(name)))
                line += f"{error:>10.2f}{BOUNDS[name]:>7.1f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
