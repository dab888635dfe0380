"""Metrics in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = {
    "graphs_compiled": "Graphs compiled.",
    "kernels_made": "Kernels generated and compiled.",
    "kernels_reused": "Kernels that were there already.",
    "kernel_calls": "Kernels that one run of each compiled graph calls.",
    "kernels_tuned": "Kernels timed by several tiles or blocks.",
    "tuning_seconds": "Seconds that timing kernels took.",
    "cache_rejected": "Files of the disk cache that did not verify.",
    "cache_evicted": "Files removed to keep the disk cache within its limit.",
    "weights_packed": "Weights repacked for the matrix product.",
    "weights_packed_bytes": "Bytes of repacked weights.",
    "buckets": "Programs compiled for sizes rounded up.",
    "operators_flushed": "Recorded operators that ran.",
    "operators_never_computed": "Recorded operators whose results nobody asked for.",
    "output_bytes_allocated": "Bytes of big results in fresh memory.",
    "output_bytes_recycled": "Bytes of big results in memory that was used before.",
    "arena_bytes_allocated": "Bytes of fresh memory for temporaries.",
    "arena_bytes_recycled": "Bytes of temporaries in memory that was used before.",
}
_GAUGES = {
    "pending_peak_operators": "Most recorded operators that waited at once.",
    "pending_peak_bytes": "Most bytes of results that waited at once.",
    "padding_waste_percent": "Padding in what programs for sizes rounded up computed, in percent.",
}
_BY_LABEL = {
    "compile_seconds": ("stage", "Seconds of compilation."),
    "flushes": ("cause", "Runs of recorded work."),
    "compiler_bugs": ("stage", "Bugs inside lazyc; the graph ran in eager."),
}


def exposition(snapshot: Mapping[str, Any]) -> str:
    """A snapshot (``Metrics.snapshot``) as text. Raises ImportError without ``prometheus_client``."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise ImportError("metrics.prometheus() needs `pip install prometheus_client`") from error

    class Snapshot(Collector):
        def collect(self) -> Iterator[Any]:
            return _families(snapshot)

    registry = CollectorRegistry()
    registry.register(Snapshot())
    return generate_latest(registry).decode()


def _families(snapshot: Mapping[str, Any]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, text in _PLAIN.items():
        yield CounterMetricFamily(f"lazyc_{name}", text, value=snapshot[name])
    for name, text in _GAUGES.items():
        yield GaugeMetricFamily(f"lazyc_{name}", text, value=snapshot[name])
    for name, (label, text) in _BY_LABEL.items():
        family = CounterMetricFamily(f"lazyc_{name}", text, labels=[label])
        for value, count in snapshot[name].items():
            family.add_metric([value], count)
        yield family
    for name in ("cache_hits", "cache_misses"):
        what = name.removeprefix("cache_")
        family = CounterMetricFamily(f"lazyc_{name}", f"Cache {what}.", labels=["level", "kind"])
        for key, count in snapshot[name].items():
            family.add_metric(key.split(" "), count)
        yield family
    for name, text, labels in (
        ("fallbacks", "Operators left to eager.", ["op", "reason"]),
        ("recompiles", "Functions compiled again.", ["line", "changed"]),
        ("regions_not_lazy", "Regions that run when they are called.", ["line", "reason"]),
    ):
        family = CounterMetricFamily(f"lazyc_{name}", text, labels=labels)
        for row in snapshot[name]:
            family.add_metric([row[label] for label in labels], row["count"])
        yield family
