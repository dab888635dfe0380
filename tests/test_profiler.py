"""``lazyc.profiler``: annotations, recordings as files, and the same spans in torch's profiler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import lazyc
from lazyc import profiler
from lazyc.backend import SPANS


@dataclass(frozen=True)
class Shown:
    """A complete event of a trace file."""

    category: str
    name: str
    start: float
    end: float
    process: int
    thread: int
    args: dict[str, Any]

    def has(self, other: Shown) -> bool:
        same = (self.process, self.thread) == (other.process, other.thread)
        return same and self.start <= other.start and other.end <= self.end


def read(path: Path) -> list[Shown]:
    """The spans of a file, by start; outer ones first."""
    events = json.loads(path.read_text())["traceEvents"]
    assert {e["ph"] for e in events} <= {"M", "X"}
    return [
        Shown(
            e["cat"], e["name"], e["ts"], e["ts"] + e["dur"], e["pid"], e["tid"], e["args"]
        )
        for e in events
        if e["ph"] == "X"
    ]  # fmt: skip


def one(spans: list[Shown], category: str, name: str) -> Shown:
    (found,) = (s for s in spans if (s.category, s.name) == (category, name))
    return found


# --- annotations ------------------------------------------------------------------------------------


def test_annotations_nest(tmp_path: Path) -> None:
    @profiler.trace("countdown")
    def countdown(n: int) -> int:
        """Counts down."""
        return n if n == 0 else countdown(n - 1)

    again = profiler.trace("again")
    with profiler.record(tmp_path / "trace.json"):
        for step in range(2):
            with profiler.StepTrace(step), profiler.StepTrace(step, "epoch"):
                with again, again:
                    pass
                assert countdown(2) == 0
    assert countdown.__doc__ == "Counts down."
    spans = read(tmp_path / "trace.json")
    per_step = ["step#", "epoch#", "again", "again", *["countdown"] * 3]
    expected = [f"{name}{k}" if name[-1] == "#" else name for k in range(2) for name in per_step]
    assert [s.name for s in spans] == expected
    assert {s.category for s in spans} == {"user"}
    assert [s.args for s in spans if s.name.startswith("step")] == [
        {"step_num": 0},
        {"step_num": 1},
    ]
    first, epoch, outer, inner = spans[:4]
    assert first.has(epoch) and epoch.has(outer) and outer.has(inner)
    assert spans[4].has(spans[5]) and spans[5].has(spans[6]) and not spans[3].has(spans[4])


def test_an_annotation_passes_exceptions_on(tmp_path: Path) -> None:
    with profiler.record(tmp_path / "trace.json"), pytest.raises(ValueError, match="bad"):  # noqa: SIM117
        with profiler.trace("work"):
            raise ValueError("bad")
    assert one(read(tmp_path / "trace.json"), "user", "work").args == {"error": "ValueError"}


def test_dynamo_ignores_annotations(tmp_path: Path) -> None:
    @profiler.trace("inner")
    def inner(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    def function(x: torch.Tensor) -> torch.Tensor:
        with profiler.trace("outer"), profiler.StepTrace(3):
            return inner(x) * 2

    compiled = torch.compile(function, backend="lazyc", fullgraph=True)
    x = torch.randn(5)
    with profiler.record(tmp_path / "trace.json"):
        assert torch.equal(compiled(x), function(x))
    assert [s.name for s in read(tmp_path / "trace.json") if s.category == "user"] == [
        "outer", "step#3", "inner",
    ]  # fmt: skip


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing/trace.json", "."])
def test_a_path_that_cannot_be_written_is_an_error_before_anything_runs(
    tmp_path: Path, name: str
) -> None:
    ran = False
    with pytest.raises(OSError, match=str(tmp_path)), profiler.record(tmp_path / name):
        ran = True
    assert not ran and not SPANS.recordings


def test_an_exception_and_ctrl_c_leave_a_file(tmp_path: Path) -> None:
    # A shell starts what runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    path = tmp_path / "trace.json"
    with pytest.raises(ValueError, match="bad"), profiler.record(path), profiler.trace("failed"):
        raise ValueError("bad")
    assert [(s.name, s.args) for s in read(path)] == [("failed", {"error": "ValueError"})]
    try:
        with pytest.raises(KeyboardInterrupt), profiler.record(path), profiler.trace("stopped"):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [(s.name, s.args) for s in read(path)] == [("stopped", {"error": "KeyboardInterrupt"})]
    assert list(tmp_path.iterdir()) == [path]


def test_the_working_folder_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with profiler.record("trace.json"):
        os.chdir("other")
    assert read(tmp_path / "trace.json") == [] and not list((tmp_path / "other").iterdir())


def test_recordings_nest_and_overlap_in_threads(tmp_path: Path) -> None:
    started, ended = threading.Event(), threading.Event()

    def work() -> None:
        with profiler.record(tmp_path / "thread.json"), profiler.trace("in thread"):
            started.set()
            ended.wait()

    thread = threading.Thread(target=work, name="worker")
    with profiler.record(tmp_path / "outer.json"):
        thread.start()
        started.wait()
        with profiler.record(tmp_path / "inner.json"), profiler.trace("in both"):
            pass
        ended.set()
        thread.join()
    names = {p.stem: {s.name for s in read(p)} for p in tmp_path.iterdir()}
    assert names == {
        "outer": {"in both", "in thread"},
        "inner": {"in both"},
        "thread": {"in both", "in thread"},
    }
    outer = read(tmp_path / "outer.json")
    assert len({s.thread for s in outer}) == 2 and {s.process for s in outer} == {os.getpid()}
    metadata = json.loads((tmp_path / "outer.json").read_text())["traceEvents"]
    named = {e["args"]["name"] for e in metadata if e["name"] == "thread_name"}
    assert named == {"MainThread", "worker"}


FORK = """
import json, os, sys
from lazyc import profiler

with profiler.record(sys.argv[1]):
    with profiler.trace("before"):
        pass
    child = os.fork()
    with profiler.trace("in child" if child == 0 else "in parent"):
        pass
    if child:
        assert os.waitpid(child, 0)[1] == 0
        assert os.path.getsize(sys.argv[1]) == 3, "the child wrote to the file of its parent"
if child == 0:
    with profiler.record(sys.argv[2]), profiler.trace("own"):
        pass
"""


def test_a_child_process_leaves_the_file_of_its_parent(tmp_path: Path) -> None:
    parent, child = tmp_path / "parent.json", tmp_path / "child.json"
    parent.write_text("old")
    command = [sys.executable, "-c", FORK, str(parent), str(child)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(command, env=environment, check=True)
    assert [s.name for s in read(parent)] == ["before", "in parent"]
    assert [s.name for s in read(child)] == ["own"]
    assert sorted(tmp_path.iterdir()) == [child, parent]


def test_reachable_from_lazyc_without_loading_it_at_import() -> None:
    script = (
        "import sys, lazyc\n"
        "assert 'torch' not in sys.modules and 'lazyc.profiler' not in sys.modules\n"
        "assert lazyc.profiler.trace is sys.modules['lazyc.profiler'].trace\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


# --- what lazyc tells -------------------------------------------------------------------------------


# Constants differ from test to test, so that none finds the kernels of another in the disk cache.


def sorted_softmax(x: torch.Tensor, w: torch.Tensor, constant: float) -> torch.Tensor:
    return torch.sort(torch.softmax((x + constant) @ w, -1))[0] * 2


@torch.no_grad()
def test_a_compiled_function(tmp_path: Path) -> None:
    x, w = torch.randn(8, 16), torch.randn(16, 16)
    compiled = torch.compile(sorted_softmax, backend="lazyc")
    with profiler.record(tmp_path / "trace.json"):
        with profiler.StepTrace(0):
            first = compiled(x, w, 0.1234)
        with profiler.StepTrace(1):
            second = compiled(x, w, 0.1234)
    assert torch.equal(first, second) and torch.equal(compiled(x, w, 0.1234), first)
    spans = read(tmp_path / "trace.json")
    steps = [one(spans, "user", f"step#{k}") for k in range(2)]
    frontend = one(spans, "compile", "frontend")
    (graph,) = (s for s in spans if s.category == "compile" and s.name.startswith("graph "))
    assert steps[0].has(frontend) and frontend.has(graph)
    stages = [s for s in spans if s.category == "compile" and graph.has(s) and s != graph]
    assert {s.name for s in stages} == {
        "key", "load", "passes", "schedule", "kernels", "generate", "llvm", "store", "bind",
    }  # fmt: skip
    kernels = one(spans, "compile", "kernels")
    assert all(kernels.has(s) for s in stages if s.name in ("generate", "llvm"))
    programs = [s for s in spans if s.category == "program"]
    assert [p.name for p in programs] == [graph.name] * 2
    for step, program in zip(steps, programs, strict=True):
        assert step.has(program)
        inside = [s for s in spans if program.has(s) and s != program]
        by_category = {s.category: s.name for s in inside}
        assert set(by_category) == {"kernel", "library", "fallback"}
        assert by_category["fallback"].startswith("aten.sort.default test_profiler.py:")
        assert by_category["library"].startswith("aten.mm.default test_profiler.py:")
        assert any("aten._softmax.default test_profiler.py:" in s.name for s in inside)


def test_training_and_a_restored_program(tmp_path: Path) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return (x * 1.2345).tanh().sum()

    x = torch.randn(6, 7, requires_grad=True)
    with profiler.record(tmp_path / "trace.json"):
        torch.compile(loss, backend="lazyc")(x).backward()
    spans = read(tmp_path / "trace.json")
    assert len({s.name for s in spans if s.category == "program"}) == 2, "forward and backward"
    torch._dynamo.reset()
    with profiler.record(tmp_path / "trace.json"):
        torch.compile(loss, backend="lazyc")(x).backward()
    again = {s.name for s in read(tmp_path / "trace.json") if s.category == "compile"}
    assert not again & {"passes", "schedule", "kernels", "store"} and "bind" in again


def test_a_graph_that_runs_in_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lazyc.compiler import Compiler
    from lazyc.passes.plan import Unschedulable

    def refuse(*args: Any) -> None:
        raise Unschedulable("not today")

    monkeypatch.setattr(Compiler, "compile", refuse)
    compiled = torch.compile(lambda x: x * 2.3456, backend="lazyc")
    with profiler.record(tmp_path / "trace.json"):
        compiled(torch.ones(3))
    fallback = one(read(tmp_path / "trace.json"), "fallback", "graph")
    assert fallback.args == {"reason": "not today"}


def test_recorded_work(tmp_path: Path) -> None:
    x = torch.randn(8, 8)
    with profiler.record(tmp_path / "trace.json"), lazyc.lazy():
        y = (x + 0.2345).tanh()
        with profiler.StepTrace(0):
            lazyc.mark_step()
        z = (y * 2).sum().item()
    assert z == pytest.approx(float(((x + 0.2345).tanh() * 2).sum()))
    spans = read(tmp_path / "trace.json")
    recorded = [s.name for s in spans if s.category == "record"]
    assert recorded == [
        "aten.add.Tensor", "aten.tanh.default", "aten.mul.Tensor", "aten.sum.default",
    ]  # fmt: skip
    step, flush = one(spans, "user", "step#0"), one(spans, "flush", "mark_step")
    assert step.has(flush)
    assert flush.args.pop("line").startswith("test_profiler.py:")
    assert flush.args == {
        "what": "", "regions": 2, "operators": 2, "results": 1, "compiled": True,
    }  # fmt: skip
    inside = {s.category for s in spans if flush.has(s)}
    assert inside == {"flush", "compile", "program", "kernel"}
    assert one(spans, "flush", "value_read").args["what"] == "aten._local_scalar_dense.default"


@torch.no_grad()
def test_recorded_regions(tmp_path: Path) -> None:
    def cut(x: torch.Tensor) -> torch.Tensor:
        y = x * 3.4567
        torch._dynamo.graph_break()
        return y + 1

    compiled = torch.compile(cut, backend="lazyc", options={"lazy": True})
    with profiler.record(tmp_path / "trace.json"):
        result = compiled(torch.ones(4))
        lazyc.mark_step()
    torch.testing.assert_close(result, torch.full((4,), 4.4567))
    spans = read(tmp_path / "trace.json")
    regions = [s for s in spans if s.category == "record"]
    assert len(regions) == 2
    assert all(s.name.startswith("the region at test_profiler.py:") for s in regions)
    assert all(s.args["line"].startswith("test_profiler.py:") for s in regions)
    assert one(spans, "flush", "mark_step").args["regions"] == 2


# --- torch's profiler -------------------------------------------------------------------------------


@torch.no_grad()
def test_in_torch_profiler() -> None:
    x, w = torch.randn(8, 16), torch.randn(16, 16)
    compiled = torch.compile(sorted_softmax, backend="lazyc")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with profiler.StepTrace(7):
            compiled(x, w, 0.5678)
        with profiler.trace("recorded"), lazyc.lazy():
            (x + 0.3456).tanh()
            y = (x + 0.4567).tanh()
            lazyc.mark_step()
        assert y.shape == x.shape
    events = sorted(profile.events(), key=lambda e: e.time_range.start)

    def ancestors(name: str) -> list[str]:
        event = next(e for e in events if e.name.startswith(name))
        found: list[str] = []
        while event.cpu_parent is not None:
            event = event.cpu_parent
            found.append(event.name)
        return found

    assert "step#7" in ancestors("lazyc.compile: frontend")
    assert "lazyc.compile: frontend" in ancestors("lazyc.compile: bind")
    sort = ancestors("lazyc.fallback: aten.sort.default")
    assert sort[0].startswith("lazyc.program: graph ") and "step#7" in sort
    assert "recorded" in ancestors("lazyc.record: aten.tanh.default")
    assert ancestors("lazyc.flush: mark_step") == ["recorded"]
    assert ancestors("lazyc.kernel: aten.tanh.default")[1] == "lazyc.flush: mark_step"
    assert not SPANS.on


# --- metrics that no event carries ------------------------------------------------------------------


def test_metrics_of_what_waited() -> None:
    lazyc.mark_step()
    lazyc.metrics.reset()
    x = torch.randn(16)
    with lazyc.lazy():
        y = ((x + 1) * 2).tanh()
        del y
        found = lazyc.metrics.snapshot()
        assert found["pending_peak_operators"] == 3
        assert found["pending_peak_bytes"] == 3 * 64
        z = x + 1
        assert lazyc.metrics.snapshot()["pending_peak_operators"] == 3
        lazyc.metrics.reset()
        assert lazyc.metrics.snapshot()["pending_peak_operators"] == 1
        z = z + 1
        lazyc.mark_step()
        assert lazyc.metrics.snapshot()["pending_peak_operators"] == 2
    assert "2 operators (0.0 MiB)" in lazyc.metrics.report()
    torch.testing.assert_close(z, x + 2)


@torch.no_grad()
def test_metrics_of_memory() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x.cumsum(0) @ x)[0] + 1

    # Options that no other test has: a compiler of its own, and so pools that nobody has filled.
    compiled = torch.compile(function, backend="lazyc", options={"output_pool_mb": 77})
    x = torch.randn(512, 512)
    nbytes = 4 * 512 * 512
    lazyc.metrics.reset()
    compiled(x)
    first = lazyc.metrics.snapshot()
    assert first["output_bytes_allocated"] >= nbytes and first["output_bytes_recycled"] == 0
    assert first["arena_bytes_allocated"] >= nbytes and first["arena_bytes_recycled"] == 0
    lazyc.metrics.reset()
    compiled(x)
    second = lazyc.metrics.snapshot()
    assert second["output_bytes_recycled"] == first["output_bytes_allocated"]
    assert nbytes <= second["arena_bytes_recycled"] <= first["arena_bytes_allocated"]
    assert second["output_bytes_allocated"] == second["arena_bytes_allocated"] == 0
