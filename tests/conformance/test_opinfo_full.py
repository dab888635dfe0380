"""The whole OpInfo database of PyTorch against eager (``make test-full``; takes an hour or so)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance.test_opinfo_smoke import run_sweep

HOURS = 3600.0
# Least share of ops that lazyc must compile alone, without a step left to eager.
LEAST_SHARE = 60.0
# Least share of ops that are recorded whole.
LEAST_RECORDED = {"lazy": 65.0, "lazy-mode": 60.0}

pytestmark = [pytest.mark.full, pytest.mark.timeout(4 * HOURS)]


def check(output: str, share_of: str, least_share: float) -> None:
    """No op failed, and the share that the summary gives of the rest is large enough."""
    failed = [line for line in output.splitlines() if line.startswith(("FAIL", "ERROR"))]
    assert not failed, "\n".join(failed)
    found = re.search(rf"^{share_of} .* = ([\d.]+)% \(", output, re.MULTILINE)
    assert found, output[-2000:]
    assert float(found[1]) >= least_share


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_samples(dtype: str, tmp_path: Path) -> None:
    arguments = ("--dtype", dtype, "--max-samples", "3", "--jobs", "2")
    output, _ = run_sweep(tmp_path, *arguments, timeout=4 * HOURS)
    print(output)
    check(output, "code: lazyc alone compiled", LEAST_SHARE)


@pytest.mark.parametrize("front", LEAST_RECORDED)
def test_samples_recorded(front: str, tmp_path: Path) -> None:
    # What follows in eager code sees the strides: they must be eager's there.
    strides = ("--strides",) if front == "lazy-mode" else ()
    arguments = ("--front", front, "--max-samples", "1", "--jobs", "2", *strides)
    output, _ = run_sweep(tmp_path, *arguments, timeout=4 * HOURS)
    print(output)
    check(output, "lazy: recorded", LEAST_RECORDED[front])


def test_what_eager_refuses_is_refused(tmp_path: Path) -> None:
    output, records = run_sweep(
        tmp_path, "--mode", "errors", "--max-samples", "3", "--jobs", "2", timeout=2 * HOURS
    )
    print(output)
    assert records
    assert not [r for r in records if r["status"] in ("FAIL", "ERROR")], output[-4000:]
