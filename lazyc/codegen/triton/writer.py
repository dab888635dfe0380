"""Writes the body of a Triton kernel: lines, blocks with names, and what is known already.

A value is a block of two dims, [outer points, iterations of the stage], where either may be 1; the
language broadcasts. What was computed once in a scope is not computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lazyc.codegen.triton.pointwise import TYPES
from lazyc.ir.types import DType

POINTS, ITERATIONS = 1, 2  # the dims of a block along which a value varies, as bits


@dataclass(frozen=True, slots=True)
class Value:
    """The name of a block, its type, and the dims that it varies along."""

    text: str
    dtype: DType
    varies: int


class Writer:
    """``points`` and ``iterations`` are the sizes of a block (now); ``ends`` the mask of what is inside
    along each dim, "" where that is all."""

    def __init__(self, points: int) -> None:
        self.points = points
        self.iterations = 1
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
        points = self.points if varies & POINTS else 1
        return f"[{points}, {self.iterations if varies & ITERATIONS else 1}]"

    def broadcast(self, text: str, have: int, want: int) -> str:
        """A block that varies along ``have``, as one that varies along ``want`` too."""
        if have & want == want or self.shape(have) == self.shape(have | want):
            return text
        return f"tl.broadcast_to({text}, {self.shape(have | want)})"

    def full(self, number: str, dtype: DType, varies: int = 0) -> str:
        return f"tl.full({self.shape(varies)}, {number}, {TYPES[dtype]})"

    def inside(self, varies: int, *masks: str) -> str:
        """The mask of what is inside along these dims, and of ``masks``; "" where that is all."""
        parts = [self.ends[k] for k in (POINTS, ITERATIONS) if varies & k and self.ends.get(k)]
        return " & ".join([*parts, *masks])
