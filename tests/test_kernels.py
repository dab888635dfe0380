"""Seconds by stage of a compilation."""

from __future__ import annotations

import time

import pytest

from lazyc.kernels import Timings
from lazyc.report.spans import Spans


def test_a_stage_within_a_stage_is_charged_once() -> None:
    spans = Spans()
    timings = Timings(spans)
    start = time.perf_counter()
    with spans.record() as recording, timings.stage("kernels"):
        for _ in range(2):
            with timings.stage("generate"):
                time.sleep(0.02)
            with timings.stage("llvm"), timings.stage("load"):
                time.sleep(0.02)
    whole = time.perf_counter() - start
    seconds = timings.seconds
    assert sum(seconds.values()) <= whole
    assert seconds["generate"] >= 0.04 and seconds["load"] >= 0.04
    outer = recording.spans[-1]
    assert sum(seconds.values()) == pytest.approx((outer.end - outer.start) / 1e9, rel=0.05)
    assert [s.name for s in recording.spans] == ["generate", "load", "llvm"] * 2 + ["kernels"]


def test_a_stage_that_fails_is_charged() -> None:
    timings = Timings(Spans())
    with pytest.raises(ValueError, match="x"), timings.stage("passes"):
        raise ValueError("x")
    assert timings.seconds["passes"] > 0
