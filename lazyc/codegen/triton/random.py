"""Random numbers by counter, bit for bit those of the ``random`` op (but for ``log`` and ``cos``)."""

from __future__ import annotations

import math

from lazyc.codegen.triton.pointwise import expression
from lazyc.codegen.triton.writer import Value, Writer
from lazyc.ir.loops import Random
from lazyc.ir.types import DType


def draw(w: Writer, instr: Random, seed: Value, counter: Value) -> Value:
    """The draw at each counter (i32 or i64)."""
    varies = seed.varies | counter.varies

    def word(number: int) -> str:
        text = f"philox({seed.text}, {counter.text}, {number})"
        return w.value(text, DType.I64, varies).text

    def top(number: int) -> str:
        """The upper 24 bits, as f32 (exact)."""
        return f"({word(number)} >> 8).to(tl.int32).to(tl.float32)"

    if instr.kind == "bits":
        text, dtype = f"{word(0)}.to(tl.int64)", DType.I64
    elif instr.kind == "uniform" and instr.dtype is DType.F64:
        upper, lower = (f"{word(k)}.to(tl.int64)" for k in range(2))
        text = f"(({upper} << 21) | ({lower} >> 11)).to(tl.float64) * {2.0**-53!r}"
        dtype = DType.F64
    elif instr.kind == "uniform":
        text, dtype = f"{top(0)} * {2.0**-24!r}", DType.F32
    else:  # Box-Muller on two uniforms, the first in (0, 1]; one of its two results is used
        radius = f"tl.sqrt_rn(libdevice.log(({top(0)} + 1.0) * {2.0**-24!r}) * -2.0)"
        angle = f"{top(1)} * {2.0**-24 * 2 * math.pi!r}"
        text, dtype = f"{radius} * libdevice.cos({angle})", DType.F32
    found = w.value(text, dtype, varies)
    return w.value(expression("cast", (found.text,), dtype, instr.dtype), instr.dtype, varies)
