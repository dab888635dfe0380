"""``lazyc selftest`` on the CPU: that it runs, and that it tells wrong results."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from lazyc import selftest
from lazyc.backend import EVENTS
from lazyc.cli.main import app
from lazyc.errors import ConfigError
from lazyc.report import events as E
from lazyc.selftest import CASES, Case, _error, _Function, run_cases

FEW = [c for c in CASES if c.name in ("softmax", "gather and scatter")]
FEW.append(next(c for c in CASES if c.train))
FEW += [c for c in CASES if c.prune is not None and c.dtype is not torch.bfloat16]  # one for GPUs


def test_programs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_CALLS", 1)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(selftest.run_cases, "__defaults__", (FEW,))
    result = CliRunner().invoke(app, ["selftest", "--device", "cpu", "--no-tests"])
    assert result.exit_code == 0, result.output
    assert "5 programs on cpu, 0 with problems" in result.output and "softmax" in result.output


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


def test_tests_of_a_checkout_are_run_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def main(args: list[str]) -> pytest.ExitCode:
        given.append(args)
        return pytest.ExitCode.TESTS_FAILED

    monkeypatch.setattr(pytest, "main", main)
    monkeypatch.setattr(selftest.run_cases, "__defaults__", ([],))
    result = CliRunner().invoke(app, ["selftest"])
    assert result.exit_code == 1
    (args,) = given
    assert args[-1].endswith("tests/codegen") and "not triton and not cuda" in args
