"""Operands of matrix products that BLAS cannot read where they are get memory of their own.

    before   %0 = input : [4, 4] strides (8, 2)     %2 = matmul(%1, %0)
    after    %0 = input : [4, 4] strides (8, 2)     %3 = reshape(%0, [4, 4])     %2 = matmul(%1, %3)

Only for values whose strides are given: inputs, constants, results of eager calls. The layout of all
others suits the products that read them, and a view of another value is copied when it must be
(``plan``).
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.ir import attrs as A
from lazyc.ir.decisions import size_of
from lazyc.ir.graph import Graph, Node
from lazyc.passes.contraction import as_matrix
from lazyc.passes.lasting import Lasting
from lazyc.passes.layout import fixed_strides
from lazyc.passes.rewrite import Rewriter, rewrite
from lazyc.passes.strided import StridedView


def copy_matrix_operands(graph: Graph, keeps: bool = True) -> Graph:
    """The Graph with a copy (``reshape`` to the same shape) of each operand that BLAS cannot read. ``keeps`` as
    in ``Lasting``."""
    lasting = Lasting(graph, keeps)

    def readable(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        operands = [arg if _is_matrix(arg) else _copy(b, arg, lasting(arg)) for arg in x]
        return b.emit(node.op, *operands, attrs=node.attrs)

    return rewrite(graph, {"matmul": [readable], "wide_matmul": [readable]})


def _is_matrix(node: Node) -> bool:
    strides = fixed_strides(node)
    return strides is None or as_matrix(StridedView(node, node.shape, strides, 0)) is not None


def _copy(b: Rewriter, node: Node, lasts: bool) -> Node:
    size = size_of(node.tensor)
    b.decide(
        f"operand {node.type} with strides ({', '.join(map(str, fixed_strides(node) or ()))}) copied",
        "BLAS reads a matrix with rows or columns that are contiguous",
        copied=0 if lasts else size,
        kept=size if lasts else 0,
    )
    return b.emit("reshape", node, attrs=A.ShapeAttrs(node.shape))
