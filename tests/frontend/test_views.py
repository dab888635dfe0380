from __future__ import annotations

import pytest
import torch

from lazyc.frontend.fx_import import import_graph
from lazyc.ir.interp import run_graph
from tests.frontend.trace import check, eager_nodes, graph_of, trace

aten = torch.ops.aten


def x234() -> torch.Tensor:
    return torch.arange(24.0).reshape(2, 3, 4)


VIEWS = {
    "view": lambda x: aten.view.default(x, [6, -1]),
    "t": lambda x: aten.t.default(aten.view.default(x, [6, 4])),
    "transpose": lambda x: aten.transpose.int(x, 0, -1),
    "permute": lambda x: aten.permute.default(x, [2, -3, 1]),
    "expand": lambda x: aten.expand.default(aten.unsqueeze.default(x, 0), [5, -1, 3, 4]),
    "squeeze": lambda x: aten.squeeze.dims(aten.unsqueeze.default(x, -1), [0, 3]),
    "slice": lambda x: aten.slice.Tensor(x, 1, -2, 9223372036854775807),
    "slice step": lambda x: aten.slice.Tensor(x, 2, 1, 4, 2),
    "empty slice": lambda x: aten.slice.Tensor(x, 2, 3, 1),
    "slice past the end": lambda x: aten.slice.Tensor(x, 2, 7, 9),
    "select": lambda x: aten.select.int(x, 1, -1),
    "split": lambda x: aten.split.Tensor(x, 3, -1),
    "split sizes": lambda x: aten.split_with_sizes.default(x, [1, 0, 2], 1),
    "unbind": lambda x: aten.unbind.int(x, 1),
    "diagonal": lambda x: aten.diagonal.default(x, 1, 1, 2),
    "diagonal below": lambda x: aten.diagonal.default(x, -1, 2, 0),
    "diagonal outside": lambda x: aten.diagonal.default(x, 9, 1, 2),
    "unfold": lambda x: aten.unfold.default(x, 2, 2, 1),
    "alias": lambda x: aten.alias.default(x),
    "view as int": lambda x: aten.view.dtype(x, torch.int32),
    "as_strided": lambda x: aten.as_strided.default(aten.clone.default(x), [3, 2], [1, 4], 2),
    "as_strided from the start": lambda x: aten.as_strided.default(x, [3, 2], [1, 4]),
    "as_strided of a transpose": lambda x: aten.as_strided.default(
        aten.clone.default(aten.permute.default(x, [2, 0, 1])), [4, 3], [1, 2], 1
    ),
}
COPIES = {
    "cat": lambda x: aten.cat.default([x, aten.slice.Tensor(x, 2, 0, 1)], -1),
    "cat with an empty one": lambda x: aten.cat.default([aten.new_zeros.default(x, [0]), x]),
    "cat of dtypes": lambda x: aten.cat.default([x, aten._to_copy.default(x, dtype=torch.int64)]),
    "stack": lambda x: aten.stack.default([x, x], -1),
    "pad": lambda x: aten.constant_pad_nd.default(x, [1, 2, 0, 3], 1.5),
    "crop": lambda x: aten.constant_pad_nd.default(x, [-1, 2, 1, -2], 7),
    "roll": lambda x: aten.roll.default(x, [1, -2], [0, 2]),
    "roll flat": lambda x: aten.roll.default(x, [5]),
    "flip": lambda x: aten.flip.default(x, [0, -1]),
    "repeat": lambda x: aten.repeat.default(x, [2, 1, 3, 2]),
    "slice_scatter": lambda x: aten.slice_scatter.default(x, -aten.select.int(x, 1, 0)[:, None], 1, 1, 2),
    "slice_scatter step": lambda x: aten.slice_scatter.default(x, aten.neg.default(x[:, :, ::2]), 2, 1, 4, 2),
    "select_scatter": lambda x: aten.select_scatter.default(x, x[:, 0] * 2, 1, -1),
    "diagonal_scatter": lambda x: aten.diagonal_scatter.default(x, x[:, :, 0] * 2, 1, 1, 2),
    "diagonal_scatter below": lambda x: aten.diagonal_scatter.default(x, x[:, :2, 0] * 2, -1, 1, 2),
    "slice_backward": lambda x: aten.slice_backward.default(x, [2, 3, 9], 2, 1, 9, 2),
    "select_backward": lambda x: aten.select_backward.default(x, [2, 5, 3, 4], 1, -2),
    "tril": lambda x: aten.tril.default(x, -1),
    "triu": lambda x: aten.triu.default(x, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", [*VIEWS, *COPIES])
def test_equal_to_eager(name: str) -> None:
    fn = {**VIEWS, **COPIES}[name]
    check(fn, x234(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["permute", "slice", "flip", "roll", "cat", "pad", "unfold", "tril"]
)
def test_sizes_of_zero(name: str) -> None:
    fn = {**VIEWS, **COPIES}[name]
    check(fn, torch.empty(0, 3, 4))


@pytest.mark.parametrize(
    "name",
    ["view", "permute", "expand", "split", "select", "slice", "cat", "stack", "repeat", "pad"],
)
def test_symbolic_sizes(name: str) -> None:
    check({**VIEWS, **COPIES}[name], x234(), mode="symbolic")


def test_symbolic_chains() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        rows, columns = x.shape
        y = x.reshape(rows // 2, 2, columns).transpose(0, 1).reshape(-1, columns)
        return torch.cat([y, x], 1)[:, columns // 2 :] * rows

    graph = graph_of(fn, torch.randn(6, 5), mode="symbolic")
    # That twice the half is the whole is known to the guards alone: such a call stays eager.
    assert [op for op, _ in eager_nodes(graph)] == ["aten.cat.default"]
    check(fn, torch.randn(6, 5), mode="symbolic", lowered=False)


def test_symbolic_crops_and_slices() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> tuple:
        rows, shorter = x.shape[0], y.shape[0]
        cropped = aten.constant_pad_nd.default(x, [0, -1, -shorter, 0])
        return cropped, x[-shorter:], x[shorter:], x[-2] * rows

    graph = graph_of(fn, torch.randn(9, 4), torch.randn(3), mode="symbolic")
    assert not eager_nodes(graph)
    for rows, shorter in ((9, 3), (12, 5)):
        x, y = torch.randn(rows, 4), torch.randn(shorter)
        torch.testing.assert_close(run_graph(graph, [x, y]), list(fn(x, y)))


def test_symbolic_sizes_of_unknown_sign_are_eager() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return aten.constant_pad_nd.default(x, [0, x.shape[0] - y.shape[0]])

    check(fn, torch.randn(5, 9), torch.randn(7), mode="symbolic", lowered=False)


def test_as_strided_over_gaps_is_eager() -> None:
    check(
        lambda x: aten.as_strided.default(x[:, ::2], [2, 2], [4, 1]),
        torch.randn(4, 4),
        lowered=False,
    )


CREATION = {
    "arange": lambda: aten.arange.start_step(2, 11, 3),
    "arange float": lambda: aten.arange.start_step(0.5, 2.0, 0.1),
    "arange default": lambda: aten.arange.default(5),
    "full": lambda: aten.full.default([2, 3], 1.5),
    "full int": lambda: aten.full.default([2, 3], 7, dtype=torch.int8),
    "full bool": lambda: aten.full.default([], True),
    "zeros": lambda: aten.zeros.default([2, 0]),
    "ones": lambda: aten.ones.default([3], dtype=torch.bfloat16),
    "eye": lambda: aten.eye.m(3, 4),
    "scalar_tensor": lambda: aten.scalar_tensor.default(2, dtype=torch.int32),
    "iota": lambda: torch.ops.prims.iota.default(
        4, start=1, step=2, dtype=torch.int64, device=torch.device("cpu"), requires_grad=False
    ),
}


@pytest.mark.parametrize("name", CREATION)
def test_creation(name: str) -> None:
    check(CREATION[name])


def test_creation_like_another() -> None:
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    check(lambda x: aten.full_like.default(x, 3), x)
    check(lambda x: aten.zeros_like.default(x, dtype=torch.int64), x)
    check(lambda x: aten.new_full.default(x, [4], 2.5), x)
    check(lambda x: aten.new_ones.default(x, [1, 2]), x)


def test_view_of_another_width_is_eager_and_an_alias() -> None:
    graph = graph_of(lambda x: aten.view.dtype(x, torch.int16), torch.randn(2, 2))
    assert eager_nodes(graph) == [("aten.view.dtype", "view of f32 as i16")]
    (node,) = [n for n in graph.nodes if n.op == "eager"]
    assert node.attrs.aliases == (0,)


def test_user_lines_are_kept() -> None:
    gm = trace(lambda x: aten.exp.default(x), torch.randn(2))
    for node in gm.graph.nodes:
        node.meta["stack_trace"] = (
            'File "/home/user/model.py", line 12, in forward\n    y = self.act(x)\n'
            f'File "{torch.__file__}", line 4, in forward\n'
        )
    graph = import_graph(gm)
    (node,) = [n for n in graph.nodes if n.op == "exp"]
    assert graph.provenance[node].line == "model.py:12"
    assert graph.provenance[node].op == "aten.exp.default"
