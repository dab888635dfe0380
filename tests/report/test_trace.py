"""``LAZYC_TRACE``: every event and artifact as a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from lazyc.report import events as E
from lazyc.report.trace import TraceWriter


def test_a_compilation_leaves_its_artifacts(tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x).sum(0) * 2

    for _ in range(2):  # the second time from no cache either
        torch._dynamo.reset()
        options = {"trace": str(tmp_path)}
        torch.compile(function, backend="lazyc", options=options)(torch.randn(8, 9))
    folder = tmp_path / str(os.getpid())
    graphs = sorted(folder.glob("graph-*"))
    assert len(graphs) == 2
    for graph in graphs:
        names = {p.name for p in graph.iterdir()}
        assert {"00-captured.txt", "01-canonicalize.txt", "program.txt"} <= names
        assert "tanh" in (graph / "00-captured.txt").read_text()
        (nest,), (code,) = graph.glob("kernel-*.nest"), graph.glob("kernel-*.ll")
        assert "tanh" in nest.read_text() and "define" in code.read_text()
    kinds = [json.loads(line)["event"] for line in (folder / "events.jsonl").open()]
    assert kinds.count("CompileFinished") == 2 and "Artifact" not in kinds


def test_an_unwritable_folder_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    write = TraceWriter(tmp_path / "file" / "below")
    write(E.CacheDisabled("a"))
    write(E.CacheDisabled("b"))
    assert capsys.readouterr().err.count("no trace") == 1
