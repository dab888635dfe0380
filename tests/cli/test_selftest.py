"""``lazyc selftest`` on the CPU: that it runs, and that it tells wrong results."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lazyc import selftest
from lazyc.backend import EVENTS
from lazyc.cli.main import app
from lazyc.errors import ConfigError
from lazyc.report import events as E
from lazyc.selftest import CASES, Case, _error, _Function, run_cases

ROOT = Path(__file__).parents[2]
FEW = [c for c in CASES if c.name in ("softmax", "gather and scatter")]
FEW.append(next(c for c in CASES if c.train))
FEW += [c for c in CASES if c.prune is not None and c.dtype is not torch.bfloat16]  # one for GPUs


# One of each kind that the others are not, but for those that take long in a test.
MORE = ("convolutions", "dropout trained", "shared key heads", "attention with a mask", "any number of rows",
        "attention with dropout trained", "kept weights that change", "chain of small kernels")  # fmt: skip


def test_programs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_CALLS", 1)
    monkeypatch.setattr(selftest, "_WARM_UP", 0)
    monkeypatch.setenv("COLUMNS", "200")
    cases = [*FEW, *(next(c for c in CASES if c.name == name) for name in MORE)]
    monkeypatch.setattr(selftest.run_cases, "__defaults__", (cases,))
    result = CliRunner().invoke(app, ["selftest", "--device", "cpu", "--no-tests"])
    assert result.exit_code == 0, result.output
    assert "13 programs on cpu, 0 with problems" in result.output and "softmax" in result.output


def test_what_is_not_as_a_case_has_it_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_CALLS", 1)
    monkeypatch.setattr(selftest, "_WARM_UP", 0)

    def drops_nothing(x: torch.Tensor) -> torch.Tensor:
        return selftest._whatever_is_dropped(x * 1.0, x * 1.0, 0.25)

    def by_size(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 8 else x * 3

    cases = [
        Case("dropout", lambda: (_Function(drops_nothing), (torch.randn(64, 64),))),
        Case("sizes", lambda: (_Function(by_size), (torch.randn(8, 8),)), dynamic=True),
    ]
    dropout, sizes = run_cases("cpu", cases)
    assert "its error is inf" in dropout.problem
    assert sizes.problem == "2 programs for two sizes"


def test_sparse_cases_take_the_sparse_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that GPUs have in common with Triton's interpreter."""
    monkeypatch.setattr(selftest, "_CALLS", 1)
    monkeypatch.setattr(selftest, "_WARM_UP", 0)
    monkeypatch.setenv("LAZYC_TARGET", "triton-interpret")
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    cases = [c for c in CASES if c.prune is not None and c.name.startswith("block")]
    try:
        assert [found.problem for found in run_cases("cpu", cases)] == [""] * 2
    finally:
        stop()
    assert [e.is_used for e in heard if isinstance(e, E.SparseProduct)] == [True] * 4
    assert sum(e.count for e in heard if isinstance(e, E.WeightsPacked)) == 4


def test_cases_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are left out elsewhere; in Triton's interpreter they are right."""
    monkeypatch.setattr(selftest, "_CALLS", 1)
    monkeypatch.setattr(selftest, "_WARM_UP", 0)
    cases = [c for c in CASES if c.only_on_gpus]
    assert cases and list(run_cases("cpu", cases)) == []
    cases = [c for c in cases if "int8" in c.name]  # others take long there
    monkeypatch.setenv("LAZYC_TARGET", "triton-interpret")
    found = run_cases("cpu", [replace(c, only_on_gpus=False) for c in cases])
    assert [outcome.problem for outcome in found] == [""] * len(cases)


def test_what_runs_in_eager_or_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_CALLS", 1)

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not a model")

    cases = [
        Case("left", lambda: (_Function(lambda x: torch.linalg.qr(x)[1]), (torch.randn(5, 5),))),
        Case("broken", lambda: (_Function(broken), (torch.randn(5),))),
    ]
    left, failed = run_cases("cpu", cases)
    assert "linalg_qr" in left.problem and "ran in eager" in left.problem
    assert "not a model" in failed.problem


def test_errors_are_judged_by_eager_s() -> None:
    exact = torch.ones(100, dtype=torch.float64)
    assert _error(exact, exact, exact, 2) == 0
    assert _error(exact + 1e-3, exact + 1e-3, exact, 2) < 1
    assert _error(exact + 3e-3, exact + 1e-3, exact, 2) > 1
    assert _error(exact * math.nan, exact + 1e-3, exact, 2) == math.inf
    assert _error(exact[:1], exact, exact, 2) == math.inf


@pytest.mark.parametrize("device", ["tpu9", "meta"])
def test_devices_that_are_none(device: str) -> None:
    result = CliRunner().invoke(app, ["selftest", "--device", device])
    assert isinstance(result.exception, ConfigError)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    result = CliRunner().invoke(app, ["selftest", "--device", "cuda"])
    assert isinstance(result.exception, ConfigError) and "no GPU" in str(result.exception)


def handed_to_pytest(monkeypatch: pytest.MonkeyPatch, found: pytest.ExitCode) -> list[list[str]]:
    """The arguments of each call of pytest, which runs no tests and returns ``found``; and no programs run."""
    given: list[list[str]] = []

    def main(args: list[str]) -> pytest.ExitCode:
        given.append(args)
        return found

    monkeypatch.setattr(pytest, "main", main)
    monkeypatch.setattr(selftest.run_cases, "__defaults__", ([],))
    return given


def test_numerics_tests_are_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to pytest selects the tests of kernels, products, attention, sparse weights and models."""
    given = handed_to_pytest(monkeypatch, pytest.ExitCode.OK)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    result = CliRunner().invoke(app, ["selftest", "--device", "cuda:1"])
    assert result.exit_code == 0, result.output
    (args,) = given
    command = [sys.executable, "-m", "pytest", *args, "--collect-only", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    found = {line.split(":")[0] for line in done.stdout.splitlines()}
    wanted = {f"tests/models/{p.name}" for p in ROOT.glob("tests/models/test_triton_*.py")}
    wanted |= {
        f"tests/codegen/test_triton_{n}.py" for n in ("contraction", "attention", "block_sparse")
    }
    wanted |= {"tests/models/test_families.py", "tests/cuda_emulator/test_sparse_24.py"}
    assert wanted <= found, done.stdout[-2000:] + done.stderr[-2000:]
    assert "tests/cuda_emulator/test_emulator.py" not in found  # of g++
    # And they take their device from there.
    script = (
        "from tests import gpu; gpu.choose('cuda:1'); print(gpu.DEVICE, gpu.KERNELS, gpu.OPTIONS)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == ["cuda:1", "cuda", "{}"], done.stderr


def test_tests_of_a_checkout_are_run_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    given = handed_to_pytest(monkeypatch, pytest.ExitCode.TESTS_FAILED)
    result = CliRunner().invoke(app, ["selftest"])
    assert result.exit_code == 1
    (args,) = given
    assert args[-1].endswith("tests/codegen") and "not triton and not cuda" in args
