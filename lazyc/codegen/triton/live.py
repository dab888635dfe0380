"""Registers that a kernel of a nest with loops needs at once, for each element of its block that a thread has.

What has no order a thread computes a few elements at a time. It needs registers for all of its elements where order
is fixed: for the running results of a loop of several blocks; for what a later stage reads again of a block
that has all iterations; and at a store, which the compiler moves neither before a load that comes earlier nor
behind a later one or another store, since memory may overlap for all it knows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from lazyc.ir import loops as L
from lazyc.ir.index import Atom, Axis, Index, ValueRef, axis_index, substitute, value_index
from lazyc.ir.nest_values import axes_of_values, cone, indices_of, operands
from lazyc.ir.types import Dim, DType, numel

_REGISTER_BYTES = 4
_LONG = 64  # blocks of a loop, from which on the rounding of sums is kept track of


def is_whole(total: Dim, count: int) -> bool:
    """Whether one block of ``count`` has all iterations of a stage."""
    return isinstance(total, int) and total <= count


def is_long(total: Dim, count: int) -> bool:
    """Whether a stage has so many blocks that sums keep track of their rounding."""
    return not isinstance(total, int) or total > _LONG * count


def words_at_once(nest: L.LoopNest, iterations: Sequence[int]) -> float:
    """Registers for an element, of blocks of so many ``iterations`` for each stage."""
    values = _Values(nest, iterations)
    most = 0.0
    for position, stage, is_ordered in values.places:
        kept = sum(
            words
            for key, (made, words) in values.made.items()
            if made < position <= values.last_read[key]
        )
        running = values.running[stage]
        if is_ordered or running:
            most = max(most, (kept if is_ordered else 0) + running)
    return most


class _Values:
    """The values of a nest that vary along the stages' axes and come from memory: where each is ``made`` and how many
    words it has, and where it is ``last_read``. Equal values of blocks with all iterations are one. ``places``: the
    position of each instruction with its stage, and whether what comes before and after it keeps its order there.
    ``running``: words of the running results of each stage."""

    def __init__(self, nest: L.LoopNest, iterations: Sequence[int]) -> None:
        self.made: dict[Hashable, tuple[int, float]] = {}
        self.last_read: dict[Hashable, int] = {}
        self.places: list[tuple[int, int, bool]] = []
        self.running: list[float] = []
        self._keys: dict[int, Hashable] = {}  # of values, by id
        self._numbers: dict[Hashable, int] = {}
        self._read_only = {k for k, b in enumerate(nest.buffers) if b.role == "in"}
        varies = axes_of_values(nest.stages)
        types = {i.id: i.dtype for s in nest.stages for i in s.body if not isinstance(i, L.Store)}
        position = 0
        for number, (stage, count) in enumerate(zip(nest.stages, iterations, strict=True)):
            total = numel(a.size for a in stage.axes)
            whole = not stage.axes or is_whole(total, count)
            loads = [i.id for i in stage.body if isinstance(i, L.Load | L.Random)]
            results = [i for i in stage.body if isinstance(i, L.Reduce)]
            self.running.append(
                0.0
                if whole
                else sum(_running_words(i, types[i.value], is_long(total, count)) for i in results)
            )
            for instr in stage.body:
                position += 1
                key = None if isinstance(instr, L.Store) else self._key(instr, stage, number, whole)
                if key is None or key not in self.last_read:
                    for value in operands(instr):
                        self.last_read[self._keys[value]] = position
                is_fixed = isinstance(instr, L.Store | L.Dot)
                self.places.append((position, number, is_fixed))
                if isinstance(instr, L.Store):
                    continue
                assert key is not None
                self._keys[instr.id] = key
                self.last_read.setdefault(key, position)
                along = bool(varies[instr.id] & set(stage.axes))
                if along and key not in self.made and cone(stage.body, (instr.id,)) & set(loads):
                    self.made[key] = position, instr.dtype.itemsize / _REGISTER_BYTES
            position += 1  # what comes behind the stage waits for it
            self.places.append((position, number, whole))

    def _key(self, instr: L.Instr, stage: L.Stage, number: int, whole: bool) -> Hashable:
        """Equal for values that are computed once."""
        assert not isinstance(instr, L.Store)
        is_shared = whole and isinstance(instr, L.Const | L.IndexValue | L.Load | L.Compute)
        if isinstance(instr, L.Load) and instr.buffer not in self._read_only:
            is_shared = False
        if not is_shared:
            return number, instr.id
        sizes = tuple(a.size for a in stage.axes)
        index = tuple(self._index(i, stage.axes) for i in indices_of(instr))
        read = tuple(self._keys[v] for v in operands(instr))
        what: tuple[Hashable, ...] = ()
        if isinstance(instr, L.Load):
            what = instr.buffer, instr.mask is None
        elif isinstance(instr, L.Compute):
            what = (instr.op,)
        elif isinstance(instr, L.Const):
            what = (repr(instr.value),)
        return type(instr), instr.dtype, sizes if index else (), index, read, what

    def _index(self, index: Index, axes: tuple[Axis, ...]) -> Index:
        """An index by the places of axes in their stage, and the keys of values."""

        def replaced(atom: Atom) -> Index | None:
            if isinstance(atom, Axis) and atom in axes:
                return axis_index(Axis(f"stage{axes.index(atom)}", atom.size))
            if isinstance(atom, ValueRef):
                key = self._keys[atom.value]
                return value_index(self._numbers.setdefault(key, len(self._numbers)), atom.size)
            return None

        return substitute(index, replaced)


def _running_words(instr: L.Reduce, dtype: DType, long: bool) -> float:
    """Of a running result, as ``reduction.Accumulator`` keeps it."""
    own = max(1.0, dtype.itemsize / _REGISTER_BYTES)
    if instr.kind in ("argmax", "argmin"):
        return own + 3  # the number of the iteration, and the position
    return 2 * own if long and dtype.is_float and instr.kind == "sum" else own
