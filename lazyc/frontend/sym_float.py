"""Symbolic floats (Dynamo's SymFloats) as 0-dim f64 nodes: ``x * rows ** -0.5`` with dynamic rows."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import sympy

from lazyc.frontend.promotion import NotLowered
from lazyc.ir.graph import Node
from lazyc.ir.types import DType

if TYPE_CHECKING:
    from lazyc.frontend.builder import Builder

_BINARY = {
    "FloatTrueDiv": "div",
    "IntTrueDiv": "div",
    "FloatPow": "pow",
    "PowByNatural": "pow",
    "Pow": "pow",
}
_UNARY_PREFIX = "OpaqueUnaryFn_"
_UNARY = frozenset({"sqrt", "exp", "log", "log2", "cos", "sin", "tan", "tanh", "sinh", "cosh"})


def float_node(b: Builder, expr: sympy.Basic, device: str) -> Node:
    """The value of a symbolic expression, computed as Python computes floats: in f64.

    Raises NotLowered for a function that has no node.
    """
    if isinstance(expr, sympy.Float | sympy.Rational):
        return b.constant(float(expr), DType.F64, device=device)
    if isinstance(expr, sympy.Expr) and expr.is_integer:
        return b.size(expr, DType.F64, device)
    name = type(expr).__name__
    args = [float_node(b, arg, device) for arg in expr.args]
    if name == "ToFloat":
        return args[0]
    if isinstance(expr, sympy.Add | sympy.Mul):
        return reduce(b.add if isinstance(expr, sympy.Add) else b.mul, args)
    if name in _BINARY:
        return b.pointwise(_BINARY[name], *args)
    if name.startswith(_UNARY_PREFIX) and name.removeprefix(_UNARY_PREFIX) in _UNARY:
        return b.emit(name.removeprefix(_UNARY_PREFIX), *args)
    raise NotLowered(f"symbolic float {expr}")
