"""A few dozen ops of PyTorch's OpInfo database, one of each kind: right, and compiled by lazyc.

The whole database is run by ``test_opinfo_full.py``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

OPS = (
    "add",
    "amax",
    "argmax",
    "cat",
    "clamp",
    "cumsum",
    "div.floor_rounding",
    "expand",
    "gather",
    "index_select",
    "log_softmax",
    "masked_fill",
    "matmul",
    "nn.functional.conv2d",
    "nn.functional.cross_entropy",
    "nn.functional.embedding",
    "nn.functional.gelu",
    "nn.functional.layer_norm",
    "nn.functional.linear",
    "nn.functional.pad.constant",
    "nn.functional.scaled_dot_product_attention",
    "pow",
    "select_scatter",
    "std",
    "sum",
    "tril",
    "where",
)

# Their gradient is a call of torch's library, by choice.
PARTLY = {"nn.functional.conv2d"}

# What is recorded of an op by each way into lazyc that records; see opinfo_front.Recorded.
RECORDED = {
    "lazy": {
        "addmm": "recorded",
        "nn.functional.gelu": "recorded",
        "nonzero": "nothing",  # Dynamo leaves it to eager
        "quantile": "recorded",
        "softmax": "recorded",
        "squeeze": "at_once",  # a view
    },
    "lazy-mode": {
        "addmm": "recorded",
        "nn.functional.gelu": "recorded",
        "nonzero": "at_once",
        "quantile": "partly",
        "softmax": "recorded",
        "squeeze": "nothing",  # a view
    },
}


def run_sweep(tmp: Path, *arguments: str, timeout: float = 600.0) -> tuple[str, list[Any]]:
    """Runs the sweep with these arguments; its printed output and one record an op.

    A process of its own: it forks, which is only safe where no tensor op has run yet.
    """
    file = tmp / "outcomes.json"
    command = [sys.executable, "-m", "tests.conformance.opinfo_runner", "--json", str(file)]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "LAZYC_STRICT": "1", "LAZYC_DISK_CACHE": "0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout, [json.loads(line) for line in file.read_text().splitlines()]


def pattern(names: Iterable[str]) -> str:
    return "^(" + "|".join(map(re.escape, names)) + ")$"


@pytest.mark.parametrize("front", RECORDED)
def test_ops_agree_with_eager_and_are_recorded(front: str, tmp_path: Path) -> None:
    wanted = RECORDED[front]
    arguments = ("--front", front, "--ops", pattern(wanted), "--max-samples", "1", "--jobs", "2")
    output, records = run_sweep(tmp_path, *arguments)
    assert {r["op"]: r["tally"]["lazy"] for r in records} == wanted, output
    assert {r["status"] for r in records} == {"PASS"}, output


def test_ops_agree_with_eager_and_are_compiled(tmp_path: Path) -> None:
    arguments = ("--ops", pattern(OPS), "--max-samples", "2", "--jobs", "2", "--timeout", "100")
    output, records = run_sweep(tmp_path, *arguments)
    assert {record["op"] for record in records} == set(OPS)
    wrong = [r["op"] for r in records if r["status"] != "PASS" or not r["tally"]["graphs"]]
    assert not wrong, output
    left_to_eager = {r["op"] for r in records if r["tally"]["code"] != "compiled"}
    assert left_to_eager <= PARTLY, output
