"""Convolutions as sums over windows, for targets whose kernels contract with what surrounds them.

    before   convolution(x : [N, C, H, W], w : [O, C, R, S]) : [N, O, P, Q]
    after    permute(reduce_sum(mul(expand(window(x)), expand(w)) : [N, P, Q, O, R, S, C], axes R, S, C))

The loop nest of such a sum is a contraction to the code generator, of N*P*Q rows by O columns with a depth
of R*S*C, whose factors are read from the image as they are needed (implicit GEMM; S. Chetlur et al., "cuDNN:
Efficient Primitives for Deep Learning", 2014). Padding is what windows read outside of x. Channels are
innermost in the loop, so that they are loaded in vectors where they lie together: x gets memory in that
order, and so does the weight, once where it lasts. Half types are multiplied and added in f32.

A kernel of 1 x 1 is a matrix product. Transposed convolutions, f64, images whose size is a symbol, and groups
of several channels that make no tile stay ``aten.convolution``; a batch may be a symbol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lazyc.ir import attrs as A
from lazyc.ir.decisions import size_of
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import DType, Shape, contiguous_strides
from lazyc.passes.convolution import as_output, as_product, channels_last, is_plain_product
from lazyc.passes.lasting import Lasting
from lazyc.passes.layout import fixed_strides, same_strides
from lazyc.passes.realize import view_base
from lazyc.passes.rewrite import Rewriter, rewrite
from lazyc.passes.strided import strided_view

_HALVES = (DType.F16, DType.BF16)
_VECTOR_BYTES = 16  # of the widest load of a GPU's thread
_LEAST = 16  # sizes below make no tile of the tensor cores


def convolutions_as_loops(graph: Graph, keeps: bool = True) -> Graph:
    """The Graph with convolutions as sums. Unless the target ``keeps`` what is made of weights, a weight
    that does not lie as the sum reads it is copied at each call."""
    if not any(node.op == "convolution" for node in graph.nodes):
        return graph
    lasting = Lasting(graph)
    demands = {
        o.value: o.strides
        for o in graph.outputs
        if isinstance(o.value, Node) and o.strides is not None and o.alias_of is None
    }

    def lower(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        if not _is_taken(node):
            return None
        if is_plain_product(node):
            b.decide(f"{_named(node)}: a matrix product", "its kernel is 1 x 1")
            return as_product(b, node, *x)
        image, weight, *bias = x
        if _vectors_lie_apart(node, demands):
            b.decide(
                f"{_named(node)}: input copied to channels last",
                "channels are loaded in vectors where they lie together",
                copied=size_of(node.inputs[0].tensor),
            )
            image = _copied(b, image, channels_last(len(image.shape)))
        order = _filter_order(node)
        if _lies_apart(node.inputs[1], order):
            size, kept = size_of(weight.tensor), keeps and lasting(node.inputs[1])
            b.decide(
                f"{_named(node)}: weight reordered",
                "the loop reads it as it lies then",
                copied=0 if kept else size,
                kept=size if kept else 0,
            )
            weight = _copied(b, weight, order)
        return _sum(b, node, image, weight, bias[0] if bias else None)

    return rewrite(graph, {"convolution": [lower]})


def _is_taken(node: Node) -> bool:
    """Whether kernels compute a convolution: one of f32 or a half type that is not transposed, whose
    groups are tiles or single channels, and of which at most the batch is a symbol."""
    outputs, depth, *_ = weight = node.inputs[1].shape
    if node.dtype not in (*_HALVES, DType.F32) or node.attrs.transposed:
        return False
    if not all(isinstance(d, int) for d in (*weight, *node.shape[2:])):
        return False
    groups = node.attrs.groups
    is_depthwise = depth == 1 == outputs // groups
    return groups == 1 or is_depthwise or (outputs // groups >= _LEAST and depth >= _LEAST)


def _named(node: Node) -> str:
    x, weight = (n.tensor for n in node.inputs[:2])
    return f"convolution {x} by {weight}"


# --- where operands lie ---------------------------------------------------------------------------


def _filter_order(node: Node) -> tuple[int, ...]:
    """The dims of a weight (O, C, *kernel) from slowest to fastest as the sum reads it: channels in
    vectors, which for one filter a channel are the output's."""
    rank, depth = len(node.inputs[1].shape), node.inputs[1].shape[1]
    kernel = range(2, rank)
    return (*kernel, 1, 0) if node.attrs.groups != 1 and depth == 1 else (0, *kernel, 1)


def _lies_apart(weight: Node, order: tuple[int, ...]) -> bool:
    """Whether a weight does not lie in this order of its dims, or nothing tells where it lies."""
    strides = fixed_strides(weight)
    if strides is None:
        return True
    shape = tuple(weight.shape[d] for d in order)
    return not same_strides(shape, tuple(strides[d] for d in order), contiguous_strides(shape))


def _vectors_lie_apart(node: Node, demands: Mapping[Node, Shape]) -> bool:
    """Whether the channels of what is convolved, which would make whole vectors, certainly do not lie
    together: in an argument, or in a result of the graph that the caller wants otherwise."""
    x = node.inputs[0]
    channels = node.inputs[1].shape[1] if node.attrs.groups == 1 else x.shape[1]
    if not isinstance(channels, int) or channels * x.dtype.itemsize % _VECTOR_BYTES:
        return False
    base = view_base(x)
    strides = fixed_strides(base) or demands.get(base)
    if strides is None:
        return False
    view = strided_view(x, {base}, {base: strides})
    return view is None or view.strides[1] != 1


def _copied(b: Rewriter, x: Node, order: tuple[int, ...]) -> Node:
    """A copy of x (``plan`` gives it memory) whose dims lie from slowest to fastest in ``order``."""
    turned = b.emit("permute", x, attrs=A.PermuteAttrs(order))
    copy = b.emit("reshape", turned, attrs=A.ShapeAttrs(turned.shape))
    back = tuple(order.index(d) for d in range(len(order)))
    return b.emit("permute", copy, attrs=A.PermuteAttrs(back))


# --- the sum --------------------------------------------------------------------------------------


def _sum(b: Rewriter, node: Node, x: Node, weight: Node, bias: Node | None) -> Node:
    spatial, groups = len(node.attrs.stride), node.attrs.groups
    places = (node.shape[0], *node.shape[2:])
    outputs, depth, *kernel = (int(d) for d in weight.shape)
    split = (groups,) if groups != 1 else ()
    shape = (*places, *split, outputs // groups, *kernel, depth)
    windows = _windows(b, node, x, kernel)  # (N, *counts, C, *kernel)
    channel = 1 + spatial
    windows = b.reshape(windows, (*places, *split, depth, *kernel))
    last = channel + len(split)  # the dim of the channels of a group
    turned = (*range(last), *range(last + 1, last + 1 + spatial), last)
    windows = b.emit("permute", windows, attrs=A.PermuteAttrs(turned))
    windows = b.reshape(windows, (*places, *split, 1, *kernel, depth))
    filters = b.emit("permute", weight, attrs=A.PermuteAttrs(channels_last(2 + spatial)))
    filters = b.reshape(filters, ((1,) * len(places) + (*split, outputs // groups, *kernel, depth)))
    product = b.emit("mul", _spread(b, windows, shape), _spread(b, filters, shape))
    axes = tuple(range(last + 1, len(shape)))
    total = b.emit("reduce_sum", product, attrs=A.ReduceAttrs(axes))
    total = b.reshape(total, (*places, outputs))
    wide = None if bias is None else b.cast(bias, total.dtype)
    return b.cast(as_output(b, total, wide), node.dtype)


def _windows(b: Rewriter, node: Node, x: Node, kernel: Sequence[int]) -> Node:
    """What each output reads: (N, *counts, C, *kernel)."""
    attrs, spatial = node.attrs, len(node.attrs.stride)
    axes = tuple(range(2, 2 + spatial))
    padding = attrs.padding if any(attrs.padding) else ()
    window = A.WindowAttrs(
        axes, tuple(kernel), attrs.stride, attrs.dilation, node.shape[2:], padding
    )
    found = b.emit("window", x, attrs=window)
    turned = (0, *axes, 1, *range(2 + spatial, 2 + 2 * spatial))
    return b.emit("permute", found, attrs=A.PermuteAttrs(turned))


def _spread(b: Rewriter, factor: Node, shape: Shape) -> Node:
    """A factor at every place of the sum, in the type that products are added in."""
    return b.cast(b.expand(factor, shape), DType.F32)
