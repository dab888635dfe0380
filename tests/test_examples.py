"""The scripts in examples/ run, without a warning that something was left to eager."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import lazyc

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
# Arguments that make an example small.
SMALL = {"graph_breaks": ["256"], "dynamic_graph": ["4"]}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_compiled(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [str(path), *SMALL.get(path.stem, [])])
    lazyc.metrics.reset()
    runpy.run_path(str(path), run_name="__main__")
    counts = lazyc.metrics.snapshot()
    assert counts["graphs_compiled"] > 0 and counts["fallbacks"] == []
    assert "lazyc" in capsys.readouterr().out
