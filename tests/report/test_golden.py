"""The exact text of every report."""

from __future__ import annotations

import pytest

from lazyc.explanation import EagerOperator, Explanation
from lazyc.report import events as E
from lazyc.report.metrics import Gauges, Metrics
from lazyc.report.text import format_event
from tests.report.samples import SAMPLES

KEY = "0123456789abcdef" * 4

TUNED = E.KernelTuned(
    "aten.add.Tensor model.py:3",
    (("1024x1, 4 warps", 2e-5), ("512x1, 2 warps", 1e-5)),
    ("2048x1, 8 warps",),
    3,
    "512x1, 2 warps",
    0.5,
)

# What the highest debug level prints.
LINES: list[tuple[E.Event, str]] = [
    (E.CompileStarted(1, 10, 2), "graph 1: 10 nodes, 2 inputs"),
    (
        E.CompileFinished(1, (("passes", 0.25), ("llvm", 0.5)), 3, 9, 1, 12),
        (
            "graph 1: compiled in 750.0 ms (passes 250.0, llvm 500.0); kernels made 3, reused 9; "
            "fallbacks 1"
        ),
    ),
    (E.PassFinished("fold_norm", 0.0012, 10, 4), "pass fold_norm: 1.2 ms, 10 -> 4 nodes"),
    (
        E.Decided(1, "layout", "permute(1, 0) of f32[4, 8] moves nothing", "its readers index"),
        "layout: permute(1, 0) of f32[4, 8] moves nothing: its readers index",
    ),
    (
        E.Decided(1, "padding", "k = 33 -> 40", "rows", "model.py:4", 512, 3 << 19, 2048, 2.5e-6),
        (
            "padding at model.py:4: k = 33 -> 40: rows (copies 512 B a call, keeps 1.5 MiB, saves "
            "2.0 KiB of traffic a call, estimated to save 2.5 us a call)"
        ),
    ),
    (
        E.Decided(1, "layout", "copied", "strides", bytes_copied=None),
        "layout: copied: strides (copies bytes that depend on sizes a call)",
    ),
    (E.CacheHit("disk", "kernels", KEY), "cache hit (disk): kernels 0123456789abcdef"),
    (E.CacheMiss("memory", "programs", KEY), "cache miss (memory): programs 0123456789abcdef"),
    (
        E.CacheMiss("disk", "programs", KEY, "input 0: f32[8] -> f32[9]"),
        "cache miss (disk): programs 0123456789abcdef: input 0: f32[8] -> f32[9]",
    ),
    (
        E.CacheRejected("captures", KEY, "checksum"),
        "cache file rejected: captures 0123456789abcdef: checksum",
    ),
    (E.CacheEvicted(2, 4096), "cache over its size limit: removed 2 files, 4096 bytes"),
    (E.CacheDisabled("read-only"), "disk cache off: read-only"),
    (
        E.KernelCompiled(KEY, 0.02, "aten.add.Tensor model.py:3"),
        "kernel 0123456789abcdef: 20.0 ms  aten.add.Tensor model.py:3",
    ),
    (E.KernelCompiled(KEY, 0.02), "kernel 0123456789abcdef: 20.0 ms"),
    (
        TUNED,
        (
            "tuned aten.add.Tensor model.py:3: 512x1, 2 warps: 2.00 times as fast (500 ms, 2 timed, "
            "1 dropped, 3 without time)\n  1024x1, 4 warps: 20.0 us\n  512x1, 2 warps: 10.0 us\n"
            "  2048x1, 8 warps: dropped"
        ),
    ),
    (
        E.KernelTuned("", (), (), 6, "1024x1, 4 warps", 0.0),
        "tuned: 1024x1, 4 warps: 1.00 times as fast (0 ms, 0 timed, 6 without time)",
    ),
    (
        E.Recompiled("model.py:9", "x: size of dim 0, 2 -> 3", "mark it dynamic", 2, 0.5),
        "recompile 2 model.py:9: x: size of dim 0, 2 -> 3 (500 ms)\n  to avoid it: mark it dynamic",
    ),
    (E.Recompiled("", "grad mode", "", 1, 0.5), "recompile 1: grad mode (500 ms)"),
    (
        E.Fallback("aten.sort.default", "no lowering", "model.py:7"),
        "eager: aten.sort.default at model.py:7: no lowering",
    ),
    (E.Fallback("graph", "a complex input"), "eager: graph: a complex input"),
    (
        E.Flushed("value_read", "print", "model.py:11", 3, 12, 1, True, 0.25),
        (
            "flush at model.py:11: value_read (print): 3 regions, 12 operators, 1 results, compiled "
            "(250.0 ms)"
        ),
    ),
    (
        E.Flushed("mark_step", "", "", 3, 12, 1, False, 0.0005),
        "flush: mark_step: 3 regions, 12 operators, 1 results (0.5 ms)",
    ),
    (E.NeverComputed("model.py:12", 5), "never computed: 5 operators recorded at model.py:12"),
    (E.NeverComputed("", 5), "never computed: 5 operators recorded"),
    (
        E.NotLazy("model.py:13", "it needs gradients"),
        "not lazy: the region at model.py:13 runs at once: it needs gradients",
    ),
    (E.NotLazy("", "it needs gradients"), "not lazy: the region runs at once: it needs gradients"),
    (E.Padded("s0 = 100 -> 128"), "bucket: s0 = 100 -> 128"),
    (
        E.AttentionChosen("flash", "64 x 64 scores are not stored", "model.py:14"),
        "attention at model.py:14: flash: 64 x 64 scores are not stored",
    ),
    (
        E.AttentionChosen("math", "the scores are read by add", ""),
        "attention: math: the scores are read by add",
    ),
    (
        E.RowTilesChosen(True, "64 of 2048 rows at a time", "aten.bmm.default model.py:14"),
        "rows from aten.bmm.default model.py:14: by blocks: 64 of 2048 rows at a time",
    ),
    (
        E.RowTilesChosen(False, "1.0 MiB stored: the caches hold them"),
        "rows: all at once: 1.0 MiB stored: the caches hold them",
    ),
    (
        E.CompilerBugFound("pass fuse", "matmul", "model.py:8", "IRError: boom"),
        "compiler bug in pass fuse: IRError: boom",
    ),
    (E.WeightsPacked(4, 3 << 19, True), "packed 4 weights, 1.5 MiB (a weight changed)"),
    (E.WeightsPacked(4, 3 << 19, False), "packed 4 weights, 1.5 MiB (first use)"),
    (
        E.SparseProduct(
            "2:4", ("1", "64", "32"), True, "reads 1.1 of 2.0 MiB", "aten.mm model.py:3"
        ),
        "2:4 product [1, 64, 32] of aten.mm model.py:3: compressed weight: reads 1.1 of 2.0 MiB",
    ),
    (
        E.SparseProduct("2:4", ("s0", "64", "32"), False, "its number of rows is not fixed"),
        "2:4 product [s0, 64, 32]: dense product: its number of rows is not fixed",
    ),
    (
        E.WeightNotSparse("2:4", (64, 32), "aten.mm model.py:3"),
        "weight [64, 32] of aten.mm model.py:3 is declared 2:4 and is not: dense product",
    ),
    (E.Artifact(1, "program.txt", "step\n"), "graph 1, program.txt:\nstep"),
]


@pytest.mark.parametrize(("event", "text"), LINES, ids=lambda x: type(x).__name__)
def test_debug_line(event: E.Event, text: str) -> None:
    assert format_event(event, 3) == text
    assert format_event(event, 0) == ""


def test_times_are_for_those_who_ask_for_more() -> None:
    more = format_event(TUNED, 2)
    assert format_event(TUNED, 1) == more.partition("\n")[0] and "20.0 us" in more


def test_every_event_has_a_golden_line() -> None:
    # By name: a dataclass with slots leaves the class that it replaced among the subclasses.
    assert {type(e).__name__ for e, _ in LINES} == {c.__name__ for c in E.Event.__subclasses__()}


def _metrics() -> Metrics:
    """Of each sample twice, and numbers of every other kind."""
    metrics = Metrics(
        Gauges(
            bytes_used=lambda: {
                "output_bytes_allocated": 3 << 20,
                "output_bytes_recycled": 5 << 19,
                "arena_bytes_allocated": 1 << 20,
                "arena_bytes_recycled": 3 << 20,
            },
            flushes=lambda: {"value_read": 2},
            flushed=lambda: 24,
            peaks=lambda: {"pending_peak_operators": 7, "pending_peak_bytes": 1 << 21},
        )
    )
    for event in (*SAMPLES, *SAMPLES):
        metrics.listen(event)
    metrics.count_padding(100, 128)
    return metrics


REPORT = """\
 lazyc                                        ┃
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━
 graphs compiled                              │                     2
 kernels made / reused                        │                6 / 18
 kernels that the graphs call                 │                    24
 compile seconds                              │                 1.500
   passes                                     │                 0.500
   codegen                                    │                 1.000
 kernels tuned                                │             2 (1.0 s)
 cache hits / misses, disk kernels            │                 2 / 0
 cache hits / misses, disk programs           │                 0 / 2
 cache hits / misses, memory programs         │                 2 / 0
 cache files rejected                         │                     2
 cache files evicted                          │                     4
 weights packed                               │           8 (2.0 MiB)
 big results, MiB new / recycled              │             3.0 / 2.5
 temporaries, MiB new / recycled              │             1.0 / 3.0
 fallbacks to eager                           │                     2
   aten.sort.default: no lowering             │                     2
 compiled again                               │                     2
   model.py:9 x: size of dim 0, 2 -> 3        │                     2
     to avoid it: mark it dynamic             │
 buckets compiled                             │                     2
 padding, of what was computed                │                21.9 %
 flushes of lazy regions                      │                     2
   value_read                                 │                     2
 recorded, never computed                     │                    10
 most that waited at once                     │ 7 operators (2.0 MiB)
 run at once, model.py:13: it needs gradients │                     2
 compiler bugs in fuse                        │                     2
"""


def test_metrics_report() -> None:
    assert _stripped(_metrics().report()) == REPORT


def test_an_empty_metrics_report() -> None:
    assert _stripped(Metrics().report()) == EMPTY_REPORT


def _stripped(table: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in table.splitlines())


EMPTY_REPORT = """\
 lazyc                        ┃
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━
 graphs compiled              │     0
 kernels made / reused        │ 0 / 0
 kernels that the graphs call │     0
 compile seconds              │ 0.000
 fallbacks to eager           │     0
"""

PROMETHEUS = """\
# HELP lazyc_graphs_compiled_total Graphs compiled.
# TYPE lazyc_graphs_compiled_total counter
lazyc_graphs_compiled_total 2.0
# HELP lazyc_kernels_made_total Kernels generated and compiled.
# TYPE lazyc_kernels_made_total counter
lazyc_kernels_made_total 6.0
# HELP lazyc_kernels_reused_total Kernels that were there already.
# TYPE lazyc_kernels_reused_total counter
lazyc_kernels_reused_total 18.0
# HELP lazyc_kernel_calls_total Kernels that one run of each compiled graph calls.
# TYPE lazyc_kernel_calls_total counter
lazyc_kernel_calls_total 24.0
# HELP lazyc_kernels_tuned_total Kernels timed by several tiles or blocks.
# TYPE lazyc_kernels_tuned_total counter
lazyc_kernels_tuned_total 2.0
# HELP lazyc_tuning_seconds_total Seconds that timing kernels took.
# TYPE lazyc_tuning_seconds_total counter
lazyc_tuning_seconds_total 1.0
# HELP lazyc_cache_rejected_total Files of the disk cache that did not verify.
# TYPE lazyc_cache_rejected_total counter
lazyc_cache_rejected_total 2.0
# HELP lazyc_cache_evicted_total Files removed to keep the disk cache within its limit.
# TYPE lazyc_cache_evicted_total counter
lazyc_cache_evicted_total 4.0
# HELP lazyc_weights_packed_total Weights repacked for the matrix product.
# TYPE lazyc_weights_packed_total counter
lazyc_weights_packed_total 8.0
# HELP lazyc_weights_packed_bytes_total Bytes of repacked weights.
# TYPE lazyc_weights_packed_bytes_total counter
lazyc_weights_packed_bytes_total 2.097152e+06
# HELP lazyc_buckets_total Programs compiled for sizes rounded up.
# TYPE lazyc_buckets_total counter
lazyc_buckets_total 2.0
# HELP lazyc_operators_flushed_total Recorded operators that ran.
# TYPE lazyc_operators_flushed_total counter
lazyc_operators_flushed_total 24.0
# HELP lazyc_operators_never_computed_total Recorded operators whose results nobody asked for.
# TYPE lazyc_operators_never_computed_total counter
lazyc_operators_never_computed_total 10.0
# HELP lazyc_output_bytes_allocated_total Bytes of big results in fresh memory.
# TYPE lazyc_output_bytes_allocated_total counter
lazyc_output_bytes_allocated_total 3.145728e+06
# HELP lazyc_output_bytes_recycled_total Bytes of big results in memory that was used before.
# TYPE lazyc_output_bytes_recycled_total counter
lazyc_output_bytes_recycled_total 2.62144e+06
# HELP lazyc_arena_bytes_allocated_total Bytes of fresh memory for temporaries.
# TYPE lazyc_arena_bytes_allocated_total counter
lazyc_arena_bytes_allocated_total 1.048576e+06
# HELP lazyc_arena_bytes_recycled_total Bytes of temporaries in memory that was used before.
# TYPE lazyc_arena_bytes_recycled_total counter
lazyc_arena_bytes_recycled_total 3.145728e+06
# HELP lazyc_pending_peak_operators Most recorded operators that waited at once.
# TYPE lazyc_pending_peak_operators gauge
lazyc_pending_peak_operators 7.0
# HELP lazyc_pending_peak_bytes Most bytes of results that waited at once.
# TYPE lazyc_pending_peak_bytes gauge
lazyc_pending_peak_bytes 2.097152e+06
# HELP lazyc_padding_waste_percent Padding in what programs for sizes rounded up computed, in percent.
# TYPE lazyc_padding_waste_percent gauge
lazyc_padding_waste_percent 21.875
# HELP lazyc_compile_seconds_total Seconds of compilation.
# TYPE lazyc_compile_seconds_total counter
lazyc_compile_seconds_total{stage="passes"} 0.5
lazyc_compile_seconds_total{stage="codegen"} 1.0
# HELP lazyc_flushes_total Runs of recorded work.
# TYPE lazyc_flushes_total counter
lazyc_flushes_total{cause="value_read"} 2.0
# HELP lazyc_compiler_bugs_total Bugs inside lazyc; the graph ran in eager.
# TYPE lazyc_compiler_bugs_total counter
lazyc_compiler_bugs_total{stage="fuse"} 2.0
# HELP lazyc_cache_hits_total Cache hits.
# TYPE lazyc_cache_hits_total counter
lazyc_cache_hits_total{kind="kernels",level="disk"} 2.0
lazyc_cache_hits_total{kind="programs",level="memory"} 2.0
# HELP lazyc_cache_misses_total Cache misses.
# TYPE lazyc_cache_misses_total counter
lazyc_cache_misses_total{kind="programs",level="disk"} 2.0
# HELP lazyc_fallbacks_total Operators left to eager.
# TYPE lazyc_fallbacks_total counter
lazyc_fallbacks_total{op="aten.sort.default",reason="no lowering"} 2.0
# HELP lazyc_recompiles_total Functions compiled again.
# TYPE lazyc_recompiles_total counter
lazyc_recompiles_total{changed="x: size of dim 0, 2 -> 3",line="model.py:9"} 2.0
# HELP lazyc_regions_not_lazy_total Regions that run when they are called.
# TYPE lazyc_regions_not_lazy_total counter
lazyc_regions_not_lazy_total{line="model.py:13",reason="it needs gradients"} 2.0
"""


def test_prometheus_text() -> None:
    assert _metrics().prometheus() == PROMETHEUS


EXPLANATION = Explanation(
    graphs=2,
    breaks=(("call to print", "model.py:5"),),
    flushes=(E.Flushed("mark_step", "", "model.py:20", 2, 6, 1, False, 0.001),),
    not_lazy=(E.NotLazy("model.py:13", "it needs gradients"),),
    choices=(
        E.AttentionChosen("flash", "64 x 64 scores are not stored", "model.py:14"),
        *(E.RowTilesChosen(True, "64 of 2048 rows at a time", "aten.bmm model.py:15"),) * 2,
        E.SparseProduct("2:4", ("1", "8", "8"), True, "fewer bytes", "aten.mm model.py:16"),
        E.WeightNotSparse("2:4", (8, 8), "aten.mm model.py:17"),
    ),
    eager=(
        EagerOperator("aten.sort.default", "no lowering", ("model.py:7", "model.py:9"), 2, 0.25),
        EagerOperator("graph", "a complex input", (), 0, 0.0),
    ),
    kernels_made=2,
    kernels_reused=1,
    kernel_calls=3,
    products=1,
    bytes_moved=3 << 19,
    decisions=(
        E.Decided(1, "layout", "copied", "strides", "model.py:4", 512),
        E.Decided(2, "layout", "copied", "strides", "model.py:6", 512),
        E.Decided(2, "layout", "stored", "strides"),
    ),
    compile_seconds={"passes": 0.012, "llvm": 0.2},
    first_call=1.5,
    second_call=0.00125,
)

EXPLAINED = """\
2 graphs, 1 graph breaks; 3 kernel calls of 2 kernels made now and 1 reused; 1 matrix products; 1.5 MiB read or written
first call 1500 ms (passes 12, llvm 200); second call 1.25 ms
graph break at model.py:5: call to print
not lazy: the region at model.py:13 runs at once: it needs gradients
flush at model.py:20: mark_step: 2 regions, 6 operators, 1 results (1.0 ms)
attention at model.py:14: flash: 64 x 64 scores are not stored
rows from aten.bmm model.py:15: by blocks: 64 of 2048 rows at a time [2 times]
2:4 product [1, 8, 8] of aten.mm model.py:16: compressed weight: fewer bytes
weight [8, 8] of aten.mm model.py:17 is declared 2:4 and is not: dense product
layout: copied: strides (copies 512 B a call) [2 times]
layout: stored: strides
eager: aten.sort.default at model.py:7, model.py:9: no lowering (2 calls, 0.25 ms)
eager: graph: a complex input"""


def test_explanation() -> None:
    assert str(EXPLANATION) == EXPLAINED


def test_every_metric_is_in_the_prometheus_text() -> None:
    assert all(f"# HELP lazyc_{name}" in PROMETHEUS for name in Metrics().snapshot())
