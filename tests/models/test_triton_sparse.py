"""Whole models with block-sparse weights through the kernels of a GPU, run by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import lazyc
from lazyc.backend import EVENTS, executables
from lazyc.ir.program import KernelStep
from lazyc.report import events as E
from lazyc.runtime.weights import _SETTLED
from tests.gpu import DEVICE, OPTIONS
from tests.test_sparse import check, of

pytestmark = pytest.mark.gpu


@pytest.fixture
def heard() -> Iterator[list[E.Event]]:
    torch.manual_seed(0)
    events: list[E.Event] = []
    stop = EVENTS.subscribe(events.append)
    yield events
    stop()


_OTHERS: list[object] = []  # programs of other tests that still live


def compile(model: nn.Module) -> Callable[..., torch.Tensor]:
    lazyc.metrics.reset()
    _OTHERS[:] = executables()
    return torch.compile(model, backend="lazyc", dynamic=False, options=OPTIONS)


def sparse_steps() -> list[bool]:
    """Which kernels of the last call of the only program read a compressed weight."""
    (runner,) = {x.last_runner for x in executables() if x not in _OTHERS}
    assert runner is not None
    kinds = {b.id: b.kind for b in runner.program.buffers}
    steps = [s for s in runner.program.steps if isinstance(s, KernelStep)]
    return [any(kinds[b] == "packed" for b in s.buffers) for s in steps]


def perceptron(dtype: torch.dtype) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 96, bias=False), nn.GELU())
    return model.to(DEVICE, dtype).eval()


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_block_sparse_perceptron(dtype: torch.dtype, size: int, heard: list[E.Event]) -> None:
    model = perceptron(dtype)
    lazyc.sparse.to_block_sparse(model, (size, size), 0.75)
    compiled = compile(model)
    for _ in range(2):
        check(compiled, model, torch.randn(9, 96).to(DEVICE, dtype))
    assert [e.is_used for e in of(heard, E.SparseProduct)] == [True, True]
    assert [e.count for e in of(heard, E.WeightsPacked)] == [2]
    assert sum(sparse_steps()) == 2
    assert lazyc.metrics.snapshot()["fallbacks"] == []


def in_place(model: nn.Module, weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.add_(0.25)


def through_data(model: nn.Module, weight: torch.Tensor) -> None:
    weight.data.copy_(torch.randn_like(weight))


def by_an_optimizer(model: nn.Module, weight: torch.Tensor) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()


EDITS = [in_place, by_an_optimizer]
if DEVICE == "cpu":  # on a GPU an edit that no version counter sees is not noticed
    EDITS.append(through_data)


@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)
def test_dense_after_a_change_and_sparse_again(
    edit: Callable[[nn.Module, torch.Tensor], None], heard: list[E.Event]
) -> None:
    model = perceptron(torch.float32)
    lazyc.sparse.to_block_sparse(model, sparsity=0.75)
    compiled, weight = compile(model), model.get_parameter("0.weight")
    check(compiled, model, torch.randn(9, 96, device=DEVICE))
    assert sum(sparse_steps()) == 2
    edit(model, weight)
    for _ in range(_SETTLED):
        check(compiled, model, torch.randn(9, 96, device=DEVICE))
        assert sum(sparse_steps()) == 0
    check(compiled, model, torch.randn(9, 96, device=DEVICE))
    assert sum(sparse_steps()) == 1
    assert [e.shape for e in of(heard, E.WeightNotSparse)] == [(128, 96)]
    lazyc.sparse.to_block_sparse(model, sparsity=0.75)
    for _ in range(_SETTLED):
        check(compiled, model, torch.randn(9, 96, device=DEVICE))
        assert sum(sparse_steps()) == 0
    check(compiled, model, torch.randn(9, 96, device=DEVICE))
    assert sum(sparse_steps()) == 2
    assert len(of(heard, E.CompileStarted)) == 1


def test_values_that_no_dense_product_keeps() -> None:
    """Blocks of zeros are skipped: what they would be multiplied by is not read."""
    model = nn.Linear(64, 32, bias=False, device=DEVICE)
    lazyc.sparse.to_block_sparse(model, sparsity=0.75)
    model.requires_grad_(False)
    compiled = compile(model)
    x = torch.randn(4, 64, device=DEVICE)
    check(compiled, model, x)
    empty = (model.weight.reshape(32, 4, 16) != 0).any(2).any(0).logical_not()
    if not empty.any():
        model.weight.reshape(32, 4, 16)[:, 0] = 0
        empty[0] = True
    for _ in range(_SETTLED + 2):
        check(compiled, model, x)
    assert sum(sparse_steps()) == 1
    hidden = x.clone()
    hidden.reshape(4, 4, 16)[:, empty] = torch.nan
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden), x @ model.weight.t())
        assert model(hidden).isnan().all()


def test_training_is_dense(heard: list[E.Event]) -> None:
    model = perceptron(torch.float32)
    lazyc.sparse.to_block_sparse(model, sparsity=0.75)
    compiled, x = compile(model), torch.randn(9, 96, device=DEVICE)
    compiled(x).sum().backward()
    grads = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for found, p in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad, rtol=1e-4, atol=1e-5)
    assert not of(heard, E.WeightsPacked)
