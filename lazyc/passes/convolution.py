"""Chooses how each convolution of an inference graph runs, in channels-last order.

    1 x 1 kernel        a matrix product [N*H*W, C] @ [C, O] with the weight packed for the BLAS
    one filter a channel  a reduction over windows: a generated kernel
    any other           oneDNN, with the weight reordered for it once

Only convolutions whose weight and bias last from call to call are taken; others stay
``aten.convolution``. The activation that follows is left to a generated kernel: oneDNN's fused relu
and clamp turn nan into 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.types import Dim, DType, OpaqueType, Shape, numel
from lazyc.passes.lasting import Lasting
from lazyc.passes.layout import ordered_strides
from lazyc.passes.rewrite import Rewriter, rewrite

_ONEDNN_DTYPES = frozenset({DType.F32, DType.BF16, DType.F16})


def lower_convolutions(graph: Graph, onednn: frozenset[DType] = _ONEDNN_DTYPES) -> Graph:
    """The Graph with convolutions by lasting weights lowered. ``onednn``: the types it computes in."""
    if not any(node.op == "convolution" for node in graph.nodes):
        return graph
    lasting = Lasting()

    def lower(b: Rewriter, node: Node, x: Sequence[Node]) -> Node | None:
        if node.tensor.device != "cpu" or node.attrs.transposed or lasting(x[0]):
            return None
        if not all(lasting(n) for n in x[1:]):
            return None
        if _is_product(node):
            return _product(b, node.attrs, *x)
        if _is_depthwise(node):
            return _depthwise(b, node, *x)
        return _library_call(b, node, *x) if node.dtype in onednn else None

    return rewrite(graph, {"convolution": [lower]})


def _channels_last(rank: int) -> tuple[int, ...]:
    """The dims of (N, C, *spatial) from slowest to fastest."""
    return (0, *range(2, rank), 1)


def _add_bias(b: Rewriter, out: Node, bias: Node | None) -> Node:
    """out (N, O, *spatial) plus bias (O,)."""
    if bias is None:
        return out
    shape = (1, -1, *(1 for _ in out.shape[2:]))
    shape = tuple(bias.shape[0] if d == -1 else d for d in shape)
    return b.emit("add", out, b.expand(b.reshape(bias, shape), out.shape))


# --- 1 x 1 kernels --------------------------------------------------------------------------------


def _is_product(node: Node) -> bool:
    weight, attrs = node.inputs[1], node.attrs
    return (
        node.dtype in (DType.F32, DType.F64)
        and attrs.groups == 1
        and all(d == 1 for d in weight.shape[2:])
        and not any(attrs.padding)
    )


def _product(
    b: Rewriter, attrs: A.ConvolutionAttrs, x: Node, weight: Node, bias: Node | None = None
) -> Node:
    x = _every(b, x, attrs.stride)
    n, channels, *spatial = x.shape
    outputs = weight.shape[0]
    order = _channels_last(len(x.shape))
    rows = b.emit("permute", x, attrs=A.PermuteAttrs(order))
    rows = b.reshape(rows, (numel((n, *spatial)), channels))
    matrix = b.reshape(weight, (outputs, channels))
    out = b.emit("matmul", rows, b.emit("permute", matrix, attrs=A.PermuteAttrs((1, 0))))
    out = b.reshape(out, (n, *spatial, outputs))
    back = tuple(order.index(k) for k in range(len(order)))
    return _add_bias(b, b.emit("permute", out, attrs=A.PermuteAttrs(back)), bias)


def _every(b: Rewriter, x: Node, steps: Sequence[int]) -> Node:
    """Every ``steps``-th element along the spatial dims of x."""
    if all(s == 1 for s in steps):
        return x
    sizes = tuple((d - 1) // s + 1 for d, s in zip(x.shape[2:], steps, strict=True))
    attrs = A.SliceAttrs((0,) * len(x.shape), (*x.shape[:2], *sizes), (1, 1, *steps))
    return b.emit("slice", x, attrs=attrs)


# --- one filter a channel -------------------------------------------------------------------------


def _is_depthwise(node: Node) -> bool:
    weight = node.inputs[1]
    return (
        node.dtype in (DType.F32, DType.F64)
        and weight.shape[1] == 1
        and node.attrs.groups == weight.shape[0]
        and all(isinstance(d, int) for d in node.shape[2:])
    )


def _depthwise(b: Rewriter, node: Node, x: Node, weight: Node, bias: Node | None = None) -> Node:
    """The sum over windows times filters, both with the channels last: (N, *counts, *kernel, C)."""
    attrs, counts, kernel = node.attrs, node.shape[2:], weight.shape[2:]
    spatial = len(counts)
    axes = tuple(range(2, 2 + spatial))
    window = A.WindowAttrs(axes, kernel, attrs.stride, attrs.dilation, counts)
    windows = b.emit("window", _padded(b, x, window, attrs.padding), attrs=window)
    order = _channels_last(len(windows.shape))
    windows = b.emit("permute", windows, attrs=A.PermuteAttrs(order))
    filters = b.emit("permute", weight, attrs=A.PermuteAttrs((*axes, 1, 0)))
    filters = b.reshape(filters, (*(1,) * (1 + spatial), *kernel, weight.shape[0]))
    terms = b.emit("mul", windows, b.expand(filters, windows.shape))
    sums = tuple(range(1 + spatial, 1 + 2 * spatial))
    out = b.emit("reduce_sum", terms, attrs=A.ReduceAttrs(sums))
    back = (0, 1 + spatial, *range(1, 1 + spatial))
    return _add_bias(b, b.emit("permute", out, attrs=A.PermuteAttrs(back)), bias)


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
    if spatial > 3:
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


def _row_major(shape: Shape) -> Shape:
    return ordered_strides(shape, tuple(range(len(shape))))


def _dense_channels_last(shape: Shape) -> Shape:
    return ordered_strides(shape, _channels_last(len(shape)))
