"""What passes and the schedule say that they decided, exactly; and that a program from the cache says it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lazyc.backend import EVENTS
from lazyc.ir import attrs as A
from lazyc.ir.graph import Graph
from lazyc.passes.manager import run_passes
from lazyc.passes.pipeline import pipeline
from lazyc.passes.schedule import schedule
from lazyc.report import events as E
from tests.passes.build import Make


def decided(graph: Graph, layout: bool = True) -> list[tuple[Any, ...]]:
    """(pass, what, why, bytes copied, kept and saved) of each decision."""
    program = schedule(run_passes(graph, pipeline(), verify=True)[-1].graph, layout=layout)
    return [
        (d.by, d.what, d.why, d.bytes_copied, d.bytes_kept, d.bytes_saved)
        for d in program.decisions
    ]


def test_operands_of_products() -> None:
    b = Make()
    x, y = b.input(4, 6, strides=(12, 2)), b.input(8, 6)
    w = b.input(8, 5, parameter=True)
    product = b.emit("matmul", b.emit("matmul", x, b.permute(y, (1, 0))), w)
    joined = b.reshape(b.permute(b.input(2, 5, 3), (1, 2, 0)), (5, 6))
    assert decided(b.outputs(product, b.emit("matmul", joined, b.input(6, 3)))) == [
        (
            "copy_matrix_operands", "operand f32[4, 6] with strides (12, 2) copied",
            "BLAS reads a matrix with rows or columns that are contiguous", 96, 0, 0,
        ),
        (
            "layout", "permute(1, 0) of f32[8, 6] moves nothing",
            "its readers index through it", 0, 0, 384,
        ),
        (
            "layout", "permute(1, 2, 0) of f32[2, 5, 3] moves nothing",
            "its readers index through it", 0, 0, 240,
        ),
        (
            "layout", "operand f32[5, 6] of a product gets memory of its own",
            "BLAS cannot read its view", 120, 0, 0,
        ),
        (
            "pack_weights", "weight f32[8, 5] packed once",
            "BLAS reads it in its own tiles, and it is the same at each call", 0, 160, 0,
        ),
    ]  # fmt: skip


def test_a_convolution_and_its_norm() -> None:
    b = Make()
    x, w = b.input(1, 32, 16, 16), b.input(48, 32, 3, 3, parameter=True)
    scale = b.input(1, 48, 1, 1, parameter=True)
    attrs = A.ConvolutionAttrs((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    y = b.emit("convolution", x, w, attrs=attrs)
    y = b.emit("mul", y, b.expand(scale, y.shape))
    first, second, *rest = decided(b.outputs(y))
    weight, result = 48 * 32 * 9 * 4, 48 * 16 * 16 * 4
    assert first == (
        "fold_norm", "mul of channels of f32[1, 48, 16, 16] folded into the weight",
        "both are the same at each call, and nothing else reads the convolution's result",
        0, weight, 2 * result,
    )  # fmt: skip
    assert second == (
        "lower_convolutions",
        "convolution f32[1, 32, 16, 16] by f32[48, 32, 3, 3], channels last: oneDNN",
        "its weight is reordered once", 0, weight, 0,
    )  # fmt: skip
    assert rest == [
        (
            "layout", "f32[1, 32, 16, 16] copied to strides (8192, 1, 512, 32)",
            "an eager call takes it so", 4 * 32 * 16 * 16, 0, 0,
        ),
        (
            "layout", "f32[1, 48, 16, 16] copied to strides (12288, 256, 16, 1)",
            "the caller takes it so, in memory that nothing else shares", result, 0, 0,
        ),
    ]  # fmt: skip


def test_orders_of_values() -> None:
    def graph() -> Graph:
        b = Make()
        x, y = b.input(4, 6), b.input(6, 8)
        turned = b.reshape(b.permute(b.emit("matmul", x, y), (1, 0)), (4, 8))
        return b.outputs(b.emit("matmul", b.input(3, 4), turned), b.emit("exp", x), strides=[None, (1, 4)])  # fmt: skip

    stored = {what: why for _, what, why, *_ in decided(graph()) if "stored" in what}
    assert stored == {
        "f32[4, 8] stored with strides (1, 4)": "its only reader permutes it so",
        "f32[4, 6] stored with strides (1, 4)": "the caller or an eager call takes it so",
    }
    stored = {what: why for _, what, why, *_ in decided(graph(), layout=False) if "stored" in what}
    assert list(stored) == ["f32[4, 6] stored with strides (1, 4)"]


@pytest.mark.parametrize("also", [False, True])
def test_a_product_reads_rows_and_columns_alike(also: bool) -> None:
    """So that what it reads the transpose of is stored in whole rows, unless something else wants it otherwise."""
    b = Make()
    turned = b.permute(b.emit("exp", b.input(2, 4, 6)), (0, 2, 1))
    outs = [b.emit("matmul", turned, b.input(2, 4, 3))]
    if also:
        outs.append(b.emit("neg", turned))
    told = [what for _, what, *_ in decided(b.outputs(*outs))]
    assert ("f32[2, 4, 6] stored with strides (24, 1, 4)" in told) is also


def test_a_program_from_the_cache_tells_its_decisions(tmp_path: Path) -> None:
    weight = torch.randn(8, 5)
    heard: list[E.Event] = []

    def run(**options: Any) -> list[E.Decided]:
        torch._dynamo.reset()
        heard.clear()
        module = torch.nn.Linear(5, 8, bias=False)
        module.weight.data = weight
        found = {"cache_dir": str(tmp_path), "gemm": "library", **options}
        with torch.no_grad():
            torch.compile(module, backend="lazyc", options=found)(torch.randn(4, 5))
        return [e for e in heard if isinstance(e, E.Decided)]

    stop = EVENTS.subscribe(heard.append)
    try:
        first = run()
        again = run(strict=True, debug_file="elsewhere")  # a compiler of its own, the same code
        hits = [e for e in heard if isinstance(e, E.CacheHit) and e.level == "disk"]
    finally:
        stop()
    assert [e.by for e in first] == ["layout", "pack_weights"] and hits
    assert [(e.by, e.what, e.bytes_kept) for e in again] == [
        (e.by, e.what, e.bytes_kept) for e in first
    ]


@pytest.mark.parametrize(("target", "kernel"), [("", "math"), ("triton-interpret", "flash")])
def test_a_program_from_the_cache_tells_its_attention(
    tmp_path: Path, target: str, kernel: str
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.mT, -1) @ x

    heard: list[E.Event] = []

    def run(**options: Any) -> list[E.AttentionChosen]:
        torch._dynamo.reset()
        heard.clear()
        found = {"cache_dir": str(tmp_path), "target": target, **options}
        torch.compile(model, backend="lazyc", options=found)(torch.randn(2, 20, 8))
        return [e for e in heard if isinstance(e, E.AttentionChosen)]

    stop = EVENTS.subscribe(heard.append)
    try:
        first = run()
        levels = []
        for options in ({}, {"strict": True, "debug_file": "elsewhere"}):
            assert run(**options) == first
            hits = [e for e in heard if isinstance(e, E.CacheHit) and e.kind == "programs"]
            levels += [e.level for e in hits]
    finally:
        stop()
    # Kernels of the interpreter do not go to disk.
    assert levels == (["memory"] if target else ["memory", "disk"])
    assert [e.kernel for e in first] == [kernel]
    assert "test_decisions.py" in first[0].line
