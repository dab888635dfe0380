"""Size expressions as LLVM code: a ``Dim`` over the nest's symbols becomes i64 arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from lazyc.codegen.base import CodegenError
from lazyc.codegen.llvm.emitter import Emitter, Int, integer
from lazyc.ir.types import Dim


def emit_dim(b: Emitter, dim: Dim, symbols: Mapping[sympy.Symbol, Int]) -> Int:
    """The value of ``dim``. Raises CodegenError for a function that has no code."""
    if isinstance(dim, int):
        return integer(dim)
    if isinstance(dim, sympy.Integer):
        return integer(int(dim))
    if isinstance(dim, sympy.Symbol):
        return symbols[dim]
    args = dim.args
    name = type(dim).__name__
    if isinstance(dim, sympy.Pow) and isinstance(args[1], sympy.Integer) and int(args[1]) > 0:
        base = emit_dim(b, args[0], symbols)  # type: ignore[arg-type]
        result = base
        for _ in range(int(args[1]) - 1):
            result = b.mul(result, base)
        return result
    if isinstance(dim, sympy.floor):
        numerator, denominator = sympy.fraction(sympy.together(args[0]))
        return _floordiv(b, numerator, denominator, symbols)
    if name in ("FloorDiv", "CleanDiv"):
        return _floordiv(b, args[0], args[1], symbols)
    if name in ("Mod", "PythonMod"):
        value, divisor = (emit_dim(b, a, symbols) for a in args)  # type: ignore[arg-type]
        positive = b.maximum(divisor, integer(1))
        return b.sub(value, b.mul(b.floordiv(value, positive), positive))
    if isinstance(dim, sympy.Rational):
        raise CodegenError(f"size expression {dim} is not an integer")
    combine = _COMBINE.get(name)
    if combine is None:
        raise CodegenError(f"no code for {name} in the size expression {dim}")
    parts = [emit_dim(b, a, symbols) for a in args]  # type: ignore[arg-type]
    result = parts[0]
    for part in parts[1:]:
        result = combine(b, result, part)
    return result


_COMBINE = {
    "Add": Emitter.add,
    "Mul": Emitter.mul,
    "Max": Emitter.maximum,
    "Min": Emitter.minimum,
}


def _floordiv(
    b: Emitter, numerator: object, denominator: object, symbols: Mapping[sympy.Symbol, Int]
) -> Int:
    over = emit_dim(b, numerator, symbols)  # type: ignore[arg-type]
    under = emit_dim(b, denominator, symbols)  # type: ignore[arg-type]
    # A divisor of 0 belongs to code that never runs, but the division itself may be hoisted.
    return b.floordiv(over, b.maximum(under, integer(1)))
