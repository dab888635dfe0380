"""``lazyc.explain``: graphs, breaks, flushes, eager operators and kernels of a function."""

from __future__ import annotations

import pytest
import torch

import lazyc
from lazyc.errors import ConfigError


def cut(x: torch.Tensor) -> torch.Tensor:
    a = x * 2 + 1
    print("in the middle")
    return torch.sort(a.relu())[0] + 1


@torch.no_grad()
def test_a_function_with_a_break_and_an_eager_operator(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = lazyc.explain(cut, torch.randn(4, 8))
    assert (found.graphs, found.kernel_calls, found.products) == (2, 3, 0)
    ((reason, line),) = found.breaks
    assert "print" in reason and line.startswith("test_explanation.py:")
    (sort,) = found.eager
    assert (sort.op, sort.reason, sort.calls) == ("aten.sort.default", "no lowering", 1)
    assert sort.milliseconds > 0 and sort.lines[0].startswith("test_explanation.py:")
    assert found.first_call > sum(found.compile_seconds.values()) > 0
    tensor = 4 * 8 * 4
    # x -> a; a -> relu; relu -> sorted values; values -> result. Nobody reads the indices.
    assert found.bytes_moved == 8 * tensor
    text = capsys.readouterr().out
    assert "2 graphs, 1 graph breaks; 3 kernel calls" in text
    assert "graph break at test_explanation.py:" in text
    assert "eager: aten.sort.default at test_explanation.py:" in text


@torch.no_grad()
def test_a_lazy_function(capsys: pytest.CaptureFixture[str]) -> None:
    found = lazyc.explain(cut, torch.randn(4, 8), options={"lazy": True})
    assert (found.graphs, len(found.breaks), found.kernel_calls) == (1, 1, 2)
    (flush,) = found.flushes
    assert (flush.cause, flush.regions, flush.compiled) == ("mark_step", 2, False)
    assert "flush at test_explanation.py:" in capsys.readouterr().out


def test_training_says_why_it_is_not_lazy() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    found = lazyc.explain(lambda x: x.exp().sum(), x, options={"lazy": True})
    assert [e.reason for e in found.not_lazy] == ["it needs gradients"]


def test_what_the_function_raises_is_raised() -> None:
    with pytest.raises(IndexError, match="out of range"):
        lazyc.explain(torch.nn.functional.embedding, torch.tensor([9]), torch.randn(3, 4))
    with pytest.raises(ConfigError, match="lasy"):
        lazyc.explain(cut, torch.randn(3), options={"lasy": True})


def test_a_function_may_be_explained_many_times() -> None:
    """Dynamo compiles a function a few times only (``recompile_limit``)."""
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        found = lazyc.explain(torch.tanh, torch.randn(4))
        assert (found.graphs, found.kernel_calls) == (1, 1)


def test_a_graph_left_to_eager_has_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    (left,) = lazyc.explain(fn, torch.randn(4)).eager
    assert (left.op, left.calls, left.milliseconds) == ("graph", 0, 0.0)
    assert "0.00 ms" not in capsys.readouterr().out.split("eager: graph")[1]
