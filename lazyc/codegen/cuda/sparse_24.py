"""The kernel of a product with a 2:4 weight on the sparse tensor cores (PTX's ``mma.sp``), in CUDA C++.

The sparse factor of the instruction is its left one, so a block computes a tile of the weight's rows by the
other factor's columns, whichever of the two is which in the nest: ``x @ w^T`` is the transpose of ``w @ x^T``.
The weight comes in compressed form (``ir.sparse_mma``), of which a thread loads what it hands to the
instruction. The other factor lies in shared memory as it does in global memory, and ``ldmatrix`` (transposing,
where columns are contiguous) deals it out; what is computed before the product is computed on the way there.
What differs between types is ``ir.sparse_mma.MMAS``, the type of the sums, and that a transposing ``ldmatrix``
moves pairs of bytes, which are parted in registers.
Blocks along k are copied while others are multiplied (``cp.async``). Sums go through shared memory to the
threads that store them, which compute what follows the product: neighbours store neighbours.

The kernel's params are those of the nest, the compressed weight in place of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, TypeAlias

import sympy
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lazyc.codegen.base import CodegenError, KernelCode, LaunchRef, Products
from lazyc.codegen.cuda.expressions import TYPES
from lazyc.codegen.cuda.scalar import ScalarCode
from lazyc.codegen.gpu_target import GpuTarget
from lazyc.ir import loops as L
from lazyc.ir.index import Axis, FloorDiv, Mod
from lazyc.ir.sparse_contraction import Factors, SparseContraction, find_factors
from lazyc.ir.sparse_mma import MMAS, ROW_GROUP, STEP_BYTES, STEPS_TOGETHER, MmaFormat
from lazyc.ir.types import Dim, DType

_GROUP = 8  # tiles down that blocks numbered one after another cover
_BUSY = 96  # blocks that a GPU of about a hundred multiprocessors wants at least
_VECTOR_BYTES = 16
# How the other factor comes to shared memory: copied in vectors along either dim, or computed.
Layout: TypeAlias = Literal["depth", "columns", "elements"]


@dataclass(frozen=True, slots=True)
class Tiles:
    """``rows`` by ``columns`` of a block, the grid of its warps, and blocks along k in shared memory at one
    time."""

    rows: int
    columns: int
    warps_down: int
    warps_across: int
    stages: int

    def __str__(self) -> str:
        warps = f"{self.warps_down}x{self.warps_across}"
        return f"{self.rows}x{self.columns}, {warps} warps, {self.stages} stages"

    @property
    def warps(self) -> int:
        return self.warps_down * self.warps_across

    def shared_bytes(self, dtype: DType, rows_are_fast: bool) -> int:
        """Of a block that multiplies factors of a type: the stages of the product, or its results."""
        values = ROW_GROUP * STEP_BYTES // 2  # of a group of rows in a step
        weight = self.rows // ROW_GROUP * (values + _metadata_bytes(dtype))
        stage = STEPS_TOGETHER * (weight + self.columns * STEP_BYTES)
        fast, slow = (self.rows, self.columns) if rows_are_fast else (self.columns, self.rows)
        return max(self.stages * stage, (fast + _pad(rows_are_fast)) * slow * 4)


TILES = (  # rows, columns, warps down and across
    (128, 128, 2, 4),
    (128, 64, 2, 2),
    (64, 64, 1, 2),
    (128, 32, 4, 1),
    (64, 32, 2, 1),
    (64, 16, 2, 1),
)


def _metadata_bytes(dtype: DType) -> int:
    """Of a group of rows in a step."""
    return MMAS[dtype].words * 32 * 4


def choose_tiles(dtype: DType, rows: int, columns: Dim, target: GpuTarget) -> Tiles:
    """Large tiles read each factor less often; smaller ones are taken where columns would be missing, or
    blocks to keep the GPU busy."""
    known = columns if isinstance(columns, int) else 64
    least = min((t[1] for t in TILES if t[1] >= known), default=TILES[0][1])
    fitting = [t for t in TILES if t[1] <= least]
    busy = [t for t in fitting if -(-rows // t[0]) * -(-known // t[1]) >= _BUSY]
    # Narrower tiles than 32 columns read the weight too often for what they multiply.
    small = [t for t in fitting if t[1] >= min(least, 32)]
    down, across, warps_down, warps_across = busy[0] if busy else small[-1]
    for stages in (4, 3):
        tiles = Tiles(down, across, warps_down, warps_across, stages)
        if tiles.shared_bytes(dtype, rows_are_fast=True) <= target.shared_bytes:
            return tiles
    raise CodegenError(f"{target.name} has too little shared memory")


def generate(
    source: SparseContraction, symbol: str, target: GpuTarget, tiles: Tiles | None = None
) -> KernelCode:
    """The kernel of a SparseContraction, by default with the tiles of ``choose_tiles``. Raises CodegenError for
    what there is no code for."""
    nest, factors = source.nest, find_factors(source.nest, source.weight)
    if isinstance(factors, str):
        raise CodegenError(f"2:4 weight in b{source.weight}: {factors}")
    sizes: list[Dim] = []
    columns = factors.column_count
    if tiles is None:
        tiles = choose_tiles(factors.dtype, factors.row_count, columns, target)
    load, layout = _other_factor(factors)
    rows_are_fast = nest.axes[-1] in factors.rows
    form = MmaFormat(factors.dtype, factors.row_count, factors.depth)

    before = ScalarCode(nest, sizes)
    before.unravel("column", factors.columns)
    before.unravel("depth", factors.loop.axes)
    before.run(factors.needed)
    after = ScalarCode(nest, sizes)
    after.unravel("column", factors.columns)
    after.unravel("row", factors.rows)
    accumulator = factors.dtype.accumulator
    after.values[factors.result] = f"v{factors.result}", accumulator
    after.run((*factors.before, *factors.after))

    text = _template().render(
        primitives=_primitives(),
        symbol=symbol,
        element=TYPES[factors.dtype],
        accumulator=TYPES[accumulator],
        step=form.mma.step,
        words=form.mma.words,
        rows=factors.row_count,
        depth=factors.depth,
        columns=after.dim(columns),
        tiles=tiles,
        layout=layout,
        rows_are_fast=rows_are_fast,
        result_pad=_pad(rows_are_fast),
        metadata_offset=form.metadata_offset,
        group=_GROUP,
        index_type=after.index_type,
        weight=f"b{source.weight}",
        other="" if load is None else f"b{load.buffer}",
        other_index="" if load is None else before.index(load.index),
        other_value=f"v{factors.other}",
        prologue=before.lines,
        epilogue=after.lines,
        result=factors.result,
        parameters=_parameters(nest, source.weight, sizes),
    )
    down, across = -(-factors.row_count // tiles.rows), _ceil_div(columns, tiles.columns)
    ref = LaunchRef(symbol, down * across, 1, tuple(sizes), tiles.warps, tiles.stages)
    params = tuple(DType.U8 if k == source.weight else b.dtype for k, b in enumerate(nest.buffers))
    shared = tiles.shared_bytes(factors.dtype, rows_are_fast)
    products = Products(
        "2:4 contraction",
        factors.dtype,
        tiles.rows,
        tiles.columns,
        STEPS_TOGETHER * form.mma.step,
        layout != "elements",
    )
    return KernelCode(ref, text, params, products, True, shared, str(tiles))


def _pad(rows_are_fast: bool) -> int:
    """Words beyond whole lines between rows of results in shared memory: fragments then lie on all banks."""
    return 4 if rows_are_fast else 8


def _other_factor(factors: Factors) -> tuple[L.Load | None, Layout]:
    """The load that the other factor is, where it can be copied in vectors of 16 bytes, and how."""
    instrs = {i.id: i for i in factors.needed if not isinstance(i, L.Store)}
    load = instrs[factors.other]
    while (
        isinstance(load, L.Compute)
        and load.op == "cast"
        and load.dtype in (factors.dtype, factors.dtype.accumulator)
    ):
        load = instrs[load.args[0]]
    if not isinstance(load, L.Load) or load.dtype is not factors.dtype or load.mask is not None:
        return None, "elements"
    layouts: dict[Layout, tuple[Axis, ...]] = {
        "depth": factors.loop.axes,
        "columns": factors.columns,
    }
    for layout, axes in layouts.items():
        if axes and _is_in_vectors(load, axes[-1]):
            return load, layout
    return None, "elements"


def _is_in_vectors(load: L.Load, axis: Axis) -> bool:
    """Whether the elements along ``axis`` are whole vectors of 16 aligned bytes."""
    index, vector = load.index, _VECTOR_BYTES // load.dtype.itemsize
    inner = [a.base.axes() for a, _ in index.terms if isinstance(a, FloorDiv | Mod)]
    rest = [index.const, *(c for a, c in index.terms if a != axis)]
    return (
        index.coef(axis) == 1
        and not any(axis in axes for axes in inner)
        and all(isinstance(n, int) and n % vector == 0 for n in (*rest, axis.size))
    )


def _parameters(nest: L.LoopNest, weight: int, sizes: list[Dim]) -> str:
    found = []
    for k, buffer in enumerate(nest.buffers):
        kind = "unsigned char" if k == weight else TYPES[buffer.dtype]
        constant = "const " if buffer.role == "in" else ""
        found.append(f"{constant}{kind}* __restrict__ b{k}")
    found += [f"long long d{k}" for k in range(len(sizes))]
    return ", ".join([*found, "int* error"])


def _ceil_div(size: Dim, by: int) -> Dim:
    return -(-size // by) if isinstance(size, int) else sympy.floor((size + by - 1) / by)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lazyc.codegen.cuda", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template("sparse_24.cu.jinja")


@cache
def _primitives() -> str:
    return resources.files("lazyc.codegen.cuda").joinpath("primitives.cuh").read_text("utf-8")
