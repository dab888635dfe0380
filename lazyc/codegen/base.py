"""What every code generator hands over: the source of one kernel, how to split its work, loaded code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lazyc.errors import LazycError
from lazyc.ir.loops import LoopNest
from lazyc.ir.types import Dim


class CodegenError(LazycError):
    """A code generator met something that it has no code for; the message names it."""


@dataclass(frozen=True, slots=True)
class KernelRef:
    """What a Program needs to know of a kernel, without its code.

    ``items``, an expression over the nest's symbols, is into how many work items the kernel is cut.
    They are independent: they may run in any order and on any thread. How the outer axes are cut into
    items is the generator's affair. ``grain`` is the least number of items worth a thread of its own, by
    a cost estimate.
    """

    symbol: str
    items: Dim
    grain: int


@dataclass(frozen=True, slots=True)
class KernelCode:
    """The source text of one kernel.

    On the CPU, the compiled kernel is a C function
    ``void symbol(void** buffers, int64_t* sizes, int64_t begin, int64_t end, int64_t* error)``:

    * it runs the work items ``begin <= item < end``;
    * ``buffers`` holds one address for each param of the nest that is not scratch, in order;
    * ``sizes`` holds the values of the nest's symbols, in order;
    * ``error`` is OR-ed (atomically) with the ``ERROR_*`` bits of ``ir.loops``.
    """

    ref: KernelRef
    text: str


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """Compiled code in this process: its address, and how its work splits."""

    address: int
    items: Dim
    grain: int


class Generator(Protocol):
    """Makes the kernels of one target: text, object code, loaded code.

    ``key`` is everything that the code depends on, as text for the cache key.
    """

    @property
    def key(self) -> str: ...

    def generate(self, nest: LoopNest, symbol: str) -> KernelCode:
        """The source of a kernel. Raises CodegenError for what it has no code for."""
        ...

    def compile(self, code: KernelCode) -> bytes:
        """Object code."""
        ...

    def load(self, objects: Mapping[KernelRef, bytes]) -> dict[str, LoadedKernel]:
        """Loads object code of ``compile``, all or none of it; the kernels by symbol."""
        ...
