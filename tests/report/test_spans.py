"""Spans, recordings of them, and their file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from lazyc.report.chrome import TraceFile, trace_events
from lazyc.report.spans import FinishedSpan, Recording, Spans


def names(recording: Recording) -> list[str]:
    return [span.name for span in recording.spans]


def test_nobody_looks() -> None:
    spans = Spans()
    assert not spans.on
    assert spans.span("user", "a") is spans.span("user", "b"), "no object is made"
    with spans.span("user", "a") as span:
        span.note(more=1)


def test_a_recording_has_the_spans_within_it() -> None:
    spans = Spans()
    with spans.record() as first:
        assert spans.on
        before = spans.span("user", "before second")
        before.__enter__()
        with spans.record() as second:
            with spans.span("compile", "outer", size=1) as outer:
                with spans.span("kernel", "inner"):
                    pass
                outer.note(done=True)
            before.__exit__(None)
            after = spans.span("user", "after second")
            after.__enter__()
        after.__exit__(None)
    assert names(second) == ["inner", "outer"]
    assert names(first) == ["inner", "outer", "before second", "after second"]
    inner, outer = second.spans
    assert outer.start <= inner.start <= inner.end <= outer.end
    assert (outer.category, outer.args) == ("compile", {"size": 1, "done": True})
    assert outer.thread == threading.get_native_id()
    assert not spans.on


def test_an_exception_is_noted_and_passed_on() -> None:
    spans = Spans()
    with spans.record() as recording, pytest.raises(ValueError, match="x"):  # noqa: SIM117
        with spans.span("user", "a"):
            raise ValueError("x")
    assert recording.spans[0].args == {"error": "ValueError"}


def test_recordings_of_two_threads_each_have_all_spans_of_their_time() -> None:
    spans = Spans()
    found: list[Recording] = []
    barrier = threading.Barrier(2)

    def work(name: str) -> None:
        with spans.record() as recording:
            barrier.wait()
            with spans.span("user", name):
                pass
            barrier.wait()
        found.append(recording)

    threads = [threading.Thread(target=work, args=(n,), name=f"thread {n}") for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for recording in found:
        assert sorted(names(recording)) == ["a", "b"]
        assert sorted(recording.threads.values()) == ["thread a", "thread b"]
        assert len({span.thread for span in recording.spans}) == 2
    assert spans.recordings == ()


def test_a_child_process_records_nothing() -> None:
    spans = Spans()
    with spans.record():
        child = os.fork()
        if child == 0:
            os._exit(1 if spans.on or spans.recordings else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert spans.on


def recording_of(*spans: FinishedSpan) -> Recording:
    recording = Recording()
    recording.start, recording.process, recording.threads = 1000, 7, {8: "MainThread"}
    recording.spans = list(spans)
    return recording


def test_trace_events() -> None:
    inner = FinishedSpan("kernel", "add", 4000, 5500, 8, {"bytes": 12})
    outer = FinishedSpan("program", "graph 0", 4000, 9000, 8, {})
    assert trace_events(recording_of(inner, outer)) == [
        {"ph": "M", "name": "process_name", "pid": 7, "tid": 0,
         "args": {"name": "lazyc, process 7"}},
        {"ph": "M", "name": "thread_name", "pid": 7, "tid": 8, "args": {"name": "MainThread"}},
        {"ph": "X", "name": "graph 0", "cat": "program", "ts": 3.0, "dur": 5.0, "pid": 7, "tid": 8,
         "args": {}},
        {"ph": "X", "name": "add", "cat": "kernel", "ts": 3.0, "dur": 1.5, "pid": 7, "tid": 8,
         "args": {"bytes": 12}},
    ]  # fmt: skip


def test_the_file_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("old")
    file = TraceFile(path)
    assert path.read_text() == "old"
    file.write(recording_of(FinishedSpan("user", "a", 1, 2, 8, {"what": Path("x")})))
    assert json.loads(path.read_text())["traceEvents"][2]["args"] == {"what": "x"}
    assert list(tmp_path.iterdir()) == [path]

    class Broken:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    before = path.read_text()
    with pytest.raises(KeyboardInterrupt):
        TraceFile(path).write(recording_of(FinishedSpan("user", "a", 1, 2, 8, {"x": Broken()})))
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    TraceFile(link).write(recording_of())
    assert link.is_symlink() and "traceEvents" in json.loads(target.read_text())


@pytest.mark.parametrize("name", ["missing/trace.json", "folder", "pipe", "file/trace.json"])
def test_what_cannot_be_written_is_an_error_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"folder|pipe|trace\.json") as caught:
        TraceFile(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name) and caught.value.strerror
    assert sorted(tmp_path.iterdir()) == before
