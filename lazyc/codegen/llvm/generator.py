"""The CPU's kernels, from text to loaded code."""

from __future__ import annotations

from collections.abc import Mapping

from lazyc.codegen.base import KernelCode, KernelRef, LoadedKernel, Ref
from lazyc.codegen.llvm.block_sparse import generate_blocks
from lazyc.codegen.llvm.compile import compile_text
from lazyc.codegen.llvm.kernel import generate
from lazyc.codegen.llvm.loader import Loader
from lazyc.codegen.llvm.sparse_24 import expanded_at_once, generate_24
from lazyc.codegen.llvm.tiled_product import generate_tiled, product_tile
from lazyc.codegen.product_costs import ProductCosts
from lazyc.codegen.target import Target
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelSource
from lazyc.ir.sparse import BLOCKS, SparseProduct, Sparsity
from lazyc.ir.tiled_product import Tile, TiledKernel
from lazyc.ir.types import DType


class LlvmGenerator:
    """A ``Generator`` for one CPU target. What it loads stays as long as it lives."""

    keeps_code = True
    sees_edits = True
    has_products = False
    suffix = "ll"

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loader = Loader(target)

    @property
    def product_costs(self) -> ProductCosts:
        return self._target.product_costs

    @property
    def key(self) -> str:
        return self._target.key()

    @property
    def sparse_products(self) -> frozenset[tuple[Sparsity, DType]]:
        blocks: set[tuple[Sparsity, DType]] = {(block, DType.F32) for block in BLOCKS}
        return expanded_at_once(self._target) | blocks

    @property
    def product_tile(self) -> Tile | None:
        return product_tile(self._target)

    @property
    def prefers_library(self) -> bool:
        return self._target.suits_mkl

    def generate(self, source: KernelSource, symbol: str) -> KernelCode:
        if isinstance(source, LoopNest):
            return generate(source, symbol, self._target)
        if isinstance(source, TiledKernel):
            return generate_tiled(source, symbol, self._target)
        assert isinstance(source, SparseProduct)
        if source.sparsity == "2:4":
            return generate_24(source, symbol, self._target)
        return generate_blocks(source, symbol, self._target)

    def compile(self, code: KernelCode) -> bytes:
        return compile_text(code.text, self._target)

    def load(self, objects: Mapping[Ref, bytes]) -> dict[str, LoadedKernel]:
        self._loader.add(list(objects.values()))
        return {ref.symbol: self._loaded(ref) for ref in objects}

    def _loaded(self, ref: Ref) -> LoadedKernel:
        assert isinstance(ref, KernelRef)
        return LoadedKernel(self._loader.address(ref.symbol), ref.items, ref.grain, ref.ordered)
