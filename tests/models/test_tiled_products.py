"""Models whose products with weights run by kernels of lazyc's own."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

import lazyc
from lazyc.backend import EVENTS
from lazyc.codegen.target import available_targets
from lazyc.report import events as E

pytestmark = pytest.mark.skipif(available_targets() == ("baseline",), reason="no multiply-add")


@pytest.fixture
def heard() -> Iterator[list[E.Event]]:
    events: list[E.Event] = []
    stop = EVENTS.subscribe(events.append)
    yield events
    stop()


def mlp() -> torch.nn.Module:
    layers = (torch.nn.Linear(50, 70), torch.nn.GELU(), torch.nn.Linear(70, 33))
    return torch.nn.Sequential(*layers).eval()


def compile(
    model: torch.nn.Module, gemm: str = "generated", dynamic: bool | None = None
) -> Callable:
    return torch.compile(model, backend="lazyc", options={"gemm": gemm}, dynamic=dynamic)


def check(compiled: Callable, model: torch.nn.Module, x: torch.Tensor) -> None:
    """Near to the result in f64."""
    with torch.no_grad():
        found = compiled(x)
        exact = copy.deepcopy(model).double()(x.double())
    assert (found - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.parametrize("rows", [1, 3, 14, 65])
def test_a_model(rows: int, heard: list[E.Event]) -> None:
    model, before = mlp(), lazyc.metrics.snapshot()["fallbacks"]
    compiled = compile(model, dynamic=False)
    for _ in range(2):
        check(compiled, model, torch.randn(rows, 50))
    chosen = [e for e in heard if isinstance(e, E.Decided) and e.by == "tiled_products"]
    assert [e.why for e in chosen] == ["option gemm"] * 2
    assert "generated kernels" in chosen[0].what
    (packed,) = (e for e in heard if isinstance(e, E.WeightsPacked))
    # Each [n, k] as panels of columns: far less than MKL's form, which has 4 KiB of its own at least.
    assert packed.count == 2 and packed.bytes <= 4 * (96 * 64 + 64 * 80)
    assert lazyc.metrics.snapshot()["fallbacks"] == before


def test_sizes_that_change_share_one_packed_copy(heard: list[E.Event]) -> None:
    model = mlp()
    compiled = compile(model, dynamic=True)
    for rows in (5, 2, 40, 100):
        check(compiled, model, torch.randn(rows, 50))
    assert sum(e.count for e in heard if isinstance(e, E.WeightsPacked)) == 2


def test_weights_that_change() -> None:
    model = mlp()
    compiled = compile(model)
    weight = model.get_parameter("0.weight")
    for change in (
        lambda: weight.mul_(2),
        lambda: weight.data.add_(1),
        lambda: model.load_state_dict(mlp().state_dict()),
        lambda: setattr(weight, "data", torch.randn(70, 50)),
    ):
        check(compiled, model, torch.randn(9, 50))
        with torch.no_grad():
            change()
        check(compiled, model, torch.randn(9, 50))


def test_threads_share_the_packed_weights() -> None:
    model, wrong = mlp(), []
    compiled = compile(model)
    check(compiled, model, torch.randn(20, 50))

    def call() -> None:
        try:
            for _ in range(20):
                check(compiled, model, torch.randn(20, 50))
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
            wrong.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_transposed_weights_and_inputs() -> None:
    """As in GPT-2: weights [k, n]; and rows that are columns in memory."""
    weight = torch.nn.Parameter(torch.randn(30, 40))
    compiled = torch.compile(
        lambda x: (x @ weight) + 1, backend="lazyc", options={"gemm": "generated"}
    )
    with torch.no_grad():
        for x in (torch.randn(21, 30), torch.randn(30, 21).t(), torch.randn(21, 60)[:, ::2]):
            exact = x.double() @ weight.double() + 1
            assert (compiled(x) - exact).abs().max() <= 2e-6 * exact.abs().max()
