"""How the elements of a padded axis lie: as parts, like the digits of a number.

An axis of 2*s elements that was made by merging dims (2, s), with room for 128 in place of s, holds
element (i, j) at i*128 + j: its parts are 2 in room for 2, and s in room for 128.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
from torch.utils._sympy.functions import CleanDiv, FloorDiv

from lazyc.ir.types import Dim, Shape, divide_exact, is_nonneg


@dataclass(frozen=True, slots=True)
class Part:
    """``size`` elements that count, the first ones in ``room``."""

    size: Dim
    room: Dim

    @property
    def is_full(self) -> bool:
        return self.size == self.room


# Parts, outermost first. Only the first may be full, others are merged into the part before them: an
# axis of one part has its elements at the start. None: all elements along the axis are equal.
Axis: TypeAlias = tuple[Part, ...] | None


def joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts as an Axis has them."""
    found: list[Part] = []
    for part in parts:
        if part.size == 1 and part.room == 1:
            continue
        if found and part.is_full:
            found[-1] = Part(found[-1].size * part.size, found[-1].room * part.room)
        else:
            found.append(part)
    return tuple(found)


def is_padded(axis: Axis) -> bool:
    return axis is not None and not all(p.is_full for p in axis)


def room_of(axis: Sequence[Part]) -> Dim:
    return math.prod((p.room for p in axis), start=1)


def regroup(parts: Sequence[Part], shape: Shape) -> tuple[tuple[Part, ...], ...] | None:
    """The axes of a tensor of ``shape`` (sizes that count) whose elements are those of ``parts``, in
    order; None where an axis would begin or end inside of a padded part."""
    left = list(parts)
    found: list[tuple[Part, ...]] = []
    for size in shape:
        taken: list[Part] = []
        while size != 1:
            if not left or size == 0:
                return None
            head = left.pop(0)
            rest = divide_exact(size, head.size)
            if rest is not None:
                taken.append(head)
                size = rest
                continue
            inner = divide_exact(head.size, size)
            room = None if inner is None else divide_exact(head.room, inner)
            if inner is None or room is None:
                return None
            # The outer part keeps the padding: element (i, j) lies at i*inner + j.
            taken.append(Part(size, room))
            left.insert(0, Part(inner, inner))
            size = 1
        found.append(joined(taken))
    return None if any(p.size != 1 for p in left) else tuple(found)


def grows(size: Any) -> bool:
    """Whether a size certainly does not shrink where one of its symbols grows."""
    if isinstance(size, FloorDiv | CleanDiv):
        base, divisor = size.args
        return grows(base) and bool(divisor.is_Integer and divisor.is_positive)
    if isinstance(size, sympy.Add):
        return all(map(grows, size.args))
    if isinstance(size, sympy.Mul):
        return all(grows(a) and is_nonneg(a) for a in size.args)
    if isinstance(size, sympy.Pow):
        return grows(size.base) and bool(size.exp.is_Integer and size.exp.is_positive)
    return bool(size.is_Integer or size.is_Symbol)
