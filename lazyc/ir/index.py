"""Index arithmetic of loop nests: integer expressions over loop axes.

An ``Index`` is ``const + sum(coef * atom)``. An atom is a loop ``Axis``, a ``FloorDiv`` or ``Mod``
that did not simplify away, or a ``ValueRef`` (a loaded integer: gather). Coefficients are dims, so
the same code serves static and symbolic shapes. Splitting and merging of dims (``reshape``)
simplifies here: ``(i*D + d) // D -> i`` when ``0 <= d < D``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lazyc.ir.types import Dim, Shape, contiguous_strides, divide_exact, is_nonneg


@dataclass(frozen=True, slots=True)
class Axis:
    """A loop variable, 0 <= name < size. Names are unique within a LoopNest."""

    name: str
    size: Dim

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class ValueRef:
    """An integer value of the body (SSA id) used as an index; 0 <= value < size is ensured."""

    value: int
    size: Dim

    def __str__(self) -> str:
        return f"%{self.value}"


@dataclass(frozen=True, slots=True)
class FloorDiv:
    base: Index
    divisor: Dim

    def __str__(self) -> str:
        return f"({self.base} // {self.divisor})"


@dataclass(frozen=True, slots=True)
class Mod:
    base: Index
    divisor: Dim

    def __str__(self) -> str:
        return f"({self.base} % {self.divisor})"


Atom: TypeAlias = Axis | ValueRef | FloorDiv | Mod


@dataclass(frozen=True, slots=True)
class Index:
    """``const + sum(coef * atom)``; terms are sorted by the atom's text and have no zero coef."""

    const: Dim
    terms: tuple[tuple[Atom, Dim], ...] = ()

    def __add__(self, other: Index | Dim) -> Index:
        if not isinstance(other, Index):
            return Index(self.const + other, self.terms)
        if not other.terms:
            return Index(self.const + other.const, self.terms)
        merged: dict[Atom, Dim] = dict(self.terms)
        for atom, coef in other.terms:
            merged[atom] = merged.get(atom, 0) + coef
        return _make(self.const + other.const, merged)

    def __sub__(self, other: Index | Dim) -> Index:
        return self + (other * -1)

    def __mul__(self, factor: Dim) -> Index:
        if factor == 0:
            return Index(0)
        return Index(self.const * factor, tuple((a, c * factor) for a, c in self.terms))

    @property
    def is_const(self) -> bool:
        return not self.terms

    def coef(self, atom: Atom) -> Dim:
        """The coefficient of an atom, 0 when it does not occur at the top level."""
        for a, c in self.terms:
            if a == atom:
                return c
        return 0

    def axes(self) -> set[Axis]:
        """Every axis that occurs, also inside FloorDiv and Mod."""
        found: set[Axis] = set()
        for atom, _ in self.terms:
            if isinstance(atom, Axis):
                found.add(atom)
            elif isinstance(atom, FloorDiv | Mod):
                found |= atom.base.axes()
        return found

    def value_refs(self) -> set[int]:
        """Every SSA value that occurs, also inside FloorDiv and Mod."""
        found: set[int] = set()
        for atom, _ in self.terms:
            if isinstance(atom, ValueRef):
                found.add(atom.value)
            elif isinstance(atom, FloorDiv | Mod):
                found |= atom.base.value_refs()
        return found

    def __str__(self) -> str:
        parts = [str(a) if c == 1 else f"{a}*{_dim_text(c)}" for a, c in self.terms]
        if self.const != 0 or not parts:
            parts.append(str(self.const))
        return " + ".join(parts)


def _dim_text(dim: Dim) -> str:
    return str(dim) if isinstance(dim, int) or dim.is_Symbol else f"({dim})"


def _make(const: Dim, terms: Mapping[Atom, Dim]) -> Index:
    kept = [(a, c) for a, c in terms.items() if c != 0]
    if len(kept) > 1:
        kept.sort(key=lambda t: str(t[0]))
    return Index(const, tuple(kept))


def axis_index(axis: Axis) -> Index:
    """The index that is the loop variable itself; 0 for an axis of size 1."""
    return Index(0) if axis.size == 1 else Index(0, ((axis, 1),))


def value_index(value: int, size: Dim) -> Index:
    """The index that is a loaded integer value, 0 <= value < size."""
    return Index(0, ((ValueRef(value, size), 1),))


def bounds(index: Index) -> tuple[Dim, Dim]:
    """Least and greatest value (inclusive)."""
    low: Dim = index.const
    high: Dim = index.const
    for atom, coef in index.terms:
        if isinstance(atom, Axis | ValueRef):
            top: Dim = atom.size - 1
            bottom: Dim = 0
        elif isinstance(atom, Mod):
            bottom, top = 0, atom.divisor - 1
        else:
            base_low, base_high = bounds(atom.base)
            bottom, top = base_low // atom.divisor, base_high // atom.divisor
        if is_nonneg(coef):
            low, high = low + coef * bottom, high + coef * top
        else:
            low, high = low + coef * top, high + coef * bottom
    return low, high


def _split(index: Index, divisor: Dim) -> tuple[Index, Index]:
    """``index = divisor * quotient + rest`` with every certainly divisible term in the quotient."""
    quotient: dict[Atom, Dim] = {}
    rest: dict[Atom, Dim] = {}
    for atom, coef in index.terms:
        part = divide_exact(coef, divisor)
        if part is None:
            rest[atom] = coef
        else:
            quotient[atom] = part
    if isinstance(index.const, int) and isinstance(divisor, int):
        return _make(index.const // divisor, quotient), _make(index.const % divisor, rest)
    part = divide_exact(index.const, divisor)
    if part is None:
        return _make(0, quotient), _make(index.const, rest)
    return _make(part, quotient), _make(0, rest)


def _within(index: Index, limit: Dim) -> bool:
    low, high = bounds(index)
    return is_nonneg(low) and is_nonneg(limit - 1 - high)


@dataclass(frozen=True, slots=True)
class _Shared:
    """``index = factor*quotient + rest`` with ``0 <= rest < factor``, of ``factor * divisor``."""

    factor: Dim
    quotient: Index
    rest: Index
    divisor: Dim


def _shared_factor(index: Index, divisor: Dim) -> _Shared | None:
    """A coefficient that divides ``divisor`` and that what it does not divide stays below."""
    for _, coef in index.terms:
        if coef == 1 or not is_nonneg(coef):
            continue
        part = divide_exact(divisor, coef)
        if part is None or part == 1:
            continue
        quotient, rest = _split(index, coef)
        if _within(rest, coef):
            return _Shared(coef, quotient, rest, part)
    return None


def floordiv(index: Index, divisor: Dim) -> Index:
    """``floor(index / divisor)`` for a positive divisor, simplified as far as ranges allow."""
    if divisor == 1:
        return index
    quotient, rest = _split(index, divisor)
    if _within(rest, divisor):
        return quotient
    if len(rest.terms) == 1 and rest.const == 0 and rest.terms[0][1] == 1:
        inner = rest.terms[0][0]
        if isinstance(inner, FloorDiv):  # (x // a) // b = x // (a*b)
            return quotient + floordiv(inner.base, inner.divisor * divisor)
    shared = _shared_factor(rest, divisor)
    if shared is not None:  # (x*g + y) // (d*g) = x // d where 0 <= y < g
        return quotient + floordiv(shared.quotient, shared.divisor)
    return quotient + Index(0, ((FloorDiv(rest, divisor), 1),))


def mod(index: Index, divisor: Dim) -> Index:
    """``index mod divisor`` (floor semantics) for a positive divisor, simplified likewise.

    A divisor of 0 is the size of an axis that no loop ever visits.
    """
    if divisor == 1 or divisor == 0:
        return Index(0)
    _, rest = _split(index, divisor)
    if _within(rest, divisor):
        return rest
    if len(rest.terms) == 1 and rest.const == 0 and rest.terms[0][1] == 1:
        inner = rest.terms[0][0]
        if isinstance(inner, Mod) and divide_exact(inner.divisor, divisor) is not None:
            return mod(inner.base, divisor)  # (x % (a*b)) % b = x % b
    shared = _shared_factor(rest, divisor)
    if shared is not None:  # (x*g + y) % (d*g) = (x % d)*g + y where 0 <= y < g
        return mod(shared.quotient, shared.divisor) * shared.factor + shared.rest
    return Index(0, ((Mod(rest, divisor), 1),))


def substitute(index: Index, replace: Callable[[Atom], Index | None]) -> Index:
    """Replaces axes and value refs; ``replace`` returns None to keep an atom. Re-simplifies."""
    result = Index(index.const)
    for atom, coef in index.terms:
        if isinstance(atom, FloorDiv):
            new = floordiv(substitute(atom.base, replace), atom.divisor)
        elif isinstance(atom, Mod):
            new = mod(substitute(atom.base, replace), atom.divisor)
        else:
            new = replace(atom)
            if new is None:
                new = Index(0, ((atom, 1),))
        result = result + new * coef
    return result


def linearize(indices: tuple[Index, ...], strides: Shape, offset: Dim = 0) -> Index:
    """``offset + sum(index * stride)``, in elements."""
    total = Index(offset)
    for index, stride in zip(indices, strides, strict=True):
        total = total + index * stride
    return _recombine(total)


def _recombine(index: Index) -> Index:
    """``(x // d)*d*c + (x % d)*c -> x*c``: what a reshape took apart and its inverse joins."""
    for atom, coef in index.terms:
        if not isinstance(atom, Mod):
            continue
        quotient = floordiv(atom.base, atom.divisor)
        if len(quotient.terms) != 1 or quotient.const != 0 or quotient.terms[0][1] != 1:
            continue
        partner = quotient.terms[0][0]
        if index.coef(partner) == coef * atom.divisor:
            used = Index(0, ((atom, coef),)) + Index(0, ((partner, coef * atom.divisor),))
            return _recombine(index - used + atom.base * coef)
    return index


def delinearize(flat: Index, shape: Shape) -> tuple[Index, ...]:
    """The row-major position in ``shape`` of a flat index."""
    result: list[Index] = []
    for k, stride in enumerate(contiguous_strides(shape)):
        position = floordiv(flat, stride)
        result.append(position if k == 0 else mod(position, shape[k]))
    return tuple(result)
