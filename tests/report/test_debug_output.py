"""What LAZYC_DEBUG=1 prints for a small program, from the first compilation to the summary at exit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import torch

def fn(x):
    y = x.exp() + 1
    print("in the middle")
    return torch.sort(y)[0] * 2

lazy = torch.compile(fn, backend="lazyc", options={"lazy": True})
with torch.no_grad():
    for n in (8, 9):
        print(round(lazy(torch.ones(n)).sum().item(), 2))
"""

GOLDEN = """\
in the middle
[lazyc] cache miss (disk): programs KEY
[lazyc] eager: aten.sort.default at script.py:7: no lowering
[lazyc] graph 0: compiled in T ms (STAGES); kernels made 2, reused 0; fallbacks 1
[lazyc] flush at script.py:12: value_read (aten.sum.default): 2 regions, 4 operators, 1 results, \
compiled (T ms)
59.49
[lazyc] recompile 1 script.py:5: x: size of dim 0, 8 -> 9 (T ms)
[lazyc]   to avoid it: torch._dynamo.mark_dynamic(x, 0) or lazyc.mark_dim(x, 0, 'bucket') before the call, or \
torch.compile(dynamic=True)
in the middle
[lazyc] recompile 1 script.py:7: y: size of dim 0, 8 -> 9 (T ms)
[lazyc]   to avoid it: torch._dynamo.mark_dynamic(y, 0) or lazyc.mark_dim(y, 0, 'bucket') before the call, or \
torch.compile(dynamic=True)
[lazyc] cache miss (disk): programs KEY: attributes and shapes differ; input 0: f32[8] strides (1) align 4 -> \
f32[9] strides (1) align 4
[lazyc] eager: aten.sort.default at script.py:7: no lowering
[lazyc] graph 1: compiled in T ms (STAGES); kernels made 2, reused 0; fallbacks 1
[lazyc] recompile 1 script.py:5: the region at script.py:5: tensor 0: size of dim 0, 8 -> 9 (T ms)
[lazyc]   to avoid it: keep it at one size (a list of tensors, a tensor of the final size that is written to, \
padding), or leave it out of what is recorded
[lazyc] flush at script.py:12: value_read (aten.sum.default): 2 regions, 4 operators, 1 results, \
compiled (T ms)
66.93
"""


def test_debug_output(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ, "LAZYC_DEBUG": "1", "LAZYC_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
    text = re.sub(r"[\d.]+ ms", "T ms", done.stdout)
    text = re.sub(r"compiled in T ms \([^)]*\)", "compiled in T ms (STAGES)", text)
    text = re.sub(r"programs [0-9a-f]{16}", "programs KEY", text)
    assert text.startswith(GOLDEN), text
    summary = text[text.rindex("lazyc   ") :]
    for row in (
        "graphs compiled",
        "aten.sort.default: no lowering",
        "value_read",
        "compiled again",
    ):
        assert row in summary


_WITHOUT_CODE = """
import torch

def fn(x):
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

for options in ({}, {"debug": 2}):
    torch._dynamo.reset()
    torch.compile(fn, backend="lazyc", options=options)(torch.ones(4))
"""


def test_what_happens_before_anything_is_compiled_is_told_once(tmp_path: Path) -> None:
    """Also by two Configs that print at different levels to the same place."""
    script = tmp_path / "script.py"
    script.write_text(_WITHOUT_CODE)
    environment = {
        **os.environ, "LAZYC_DEBUG": "1", "LAZYC_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
    )
    told = [line for line in done.stderr.splitlines() if "eager: graph" in line]
    assert len(told) == 2 and "fallbacks to eager" in done.stderr, done.stderr
    assert done.stderr.count("[lazyc]  fallbacks to eager") == 1
