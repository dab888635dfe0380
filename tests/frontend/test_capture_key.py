"""Keys of Dynamo's graphs: what changes them, what has none, and that what they find is right."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import lazyc
from lazyc.frontend import autograd
from lazyc.frontend.capture_key import capture_key


def key_of(
    fn: Callable[..., Any],
    *args: Any,
    dynamic: bool = False,
    key: Callable[..., str | None] = capture_key,
) -> str | None:
    """The key of the one graph that Dynamo captures of ``fn(*args)``."""
    keys: list[str | None] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        keys.append(key(gm, example_inputs))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(fn, backend=backend, dynamic=dynamic)(*args)
    assert len(keys) == 1
    return keys[0]


def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = F.layer_norm(F.linear(x, w), (8,), eps=1e-5)
    return torch.cat([y[..., :4], F.gelu(y)], -1).transpose(0, 1).softmax(-1) + 1.5


X, W = torch.randn(4, 6, 8), torch.randn(8, 8)


def test_equal_graphs_have_equal_keys() -> None:
    assert key_of(block, X, W) == key_of(block, torch.randn(4, 6, 8), torch.randn(8, 8)) is not None


def test_the_key_is_the_same_in_every_process() -> None:
    """Whatever the order of hashes, and whatever was set and put back before."""
    script = """
import torch
from lazyc.frontend.capture_key import describe
from tests.frontend.test_capture_key import W, X, block, key_of
{before}
print(key_of(block, X, W, key=describe))
"""
    texts = []
    for seed, before in (
        ("1", ""),
        ("2", "with torch._functorch.config.patch(cse=False): key_of(block, X, W)"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script.format(before=before)],
            cwd=Path(__file__).parents[2], env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        texts.append(done.stdout)
    assert "layer_norm" in texts[0]
    assert texts[0] == texts[1]


OTHERS = {
    "shape": lambda: key_of(block, torch.randn(4, 5, 8), W),
    "stride": lambda: key_of(block, torch.randn(6, 4, 8).transpose(0, 1), W),
    "dtype": lambda: key_of(block, X.double(), W.double()),
    "parameter": lambda: key_of(block, X, torch.nn.Parameter(W, requires_grad=False)),
    "requires_grad": lambda: key_of(block, X, W.clone().requires_grad_()),
    "float": lambda: key_of(lambda x, w: block(x, w) + 1.25, X, W),
    "int for float": lambda: key_of(lambda x, w: x + 1, X, W),
    "operator": lambda: key_of(lambda x, w: x - 1.0, X, W),
    "pool": lambda: key_of(lambda x, w: F.max_pool1d(x, 2), X, W),
    "other pool": lambda: key_of(lambda x, w: F.max_pool2d(x, 2), X, W),
    "method": lambda: key_of(lambda x, w: x.exp(), X, W),
    "other method": lambda: key_of(lambda x, w: x.expm1(), X, W),
    "slice": lambda: key_of(lambda x, w: x[1:3], X, W),
    "other slice": lambda: key_of(lambda x, w: x[1:4], X, W),
}


def test_what_decides_the_result_is_in_the_key() -> None:
    keys = [key_of(block, X, W), *(make() for make in OTHERS.values())]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_the_state_is_in_the_key() -> None:
    keys = [key_of(block, X, W)]
    with torch.no_grad():
        keys.append(key_of(block, X, W))
    with torch.autocast("cpu", torch.bfloat16):
        keys.append(key_of(block, X, W))
    with torch.autocast("cpu", torch.float16):
        keys.append(key_of(block, X, W))
    torch.set_default_dtype(torch.float64)
    try:
        keys.append(key_of(block, X, W))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch._functorch.config.patch(functionalize_rng_ops=True):
        keys.append(key_of(block, X, W))
    assert None not in keys and len(set(keys)) == len(keys)


@torch.library.custom_op("lazyc_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_fake(torch.empty_like)


def test_no_key() -> None:
    assert key_of(twice, X) is None
    assert key_of(lambda x: x.sum(0), X, dynamic=True) is None
    assert key_of(lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), X) is None


def test_a_replaced_function_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = X
    graph.output((graph.call_function(F.dropout, (x, 0.0)),))
    gm = torch.fx.GraphModule({}, graph)
    assert capture_key(gm, [X]) is not None
    monkeypatch.setattr(F, "dropout", lambda x, p: x)
    assert capture_key(gm, [X]) is None


# --- end to end -----------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one for each graph that is traced: in one plain run, or by AOTAutograd."""
    calls: list[str] = []
    through_autograd, plainly = autograd.aot_module_simplified, autograd.capture_inference

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append("autograd")
        return through_autograd(*args, **kwargs)

    def count_plain(*args: Any) -> Any:
        found = plainly(*args)
        if found is not None:
            calls.append("plainly")
        return found

    monkeypatch.setattr(autograd, "aot_module_simplified", count)
    monkeypatch.setattr(autograd, "capture_inference", count_plain)
    lazyc.metrics.reset()
    return calls


def run_twice(fn: Callable[..., Any], *args: Any) -> None:
    """Compiles ``fn`` two times, and compares it with eager on new values each time."""
    for _ in range(2):
        torch._dynamo.reset()
        compiled = torch.compile(fn, backend="lazyc")
        for _ in range(2):
            new = [torch.randn_like(a) if a.is_floating_point() else a for a in args]
            copies = [a.clone() for a in new]
            torch.testing.assert_close(compiled(*new), fn(*copies))
            torch.testing.assert_close(new, copies)


def test_an_equal_graph_is_not_traced_again(traced: list[str]) -> None:
    run_twice(block, X, W)
    assert traced == ["plainly"]
    assert lazyc.metrics.snapshot()["graphs_compiled"] == 2


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.mul_(2).sum(),  # writes to its input
        lambda x: x.transpose(0, 1),  # a view of its input
        lambda x: (x.exp(), x.view(-1)),
    ],
)
def test_aliases_and_writes_go_the_long_way(traced: list[str], fn: Callable[..., Any]) -> None:
    run_twice(fn, X)
    assert traced == ["autograd"] * 2


def test_outputs_may_share_memory(traced: list[str]) -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x.exp()
        return y, y.view(-1), y

    run_twice(fn, X)
    y, flat, again = torch.compile(fn, backend="lazyc")(X)
    y.zero_()
    assert not flat.any() and again is y
    assert traced == ["plainly"]


def test_training_goes_the_long_way(traced: list[str]) -> None:
    model = torch.nn.Linear(8, 8)
    for _ in range(2):
        torch._dynamo.reset()
        torch.compile(model, backend="lazyc")(X).sum().backward()
    assert traced == ["autograd"] * 2
    assert model.weight.grad is not None


def test_errors_are_those_of_eager(traced: list[str]) -> None:
    table, index = torch.randn(5, 8), torch.tensor([1, 4])
    run_twice(F.embedding, index, table)
    with pytest.raises(IndexError, match="index out of range"):
        torch.compile(F.embedding, backend="lazyc")(torch.tensor([1, 5]), table)
    assert traced == ["plainly"]


def test_parameters_stay_guarded(traced: list[str]) -> None:
    model = torch.nn.Linear(8, 8).requires_grad_(False)
    x = torch.randn(32, 8)
    for _ in range(2):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="lazyc")
        for _ in range(2):
            model.weight.add_(1.0)
            torch.testing.assert_close(compiled(x), model(x))
    assert traced == ["plainly"]
