"""Lowering of CUDA's attention operators, on tensors of a GPU that have no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from lazyc.frontend.decompositions import decomposition_table
from lazyc.frontend.dropout_attention import draw_for_attention
from lazyc.frontend.fx_import import import_graph
from lazyc.frontend.partition import drop_seeds, partition
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph, Node
from lazyc.ir.verify import verify_graph
from lazyc.passes.realize import live_nodes

Tensor = torch.Tensor
ATEN = torch.ops.aten


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def inputs(
    q: int = 40, k: int = 40, width: int = 32, dtype: torch.dtype = torch.float16
) -> list[Tensor]:
    return [torch.empty(2, 4, s, width, dtype=dtype, device="cuda") for s in (q, k, k)]


def graph_of(fn: Callable[..., Any], *args: Tensor) -> Graph:
    gm = make_fx(lambda *xs: fn(*xs))(*args)
    drop_seeds(gm)
    graph = import_graph(gm, has_products=True)
    verify_graph(graph)
    return graph


def eager(graph: Graph) -> list[tuple[str, str]]:
    """What runs in eager, of what something reads."""
    return [
        (n.attrs.target, n.attrs.reason)
        for n in live_nodes(graph)
        if isinstance(n.attrs, A.EagerAttrs)
    ]


def flash(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = True) -> Any:
    return ATEN._scaled_dot_product_flash_attention(q, k, v, dropout, causal)


def flash_trained(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, dropout: float = 0.0) -> Any:
    out, *rest = flash(q, k, v, dropout)
    return ATEN._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, *rest[:5], dropout, True, *rest[5:7]
    )


def efficient(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = True) -> Any:
    return ATEN._scaled_dot_product_efficient_attention(q, k, v, None, True, dropout, causal)


def efficient_trained(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, dropout: float = 0.0) -> Any:
    out, *rest = efficient(q, k, v, dropout)
    return ATEN._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, *rest, dropout, [True, True, True, False], True
    )[:3]


def cudnn(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = True) -> Any:
    return ATEN._scaled_dot_product_cudnn_attention(q, k, v, None, True, dropout, causal)


def cudnn_trained(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, dropout: float = 0.0) -> Any:
    out, rows, cum_q, cum_k, max_q, max_k, seed, offset, _ = cudnn(q, k, v, dropout)
    return ATEN._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, rows, seed, offset, None, cum_q, cum_k, max_q, max_k, dropout, True
    )


TRAINED = [flash_trained, efficient_trained, cudnn_trained]
OPERATORS = [flash, efficient, cudnn]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operator", TRAINED)
def test_forward_and_backward(
    operator: Callable[..., Any], dtype: torch.dtype, fake: FakeTensorMode
) -> None:
    q, k, v = inputs(dtype=dtype)
    graph = graph_of(operator, q, k, v, torch.empty_like(q))
    assert not eager(graph)
    assert sum(n.op == "matmul" for n in graph.nodes) == 6  # scores twice, and four others
    for output in graph.outputs:
        assert isinstance(output.value, Node)
        assert (
            output.value.tensor.shape == (2, 4, 40, 32) and output.value.tensor.device == "cuda:0"
        )


@pytest.mark.parametrize(
    ("operator", "shape"), [(flash, (2, 4, 40)), (efficient, (2, 4, 64)), (cudnn, (2, 4, 40, 1))]
)
def test_the_logsumexp_has_the_operators_form(
    operator: Callable[..., Any], shape: tuple[int, ...], fake: FakeTensorMode
) -> None:
    graph = graph_of(lambda q, k, v: operator(q, k, v)[:2], *inputs())
    assert not eager(graph)
    value = graph.outputs[1].value
    assert isinstance(value, Node) and value.tensor.shape == shape


def test_no_logsumexp_where_none_is_wanted(fake: FakeTensorMode) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return ATEN._scaled_dot_product_efficient_attention(q, k, v, None, False)[:2]

    graph = graph_of(f, *inputs())
    value = graph.outputs[1].value
    assert isinstance(value, Node) and value.tensor.shape == (2, 4, 0) and not eager(graph)


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_stays_with_the_library(operator: Callable[..., Any], fake: FakeTensorMode) -> None:
    def left(*args: Any, given: list[Tensor] | None = None, results: int = 1) -> str:
        fn = lambda q, k, v: operator(q, k, v, *args)[0]  # noqa: E731
        ((_, reason),) = eager(graph_of(fn, *(given or inputs())))
        return reason

    assert "width 320" in left(given=inputs(width=320))
    if operator is not efficient:
        assert "unequal lengths" in left(given=inputs(40, 48))
    assert "empty" in left(0.0, False, given=inputs(40, 0))


@pytest.mark.parametrize("operator", OPERATORS)
def test_seeds_that_somebody_reads(operator: Callable[..., Any], fake: FakeTensorMode) -> None:
    at = {flash: 6, efficient: 2, cudnn: 6}[operator]
    graph = graph_of(lambda q, k, v: (lambda r: (r[0], r[at]))(operator(q, k, v)), *inputs())
    assert len(eager(graph)) == 1


def test_the_mask_for_debugging(fake: FakeTensorMode) -> None:
    graph = graph_of(lambda q, k, v: (lambda r: (r[0], r[8]))(flash(q, k, v)), *inputs())
    ((_, reason),) = eager(graph)
    assert "result 8 is read" in reason


# --- what is kept between forward and backward ----------------------------------------------------


def kept(function: Callable[..., Tensor], dropout: bool, lowered: bool) -> None:
    """Traces ``function`` as AOTAutograd does, on the CPU: with the same types of results as on a GPU."""
    found: dict[str, GraphModule] = {}

    def note(*args: Any, **options: Any) -> Any:
        cut = partition(*args, has_products=lowered, **options)
        found["forward"], found["backward"] = cut
        return found["forward"], found["backward"]

    def compile(gm: GraphModule, given: Any) -> Any:
        aot_module_simplified(
            gm, given, fw_compiler=lambda gm, example_inputs: make_boxed_func(gm.forward),
            partition_fn=note, decompositions=decomposition_table(),
        )  # fmt: skip
        return lambda *args: [torch.zeros(2, 4, 40, 32)]  # neither can run here

    torch._dynamo.reset()
    leaves = [torch.randn(2, 4, 40, 32, requires_grad=True) for _ in range(3)]
    torch.compile(function, backend=compile)(*leaves)
    given = [n.meta["val"] for n in found["backward"].graph.find_nodes(op="placeholder")]
    seeds = [x for x in given if isinstance(x, Tensor) and x.dim() < 2]
    assert len(seeds) == (0 if not dropout else 1 if lowered else 2)
    for gm in found.values():
        graph = import_graph(gm, has_products=True)
        attention = [t for t, _ in eager(graph) if "attention" in t]
        assert len(attention) == (dropout and not lowered)


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_seeds_are_kept_for_dropout_alone(
    operator: Callable[..., Any], dropout: float, lowered: bool
) -> None:
    kept(lambda q, k, v: operator(q, k, v, dropout)[0], dropout > 0, lowered)


@pytest.mark.parametrize("width", [32, 320])
def test_both_directions_of_dropout_are_lowered_or_neither(
    width: int, fake: FakeTensorMode
) -> None:
    q, k, v = inputs(width=width)
    gm = make_fx(lambda *x: flash_trained(*x, dropout=0.1))(q, k, v, torch.empty_like(q))
    assert len(eager(import_graph(gm, has_products=True))) == 2  # a seed goes from one to the other
    assert draw_for_attention(gm) == (width == 32)
    assert len(eager(import_graph(gm, has_products=True))) == (0 if width == 32 else 2)
