"""How convolutions by lasting weights are lowered, and that the result stays the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from lazyc.ir import attrs as A
from lazyc.ir import program as P
from lazyc.ir.graph import Graph, Node
from lazyc.ir.interp import run_graph
from lazyc.ir.types import DType, Shape
from lazyc.ir.verify import verify_graph
from lazyc.passes.convolution import lower_convolutions
from lazyc.passes.manager import run_passes
from lazyc.passes.pipeline import pipeline
from lazyc.passes.schedule import schedule
from tests.passes.build import Make, kernels, run_program

CALL = "mkldnn._convolution_pointwise.default"
PACK = "mkldnn._reorder_convolution_weight.default"


def conv(
    b: Make,
    *operands: Node,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    transposed: bool = False,
) -> Node:
    spatial = operands[0].tensor.rank - 2

    def each(value: int) -> tuple[int, ...]:
        return (value,) * spatial

    attrs = A.ConvolutionAttrs(
        each(stride), each(padding), each(dilation), transposed, each(0), groups
    )
    return b.emit("convolution", *operands, attrs=attrs)


def lowered(graph: Graph) -> Graph:
    result = run_passes(graph, pipeline(), verify=True)[-1].graph
    verify_graph(result)
    return result


def check(graph: Graph, *args: torch.Tensor) -> P.Program:
    """Runs the Program of the lowered Graph, and compares it with the Graph as it was."""
    expected = run_graph(graph, args)
    program = schedule(lowered(graph))
    for got, want in zip(run_program(program, args), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert got.stride() == want.stride()
    return program


def calls(steps: Sequence[P.Step]) -> list[str]:
    return [s.target for s in steps if isinstance(s, P.EagerStep)]


def kinds(program: P.Program) -> list[str]:
    return [type(s).__name__.removesuffix("Step") for s in program.steps]


def channels_last(shape: Shape) -> Shape:
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c)


# --- each way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_kernel_of_one_is_a_packed_product(spatial: int, stride: int, bias: bool) -> None:
    b = Make()
    shape, weight = (2, 3, *(5, 4, 3)[:spatial]), (6, 3, *(1,) * spatial)
    operands = [b.input(*shape), b.input(*weight, parameter=True)]
    operands += [b.input(6, parameter=True) for _ in range(bias)]
    graph = b.outputs(conv(b, *operands, stride=stride))
    args = [torch.randn(shape), torch.randn(weight), torch.randn(6)][: len(operands)]
    program = check(graph, *args)
    (product,) = [s for s in program.steps if isinstance(s, P.GemmStep)]
    assert product.pack_b and product.batch == ()
    assert not calls(program.steps)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 0, 2), (2, 3, 2)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_one_filter_a_channel_is_one_kernel(
    stride: int, padding: int, dilation: int, bias: bool
) -> None:
    b = Make()
    shape, weight = (1, 5, 8, 7), (5, 1, 3, 3)
    operands = [b.input(*shape), b.input(*weight, parameter=True)]
    operands += [b.input(5, parameter=True) for _ in range(bias)]
    y = conv(b, *operands, stride=stride, padding=padding, dilation=dilation, groups=5)
    args = [torch.randn(shape), torch.randn(weight), torch.randn(5)][: len(operands)]
    program = check(b.outputs(y), *args)
    assert set(kinds(program)) == {"Kernel"}
    assert len(program.steps) == 1 + (padding > 0)  # the padded copy


@pytest.mark.parametrize("channels", [2, 8])
def test_little_work_stays_out_of_the_library(channels: int) -> None:
    b = Make()
    x, w = b.input(1, channels, 6, 6), b.input(4, channels, 3, 3, parameter=True)
    graph = b.outputs(conv(b, x, w, padding=1))
    program = check(graph, torch.randn(1, channels, 6, 6), torch.randn(4, channels, 3, 3))
    assert not calls(program.steps)
    assert ("Gemm" in kinds(program)) == (channels == 8)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "weight", "groups"),
    [
        ((1, 64, 20, 20), (64, 64, 3, 3), 1),
        ((2, 8, 10, 10), (8, 4, 3, 3), 2),
        ((1, 8, 12), (8, 4, 3), 2),
        ((1, 4, 5, 5, 5), (8, 2, 3, 3, 3), 2),
        ((1, 4, 9, 9), (12, 1, 3, 3), 4),
    ],
)
def test_the_rest_is_one_library_call_on_a_reordered_weight(
    shape: tuple[int, ...], weight: tuple[int, ...], groups: int, bias: bool
) -> None:
    b = Make()
    operands = [b.input(*shape), b.input(*weight, parameter=True)]
    operands += [b.input(weight[0], parameter=True) for _ in range(bias)]
    graph = b.outputs(conv(b, *operands, stride=2, padding=1, groups=groups))
    args = [torch.randn(shape), torch.randn(weight) / 16, torch.randn(weight[0])][: len(operands)]
    program = check(graph, *args)
    assert calls(program.steps) == [CALL]
    assert calls(program.packed) == [PACK]
    assert not any(s.is_fallback for s in program.steps if isinstance(s, P.EagerStep))


def test_half_types_go_to_the_library() -> None:
    b = Make()
    x = b.input(1, 8, 6, 6, dtype=DType.BF16)
    w = b.input(8, 8, 1, 1, dtype=DType.BF16, parameter=True)
    graph = lowered(b.outputs(conv(b, x, w)))
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert any(n.op == "convolution" for n in graph.nodes) != supported


# --- what stays -----------------------------------------------------------------------------------


def unchanged(y: Node, b: Make) -> bool:
    graph = lower_convolutions(b.outputs(y))
    return any(n.op == "convolution" for n in graph.nodes)


def test_a_weight_that_changes_stays() -> None:
    b = Make()
    assert unchanged(conv(b, b.input(1, 8, 6, 6), b.input(8, 8, 3, 3)), b)


def test_a_bias_that_changes_stays() -> None:
    b = Make()
    w = b.input(8, 8, 3, 3, parameter=True)
    assert unchanged(conv(b, b.input(1, 8, 6, 6), w, b.input(8)), b)


def test_a_transposed_convolution_stays() -> None:
    b = Make()
    w = b.input(8, 8, 3, 3, parameter=True)
    assert unchanged(conv(b, b.input(1, 8, 6, 6), w, transposed=True), b)


def test_double_precision_stays() -> None:
    b = Make()
    w = b.input(64, 64, 3, 3, dtype=DType.F64, parameter=True)
    assert unchanged(conv(b, b.input(1, 64, 20, 20, dtype=DType.F64), w), b)


def test_nothing_is_kept_without_packing() -> None:
    names = {p.name for p in pipeline(keeps=False)}
    assert names == {p.name for p in pipeline()} - {"fold_norm", "lower_convolutions"}


# --- nets -----------------------------------------------------------------------------------------


def relu(b: Make, x: Node) -> Node:
    return b.maximum(x, 0.0)


def test_a_net_is_channels_last_from_end_to_end() -> None:
    """Convolutions of all kinds with relu and a sum of branches between them: every value in memory
    is channels last, no copy is made but of the input and the output, and weights are kept."""
    b = Make()
    shapes = [(16, 3, 3, 3), (16, 16, 1, 1), (16, 1, 3, 3), (32, 16, 1, 1), (32, 8, 3, 3)]
    x = b.input(1, 3, 12, 12)
    weights = [b.input(*s, parameter=True) for s in shapes]
    y = relu(b, conv(b, x, weights[0], padding=1))
    z = relu(b, conv(b, y, weights[1]))
    z = b.add(conv(b, z, weights[2], padding=1, groups=16), y)
    z = relu(b, conv(b, z, weights[3]))
    z = relu(b, conv(b, z, weights[4], padding=1, groups=4))
    args = [torch.randn(1, 3, 12, 12), *[torch.randn(s) / 4 for s in shapes]]
    program = check(b.outputs(z), *args)
    for buffer in program.buffers:
        inside = buffer.kind in ("temp", "eager") and len(buffer.shape) == 4
        if inside and buffer.shape[1] != 3:
            assert buffer.strides == channels_last(buffer.shape), buffer
    assert kinds(program) == [
        *("Kernel", "Kernel"),  # the padded input; convolution and relu
        *("Gemm", "Kernel"),  # relu, padded for what follows
        "Kernel",  # filters and the sum
        *("Gemm", "Kernel"),
        *("Eager", "Kernel"),
    ]
    assert program.parameters


def test_pooling_of_channels_last_values_runs_along_channels() -> None:
    b = Make()
    x, w = b.input(1, 8, 9, 9), b.input(16, 8, 1, 1, parameter=True)
    y = conv(b, x, w)
    window = A.WindowAttrs((2, 3), (3, 3), (2, 2), (1, 1), (4, 4))
    pooled = b.max(b.emit("window", y, attrs=window), 4, 5)
    graph = b.outputs(pooled, strides=[channels_last(pooled.shape)])
    program = check(graph, torch.randn(1, 8, 9, 9), torch.randn(16, 8, 1, 1))
    nest = program.nests[kernels(program)[-1].nest]
    assert nest.vectorize == "outer" and nest.axes[-1].size == 16


def test_convolution_sees_nan_and_inf() -> None:
    """relu of nan is nan, also behind a library call."""
    b = Make()
    x, w = b.input(1, 32, 20, 20), b.input(32, 32, 3, 3, parameter=True)
    graph = b.outputs(relu(b, conv(b, x, w, padding=1)))
    image = torch.randn(1, 32, 20, 20)
    image[0, 3, 5, 5], image[0, 7, 15, 15] = torch.nan, torch.inf
    args = [image, torch.randn(32, 32, 3, 3)]
    (expected,) = run_graph(graph, args)
    (got,) = run_program(schedule(lowered(graph)), args)
    assert expected.isnan().any() and expected.isinf().any()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("fused", list(itertools.product([False, True], repeat=2)))
def test_norms_and_biases_take_no_step_of_their_own(fused: tuple[bool, bool]) -> None:
    norm, bias = fused
    b = Make()
    x, w = b.input(1, 32, 20, 20), b.input(32, 32, 3, 3, parameter=True)
    operands = [x, w, *(b.input(32, parameter=True) for _ in range(bias))]
    y = conv(b, *operands, padding=1)
    args = [torch.randn(1, 32, 20, 20), torch.randn(32, 32, 3, 3) / 16, torch.randn(32)]
    args = args[: len(operands)]
    if norm:
        for op in ("mul", "add"):
            values = b.reshape(b.input(32, parameter=True), (1, 32, 1, 1))
            y = b.emit(op, y, b.expand(values, y.shape))
            args.append(torch.randn(32))
    program = check(b.outputs(y, strides=[channels_last(y.shape)]), *args)
    assert kinds(program) == ["Kernel", "Eager"]  # the input made channels last
