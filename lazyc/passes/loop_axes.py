"""Chooses the loop axes of a nest.

Every root walks the same flat outer space, but its dims may cut that space differently (rows
``[1024]`` here, ``[4, 256]`` there). ``refine`` finds the coarsest axes from which all of them are
made by multiplication alone; ``cuts`` finds divisions that are left in index expressions and splits
axes so that they vanish; ``collapse`` joins neighbouring axes that are never used apart, and
``choose_vector_axis`` moves the axis with the most contiguous accesses into last place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Literal

from lazyc.ir import loops as L
from lazyc.ir.index import Axis, FloorDiv, Index, Mod, ValueRef
from lazyc.ir.nest_values import indices_of, operands
from lazyc.ir.types import Dim, Shape, divide_exact, numel

_MIN_VECTOR = 8


def refine(shapes: Iterable[Shape], extra_cuts: Iterable[int] = ()) -> Shape:
    """Sizes of which every given shape (all of equal numel) is made by merging neighbours.

    Falls back to the flat size when there are none ([6, 4] and [4, 6]): index expressions then keep
    divisions. ``extra_cuts`` are suffix products at which to split further.
    """
    lists = [tuple(d for d in s if d != 1) for s in shapes]
    lists = list(dict.fromkeys(s for s in lists if s))
    if not lists:
        return ()
    if len(lists) == 1 and not extra_cuts:
        return lists[0]
    total = numel(lists[0])
    points: list[Dim] = [1, total]
    for shape in lists:
        product: Dim = 1
        for d in reversed(shape):
            product = product * d
            if product not in points:
                points.append(product)
    points += [c for c in extra_cuts if c not in points]
    if all(isinstance(p, int) for p in points):
        ordered = sorted(points)  # type: ignore[type-var]
    else:
        ordered = _chain(points)
    found: list[Dim] = []
    for low, high in itertools.pairwise(ordered):
        factor = divide_exact(high, low)
        if factor is None:
            return max(lists, key=len) if len(lists) == 1 else (total,)
        found.append(factor)
    return tuple(reversed([f for f in found if f != 1]))


def _chain(points: list[Dim]) -> list[Dim]:
    """Points in an order in which each divides the next, as far as that goes."""

    def divisors(p: Dim) -> int:
        return sum(divide_exact(p, q) is not None for q in points)

    return sorted(points, key=divisors)


def map_indices(instr: L.Instr, change: Callable[[Index], Index]) -> L.Instr:
    """The instruction with its index expressions changed."""
    if isinstance(instr, L.Load | L.Store | L.IndexValue):
        return replace(instr, index=change(instr.index))
    if isinstance(instr, L.Random):
        return replace(instr, counter=change(instr.counter))
    return instr


def _divisions(index: Index) -> Iterator[FloorDiv | Mod]:
    for atom, _ in index.terms:
        if isinstance(atom, FloorDiv | Mod):
            yield atom
            yield from _divisions(atom.base)


def cuts(stages: Iterable[L.Stage]) -> dict[Axis, set[int]]:
    """For axes that some expression divides: the sizes of the inner part to split off."""
    found: dict[Axis, set[int]] = {}
    for stage in stages:
        for instr in stage.body:
            for index in indices_of(instr):
                for division in _divisions(index):
                    for atom, coef in division.base.terms:
                        if not isinstance(atom, Axis):
                            continue
                        size, divisor = atom.size, division.divisor
                        if not (
                            isinstance(size, int)
                            and isinstance(divisor, int)
                            and isinstance(coef, int)
                            and coef > 0
                        ):
                            continue
                        inner = divisor // coef if divisor % coef == 0 else 0
                        if 1 < inner < size and size % inner == 0:
                            found.setdefault(atom, set()).add(inner)
    return found


# --- collapse -------------------------------------------------------------------------------------


def collapse(
    axes: tuple[Axis, ...], stages: tuple[L.Stage, ...], inner: bool = False
) -> tuple[tuple[Axis, ...], tuple[L.Stage, ...]]:
    """Joins neighbours (a, b) wherever every index holds them as ``a*size(b)*c + b*c``."""
    result = list(axes)
    k = 0
    while k + 1 < len(result):
        a, b = result[k], result[k + 1]
        indices = [i for s in stages for instr in s.body for i in indices_of(instr)]
        if all(_joinable(i, a, b) for i in indices):
            joined = Axis(a.name, a.size * b.size)
            stages = tuple(
                L.Stage(
                    tuple(joined if x == a else x for x in s.axes if x != b),
                    tuple(map_indices(i, lambda e: _join(e, a, b, joined)) for i in s.body),  # noqa: B023
                )
                for s in stages
            )
            result[k : k + 2] = [joined]
        else:
            k += 1
    return tuple(result), stages


def _joinable(index: Index, a: Axis, b: Axis) -> bool:
    if index.coef(a) != index.coef(b) * b.size:
        return False
    return all(
        _joinable(atom.base, a, b) for atom, _ in index.terms if isinstance(atom, FloorDiv | Mod)
    )


def _join(index: Index, a: Axis, b: Axis, joined: Axis) -> Index:
    result = Index(index.const)
    for atom, coef in index.terms:
        if atom == a:
            continue
        if atom == b:
            atom = joined
        elif isinstance(atom, FloorDiv | Mod):
            atom = type(atom)(_join(atom.base, a, b, joined), atom.divisor)
        result = result + Index(0, ((atom, coef),))
    return result


# --- the vector axis ------------------------------------------------------------------------------


def _score(axis: Axis, body: Iterable[L.Instr], lanes_vary: set[int]) -> float:
    """How well an axis vectorises: contiguous accesses count for it, gathers against it."""
    if isinstance(axis.size, int) and axis.size < 2:
        return -100.0
    total = 0.0
    for instr in body:
        if not isinstance(instr, L.Load | L.Store):
            continue
        weight = 2.0 if isinstance(instr, L.Store) else 1.0
        coef = instr.index.coef(axis)
        hidden = any(axis in d.base.axes() for d in _divisions(instr.index))
        indirect = any(
            isinstance(a, ValueRef) and a.value in lanes_vary for a, _ in instr.index.terms
        )
        if hidden or indirect:
            total -= weight
        elif coef == 1:
            total += weight
        elif coef == 0:
            total += 0.25 * weight
        else:
            total -= weight
    if isinstance(axis.size, int) and axis.size < _MIN_VECTOR:
        total -= 2.0
    return total


def choose_vector_axis(
    axes: tuple[Axis, ...], stages: tuple[L.Stage, ...]
) -> tuple[tuple[Axis, ...], tuple[L.Stage, ...], Literal["outer", "inner", "none"]]:
    """Reorders axes so that the best vector axis is last, and says which level it is on."""
    everything = [i for s in stages for i in s.body]
    looping = [s for s in stages if s.axes]
    best_outer, outer_score = None, float("-inf")
    for axis in axes:
        score = _score(axis, everything, _dependents(everything, axis))
        if score >= outer_score:
            best_outer, outer_score = axis, score
    inner_score = float("-inf")
    reordered: list[L.Stage] = []
    if looping:
        inner_score = 0.0
        for stage in stages:
            if not stage.axes:
                reordered.append(stage)
                continue
            scored = {
                a: _score(a, stage.body, _dependents(stage.body, a))
                for a in (stage.axes if _reorderable(stage) else stage.axes[-1:])
            }
            last = max(scored, key=lambda a: (scored[a], stage.axes.index(a)))
            inner_score += scored[last]
            if any(isinstance(i, L.Scan) for i in stage.body):
                inner_score -= 4.0
            reordered.append(L.Stage((*(a for a in stage.axes if a != last), last), stage.body))
    if looping and (best_outer is None or inner_score >= outer_score):
        return axes, tuple(reordered), "inner"
    if best_outer is None:
        return axes, stages, "none"
    ordered = (*(a for a in axes if a != best_outer), best_outer)
    return ordered, stages, "outer"


def _reorderable(stage: L.Stage) -> bool:
    """Loop order is free unless something counts on it."""
    for instr in stage.body:
        if isinstance(instr, L.Scan) or (isinstance(instr, L.Store) and instr.mode != "set"):
            return False
        if isinstance(instr, L.Reduce) and instr.position is not None:
            return False
        if isinstance(instr, L.Store) and instr.index.value_refs():
            return False
    return True


def _dependents(body: Iterable[L.Instr], axis: Axis) -> set[int]:
    """The values that vary along an axis."""
    found: set[int] = set()
    for instr in body:
        if isinstance(instr, L.Store):
            continue
        varies = any(axis in i.axes() for i in indices_of(instr))
        if varies or any(a in found for a in operands(instr)):
            found.add(instr.id)
    return found
