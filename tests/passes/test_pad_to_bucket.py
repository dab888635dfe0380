"""Graphs of sizes that change, padded: exactly what they are without padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lazyc.frontend.autograd import AotBackend
from lazyc.ir.graph import Graph
from lazyc.ir.interp import run_graph
from lazyc.ir.types import DType, TensorType, free_symbols
from lazyc.ir.verify import verify_graph
from lazyc.passes import padder
from lazyc.passes.pad_to_bucket import pad_to_bucket

ROOM = 12
SIZES = (2, 5, 11, 12)
Function = Callable[..., Any]


def rows(size: int, width: int = 6) -> torch.Tensor:
    return torch.randn(3, size, width)


def tokens(size: int) -> torch.Tensor:
    return torch.randint(0, 7, (3, size))


WEIGHT = torch.randn(6, 6)
TABLE = torch.randn(7, 6)
KERNEL = torch.randn(6, 6, 3)


def attention(x: torch.Tensor) -> torch.Tensor:
    q, k, v = (x @ WEIGHT).chunk(3, -1)
    scores = (q @ k.mT) / math.sqrt(2)
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v


def heads(x: torch.Tensor) -> torch.Tensor:
    b, s, d = x.shape
    y = x.view(b, s, 2, d // 2).transpose(1, 2)
    y = (y @ y.mT).softmax(-1) @ y
    return y.transpose(1, 2).reshape(b, s, d)


def loss(x: torch.Tensor) -> torch.Tensor:
    logits = x.reshape(-1, x.shape[-1])
    return F.cross_entropy(logits, logits.argmin(-1))


def loss_gradient(x: torch.Tensor) -> torch.Tensor:
    logits = x.reshape(-1, x.shape[-1])
    targets = logits.argmin(-1)
    output = torch.ops.aten.log_softmax(logits, 1)
    weight = torch.ops.aten.nll_loss_forward(output, targets, None, 1, -100)[1]
    gradient = torch.ops.aten.nll_loss_backward(
        output.sum() * 0 + 1, output, targets, None, 1, -100, weight
    )
    return torch.ops.aten._log_softmax_backward_data(gradient, output, 1, x.dtype)


def shifted_loss(x: torch.Tensor) -> torch.Tensor:
    logits = x[:, :-1].reshape(-1, x.shape[-1])
    targets = x[:, 1:].argmax(-1).reshape(-1)
    return F.cross_entropy(logits, targets)


FUNCTIONS: dict[str, Function] = {
    "pointwise": lambda x: (x.exp() / x).log() + 1,
    "sum": lambda x: (x.exp().sum(1), x.exp().sum(), x.cos().sum((0, 1))),
    "mean": lambda x: (x.exp().mean(1), x.exp().mean()),
    "prod": lambda x: (x + 2).prod(1),
    "extremes": lambda x: ((-x.exp()).amax(1), x.exp().amin(1), (x - 9).max(), (x + 9).min()),
    "arg": lambda x: (x.exp().neg().argmax(1), x.exp().argmin(1)),
    "any and all": lambda x: ((x.exp() == 1).any(1), (x.exp() != 1).all(1)),
    "variance": lambda x: (x.exp().var(1), x.exp().std((1, 2)), torch.var_mean(x, 1)[0]),
    "softmax": lambda x: (x.softmax(1), x.log_softmax(1), x.logsumexp(1)),
    "norms": lambda x: (
        F.layer_norm(x, (6,)),
        F.group_norm(x.mT, 2),
        F.instance_norm(x.mT),
        F.rms_norm(x, (6,)),
        F.normalize(x, dim=1),
    ),
    "scans": lambda x: (x.exp().cumsum(1), (x + 1).cumprod(1), x.cummax(1).values),
    "attention": attention,
    "heads": heads,
    "product over the dim": lambda x: (x.exp().mT @ x.exp(), (x.mT @ x.exp()) @ WEIGHT),
    "merged dims": lambda x: (x.exp().reshape(-1, 6) @ WEIGHT).reshape(x.shape) + x,
    "reduced after merging": lambda x: x.exp().reshape(-1, 6).sum(0) + x.exp().view(-1).max(),
    "loss": loss,
    "gradient of a loss": loss_gradient,
    "shifted loss": shifted_loss,
    "slices": lambda x: (x[:, 1:] - x[:, :-1], x[:, -1], x[:, 0], x[:, ::2].exp().sum(1)),
    "padding": lambda x: F.pad(x.exp(), (0, 0, 2, 1), value=3.0).sum(1),
    "cat": lambda x: (
        torch.cat([x[:, :1], x], 1).sum(1),
        torch.cat([x, x.exp()], 1),
        torch.cat([x, x[:, :2], x.exp()], 1).cumsum(1),
        torch.stack([x, x.exp()], 1).sum(2),
    ),
    "arange": lambda x: x + torch.arange(x.shape[1])[:, None] / x.shape[1],
    "positions": lambda x: TABLE[torch.arange(x.shape[1]) % 7] * x,
    "integer division": lambda x: 7 // (torch.arange(x.shape[1]) + 1),
    "expand": lambda x: x.sum(1, keepdim=True).expand(x.shape).sum(1),
    "scattered": lambda x: x.reshape(-1, 6).scatter(1, x.reshape(-1, 6).argmax(1, True), 9.0),
    "put": lambda x: x.index_put((torch.tensor([0, 2]),), x.exp().sum(0)),
    "full": lambda x: torch.full((x.shape[1],), 2.0).sum() + x.new_ones(x.shape[1]).cumsum(0).sum(),
    "where": lambda x: torch.where(x > 0, x, x.mean(1, keepdim=True)).sum(1),
    "index": lambda x: x[:, torch.tensor([0, 1, 0])],
    "windows": lambda x: x.exp().unfold(1, 2, 1).sum((1, 3)),
    "convolution": lambda x: F.conv1d(x.mT.exp(), KERNEL, padding=1),
    "laid out in two ways": lambda x: (x.exp().reshape(-1) + torch.arange(x.numel())).sum(),
    "scan of merged dims": lambda x: x.exp().reshape(-1).cumsum(0),
    "gathered from merged dims": lambda x: x.exp().reshape(-1)[torch.tensor([1, 7, 20])],
    "sorted": lambda x: x.sort(1).values.exp().sum(1),
}  # fmt: skip
# Ops that are done on what counts alone, for want of masks.
UNPADDED: dict[str, tuple[Function, set[str]]] = {
    "flip": (lambda x: x.exp().flip(1).cumsum(1), {"slice"}),
    "dropout": (lambda x: F.dropout(x.exp(), 0.5).sum(1), {"random"}),
    "a size that shrinks": (lambda x: x.new_ones(40 - x.shape[1]).cumsum(0) * x.sum(), {"all"}),
    "put where others are": (
        lambda x: torch.zeros(40).index_put((torch.arange(x.shape[1]) + 2,), x[0, :, 0]), {"scatter"},
    ),
    "the other way round": (lambda x: x.exp().mT.reshape(-1).view(3, -1, 6).sum(1), set()),
}  # fmt: skip
TOKENS: dict[str, Function] = {
    "embedding": lambda i: F.embedding(i, TABLE).softmax(1),
    "gathered": lambda i: TABLE[i].exp().mean(1),
    "gradient of an embedding": lambda i: torch.ops.aten.embedding_dense_backward(
        i[..., None].cos().expand(3, i.shape[1], 4), i, 7, -1, False
    ),
    "bag": lambda i: torch.zeros(7).index_add(0, i.view(-1), i.view(-1).cos()),
    "remainder": lambda i: (30 % (i + 1), 30 // (i + 1)),
    "one hot": lambda i: F.one_hot(i, 7).sum(1),
    "counts": lambda i: i.sum(1) + i.amax(1) + (i > 2).sum(1),
}


def captured(function: Function, x: torch.Tensor) -> Graph:
    """The Graph of a function whose argument has a dim 1 that changes."""
    graphs: list[Graph] = []

    def keep(graph: Graph, gm: Any, part: Any) -> Any:
        graphs.append(graph)
        return lambda args: run_graph(graph, args)

    torch._dynamo.reset()
    torch._dynamo.mark_dynamic(x, 1)
    torch.compile(function, backend=AotBackend(keep))(x)
    (graph,) = graphs
    return graph


def arguments(graph: Graph, x: torch.Tensor) -> list[Any]:
    """The Graph's arguments where ``x`` is the only one with a size that changes."""
    known = {tuple(t.shape): t for t in (WEIGHT, TABLE, KERNEL)}
    return [
        known.get(n.shape, x) if isinstance(n.type, TensorType) else x.shape[1]
        for n in graph.inputs
    ]


def check(
    function: Function, make: Callable[[int], torch.Tensor], unpadded: Collection[str] = ()
) -> None:
    graph = captured(function, make(5))
    padded = pad_to_bucket(graph, {s.symbol: ROOM for s in graph.symbols})
    verify_graph(padded)
    given = {"input", "size", "slice", "reshape", "eager", "project", "pad", *unpadded}
    inside = [n for n in padded.nodes if n.op not in given and isinstance(n.type, TensorType)]
    assert "all" in unpadded or not [n for n in inside if free_symbols(n.shape)], "not padded"
    for size in SIZES:
        x = make(size)
        torch.manual_seed(size)
        found = run_graph(padded, arguments(padded, x))
        torch.manual_seed(size)
        expected = run_graph(graph, arguments(graph, x))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-5)
            assert a.stride() == b.stride()


@pytest.fixture(params=["neutral", "harmful"], autouse=True)
def filling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arguments are padded with. It must not matter, whatever it is."""
    if request.param == "harmful":
        harmful = lambda t: math.nan if t.is_float else t is DType.BOOL or 99  # noqa: E731
        monkeypatch.setattr(padder, "padding", harmful)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_floats(name: str) -> None:
    check(FUNCTIONS[name], rows)


@pytest.mark.parametrize("name", TOKENS)
def test_of_indices(name: str) -> None:
    check(TOKENS[name], tokens)


@pytest.mark.parametrize("name", UNPADDED)
def test_unpadded(name: str) -> None:
    function, ops = UNPADDED[name]
    check(function, rows, ops)
