"""The kernel of a product with a 2:4 weight: compressed weights are expanded in registers.

A product of few rows takes as long as reading the weight once does, and half of a 2:4 weight is not
there to be read. ``vexpandps`` puts the weights that are kept in their places among 16, by their mask;
what follows are the multiplications of a dense product. CPUs without that instruction get the same
code with the expansion in scalar steps: correct, and slower than a dense product.

A work item is a tile of rows of w. For each the accumulators of some rows of a stay in registers; with
more rows the tile, by then in the cache, is gone through again.
"""

from __future__ import annotations

from lazyc.codegen.base import KernelCode
from lazyc.codegen.llvm.casts import float_to_half, half_to_float
from lazyc.codegen.llvm.emitter import LLVM_TYPES, Emitter, Int, integer, suffix, vector
from lazyc.codegen.llvm.sparse_product import close_kernel, open_kernel
from lazyc.codegen.llvm.streaming import LINE
from lazyc.codegen.target import Target
from lazyc.ir.sparse import LANES, SparseProduct, Sparsity
from lazyc.ir.types import DType

_VECTOR = vector("float", LANES)
_MASK = vector("i1", LANES)
_ACCUMULATORS = 24  # of 32 registers; the others hold operands
# How far ahead to ask for memory: measured, for reading at the speed of memory on one core.
_WORDS_AHEAD = 32
_METADATA_AHEAD = 2048  # bytes
_WORD_CYCLES = 4  # to expand 16 weights, or to read them from memory


def expanded_at_once(target: Target) -> frozenset[tuple[Sparsity, DType]]:
    """The weights that a target has an instruction to expand."""
    if target.name != "avx512":
        return frozenset()
    found: set[tuple[Sparsity, DType]] = {("2:4", DType.F32)}
    if target.has("avx512vbmi2"):  # expands words of 16 bits
        found.add(("2:4", DType.BF16))
    return frozenset(found)


def generate_24(product: SparseProduct, symbol: str, target: Target) -> KernelCode:
    """The kernel of a product with a 2:4 weight. Its buffers: a, the compressed weight, c."""
    b = open_kernel(target)
    writer = _Writer(b, product)
    with b.loop(Int("%begin", 0), Int("%end", 0), 1, "tile") as tile:
        passes = -(-product.m // max(1, _ACCUMULATORS // product.tile))
        rows = -(-product.m // passes)
        for first in range(0, product.m, rows):
            writer.tile(tile, range(first, min(first + rows, product.m)))
    return close_kernel(
        b, product, symbol, product.tile * product.words * (_WORD_CYCLES + product.m)
    )


class _Writer:
    """Writes the code of one kernel."""

    def __init__(self, b: Emitter, product: SparseProduct) -> None:
        self.b = b
        self.product = product
        self.element = LLVM_TYPES[product.dtype]
        self.slots = [b.alloca(_VECTOR) for _ in range(_ACCUMULATORS)]

    def tile(self, tile: Int, rows: range) -> None:
        """All rows of a tile of w times ``rows`` of a."""
        b, p = self.b, self.product
        count = p.tile * len(rows)
        for slot in self.slots[:count]:
            b.void(f"store {_VECTOR} zeroinitializer, ptr {slot}")
        whole = p.k // LANES
        with b.loop(integer(0), integer(whole), 1, "word") as word:
            self._word(tile, word, rows, LANES)
        if whole < p.words:
            self._word(tile, integer(whole), rows, p.k % LANES)
        for r in range(p.tile):
            sums = [self._sum(self.slots[r * len(rows) + i]) for i in range(len(rows))]
            column = b.add(b.mul(tile, integer(p.tile)), integer(r))
            if p.n % p.tile == 0 or r == 0:
                self._store(column, rows, sums)
            else:
                with b.branch(b.emit(f"icmp slt i64 {column.text}, {p.n}")):
                    self._store(column, rows, sums)

    def _word(self, tile: Int, word: Int, rows: range, columns: int) -> None:
        """Adds the products of ``columns`` of a, from word ``word`` on, to the accumulators."""
        b, p = self.b, self.product
        first = b.mul(word, integer(LANES))
        a = [self._load_a(row, first, columns) for row in rows]
        at = b.mul(b.add(b.mul(tile, integer(p.words)), word), integer(p.tile))
        self._prefetch(at)
        for r in range(p.tile):
            w = self._expand(b.add(at, integer(r)))
            for i, x in enumerate(a):
                slot = self.slots[r * len(rows) + i]
                old = b.emit(f"load {_VECTOR}, ptr {slot}")
                new = b.intrinsic("fmuladd", "float", LANES, w, x, old)
                b.void(f"store {_VECTOR} {new}, ptr {slot}")

    def _prefetch(self, at: Int) -> None:
        """Asks for the weights and the metadata that come some way after metadata word ``at``."""
        b, p = self.b, self.product
        weights = self._element("%w", self.element, b.mul(at, integer(LANES // 2)))
        size = p.tile * LANES // 2 * p.dtype.itemsize  # of a word of all rows
        places = [(weights, _WORDS_AHEAD * size + line) for line in range(0, size, LINE)]
        metadata = self._element("%w", "i16", at)
        places.append((metadata, p.metadata_offset + _METADATA_AHEAD))
        for base, ahead in places:
            place = b.emit(f"getelementptr i8, ptr {base}, i64 {ahead}")
            b.call(
                "void", "llvm.prefetch.p0",
                ("ptr", place), ("i32", "0"), ("i32", "2"), ("i32", "1"),
            )  # fmt: skip

    def _load_a(self, row: int, column: Int, columns: int) -> str:
        """16 elements of a row of a, in f32; zeros beyond the first ``columns``."""
        b, p, type_ = self.b, self.product, vector(self.element, LANES)
        at = b.add(integer(row * p.lda), column)
        place = b.emit(f"getelementptr {self.element}, ptr %a, i64 {at.text}")
        align = p.dtype.itemsize
        if columns == LANES:
            x = b.emit(f"load {type_}, ptr {place}, align {align}")
        else:
            mask = ", ".join(f"i1 {str(k < columns).lower()}" for k in range(LANES))
            x = b.call(
                type_,
                f"llvm.masked.load.{suffix(self.element, LANES)}.p0",
                ("ptr", place),
                ("i32", str(align)),
                (_MASK, f"<{mask}>"),
                (type_, "zeroinitializer"),
            )
        return x if p.dtype is DType.F32 else half_to_float(b, x, p.dtype, LANES)

    def _expand(self, at: Int) -> str:
        """The 16 weights of metadata word number ``at``, in f32."""
        b, p, type_ = self.b, self.product, vector(self.element, LANES)
        metadata = b.emit(f"getelementptr i8, ptr %w, i64 {p.metadata_offset}")
        bits = b.emit(f"load i16, ptr {self._element(metadata, 'i16', at)}, align 2")
        mask = b.emit(f"bitcast i16 {bits} to {_MASK}")
        w = b.call(
            type_,
            f"llvm.masked.expandload.{suffix(self.element, LANES)}",
            ("ptr", self._element("%w", self.element, b.mul(at, integer(LANES // 2)))),
            (_MASK, mask),
            (type_, "zeroinitializer"),
        )
        return w if p.dtype is DType.F32 else half_to_float(b, w, p.dtype, LANES)

    def _element(self, base: str, element: str, at: Int) -> str:
        return self.b.emit(f"getelementptr {element}, ptr {base}, i64 {at.text}")

    def _sum(self, slot: str) -> str:
        """The sum of an accumulator's lanes."""
        b = self.b
        symbol = f"llvm.vector.reduce.fadd.{suffix('float', LANES)}"
        b.declares[symbol] = f"declare float @{symbol}(float, {_VECTOR})"
        x = b.emit(f"load {_VECTOR}, ptr {slot}")
        return b.emit(f"call reassoc float @{symbol}(float -0.0, {_VECTOR} {x})")

    def _store(self, column: Int, rows: range, sums: list[str]) -> None:
        b, p = self.b, self.product
        for row, total in zip(rows, sums, strict=True):
            place = self._element("%c", self.element, b.add(integer(row * p.ldc), column))
            if p.dtype is not DType.F32:
                total = float_to_half(b, total, p.dtype, 1)
            b.void(f"store {self.element} {total}, ptr {place}, align {p.dtype.itemsize}")
