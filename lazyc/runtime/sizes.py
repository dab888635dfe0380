"""Dims to ints: evaluates the symbolic sizes of a Program when it is bound to concrete values."""

from __future__ import annotations

import math
from collections.abc import Iterable

import sympy

from lazyc.ir.ops import SymbolValues, concrete
from lazyc.ir.types import Dim


class Sizes:
    """Evaluates dims for given values of the symbols, each expression once.

    Sums and products of symbols, nearly all there is, are walked here: ``Expr.subs`` takes about
    100 us for each of them.
    """

    def __init__(self, values: SymbolValues) -> None:
        self.values = values
        self._known: dict[Dim, int] = {}

    def __call__(self, dim: Dim) -> int:
        if isinstance(dim, int):
            return dim
        found = self._known.get(dim)
        if found is None:
            found = self._known[dim] = self._evaluate(dim)
        return found

    def all(self, dims: Iterable[Dim]) -> tuple[int, ...]:
        return tuple(self(d) for d in dims)

    def _evaluate(self, expr: sympy.Expr) -> int:
        if isinstance(expr, sympy.Symbol):
            return int(self.values[expr])
        if isinstance(expr, sympy.Integer):
            return int(expr)
        fractions = any(isinstance(a, sympy.Rational) and not a.is_Integer for a in expr.args)
        if fractions or not isinstance(expr, sympy.Add | sympy.Mul):
            return concrete(expr, self.values)
        parts = [self(a) for a in expr.args]
        return sum(parts) if isinstance(expr, sympy.Add) else math.prod(parts)
