"""Guards of regions that take LazyTensors: what is asked at each call, and what is compiled anew."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lazyc
from lazyc.recording.tensor import LazyTensor


def cut(x: torch.Tensor) -> torch.Tensor:
    y = x * 2 + 1
    print(end="")
    return y.sin() + y


def count_inner_tensors(monkeypatch: pytest.MonkeyPatch, count: list[int]) -> None:
    """Whoever asks for the inner tensor of a LazyTensor."""
    token: Any = LazyTensor.__dict__["_token"]

    def counting(self: LazyTensor) -> torch.Tensor:
        count[0] += 1
        return token.fget(self)

    monkeypatch.setattr(LazyTensor, "_token", property(counting))


def count_hooks(monkeypatch: pytest.MonkeyPatch, count: list[int]) -> None:
    """Guards that ask for the hooks for tensors that autograd saves."""
    module = importlib.import_module("torch._functorch._aot_autograd.utils")
    top = module.top_saved_tensors_hooks

    def counting() -> Any:
        count[0] += 1
        return top()

    monkeypatch.setattr(module, "top_saved_tensors_hooks", counting)


@pytest.mark.parametrize("counter", [count_inner_tensors, count_hooks])
def test_what_is_not_asked_for(
    counter: Callable[[pytest.MonkeyPatch, list[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lazyc.metrics.reset()
    asked = [0]
    counter(monkeypatch, asked)
    compiled = torch.compile(cut, backend="lazyc", options={"lazy": True})
    x = torch.randn(4, 8)
    with torch.no_grad():
        for _ in range(2):
            compiled(x)
        before = asked[0]
        for _ in range(5):
            torch.testing.assert_close(compiled(x) + 0, cut(x))
    counts = lazyc.metrics.snapshot()
    assert counts["fallbacks"] == [] and counts["kernel_calls"] == 1, "one program, of one kernel"
    assert before > 0, "Dynamo asks for them when it compiles"
    assert asked[0] == before


def test_what_is_compiled_anew() -> None:
    """Whatever of a LazyTensor decides what code is right is guarded still."""
    lazyc.metrics.reset()
    seen: list[int] = []

    def backend(gm: Any, inputs: Any, **options: Any) -> Any:
        seen.append(len(inputs))
        return torch._dynamo.lookup_backend("lazyc")(gm, inputs, options={"lazy": True})

    compiled = torch.compile(lambda a, b: (a * b).relu() - a, backend=backend, dynamic=False)
    producer = torch.compile(lambda x: x + 1, backend="lazyc", options={"lazy": True})
    with torch.no_grad():
        a, b = (producer(torch.randn(4, 8)) for _ in range(2))
        assert type(a) is type(b) is LazyTensor
        cases: list[tuple[torch.Tensor, torch.Tensor, bool]] = [
            (a, b, True),
            (producer(torch.randn(4, 8)), producer(torch.randn(4, 8)), False),
            (producer(torch.randn(8, 4)), producer(torch.randn(8, 4)), True),
            (producer(torch.randn(8, 4).t()), b, True),
            (producer(torch.randn(4, 8).double()), b, True),
            (torch.randn(4, 8), b, True),
            (a, a, True),
            (a, b, False),
        ]
        for first, second, is_new in cases:
            before = len(seen)
            got = compiled(first, second)
            plain = [torch.as_tensor(x + 0) for x in (first, second)]
            torch.testing.assert_close(got + 0, (plain[0] * plain[1]).relu() - plain[0])
            assert (len(seen) > before) == is_new, (first.shape, second.shape)
    assert lazyc.metrics.snapshot()["fallbacks"] == []


def test_hooks_for_saved_tensors_are_called() -> None:
    """The same function with and without gradients, and with hooks that come and go."""
    lazyc.metrics.reset()
    packed: list[torch.Tensor] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        packed.append(x)
        return x

    compiled = torch.compile(cut, backend="lazyc", options={"lazy": True})
    x = torch.randn(4, 8)
    for requires_grad in (False, True, False, True):
        for has_hooks in (False, True):
            given, eager = (x.clone().requires_grad_(requires_grad) for _ in range(2))
            packed.clear()
            if has_hooks:
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                    result = compiled(given)
            else:
                result = compiled(given)
            expected = cut(eager)
            torch.testing.assert_close(result + 0, expected)
            assert bool(packed) == (requires_grad and has_hooks)
            if requires_grad:
                result.sum().backward()
                expected.sum().backward()
                torch.testing.assert_close(given.grad, eager.grad)
    assert lazyc.metrics.snapshot()["fallbacks"] == []
