"""Convolutions as sums over windows, for targets whose kernels contract with what surrounds them.

    before   convolution(x : [N, C, H, W], w : [O, C, R, S]) : [N, O, P, Q]
    after    permute(reduce_sum(mul(expand(window(x)), expand(w)) : [N, P, Q, O, R, S, C], axes R, S, C))

The loop nest of such a sum is a contraction to the code generator, of N*P*Q rows by O columns with a depth
of R*S*C, whose factors are read from the image as they are needed (implicit GEMM; S. Chetlur et al., "cuDNN:
Efficient Primitives for Deep Learning", 2014). Padding is what windows read outside of x. Channels are
innermost in the loop, so that they are loaded in vectors where they lie together: x gets memory in that
order, and so does the weight, once where it lasts. Half types are multiplied and added in f32.

A kernel of 1 x 1 is a matrix product. f64, images whose size is a symbol, and groups
of several channels that make no tile stay ``aten.convolution``; a batch may be a symbol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lazyc.ir import attrs as A
from lazyc.ir.decisions import size_of
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import DType, Shape, contiguous_strides, is_nonneg
from lazyc.passes.contraction import image_order, windows_of_products
from lazyc.passes.convolution import as_output, as_product, channels_last, is_plain_product
from lazyc.passes.lasting import Lasting
from lazyc.passes.layout import fixed_strides, same_strides
from lazyc.passes.realize import live_nodes, view_base
from lazyc.passes.rewrite import Rewriter, rewrite
from lazyc.passes.strided import strided_view

_HALVES = (DType.F16, DType.BF16)
_VECTOR_BYTES = 16  # of the widest load of a GPU's thread
_LEAST = 16  # sizes below make no tile of the tensor cores


def convolutions_as_loops(graph: Graph, keeps: bool = True) -> Graph:
    """The Graph with convolutions as sums. Unless what is made of weights is kept (``keeps``), a weight that
    does not lie as the sum reads it is copied at each call."""
    if not any(node.op in ("convolution", "window") for node in graph.nodes):
        return graph
    lasting = Lasting(graph, keeps)

    def lower(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        image, weight, *bias = x
        if is_plain_product(node) and _has_type(node):
            b.decide(f"{_named(node)}: a matrix product", "its kernel is 1 x 1")
            if node.attrs.transposed:
                dims = (1, 0, *range(2, len(weight.shape)))
                weight = b.emit("permute", weight, attrs=A.PermuteAttrs(dims))
            return as_product(b, node, image, weight, *bias)
        sums = _as_sum(b, node, weight)
        if sums is None:
            return None
        order = _filter_order(sums)
        if sums.weight is not weight or _lies_apart(node.inputs[1], order):
            size, kept = size_of(sums.weight.tensor), lasting(node.inputs[1])
            b.decide(
                f"{_named(node)}: weight reordered",
                "the loop reads it as it lies then",
                copied=0 if kept else size,
                kept=size if kept else 0,
            )
            sums = replace(sums, weight=_copied(b, sums.weight, order))
        total = _sum(b, sums, image)
        if sums.phases is not None:
            total = _interleaved(b, node, sums.phases, total)
        wide = b.cast(bias[0], total.dtype) if bias else None
        return b.cast(as_output(b, total, wide), node.dtype)

    return _with_images_together(rewrite(graph, {"convolution": [lower]}))


def _with_images_together(graph: Graph) -> Graph:
    """The Graph with copies of images whose channels are loaded in vectors, where those lie apart."""
    windows = {id(w) for w in windows_of_products(live_nodes(graph))}
    demands = {
        o.value: o.strides
        for o in graph.outputs
        if isinstance(o.value, Node) and o.strides is not None and o.alias_of is None
    }

    def copy(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        image = node.inputs[0]
        order = image_order(node)
        if id(node) not in windows or not _vectors_lie_apart(image, order[-1], demands):
            return None
        b.decide(
            f"windows of {image.type}: copied to channels last",
            "channels are loaded in vectors where they lie together",
            copied=size_of(image.tensor),
        )
        return b.emit("window", _copied(b, x[0], order), attrs=node.attrs)

    return rewrite(graph, {"window": [copy]}) if windows else graph


@dataclass(frozen=True, slots=True)
class _Phases:
    """Results of a convolution with the gaps of a transposed one: ``counts`` places along each spatial dim, each
    of ``phases`` results, of every ``strides``; the first ``starts`` of them are cut off."""

    counts: tuple[int, ...]
    phases: tuple[int, ...]
    strides: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def is_one(self) -> bool:
        return all(s == 1 for s in self.strides)


@dataclass(frozen=True, slots=True)
class _Sum:
    """A convolution that is not transposed: ``weight`` [outputs, channels of a group, *kernel], ``places`` (batch,
    *counts) of the windows. ``phases`` where its outputs are (*phases, channels)."""

    weight: Node
    places: Shape
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    phases: _Phases | None = None


def _has_type(node: Node) -> bool:
    return node.dtype in (*_HALVES, DType.F32)


def _as_sum(b: Rewriter, node: Node, weight: Node) -> _Sum | None:
    """The sum that a convolution is. None for one that kernels do not compute: of another type, with other
    symbols than the batch, whose groups are neither tiles nor single channels, or transposed with gaps in
    both its image and its kernel."""
    attrs, groups = node.attrs, node.attrs.groups
    outer, inner, *kernel = weight.shape
    sizes = (outer, inner, *kernel, *node.shape[2:])
    if not _has_type(node) or not all(isinstance(d, int) for d in sizes):
        return None
    outputs, depth = outer // groups, inner  # of a group
    if attrs.transposed:
        outputs, depth = inner, outer // groups
        if any(s != 1 != d for s, d in zip(attrs.stride, attrs.dilation, strict=True)):
            return None
        outputs *= math.prod(min(s, int(k)) for s, k in zip(attrs.stride, kernel, strict=True))
    is_depthwise = depth == 1 == outputs
    if groups != 1 and not is_depthwise and (outputs < _LEAST or depth < _LEAST):
        return None
    places = (node.shape[0], *node.shape[2:])
    if attrs.transposed:
        return _without_gaps(b, node, weight)
    return _Sum(weight, places, attrs.stride, attrs.padding, attrs.dilation, groups)


def _named(node: Node) -> str:
    x, weight = (n.tensor for n in node.inputs[:2])
    return f"convolution {x} by {weight}"


# --- where operands lie ---------------------------------------------------------------------------


def _filter_order(sums: _Sum) -> tuple[int, ...]:
    """The dims of a weight (O, C, *kernel) from slowest to fastest as the sum reads it: channels in
    vectors, which for one filter a channel are the output's."""
    rank, depth = len(sums.weight.shape), sums.weight.shape[1]
    kernel = range(2, rank)
    return (*kernel, 1, 0) if sums.groups != 1 and depth == 1 else (0, *kernel, 1)


def _lies_apart(weight: Node, order: tuple[int, ...]) -> bool:
    """Whether a weight does not lie in this order of its dims, or nothing tells where it lies."""
    strides = fixed_strides(weight)
    if strides is None:
        return True
    shape = tuple(weight.shape[d] for d in order)
    return not same_strides(shape, tuple(strides[d] for d in order), contiguous_strides(shape))


def _vectors_lie_apart(image: Node, channel: int, demands: Mapping[Node, Shape]) -> bool:
    """Whether the channels of an image, which would make whole vectors, certainly do not lie together: in
    an argument, or in a result of the graph that the caller wants otherwise."""
    channels = image.shape[channel]
    if not isinstance(channels, int) or channels * image.dtype.itemsize % _VECTOR_BYTES:
        return False
    base = view_base(image)
    strides = fixed_strides(base) or demands.get(base)
    if strides is None:
        return False
    view = strided_view(image, {base}, {base: strides})
    return view is None or view.strides[channel] != 1


def _copied(b: Rewriter, x: Node, order: tuple[int, ...]) -> Node:
    """A copy of x (``plan`` gives it memory) whose dims lie from slowest to fastest in ``order``."""
    turned = b.emit("permute", x, attrs=A.PermuteAttrs(order))
    copy = b.emit("reshape", turned, attrs=A.ShapeAttrs(turned.shape))
    back = tuple(order.index(d) for d in range(len(order)))
    return b.emit("permute", copy, attrs=A.PermuteAttrs(back))


# --- the sum --------------------------------------------------------------------------------------


def _sum(b: Rewriter, sums: _Sum, x: Node) -> Node:
    """(N, *counts, O) in the type that products are added in."""
    weight, places, groups = sums.weight, sums.places, sums.groups
    spatial = len(sums.stride)
    outputs, depth, *kernel = (int(d) for d in weight.shape)
    split = (groups,) if groups != 1 else ()
    shape = (*places, *split, outputs // groups, *kernel, depth)
    windows = _windows(b, sums, x, kernel)  # (N, *counts, C, *kernel)
    windows = b.reshape(windows, (*places, *split, depth, *kernel))
    last = len(places) + len(split)  # the dim of the channels of a group
    turned = (*range(last), *range(last + 1, last + 1 + spatial), last)
    windows = b.emit("permute", windows, attrs=A.PermuteAttrs(turned))
    windows = b.reshape(windows, (*places, *split, 1, *kernel, depth))
    filters = b.emit("permute", weight, attrs=A.PermuteAttrs(channels_last(2 + spatial)))
    filters = b.reshape(filters, ((1,) * len(places) + (*split, outputs // groups, *kernel, depth)))
    product = b.emit("mul", _spread(b, windows, shape), _spread(b, filters, shape))
    axes = tuple(range(last + 1, len(shape)))
    total = b.emit("reduce_sum", product, attrs=A.ReduceAttrs(axes))
    return b.reshape(total, (*places, outputs))


def _windows(b: Rewriter, sums: _Sum, x: Node, kernel: Sequence[int]) -> Node:
    """What each output reads: (N, *counts, C, *kernel)."""
    spatial = len(sums.stride)
    axes = tuple(range(2, 2 + spatial))
    counts = tuple(int(d) for d in sums.places[1:])  # only the batch may be a symbol
    padding = sums.padding
    reaches = (
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(counts, sums.stride, kernel, sums.dilation, strict=True)
    )
    if not any(padding) and all(
        is_nonneg(d - r) for r, d in zip(reaches, x.shape[2:], strict=True)
    ):
        padding = ()
    window = A.WindowAttrs(axes, tuple(kernel), sums.stride, sums.dilation, counts, padding)
    found = b.emit("window", x, attrs=window)
    turned = (0, *axes, 1, *range(2 + spatial, 2 + 2 * spatial))
    return b.emit("permute", found, attrs=A.PermuteAttrs(turned))


def _spread(b: Rewriter, factor: Node, shape: Shape) -> Node:
    """A factor at every place of the sum, in the type that products are added in."""
    return b.cast(b.expand(factor, shape), DType.F32)


# --- transposed convolutions ----------------------------------------------------------------------


def _without_gaps(b: Rewriter, node: Node, weight: Node) -> _Sum:
    """A transposed convolution of stride s as one of stride 1 with a smaller kernel, whose outputs are those
    of s neighbouring places each. Along one dim, with s*t + a for the place in the kernel:

        y[s*q + a - p] = sum over t of x[q - t] * w[s*t + a]        a < s

    The kernel is padded to a multiple of s. Where it is smaller than s, only its own places are computed."""
    attrs, groups = node.attrs, node.attrs.groups
    outer, inner, *kernel = (int(d) for d in weight.shape)
    spatial, sizes = len(kernel), [int(d) for d in node.shape[2:]]
    phases = tuple(min(s, k) for s, k in zip(attrs.stride, kernel, strict=True))
    taps = tuple(-(-k // f) for k, f in zip(kernel, phases, strict=True))
    starts = tuple(p % s for p, s in zip(attrs.padding, attrs.stride, strict=True))
    counts = tuple(
        (d - 1 + r) // s + 1 for d, r, s in zip(sizes, starts, attrs.stride, strict=True)
    )
    padding = tuple(
        (t - 1) * d - p // s
        for t, d, p, s in zip(taps, attrs.dilation, attrs.padding, attrs.stride, strict=True)
    )
    more = tuple(t * f - k for t, f, k in zip(taps, phases, kernel, strict=True))
    if any(more):
        pad = A.PadAttrs((0,) * (2 + spatial), (0, 0, *more), 0.0)
        weight = b.emit("pad", weight, attrs=pad)
    cut = [n for t, f in zip(taps, phases, strict=True) for n in (t, f)]
    weight = b.reshape(weight, (groups, outer // groups, inner, *cut))
    each = range(spatial)  # (group, channels, outputs, tap, phase, tap, phase, ...)
    turned = (0, *(4 + 2 * k for k in each), 2, 1, *(3 + 2 * k for k in each))
    weight = b.emit("permute", weight, attrs=A.PermuteAttrs(turned))
    outputs = groups * math.prod(phases) * inner
    weight = b.reshape(weight, (outputs, outer // groups, *taps))
    flip = A.SliceAttrs((0, 0, *(t - 1 for t in taps)), weight.shape, (1, 1, *(-1 for _ in taps)))
    weight = b.emit("slice", weight, attrs=flip)
    found = _Phases(counts, phases, attrs.stride, starts)
    return _Sum(
        weight,
        (node.shape[0], *counts),
        (1,) * spatial,
        padding,
        attrs.dilation,
        groups,
        None if found.is_one else found,
    )


def _interleaved(b: Rewriter, node: Node, p: _Phases, total: Node) -> Node:
    """(N, *counts, groups * phases * O) as (N, *spatial, O): each phase in its places. The sums are stored in the
    type of the result first, since what reads them goes another way."""
    batch, spatial, groups = node.shape[0], len(p.counts), node.attrs.groups
    outputs = node.shape[1] // groups
    total = b.cast(total, node.dtype)
    total = b.emit("reshape", total, attrs=A.ShapeAttrs(total.shape))
    total = b.reshape(total, (batch, *p.counts, groups, *p.phases, outputs))
    missing = tuple(s - f for s, f in zip(p.strides, p.phases, strict=True))
    if any(missing):
        low = (0,) * len(total.shape)
        high = (*(0,) * (2 + spatial), *missing, 0)
        total = b.emit("pad", total, attrs=A.PadAttrs(low, high, 0.0))
    group = 1 + spatial
    pairs = [d for k in range(spatial) for d in (1 + k, group + 1 + k)]
    turned = (0, *pairs, group, group + 1 + spatial)
    total = b.emit("permute", total, attrs=A.PermuteAttrs(turned))
    whole = tuple(n * s for n, s in zip(p.counts, p.strides, strict=True))
    total = b.reshape(total, (batch, *whole, node.shape[1]))
    shape = (batch, *node.shape[2:], node.shape[1])
    if total.shape == shape:
        return total
    attrs = A.SliceAttrs((0, *p.starts, 0), shape, (1,) * len(shape))
    return b.emit("slice", total, attrs=attrs)
