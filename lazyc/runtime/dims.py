"""Dims as JSON: ints, symbols, and a closed set of operations on them.

``s0*4 + 1`` is ``["add", 1, ["mul", 4, ["symbol", "s0", "irpn"]]]``. Decoding builds sympy
expressions from the table below alone; no text is ever parsed as an expression.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sympy
from torch.utils._sympy import functions as dynamo

from lazyc.errors import CacheCorrupt, NotCacheable
from lazyc.ir.types import Dim

# What lazyc's own arithmetic gives (sympy) and what Dynamo's ShapeEnv gives (torch's classes).
_CLASSES: dict[str, type[sympy.Basic]] = {
    "add": sympy.Add,
    "mul": sympy.Mul,
    "pow": sympy.Pow,
    "floor": sympy.floor,
    "ceiling": sympy.ceiling,
    "abs": sympy.Abs,
    "mod": sympy.Mod,
    "max": sympy.Max,
    "min": sympy.Min,
    "dynamo.floordiv": dynamo.FloorDiv,
    "dynamo.cleandiv": dynamo.CleanDiv,
    "dynamo.ceildiv": dynamo.CeilDiv,
    "dynamo.mod": dynamo.Mod,
    "dynamo.pymod": dynamo.PythonMod,
    "dynamo.modular_indexing": dynamo.ModularIndexing,
    "dynamo.max": dynamo.Max,
    "dynamo.min": dynamo.Min,
    "dynamo.pow": dynamo.PowByNatural,
    "dynamo.lshift": dynamo.LShift,
    "dynamo.rshift": dynamo.RShift,
    "dynamo.identity": dynamo.Identity,
    "dynamo.to_float": dynamo.ToFloat,
    "dynamo.int_true_div": dynamo.IntTrueDiv,
    "dynamo.float_true_div": dynamo.FloatTrueDiv,
    "dynamo.trunc_to_int": dynamo.TruncToInt,
    "dynamo.floor_to_int": dynamo.FloorToInt,
    "dynamo.ceil_to_int": dynamo.CeilToInt,
    "dynamo.round_to_int": dynamo.RoundToInt,
}
_NAMES = {cls: name for name, cls in _CLASSES.items()}
_COMMUTATIVE = frozenset({"add", "mul", "max", "min", "dynamo.max", "dynamo.min"})

# Assumptions that sympy simplifies by, and their letter in JSON.
_ASSUMPTIONS = {"i": "integer", "r": "real", "p": "positive", "n": "nonnegative"}


def symbol_flags(symbol: sympy.Symbol) -> str:
    """The assumptions about a symbol, as letters."""
    return "".join(c for c, name in _ASSUMPTIONS.items() if getattr(symbol, f"is_{name}"))


def encode_dim(dim: Dim, rename: Callable[[sympy.Symbol], str] | None = None) -> Any:
    """A dim as JSON. ``rename`` gives symbols other names; operands of commutative operations are
    then put in an order that depends on the new names only.

    Raises NotCacheable for an operation that the table does not have.
    """
    if isinstance(dim, int):
        return int(dim)
    if isinstance(dim, sympy.Integer):
        return int(dim)
    if isinstance(dim, sympy.Symbol):
        return ["symbol", rename(dim) if rename else dim.name, symbol_flags(dim)]
    if isinstance(dim, sympy.Rational):
        return ["rational", int(dim.p), int(dim.q)]
    if isinstance(dim, sympy.Float) and dim == sympy.Float(float(dim)):
        return ["float", float(dim).hex()]
    name = _NAMES.get(type(dim))
    if name is None:
        raise NotCacheable(f"a size uses {type(dim).__name__}: {dim}")
    operands = [encode_dim(a, rename) for a in dim.args]  # type: ignore[arg-type]  # args are Exprs
    if name in _COMMUTATIVE:
        operands.sort(key=json.dumps)
    return [name, *operands]


def decode_dim(data: Any) -> Dim:
    """The dim that ``encode_dim`` wrote. Raises CacheCorrupt for anything else."""
    if isinstance(data, int) and not isinstance(data, bool):
        return data
    expr = _decode(data)
    return int(expr) if isinstance(expr, sympy.Integer) else expr


def decode_symbol(data: Any) -> sympy.Symbol:
    """A dim that must be a symbol."""
    dim = decode_dim(data)
    if not isinstance(dim, sympy.Symbol):
        raise CacheCorrupt(f"expected a symbol, got {data!r}")
    return dim


def _decode(data: Any) -> sympy.Expr:
    match data:
        case bool():
            pass
        case int():
            return sympy.Integer(data)
        case ["symbol", str(name), str(flags)] if set(flags) <= _ASSUMPTIONS.keys():
            return sympy.Symbol(name, **{_ASSUMPTIONS[c]: True for c in flags})
        case ["rational", int(p), int(q)] if q:
            return sympy.Rational(p, q)
        case ["float", str(text)]:
            return sympy.Float(float.fromhex(text))
        case [str(name), *operands] if name in _CLASSES:
            return _CLASSES[name](*(_decode(x) for x in operands))  # type: ignore[return-value]
        case _:
            pass
    raise CacheCorrupt(f"not a dim: {data!r}")
