"""Writes the body of a Triton kernel: lines, blocks with names, and what is known already.

A value is a block of two dims, either of which may be 1; the language broadcasts. What a value varies
along is a set of bits, each of which stands for one dim of blocks. What was computed once in a scope is
not computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lazyc.codegen.triton.pointwise import TYPES
from lazyc.ir.types import DType


@dataclass(frozen=True, slots=True)
class Value:
    """The name of a block, its type, and what it varies along."""

    text: str
    dtype: DType
    varies: int


class Writer:
    """``dims``: for each bit the dim of blocks that it stands for, and its size there (which may change);
    ``ends``: for each bit the mask of what is inside, "" where that is all."""

    def __init__(self, dims: dict[int, tuple[int, int]]) -> None:
        self.dims = dims
        self.ends: dict[int, str] = {}
        self.lines: list[str] = []
        self._known: list[dict[str, Value]] = [{}]  # by the text that was computed
        self._count = 0

    def line(self, text: str) -> None:
        self.lines.append("    " * len(self._known) + text)

    def value(self, text: str, dtype: DType, varies: int, shared: bool = True) -> Value:
        """A block computed by ``text``: the one that is there already, where ``shared``."""
        if shared:
            for scope in self._known:
                if text in scope:
                    return scope[text]
        self._count += 1
        found = Value(f"v{self._count}", dtype, varies)
        self.line(f"{found.text} = {text}")
        if shared:
            self._known[-1][text] = found
        return found

    def variable(self, text: str) -> str:
        """A name that is set to ``text`` now, and may be set again."""
        self._count += 1
        self.line(f"v{self._count} = {text}")
        return f"v{self._count}"

    @contextmanager
    def loop(self, head: str) -> Iterator[None]:
        """Lines within a loop; what is computed there is not known behind it."""
        self.line(head)
        self._known.append({})
        yield
        self._known.pop()

    def shape(self, varies: int) -> str:
        sizes = [1, 1]
        for bit, (dim, size) in self.dims.items():
            if varies & bit:
                sizes[dim] = size
        return f"[{sizes[0]}, {sizes[1]}]"

    def broadcast(self, text: str, have: int, want: int) -> str:
        """A block that varies along ``have``, as one that varies along ``want`` too."""
        if have & want == want or self.shape(have) == self.shape(have | want):
            return text
        return f"tl.broadcast_to({text}, {self.shape(have | want)})"

    def full(self, number: str, dtype: DType, varies: int = 0) -> str:
        return f"tl.full({self.shape(varies)}, {number}, {TYPES[dtype]})"

    def inside(self, varies: int, *masks: str, ends: Mapping[int, str] | None = None) -> str:
        """The mask of what is inside along these dims, and of ``masks``; "" where that is all. ``ends``
        in place of those that hold everywhere."""
        known = self.ends if ends is None else ends
        parts = [end for bit, end in known.items() if varies & bit and end]
        return " & ".join([*parts, *masks])
