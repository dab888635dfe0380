from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lazyc.frontend.autograd import AotBackend, Part, run_in_eager
from lazyc.frontend.fx_import import Unsupported, import_graph
from lazyc.ir.graph import Graph, Node
from lazyc.ir.interp import run_graph
from lazyc.ir.ops import IRError
from lazyc.ir.verify import verify_graph
from tests.frontend.trace import check, eager_nodes, graph_of, trace

aten = torch.ops.aten


class Recorder:
    """A backend that interprets, and keeps the Graphs that it was given."""

    def __init__(self) -> None:
        self.graphs: list[tuple[str, Graph]] = []
        self.failures: list[str] = []
        self.backend = AotBackend(self._compile, self._failed)

    def _compile(self, graph: Graph, gm: torch.fx.GraphModule, part: Part) -> Callable:
        verify_graph(graph)
        self.graphs.append((part.kind, graph))
        return lambda args: run_graph(graph, args)

    def _failed(self, error: Exception, gm: torch.fx.GraphModule, kind: str) -> Callable:
        if not isinstance(error, Unsupported):
            raise error
        self.failures.append(str(error))
        return run_in_eager(gm)

    def compile(self, fn: Callable, **options: Any) -> Callable:
        torch._dynamo.reset()
        return torch.compile(fn, backend=self.backend, **options)


def test_training_gives_a_forward_and_a_backward() -> None:
    recorder = Recorder()
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.LayerNorm(4))
    x = torch.randn(2, 3, requires_grad=True)
    wanted = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    compiled = recorder.compile(model)
    found = torch.autograd.grad(compiled(x).square().sum(), [x, *model.parameters()])
    torch.testing.assert_close(found, wanted)
    assert [kind for kind, _ in recorder.graphs] == ["forward", "backward"]
    assert not any(eager_nodes(g) for _, g in recorder.graphs)


def test_saved_views_of_parameters_are_aliases() -> None:
    recorder = Recorder()
    compiled = recorder.compile(torch.nn.Linear(3, 4))
    compiled(torch.randn(2, 3, requires_grad=True)).sum().backward()
    forward = recorder.graphs[0][1]
    saved = [o for o in forward.outputs[1:] if o.alias_of is not None]
    assert saved and all(isinstance(o.value, Node) for o in saved)


def test_parameters_of_inference_graphs_are_marked() -> None:
    recorder = Recorder()
    model = torch.nn.BatchNorm1d(3).eval()
    with torch.no_grad():
        recorder.compile(model)(torch.randn(2, 3))
    ((kind, graph),) = recorder.graphs
    assert kind == "inference"
    marks = [n.attrs.is_parameter for n in graph.inputs]
    assert marks.count(True) == 4 and marks.count(False) == 1


def test_writes_to_inputs() -> None:
    recorder = Recorder()

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total = x + y
        x.mul_(2)
        y[0] = x.sum()
        return total

    x, y = torch.arange(3.0), torch.ones(3)
    x2, y2 = x.clone(), y.clone()
    wanted = step(x, y)
    torch.testing.assert_close(recorder.compile(step)(x2, y2), wanted)
    torch.testing.assert_close((x2, y2), (x, y))
    assert len(recorder.graphs[0][1].mutations) == 2


def test_running_statistics() -> None:
    recorder = Recorder()
    model, other = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    compiled = recorder.compile(other)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.running_var, model.running_var)
    assert int(other.num_batches_tracked) == 2


def test_outputs_that_are_inputs_and_views_of_them() -> None:
    recorder = Recorder()

    def fn(x: torch.Tensor) -> tuple:
        return x, x[1:], x + 1, None, 3, x.t()

    x = torch.randn(3, 4)
    same, part, new, nothing, three, turned = recorder.compile(fn)(x)
    assert same is x and nothing is None and three == 3
    assert part.data_ptr() == x[1:].data_ptr() and turned.stride() == (1, 4)
    torch.testing.assert_close(new, x + 1)


def test_symbolic_sizes_recompile_never() -> None:
    recorder = Recorder()

    def fn(x: torch.Tensor) -> tuple:
        rows = x.shape[0]
        return x.reshape(-1) * rows, x.softmax(0), rows * 2, torch.arange(rows) + 1

    compiled = recorder.compile(fn, dynamic=True)
    for rows in (4, 7, 5):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(compiled(x), fn(x))
    ((_, graph),) = recorder.graphs
    assert len(graph.symbols) == 2 and not eager_nodes(graph)


def test_integers_as_arguments() -> None:
    recorder = Recorder()

    def fn(x: torch.Tensor, n: int, scale: float) -> torch.Tensor:
        return x[:n] * n + scale

    compiled = recorder.compile(fn, dynamic=True)
    x = torch.randn(9)
    for n, scale in ((3, 0.5), (5, 1.5), (8, 2.5)):
        torch.testing.assert_close(compiled(x, n, scale), fn(x, n, scale))


def test_floats_made_from_sizes() -> None:
    recorder = Recorder()

    def fn(x: torch.Tensor) -> torch.Tensor:
        rows, columns = x.shape
        return x * (rows / columns) + math.sqrt(columns) * x.long() - x / rows**0.5

    compiled = recorder.compile(fn, dynamic=True)
    for shape in ((4, 3), (5, 9)):
        x = torch.randn(shape) * 3
        torch.testing.assert_close(compiled(x), fn(x))
    ((_, graph),) = recorder.graphs
    assert not eager_nodes(graph)


def test_unlowered_ops_become_eager_islands() -> None:
    def fn(x: torch.Tensor) -> tuple:
        values, places = aten.sort.default(aten.add.Tensor(x, 1))
        return aten.mul.Tensor(values, 2), places

    graph = check(fn, torch.randn(4, 5), lowered=False)
    assert eager_nodes(graph) == [("aten.sort.default", "no lowering")]
    (node,) = [n for n in graph.nodes if n.op == "eager"]
    assert node.attrs.input_strides == ((5, 1),) and node.attrs.strides == ((5, 1), (5, 1))
    assert node.attrs.serial == -1 and not node.attrs.has_effect


def test_eager_calls_are_given_eagers_layout() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    graph = check(lambda x: aten.sort.default(x, 1), x, lowered=False)
    (node,) = [n for n in graph.nodes if n.op == "eager"]
    assert node.attrs.input_strides == (x.stride(),)
    assert node.attrs.strides[0] == aten.sort.default(x, 1)[0].stride()


def test_complex_numbers_stay_in_eager() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        z = aten._fft_r2c.default(aten.mul.Tensor(x, 2), [1], 0, True)
        return aten.add.Tensor(aten._fft_c2r.default(aten.mul.Tensor(z, z), [1], 2, 8), 1)

    graph = check(fn, torch.randn(3, 8), lowered=False)
    assert {reason for _, reason in eager_nodes(graph)} == {"complex64"}
    assert [n.op for n in graph.nodes if n.op in ("mul", "add")] == ["mul", "add"]


def test_complex_inputs_and_outputs() -> None:
    recorder = Recorder()
    x = torch.randn(3, dtype=torch.complex64)
    y, z = recorder.compile(lambda x: (x.abs() + 1, x * 2))(x)
    torch.testing.assert_close((y, z), (x.abs() + 1, x * 2))


def test_sparse_layouts_stay_in_eager() -> None:
    graph = graph_of(
        lambda x: aten.mul.Tensor(aten.to_dense.default(x), 2), torch.eye(3).to_sparse()
    )
    assert eager_nodes(graph)[0][1] == "sparse_coo"


def test_random_eager_calls_never_merge() -> None:
    def fn(x: torch.Tensor) -> tuple:
        return aten.multinomial.default(x, 2), aten.multinomial.default(x, 2)

    graph = graph_of(fn, torch.ones(4))
    serials = [n.attrs.serial for n in graph.nodes if n.op == "eager"]
    assert serials == [0, 1]


def test_lowered_random_numbers_share_a_seed_and_no_counter() -> None:
    def fn(x: torch.Tensor) -> tuple:
        return aten.rand_like.default(x), aten.rand_like.default(x), aten.randn_like.default(x)

    graph = graph_of(fn, torch.empty(10))
    draws = [n for n in graph.nodes if n.op == "random"]
    assert [n.attrs.offset for n in draws] == [0, 10, 20]
    assert len([n for n in graph.nodes if n.op == "seed"]) == 1
    torch.manual_seed(3)
    first = run_graph(graph, [torch.empty(10)])
    torch.manual_seed(3)
    again = run_graph(graph, [torch.empty(10)])
    other = run_graph(graph, [torch.empty(10)])
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_custom_ops_that_write_to_their_arguments() -> None:
    with torch.library._scoped_library("lazyc_test", "DEF") as library:
        library.define("bump(Tensor(a!) x, Tensor y) -> ()")

        def bump(x: torch.Tensor, y: torch.Tensor) -> None:
            x.add_(y)

        library.impl("bump", bump, "CompositeExplicitAutograd")

        def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            z = x * 2
            torch.ops.lazyc_test.bump(z, y)
            torch.ops.lazyc_test.bump(x, y)
            return z + 1

        recorder = Recorder()
        x, y = torch.ones(3), torch.arange(3.0)
        x2 = x.clone()
        wanted = fn(x, y)
        torch.testing.assert_close(recorder.compile(fn)(x2, y), wanted)
        torch.testing.assert_close(x2, x)


def test_tensor_constants() -> None:
    recorder = Recorder()

    def fn(x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor(4)

    x = torch.randn(2, 3)
    torch.testing.assert_close(recorder.compile(fn)(x), fn(x))
    ((_, graph),) = recorder.graphs
    assert len(graph.constants) <= 1 and not eager_nodes(graph)


def test_sizes_that_depend_on_data_have_no_one_graph() -> None:
    gm = trace(lambda x: aten.nonzero.default(x).float() + 1, torch.randn(20), mode="symbolic")
    with pytest.raises(Unsupported, match="no argument gives the size u0"):
        import_graph(gm)


def test_a_graph_is_cut_where_sizes_depend_on_data() -> None:
    recorder = Recorder()

    def fn(x: torch.Tensor) -> torch.Tensor:
        return x[x > 0].sum() + 1

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        x = torch.randn(20)
        torch.testing.assert_close(recorder.compile(fn)(x), fn(x))
    assert not recorder.failures and len(recorder.graphs) == 2


def test_wrong_lowerings_are_found() -> None:
    gm = trace(lambda x: aten.exp.default(x), torch.randn(3))
    (node,) = [n for n in gm.graph.nodes if n.op == "call_function"]
    node.meta["val"] = node.meta["val"].double()
    with pytest.raises(
        IRError,
        match=r"aten\.exp\.default\(f32\[3\]\): lowered to f32\[3\], the trace has f64\[3\]",
    ):
        import_graph(gm)


def test_calls_with_effects_run_though_nothing_reads_them() -> None:
    recorder = Recorder()

    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(x) + 1  # checks for an error after the factorization

    compiled = recorder.compile(fn)
    x = torch.eye(3)
    torch.testing.assert_close(compiled(x), fn(x))
    ((_, graph),) = recorder.graphs
    effects = [n.attrs.target for n in graph.roots() if n.op == "eager"]
    assert effects == ["aten._linalg_check_errors.default"]
    with pytest.raises(torch.linalg.LinAlgError):
        compiled(-x)
