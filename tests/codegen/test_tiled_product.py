"""Kernels of matrix products in tiles, on each target that has them, against the product in f64."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import pytest
import torch

from lazyc.codegen.llvm import LlvmGenerator, Loader, compile_text
from lazyc.codegen.target import Target, available_targets, host_target
from lazyc.ir.tiled_product import LINE, Part, Tile, TiledKernel, tiled_kernels
from tests.codegen.harness import _FUNCTION

TARGETS = [t for t in available_targets() if t != "baseline"]
_ADDRESSES: dict[tuple[str, Tile], dict[str, int]] = {}
_LOADERS: list[Loader] = []
PAD = 3  # columns beyond those of c


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return host_target(request.param)


def tile_of(target: Target) -> Tile:
    tile = LlvmGenerator(target).product_tile
    assert tile is not None
    return tile


def addresses(target: Target) -> dict[str, int]:
    tile = tile_of(target)
    found = _ADDRESSES.get((target.name, tile))
    if found is None:
        loader = Loader(target)
        _LOADERS.append(loader)
        generator = LlvmGenerator(target)
        for kernel in tiled_kernels(tile):
            code = generator.generate(kernel, kernel.part.replace(" ", "_"))
            loader.add([compile_text(code.text, target)])
        found = {k.part: loader.address(k.part.replace(" ", "_")) for k in tiled_kernels(tile)}
        _ADDRESSES[target.name, tile] = found
    return found


def call(
    target: Target, part: Part, tensors: Sequence[torch.Tensor], sizes: Sequence[int], items: int
) -> None:
    """A kernel in three pieces."""
    pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
    words = (ctypes.c_int64 * len(sizes))(*sizes)
    function, error = _FUNCTION(addresses(target)[part]), ctypes.c_int64(0)
    for k in range(3):
        begin, end = items * k // 3, items * (k + 1) // 3
        function(pointers, words, begin, end, ctypes.byref(error))
    assert error.value == 0


def filled(nbytes: int) -> torch.Tensor:
    """Memory that nothing was written to, so to say."""
    return torch.full((nbytes // 4,), torch.nan)


def product(
    target: Target, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, adds: bool = False
) -> None:
    """``c = a @ b``, or ``c += a @ b``; c has PAD columns more, a and b any strides."""
    tile = tile_of(target)
    (m, k), n = a.shape, b.shape[1]
    packed_a, packed_b = filled(tile.packed_a_bytes(m, k)), filled(tile.packed_b_bytes(n, k))
    call(target, "pack a", (a, packed_a), (m, k, *a.stride()), tile.blocks(m))
    call(target, "pack b", (b, packed_b), (n, k, *b.stride()), tile.panels(n))
    assert not packed_b.isnan().any() or b.isnan().any()
    group = tile.group_of(m, n, 3)
    items = -(-tile.blocks(m) // group) * tile.panels(n)
    sizes = (m, n, k, c.stride(0), tile.step(k), group, int(adds))
    call(target, "multiply", (packed_a, packed_b, c), sizes, items)


def matrix(rows: int, columns: int, layout: str) -> torch.Tensor:
    """A matrix stored by rows, by columns, by rows further apart, or with gaps between its elements; what is
    not of it is nan."""
    if layout == "columns":
        return torch.randn(columns, rows).t()
    if layout == "rows":
        return torch.randn(rows, columns)
    wide = torch.full((rows, columns + 5), torch.nan)
    whole = wide[:, 2 : 2 + columns]
    if layout == "gaps":
        whole = torch.full((rows, 2, columns, 3), torch.nan)[:, 1, :, 1]
    return whole.copy_(torch.randn(rows, columns))


SHAPES = [
    (1, 1, 1), (1, 33, 16), (2, 32, 17), (6, 16, 15), (13, 47, 40), (14, 64, 64), (15, 31, 100),
    (43, 50, 1100), (300, 20, 24),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numerics(shape: tuple[int, int, int], target: Target) -> None:
    m, n, k = shape
    for first, second in itertools.product(("rows", "columns", "apart", "gaps"), repeat=2):
        a, b = matrix(m, k, first), matrix(k, n, second)
        c = torch.full((m, n + PAD), 7.0)
        product(target, a, b, c)
        exact = a.double() @ b.double()
        bound = 1e-6 * (a.abs().double() @ b.abs().double())
        assert ((c[:, :n] - exact).abs() <= bound).all(), (first, second)
        assert bool((c[:, n:] == 7).all())
        product(target, a, b, c, adds=True)
        assert ((c[:, :n] - 2 * exact).abs() <= 3 * bound).all(), (first, second)
        assert bool((c[:, n:] == 7).all())


def test_nan_and_inf_stay_in_their_rows_and_columns(target: Target) -> None:
    a, b, c = torch.randn(20, 21), torch.randn(21, 40), torch.zeros(20, 40)
    a[3, 20], b[20, 5] = torch.nan, torch.inf
    product(target, a, b, c)
    finite = torch.ones(20, 40, dtype=torch.bool)
    finite[3], finite[:, 5] = False, False
    assert c[3].isnan().all() and not c[:3, 5].isfinite().any()
    assert bool(c[finite].isfinite().all())


def test_work_is_dealt_out_evenly() -> None:
    tile = Tile(14, 32, 512, 18)
    assert tile.group_of(784, 128, 2) == 14  # 56 blocks: 4 groups of 14, and not 18 + 18 + 18 + 2
    assert tile.group_of(128, 768, 2) == 10
    assert tile.group_of(14, 32, 4) == 1
    for m, n, threads in itertools.product((1, 100, 5000), (1, 64, 1000), (1, 2, 7)):
        assert 1 <= tile.group_of(m, n, threads) <= tile.group
    assert tile.group_of(10**9, 10**9, 64) <= tile.group  # in no time


def test_parts_of_the_depth_are_whole_lines_of_about_one_size() -> None:
    tile = Tile(14, 32, 512, 18)
    assert [tile.step(k) for k in (1, 16, 512, 513, 768, 3072)] == [16, 16, 512, 272, 384, 512]
    assert all(tile.step(k) % LINE == 0 for k in range(1, 3000, 7))


def test_sums_stay_in_registers() -> None:
    """The loop of a whole tile reads and writes nothing but the factors."""
    from lazyc.codegen.llvm.compile import assembly

    for name in TARGETS:
        target = host_target(name)
        kernel = TiledKernel("multiply", tile_of(target))
        text = assembly(LlvmGenerator(target).generate(kernel, "multiply").text, target)
        rows = tile_of(target).rows
        body = text[text.index(f"tile_{rows}:") :]
        loops = body[: body.index("retq")].split("\n.L")
        inner = max(loops, key=lambda block: block.count("vfmadd"))
        assert inner.count("vfmadd") == 2 * rows
        assert "rsp" not in inner and "vmovups\t%" not in inner and "vmovaps\t%" not in inner
