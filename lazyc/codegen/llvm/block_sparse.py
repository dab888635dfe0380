"""The kernel of a product with a block-sparse weight: only blocks that are not zero are multiplied.

A work item is a row of blocks of w, so some columns of c. For a few rows of a at a time their sums stay
in registers, with columns along the lanes, while the blocks go by: each column of a block times one
element of each row of a.
"""

from __future__ import annotations

from lazyc.codegen.base import KernelCode
from lazyc.codegen.llvm.emitter import Emitter, Int, integer, vector
from lazyc.codegen.llvm.sparse_product import close_kernel, open_kernel
from lazyc.codegen.target import Target
from lazyc.ir.block_sparse import ALIGNMENT
from lazyc.ir.sparse import SparseProduct

LANES = 16
_VECTOR = vector("float", LANES)
# Rows of a that share the loads of a block. Eight of them take half the ways of a cache set where their
# distance is a power of two, and their sums fit the registers.
_ROWS = {"avx512": 8, "avx2": 4, "baseline": 2}
_DENSITY = 0.1  # of blocks, assumed in the estimate of an item's cost


def generate_blocks(product: SparseProduct, symbol: str, target: Target) -> KernelCode:
    """The kernel of a product with a block-sparse f32 weight. Its buffers: a, the compressed weight, c."""
    b, p = open_kernel(target), product
    offset = b.emit("load i64, ptr %w")
    values = b.emit(f"getelementptr i8, ptr %w, i64 {offset}")
    rows = min(p.m, _ROWS[target.name])
    writer = _Writer(b, p, values, [b.alloca(_VECTOR) for _ in range(rows * p.tile // LANES)])
    with b.loop(Int("%begin", 0), Int("%end", 0), 1, "item") as item:
        with b.loop(integer(0), integer(p.m // rows * rows), rows, "row") as row:
            writer.rows(item, row, rows)
        if p.m % rows:
            writer.rows(item, integer(p.m // rows * rows), p.m % rows)
    return close_kernel(b, p, symbol, p.m * p.k * p.tile * _DENSITY * 4 / target.vector_bytes)


class _Writer:
    """Writes the code of one kernel. ``slots``: an accumulator for each row of a and vector of columns."""

    def __init__(self, b: Emitter, product: SparseProduct, values: str, slots: list[str]) -> None:
        self.b = b
        self.product = product
        self.values = values
        self.slots = slots
        self.vectors = product.tile // LANES

    def rows(self, item: Int, row: Int, count: int) -> None:
        """A row of blocks times ``count`` rows of a from ``row`` on."""
        b, p = self.b, self.product
        slots = self.slots[: count * self.vectors]
        for slot in slots:
            b.void(f"store {_VECTOR} zeroinitializer, ptr {slot}")
        first, last = self._word(b.add(item, integer(1))), self._word(b.add(item, integer(2)))
        with b.loop(first, last, 1, "block") as block:
            column = self._word(b.add(block, integer(2 + p.items)))
            with b.loop(integer(0), integer(p.tile), 1, "k") as k:
                self._column(row, block, column, k, count)
        for r in range(count):
            for v in range(self.vectors):
                at = b.add(
                    b.mul(b.add(row, integer(r)), integer(p.ldc)),
                    b.add(b.mul(item, integer(p.tile)), integer(v * LANES)),
                )
                total = b.emit(f"load {_VECTOR}, ptr {slots[r * self.vectors + v]}")
                b.void(f"store {_VECTOR} {total}, ptr {self._element('%c', at)}, align 4")

    def _column(self, row: Int, block: Int, column: Int, k: Int, count: int) -> None:
        """Column ``k`` of a block times an element of each row of a."""
        b, p = self.b, self.product
        start = b.mul(b.add(b.mul(block, integer(p.tile)), k), integer(p.tile))
        w = [
            b.emit(
                f"load {_VECTOR}, ptr "
                f"{self._element(self.values, b.add(start, integer(v * LANES)))}, align {ALIGNMENT}"
            )
            for v in range(self.vectors)
        ]
        for r in range(count):
            at = b.add(
                b.mul(b.add(row, integer(r)), integer(p.lda)),
                b.add(column, k),
            )
            one = b.emit(f"load float, ptr {self._element('%a', at)}, align 4")
            x = b.broadcast(one, "float", LANES)
            for v, y in enumerate(w):
                slot = self.slots[r * self.vectors + v]
                old = b.emit(f"load {_VECTOR}, ptr {slot}")
                new = b.intrinsic("fmuladd", "float", LANES, y, x, old)
                b.void(f"store {_VECTOR} {new}, ptr {slot}")

    def _word(self, at: Int) -> Int:
        b = self.b
        place = b.emit(f"getelementptr i64, ptr %w, i64 {at.text}")
        return Int(b.emit(f"load i64, ptr {place}"), b.depth)

    def _element(self, base: str, at: Int) -> str:
        return self.b.emit(f"getelementptr float, ptr {base}, i64 {at.text}")
