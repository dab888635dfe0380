"""The plain capture of inference graphs gives AOTAutograd's Graph for each operator of PyTorch's database."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

MINUTES = 60.0
# Most graphs are plain: operators that compute. The rest are views, writes and lookups of data.
LEAST_PLAIN = 0.75


@pytest.mark.full
@pytest.mark.timeout(30 * MINUTES)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_both_captures_agree(dtype: str) -> None:
    command = [sys.executable, "-m", "tests.conformance.captures_runner", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(
        r"^captures: (\d+) of (\d+) graphs plainly, (\d+) differ$", done.stdout, re.MULTILINE
    )
    assert done.returncode == 0 and found, done.stderr[-2000:]
    plain, count, wrong = map(int, found.groups())
    assert wrong == 0, done.stdout
    assert plain >= LEAST_PLAIN * count > 0
