"""What scales and shifts channels goes into the weights, and only where that is sound."""

from __future__ import annotations

import pytest
import torch

from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.interp import run_graph
from lazyc.ir.verify import verify_graph
from lazyc.passes.fold_norm import fold_norm
from lazyc.passes.realize import live_nodes
from tests.passes.build import Make

ARITHMETIC = {"mul", "div", "add", "sub"}


def conv(
    b: Make,
    *operands: Node,
    groups: int = 1,
    transposed: bool = False,
) -> Node:
    attrs = A.ConvolutionAttrs((1, 1), (1, 1), (1, 1), transposed, (0, 0), groups)
    return b.emit("convolution", *operands, attrs=attrs)


def channels(b: Make, values: Node, like: Node) -> Node:
    """Values (C,) as a tensor (N, C, H, W)."""
    return b.expand(b.reshape(values, (1, like.shape[1], 1, 1)), like.shape)


def after_convolution(graph: Graph) -> list[str]:
    """The arithmetic left on values of four dims that depends on a convolution."""
    late: set[Node] = set()
    for node in live_nodes(graph):
        if node.op == "convolution" or late.intersection(node.inputs):
            late.add(node)
    return [n.op for n in live_nodes(graph) if n in late and n.op in ARITHMETIC]


def check(graph: Graph, *args: torch.Tensor) -> list[str]:
    """Folds, compares with the Graph before, and says what arithmetic is left."""
    expected = run_graph(graph, args)
    folded = fold_norm(graph)
    verify_graph(folded)
    for got, want in zip(run_graph(folded, args), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    return after_convolution(folded)


def parameters(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(s) + 2.0 for s in shapes]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (2, False), (4, False), (1, True)])
def test_batch_norm(bias: bool, groups: int, transposed: bool) -> None:
    """(conv - mean) / deviation * weight + shift, as a chain of four."""
    b = Make()
    shape = (4, 6, 3, 3) if transposed else (8, 4 // groups, 3, 3)
    outputs = 6 if transposed else 8
    x = b.input(2, 4, 5, 5)
    operands = [x, b.input(*shape, parameter=True)]
    if bias:
        operands.append(b.input(outputs, parameter=True))
    y = conv(b, *operands, groups=groups, transposed=transposed)
    values = [b.input(outputs, parameter=True) for _ in range(4)]
    for op, value in zip(("sub", "div", "mul", "add"), values, strict=True):
        y = b.emit(op, y, channels(b, value, y))
    shapes = [shape, *[(outputs,)] * bias, *[(outputs,)] * 4]
    assert check(b.outputs(y), torch.randn(2, 4, 5, 5), *parameters(*shapes)) == []


def test_values_computed_from_parameters() -> None:
    b = Make()
    x, w, variance = (
        b.input(1, 3, 4, 4),
        b.input(2, 3, 3, 3, parameter=True),
        b.input(2, parameter=True),
    )
    y = conv(b, x, w)
    scale = b.emit("rsqrt", b.add(variance, 1e-5))
    graph = b.outputs(b.mul(channels(b, scale, y), y))
    assert check(graph, torch.randn(1, 3, 4, 4), *parameters((2, 3, 3, 3)), torch.rand(2)) == []


def test_a_number_counts_as_values_of_the_channels() -> None:
    b = Make()
    y = conv(b, b.input(1, 3, 4, 4), b.input(2, 3, 3, 3, parameter=True))
    graph = b.outputs(b.add(b.mul(y, 0.5), 3.0))
    assert check(graph, torch.randn(1, 3, 4, 4), torch.randn(2, 3, 3, 3)) == []


def test_a_result_that_is_read_twice_stays() -> None:
    b = Make()
    x, w, s = b.input(1, 3, 4, 4), b.input(2, 3, 3, 3, parameter=True), b.input(2, parameter=True)
    y = conv(b, x, w)
    graph = b.outputs(b.emit("mul", y, channels(b, s, y)), b.emit("exp", y))
    assert check(graph, torch.randn(1, 3, 4, 4), *parameters((2, 3, 3, 3), (2,))) == ["mul"]


def test_a_result_that_is_an_output_stays() -> None:
    b = Make()
    x, w, s = b.input(1, 3, 4, 4), b.input(2, 3, 3, 3, parameter=True), b.input(2, parameter=True)
    y = conv(b, x, w)
    graph = b.outputs(b.emit("mul", y, channels(b, s, y)), y)
    assert check(graph, torch.randn(1, 3, 4, 4), *parameters((2, 3, 3, 3), (2,))) == ["mul"]


def test_scale_by_an_activation_stays() -> None:
    """Squeeze-and-excitation: the scale is computed from the image."""
    b = Make()
    x, w, s = b.input(1, 3, 4, 4), b.input(2, 3, 3, 3, parameter=True), b.input(2)
    y = conv(b, x, w)
    graph = b.outputs(b.emit("mul", y, channels(b, s, y)))
    assert check(graph, torch.randn(1, 3, 4, 4), *parameters((2, 3, 3, 3), (2,))) == ["mul"]


def test_weights_that_change_stay() -> None:
    b = Make()
    x, w, s = b.input(1, 3, 4, 4), b.input(2, 3, 3, 3), b.input(2, parameter=True)
    y = conv(b, x, w)
    graph = b.outputs(b.emit("mul", y, channels(b, s, y)))
    assert check(graph, torch.randn(1, 3, 4, 4), *parameters((2, 3, 3, 3), (2,))) == ["mul"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 2, 4, 1), (1, 2, 4, 4)])
def test_values_that_vary_in_space_stay(shape: tuple[int, ...]) -> None:
    b = Make()
    x, w, s = (
        b.input(1, 3, 4, 4),
        b.input(2, 3, 3, 3, parameter=True),
        b.input(*shape, parameter=True),
    )
    y = conv(b, x, w)
    graph = b.outputs(b.emit("add", y, b.expand(s, y.shape)))
    assert check(graph, torch.randn(1, 3, 4, 4), *parameters((2, 3, 3, 3), shape)) == ["add"]


def test_a_number_minus_a_convolution_stays() -> None:
    b = Make()
    y = conv(b, b.input(1, 3, 4, 4), b.input(2, 3, 3, 3, parameter=True))
    graph = b.outputs(b.emit("sub", b.constant(1.0, y.dtype, y.shape), y))
    assert check(graph, torch.randn(1, 3, 4, 4), torch.randn(2, 3, 3, 3)) == ["sub"]
