"""The disk cache through the whole compiler, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

SCRIPT = """
import json
import torch
from lazyc.backend import METRICS, lazyc

def check(fn, *args, **options):
    compiled = torch.compile(fn, backend=lazyc, **options)
    for scale in (1, 3):
        values = [torch.randn(a[0] * (scale if options else 1), *a[1:]) for a in args]
        torch.testing.assert_close(compiled(*values), fn(*values))

torch.manual_seed(0)
linear = torch.nn.Linear(16, 8).requires_grad_(False)
table = torch.arange(8.0)
check(lambda x: torch.nn.functional.gelu(linear(x)).softmax(-1) + table, (4, 16))
check(lambda x, y: torch.cat([x, y]).sigmoid().reshape(-1).cumsum(0) * x.shape[0], (3, 5), (4, 5),
      dynamic=True)
check(lambda x: x.sort(dim=-1).values.exp(), (4, 6))
print(json.dumps(METRICS.snapshot()))
"""


def run(folder: Path) -> tuple[dict[str, Any], str]:
    """Metrics and stderr of a process that compiles, checks and runs a few functions."""
    environ = {**os.environ, "LAZYC_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_later_processes_generate_no_code_and_repair_damage(tmp_path: Path) -> None:
    cold, _ = run(tmp_path / "cache")
    assert cold["kernels_made"] > 0 and cold["cache_misses"]["disk programs"] >= 3
    warm, _ = run(tmp_path / "cache")
    assert warm["kernels_made"] == 0, warm
    assert "disk programs" not in warm["cache_misses"], warm
    assert warm["cache_hits"]["disk programs"] == cold["cache_misses"]["disk programs"]
    assert not {"generate", "llvm", "passes", "schedule"} & warm["compile_seconds"].keys()
    assert warm["fallbacks"] == cold["fallbacks"] != []

    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    again, errors = run(tmp_path / "cache")
    assert again["kernels_made"] == cold["kernels_made"]
    assert again["cache_rejected"] == len(files) and "Warning" not in errors


def test_an_unsafe_folder_costs_one_warning_only(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    metrics, errors = run(tmp_path / "cache")
    assert errors.count("CacheWarning") == 1 and metrics["kernels_made"] > 0
    assert list((tmp_path / "cache").iterdir()) == []
