"""Programs on a GPU, with a stand-in for CUDA: launches, memory, streams, and what eager steps see."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lazyc.backend import Session
from lazyc.config import Config
from lazyc.errors import CodeNotLoaded
from lazyc.passes.plan import Unschedulable
from lazyc.report.events import EventStream
from lazyc.report.spans import Spans
from lazyc.runtime.driver import ERROR_LAUNCH, LITERAL, TableWriter
from lazyc.runtime.mixed import MixedRunner
from lazyc.runtime.program import Executable
from lazyc.runtime.runner import LaunchFailed, NativeRunner
from tests.frontend.trace import graph_of
from tests.runtime import toy
from tests.runtime.stand_in import SHARED, WARPS, StandInGpu, stand_in_compiler


def compiled(gpu: StandInGpu, fn: Callable[..., Any], *args: Any, mode: str = "fake") -> Executable:
    return stand_in_compiler(gpu).compile(graph_of(fn, *args, mode=mode))


@pytest.fixture
def gpu() -> StandInGpu:
    return StandInGpu()


def mlp(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(F.gelu(x @ w) @ v, -1)


def test_a_program_is_one_call_and_a_launch_a_kernel(gpu: StandInGpu) -> None:
    args = [torch.randn(32, 24), torch.randn(24, 48), torch.randn(48, 16)]
    program = compiled(gpu, mlp, *args)
    assert isinstance(program.last_runner, NativeRunner)
    (got,) = program(list(args))
    gpu.check()
    torch.testing.assert_close(got, mlp(*args), rtol=1e-5, atol=1e-6)
    assert len(gpu.launches) == len(program.program.steps) >= 2
    for launch in gpu.launches:
        assert launch.stream == 77 and launch.block == (32 * WARPS, 1, 1)
        assert launch.shared_bytes == SHARED and launch.grid[0] >= 1 and launch.grid[1:] == (1, 1)
    assert gpu.entered == 1 and gpu.inside == 0


def test_the_stream_is_that_of_the_call(gpu: StandInGpu) -> None:
    x = torch.randn(64)
    program = compiled(gpu, lambda x: torch.sin(x) + 1, x)
    for stream in (0, 5):
        gpu.handle = stream
        (got,) = program([x])
        torch.testing.assert_close(got, torch.sin(x) + 1)
    assert [launch.stream for launch in gpu.launches] == [0, 5]


def test_sizes_are_arguments(gpu: StandInGpu) -> None:
    program = compiled(gpu, lambda x: torch.softmax(x * 2, -1), torch.randn(6, 40), mode="symbolic")
    for rows, columns in ((6, 40), (17, 9), (3, 1500)):
        x = torch.randn(rows, columns)
        (got,) = program([x, *_symbols(program, x)])
        gpu.check()
        torch.testing.assert_close(got, torch.softmax(x * 2, -1))


def _symbols(program: Executable, x: torch.Tensor) -> list[int]:
    """Arguments for symbols that are passed as numbers."""
    return [x.shape[s.dim] for s in program.program.symbols if s.dim is None]


def test_scratch_is_in_the_arena(gpu: StandInGpu) -> None:
    """A row that is read after it was reduced twice is kept for each program."""

    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.softmax(x, -1)
        return torch.cumsum(y, -1) / y.amax(-1, keepdim=True)

    x = torch.randn(40, 70)
    program = compiled(gpu, f, x)
    roles = {p.role for nest in program.program.nests.values() for p in nest.buffers}
    assert "scratch" in roles
    (got,) = program([x])
    gpu.check()
    torch.testing.assert_close(got, f(x), rtol=1e-5, atol=1e-6)


def test_addresses_that_kernels_are_not_made_for_are_copied(gpu: StandInGpu) -> None:
    x = torch.randn(65)
    program = compiled(gpu, lambda x: x * 3, x[1:])
    (got,) = program([x[1:]])
    gpu.check()
    torch.testing.assert_close(got, x[1:] * 3)


def test_arguments_are_written_to(gpu: StandInGpu) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(y)
        return x * 2

    x, y = torch.randn(48), torch.randn(48)
    wanted, version = x + y, x._version
    program = compiled(gpu, torch.func.functionalize(f), x.clone(), y)
    assert program.last_runner is not None and program.last_runner.plan.mutated == [0]
    program([x, y])
    gpu.check()
    torch.testing.assert_close(x, wanted)
    assert x._version > version
    memory = torch.randn(49)
    with pytest.raises(RuntimeError, match="no multiple of 16"):
        program([memory[1:], y])


def test_eager_steps_and_seeds_run_between_launches(gpu: StandInGpu) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.linalg.qr(x * 2)[1]  # not lowered
        return torch.relu(y) + 1

    x = torch.randn(32, 32)
    program = compiled(gpu, f, x)
    assert isinstance(program.last_runner, MixedRunner)
    (got,) = program([x])
    gpu.check()
    torch.testing.assert_close(got, f(x), rtol=1e-4, atol=1e-4)
    assert len(gpu.launches) >= 2

    noise = compiled(gpu, lambda x: torch.rand_like(x) + x, x)
    first, second = (noise([torch.zeros(32, 32)])[0] for _ in range(2))
    gpu.check()
    assert float(first.min()) >= 0 and float(first.max()) < 1 and not first.equal(second)


def test_results_are_not_overwritten(gpu: StandInGpu) -> None:
    x = torch.randn(32, 24)
    w, v = torch.randn(24, 48), torch.randn(48, 16)
    program = compiled(gpu, mlp, x, w, v)
    (first,) = program([x, w, v])
    kept = first.clone()
    program([torch.randn(32, 24), w, v])
    assert first.equal(kept)


def test_a_refused_launch_is_an_error(gpu: StandInGpu) -> None:
    x = torch.randn(64)
    program = compiled(gpu, lambda x: torch.sin(x), x)
    gpu.status = 700
    with pytest.raises(LaunchFailed, match="700") as caught:
        program([x])
    assert caught.value.status == 700


def test_tensors_elsewhere_are_refused() -> None:
    gpu = StandInGpu(name="cuda:1")
    with pytest.raises(Unschedulable, match="tensors on cpu in a program for cuda:1"):
        compiled(gpu, lambda x: x + 1, torch.randn(4))


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
@pytest.mark.parametrize("device", ["cuda:0", "xpu:0"])
def test_devices_without_code_are_left_to_eager(device: str) -> None:
    with pytest.raises(CodeNotLoaded, match=device):
        Session(EventStream(), Spans()).compiler(Config(), device)


def test_a_record_holds_slots_and_literals() -> None:
    """Arguments are read when the kernel is launched; each is 8 bytes."""
    gpu = StandInGpu()
    seen: list[list[int]] = []
    gpu._run = lambda function, numbers, stream, params: seen.append(  # type: ignore[method-assign]
        [function, stream, *numbers, *(ctypes.c_int64.from_address(p).value
                                       for p in (ctypes.c_void_p * 4).from_address(params))]
    )  # fmt: skip
    gpu.inside = 1
    table = TableWriter()
    table.launch(gpu.launcher, 9, 11, 128, 4096, 5, [(4, 16), (LITERAL, -3), (4, 0), (LITERAL, 0)])
    table.launch(gpu.launcher, 9, 0, 128, 0, 5, [])  # nothing to compute
    table.end()
    words = table.array()
    env = (ctypes.c_int64 * (6 + table.longest))(0, 0, 0, 0, 1000, 33)
    env[2] = ctypes.addressof(env) + 6 * 8
    driver = toy.host().driver
    assert driver.run(ctypes.addressof(words), ctypes.addressof(env)) == 0
    gpu.check()
    assert seen == [[9, 33, 11, 1, 1, 128, 1, 1, 4096, 1016, -3, 1000, 0]]
    gpu.status = 3
    assert driver.run(ctypes.addressof(words), ctypes.addressof(env)) == ERROR_LAUNCH | 3
    with pytest.raises(ValueError, match="at most"):
        table.launch(gpu.launcher, 9, 1 << 31, 128, 0, 5, [])
