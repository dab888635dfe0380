"""Gradients of a convolution in terms of the Graph's ops, for targets whose kernels hold them.

With y = convolution(x, w), the gradient of x is the transposed convolution of that of y by w, and the gradient
of w a sum over all windows of x that an element of w was multiplied with.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.frontend.builder import Builder
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import DType

_TYPES = (DType.F16, DType.BF16, DType.F32)


def has_gradients(grad: Node, x: Node, weight: Node, attrs: A.ConvolutionAttrs) -> bool:
    """Whether both gradients are ops: of one type that kernels multiply, in one group, without symbols."""
    nodes = (grad, x, weight)
    static = all(isinstance(d, int) for n in nodes for d in n.shape)
    is_one = all(n.dtype is x.dtype for n in nodes) and x.dtype in _TYPES
    return static and is_one and attrs.groups == 1


def input_gradient(
    b: Builder, grad: Node, x: Node, weight: Node, attrs: A.ConvolutionAttrs
) -> Node:
    """The gradient of x (N, C, *spatial) from that of the result (N, O, *counts)."""
    a, spatial = attrs, len(attrs.stride)
    missing = (0,) * spatial
    if not a.transposed:
        sizes = zip(x.shape[2:], grad.shape[2:], weight.shape[2:], strict=True)
        missing = tuple(
            int(d) - ((int(n) - 1) * s - 2 * p + r * (int(k) - 1) + 1)
            for (d, n, k), s, p, r in zip(sizes, a.stride, a.padding, a.dilation, strict=True)
        )
    turned = A.ConvolutionAttrs(a.stride, a.padding, a.dilation, not a.transposed, missing, 1)
    return b.emit("convolution", grad, weight, attrs=turned)


def weight_gradient(
    b: Builder, grad: Node, x: Node, weight: Node, attrs: A.ConvolutionAttrs
) -> Node:
    """The gradient of a weight as torch lays it out, from that of the result."""
    image, steps = (
        (grad, x) if attrs.transposed else (x, grad)
    )  # windows of one by steps of the other
    spatial, kernel = len(attrs.stride), tuple(int(d) for d in weight.shape[2:])
    batch, outer, *counts = steps.shape
    inner = image.shape[1]
    axes, padding = tuple(range(2, 2 + spatial)), attrs.padding if any(attrs.padding) else ()
    window = A.WindowAttrs(axes, kernel, attrs.stride, attrs.dilation, tuple(counts), padding)
    windows = b.emit("window", image, attrs=window)  # (N, C, *counts, *kernel)
    kernel_dims = tuple(range(2 + spatial, 2 + 2 * spatial))
    windows = b.permute(windows, (*kernel_dims, 1, 0, *axes))
    windows = b.reshape(windows, (1, *windows.shape))
    rows = b.permute(steps, (1, 0, *axes))
    rows = b.reshape(rows, (outer, *(1,) * (spatial + 1), batch, *counts))
    shape = (outer, *kernel, inner, batch, *counts)
    factors = [b.cast(b.expand(f, shape), DType.F32) for f in (rows, windows)]
    total = b.reduce("sum", b.emit("mul", *factors), tuple(range(2 + spatial, len(shape))))
    order = (0, 1 + spatial, *range(1, 1 + spatial))
    return b.cast(b.permute(total, order), weight.dtype)


def bias_gradient(b: Builder, grad: Node) -> Node:
    """The gradient of the bias: a sum over all but the channels."""
    total = b.reduce("sum", b.compute(grad), _but_channels(grad))
    return b.cast(total, grad.dtype)


def _but_channels(x: Node) -> Sequence[int]:
    return (0, *range(2, x.tensor.rank))
