"""Conversions between element types, with eager's results also where C leaves them open.

Float to integer truncates; a value outside the range (nan included) becomes what x86 gives: the
least integer of the 32- or 64-bit type converted to, cut to the narrower one. Half types are bit
patterns here; bf16 rounds to nearest even by integer arithmetic, f16 uses the CPU's conversion or,
where it has none, the same in integers (F. Giesen, "float->half variants").
"""

from __future__ import annotations

from lazyc.codegen.llvm.emitter import LLVM_TYPES, Emitter, constant, splat, type_of, vector
from lazyc.ir.types import DType

_HALVES = (DType.F16, DType.BF16)


def cast(b: Emitter, x: str, source: DType, to: DType, lanes: int) -> str:
    """``x`` of type ``source`` converted to type ``to``."""
    if source is to:
        return x
    if source in _HALVES:
        wide = half_to_float(b, x, source, lanes)
        return cast(b, wide, DType.F32, to, lanes)
    if to in _HALVES:
        return float_to_half(b, cast(b, x, source, DType.F32, lanes), to, lanes)
    have, want = type_of(source, lanes), type_of(to, lanes)
    if to is DType.BOOL:
        zero = constant(source, 0, lanes)
        compare = "fcmp une" if source.is_float else "icmp ne"
        return b.emit(f"{compare} {have} {x}, {zero}")
    if source.is_float and to.is_float:
        return b.emit(f"{'fpext' if to is DType.F64 else 'fptrunc'} {have} {x} to {want}")
    if source.is_float:
        return _float_to_int(b, x, source, to, lanes)
    if to.is_float:
        return b.emit(f"{'sitofp' if source.is_signed else 'uitofp'} {have} {x} to {want}")
    narrow, wide_ = _bits(to), _bits(source)
    if narrow == wide_:
        return x  # u8 and i8
    if narrow < wide_:
        return b.emit(f"trunc {have} {x} to {want}")
    return b.emit(f"{'sext' if source.is_signed else 'zext'} {have} {x} to {want}")


def _bits(dtype: DType) -> int:
    return 1 if dtype is DType.BOOL else dtype.itemsize * 8


def _float_to_int(b: Emitter, x: str, source: DType, to: DType, lanes: int) -> str:
    via = DType.I64 if to is DType.I64 else DType.I32
    have, mid = type_of(source, lanes), type_of(via, lanes)
    limit = 2.0 ** (_bits(via) - 1)
    low, high = constant(source, -limit, lanes), constant(source, limit, lanes)
    # In f64, -2**31 - 0.5 still truncates to the least i32; it also yields that as "out of range".
    above = b.emit(f"fcmp oge {have} {x}, {low}")
    below = b.emit(f"fcmp olt {have} {x}, {high}")
    mask = vector("i1", lanes)
    inside = b.emit(f"and {mask} {above}, {below}")
    safe = b.emit(f"select {mask} {inside}, {have} {x}, {have} {low}")
    whole = b.emit(f"fptosi {have} {safe} to {mid}")
    return cast(b, whole, via, to, lanes)


def bitcast(b: Emitter, x: str, source: DType, to: DType, lanes: int) -> str:
    """The same bits as another type of the same size in memory."""
    if source is DType.BOOL:
        source, x = DType.U8, cast(b, x, DType.BOOL, DType.U8, lanes)
    if to is DType.BOOL:
        return cast(b, x, source, DType.BOOL, lanes)
    have, want = type_of(source, lanes), type_of(to, lanes)
    return x if have == want else b.emit(f"bitcast {have} {x} to {want}")


def half_to_float(b: Emitter, x: str, dtype: DType, lanes: int) -> str:
    ints, floats = vector("i32", lanes), vector("float", lanes)
    halves = vector("i16", lanes)
    if dtype is DType.F16 and b.target.has_half:
        half = vector("half", lanes)
        return b.emit(f"fpext {half} {b.emit(f'bitcast {halves} {x} to {half}')} to {floats}")
    bits = b.emit(f"zext {halves} {x} to {ints}")
    if dtype is DType.BF16:
        return b.emit(
            f"bitcast {ints} {b.emit(f'shl {ints} {bits}, {_int(16, lanes)}')} to {floats}"
        )
    # f16: move exponent and mantissa into place, rebias, and let a subtraction normalise denormals.
    shifted = b.emit(
        f"shl {ints} {b.emit(f'and {ints} {bits}, {_int(0x7FFF, lanes)}')}, {_int(13, lanes)}"
    )
    exponent = b.emit(f"and {ints} {shifted}, {_int(0x7C00 << 13, lanes)}")
    normal = b.emit(f"add {ints} {shifted}, {_int((127 - 15) << 23, lanes)}")
    special = b.emit(f"add {ints} {normal}, {_int((128 - 16) << 23, lanes)}")
    tiny = b.emit(f"add {ints} {normal}, {_int(1 << 23, lanes)}")
    tiny_float = b.emit(
        f"fsub {floats} {b.emit(f'bitcast {ints} {tiny} to {floats}')}, {constant(DType.F32, 2.0**-14, lanes)}"
    )
    tiny_bits = b.emit(f"bitcast {floats} {tiny_float} to {ints}")
    is_special = b.emit(f"icmp eq {ints} {exponent}, {_int(0x7C00 << 13, lanes)}")
    is_tiny = b.emit(f"icmp eq {ints} {exponent}, {_int(0, lanes)}")
    result = _select(
        b, is_special, ints, special, _select(b, is_tiny, ints, tiny_bits, normal, lanes), lanes
    )
    sign = b.emit(
        f"shl {ints} {b.emit(f'and {ints} {bits}, {_int(0x8000, lanes)}')}, {_int(16, lanes)}"
    )
    return b.emit(f"bitcast {ints} {b.emit(f'or {ints} {result}, {sign}')} to {floats}")


def float_to_half(b: Emitter, x: str, dtype: DType, lanes: int) -> str:
    ints, floats, halves = vector("i32", lanes), vector("float", lanes), vector("i16", lanes)
    if dtype is DType.F16 and b.target.has_half:
        half = vector("half", lanes)
        return b.emit(f"bitcast {half} {b.emit(f'fptrunc {floats} {x} to {half}')} to {halves}")
    bits = b.emit(f"bitcast {floats} {x} to {ints}")
    result = (
        _float_to_bf16(b, x, bits, lanes) if dtype is DType.BF16 else _float_to_f16(b, bits, lanes)
    )
    return b.emit(f"trunc {ints} {result} to {halves}")


def _float_to_bf16(b: Emitter, x: str, bits: str, lanes: int) -> str:
    ints = vector("i32", lanes)
    upper = b.emit(f"lshr {ints} {bits}, {_int(16, lanes)}")
    odd = b.emit(f"and {ints} {upper}, {_int(1, lanes)}")
    bias = b.emit(f"add {ints} {odd}, {_int(0x7FFF, lanes)}")
    rounded = b.emit(f"lshr {ints} {b.emit(f'add {ints} {bits}, {bias}')}, {_int(16, lanes)}")
    nan = b.emit(f"fcmp uno {vector('float', lanes)} {x}, {x}")
    return _select(b, nan, ints, _int(0x7FC0, lanes), rounded, lanes)


def _float_to_f16(b: Emitter, bits: str, lanes: int) -> str:
    ints, floats = vector("i32", lanes), vector("float", lanes)
    magnitude = b.emit(f"and {ints} {bits}, {_int(0x7FFFFFFF, lanes)}")
    sign = b.emit(
        f"lshr {ints} {b.emit(f'and {ints} {bits}, {_int(-(1 << 31), lanes)}')}, {_int(16, lanes)}"
    )
    # Denormal results: the addition aligns the mantissa and rounds it.
    magic = ((127 - 15) + (23 - 10) + 1) << 23
    as_float = b.emit(f"bitcast {ints} {magnitude} to {floats}")
    moved = b.emit(f"fadd {floats} {as_float}, {constant(DType.F32, 0.5, lanes)}")
    tiny = b.emit(
        f"sub {ints} {b.emit(f'bitcast {floats} {moved} to {ints}')}, {_int(magic, lanes)}"
    )
    odd = b.emit(
        f"and {ints} {b.emit(f'lshr {ints} {magnitude}, {_int(13, lanes)}')}, {_int(1, lanes)}"
    )
    rebased = b.emit(f"add {ints} {magnitude}, {_int(((15 - 127) << 23) + 0xFFF, lanes)}")
    normal = b.emit(f"lshr {ints} {b.emit(f'add {ints} {rebased}, {odd}')}, {_int(13, lanes)}")
    nan = b.emit(f"icmp ugt {ints} {magnitude}, {_int(255 << 23, lanes)}")
    special = _select(b, nan, ints, _int(0x7E00, lanes), _int(0x7C00, lanes), lanes)
    is_special = b.emit(f"icmp uge {ints} {magnitude}, {_int((127 + 16) << 23, lanes)}")
    is_tiny = b.emit(f"icmp ult {ints} {magnitude}, {_int(113 << 23, lanes)}")
    result = _select(
        b, is_special, ints, special, _select(b, is_tiny, ints, tiny, normal, lanes), lanes
    )
    return b.emit(f"or {ints} {result}, {sign}")


def _int(value: int, lanes: int) -> str:
    return splat("i32", str(value), lanes)


def _select(b: Emitter, mask: str, type_: str, yes: str, no: str, lanes: int) -> str:
    return b.emit(f"select {vector('i1', lanes)} {mask}, {type_} {yes}, {type_} {no}")


def memory_type(dtype: DType) -> str:
    """The LLVM type of one element in memory: a bool takes a byte."""
    return "i8" if dtype is DType.BOOL else LLVM_TYPES[dtype]


def to_memory(b: Emitter, x: str, dtype: DType, lanes: int) -> str:
    return cast(b, x, DType.BOOL, DType.U8, lanes) if dtype is DType.BOOL else x


def from_memory(b: Emitter, x: str, dtype: DType, lanes: int) -> str:
    return cast(b, x, DType.U8, DType.BOOL, lanes) if dtype is DType.BOOL else x
