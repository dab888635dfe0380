"""Products of half types over batch dims, by a library's routine whose results are not rounded to them.

    before   matmul(a : bf16[b, m, k], c : bf16[b, k, n]) : bf16[b, m, n]
    after    cast(wide_matmul(a, c) : f32[b, m, n], bf16)

    before   matmul(cast(a, f32), cast(c, f32)) : f32[b, m, n]
    after    wide_matmul(a, c) : f32[b, m, n]

MKL has them for f16 and bf16. They are native steps, which a product with results of a half type, a call of
ATen, is not, so that they can run by blocks of rows (``row_tiles``); sums of blocks that were rounded each would
lose digits. The cast is a part of what reads the result. Attention takes memory that grows with the length of the
sequence then. With MKL's routines it takes a quarter longer than with ATen's products (oneDNN) and stored scores; where
the CPU has tiles for the type, blocks are multiplied by oneDNN's kernels (``runtime/half_tiles.py``), and it takes as
long or up to a fifth longer. Only products with a matrix that is known to be large are changed, from a lower size on in
the second case, and those of attention where the option ``attention`` asks for it. Those without batch dims are of
layers, which have no scores.

Those kernels take the first factor by rows, so that a sum over the rows of a large matrix is turned:

    before   matmul(permute(p) : [b, n, m], c : [b, m, k])     after    permute(wide_matmul(permute(c), p))

A product whose factors were widened for it, as those of torch's attention are, is the same one. In bf16 it is
multiplied as it was whatever its size, which is faster on CPUs with AMX;
MKL widens f16 itself, once for each block, which is slower than to do it once.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial

from lazyc.config import AttentionKernel
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import DType, numel
from lazyc.passes.attention import products_of_attention
from lazyc.passes.rewrite import Rewriter, rewrite

_HALVES = (DType.F16, DType.BF16)
# Of one of the three matrices of a product, over all batch dims, in f32. Training computes scores again from the same
# size on (frontend/recompute.py). ``python -m bench nanogpt-ladder --layers 0 --dtype bfloat16`` has what it costs.
LEAST_BYTES = 256 << 20
# Of types whose blocks oneDNN's kernels multiply (runtime/half_tiles.py): from here on that is as fast, or up to a
# fifth slower.
LEAST_PACKED_BYTES = 16 << 20


def half_products(
    graph: Graph, attend: AttentionKernel = "auto", packed: Container[DType] = ()
) -> Graph:
    """The Graph with ``wide_matmul`` where it serves; for "memory-efficient" in all attention. ``packed``: the types
    whose blocks oneDNN's kernels multiply."""
    wanted = products_of_attention(graph) if attend == "memory-efficient" else set()
    return rewrite(graph, {"matmul": [partial(_widen, wanted, packed)]})


def least_bytes(dtype: DType, packed: Container[DType]) -> int:
    """Of the scores of an attention that is better computed again than kept."""
    return LEAST_PACKED_BYTES if dtype in packed else LEAST_BYTES


def _widen(
    wanted: set[Node], packed: Container[DType], b: Rewriter, node: Node, x: Sequence[Node]
) -> Node | None:
    factors = [_narrow(arg) for arg in x]
    kind = factors[0].dtype
    if len(node.shape) < 3 or kind not in _HALVES or factors[1].dtype is not kind:
        return None
    is_widened = node.dtype is not kind
    is_asked_for = node in wanted or (is_widened and kind is DType.BF16)
    least = least_bytes(kind, packed)
    is_large = any(_is_large(n, least) for n in (node, *x))
    if not is_asked_for and not is_large:
        return None
    b.decide(
        f"product of {factors[0].type} and {factors[1].type} with a result in f32",
        "with one of a half type it could not run by blocks of rows",
    )
    if is_large and kind in packed and _is_turned(factors[0]) and _is_larger(*factors):
        second, first = (_turned(b, n) for n in factors)
        return _turned(b, b.cast(b.emit("wide_matmul", first, second), node.dtype))
    return b.cast(b.emit("wide_matmul", *factors), node.dtype)


def _is_large(x: Node, least: int) -> bool:
    elements = numel(x.shape)
    return isinstance(elements, int) and elements * DType.F32.itemsize >= least


def _is_larger(x: Node, than: Node) -> bool:
    sizes = numel(x.shape), numel(than.shape)
    return isinstance(sizes[0], int) and isinstance(sizes[1], int) and sizes[0] > sizes[1]


def _is_turned(x: Node) -> bool:
    """Whether it is the transpose of something, perhaps with other batch dims."""
    if x.op == "reshape" and x.shape[-2:] == x.inputs[0].shape[-2:]:
        x = x.inputs[0]
    return x.op == "permute" and x.attrs.dims == _last_two_swapped(x)


def _turned(b: Rewriter, x: Node) -> Node:
    if _is_turned(x) and x.op == "reshape":
        source = x.inputs[0].inputs[0]
        return b.reshape(source, (*x.shape[:-2], x.shape[-1], x.shape[-2]))
    if _is_turned(x):
        return x.inputs[0]
    return b.emit("permute", x, attrs=A.PermuteAttrs(_last_two_swapped(x)))


def _last_two_swapped(x: Node) -> tuple[int, ...]:
    rank = len(x.shape)
    return (*range(rank - 2), rank - 1, rank - 2)


def _narrow(x: Node) -> Node:
    """What a factor was before it was widened from a half type."""
    widened = x.op == "cast" and x.dtype is DType.F32 and x.inputs[0].dtype in _HALVES
    return x.inputs[0] if widened else x
