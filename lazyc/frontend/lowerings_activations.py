"""Lowerings of activation functions and their backwards. Half types compute in f32."""

from __future__ import annotations

import math

from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.lowerings_pointwise import composite
from lazyc.ir.graph import Node
from lazyc.ir.types import DType


@lowers("aten.relu.default")
def _relu(b: Builder, x: Node) -> Node:
    if x.dtype is DType.BOOL:
        raise NotLowered("relu of bool")
    return b.maximum(x, 0)


@lowers("aten.threshold_backward.default")
def _threshold_backward(b: Builder, grad: Node, x: Node, threshold: float) -> Node:
    grad, x = b.promote(grad, x)
    return b.where(b.compare("le", x, threshold), 0, grad)


@lowers("aten.sigmoid_backward.default")
@composite
def _sigmoid_backward(b: Builder, grad: Node, y: Node) -> Node:
    return b.mul(grad, b.mul(b.sub(1.0, y), y))


@lowers("aten.tanh_backward.default")
@composite
def _tanh_backward(b: Builder, grad: Node, y: Node) -> Node:
    return b.mul(grad, b.sub(1.0, b.mul(y, y)))


def _tanh_gelu_inner(b: Builder, x: Node) -> Node:
    """tanh(sqrt(2/pi) * (x + 0.044715 x^3))."""
    cube = b.mul(b.mul(x, x), x)
    return b.emit("tanh", b.mul(b.add(x, b.mul(cube, 0.044715)), math.sqrt(2 / math.pi)))


@lowers("aten.gelu.default")
@composite
def _gelu(b: Builder, x: Node, *, approximate: str = "none") -> Node:
    """x * Phi(x) (Hendrycks and Gimpel 2016), Phi through erf or its tanh approximation."""
    if approximate == "tanh":
        gate = _tanh_gelu_inner(b, x)
    else:
        gate = b.emit("erf", b.mul(x, math.sqrt(0.5)))
    return b.mul(b.mul(x, 0.5), b.add(gate, 1.0))


@lowers("aten.gelu_backward.default")
@composite
def _gelu_backward(b: Builder, grad: Node, x: Node, *, approximate: str = "none") -> Node:
    if approximate == "tanh":
        gate = _tanh_gelu_inner(b, x)
        slope = b.mul(
            b.add(b.mul(b.mul(x, x), 3 * 0.044715), 1.0), math.sqrt(2 / math.pi)
        )  # of the tanh's argument
        left = b.mul(b.add(gate, 1.0), 0.5)
        right = b.mul(b.mul(b.mul(x, 0.5), b.sub(1.0, b.mul(gate, gate))), slope)
    else:
        left = b.mul(b.add(b.emit("erf", b.mul(x, math.sqrt(0.5))), 1.0), 0.5)
        density = b.mul(b.exp(b.mul(b.mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
        right = b.mul(x, density)
    return b.mul(grad, b.add(left, right))


@lowers("aten.silu.default")
@composite
def _silu(b: Builder, x: Node) -> Node:
    return b.div(x, b.add(b.exp(b.neg(x)), 1.0))


@lowers("aten.silu_backward.default")
@composite
def _silu_backward(b: Builder, grad: Node, x: Node) -> Node:
    s = b.emit("sigmoid", x)
    return b.mul(b.mul(grad, s), b.add(b.mul(x, b.sub(1.0, s)), 1.0))


@lowers("aten.mish.default")
@composite
def _mish(b: Builder, x: Node) -> Node:
    return b.mul(x, b.emit("tanh", _log1p_exp(b, x)))


def _log1p_exp(b: Builder, x: Node) -> Node:
    """log(1 + exp(x)), without overflow: max(x, 0) + log1p(exp(-|x|))."""
    tail = b.emit("log1p", b.exp(b.neg(b.emit("abs", x))))
    return b.add(b.maximum(x, 0.0), tail)


@lowers("aten.softplus.default")
@composite
def _softplus(b: Builder, x: Node, beta: float = 1, threshold: float = 20) -> Node:
    scaled = b.mul(x, beta)
    soft = b.div(b.emit("log1p", b.exp(scaled)), beta)
    return b.where(b.compare("gt", scaled, threshold), x, soft)


@lowers("aten.softplus_backward.default")
@composite
def _softplus_backward(b: Builder, grad: Node, x: Node, beta: float, threshold: float) -> Node:
    scaled = b.mul(x, beta)
    z = b.exp(scaled)
    return b.where(b.compare("gt", scaled, threshold), grad, b.div(b.mul(grad, z), b.add(z, 1.0)))


@lowers("aten.hardsigmoid.default")
@composite
def _hardsigmoid(b: Builder, x: Node) -> Node:
    return b.div(b.minimum(b.maximum(b.add(x, 3.0), 0.0), 6.0), 6.0)


@lowers("aten.hardswish.default")
@composite
def _hardswish(b: Builder, x: Node) -> Node:
    return b.div(b.mul(x, b.minimum(b.maximum(b.add(x, 3.0), 0.0), 6.0)), 6.0)


@lowers("aten.hardtanh.default")
def _hardtanh(b: Builder, x: Node, low: float = -1, high: float = 1) -> Node:
    return b.minimum(b.maximum(x, low), high)


@lowers("aten.hardtanh_backward.default")
def _hardtanh_backward(b: Builder, grad: Node, x: Node, low: float, high: float) -> Node:
    outside = b.emit("or", b.compare("le", x, low), b.compare("ge", x, high))
    return b.where(outside, 0, grad)


@lowers("aten.leaky_relu.default")
@composite
def _leaky_relu(b: Builder, x: Node, slope: float = 0.01) -> Node:
    return b.where(b.compare("gt", x, 0), x, b.mul(x, slope))


@lowers("aten.leaky_relu_backward.default")
@composite
def _leaky_relu_backward(
    b: Builder, grad: Node, x: Node, slope: float, self_is_result: bool
) -> Node:
    return b.where(b.compare("gt", x, 0), grad, b.mul(grad, slope))


@lowers("aten.elu.default")
@composite
def _elu(b: Builder, x: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    below = b.mul(b.emit("expm1", b.mul(x, input_scale)), alpha * scale)
    # Eager tests x < 0, so that a nan takes the other branch.
    return b.where(b.compare("lt", x, 0), below, b.mul(x, scale))


@lowers("aten.elu_backward.default")
@composite
def _elu_backward(
    b: Builder,
    grad: Node,
    alpha: float,
    scale: float,
    input_scale: float,
    is_result: bool,
    x: Node,
) -> Node:
    if is_result:
        slope = b.mul(b.add(x, alpha * scale), input_scale)
    else:
        slope = b.mul(b.exp(b.mul(x, input_scale)), input_scale * alpha * scale)
    return b.mul(grad, b.where(b.compare("le", x, 0), slope, scale))
