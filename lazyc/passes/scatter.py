"""Scatter -> loop nest: updates are applied in order, and threads are kept apart by identity dims.

A dim of the update that one index simply counts along (``index[p] == p[d]``) can never collide: it
becomes an outer axis. All other dims are looped over inside, in row-major order.
"""

from __future__ import annotations

from collections.abc import Mapping

from lazyc.ir.graph import Node
from lazyc.ir.index import Axis, axis_index, linearize
from lazyc.ir.program import Buffer
from lazyc.ir.types import Dim, DType
from lazyc.passes import loop_axes
from lazyc.passes.index_maps import Position
from lazyc.passes.lower_kernel import LoweredKernel, buffer_extent
from lazyc.passes.nest_body import Body, Location
from lazyc.passes.nest_finish import finish_nest
from lazyc.passes.realize import INLINE_LEAVES


def lower_scatter(
    node: Node, realized: set[Node], memory: Mapping[Node, Buffer], comment: str = ""
) -> LoweredKernel:
    """The nest that applies the updates of a scatter to ``memory[node]``, which holds the base."""
    _, update, *indices = node.inputs
    params: dict[int, tuple[int, DType, Dim]] = {}

    def place(buffer: Buffer, position: Position) -> Location:
        if buffer.id not in params:
            assert buffer.dtype is not None
            params[buffer.id] = (len(params), buffer.dtype, buffer_extent(buffer))
        number, dtype, _ = params[buffer.id]
        return number, linearize(position, buffer.strides), dtype

    def locate(read: Node, position: Position) -> Location | None:
        if read not in realized or read.op in INLINE_LEAVES:
            return None
        return place(memory[read], position)

    body = Body(locate, lambda read, position: None)
    axes = tuple(Axis(f"u{k}", d) for k, d in enumerate(update.shape))
    position = tuple(axis_index(a) for a in axes)
    affine = [body.affine(i, position) for i in indices]
    safe = {a for a in axes if a.size != 1 and axis_index(a) in affine}
    outer = tuple(a for a in axes if a in safe)
    inner = tuple(a for a in axes if a not in safe and a.size != 1)
    body.open_stage(inner)
    at = tuple(
        body.index_of(i, position, d, node.attrs.checked, None)
        for i, d in zip(indices, node.shape, strict=True)
    )
    value = body.value(update, position)
    body.store(place(memory[node], at), value, node.attrs.mode)
    stages = body.finish()
    outer, stages, vectorize = loop_axes.choose_vector_axis(outer, stages)
    nest, keys, symbols = finish_nest(outer, stages, params, vectorize, comment)
    return LoweredKernel(nest, tuple(keys), symbols)
