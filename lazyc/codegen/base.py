"""What every code generator hands over: the source of one kernel and how to split its work."""

from __future__ import annotations

from dataclasses import dataclass

from lazyc.errors import LazycError
from lazyc.ir.types import Dim


class CodegenError(LazycError):
    """A code generator met something that it has no code for; the message names it."""


@dataclass(frozen=True, slots=True)
class KernelCode:
    """The source text of one kernel.

    On the CPU, the compiled kernel is a C function
    ``void symbol(void** buffers, int64_t* sizes, int64_t begin, int64_t end, int64_t* error)``:

    * it runs the work items ``begin <= item < end`` of ``items``. Items are independent and may run
      in any order and on any thread; how the outer axes are cut into items is the generator's affair;
    * ``buffers`` holds one address for each param of the nest that is not scratch, in order;
    * ``sizes`` holds the values of the nest's symbols, in order;
    * ``error`` is OR-ed (atomically) with the ``ERROR_*`` bits of ``ir.loops``.

    ``items`` is an expression over the nest's symbols. ``grain`` is the least number of items worth a
    thread of its own, by a cost estimate.
    """

    symbol: str
    text: str
    items: Dim
    grain: int
