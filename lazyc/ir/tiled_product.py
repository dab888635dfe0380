"""Matrix products in tiles that stay in registers, by generated kernels: what these are, how operands lie.

``c = a @ b`` with both factors copied into the order in which a tile reads them (K. Goto and R. van de
Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). With ``rows`` x ``columns`` the size of a
tile, and the depth k filled up with zeros to whole ``LINE``s:

    a  [m / rows] [k / LINE] [row] [LINE]      rows beyond the last are left as they are, and never read
    b  [n / columns] [k] [column]              columns beyond the last are zeros

A line of a is as long as a line of the cache, so that to copy it is cheap, and rows at a distance of a power
of two do not meet in one set of the cache when they are read.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from lazyc.ir.types import DType

LINE = 16  # elements
# Rows, columns and depth of a product that is faster in tiles though both factors are packed for it.
LEAST_REPACKED = 64

Part: TypeAlias = Literal["pack a", "pack b", "multiply"]


@dataclass(frozen=True, slots=True)
class Tile:
    """The part of c that stays in registers, and how a kernel goes through the factors.

    ``depth``: about how much of k is summed before the next tile's turn; ``group``: blocks of rows of a
    of that depth that stay in the cache while a panel of b goes by.
    """

    rows: int
    columns: int
    depth: int
    group: int

    def padded_depth(self, k: int) -> int:
        return -(-k // LINE) * LINE

    def step(self, k: int) -> int:
        """How much of k is summed at a time: equal parts of about ``depth``, in whole lines."""
        parts = -(-k // self.depth)
        return self.padded_depth(-(-k // parts))

    def blocks(self, m: int) -> int:
        """Blocks of rows."""
        return -(-m // self.rows)

    def panels(self, n: int) -> int:
        """Panels of columns."""
        return -(-n // self.columns)

    def group_of(self, m: int, n: int, threads: int) -> int:
        """How many blocks of rows go together (at most ``group``), so that threads have equal work."""
        blocks, panels = self.blocks(m), self.panels(n)
        least = -(-blocks // self.group)
        sizes = [-(-blocks // count) for count in range(least, least + threads)]
        return min(sizes, key=lambda size: _longest(blocks, panels, size, threads))

    def packed_a_bytes(self, m: int, k: int) -> int:
        return self.blocks(m) * self.rows * self.padded_depth(k) * DType.F32.itemsize

    def packed_b_bytes(self, n: int, k: int) -> int:
        return self.panels(n) * self.columns * self.padded_depth(k) * DType.F32.itemsize


def _longest(blocks: int, panels: int, group: int, threads: int) -> int:
    """Blocks of the thread that has most, where items are dealt out in order."""
    items = -(-blocks // group) * panels

    def before(item: int) -> int:
        whole, rest = divmod(item, panels)
        done = min(whole * group, blocks)
        return done * panels + rest * min(group, blocks - done)

    ends = [before(items * t // threads) for t in range(threads + 1)]
    return max(end - start for start, end in itertools.pairwise(ends))


@dataclass(frozen=True, slots=True)
class TiledKernel:
    """One of the three kernels of products in f32. Sizes are arguments of theirs, in i64:

    pack a    buffers a, packed a; sizes m, k, the distances of rows and of columns of a (in elements)
              work items: blocks of rows
    pack b    buffers b, packed b; sizes n, k, the distances of rows and of columns of b
              work items: panels of columns
    multiply  buffers packed a, packed b, c; sizes m, n, k, the distance of rows of c, the ``step``, the
              ``group``, 1 to add to c or 0
              work items: panels of columns, for each group of blocks of rows
    """

    part: Part
    tile: Tile
    comment: str = "matrix products in tiles"

    @property
    def text(self) -> str:
        """The canonical text, by which equal kernels are found."""
        t = self.tile
        return f"{self.part} {t.rows} x {t.columns} tiles, group {t.group}, lines of {LINE}\n"

    @property
    def key(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def tiled_kernels(tile: Tile) -> tuple[TiledKernel, ...]:
    """The kernels that products take."""
    return tuple(TiledKernel(part, tile) for part in get_args(Part))
