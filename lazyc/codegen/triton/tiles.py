"""What kernels with products of tiles share: sizes of tiles, where a program's tile is, half factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lazyc.codegen.triton.code import Code
from lazyc.codegen.triton.pointwise import TYPES
from lazyc.codegen.triton.writer import Value
from lazyc.ir import loops as L
from lazyc.ir.index import Axis
from lazyc.ir.types import Dim, DType, numel

ROWS, COLUMNS = 1, 2  # what values vary along, in every kernel with tiles
LEAST = 16  # rows, columns and depth that a tile of the tensor cores has
_HALVES = (DType.F16, DType.BF16)


def tile_size(axes: Sequence[Axis], largest: int, unknown: int | None = None) -> int:
    """The power of two that holds the axes, up to ``largest``; where a size is not known, ``unknown`` (by
    default the largest)."""
    size = numel(a.size for a in axes)
    if not isinstance(size, int):
        return largest if unknown is None else min(unknown, largest)
    return min(largest, max(LEAST, 1 << (size - 1).bit_length()))


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


def stored_half(instrs: Mapping[int, L.Instr], value: int) -> DType | None:
    """The half type that a factor was before it was widened to f32; None for any other."""
    instr = instrs[value]
    if not isinstance(instr, L.Compute) or instr.op != "cast":
        return None
    source = instrs[instr.args[0]]
    assert not isinstance(source, L.Store)
    return source.dtype if source.dtype in _HALVES else None


def before_widening(code: Code, instrs: Mapping[int, L.Instr], value: int) -> Value:
    """A factor in its half type."""
    instr = instrs[value]
    assert isinstance(instr, L.Compute)
    return code.values[instr.args[0]]
