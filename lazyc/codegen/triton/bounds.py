"""Where along a loop a value counts: read from the comparisons of positions that it is masked by.

where(j <= i, x, -inf)   is -inf, whatever x is, unless j <= i
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lazyc.ir import loops as L
from lazyc.ir.index import Axis, Index

Dead = Literal["lowest", "zero"]  # what a value is that does not count: -inf, or 0


@dataclass(frozen=True, slots=True)
class Limit:
    """Nothing counts at positions above (``is_upper``) or below ``index``, which has outer axes only."""

    index: Index
    is_upper: bool


def limits(instrs: Mapping[int, L.Instr], value: int, dead: Dead, axis: Axis) -> list[Limit]:
    """The limits along ``axis`` beyond which a value is certainly dead."""
    found: dict[Limit, None] = {}
    for test, truth in _kills(instrs, value, dead):
        for limit in _limits_of(instrs, test, not truth, axis):
            found[limit] = None
    return list(found)


def _constant(instrs: Mapping[int, L.Instr], value: int) -> float | None:
    instr = instrs[value]
    return float(instr.value) if isinstance(instr, L.Const) else None


def _kills(instrs: Mapping[int, L.Instr], value: int, dead: Dead) -> Iterator[tuple[int, bool]]:
    """Tests, each with an outcome that alone makes a value dead."""
    instr = instrs[value]
    if not isinstance(instr, L.Compute):
        return
    args = instr.args
    if instr.op == "where":
        wanted = -math.inf if dead == "lowest" else 0.0
        test, yes, no = args
        if _constant(instrs, no) == wanted:
            yield from _outcomes(instrs, test, False)
            yield from _kills(instrs, yes, dead)
        elif _constant(instrs, yes) == wanted:
            yield from _outcomes(instrs, test, True)
            yield from _kills(instrs, no, dead)
    elif instr.op == "cast" and instr.dtype.is_float:
        yield from _kills(instrs, args[0], dead)
    elif dead == "zero":
        if instr.op == "exp":
            yield from _kills(instrs, args[0], "lowest")
        elif instr.op == "mul":
            for arg in args:
                yield from _kills(instrs, arg, "zero")
        elif instr.op == "div":
            yield from _kills(instrs, args[0], "zero")
    elif instr.op == "add":
        for arg in args:
            yield from _kills(instrs, arg, "lowest")
    elif instr.op == "sub":
        yield from _kills(instrs, args[0], "lowest")
    elif instr.op == "mul":
        for arg, other in (args, args[::-1]):
            factor = _constant(instrs, other)
            if factor is not None and factor > 0:
                yield from _kills(instrs, arg, "lowest")


def _outcomes(instrs: Mapping[int, L.Instr], test: int, truth: bool) -> Iterator[tuple[int, bool]]:
    """The comparisons, each with an outcome that alone makes ``test`` have ``truth``."""
    instr = instrs[test]
    if not isinstance(instr, L.Compute):
        return
    if instr.op == "not":
        yield from _outcomes(instrs, instr.args[0], not truth)
    elif (instr.op == "and" and not truth) or (instr.op == "or" and truth):
        for arg in instr.args:
            yield from _outcomes(instrs, arg, truth)
    elif instr.op in _COMPARISONS:
        yield test, truth


_COMPARISONS = {"le": "gt", "lt": "ge", "ge": "lt", "gt": "le"}  # each with its opposite


def _limits_of(
    instrs: Mapping[int, L.Instr], test: int, truth: bool, axis: Axis
) -> Iterator[Limit]:
    """Where along ``axis`` a comparison may have this outcome."""
    instr = instrs[test]
    assert isinstance(instr, L.Compute)
    left, right = (_position(instrs, a) for a in instr.args)
    if left is None or right is None:
        return
    op = instr.op if truth else _COMPARISONS[instr.op]
    difference = left - right if op in ("le", "lt") else right - left
    if op in ("lt", "gt"):
        difference = difference + 1
    coef = difference.coef(axis)
    rest = difference - Index(0, ((axis, coef),)) if coef != 0 else difference
    if coef not in (1, -1) or axis in rest.axes() or rest.value_refs():
        return
    # coef * position + rest <= 0
    yield Limit(rest * -1, True) if coef == 1 else Limit(rest, False)


def _position(instrs: Mapping[int, L.Instr], value: int) -> Index | None:
    """An integer value as an index expression, where it is one."""
    instr = instrs[value]
    if isinstance(instr, L.IndexValue):
        return instr.index
    if isinstance(instr, L.Const) and isinstance(instr.value, int) and not instr.dtype.is_float:
        return Index(instr.value)
    if isinstance(instr, L.Compute) and instr.op in ("add", "sub") and not instr.dtype.is_float:
        left, right = (_position(instrs, a) for a in instr.args)
        if left is not None and right is not None:
            return left + right if instr.op == "add" else left - right
    return None
