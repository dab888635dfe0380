"""Tiles for nests that read across memory, as in a transposition.

With lanes along the last outer axis, a load that runs along another axis touches as many cache lines
as there are lanes, for one element each. A loop over as many neighbours as a line holds, inside of
the item, uses the lines up while they are in the cache:

    nest [i: 2048, j: 2048]           nest [iq: 128, j: 2048]
      out[i*2048 + j] =        ->       loop [ir: 16]
        in[j*2048 + i]                    out[(iq*16 + ir)*2048 + j] = in[j*2048 + iq*16 + ir]
"""

from __future__ import annotations

from dataclasses import replace

from lazyc.ir.index import Axis, Index, axis_index, substitute
from lazyc.ir.loops import IndexValue, Instr, Load, LoopNest, Random, Stage, Store

_LINE = 64  # bytes
_LEAST = 4  # neighbours


def tiled(nest: LoopNest) -> LoopNest:
    """The nest with the axis that its strided loads run along split in two, or the nest itself."""
    if nest.vectorize != "outer" or len(nest.stages) != 1 or nest.stages[0].axes:
        return nest
    body = nest.stages[0].body
    for instr in body:
        if isinstance(instr, Load):
            axis = _neighbours(nest, instr)
            length = _tile_length(axis, instr) if axis else 0
            if axis and length:
                return _split(nest, body, axis, length)
    return nest


def _neighbours(nest: LoopNest, load: Load) -> Axis | None:
    """The outer axis along which a load finds the rest of the cache lines that its lanes touch."""
    if not nest.axes:
        return None
    stride = load.index.coef(nest.axes[-1])
    if isinstance(stride, int) and abs(stride) * load.dtype.itemsize < _LINE:
        return None
    return next((a for a in nest.axes[:-1] if load.index.coef(a) == 1), None)


def _tile_length(axis: Axis, load: Load) -> int:
    """How many neighbours to do together: 0 when the axis cannot be cut evenly."""
    length = _LINE // load.dtype.itemsize
    while length >= _LEAST:
        if isinstance(axis.size, int) and axis.size % length == 0:
            return length
        length //= 2
    return 0


def _split(nest: LoopNest, body: tuple[Instr, ...], axis: Axis, length: int) -> LoopNest:
    assert isinstance(axis.size, int)
    tile = Axis(f"{axis.name}q", axis.size // length)
    inside = Axis(f"{axis.name}r", length)
    position = axis_index(tile) * length + axis_index(inside)

    def moved(index: Index) -> Index:
        return substitute(index, lambda atom: position if atom == axis else None)

    def instr_moved(instr: Instr) -> Instr:
        if isinstance(instr, Load | Store | IndexValue):
            return replace(instr, index=moved(instr.index))
        if isinstance(instr, Random):
            return replace(instr, counter=moved(instr.counter))
        return instr

    axes = tuple(tile if a == axis else a for a in nest.axes)
    stage = Stage((inside,), tuple(instr_moved(instr) for instr in body))
    return replace(nest, axes=axes, stages=(stage,))
