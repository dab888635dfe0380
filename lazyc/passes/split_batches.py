"""Products over batch dims that were merged for them, as products over the dims as they were.

    before   %3 = permute(%2) : [b, h, m, k]     matmul(reshape(%3) : [b*h, m, k], ...) : [b*h, m, n]
    after    matmul(%3, ...) : [b, h, m, n]      reshape : [b*h, m, n]

Heads of attention are such a permutation of the columns of one matrix. Merged with the batch they are no
strided view of it, so that BLAS would need a copy; apart, every operand is read where it is, and the
result may be written in the order of its reader.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.ir.decisions import size_of
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import Shape, contiguous_strides, numel
from lazyc.passes.canonicalize import canonicalize
from lazyc.passes.contraction import as_matrix
from lazyc.passes.layout import fixed_strides
from lazyc.passes.realize import view_base
from lazyc.passes.rewrite import Rewriter, rewrite
from lazyc.passes.strided import strided_view


def split_batches(graph: Graph) -> Graph:
    """The Graph with products over the batch dims that let operands be read in place."""
    if not any(n.op == "matmul" and any(map(_is_merged, n.inputs)) for n in graph.nodes):
        return graph
    # Canonical: the result's reshape joins those that read it.
    return canonicalize(rewrite(graph, {"matmul": [_split]}))


def _split(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
    merged = [arg for arg in x if _is_merged(arg)]
    if not merged:
        return None
    lead = tuple(d for d in _below_transpose(merged[0]).inputs[0].shape[:-2] if d != 1)
    parts = [_with_batch(b, arg, lead) for arg in x]
    product = b.emit("matmul", *parts)
    sizes = [size_of(arg.tensor) for arg in merged]
    known = [2 * s for s in sizes if s is not None]
    b.decide(
        f"product of {x[0].type} and {x[1].type} over batch dims ({', '.join(map(str, lead))})",
        "operands are read where they are; merged, they would be copied",
        saved=sum(known) if len(known) == len(sizes) else None,
    )
    return b.reshape(product, node.shape)


def _is_merged(x: Node) -> bool:
    """Whether x is a view whose batch dims were merged, which BLAS can read before that only."""
    view = _below_transpose(x)
    if view.op != "reshape":
        return False
    source = view.inputs[0]
    matrix, batch = view.shape[-2:], view.shape[:-2]
    if len(source.shape) < 3 or source.shape[-2:] != matrix:
        return False
    return numel(source.shape[:-2]) == numel(batch) and _is_readable(source) and not _is_readable(x)


def _below_transpose(x: Node) -> Node:
    """What a transpose of matrices is of; any other value itself."""
    is_transpose = x.op == "permute" and x.attrs.dims[:-2] == tuple(range(len(x.shape) - 2))
    return x.inputs[0] if is_transpose else x


def _is_readable(x: Node) -> bool:
    """Whether BLAS can read a view of memory that lies as it was given, or row-major."""
    base = view_base(x)
    strides = fixed_strides(base) or contiguous_strides(base.shape)
    view = strided_view(x, {base}, {base: strides})
    return view is not None and as_matrix(view) is not None


def _with_batch(b: Rewriter, x: Node, lead: Shape) -> Node:
    shape = (*lead, *x.shape[-2:])
    return b.reshape(x.inputs[0] if x.op == "reshape" else x, shape)
