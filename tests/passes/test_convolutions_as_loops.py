"""Convolutions of GPU targets as sums over windows: results, what is read how, and what stays."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton.contraction import Contraction
from lazyc.frontend.convolution_gradients import has_gradients, input_gradient, weight_gradient
from lazyc.ir import attrs as A
from lazyc.ir import program as P
from lazyc.ir.graph import Graph
from lazyc.ir.interp import run_graph
from lazyc.ir.types import DType, Shape, numel
from lazyc.passes.layout import ordered_strides
from lazyc.passes.manager import run_passes
from lazyc.passes.pipeline import pipeline
from lazyc.passes.schedule import schedule
from tests.passes.build import Make, kernels, run_program
from tests.passes.test_convolution import channels_last, conv, relu


def lowered(graph: Graph, keeps: bool = True) -> Graph:
    costs = gpu_target("sm_90").product_costs
    passes = pipeline(keeps, True, costs)
    return run_passes(graph, passes, verify=True)[-1].graph


def check(graph: Graph, *args: torch.Tensor, keeps: bool = True) -> P.Program:
    """The Program of the lowered Graph, which computes what the Graph does, in kernels alone."""
    expected = run_graph(graph, args)
    program = schedule(lowered(graph, keeps), keeps=keeps)
    for got, want in zip(run_program(program, args), expected, strict=True):
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * scale)
        assert got.stride() == want.stride()
    assert all(isinstance(s, P.KernelStep) for s in (*program.packed, *program.steps))
    return program


def contractions(program: P.Program) -> list[Contraction]:
    found = (Contraction.find(program.nests[s.nest]) for s in kernels(program))
    return [c for c in found if c is not None]


def operands(b: Make, shape: tuple[int, ...], weight: tuple[int, ...], bias: bool = False) -> list:
    """An image that is channels last, a weight and a bias."""
    found = [b.input(*shape, strides=_last(shape)), b.input(*weight, parameter=True)]
    return [*found, *(b.input(weight[0], parameter=True) for _ in range(bias))]


def _last(shape: Shape) -> Shape:
    """Strides of dense memory with the channels, dim 1, innermost."""
    return ordered_strides(shape, (0, *range(2, len(shape)), 1))


def data(*nodes) -> list[torch.Tensor]:
    """Random values where the inputs lie."""
    torch.manual_seed(0)
    found = []
    for n in nodes:
        x = torch.empty_strided(n.shape, n.attrs.strides, dtype=n.dtype.torch)
        found.append(x.copy_(torch.randn(n.shape)))
    return found


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [(1, 0, 1), (1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 0, 2), (2, 4, 1)],
)
def test_one_contraction_without_a_padded_copy(
    spatial: int, stride: int, padding: int, dilation: int
) -> None:
    b = Make()
    x, w, bias = operands(b, (3, 16, *(8, 7, 6)[:spatial]), (16, 16, *(3, 2, 3)[:spatial]), True)
    y = conv(b, x, w, bias, stride=stride, padding=padding, dilation=dilation)
    graph = b.outputs(relu(b, y), strides=[_last(y.shape)])
    program = check(graph, *data(x, w, bias))
    assert len(program.steps) == 1 and len(program.packed) == 1
    found = contractions(program)
    places = numel((y.shape[0], *y.shape[2:]))
    assert isinstance(places, int) and len(found) == (places >= 16)  # fewer make no tile
    depths = {c.loop.axes[-1].size for c in found}
    width = w.shape[-1]  # rows of windows without padding lie together
    assert depths <= {16, 16 * width}, "channels are not innermost"


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_of_one_is_a_product_in_place(stride: int) -> None:
    b = Make()
    x, w = operands(b, (2, 16, 6, 6), (24, 16, 1, 1))
    program = check(b.outputs(conv(b, x, w, stride=stride)), *data(x, w))
    assert len(program.steps) == len(contractions(program)) == 1 and not program.packed


@pytest.mark.parametrize(("groups", "channels", "outputs"), [(2, 32, 48), (8, 8, 8)])
def test_groups(groups: int, channels: int, outputs: int) -> None:
    """Groups are a batch of products; one filter a channel is a plain reduction."""
    b = Make()
    x, w = operands(b, (2, channels, 6, 5), (outputs, channels // groups, 3, 3))
    y = conv(b, x, w, padding=1, groups=groups)
    program = check(b.outputs(y, strides=[_last(y.shape)]), *data(x, w))
    assert len(program.steps) == 1
    assert [c.batch[0].size for c in contractions(program)] == ([2] if groups == 2 else [])


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_half_types_are_added_in_single_precision(dtype: DType) -> None:
    b = Make()
    shape, weight = (2, 64, 5, 5), (16, 64, 3, 3)
    x = b.input(*shape, dtype=dtype, strides=_last(shape))
    w = b.input(*weight, dtype=dtype, parameter=True)
    graph = b.outputs(conv(b, x, w, padding=1))
    args = data(x, w)
    program = schedule(lowered(graph))
    (got,) = run_program(program, args)
    exact = torch.conv2d(args[0].double(), args[1].double(), padding=1)
    torch.testing.assert_close(got, exact.to(dtype.torch), rtol=2**-7, atol=0.1)
    (found,) = contractions(program)
    assert found.result.dtype is DType.F32


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "more"),
    [
        (3, 1, 1, 1, 0), (3, 1, 3, 1, 0), (3, 1, 1, 2, 0),  # as a convolution of flipped filters
        (3, 2, 1, 1, 1), (4, 2, 1, 1, 0), (5, 3, 4, 1, 2), (1, 2, 0, 1, 1), (2, 3, 0, 1, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed(
    kernel: int, stride: int, padding: int, dilation: int, more: int, groups: int
) -> None:
    """Only products of what is there: no zeros between the elements of the image."""
    b = Make()
    shape, weight = (3, 32, 6, 7), (32, 16, kernel, kernel)
    x = b.input(*shape, strides=_last(shape))
    w, bias = b.input(*weight, parameter=True), b.input(16 * groups, parameter=True)
    each = [(n, n) for n in (stride, padding, dilation, more)]
    attrs = A.ConvolutionAttrs(*each[:3], True, each[3], groups)
    y = b.emit("convolution", x, w, bias, attrs=attrs)
    program = check(b.outputs(y), *data(x, w, bias))
    (found,) = contractions(program)
    taps = -(-kernel // stride)
    assert numel(a.size for a in found.loop.axes) == taps**2 * 32 // groups
    assert len(program.steps) == (1 if stride == 1 else 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(stride: int, transposed: bool) -> None:
    """What autograd makes of a convolution, in kernels alone."""
    b = Make()
    step = (stride, stride)
    attrs = A.ConvolutionAttrs(step, (1, 1), (1, 1), transposed, (0, 0), 1)
    x, w = b.input(2, 16, 7, 7), b.input(16, 16, 3, 3)
    y = b.emit("convolution", x, w, attrs=attrs)
    grad = b.input(*(int(d) for d in y.shape))
    assert has_gradients(grad, x, w, attrs)
    graph = b.outputs(input_gradient(b, grad, x, w, attrs), weight_gradient(b, grad, x, w, attrs))
    args = data(x, w, grad)
    mask = [True, True, False]
    wanted = torch.ops.aten.convolution_backward(
        args[2].double(), args[0].double(), args[1].double(), None, step, (1, 1), (1, 1),
        transposed, (0, 0), 1, mask,
    )  # fmt: skip
    for got, want in zip(run_graph(graph, args), wanted[:2], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
    assert len(contractions(check(graph, *args))) == 2


# --- where operands lie ---------------------------------------------------------------------------


def decisions(graph: Graph, keeps: bool = True) -> list:
    return [d for d in lowered(graph, keeps).decisions if d.by == "lower_convolutions"]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_weight_is_reordered_once_where_the_target_keeps_it(keeps: bool) -> None:
    b = Make()
    x, w = operands(b, (2, 16, 6, 6), (24, 16, 3, 3))
    graph = b.outputs(conv(b, x, w, padding=1))
    (decision,) = decisions(graph, keeps)
    size = 24 * 16 * 9 * 4
    assert (decision.bytes_copied, decision.bytes_kept) == ((0, size) if keeps else (size, 0))
    program = check(graph, *data(x, w), keeps=keeps)
    assert (len(program.packed), len(program.steps)) == ((1, 1) if keeps else (0, 2))


def test_a_weight_that_is_channels_last_is_read_in_place() -> None:
    b = Make()
    x, shape = b.input(2, 16, 6, 6, strides=_last((2, 16, 6, 6))), (24, 16, 3, 3)
    w = b.input(*shape, strides=_last(shape), parameter=True)
    graph = b.outputs(conv(b, x, w, padding=1))
    assert not decisions(graph)
    assert len(check(graph, *data(x, w)).steps) == 1


@pytest.mark.parametrize(("channels", "copies"), [(16, 1), (6, 0)])
def test_an_image_that_lies_otherwise_is_copied_for_whole_vectors(
    channels: int, copies: int
) -> None:
    b = Make()
    x, w = b.input(2, channels, 6, 6), b.input(24, channels, 3, 3, parameter=True)
    graph = b.outputs(conv(b, x, w, padding=1))
    assert sum("copied to channels last" in d.what for d in decisions(graph)) == copies
    program = check(graph, *data(x, w))
    assert len(program.steps) == 1 + copies
    if copies:
        (image,) = (t for t in program.buffers if t.kind == "temp")
        assert (image.shape, image.strides) == ((2, 6, 6, 16), (576, 96, 16, 1))


def test_what_the_caller_takes_otherwise_is_copied() -> None:
    """A result of the graph that it also convolves, as what a backward pass reads is."""
    b = Make()
    x, w, v = (b.input(*s, parameter=len(s) == 4 and s[0] == 16) for s in SHAPES)
    y = relu(b, conv(b, x, w, padding=1))
    graph = b.outputs(y, conv(b, y, v, padding=1))
    assert sum("copied to channels last" in d.what for d in decisions(graph)) == 2
    check(graph, *data(x, w, v))


SHAPES = ((2, 16, 6, 6), (16, 16, 3, 3), (16, 16, 3, 3))


def test_a_net_is_channels_last_from_end_to_end() -> None:
    """A residual block with a pool before it: three convolutions with what follows them are a kernel each,
    and every value in memory is channels last."""
    b = Make()
    shapes = [(16, 16, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3)]
    x = b.input(2, 16, 12, 12)
    weights = [b.input(*s, parameter=True) for s in shapes]
    window = A.WindowAttrs((2, 3), (2, 2), (2, 2), (1, 1), (6, 6))
    y = b.max(b.emit("window", x, attrs=window), 4, 5)
    z = relu(b, conv(b, y, weights[0], padding=1))
    z = relu(b, b.add(conv(b, z, weights[1], padding=1), y))
    z = relu(b, conv(b, z, weights[2], padding=1, stride=2))
    graph = b.outputs(z, strides=[channels_last(z.shape)])
    program = check(graph, *data(x, *weights))
    temporary = [t for t in program.buffers if t.kind == "temp"]
    assert len(program.steps) == 4 and len(contractions(program)) == 3
    assert [t.strides for t in temporary] == [channels_last(t.shape) for t in temporary]


# --- what stays -----------------------------------------------------------------------------------


def stays(graph: Graph) -> bool:
    return any(n.op == "convolution" for n in lowered(graph).nodes)


def test_groups_of_a_few_channels_stay() -> None:
    b = Make()
    assert stays(b.outputs(conv(b, *operands(b, (1, 8, 6, 6), (8, 4, 3, 3)), groups=2)))


def test_double_precision_stays() -> None:
    b = Make()
    w = b.input(16, 16, 3, 3, dtype=DType.F64, parameter=True)
    assert stays(b.outputs(conv(b, b.input(1, 16, 6, 6, dtype=DType.F64), w)))


def test_an_option_leaves_convolutions_to_the_library() -> None:
    b = Make()
    graph = b.outputs(conv(b, *operands(b, (1, 16, 6, 6), (16, 16, 3, 3))))
    passes = pipeline(True, True, None, ("lower_convolutions",))
    program = schedule(run_passes(graph, passes, verify=True)[-1].graph)
    assert any(isinstance(s, P.EagerStep) for s in program.steps)


# --- windows with padding -------------------------------------------------------------------------


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("axes", [(1,), (0, 1)])
def test_windows_read_zeros_outside(axes: Sequence[int], computed: bool) -> None:
    b = Make()
    x = b.input(5, 6)
    count, size = len(axes), 3
    attrs = A.WindowAttrs(tuple(axes), (size,) * count, (2,) * count, (1,) * count, (4,) * count,
                          (2,) * count)  # fmt: skip
    source = b.emit("cos", x) if computed else x
    graph = b.outputs(b.emit("window", source, attrs=attrs))
    (image,) = data(x)
    padded = torch.nn.functional.pad(
        image.cos() if computed else image, (2, 3, 2 * (count - 1), 3 * (count - 1))
    )
    want = padded
    for axis in axes:
        want = want.unfold(axis, size, 2).narrow(axis, 0, 4)
    (got,) = run_graph(graph, [image])
    torch.testing.assert_close(got, want)
    (got,) = run_program(schedule(graph), [image])
    torch.testing.assert_close(got, want)
