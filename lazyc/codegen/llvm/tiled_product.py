"""The kernels of matrix products in tiles (``ir.tiled_product``).

A tile of c is a function of its own for each number of rows: its sums stay in registers while the packed
factors go by, a vector or two of b times one element of each row of a. The loops around it follow Goto and
van de Geijn: a group of blocks of a stays in the L2 cache, a panel of b in what is left of that.
"""

from __future__ import annotations

from lazyc.codegen.base import KernelCode, KernelRef
from lazyc.codegen.llvm.emitter import Emitter, Int, integer, vector
from lazyc.codegen.target import Target
from lazyc.ir.tiled_product import LINE, Tile, TiledKernel

_SIGNATURE = "ptr %buffers, ptr %sizes, i64 %begin, i64 %end, ptr %error"
_TILE = "ptr %a, ptr %b, ptr %c, i64 %depth, i64 %ldc, i64 %columns, i1 %adds"


def product_tile(target: Target) -> Tile | None:
    """The tile that suits a target; None where there is no fused multiply-add to make it worth while."""
    if not target.is_x86 or not target.has_fma:
        return None
    # All registers but those that hold two vectors of b, and one (AVX-512) or two elements of a.
    rows, lanes = (14, 16) if target.name == "avx512" else (6, 8)
    depth = 512
    # Half of the L2 cache for a; the rest for panels of b, of which the next one is on its way.
    group = max(1, (target.cache_bytes[1] // 2) // (rows * depth * 4))
    return Tile(rows, 2 * lanes, depth, group)


def generate_tiled(kernel: TiledKernel, symbol: str, target: Target) -> KernelCode:
    """The code of one of the kernels."""
    b = Emitter(target)
    tile = kernel.tile
    definitions: list[str] = []
    declares: dict[str, str] = {}
    if kernel.part == "pack a":
        _pack_a(b, tile)
    elif kernel.part == "pack b":
        _pack_b(b, tile)
    else:
        for rows in range(1, tile.rows + 1):
            one = Emitter(target)
            _tile(one, tile, rows)
            definitions += _function(one, f"internal void @tile_{rows}({_TILE}) noinline nounwind")
            declares |= one.declares
        _multiply(b, tile)
    lines = [
        f'target triple = "{target.triple}"',
        *definitions,
        *_function(b, f"void @{symbol}({_SIGNATURE}) nounwind"),
        *{**declares, **b.declares}.values(),
    ]
    # Whoever binds it knows the sizes, and so the number of work items.
    return KernelCode(KernelRef(symbol, 1, 1), "\n".join(lines) + "\n")


def _function(b: Emitter, head: str) -> list[str]:
    b.void("ret void")
    return [f"define {head} {{", "entry:", *b.allocas, *b.scopes[0].lines, "}"]


def _arguments(b: Emitter, buffers: int, sizes: int) -> tuple[list[str], list[Int]]:
    """The addresses and sizes that a kernel gets."""
    found = []
    for k in range(buffers):
        at = b.emit(f"getelementptr ptr, ptr %buffers, i64 {k}")
        found.append(b.emit(f"load ptr, ptr {at}"))
    values = []
    for k in range(sizes):
        at = b.emit(f"getelementptr i64, ptr %sizes, i64 {k}")
        values.append(Int(b.emit(f"load i64, ptr {at}"), 0))
    return found, values


def _element(b: Emitter, base: str, at: Int) -> str:
    return b.emit(f"getelementptr float, ptr {base}, i64 {at.text}")


def _whole_lines(b: Emitter, k: Int) -> Int:
    return b.mul(b.udiv(b.add(k, integer(LINE - 1)), integer(LINE)), integer(LINE))


def _tile(b: Emitter, tile: Tile, rows: int) -> None:
    """``c[rows, columns] (+)= a @ b`` for so many rows of a block."""
    lanes = tile.columns // 2
    type_ = vector("float", lanes)
    slots = [[b.alloca(type_) for _ in range(2)] for _ in range(rows)]
    for slot in (s for row in slots for s in row):
        b.void(f"store {type_} zeroinitializer, ptr {slot}")
    lines = b.udiv(Int("%depth", 0), integer(LINE))
    with b.loop(integer(0), lines, 1, "line") as line:
        first = _element(b, "%a", b.mul(line, integer(tile.rows * LINE)))
        start = _element(b, "%b", b.mul(line, integer(tile.columns * LINE)))
        with b.loop(integer(0), integer(LINE), 1, "k") as k:
            at = b.mul(k, integer(tile.columns))
            vectors = [
                b.emit(
                    f"load {type_}, ptr {_element(b, start, b.add(at, integer(v * lanes)))}, align 32"
                )
                for v in range(2)
            ]
            for row, pair in enumerate(slots):
                place = _element(b, first, b.add(k, integer(row * LINE)))
                x = b.broadcast(b.emit(f"load float, ptr {place}, align 4"), "float", lanes)
                for slot, y in zip(pair, vectors, strict=True):
                    old = b.emit(f"load {type_}, ptr {slot}")
                    new = b.intrinsic("fma", "float", lanes, x, y, old)
                    b.void(f"store {type_} {new}, ptr {slot}")
    with b.branch("%adds"):
        _read_back(b, slots, lanes)
    _write(b, slots, lanes)


def _masks(b: Emitter, lanes: int) -> list[str]:
    """Which lanes of the two vectors of a row are columns of c."""
    kind = vector("i1", lanes)
    symbol = f"llvm.get.active.lane.mask.v{lanes}i1.i64"
    return [b.call(kind, symbol, ("i64", str(v * lanes)), ("i64", "%columns")) for v in range(2)]


def _places(b: Emitter, slots: list[list[str]], lanes: int) -> list[tuple[str, str, int]]:
    """(slot, address in c, vector of the row) of each vector of the tile."""
    found = []
    for row, pair in enumerate(slots):
        start = b.mul(integer(row), Int("%ldc", 0))
        for v, slot in enumerate(pair):
            found.append((slot, _element(b, "%c", b.add(start, integer(v * lanes))), v))
    return found


def _read_back(b: Emitter, slots: list[list[str]], lanes: int) -> None:
    """Adds what c holds to the sums."""
    type_, mask = vector("float", lanes), vector("i1", lanes)
    masks = _masks(b, lanes)
    for slot, place, v in _places(b, slots, lanes):
        there = b.call(
            type_, f"llvm.masked.load.v{lanes}f32.p0",
            ("ptr align 4", place), (mask, masks[v]), (type_, "zeroinitializer"),
        )  # fmt: skip
        total = b.emit(f"fadd {type_} {b.emit(f'load {type_}, ptr {slot}')}, {there}")
        b.void(f"store {type_} {total}, ptr {slot}")


def _write(b: Emitter, slots: list[list[str]], lanes: int) -> None:
    type_, mask = vector("float", lanes), vector("i1", lanes)
    masks = _masks(b, lanes)
    for slot, place, v in _places(b, slots, lanes):
        total = b.emit(f"load {type_}, ptr {slot}")
        b.call(
            "void", f"llvm.masked.store.v{lanes}f32.p0",
            (type_, total), ("ptr align 4", place), (mask, masks[v]),
        )  # fmt: skip


def _multiply(b: Emitter, tile: Tile) -> None:
    """All tiles of the work items, a part of k at a time."""
    (pa, pb, c), (m, n, k, ldc, step, group, adds) = _arguments(b, 3, 7)
    depth = _whole_lines(b, k)
    blocks = b.udiv(b.add(m, integer(tile.rows - 1)), integer(tile.rows))
    panels = b.udiv(b.add(n, integer(tile.columns - 1)), integer(tile.columns))
    parts = b.udiv(b.sub(b.add(depth, step), integer(1)), step)
    with b.loop(integer(0), parts, 1, "part") as part:
        start = b.mul(part, step)
        length = b.minimum(step, b.sub(depth, start))
        more = b.emit(f"icmp ne i64 {b.add(part, adds).text}, 0")
        with b.loop(Int("%begin", 0), Int("%end", 0), 1, "item") as item:
            panel = b.urem(item, panels)
            first = b.mul(b.udiv(item, panels), group)
            last = b.minimum(b.add(first, group), blocks)
            column = b.mul(panel, integer(tile.columns))
            columns = b.minimum(b.sub(n, column), integer(tile.columns))
            at = b.mul(b.add(b.mul(panel, depth), start), integer(tile.columns))
            b_place = _element(b, pb, at)
            with b.loop(first, last, 1, "block") as block:
                at = b.mul(b.add(b.mul(block, depth), start), integer(tile.rows))
                a_place = _element(b, pa, at)
                row = b.mul(block, integer(tile.rows))
                c_place = _element(b, c, b.add(b.mul(row, ldc), column))
                rows = b.minimum(b.sub(m, row), integer(tile.rows))
                for count in range(1, tile.rows + 1):
                    with b.branch(b.emit(f"icmp eq i64 {rows.text}, {count}")):
                        b.void(
                            f"call void @tile_{count}(ptr {a_place}, ptr {b_place}, ptr {c_place}, "
                            f"i64 {length.text}, i64 {ldc.text}, i64 {columns.text}, i1 {more})"
                        )


def _pack_a(b: Emitter, tile: Tile) -> None:
    """Copies blocks of rows, line by line."""
    (a, pa), (m, k, row_step, column_step) = _arguments(b, 2, 4)
    depth = _whole_lines(b, k)
    dense = b.emit(f"icmp eq i64 {column_step.text}, 1")
    transposed = b.emit(f"icmp eq i64 {row_step.text}, 1")
    transposed = b.emit(f"and i1 {transposed}, {b.emit(f'xor i1 {dense}, true')}")
    with b.loop(Int("%begin", 0), Int("%end", 0), 1, "block") as block:
        first = b.mul(block, integer(tile.rows))
        rows = b.minimum(b.sub(m, first), integer(tile.rows))
        to = b.mul(b.mul(block, depth), integer(tile.rows))
        with b.loop(integer(0), depth, LINE, "k") as at:
            left = b.sub(k, at)
            start = b.add(b.mul(first, row_step), b.mul(at, column_step))
            source = _element(b, a, start)
            target = _element(b, pa, b.add(to, b.mul(at, integer(tile.rows))))
            square = b.emit(f"icmp sge i64 {left.text}, {LINE}")
            square = b.emit(f"and i1 {square}, {transposed}")
            with b.branch(square):
                # Rows beyond the last are not looked at, and what is stored of them is never read.
                _transpose(b, source, target, column_step, (LINE, tile.rows), rows)
            with (
                b.branch(b.emit(f"xor i1 {square}, true")),
                b.loop(integer(0), rows, 1, "row") as row,
            ):
                line = _element(b, target, b.mul(row, integer(LINE)))
                one = _element(b, source, b.mul(row, row_step))
                with b.branch(dense):
                    _copy(b, one, line, left)
                with b.branch(b.emit(f"xor i1 {dense}, true")):
                    _gather(b, one, line, left, column_step)


def _pack_b(b: Emitter, tile: Tile) -> None:
    """Copies panels of columns, in squares of lines."""
    (w, pb), (n, k, row_step, column_step) = _arguments(b, 2, 4)
    depth = _whole_lines(b, k)
    dense = b.emit(f"icmp eq i64 {column_step.text}, 1")
    strided = b.emit(f"xor i1 {dense}, true")
    transposed = b.emit(f"icmp eq i64 {row_step.text}, 1")
    with b.loop(Int("%begin", 0), Int("%end", 0), 1, "panel") as panel:
        to = b.mul(b.mul(panel, depth), integer(tile.columns))
        with b.loop(integer(0), depth, LINE, "k") as at:
            for group in range(0, tile.columns, LINE):
                column = b.add(b.mul(panel, integer(tile.columns)), integer(group))
                left, below = b.sub(n, column), b.sub(k, at)
                start = b.add(b.mul(at, row_step), b.mul(column, column_step))
                source = _element(b, w, start)
                place = b.add(to, b.add(b.mul(at, integer(tile.columns)), integer(group)))
                target = _element(b, pb, place)
                both = b.minimum(left, below)
                square = b.emit(f"icmp sge i64 {both.text}, {LINE}")
                square = b.emit(f"and i1 {square}, {transposed}")
                with b.branch(b.emit(f"and i1 {square}, {strided}")):
                    _transpose(b, source, target, column_step, (tile.columns, LINE), integer(LINE))
                with b.branch(b.emit(f"xor i1 {b.emit(f'and i1 {square}, {strided}')}, true")):
                    _rows_of_b(
                        b, tile, (source, target), (left, below), (row_step, column_step), dense
                    )


def _rows_of_b(
    b: Emitter,
    tile: Tile,
    places: tuple[str, str],
    left: tuple[Int, Int],
    steps: tuple[Int, Int],
    dense: str,
) -> None:
    """A square of b, row after row; ``left``: columns and rows that there are from its first on."""
    strided = b.emit(f"xor i1 {dense}, true")
    with b.loop(integer(0), integer(LINE), 1, "row") as row:
        inside = b.emit(f"icmp slt i64 {row.text}, {left[1].text}")
        # A row beyond the last is one of zeros: of no columns.
        columns = Int(b.emit(f"select i1 {inside}, i64 {left[0].text}, i64 0"), b.depth)
        source = _element(b, places[0], b.mul(row, steps[0]))
        target = _element(b, places[1], b.mul(row, integer(tile.columns)))
        with b.branch(dense):
            _copy(b, source, target, columns)
        with b.branch(strided):
            _gather(b, source, target, columns, steps[1])


def _copy(b: Emitter, source: str, target: str, count: Int) -> None:
    """A line of consecutive elements; those from ``count`` on become zeros, and are not read."""
    type_, mask = vector("float", LINE), vector("i1", LINE)
    symbol = f"llvm.get.active.lane.mask.v{LINE}i1.i64"
    some = b.maximum(count, integer(0))
    inside = b.call(mask, symbol, ("i64", "0"), ("i64", some.text))
    line = b.call(
        type_, f"llvm.masked.load.v{LINE}f32.p0",
        ("ptr align 4", source), (mask, inside), (type_, "zeroinitializer"),
    )  # fmt: skip
    b.void(f"store {type_} {line}, ptr {target}, align 32")


def _gather(b: Emitter, source: str, target: str, count: Int, step: Int) -> None:
    """The same of elements ``step`` apart."""
    some = b.maximum(b.minimum(count, integer(LINE)), integer(0))
    b.void(f"store {vector('float', LINE)} zeroinitializer, ptr {target}, align 32")
    with b.loop(integer(0), some, 1, "lane") as lane:
        x = b.emit(f"load float, ptr {_element(b, source, b.mul(lane, step))}, align 4")
        b.void(f"store float {x}, ptr {_element(b, target, lane)}, align 4")


def _transpose(
    b: Emitter, source: str, target: str, step: Int, result: tuple[int, int], count: Int
) -> None:
    """A square whose columns are lines in memory, ``step`` apart, of which ``count`` elements are read.
    ``result``: how far apart its rows go, and how many of them."""
    type_, mask = vector("float", LINE), vector("i1", LINE)
    symbol = f"llvm.get.active.lane.mask.v{LINE}i1.i64"
    inside = "" if count.known == LINE else b.call(mask, symbol, ("i64", "0"), ("i64", count.text))
    lines = []
    for column in range(LINE):
        place = _element(b, source, b.mul(step, integer(column)))
        if not inside:
            lines.append(b.emit(f"load {type_}, ptr {place}, align 4"))
            continue
        lines.append(
            b.call(
                type_, f"llvm.masked.load.v{LINE}f32.p0",
                ("ptr align 4", place), (mask, inside), (type_, "zeroinitializer"),
            )
        )  # fmt: skip
    half = LINE // 2
    # Each round interleaves the first half of the vectors with the second: after all, rows are columns.
    for _ in range(LINE.bit_length() - 1):
        lines = [
            b.emit(
                f"shufflevector {type_} {lines[k // 2]}, {type_} {lines[k // 2 + half]}, "
                f"<{LINE} x i32> {_interleaved(half * (k % 2))}"
            )
            for k in range(LINE)
        ]
    distance, rows = result
    for row, line in enumerate(lines[:rows]):
        place = _element(b, target, integer(row * distance))
        b.void(f"store {type_} {line}, ptr {place}, align 32")


def _interleaved(first: int) -> str:
    """The lanes from ``first`` on of two vectors, by turns."""
    pairs = ((first + k, first + k + LINE) for k in range(LINE // 2))
    return "<" + ", ".join(f"i32 {lane}" for pair in pairs for lane in pair) + ">"
