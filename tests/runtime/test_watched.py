"""Programs whose steps run one by one while somebody watches: same results, a span for each step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from lazyc.ir.program import (
    BufferRef,
    EagerStep,
    GemmStep,
    KernelStep,
    Operand,
    Program,
    ProgramOutput,
    SeedStep,
)
from lazyc.ir.program_verify import verify_program
from lazyc.ir.types import DType
from lazyc.report.spans import FinishedSpan
from lazyc.runtime.program import Executable
from lazyc.runtime.runner import KernelError
from tests.runtime import toy

SIZE = 48  # of square matrices; large enough for packed weights


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def block(packed: bool, host: Any = None, eager: bool = False) -> Executable:
    """``((x + y) * y) @ w``, doubled; with ``eager``, sines of it in between, and a seed."""
    shape = (SIZE, SIZE)
    matrix = [Operand(i, 0, SIZE, 1) for i in range(8)]
    kinds = ("input", "input", "input", "temp", "temp", "temp", "output")
    buffers = [toy.buffer(i, k, shape, i if k == "input" else -1) for i, k in enumerate(kinds)]
    steps: list[Any] = [
        KernelStep("add", (0, 1, 3), (), "add model.py:1"),
        KernelStep("mul", (3, 1, 4), ()),
        GemmStep(DType.F32, (), SIZE, SIZE, SIZE, matrix[4], matrix[2], matrix[5],
                 pack_b=packed, comment="mm model.py:2"),
    ]  # fmt: skip
    last = 5
    if eager:
        buffers += [
            toy.buffer(7, "eager", shape),
            toy.buffer(8, "output", (), dtype=DType.I64),
        ]
        steps.append(
            EagerStep("aten.sin.default", (BufferRef(5),), (), (7,), False, True, "no lowering")
        )
        steps.append(SeedStep(8))
        last = 7
    steps.append(KernelStep("double", (last, 6), ()))
    program = Program(
        inputs=(0, 1, 2),
        buffers=tuple(buffers),
        steps=tuple(steps),
        outputs=(toy.whole(buffers[6]), *([ProgramOutput(8, (), ())] if eager else [])),
        nests={k: toy.nest(k, SIZE * SIZE) for k in ("add", "mul", "double")},
        parameters=(2,) if packed else (),
    )
    verify_program(program)
    kernels = {k: toy.kernel(k, SIZE * SIZE, 64) for k in program.nests}
    return Executable(program, kernels, host or toy.host(), name="block")


def watched(executable: Executable, args: list[Any]) -> tuple[list[Any], list[FinishedSpan]]:
    """Results, and the spans in the order of their starts."""
    with toy.host().spans.record() as recording:
        results = executable(args)
    return results, sorted(recording.spans, key=lambda s: (s.start, -s.end))


def is_inside(inner: FinishedSpan, outer: FinishedSpan) -> bool:
    return outer.start <= inner.start <= inner.end <= outer.end


STEPS = [
    ("program", "block"),
    ("kernel", "add model.py:1"),
    ("kernel", "mul"),
    ("library", "mm model.py:2"),
    ("kernel", "double"),
]


@pytest.mark.parametrize("packed", [False, True])
def test_results_are_the_same_and_each_step_has_a_span(packed: bool, threads: int) -> None:
    executable = block(packed)
    x, y = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    w = torch.nn.Parameter(torch.randn(SIZE, SIZE), requires_grad=False)
    (expected,) = executable([x, y, w])
    assert bool(executable.weights) == packed
    for _ in range(2):
        (found,), spans = watched(executable, [x, y, w])
        assert torch.equal(found, expected)
        assert [(s.category, s.name) for s in spans] == STEPS
        program, *steps = spans
        assert all(is_inside(s, program) for s in steps)
        assert all(a.end <= b.start for a, b in pairwise(steps))
    kernel, product = spans[1].args, spans[3].args
    matrix = 4 * SIZE * SIZE
    assert kernel == {"kernel": "add", "bytes": 3 * matrix}
    assert product == {"bytes": 3 * matrix, "m": SIZE, "n": SIZE, "k": SIZE, "batch": []}
    torch.testing.assert_close(found, 2 * (((x + y) * y) @ w))
    assert torch.equal(executable([x, y, w])[0], expected), "and as before afterwards"


def test_packing_is_within_the_program_that_needs_it() -> None:
    executable = block(True)
    x = torch.randn(SIZE, SIZE)
    w = torch.nn.Parameter(torch.randn(SIZE, SIZE), requires_grad=False)
    (first,), spans = watched(executable, [x, x, w])
    packing = ("library", "pack a weight")
    assert [(s.category, s.name) for s in spans] == [STEPS[0], packing, *STEPS[1:]]
    assert is_inside(spans[1], spans[0])
    assert torch.equal(first, executable([x, x, w])[0])


@pytest.mark.parametrize("in_eager", [False, True], ids=["no product by ATen", "product by ATen"])
def test_python_steps_have_spans(in_eager: bool, threads: int) -> None:
    host = toy.host_without_blas() if in_eager else toy.host()
    executable = block(False, host, eager=True)
    args = [torch.randn(SIZE, SIZE) for _ in range(3)]
    torch.manual_seed(1)
    expected = executable(list(args))
    torch.manual_seed(1)
    with host.spans.record() as recording:
        found = executable(list(args))
    assert all(map(torch.equal, found, expected))
    program, *steps = sorted(recording.spans, key=lambda s: (s.start, -s.end))
    assert all(is_inside(s, program) for s in steps)
    assert sorted((s.category, s.name) for s in steps) == sorted(
        [*STEPS[1:], ("fallback", "aten.sin.default"), ("library", "random seed")]
    )
    sine = next(s for s in steps if s.category == "fallback")
    assert sine.args["operator"] == "aten.sin.default" and sine.args["reason"] == "no lowering"


def test_steps_without_work_have_no_span() -> None:
    executable = toy.chain(["add", "mul"], (0, 3))
    x = torch.randn(0, 3)
    (found,), spans = watched(executable, [x, x])
    assert found.shape == (0, 3) and [s.category for s in spans] == ["program"]


def test_a_kernel_error_is_the_same() -> None:
    executable = toy.chain(["check", "double", "add"], (6,))
    y = torch.ones(6)
    for x, fails in ((torch.ones(6), False), (-torch.ones(6), True), (torch.ones(6), False)):
        if fails:
            with pytest.raises(KernelError, match="0x1"):
                watched(executable, [x, y])
        else:
            assert torch.equal(watched(executable, [x, y])[0][0], executable([x, y])[0])


def test_in_torch_profiler() -> None:
    executable = block(False, eager=True)
    args = [torch.randn(SIZE, SIZE) for _ in range(3)]
    executable(list(args))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        executable(list(args))
    parents = {e.name: e.cpu_parent.name if e.cpu_parent else "" for e in profile.events()}
    for name in ("kernel: add model.py:1", "library: mm model.py:2", "fallback: aten.sin.default"):
        assert parents[f"lazyc.{name}"] == "lazyc.program: block"
    assert parents["aten::sin"] == "lazyc.fallback: aten.sin.default"


# --- off --------------------------------------------------------------------------------------------


def called(run: Callable[[], Any]) -> list[str]:
    """The functions, of Python and of C, that ``run`` calls, in order."""
    found: list[str] = []

    def note(frame: Any, event: str, function: Any) -> None:
        if event == "call":
            found.append(frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname")
                         else frame.f_code.co_name)  # fmt: skip
        elif event == "c_call":
            found.append(function.__qualname__)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found[1:-1]  # without ``run`` itself and the call that ends this


def test_off_it_costs_a_branch_and_no_call() -> None:
    executable = toy.chain(["add", "mul"], (4, 5))
    runner = executable._only
    assert runner is not None
    x = torch.randn(4, 5)
    executable([x, x])
    whole = called(lambda: executable([x, x]))
    inside = called(lambda: runner.run([x, x]))
    assert len(inside) > 2
    assert [n.rpartition(".")[2] for n in whole[:1]] == ["__call__"]
    assert whole[1:] == inside
    with toy.host().spans.record():
        assert len(called(lambda: executable([x, x]))) > len(whole) + 10
    assert called(lambda: executable([x, x])) == whole


def test_off_nothing_is_made_for_watching() -> None:
    executable = toy.chain(["add", "mul"], (4, 5))
    x = torch.randn(4, 5)
    executable([x, x])
    runner = executable.last_runner
    assert runner is not None and "run_watched" not in vars(runner)
    watched(executable, [x, x])
    assert "run_watched" in vars(runner)
