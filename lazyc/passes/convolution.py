"""Chooses how each convolution of an inference graph runs, in channels-last order.

    1 x 1 kernel            a matrix product [N*H*W, C] @ [C, O] with the weight packed for the BLAS
    one filter a channel    a reduction over windows: a generated kernel
    little work             the same for few channels, else the windows copied out and one product:
                            oneDNN would take longer to find its code than to run it
    any other               oneDNN, with the weight reordered for it once

Only convolutions whose weight and bias last from call to call are taken; others stay
``aten.convolution``. The activation that follows is left to a generated kernel: oneDNN's fused relu
and clamp turn nan into 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from lazyc.ir import attrs as A
from lazyc.ir.decisions import bytes_of, size_of
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import Dim, DType, OpaqueType, Shape, numel
from lazyc.passes.lasting import Lasting
from lazyc.passes.layout import ordered_strides
from lazyc.passes.rewrite import Rewriter, rewrite

# Multiplications below which a convolution is little work; finding its code takes oneDNN 30 us.
_LITTLE_BY_WINDOWS = 1 << 19
_LITTLE_BY_PRODUCT = 5 << 19
_FEW_CHANNELS = 8  # fewer make short copies


def lower_convolutions(graph: Graph) -> Graph:
    """The Graph with convolutions by lasting weights lowered."""
    if not any(node.op == "convolution" for node in graph.nodes):
        return graph
    lasting = Lasting(graph)

    def lower(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        if node.tensor.device != "cpu" or node.attrs.transposed or lasting(x[0]):
            return None
        if not all(lasting(n) for n in x[1:]):
            return None
        way = _choose(node)
        found = way(b, node, *x)
        if found is not None:
            _note(b, node, way)
        return found

    return rewrite(graph, {"convolution": [lower]})


Lowering: TypeAlias = Callable[..., Node | None]


def _note(b: Rewriter, node: Node, way: Lowering) -> None:
    """The decision about a convolution, in channels-last order whichever way it runs."""
    x, weight = (n.tensor for n in node.inputs[:2])
    how, why = {
        as_product: ("a matrix product", "its kernel is 1 x 1"),
        _by_windows: ("a generated kernel", "it has few channels a filter"),
        _by_copied_windows: (
            "a matrix product of copied windows",
            "oneDNN would take longer to find its code than to run it",
        ),
        _library_call: ("oneDNN", "its weight is reordered once"),
    }[way]
    kept, copied = size_of(weight) if way is _library_call else 0, 0
    if way is _by_copied_windows:
        rows = numel((node.shape[0], *node.shape[2:], *weight.shape[1:]))
        copied = bytes_of(rows, node.dtype.itemsize)
    b.decide(f"convolution {x} by {weight}, channels last: {how}", why, copied, kept)


def _choose(node: Node) -> Lowering:
    """The way to run a convolution, by its type, shape and arguments."""
    x, weight, *_ = node.inputs
    if node.dtype not in (DType.F32, DType.F64):
        return _library_call
    if is_plain_product(node):
        return as_product
    if not all(isinstance(d, int) for d in node.shape[2:]):
        return _library_call
    if node.attrs.groups == weight.shape[0] == x.shape[1]:
        return _by_windows
    work = numel((*node.shape, *weight.shape[1:]))
    few = weight.shape[1] < _FEW_CHANNELS
    limit = _LITTLE_BY_WINDOWS if few else _LITTLE_BY_PRODUCT
    if node.attrs.groups == 1 and isinstance(work, int) and work <= limit:
        return _by_windows if few else _by_copied_windows
    return _library_call


def is_plain_product(node: Node) -> bool:
    """Whether a convolution is a matrix product over its channels: its kernel is 1 x 1."""
    attrs, kernel = node.attrs, node.inputs[1].shape[2:]
    has_gaps = attrs.transposed and any(n != 1 for n in attrs.stride)
    is_dense = attrs.groups == 1 and not has_gaps
    return (
        is_dense
        and not any((*attrs.padding, *attrs.output_padding))
        and all(d == 1 for d in kernel)
    )


def channels_last(rank: int) -> tuple[int, ...]:
    """The dims of (N, C, *spatial) from slowest to fastest."""
    return (0, *range(2, rank), 1)


def as_output(b: Rewriter, out: Node, bias: Node | None) -> Node:
    """out (N, *spatial, O) as (N, O, *spatial), plus bias (O,)."""
    rank = len(out.shape)
    out = b.emit("permute", out, attrs=A.PermuteAttrs((0, rank - 1, *range(1, rank - 1))))
    if bias is None:
        return out
    bias = b.reshape(bias, (1, bias.shape[0], *(1,) * (rank - 2)))
    return b.emit("add", out, b.expand(bias, out.shape))


# --- 1 x 1 kernels --------------------------------------------------------------------------------


def as_product(b: Rewriter, node: Node, x: Node, weight: Node, bias: Node | None = None) -> Node:
    """A convolution by a kernel of 1 x 1 that is an ``is_plain_product``."""
    x = _every(b, x, node.attrs.stride)
    n, channels, *spatial = x.shape
    outputs = weight.shape[0]
    order = channels_last(len(x.shape))
    rows = b.emit("permute", x, attrs=A.PermuteAttrs(order))
    rows = b.reshape(rows, (numel((n, *spatial)), channels))
    matrix = b.reshape(weight, (outputs, channels))
    out = b.emit("matmul", rows, b.emit("permute", matrix, attrs=A.PermuteAttrs((1, 0))))
    return as_output(b, b.reshape(out, (n, *spatial, outputs)), bias)


def _every(b: Rewriter, x: Node, steps: Sequence[int]) -> Node:
    """Every ``steps``-th element along the spatial dims of x."""
    if all(s == 1 for s in steps):
        return x
    sizes = tuple((d - 1) // s + 1 for d, s in zip(x.shape[2:], steps, strict=True))
    attrs = A.SliceAttrs((0,) * len(x.shape), (*x.shape[:2], *sizes), (1, 1, *steps))
    return b.emit("slice", x, attrs=attrs)


# --- windows --------------------------------------------------------------------------------------


def _windows(b: Rewriter, node: Node, x: Node) -> Node:
    """What each output reads, channels last: (N, *counts, *kernel, C)."""
    attrs, counts = node.attrs, node.shape[2:]
    kernel = tuple(int(d) for d in node.inputs[1].shape[2:])  # weights have static sizes
    axes = tuple(range(2, 2 + len(counts)))
    window = A.WindowAttrs(axes, kernel, attrs.stride, attrs.dilation, counts)
    found = b.emit("window", _padded(b, x, window, attrs.padding), attrs=window)
    return b.emit("permute", found, attrs=A.PermuteAttrs(channels_last(len(found.shape))))


def _filters(b: Rewriter, weight: Node) -> Node:
    """A weight (O, C, *kernel) as (*kernel, C, O)."""
    axes = range(2, len(weight.shape))
    return b.emit("permute", weight, attrs=A.PermuteAttrs((*axes, 1, 0)))


def _by_windows(b: Rewriter, node: Node, x: Node, weight: Node, bias: Node | None = None) -> Node:
    """The sum over windows times filters; the output channels are the vector axis."""
    windows, filters = _windows(b, node, x), _filters(b, weight)
    spatial, outputs = len(node.attrs.stride), weight.shape[0]
    sums = tuple(range(1 + spatial, 1 + 2 * spatial))
    if node.attrs.groups == 1:  # (N, *counts, *kernel, C, O)
        sums = (*sums, 1 + 2 * spatial)
        windows = b.reshape(windows, (*windows.shape, 1))
        windows = b.expand(windows, (*windows.shape[:-1], outputs))
    else:
        filters = b.reshape(filters, (*filters.shape[:-2], outputs))
    filters = b.reshape(filters, (*(1,) * (1 + spatial), *filters.shape))
    terms = b.emit("mul", windows, b.expand(filters, windows.shape))
    return as_output(b, b.emit("reduce_sum", terms, attrs=A.ReduceAttrs(sums)), bias)


def _by_copied_windows(
    b: Rewriter, node: Node, x: Node, weight: Node, bias: Node | None = None
) -> Node:
    """Windows as rows of a matrix (im2col), times the filters."""
    windows, filters = _windows(b, node, x), _filters(b, weight)
    places = windows.shape[: 1 + len(node.attrs.stride)]
    terms, outputs = numel(weight.shape[1:]), weight.shape[0]
    rows = b.reshape(windows, (numel(places), terms))
    out = b.emit("matmul", rows, b.reshape(filters, (terms, outputs)))
    return as_output(b, b.reshape(out, (*places, outputs)), bias)


def _padded(b: Rewriter, x: Node, window: A.WindowAttrs, padding: Sequence[int]) -> Node:
    """x with zeros around it, as far as the windows reach."""
    high: list[Dim] = []
    for k, axis in enumerate(window.axes):
        last = (window.counts[k] - 1) * window.strides[k]
        reach = last + (window.sizes[k] - 1) * window.dilations[k] + 1
        high.append(max(0, reach - x.shape[axis] - padding[k]))
    if not any(padding) and not any(high):
        return x
    zero = 0.0 if x.dtype.is_float else 0
    return b.emit("pad", x, attrs=A.PadAttrs((0, 0, *padding), (0, 0, *high), zero))


# --- oneDNN ---------------------------------------------------------------------------------------


def _library_call(
    b: Rewriter, node: Node, x: Node, weight: Node, bias: Node | None = None
) -> Node | None:
    """``mkldnn._convolution_pointwise`` (no activation) on a weight that oneDNN reordered.

    One spatial dim is given to it as two.
    """
    attrs, spatial = node.attrs, len(node.attrs.stride)
    if not _onednn_takes(node.dtype) or spatial > 3:
        return None
    shape = node.shape
    stride, padding, dilation = attrs.stride, attrs.padding, attrs.dilation
    if spatial == 1:
        x, weight = (b.reshape(t, (*t.shape[:2], 1, t.shape[2])) for t in (x, weight))
        shape = (*shape[:2], 1, shape[2])
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    hint = x.shape if all(isinstance(d, int) for d in x.shape) else None
    packed = b.emit(
        "eager",
        weight,
        attrs=A.EagerAttrs(
            target="mkldnn._reorder_convolution_weight.default",
            args=(A.ArgRef(0), padding, stride, dilation, attrs.groups, hint),
            kwargs=(),
            outputs=(OpaqueType("mkldnn"),),
            strides=(None,),
            input_strides=(_row_major(weight.shape),),
            is_tuple=False,
            reason="library call",
            is_library=True,
        ),
    )
    operands = (x, packed) if bias is None else (x, packed, bias)
    bias_ref = None if bias is None else A.ArgRef(2)
    call = A.EagerAttrs(
        target="mkldnn._convolution_pointwise.default",
        args=(
            A.ArgRef(0), A.ArgRef(1), bias_ref, padding, stride, dilation, attrs.groups,
            "none", (), None,
        ),
        kwargs=(),
        outputs=(node.tensor.with_shape(shape),),
        strides=(_dense_channels_last(shape),),
        input_strides=(_dense_channels_last(x.shape), None, (1,))[: len(operands)],
        is_tuple=False,
        reason="library call",
        is_library=True,
    )  # fmt: skip
    return b.reshape(b.emit("eager", *operands, attrs=call), node.shape)


def _onednn_takes(dtype: DType) -> bool:
    """Whether this build of torch has oneDNN, and the CPU has instructions for the type."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype is DType.BF16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype is DType.F16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype is DType.F32


def _row_major(shape: Shape) -> Shape:
    return ordered_strides(shape, tuple(range(len(shape))))


def _dense_channels_last(shape: Shape) -> Shape:
    return ordered_strides(shape, channels_last(len(shape)))
