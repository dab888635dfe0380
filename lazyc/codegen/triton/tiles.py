"""What kernels with products of tiles share: sizes of tiles, where a program's tile is, narrow factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lazyc.codegen.triton.code import VECTOR_BYTES, Code
from lazyc.codegen.triton.pointwise import TYPES
from lazyc.codegen.triton.writer import Value
from lazyc.ir import loops as L
from lazyc.ir.index import Axis
from lazyc.ir.nest_values import axes_of_values, cone
from lazyc.ir.types import Dim, DType, numel

ROWS, COLUMNS = 1, 2  # what values vary along, in every kernel with tiles
WIDEST = 256  # of the depth of a dot, and of results of attention: what a tile holds whole
LEAST = 16  # rows, columns and depth (of half types) that a tile of the tensor cores has
# Single precision is asked to be exact (``input_precision="ieee"``). For sm_100 Triton multiplies all the
# same by TF32 where a factor was widened from a half type (triton-lang/triton, issue 10176), but only tiles of at
# least so many rows.
EXACT_ROWS = 64


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes of tiles, and the warps and stages of the pipeline that load them. ``depth``: along the loop, which
    is that of the keys in attention."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def __str__(self) -> str:
        sizes = f"{self.rows}x{self.columns}x{self.depth}"
        return f"{sizes}, {self.warps} warps, {self.stages} stages"


def tile_size(axes: Sequence[Axis], largest: int, unknown: int | None = None) -> int:
    """The power of two that holds the axes, up to ``largest``; where a size is not known, ``unknown`` (by
    default the largest)."""
    size = numel(a.size for a in axes)
    if not isinstance(size, int):
        return largest if unknown is None else min(unknown, largest)
    return min(largest, max(LEAST, 1 << (size - 1).bit_length()))


def tiled_axes(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The last axes, as many as fill a tile; those before them are apart in the grid."""
    for k in reversed(range(len(axes))):
        size = numel(a.size for a in axes[k:])
        if not isinstance(size, int) or size >= LEAST:
            return tuple(axes[k:])
    return tuple(axes)


def open_tile(
    code: Code,
    batch: Sequence[Axis],
    rows: tuple[Sequence[Axis], int],
    columns: tuple[Sequence[Axis], int],
) -> None:
    """Positions in the tile at ``row`` and ``column`` (variables of the text) of a grid of ``across`` by
    ``down`` tiles for each point of the batch. ``rows`` and ``columns``: axes, and how many a tile has."""
    kind, line = TYPES[code.index_type], code.w.line
    line(f"batch = (tl.program_id(0) // (down * across)).to({kind}) + tl.full([1, 1], 0, {kind})")
    code.unravel(0, "batch", batch)
    line(f"y = row.to({kind}) * {rows[1]} + tl.arange(0, {rows[1]})[:, None]")
    line(f"x = column.to({kind}) * {columns[1]} + tl.arange(0, {columns[1]})[None, :]")
    for bit, flat, (axes, size) in ((ROWS, "y", rows), (COLUMNS, "x", columns)):
        total: Dim = numel(a.size for a in axes)
        code.open(bit, flat, axes, total, size)


def values_of(nest: L.LoopNest) -> dict[int, L.Instr]:
    """The instructions of a nest by the values that they define."""
    return {i.id: i for s in nest.stages for i in s.body if not isinstance(i, L.Store)}


def stored_type(instrs: Mapping[int, L.Instr], value: int) -> DType | None:
    """The type that a factor was before it was widened to the one that its products are added in; None for any
    other."""
    instr = instrs[value]
    if not isinstance(instr, L.Compute) or instr.op != "cast":
        return None
    source = instrs[instr.args[0]]
    assert not isinstance(source, L.Store)
    is_widened = source.dtype.is_widened and source.dtype.accumulator is instr.dtype
    return source.dtype if is_widened else None


def is_loaded(instrs: Mapping[int, L.Instr], value: int) -> bool:
    """Whether a value is what memory holds, which is 0 beyond every end that it is loaded along."""
    instr = instrs[value]
    while isinstance(instr, L.Compute) and instr.op == "cast":
        instr = instrs[instr.args[0]]
    return isinstance(instr, L.Load) and instr.other == 0


def whole_factor(
    code: Code, instrs: Mapping[int, L.Instr], value: int, found: Value, bit: int, varies: int
) -> str:
    """A factor (``found``, what ``value`` is) as a tile along ``varies``, 0 beyond its end along ``bit``, where the other
    factor may hold anything."""
    w = code.w
    text = w.broadcast(found.text, found.varies, varies)
    # What memory holds is 0 beyond the ends that it was loaded along.
    if not w.ends[bit] or (found.varies & bit and is_loaded(instrs, value)):
        return text
    zero = "0.0" if found.dtype.is_float else "0"
    return w.value(f"tl.where({w.ends[bit]}, {text}, {zero})", found.dtype, varies).text


def before_widening(code: Code, instrs: Mapping[int, L.Instr], value: int) -> Value:
    """A factor in the type that ``stored_type`` tells."""
    instr = instrs[value]
    assert isinstance(instr, L.Compute)
    return code.values[instr.args[0]]


def common_type(instrs: Mapping[int, L.Instr], left: int, right: int) -> DType | None:
    """The type that both factors of a product were before they were widened; None if they were not, or were of
    two types."""
    found = stored_type(instrs, left)
    return found if found is stored_type(instrs, right) else None


def are_aligned(body: Sequence[L.Instr], factors: Iterable[int], axes: Iterable[Axis]) -> bool:
    """Whether what factors are made of along ``axes`` lies in vectors that start at multiples of their
    size, so that it can be loaded by VECTOR_BYTES."""
    needed, along = cone(body, factors), set(axes)
    varies = axes_of_values([L.Stage((), tuple(body))])
    loads = [i for i in body if isinstance(i, L.Load) and i.id in needed]
    return all(_is_aligned(i, varies) for i in loads if i.index.axes() & along)


def lie_along(body: Sequence[L.Instr], axes: Sequence[Axis]) -> bool:
    """Whether what is loaded along ``axes`` has its neighbours there, in the last of them."""
    loads = [i for i in body if isinstance(i, L.Load) and i.index.axes() & set(axes)]
    return all(i.index.coef(axes[-1]) == 1 for i in loads)


def _is_aligned(load: L.Load, varies: Mapping[int, set[Axis]]) -> bool:
    """Whether the elements of a load lie together along one axis, in whole vectors, all of which its mask
    hides or none. ``varies``: the axes that values vary along."""
    per_vector = max(1, VECTOR_BYTES // load.dtype.itemsize)
    together: list[Axis] = []
    for atom, coef in load.index.terms:
        if not isinstance(atom, Axis) or not isinstance(coef, int):
            return False
        if coef == 1:
            together.append(atom)
            if not isinstance(atom.size, int) or atom.size % per_vector:
                return False
        elif coef % per_vector:
            return False
    const = load.index.const
    if len(together) != 1 or not isinstance(const, int) or const % per_vector:
        return False
    return load.mask is None or (load.mask in varies and together[0] not in varies[load.mask])
