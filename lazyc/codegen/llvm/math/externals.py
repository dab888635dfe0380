"""Functions of other libraries that generated code calls: SLEEF's vectors and the C library's.

libtorch_cpu exports the SLEEF (N. Shibata, F. Petrogalli, 2020) functions that eager itself uses:
``Sleef_expd8_u10avx512f`` takes and returns 8 doubles, with an error below 1.0 ULP. Where there is
none for a target, the C library's function is called for each lane.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

import torch

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm.math.builder import Builder, Value

# Name in SLEEF with its error bound in tenths of an ULP.
_SLEEF = {
    name: f"u{10 if name not in ('erfc', 'hypot') else 15 if name == 'erfc' else 5:02d}"
    for name in (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin",
        "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc",
        "pow", "hypot", "lgamma",
    )
}  # fmt: skip
_SUFFIX = {"avx512": "avx512f", "avx2": "avx2"}


@cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """libtorch_cpu, then what the process has loaded (the C library with its math functions)."""
    folder = Path(torch.__file__).parent / "lib"
    suffix = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    found = sorted(folder.glob(f"*torch_cpu.{suffix}"))
    return (*(ctypes.CDLL(str(path)) for path in found), ctypes.CDLL(None))


@cache
def _address(symbol: str) -> int | None:
    for library in _libraries():
        try:
            return ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
        except AttributeError:
            continue
    return None


def resolve(symbol: str) -> int:
    """The address of a function that emitted code declares. Raises CodegenError if there is none."""
    address = _address(symbol)
    if address is None:
        raise CodegenError(f"no library of this process has the function {symbol!r}")
    return address


def external(b: Builder, name: str, *args: Value) -> Value:
    """``name`` by SLEEF on whole vectors, or by the C library lane by lane."""
    single = args[0].kind == "float"
    if b.target.name in _SUFFIX:
        letter = "f" if single else "d"
        symbol = f"Sleef_{name}{letter}{b.lanes}_{_SLEEF[name]}{_SUFFIX[b.target.name]}"
        if _address(symbol) is not None:
            return b.call(symbol, args[0].kind, *args)
    return b.each_lane(name + ("f" if single else ""), *args)
