"""Programs and tensors as JSON and raw bytes, for the disk cache.

Every dataclass of ``ir/program.py`` has a record here that names each field and its codec; a value
that no codec knows raises ``NotCacheable`` on the way out, and data that is not exactly what a
codec wrote raises ``CacheCorrupt`` on the way in. Of a LoopNest only the interface is stored, its
buffers and symbols: a loaded Program has nests without axes and stages, which can be bound and run
with compiled kernels (a ``KernelRef`` for each nest) and not compiled again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lazyc.codegen.base import KernelRef, LaunchRef, Ref
from lazyc.errors import CacheCorrupt, NotCacheable
from lazyc.ir import program as P
from lazyc.ir.decisions import Decision
from lazyc.ir.loops import BufferParam, LoopNest
from lazyc.ir.sparse import SparseProduct
from lazyc.ir.tiled_product import Tile
from lazyc.runtime import codec as C
from lazyc.runtime.dims import decode_symbol, encode_dim
from lazyc.runtime.tensors import dump_tensor, load_tensor

CPU_KERNEL = C.record(KernelRef, symbol=C.STR, items=C.DIM, grain=C.INT, ordered=C.INT)
LAUNCHED_KERNEL = C.record(
    LaunchRef,
    symbol=C.STR,
    programs=C.DIM,
    points=C.INT,
    sizes=C.SHAPE,
    warps=C.INT,
    stages=C.INT,
    alternatives=C.INT,
)
KERNEL_REF = C.union({"cpu": CPU_KERNEL, "launched": LAUNCHED_KERNEL})

BUFFER = C.record(
    P.Buffer,
    id=C.INT,
    kind=C.one_of("input", "constant", "temp", "output", "eager", "packed", "opaque"),
    dtype=C.optional(C.DTYPE),
    shape=C.SHAPE,
    strides=C.SHAPE,
    source=C.INT,
    device=C.STR,
)
OPERAND = C.record(
    P.Operand,
    buffer=C.INT,
    offset=C.DIM,
    row_stride=C.DIM,
    col_stride=C.DIM,
    batch_strides=C.SHAPE,
)
SPARSITY = C.one_of("2:4", "block 16", "block 32")
SPARSE_FACTOR = C.record(
    P.SparseFactor, sparsity=SPARSITY, weight=C.INT, sizes=C.SHAPE, is_used=C.BOOL, reason=C.STR
)
KERNEL_STEP = C.record(
    P.KernelStep,
    nest=C.STR,
    buffers=C.sequence(C.INT),
    sizes=C.SHAPE,
    comment=C.STR,
    sparse=C.optional(SPARSE_FACTOR),
)
SPARSE_PRODUCT = C.record(
    SparseProduct,
    sparsity=SPARSITY,
    dtype=C.DTYPE,
    m=C.INT,
    n=C.INT,
    k=C.INT,
    lda=C.INT,
    ldc=C.INT,
    tile=C.INT,
    comment=C.STR,
)
SPARSE_CHOICE = C.record(
    P.SparseChoice, sparsity=SPARSITY, kernel=C.optional(SPARSE_PRODUCT), reason=C.STR
)
TILE = C.record(Tile, rows=C.INT, columns=C.INT, depth=C.INT, group=C.INT)
GEMM_STEP = C.record(
    P.GemmStep,
    dtype=C.DTYPE,
    batch=C.SHAPE,
    m=C.DIM,
    n=C.DIM,
    k=C.DIM,
    a=OPERAND,
    b=OPERAND,
    c=OPERAND,
    accumulate=C.BOOL,
    pack_b=C.BOOL,
    comment=C.STR,
    sparse=C.optional(SPARSE_CHOICE),
    tile=C.optional(TILE),
    is_wide=C.BOOL,
)
BUFFER_REF = C.record(
    P.BufferRef, id=C.INT, shape=C.optional(C.SHAPE), strides=C.SHAPE, offset=C.DIM
)
TEMPLATE = C.template({"buffer": BUFFER_REF})
EAGER_STEP = C.record(
    P.EagerStep,
    target=C.STR,
    args=C.sequence(TEMPLATE),
    kwargs=C.sequence(C.pair(C.STR, TEMPLATE)),
    outputs=C.sequence(C.INT),
    is_tuple=C.BOOL,
    is_fallback=C.BOOL,
    reason=C.STR,
    comment=C.STR,
)
SEED_STEP = C.record(P.SeedStep, output=C.INT)
STEP = C.union({"kernel": KERNEL_STEP, "gemm": GEMM_STEP, "eager": EAGER_STEP, "seed": SEED_STEP})
OUTPUT = C.record(
    P.ProgramOutput,
    buffer=C.INT,
    shape=C.SHAPE,
    strides=C.SHAPE,
    offset=C.DIM,
    value=C.optional(C.DIM),
)
ROW_STEP = C.record(
    P.RowStep,
    dim=C.one_of("m", "n", "k", ""),
    axes=C.INT,
    sums=C.optional(C.pair(KERNEL_STEP, KERNEL_STEP)),
)
ROW_TILES = C.record(
    P.RowTiles,
    first=C.INT,
    steps=C.sequence(ROW_STEP),
    batch=C.DIM,
    rows=C.DIM,
    private=C.sequence(C.pair(C.INT, C.DIM)),
    is_attention=C.BOOL,
    summed=C.SHAPE,
    always=C.BOOL,
)
SYMBOL = C.Codec(encode_dim, decode_symbol)
SYMBOL_SOURCE = C.record(
    P.SymbolSource,
    symbol=SYMBOL,
    input=C.INT,
    dim=C.optional(C.INT),
)
BUFFER_PARAM = C.record(
    BufferParam, dtype=C.DTYPE, role=C.one_of("in", "out", "inout", "scratch"), numel=C.DIM
)
_INTERFACE = C.pair(C.pair(C.sequence(BUFFER_PARAM), C.sequence(SYMBOL)), C.STR)


def _decode_nest(data: Any) -> LoopNest:
    (buffers, symbols), comment = _INTERFACE.decode(data)
    return LoopNest((), (), buffers, symbols, comment=comment)


NEST = C.Codec(
    lambda nest: _INTERFACE.encode(((nest.buffers, nest.symbols), nest.comment)), _decode_nest
)
DECISION = C.record(
    Decision,
    what=C.STR,
    why=C.STR,
    line=C.STR,
    bytes_copied=C.optional(C.INT),
    bytes_kept=C.optional(C.INT),
    bytes_saved=C.optional(C.INT),
    seconds_saved=C.FLOAT,
    by=C.STR,
)
# All fields of Program except nests (the used ones, by key) and constants (parts of their own).
PROGRAM_FIELDS: Mapping[str, C.Codec] = {
    "inputs": C.sequence(C.INT),
    "buffers": C.sequence(BUFFER),
    "steps": C.sequence(STEP),
    "outputs": C.sequence(OUTPUT),
    "symbols": C.sequence(SYMBOL_SOURCE),
    "packed": C.sequence(STEP),
    "parameters": C.sequence(C.INT),
    "tiles": C.sequence(ROW_TILES),
    "decisions": C.sequence(DECISION),
}


def dump_program(program: P.Program, kernels: Mapping[str, Ref]) -> dict[str, bytes]:
    """A Program as named parts: "program" (JSON) and "constant.0", ... (raw elements).

    ``kernels`` has an entry for every kernel that a step uses, ``program.nests`` for every nest. Raises
    NotCacheable.
    """
    used = {s.nest for s in program.kernel_steps()}
    constants = [dump_tensor(t) for t in program.constants]
    tree = {name: codec.encode(getattr(program, name)) for name, codec in PROGRAM_FIELDS.items()}
    used_kernels = sorted({*used, *program.product_kernels()})
    tree["kernels"] = {key: KERNEL_REF.encode(kernels[key]) for key in used_kernels}
    tree["nests"] = {key: NEST.encode(program.nests[key]) for key in sorted(used)}
    tree["constants"] = [header for header, _ in constants]
    parts = {"program": json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()}
    return parts | {f"constant.{k}": data for k, (_, data) in enumerate(constants)}


def load_program(parts: Mapping[str, bytes]) -> tuple[P.Program, dict[str, Ref]]:
    """The Program and its kernels from the parts of ``dump_program``. Raises CacheCorrupt."""
    try:
        return _load(parts)
    except CacheCorrupt:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, NotCacheable, ArithmeticError) as e:
        # Structure is checked by the codecs; this is JSON, sympy or torch refusing a value.
        raise CacheCorrupt(f"program: {type(e).__name__}: {e}") from e


def _load(parts: Mapping[str, bytes]) -> tuple[P.Program, dict[str, Ref]]:
    tree = json.loads(parts["program"])
    expected = {*PROGRAM_FIELDS, "nests", "kernels", "constants"}
    if not isinstance(tree, dict) or tree.keys() != expected:
        raise CacheCorrupt("program: other fields than this version writes")
    headers, refs, interfaces = tree["constants"], tree["kernels"], tree["nests"]
    if not isinstance(headers, list) or not isinstance(refs, dict):
        raise CacheCorrupt("program: bad table of constants or kernels")
    if not isinstance(interfaces, dict):
        raise CacheCorrupt("program: bad table of nests")
    fields = {name: codec.decode(tree[name]) for name, codec in PROGRAM_FIELDS.items()}
    constants = [load_tensor(h, parts[f"constant.{k}"]) for k, h in enumerate(headers)]
    kernels = {key: KERNEL_REF.decode(data) for key, data in refs.items()}
    nests = {key: NEST.decode(data) for key, data in interfaces.items()}
    program = P.Program(nests=nests, constants=constants, **fields)
    for step in program.kernel_steps():
        if step.nest not in nests:
            raise CacheCorrupt(f"program: no kernel {step.nest}")
    if program.kernel_sources().keys() != kernels.keys():
        raise CacheCorrupt("program: bad table of nests")
    return program, kernels
