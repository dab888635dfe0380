"""Lowerings of matrix products and convolutions.

A product keeps its inputs' type; what ATen adds around it (bias, alpha, beta) is pointwise, so that
it fuses as an epilogue. Of integer products those of int8 that are added in int32 have kernels, on targets whose
kernels hold products; others stay in eager.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyc.frontend.convolution_gradients import (
    bias_gradient,
    has_gradients,
    input_gradient,
    weight_gradient,
)
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import Operand
from lazyc.ir import attrs as A
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, numel


def _check_float(*xs: Node) -> None:
    """Contractions take floats of one type on one device."""
    first = xs[0]
    for x in xs:
        if not x.dtype.is_float:
            raise NotLowered(f"{x.dtype.torch} matrix product".removeprefix("torch."))
        if x.dtype is not first.dtype or x.tensor.device != first.tensor.device:
            raise NotLowered(f"matrix product of {first.type} and {x.type}")


def _matmul(b: Builder, x: Node, y: Node) -> Node:
    _check_float(x, y)
    return b.emit("matmul", x, y)


def _add_scaled(b: Builder, base: Node, product: Node, beta: Operand, alpha: Operand) -> Node:
    """``beta*base + alpha*product``, rounded once; beta 0 ignores nan and inf in ``base``."""
    total = b.compute(product)
    if alpha != 1:
        total = b.mul(total, alpha)
    if beta != 0:
        if base.dtype is not product.dtype:
            raise NotLowered(f"bias {base.type} of a product {product.type}")
        scaled = b.compute(base)
        if beta != 1:
            scaled = b.mul(scaled, beta)
        total = b.add(total, b.expand(scaled, total.shape))
    return b.cast(total, product.dtype)


@lowers("aten.mm.default", "aten.bmm.default")
def mm(b: Builder, x: Node, y: Node) -> Node:
    return _matmul(b, x, y)


@lowers("aten._int_mm.default")
def int_mm(b: Builder, x: Node, y: Node) -> Node:
    """int8 @ int8, added in int32. (Other integer products are of their factors' type in ATen, which CUDA has
    none of.)"""
    if x.dtype is not DType.I8 or y.type != x.tensor.with_shape(y.tensor.shape):
        raise NotLowered(f"matrix product of {x.type} and {y.type}")
    if not b.has_products:
        raise NotLowered("int8 matrix product: library call, dense with any weight")
    return b.emit("matmul", x, y)


@lowers("aten.addmm.default", "aten.baddbmm.default")
def addmm(
    b: Builder, base: Node, x: Node, y: Node, *, beta: Operand = 1, alpha: Operand = 1
) -> Node:
    return _add_scaled(b, base, _matmul(b, x, y), beta, alpha)


@lowers("aten.addbmm.default")
def addbmm(
    b: Builder, base: Node, x: Node, y: Node, *, beta: Operand = 1, alpha: Operand = 1
) -> Node:
    """Products summed over the batch: one product with batch and K merged."""
    batch, m, k = x.shape  # x (B, M, K), y (B, K, N)
    left = b.reshape(b.permute(x, (1, 0, 2)), (m, batch * k))
    right = b.reshape(y, (batch * k, y.shape[2]))
    return _add_scaled(b, base, _matmul(b, left, right), beta, alpha)


@lowers("aten.mv.default")
def mv(b: Builder, x: Node, vector: Node) -> Node:
    return b.squeeze(_matmul(b, x, b.unsqueeze(vector, 1)), 1)


@lowers("aten.addmv.default")
def addmv(
    b: Builder, base: Node, x: Node, vector: Node, *, beta: Operand = 1, alpha: Operand = 1
) -> Node:
    return _add_scaled(b, base, mv(b, x, vector), beta, alpha)


@lowers("aten.dot.default", "aten.vdot.default")
def dot(b: Builder, x: Node, y: Node) -> Node:
    _check_float(x, y)
    return b.cast(b.reduce("sum", b.mul(b.compute(x), b.compute(y)), 0), x.dtype)


@lowers("aten.addr.default")
def addr(
    b: Builder, base: Node, x: Node, y: Node, *, beta: Operand = 1, alpha: Operand = 1
) -> Node:
    _check_float(base, x, y)
    outer = b.mul(b.unsqueeze(b.compute(x), 1), b.unsqueeze(b.compute(y), 0))
    if alpha != 1:
        outer = b.mul(outer, alpha)
    if beta != 0:
        scaled = b.compute(base)
        outer = b.add(scaled if beta == 1 else b.mul(scaled, beta), outer)
    return b.cast(outer, x.dtype)


@lowers("aten.linear.default")
def linear(b: Builder, x: Node, weight: Node, bias: Node | None = None) -> Node:
    """``x @ weight.T + bias`` with all batch dims of x merged: one product."""
    if weight.tensor.rank != 2 or x.tensor.rank < 1:
        raise NotLowered(f"linear of {x.type} with weight {weight.type}")
    rows = b.reshape(x, (numel(x.shape[:-1]), x.shape[-1]))
    out = _matmul(b, rows, b.permute(weight, (1, 0)))
    if bias is not None:
        out = _add_scaled(b, bias, out, 1, 1)
    return b.reshape(out, (*x.shape[:-1], weight.shape[0]))


@lowers("aten.matmul.default")
def matmul(b: Builder, x: Node, y: Node) -> Node:
    """numpy's matmul: vectors get a dim that is dropped again, batch dims broadcast."""
    if 0 in (x.tensor.rank, y.tensor.rank):
        raise NotLowered("matmul of a 0-dim tensor")
    row, column = x.tensor.rank == 1, y.tensor.rank == 1
    x = b.unsqueeze(x, 0) if row else x
    y = b.unsqueeze(y, 1) if column else y
    if y.tensor.rank == 2:
        flat = b.reshape(x, (numel(x.shape[:-1]), x.shape[-1]))
        out = b.reshape(_matmul(b, flat, y), (*x.shape[:-1], y.shape[-1]))
    else:
        rank = max(x.tensor.rank, y.tensor.rank)
        x = b.reshape(x, (1,) * (rank - x.tensor.rank) + x.shape)
        y = b.reshape(y, (1,) * (rank - y.tensor.rank) + y.shape)
        batch = tuple(d if e == 1 else e for d, e in zip(x.shape[:-2], y.shape[:-2], strict=True))
        x, y = b.expand(x, (*batch, *x.shape[-2:])), b.expand(y, (*batch, *y.shape[-2:]))
        out = _matmul(b, x, y)
    if column:
        out = b.squeeze(out, -1)
    return b.squeeze(out, -1 if column else -2) if row else out


def _static(values: Sequence[Dim], spatial: int) -> tuple[int, ...]:
    """A per-dim argument of a convolution as ints; a single value stands for every dim."""
    if not all(isinstance(v, int) for v in values):
        raise NotLowered("symbolic convolution argument")
    ints = tuple(int(v) for v in values)
    return ints * spatial if len(ints) == 1 else ints


@lowers("aten.convolution.default")
def convolution(
    b: Builder,
    x: Node,
    weight: Node,
    bias: Node | None,
    stride: Sequence[Dim],
    padding: Sequence[Dim],
    dilation: Sequence[Dim],
    transposed: bool,
    output_padding: Sequence[Dim],
    groups: Dim,
) -> Node:
    """x (N, C, *spatial), weight as torch lays it out; the bias is an input of the op."""
    operands = (x, weight) if bias is None else (x, weight, bias)
    _check_float(*operands)
    spatial = weight.tensor.rank - 2
    if spatial < 1 or x.tensor.rank != weight.tensor.rank or not isinstance(groups, int):
        raise NotLowered(f"convolution of {x.type} with {weight.type} in {groups} groups")
    if any(d == 0 for d in (*x.shape, *weight.shape)):
        raise NotLowered("convolution of an empty tensor")
    attrs = A.ConvolutionAttrs(
        _static(stride, spatial),
        _static(padding, spatial),
        _static(dilation, spatial),
        transposed,
        _static(output_padding, spatial),
        groups,
    )
    return b.emit("convolution", *operands, attrs=attrs)


@lowers("aten.convolution_backward.default")
def convolution_backward(
    b: Builder,
    grad: Node,
    x: Node,
    weight: Node,
    bias_sizes: Sequence[Dim] | None,
    stride: Sequence[Dim],
    padding: Sequence[Dim],
    dilation: Sequence[Dim],
    transposed: bool,
    output_padding: Sequence[Dim],
    groups: Dim,
    output_mask: Sequence[bool],
) -> tuple[Node | None, Node | None, Node | None]:
    """Where kernels hold no products, only the bias's gradient, a sum, when nothing else is asked for."""
    for_input, for_weight, for_bias = output_mask
    if not for_input and not for_weight:
        return None, None, bias_gradient(b, grad) if for_bias else None
    if not b.has_products or not isinstance(groups, int):
        raise NotLowered("convolution gradients: library call")
    spatial = weight.tensor.rank - 2
    steps, zeros, gaps, missing = (
        _static(v, spatial) for v in (stride, padding, dilation, output_padding)
    )
    attrs = A.ConvolutionAttrs(steps, zeros, gaps, transposed, missing, groups)
    if not has_gradients(grad, x, weight, attrs):
        raise NotLowered("convolution gradients: library call")
    return (
        input_gradient(b, grad, x, weight, attrs) if for_input else None,
        weight_gradient(b, grad, x, weight, attrs) if for_weight else None,
        bias_gradient(b, grad) if for_bias else None,
    )
