"""Kernels of products with a block-sparse weight: only blocks that are not zero are multiplied.

A program computes a row of blocks of the weight by a tile of columns of the other factor: it goes through the
blocks of that row, and through the part of the other factor that each of them meets. What is before and
after the product in the nest runs on tiles, as in ``contraction.py``. The weight comes in compressed form
(``ir.block_sparse``), in place of the weight among the params.
"""

from __future__ import annotations

from lazyc.codegen.base import CodegenError, KernelCode, LaunchRef, Products
from lazyc.codegen.gpu_target import Float32Products
from lazyc.codegen.triton.code import Code, ceil_div
from lazyc.codegen.triton.pointwise import TYPES
from lazyc.codegen.triton.tiles import COLUMNS, ROWS, are_aligned, open_tile, tile_size
from lazyc.codegen.triton.writer import Value, Writer
from lazyc.ir import loops as L
from lazyc.ir.block_sparse import ALIGNMENT
from lazyc.ir.nest_values import cone
from lazyc.ir.sparse import BLOCKS, Sparsity
from lazyc.ir.sparse_contraction import Factors, SparseContraction, find_factors
from lazyc.ir.types import DType

# The weights for which there is a kernel.
BLOCK_PRODUCTS: frozenset[tuple[Sparsity, DType]] = frozenset(
    (block, dtype) for block in BLOCKS for dtype in (DType.F16, DType.BF16, DType.F32)
)
_DEPTH = 4  # a bit of its own: the depth of a block
_MOST_COLUMNS = 128


def block_sparse_kernel(
    source: SparseContraction, symbol: str, float32: Float32Products = "ieee"
) -> KernelCode:
    """The kernel of a SparseContraction. Raises CodegenError for what there is no code for."""
    nest = source.nest
    factors = find_factors(nest, source.weight, source.sparsity)
    if isinstance(factors, str):
        raise CodegenError(f"{source.sparsity} weight in b{source.weight}: {factors}")
    size = BLOCKS[source.sparsity]
    width = tile_size(factors.columns, _MOST_COLUMNS, unknown=64)
    w = Writer({ROWS: (0, size), COLUMNS: (1, width), _DEPTH: (0, size)})
    code = Code(nest, w, "")
    down, across = factors.row_count // size, ceil_div(factors.column_count, width)
    w.line(f"down = {down}")
    w.line(f"across = {code.dim(across)}")
    w.line("row = tl.program_id(0) % down")
    w.line("column = tl.program_id(0) // down")
    open_tile(code, (), (factors.rows, size), (factors.columns, width))
    for instr in factors.before:
        code.instr(instr)
    total = _product(code, source, factors, size, down, float32)
    code.values[factors.result] = Value(total, DType.F32, ROWS | COLUMNS)
    for instr in factors.after:
        code.instr(instr)
    ref = LaunchRef(symbol, down * across, 1, tuple(code.sizes), 4, 3)
    params = tuple(DType.U8 if k == source.weight else b.dtype for k, b in enumerate(nest.buffers))
    loop = factors.loop
    products = Products(
        "block-sparse contraction",
        factors.dtype,
        size,
        width,
        size,
        are_aligned(loop.body, (factors.other,), (*loop.axes, *factors.columns)),
        others=True,  # words that say where blocks are
    )
    return KernelCode(ref, code.text(symbol), params, products)


def _product(
    code: Code,
    source: SparseContraction,
    factors: Factors,
    size: int,
    down: int,
    float32: Float32Products,
) -> str:
    """The sums of the program's tile."""
    w, weight, kind = code.w, f"b{source.weight}", TYPES[factors.dtype]
    w.line(f"words = {weight}.to(tl.pointer_type(tl.int64))")
    # What is known of offsets that are loaded: vectors are loaded only where it is said.
    w.line(f"start = tl.multiple_of(tl.load(words), {ALIGNMENT})")
    w.line(f"values = ({weight} + start).to(tl.pointer_type({kind}))")
    w.line("first = tl.load(words + 1 + row)")
    w.line("last = tl.load(words + 2 + row)")
    w.line(f"inner = tl.arange(0, {size})[None, :] * {size} + tl.arange(0, {size})[:, None]")
    total = w.variable(w.full("0.0", DType.F32, ROWS | COLUMNS))
    precision = f', input_precision="{float32}"' if factors.dtype is DType.F32 else ""
    with w.loop("for e in range(first, last):"):
        outside = dict(code.values)
        w.line(f"block = tl.load(values + e * {size * size} + inner)")
        w.line(f"depth = tl.load(words + {2 + down} + e).to({TYPES[code.index_type]})")
        w.line(f"depth = tl.multiple_of(depth, {size})")
        flat = f"depth + tl.arange(0, {size})[:, None]"
        code.unravel(_DEPTH, w.value(flat, code.index_type, _DEPTH).text, factors.loop.axes)
        needed = cone(factors.loop.body, (factors.other,))
        for instr in factors.loop.body:
            if not isinstance(instr, L.Store) and instr.id in needed:
                code.instr(instr)
        found = code.values[factors.other]
        other = w.broadcast(found.text, found.varies, COLUMNS | _DEPTH)
        w.line(f"{total} = tl.dot(block, {other}, {total}{precision})")
        code.values = outside
    return total
