from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from lazyc.config import Config
from lazyc.report import events as E
from lazyc.report.events import EventStream, as_json
from lazyc.report.metrics import Gauges, Metrics
from lazyc.report.text import format_event, printer
from tests.report.samples import SAMPLES


def test_samples_cover_every_event() -> None:
    # By name: a dataclass with slots leaves the class that it replaced among the subclasses.
    assert {type(e).__name__ for e in SAMPLES} == {c.__name__ for c in E.Event.__subclasses__()}


def test_stream_delivers_in_order_and_unsubscribes() -> None:
    stream, seen = EventStream(), []
    assert not stream.listening
    stream.emit(SAMPLES[0])
    stop_a = stream.subscribe(lambda e: seen.append(("a", e)))
    stop_b = stream.subscribe(lambda e: seen.append(("b", e)))
    assert stream.listening
    stream.emit(SAMPLES[0])
    stop_a()
    stop_a()
    stream.emit(SAMPLES[1])
    stop_b()
    assert not stream.listening
    stream.emit(SAMPLES[2])
    assert seen == [("a", SAMPLES[0]), ("b", SAMPLES[0]), ("b", SAMPLES[1])]


@pytest.mark.parametrize("event", SAMPLES, ids=lambda e: type(e).__name__)
def test_event_is_frozen_and_json(event: E.Event) -> None:
    decoded = json.loads(as_json(event))
    assert decoded.pop("event") == type(event).__name__
    assert set(decoded) == {f.name for f in dataclasses.fields(event)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(event)[0].name, None)


def test_metrics_count_what_was_emitted() -> None:
    flushes, flushed = {"value_read": 3, "fork": 1}, [20]
    gauges = Gauges(flushes=lambda: flushes, flushed=lambda: flushed[0])
    stream, metrics = EventStream(), Metrics(gauges)
    metrics.reset()
    flushes["value_read"] += 1
    flushed[0] += 12
    stream.subscribe(metrics.listen)
    for event in [*SAMPLES, SAMPLES[1]]:
        stream.emit(event)
    metrics.count_padding(100, 128)
    metrics.count_padding(60, 72)
    snapshot = metrics.snapshot()
    assert snapshot == {
        "graphs_compiled": 2,
        "kernels_made": 6,
        "kernels_reused": 18,
        "kernel_calls": 24,
        "kernels_tuned": 1,
        "tuning_seconds": 0.5,
        "compile_seconds": {"passes": 0.5, "codegen": 1.0},
        "cache_hits": {"disk kernels": 1, "memory programs": 1},
        "cache_misses": {"disk programs": 1},
        "cache_rejected": 1,
        "cache_evicted": 2,
        "fallbacks": [{"op": "aten.sort.default", "reason": "no lowering", "count": 1}],
        "recompiles": [
            {
                "line": "model.py:9",
                "changed": "x: size of dim 0, 2 -> 3",
                "fix": "mark it dynamic",
                "count": 1,
            }
        ],
        "buckets": 1,
        "padding_waste_percent": pytest.approx(20.0),
        "compiler_bugs": {"fuse": 1},
        "weights_packed": 4,
        "weights_packed_bytes": 1 << 20,
        "flushes": {"value_read": 1},
        "operators_flushed": 12,
        "operators_never_computed": 5,
        "regions_not_lazy": [{"line": "model.py:13", "reason": "it needs gradients", "count": 1}],
        "pending_peak_operators": 0,
        "pending_peak_bytes": 0,
        "output_bytes_allocated": 0,
        "output_bytes_recycled": 0,
        "arena_bytes_allocated": 0,
        "arena_bytes_recycled": 0,
    }
    json.dumps(snapshot)
    metrics.reset()
    assert metrics.snapshot()["graphs_compiled"] == 0
    assert snapshot["graphs_compiled"] == 2, "a snapshot does not change afterwards"


def test_metrics_count_from_many_threads() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(500):
            metrics.listen(E.CacheHit("memory", "programs", "k"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert metrics.snapshot()["cache_hits"] == {"memory programs": 2000}


def test_debug_levels() -> None:
    shown = {level: [e for e in SAMPLES if format_event(e, level)] for level in range(4)}
    assert shown[0] == []
    assert [type(e).__name__ for e in shown[1]] == [
        "CompileFinished", "CacheRejected", "CacheDisabled", "KernelTuned", "Recompiled", "Fallback",
        "Flushed", "NotLazy", "Padded", "AttentionChosen", "RowTilesChosen", "CompilerBugFound",
        "SparseProduct", "WeightNotSparse",
    ]  # fmt: skip
    assert shown[2] == [e for e in SAMPLES if not isinstance(e, E.Artifact)]
    assert shown[3] == SAMPLES


def test_a_miss_is_told_where_it_means_a_compilation() -> None:
    last = E.CacheMiss("disk", "programs", "ab" * 32, "input 0: f32[8] -> f32[9]", compiles=True)
    assert format_event(last, 1).startswith("cache miss (disk): programs abab")
    assert format_event(dataclasses.replace(last, compiles=False), 1) == ""


def test_printer_writes_to_stderr_or_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printer(Config(debug=1))(E.CacheDisabled("read-only"))
    assert capsys.readouterr().err == "[lazyc] disk cache off: read-only\n"
    path = tmp_path / "log"
    listen = printer(Config(debug=2, debug_file=str(path)))
    for event in SAMPLES:
        listen(event)
    lines = path.read_text().splitlines()
    printed = [line for e in SAMPLES for line in format_event(e, 2).splitlines()]
    assert len(lines) == len(printed) and all(line.startswith("[lazyc] ") for line in lines)


def test_printer_survives_an_unwritable_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listen = printer(Config(debug=1, debug_file=str(tmp_path / "missing" / "log")))
    listen(E.CacheDisabled("a"))
    listen(E.CacheDisabled("b"))
    assert capsys.readouterr().err.count("cannot write") == 1
