"""Counters and timers over the event stream."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lazyc.forks import renew_in_child
from lazyc.report import events as E


@dataclass
class _Totals:
    graphs: int = 0
    kernels_made: int = 0
    kernels_reused: int = 0
    kernel_calls: int = 0
    kernels_tuned: int = 0
    tuning_seconds: float = 0.0
    seconds: Counter[str] = field(default_factory=Counter)  # by stage
    hits: Counter[str] = field(default_factory=Counter)  # by "level kind"
    misses: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    evicted: int = 0
    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (op, reason)
    # By line, what changed, and what avoids it.
    recompiles: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bugs: Counter[str] = field(default_factory=Counter)  # by stage
    packed: int = 0
    packed_bytes: int = 0
    never_computed: int = 0
    buckets: int = 0
    elements: int = 0  # in the sizes of calls that were rounded up, and in the rounded ones
    padded_elements: int = 0
    not_lazy: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (line, reason)


_BYTES = tuple(
    f"{memory}_bytes_{what}" for memory in ("output", "arena") for what in ("allocated", "recycled")
)
_PEAKS = ("pending_peak_operators", "pending_peak_bytes")


def _nothing() -> dict[str, int]:
    return {}


@dataclass(frozen=True)
class _Grown:
    """The numbers of Gauges that only grow, at one time or between two."""

    bytes_used: Mapping[str, int]
    flushes: Mapping[str, int]
    flushed: int

    def since(self, before: _Grown) -> _Grown:
        return _Grown(
            Counter(self.bytes_used) - Counter(before.bytes_used),
            Counter(self.flushes) - Counter(before.flushes),
            max(self.flushed - before.flushed, 0),
        )


@dataclass(frozen=True)
class Gauges:
    """Numbers that are kept where they change and read for a snapshot, because an event for each
    change would be too many. What is absent counts as 0.

    ``bytes_used``: the bytes of ``_BYTES``; ``flushes`` by cause; ``flushed`` operators: these only grow.
    ``peaks``: those of ``_PEAKS`` since ``restart_peaks``.
    """

    bytes_used: Callable[[], Mapping[str, int]] = _nothing
    flushes: Callable[[], Mapping[str, int]] = _nothing
    flushed: Callable[[], int] = int
    peaks: Callable[[], Mapping[str, int]] = _nothing
    restart_peaks: Callable[[], object] = _nothing

    def grown(self) -> _Grown:
        return _Grown(dict(self.bytes_used()), dict(self.flushes()), self.flushed())


class Metrics:
    """What happened since the last ``reset``. Subscribe ``metrics.listen`` to a stream.

    Compilation may run on several threads; all methods may be called from any.
    """

    def __init__(self, gauges: Gauges | None = None) -> None:
        self._lock = threading.RLock()  # an event may come from a destructor, while counting
        renew_in_child(self)
        self._totals = _Totals()
        self._gauges = Gauges() if gauges is None else gauges
        self._before = _Grown({}, {}, 0)

    def reset(self) -> None:
        grown = self._gauges.grown()
        self._gauges.restart_peaks()
        with self._lock:
            self._totals = _Totals()
            self._before = grown

    def listen(self, event: E.Event) -> None:
        with self._lock:
            _count(self._totals, event)

    def count_padding(self, elements: int, padded: int) -> None:
        """A call for so many ``elements`` computed ``padded`` ones."""
        with self._lock:
            self._totals.elements += elements
            self._totals.padded_elements += padded

    def snapshot(self) -> dict[str, Any]:
        """The counters as plain dicts and numbers (seconds, bytes); sorted, ready for JSON."""
        # Before the lock: a Recorder that is asked for its peak may be emitting an event just now.
        now, peaks = self._gauges.grown(), self._gauges.peaks()
        with self._lock:
            t, grown = self._totals, now.since(self._before)
            return {
                "graphs_compiled": t.graphs,
                "kernels_made": t.kernels_made,
                "kernels_reused": t.kernels_reused,
                "kernel_calls": t.kernel_calls,
                "kernels_tuned": t.kernels_tuned,
                "tuning_seconds": t.tuning_seconds,
                "compile_seconds": dict(t.seconds),
                "cache_hits": dict(sorted(t.hits.items())),
                "cache_misses": dict(sorted(t.misses.items())),
                "cache_rejected": t.rejected,
                "cache_evicted": t.evicted,
                "fallbacks": [
                    {"op": op, "reason": reason, "count": count}
                    for (op, reason), count in t.fallbacks.most_common()
                ],
                "recompiles": [
                    {"line": line, "changed": changed, "fix": fix, "count": count}
                    for (line, changed, fix), count in t.recompiles.most_common()
                ],
                "buckets": t.buckets,
                "padding_waste_percent": _waste(t),
                "compiler_bugs": dict(sorted(t.bugs.items())),
                "weights_packed": t.packed,
                "weights_packed_bytes": t.packed_bytes,
                "flushes": dict(Counter(grown.flushes).most_common()),
                "operators_flushed": grown.flushed,
                "operators_never_computed": t.never_computed,
                "regions_not_lazy": [
                    {"line": line, "reason": reason, "count": count}
                    for (line, reason), count in t.not_lazy.most_common()
                ],
                **{name: peaks.get(name, 0) for name in _PEAKS},
                **{name: grown.bytes_used.get(name, 0) for name in _BYTES},
            }

    def report(self) -> str:
        """The snapshot as a table for people."""
        return _render(self.snapshot())

    def prometheus(self) -> str:
        """The snapshot in Prometheus' text format. Raises ImportError without ``prometheus_client``."""
        from lazyc.report.prometheus import exposition

        return exposition(self.snapshot())


def _count(t: _Totals, event: E.Event) -> None:
    match event:
        case E.CompileFinished():
            t.graphs += 1
            t.kernels_made += event.kernels_made
            t.kernels_reused += event.kernels_reused
            t.kernel_calls += event.kernel_calls
            for stage, seconds in event.seconds:
                t.seconds[stage] += seconds  # type: ignore[assignment]  # a Counter of floats
        case E.KernelTuned():
            t.kernels_tuned += 1
            t.tuning_seconds += event.seconds
        case E.CacheHit():
            t.hits[f"{event.level} {event.kind}"] += 1
        case E.CacheMiss():
            t.misses[f"{event.level} {event.kind}"] += 1
        case E.CacheRejected():
            t.rejected += 1
        case E.CacheEvicted():
            t.evicted += event.entries
        case E.Fallback():
            t.fallbacks[event.op, event.reason] += 1
        case E.Recompiled():
            t.recompiles[event.line, event.changed, event.fix] += 1
        case E.Padded():
            t.buckets += 1
        case E.CompilerBugFound():
            t.bugs[event.stage] += 1
        case E.WeightsPacked():
            t.packed += event.count
            t.packed_bytes += event.bytes
        case E.NeverComputed():
            t.never_computed += event.operators
        case E.NotLazy():
            t.not_lazy[event.line, event.reason] += 1
        case _:
            pass  # events that are not counted


def _waste(t: _Totals) -> float:
    """Share of what was computed in sizes rounded up that was padding, in percent."""
    return 100 * (1 - t.elements / t.padded_elements) if t.padded_elements else 0.0


def _rows(s: dict[str, Any]) -> list[tuple[str, str]]:
    seconds: dict[str, float] = s["compile_seconds"]
    rows = [
        ("graphs compiled", str(s["graphs_compiled"])),
        ("kernels made / reused", f"{s['kernels_made']} / {s['kernels_reused']}"),
        ("kernels that the graphs call", str(s["kernel_calls"])),
        ("compile seconds", f"{sum(seconds.values()):.3f}"),
        *((f"  {stage}", f"{value:.3f}") for stage, value in seconds.items()),
    ]
    if s["kernels_tuned"]:
        rows.append(("kernels tuned", f"{s['kernels_tuned']} ({s['tuning_seconds']:.1f} s)"))
    for name in sorted(s["cache_hits"].keys() | s["cache_misses"].keys()):
        hits, misses = s["cache_hits"].get(name, 0), s["cache_misses"].get(name, 0)
        rows.append((f"cache hits / misses, {name}", f"{hits} / {misses}"))
    if s["cache_rejected"]:
        rows.append(("cache files rejected", str(s["cache_rejected"])))
    if s["cache_evicted"]:
        rows.append(("cache files evicted", str(s["cache_evicted"])))
    if s["weights_packed"]:
        mib = s["weights_packed_bytes"] / 2**20
        rows.append(("weights packed", f"{s['weights_packed']} ({mib:.1f} MiB)"))
    for memory, content in (("output", "big results"), ("arena", "temporaries")):
        made, again = (s[f"{memory}_bytes_{what}"] / 2**20 for what in ("allocated", "recycled"))
        if made or again:
            rows.append((f"{content}, MiB new / recycled", f"{made:.1f} / {again:.1f}"))
    rows.append(("fallbacks to eager", str(sum(f["count"] for f in s["fallbacks"]))))
    rows += [(f"  {f['op']}: {f['reason']}", str(f["count"])) for f in s["fallbacks"]]
    if s["recompiles"]:
        rows.append(("compiled again", str(sum(r["count"] for r in s["recompiles"]))))
        for r in s["recompiles"]:
            rows.append((f"  {r['line']} {r['changed']}".rstrip(), str(r["count"])))
            if r["fix"]:
                rows.append((f"    to avoid it: {r['fix']}", ""))
    if s["buckets"]:
        rows.append(("buckets compiled", str(s["buckets"])))
        rows.append(("padding, of what was computed", f"{s['padding_waste_percent']:.1f} %"))
    if s["flushes"]:
        rows.append(("flushes of lazy regions", str(sum(s["flushes"].values()))))
        rows += [(f"  {cause}", str(count)) for cause, count in s["flushes"].items()]
    if s["operators_never_computed"]:
        rows.append(("recorded, never computed", str(s["operators_never_computed"])))
    if s["pending_peak_operators"]:
        mib = s["pending_peak_bytes"] / 2**20
        rows.append(
            ("most that waited at once", f"{s['pending_peak_operators']} operators ({mib:.1f} MiB)")
        )
    for row in s["regions_not_lazy"]:
        rows.append((f"run at once, {row['line']}: {row['reason']}", str(row["count"])))
    rows += [(f"compiler bugs in {stage}", str(n)) for stage, n in s["compiler_bugs"].items()]
    return rows


def _render(snapshot: dict[str, Any]) -> str:
    # Loaded here: rich takes 50 ms to import, and most processes never print a report.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("lazyc", show_edge=False)
    table.add_column("", justify="right")
    for name, value in _rows(snapshot):
        table.add_row(Text(name), value)
    console = Console(width=100, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
