"""Prefetches and stores past the cache: which memory gets them, and that results stay the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lazyc.codegen.llvm import assembly, generate
from lazyc.codegen.target import Target
from lazyc.ir.loops import LoopNest
from tests.codegen.harness import pointwise, run
from tests.codegen.test_reductions import softmax_nest

_SIZE = 1 << 14


def small_cache(target: Target) -> Target:
    """A machine with a cache so small that all tensors below are large."""
    return replace(target, cache_bytes=(1 << 10, 1 << 11))


def add_nest(size: int) -> LoopNest:
    return pointwise("add", [torch.float32] * 2, torch.float32, size)


def at_offset(size: int, offset: int) -> torch.Tensor:
    """Memory ``offset`` elements behind the start of a cache line."""
    tensor = torch.full((size + 64,), 777.0)
    start = -tensor.data_ptr() % 64 // 4 + offset
    return tensor[start : start + size]


def test_only_large_buffers_are_streamed(target: Target) -> None:
    if not target.is_x86:
        return
    small, large = (generate(add_nest(_SIZE), "k", t).text for t in (target, small_cache(target)))
    assert "prefetch" not in small and "!nontemporal" not in small
    assert "prefetch" in large and "!nontemporal" in large
    assert large.count("sfence()") == 1 + large.count("declare void @llvm.x86.sse.sfence()")


def test_instructions(target: Target) -> None:
    if not target.is_x86:
        return
    text = assembly(generate(add_nest(_SIZE), "k", small_cache(target)).text, target)
    assert "movntps" in text or "movntdq" in text
    assert "sfence" in text and "prefetch" in text


@pytest.mark.parametrize("size", [_SIZE, _SIZE + 5])
@pytest.mark.parametrize("offset", [0, 1, 8, 15])
def test_every_alignment_gives_the_same(target: Target, size: int, offset: int) -> None:
    x, y, out = torch.randn(size), torch.randn(size), at_offset(size, offset)
    assert run(add_nest(size), small_cache(target), x, y, out, pieces=3) == 0
    assert torch.equal(out, x + y)


@pytest.mark.parametrize("columns", [1024, 1000, 77])
@pytest.mark.parametrize("vectorize", ["inner", "outer"])
def test_rows(target: Target, columns: int, vectorize: str) -> None:
    """The prefetches of the next row go beyond the last one, where nothing may fault."""
    nest = softmax_nest(70, columns, vectorize)
    x = torch.randn(70, columns)
    for offset in (0, 3):
        out = at_offset(70 * columns, offset).view(70, columns)
        assert run(nest, small_cache(target), x, out, pieces=4) == 0
        torch.testing.assert_close(out, torch.softmax(x, 1))


def test_lines_that_are_stored_in_part_stay_in_the_cache(target: Target) -> None:
    rows = softmax_nest(70, 1000 + 7, "inner")
    assert "!nontemporal" not in generate(rows, "k", small_cache(target)).text
