"""Random numbers by counter: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), bit for bit the reference of the ``random`` op."""

from __future__ import annotations

import math

from lazyc.codegen.llvm import casts
from lazyc.codegen.llvm.address import index_value
from lazyc.codegen.llvm.emitter import Emitter, Value, constant, splat, type_of, vector
from lazyc.codegen.llvm.pointwise import call_math
from lazyc.codegen.llvm.region import Frame, Region
from lazyc.ir.loops import Random
from lazyc.ir.types import DType

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def draw(frame: Frame, region: Region, instr: Random) -> Value:
    b = frame.b
    counter = index_value(frame, region, instr.counter)
    seed = region.values[instr.seed]
    lanes = max(counter.lanes, seed.lanes)
    words = _philox(b, b.widen(seed, lanes), b.widen(counter, lanes), lanes)
    text, dtype = _DISTRIBUTIONS[instr.kind](b, instr.dtype, words, lanes)
    return b.value(casts.cast(b, text, dtype, instr.dtype, lanes), instr.dtype, lanes)


def _philox(b: Emitter, seed: str, counter: str, lanes: int) -> tuple[str, str]:
    """The first two words at ``counter``, as i32."""
    longs, ints = vector("i64", lanes), vector("i32", lanes)
    thirty_two = splat("i64", "32", lanes)

    def low(x: str) -> str:
        return b.emit(f"trunc {longs} {x} to {ints}")

    def high(x: str) -> str:
        return low(b.emit(f"lshr {longs} {x}, {thirty_two}"))

    def product(x: str, factor: int) -> tuple[str, str]:
        wide = b.emit(f"zext {ints} {x} to {longs}")
        full = b.emit(f"mul {longs} {wide}, {splat('i64', str(factor), lanes)}")
        return high(full), low(full)

    def xor(x: str, y: str) -> str:
        return b.emit(f"xor {ints} {x}, {y}")

    zero = constant(DType.I32, 0, lanes)
    c = (low(counter), high(counter), zero, zero)
    keys = [low(seed), high(seed)]
    for number in range(_ROUNDS):
        high_0, low_0 = product(c[0], _MULTIPLIERS[0])
        high_1, low_1 = product(c[2], _MULTIPLIERS[1])
        c = (xor(xor(high_1, c[1]), keys[0]), low_1, xor(xor(high_0, c[3]), keys[1]), low_0)
        if number + 1 < _ROUNDS:
            keys = [
                b.emit(f"add {ints} {key}, {constant(DType.I32, step, lanes)}")
                for key, step in zip(keys, _WEYL, strict=True)
            ]
    return c[0], c[1]


def _bits(b: Emitter, dtype: DType, words: tuple[str, str], lanes: int) -> tuple[str, DType]:
    return b.emit(f"zext {vector('i32', lanes)} {words[0]} to {vector('i64', lanes)}"), DType.I64


def _uniform(b: Emitter, dtype: DType, words: tuple[str, str], lanes: int) -> tuple[str, DType]:
    """U[0, 1): 24 bits, or 53 for f64."""
    if dtype is not DType.F64:
        return _fraction(b, words[0], 2.0**-24, lanes), DType.F32
    ints, longs, doubles = vector("i32", lanes), vector("i64", lanes), vector("double", lanes)
    upper, lower = (b.emit(f"zext {ints} {w} to {longs}") for w in words)
    upper = b.emit(f"shl {longs} {upper}, {splat('i64', '21', lanes)}")
    lower = b.emit(f"lshr {longs} {lower}, {splat('i64', '11', lanes)}")
    whole = b.emit(f"sitofp {longs} {b.emit(f'or {longs} {upper}, {lower}')} to {doubles}")
    return b.emit(f"fmul {doubles} {whole}, {constant(DType.F64, 2.0**-53, lanes)}"), DType.F64


def _top(b: Emitter, word: str, lanes: int) -> str:
    """The upper 24 bits of a word, as f32 (exact)."""
    ints = vector("i32", lanes)
    bits = b.emit(f"lshr {ints} {word}, {splat('i32', '8', lanes)}")
    return b.emit(f"sitofp {ints} {bits} to {vector('float', lanes)}")


def _fraction(b: Emitter, word: str, scale: float, lanes: int) -> str:
    top = _top(b, word, lanes)
    return b.emit(f"fmul {vector('float', lanes)} {top}, {constant(DType.F32, scale, lanes)}")


def _normal(b: Emitter, dtype: DType, words: tuple[str, str], lanes: int) -> tuple[str, DType]:
    """Box-Muller on two uniforms, the first in (0, 1]; one of its two results is used."""
    type_ = type_of(DType.F32, lanes)

    def const(value: float) -> str:
        return constant(DType.F32, value, lanes)

    shifted = b.emit(f"fadd {type_} {_top(b, words[0], lanes)}, {const(1.0)}")
    uniform = b.emit(f"fmul {type_} {shifted}, {const(2.0**-24)}")
    angle = _fraction(b, words[1], 2.0**-24 * 2 * math.pi, lanes)
    log = call_math(b, "log", DType.F32, lanes, uniform)
    scaled = b.emit(f"fmul {type_} {log}, {const(-2.0)}")
    radius = call_math(b, "sqrt", DType.F32, lanes, scaled)
    cosine = call_math(b, "cos", DType.F32, lanes, angle)
    return b.emit(f"fmul {type_} {radius}, {cosine}"), DType.F32


_DISTRIBUTIONS = {"bits": _bits, "uniform": _uniform, "normal": _normal}
