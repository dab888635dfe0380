"""The sizes of tiles by fixed rules of shape and type."""

from __future__ import annotations

from lazyc.codegen.gpu_target import Float32Products
from lazyc.codegen.triton.attention import Attention
from lazyc.codegen.triton.code import VECTOR_BYTES
from lazyc.codegen.triton.contraction import Contraction
from lazyc.codegen.triton.score_sums import ScoreSums
from lazyc.codegen.triton.tiles import (
    EXACT_ROWS,
    LEAST,
    WIDEST,
    Tiles,
    are_aligned,
    tile_size,
    values_of,
)
from lazyc.ir import loops as L
from lazyc.ir.types import numel

_BUSY = 96  # programs that a GPU of about a hundred multiprocessors wants at least
_LONG_EPILOGUE = 16  # instructions for an element of the result that take many registers
_SHORT_RUN = 32  # depth below which tiles go across the ends of an axis, so that there are fewer
_UNKNOWN = 64  # rows, columns or depth of a tile along a size that is a symbol
_NARROW_BYTES = 128  # along the depth of a tile
_LEAST_BYTES = 32
_NARROW_TILES = ((128, 128), (128, 64), (64, 64))  # rows and columns at most, larger ones first
_SINGLE_TILES = ((128, 64), (64, 64))
_TF32_TILES = ((128, 128), (128, 64), (64, 64))
_EXACT_TILES = ((EXACT_ROWS // 2, 64),)


def contraction_tiles(contraction: Contraction, float32: Float32Products = "ieee") -> Tiles:
    """Large tiles read each factor less often. Smaller ones are taken where there would be too few to keep
    a GPU busy, or where what surrounds the product needs many registers: much of it, or a result whose rows
    start anywhere, so that each element is stored by an address of its own. Exact single precision keeps factors
    in registers too, and gets more threads; where a factor is more than a load it keeps below EXACT_ROWS."""
    c, narrow = contraction, contraction.narrow
    around = sum(len(s.body) for s in c.nest.stages) - len(c.loop.body)
    across = numel(a.size for a in c.columns)
    by_id = values_of(c.nest)
    heavy = around > _LONG_EPILOGUE or (isinstance(across, int) and across % VECTOR_BYTES != 0)
    if narrow:
        most, depth = _NARROW_TILES[heavy:], _NARROW_BYTES // narrow.itemsize
    elif float32 == "tf32":
        most, depth = _TF32_TILES[heavy:], 32
    elif all(isinstance(by_id[k], L.Load) for k in (c.left, c.right)):
        most, depth = _SINGLE_TILES, 16
    else:
        most, depth = _EXACT_TILES, 32  # so that a thread loads a vector of a half type
    rows = columns = 0
    for most_rows, most_columns in most:
        rows = tile_size(c.rows, most_rows, _UNKNOWN)
        columns = tile_size(c.columns, most_columns, _UNKNOWN)
        if programs(c, rows, columns) >= _BUSY:
            break
    on_tensor_cores = narrow is not None or float32 == "tf32"
    of_eight = 64 * 64 if not on_tensor_cores else 128 * 64 if heavy else 128 * 128
    depth = tile_depth(c, depth)
    return Tiles(rows, columns, depth, 8 if rows * columns >= of_eight else 4, 3)


def tile_depth(c: Contraction, most: int) -> int:
    """The depth of a tile, at most ``most``. Along several axes (channels within the window of a
    convolution) one that divides the last, if not much less: the others are then numbers of the tile."""
    *others, last = c.loop.axes
    if others and isinstance(last.size, int):
        run = min(most, last.size & -last.size)
        if run >= min(most, _SHORT_RUN):
            return run
        if not are_aligned(c.loop.body, (c.left, c.right), c.loop.axes):
            most = min(most, _SHORT_RUN)  # each element is loaded by an address of its own
    # An instruction takes 32 bytes along the depth.
    least = _LEAST_BYTES // c.narrow.itemsize if c.narrow else LEAST
    return max(least, tile_size(c.loop.axes, most, _UNKNOWN))


def programs(c: Contraction, rows: int, columns: int) -> int:
    """How many tiles there are; many where a size is a symbol."""
    sizes = [numel(a.size for a in axes) for axes in (c.batch, c.rows, c.columns)]
    known = [n for n in sizes if isinstance(n, int)]
    if len(known) < len(sizes):
        return _BUSY
    return known[0] * -(-known[1] // rows) * -(-known[2] // columns)


def attention_tiles(attention: Attention, float32: Float32Products = "ieee") -> Tiles:
    """By the widths of heads: registers hold a tile of scores for each dot and one of results for each
    sum. In exact single precision tiles have fewer rows than EXACT_ROWS. Random numbers take registers of their
    own: ten keys, and four words for each score that is drawn for at once."""
    is_half = attention.half is not None
    columns = tile_size(attention.columns, WIDEST) if attention.columns else 1
    dots = [i for i in attention.loop.body if isinstance(i, L.Dot)]
    many = 32 if any(isinstance(i, L.Random) for i in attention.loop.body) else 64
    widest = max([columns, *(tile_size(d.axes, WIDEST) for d in dots)])
    if not is_half and float32 == "tf32":
        most = 64 if widest <= 64 else 32 if widest <= 128 or attention.online is not None else 16
        rows, keys, warps, stages = most, min(most, 32), 8, 1
    elif not is_half:
        rows, keys, warps, stages = (32, 32, 8, 1) if widest <= 64 else (16, 16, 8, 1)
    elif attention.online is not None and widest <= 64:
        rows, keys, warps, stages = 128, 64, 8, 3
    elif attention.online is not None:
        rows, keys, warps, stages = (128, many, 8, 2) if widest <= 128 else (64, 32, 8, 2)
    elif widest <= 64:
        rows, keys, warps, stages = 64, many, 4, 2
    else:
        rows, keys, warps, stages = (64, 32, 8, 2) if widest <= 128 else (32, 32, 8, 1)
    rows, keys = (
        min(most, tile_size(axes, most))
        for axes, most in ((attention.rows, rows), (attention.loop.axes, keys))
    )
    return Tiles(rows, columns, keys, warps, stages)


def score_sums_tiles(sums: ScoreSums, float32: Float32Products = "ieee") -> Tiles:
    """By the widths of heads, as those of attention without a softmax: registers hold a tile of scores for each dot, and
    one of sums. The depth is that of the deepest dot."""
    widest, is_half = max(sums.widths()), sums.half is not None
    if is_half or float32 == "tf32":
        draws = any(isinstance(i, L.Random) for i in sums.loop.body)
        rows, columns = 64, 32 if draws or (widest > 128 and not is_half) else 64
        warps = 4 if is_half and widest <= 64 else 8
        stages = 2 if is_half and widest <= 128 else 1
    else:
        rows = columns = EXACT_ROWS // 2 if widest <= 64 else LEAST
        warps, stages = 8, 1
    rows, columns = tile_size(sums.rows, rows), tile_size(sums.columns, columns)
    return Tiles(rows, columns, widest, warps, stages)
