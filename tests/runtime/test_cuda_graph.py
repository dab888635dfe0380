"""Replayed calls: never a stale address, never a result that a later call changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lazyc.errors import LazycWarning
from lazyc.frontend.fx_import import import_graph
from lazyc.runtime.program import Executable
from lazyc.selftest import is_replayed
from tests.frontend.trace import graph_of, trace
from tests.runtime.stand_in import StandInGpu, stand_in_compiler


def layer(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.softmax(F.gelu(x @ w) * 2, -1)


def made(gpu: StandInGpu, mode: str = "fake") -> Executable:
    graph = graph_of(layer, torch.randn(32, 24), torch.randn(24, 48), mode=mode)
    return stand_in_compiler(gpu, cuda_graphs=True).compile(graph)


def called(program: Executable, gpu: StandInGpu, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    (got,) = program([x, w])
    gpu.check()
    torch.testing.assert_close(got, layer(x, w), rtol=1e-5, atol=1e-6)
    return got


def test_calls_are_replayed_with_their_own_inputs() -> None:
    """Inputs that move are copied, results that are held stay as they are."""
    gpu = StandInGpu()
    program, w = made(gpu), torch.randn(24, 48)
    held = []
    for _ in range(8):
        x = torch.randn(32, 24)
        held.append((x, called(program, gpu, x, w)))
    assert gpu.captures == 1
    queued = len(gpu.launches)
    for x, got in held:
        torch.testing.assert_close(got, layer(x, w), rtol=1e-5, atol=1e-6)
    w.mul_(0.5)  # a weight that changes in place is read where it is
    called(program, gpu, torch.randn(32, 24), w)
    assert len(gpu.launches) == queued, "not a replay"


def test_an_input_that_moves_later_is_not_read_where_it_was() -> None:
    gpu = StandInGpu()
    program, w = made(gpu), torch.randn(24, 48)
    x = torch.randn(32, 24)
    for _ in range(5):
        called(program, gpu, x, w)
    assert gpu.captures == 1
    other, moved = torch.randn(24, 48), torch.randn(32, 24)
    called(program, gpu, x, other)
    called(program, gpu, moved, other)
    assert gpu.captures == 3
    for _ in range(3):
        called(program, gpu, torch.randn(32, 24), torch.randn(24, 48))
    assert gpu.captures == 3


def test_another_stream_is_not_replayed_to() -> None:
    gpu = StandInGpu()
    program, x, w = made(gpu), torch.randn(32, 24), torch.randn(24, 48)
    for _ in range(5):
        called(program, gpu, x, w)
    queued = len(gpu.launches)
    gpu.handle = 5
    called(program, gpu, x, w)
    assert len(gpu.launches) > queued and gpu.launches[-1].stream == 5


def test_a_capture_of_the_caller_s_takes_part_in_no_replay() -> None:
    """His graph records the kernels; ours, which stays, is for calls outside of it."""
    gpu = StandInGpu()
    program, x, w = made(gpu), torch.randn(32, 24), torch.randn(24, 48)
    for _ in range(5):
        called(program, gpu, x, w)
    queued = len(gpu.launches)
    gpu.is_captured = True
    called(program, gpu, x, w)
    assert len(gpu.launches) > queued
    gpu.is_captured = False
    queued = len(gpu.launches)
    called(program, gpu, x, w)
    assert (gpu.captures, len(gpu.launches)) == (1, queued)


def test_an_argument_that_is_not_read_may_move() -> None:
    gpu = StandInGpu()
    gm = trace(lambda x, unused: torch.sin(x), torch.randn(64), torch.randn(8))
    program = stand_in_compiler(gpu, cuda_graphs=True).compile(import_graph(gm))
    x, first, second = torch.randn(64), torch.randn(8), torch.randn(8)
    for unused in (first, first, first, first, second, second):
        (got,) = program([x, unused])
        torch.testing.assert_close(got, torch.sin(x))
    gpu.check()
    assert gpu.captures == 1 and len(gpu.launches) == 4


def test_sizes_that_change_are_not_captured() -> None:
    gpu = StandInGpu()
    program = made(gpu, "symbolic")
    x, w = torch.randn(32, 24), torch.randn(24, 48)
    for _ in range(6):
        program([x, w, *(s for s in () if s)])
    gpu.check()
    assert gpu.captures == 0


def test_arguments_that_are_returned_are_the_caller_s() -> None:
    """As the forward pass of a training step returns what its backward pass reads; and a view of one."""

    def forward(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.relu(x @ w), x, w.t(), w

    gpu = StandInGpu()
    graph = graph_of(forward, torch.randn(32, 24), torch.randn(24, 48))
    program, w = stand_in_compiler(gpu, cuda_graphs=True).compile(graph), torch.randn(24, 48)
    held = []
    for _ in range(7):
        x = torch.randn(32, 24)
        got = program([x, w])
        gpu.check()
        assert got[1] is x and got[3] is w
        assert got[2].data_ptr() == w.data_ptr() and got[2].shape == (48, 24)
        held.append((x, x.clone(), got[0]))
        assert is_replayed(program) is (len(held) > 3)
    assert gpu.captures == 1
    for x, as_given, result in held:
        assert torch.equal(x, as_given)
        torch.testing.assert_close(result, torch.relu(x @ w), rtol=1e-5, atol=1e-6)


def test_results_that_share_memory_still_do() -> None:
    def views(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(x @ w)
        return y, y.t(), y[3:]

    gpu = StandInGpu()
    graph = graph_of(views, torch.randn(32, 24), torch.randn(24, 48))
    program, w = stand_in_compiler(gpu, cuda_graphs=True).compile(graph), torch.randn(24, 48)
    for _ in range(6):
        x = torch.randn(32, 24)
        whole, turned, part = program([x, w])
        gpu.check()
        for found, want in zip((whole, turned, part), views(x, w), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
        whole[5, 7] = 9.0
        assert turned[7, 5] == part[2, 7] == 9.0
    assert gpu.captures == 1


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = StandInGpu()
    program, x, w = made(gpu), torch.randn(32, 24), torch.randn(24, 48)

    def refuse(run: object) -> None:
        raise RuntimeError("capture is not possible")

    monkeypatch.setattr(gpu, "capture", refuse)
    for _ in range(3):
        called(program, gpu, x, w)
    with pytest.warns(LazycWarning, match="capture is not possible"):
        called(program, gpu, x, w)
    called(program, gpu, x, w)
