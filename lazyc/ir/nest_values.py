"""What the values of a loop nest read and vary along."""

from __future__ import annotations

from collections.abc import Iterable

from lazyc.ir import loops as L
from lazyc.ir.index import Axis, FloorDiv, Index, Mod, bounds
from lazyc.ir.types import Dim, numel


def indices_of(instr: L.Instr) -> tuple[Index, ...]:
    """The index expressions of an instruction."""
    if isinstance(instr, L.Load | L.Store | L.IndexValue):
        return (instr.index,)
    return (instr.counter,) if isinstance(instr, L.Random) else ()


def operands(instr: L.Instr) -> tuple[int, ...]:
    """The values that an instruction reads, those in its indices included."""
    found: list[int | None] = [v for index in indices_of(instr) for v in index.value_refs()]
    match instr:
        case L.Compute():
            found += instr.args
        case L.Load():
            found.append(instr.mask)
        case L.Store() | L.CheckIndex():
            found += [instr.value, instr.mask]
        case L.Random():
            found.append(instr.seed)
        case L.Reduce():
            found += [instr.value, instr.position]
        case L.Scan():
            found.append(instr.value)
        case L.Dot():
            found += [instr.left, instr.right]
        case L.Const() | L.IndexValue():
            pass
    return tuple(v for v in found if v is not None)


def own_axes(body: Iterable[L.Instr]) -> tuple[Axis, ...]:
    """The axes that the dots of a body loop over, each once."""
    return tuple(dict.fromkeys(a for i in body if isinstance(i, L.Dot) for a in i.axes))


def axes_of_values(stages: Iterable[L.Stage]) -> dict[int, set[Axis]]:
    """The axes that each value varies along, outer ones included."""
    found: dict[int, set[Axis]] = {}
    for stage in stages:
        for instr in stage.body:
            if isinstance(instr, L.Store):
                continue
            axes: set[Axis] = set()
            for index in indices_of(instr):
                axes |= index.axes()
            for value in operands(instr):
                axes |= found.get(value, set())
            if isinstance(instr, L.Reduce):
                axes -= set(stage.axes)
            elif isinstance(instr, L.Dot):
                axes -= set(instr.axes)
            found[instr.id] = axes
    return found


def inside_of_dots(body: Iterable[L.Instr]) -> set[int]:
    """The values of a body that vary along the axes of a dot, so that only dots can read them."""
    body = tuple(body)
    own = set(own_axes(body))
    return (
        {k for k, axes in axes_of_values([L.Stage((), body)]).items() if axes & own}
        if own
        else set()
    )


def cone(body: Iterable[L.Instr], values: Iterable[int], into_dots: bool = True) -> set[int]:
    """The values of a body that some of them depend on, themselves included; unless ``into_dots``, not
    those that are read by dots alone."""
    by_id = {i.id: i for i in body if not isinstance(i, L.Store)}
    found: set[int] = set()
    todo = list(values)
    while todo:
        instr = by_id.get(todo.pop())
        if instr is not None and instr.id not in found:
            found.add(instr.id)
            if into_dots or not isinstance(instr, L.Dot):
                todo += operands(instr)
    return found


def fits_32_bits(nest: L.LoopNest) -> bool:
    """Whether every index and position is certainly a 32-bit number. Counters of random numbers are apart:
    they may count elements that no buffer has."""
    sizes: list[Dim] = [b.numel for b in nest.buffers]
    sizes += [numel(a.size for a in axes) for axes in (nest.axes, *(s.axes for s in nest.stages))]
    for stage in nest.stages:
        for instr in stage.body:
            if isinstance(instr, L.Load | L.Store | L.IndexValue):
                sizes += bounds(instr.index)
            elif isinstance(instr, L.Random):
                for atom, _ in instr.counter.terms:
                    if isinstance(atom, FloorDiv | Mod):
                        sizes += bounds(atom.base)
            elif isinstance(instr, L.CheckIndex):
                sizes.append(instr.size)
    return all(map(_is_short, sizes))


def is_short(index: Index) -> bool:
    """Whether an index is certainly a 32-bit number."""
    return all(map(_is_short, bounds(index)))


def _is_short(size: Dim) -> bool:
    return isinstance(size, int) and abs(size) < 1 << 30
