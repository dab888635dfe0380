"""The CPU's kernels, from text to loaded code."""

from __future__ import annotations

from collections.abc import Mapping

from lazyc.codegen.base import KernelCode, KernelRef, LoadedKernel, Ref
from lazyc.codegen.llvm.compile import compile_text
from lazyc.codegen.llvm.kernel import generate
from lazyc.codegen.llvm.loader import Loader
from lazyc.codegen.target import Target
from lazyc.ir.loops import LoopNest


class LlvmGenerator:
    """A ``Generator`` for one CPU target. What it loads stays as long as it lives."""

    keeps_code = True
    has_products = False
    suffix = "ll"

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loader = Loader(target)

    @property
    def key(self) -> str:
        return self._target.key()

    def generate(self, nest: LoopNest, symbol: str) -> KernelCode:
        return generate(nest, symbol, self._target)

    def compile(self, code: KernelCode) -> bytes:
        return compile_text(code.text, self._target)

    def load(self, objects: Mapping[Ref, bytes]) -> dict[str, LoadedKernel]:
        self._loader.add(list(objects.values()))
        return {ref.symbol: self._loaded(ref) for ref in objects}

    def _loaded(self, ref: Ref) -> LoadedKernel:
        assert isinstance(ref, KernelRef)
        return LoadedKernel(self._loader.address(ref.symbol), ref.items, ref.grain, ref.ordered)
