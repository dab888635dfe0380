"""An event of each class."""

from __future__ import annotations

from lazyc.report import events as E

SAMPLES: list[E.Event] = [
    E.CompileStarted(1, 10, 2),
    E.CompileFinished(1, (("passes", 0.25), ("codegen", 0.5)), 3, 9, 1, 12),
    E.PassFinished("fuse", 0.01, 10, 4),
    E.Decided(
        1, "padding", "k = 33 -> 40", "rows are read whole", "model.py:4", 512, 0, None, 2e-6
    ),
    E.CacheHit("memory", "programs", "ab" * 32),
    E.CacheHit("disk", "kernels", "ab" * 32),
    E.CacheMiss("disk", "programs", "cd" * 32, "shape of input 0"),
    E.CacheRejected("programs", "cd" * 32, "checksum"),
    E.CacheEvicted(2, 4096),
    E.CacheDisabled("read-only"),
    E.KernelCompiled("ef" * 32, 0.02, "add model.py:3"),
    E.KernelTuned(
        "add model.py:3",
        (("1024x1, 4 warps", 2e-5), ("512x1, 2 warps", 1e-5)),
        ("2048x1, 8 warps",),
        1,
        "512x1, 2 warps",
        0.5,
    ),
    E.Recompiled("model.py:9", "x: size of dim 0, 2 -> 3", "mark it dynamic", 1, 0.5),
    E.Fallback("aten.sort.default", "no lowering", "model.py:7"),
    E.Flushed("value_read", "print", "model.py:11", 3, 12, 1, True, 0.25),
    E.NeverComputed("model.py:12", 5),
    E.NotLazy("model.py:13", "it needs gradients"),
    E.Padded("s0 = 100 -> 128"),
    E.AttentionChosen("flash", "64 x 64 scores are not stored", "model.py:14"),
    E.RowTilesChosen(True, "64 of 2048 rows at a time", "aten.bmm.default model.py:14"),
    E.CompilerBugFound("fuse", "matmul", "model.py:8", "IRError: boom"),
    E.WeightsPacked(4, 1 << 20, True),
    E.SparseProduct("2:4", ("1", "64", "32"), True, "reads 1.1 of 2.0 MiB", "aten.mm model.py:3"),
    E.WeightNotSparse("2:4", (64, 32), "aten.mm model.py:3"),
    E.Artifact(1, "program.txt", "step"),
]
