"""A contraction one factor of which is a sparse weight: what a GPU's kernel for such weights is made of.

    nest [p0: M, p1: N]                           b0: the other factor, b1: the weight [N, K]
      loop [r0: K]   %2 = load b0[p0*K + r0]   %3 = load b1[p1*K + r0]   %4 = mul %2, %3   %5 = reduce_sum %4
      once           ... %5 ...

Such a nest has a dense kernel as any other has. The kernel here does the same, and reads the weight in
compressed form (2:4: ``ir.sparse_mma``, blocks: ``ir.block_sparse``) from where the nest reads the weight
itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lazyc.ir import loops as L
from lazyc.ir.index import Axis, Index, axis_index
from lazyc.ir.nest_text import print_nest
from lazyc.ir.nest_values import axes_of_values, cone
from lazyc.ir.sparse import BLOCKS, GROUP, Sparsity
from lazyc.ir.types import Dim, DType, numel

_ACCUMULATORS = (DType.F32, DType.I32)
# What may be computed before and after the product: what cannot fail, and needs no code of more than a line.
PLAIN_OPS = frozenset((
    "add", "sub", "mul", "div", "neg", "abs", "not", "and", "or", "xor", "eq", "ne", "lt", "le",
    "gt", "ge", "isnan", "where", "cast", "sign", "maximum", "minimum", "exp", "exp2", "expm1",
    "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "atan2", "hypot", "copysign", "trunc",
    "floor", "ceil", "round", "sqrt", "rsqrt", "reciprocal", "sigmoid", "pow", "fmax", "fmin",
))  # fmt: skip


@dataclass(frozen=True)
class SparseContraction:
    """``nest`` with the sparse weight of its param ``weight`` in compressed form. ``nest_key``: by which the
    Program knows the nest; ``shape``: of the weight, [n, k], which a nest that was loaded does not tell."""

    nest: L.LoopNest
    nest_key: str
    weight: int
    sparsity: Sparsity = "2:4"
    shape: tuple[int, int] = (0, 0)

    @property
    def dtype(self) -> DType:
        """Of the weight."""
        return self.nest.buffers[self.weight].dtype

    @property
    def text(self) -> str:
        """The canonical text, by which equal kernels are found."""
        return f"{self.sparsity} weight b{self.weight}\n{print_nest(self.nest)}"

    @property
    def key(self) -> str:
        return sparse_key(self.nest_key, self.weight, self.sparsity)

    @property
    def comment(self) -> str:
        return self.nest.comment


def sparse_key(nest_key: str, weight: int, sparsity: Sparsity) -> str:
    """The key of a SparseContraction."""
    return hashlib.sha256(f"{sparsity} weight b{weight} of {nest_key}".encode()).hexdigest()


@dataclass(frozen=True)
class Factors:
    """The parts of such a nest. ``rows`` are the axes of the weight's rows, ``columns`` the other outer
    axes; ``other`` is the id of the other factor, in the weight's ``dtype`` (before it was widened to the
    type that products are added in). ``before`` and ``after``: what is computed once, before and after the loop."""

    dtype: DType
    loop: L.Stage
    result: int
    other: int
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    before: tuple[L.Instr, ...]
    after: tuple[L.Instr, ...]

    @property
    def needed(self) -> tuple[L.Instr, ...]:
        """What the other factor is computed by."""
        body = (*self.before, *self.loop.body)
        inside = cone(body, (self.other,))
        return tuple(i for i in body if not isinstance(i, L.Store) and i.id in inside)

    @property
    def row_count(self) -> int:
        found = numel(a.size for a in self.rows)
        assert isinstance(found, int)
        return found

    @property
    def column_count(self) -> Dim:
        return numel(a.size for a in self.columns)

    @property
    def depth(self) -> int:
        found = numel(a.size for a in self.loop.axes)
        assert isinstance(found, int)
        return found


def find_factors(nest: L.LoopNest, weight: int, sparsity: Sparsity = "2:4") -> Factors | str:
    """The parts of a nest as a product with the weight [rows, depth] in its param ``weight``; or why there
    is no kernel for it."""
    if not is_contraction(nest):
        return "it is no contraction"
    (loop,) = (s for s in nest.stages if s.axes)
    instrs = {i.id: i for s in nest.stages for i in s.body if not isinstance(i, L.Store)}
    last = loop.body[-1]
    assert isinstance(last, L.Reduce)
    product = instrs[last.value]
    assert isinstance(product, L.Compute)
    reads = [i for i in instrs.values() if isinstance(i, L.Load) and i.buffer == weight]
    dtype = nest.buffers[weight].dtype
    if dtype.accumulator is not last.dtype or len(reads) != 1:
        return f"the weight is of a type that is not multiplied in {last.dtype.value}, or is read besides"
    sources = [_before_casts(instrs, value, dtype) for value in product.args]
    places = [k for k, source in enumerate(sources) if source == reads[0].id]
    if len(places) != 1:
        return "something is computed from the weight before the product"
    other = product.args[1 - places[0]]
    if dtype.is_widened:
        other = _before_widening(instrs, other)
    if other is None or instrs[other].dtype is not dtype:
        return f"the other factor is not {dtype.value}"
    rows = tuple(a for a in nest.axes if a in reads[0].index.axes())
    columns = tuple(a for a in nest.axes if a not in rows)
    if any(a in axes_of_values(nest.stages)[other] for a in rows):
        return "the other factor varies along the rows of the weight"
    once = [tuple(i for s in part for i in s.body) for part in _around(nest.stages, loop)]
    found = Factors(dtype, loop, last.id, other, rows, columns, *once)
    if not all(isinstance(a.size, int) for a in (*rows, *loop.axes)):
        return "the sizes of the weight are not fixed"
    whole = row_major(rows) * found.depth + row_major(loop.axes)
    if reads[0].mask is not None or reads[0].index != whole:
        return "the weight is not a whole [n, k] matrix with contiguous rows"
    if 0 in (found.row_count, found.column_count, found.depth):
        return "it has no elements"
    block = BLOCKS.get(sparsity)
    if found.depth % (block or GROUP) or found.row_count % (block or 1):
        shape = f"[{found.row_count}, {found.depth}]"
        return f"{shape} weights are no whole groups of {block or GROUP}"
    return _without_code(nest, found) or found


def _around(
    stages: Sequence[L.Stage], loop: L.Stage
) -> tuple[Sequence[L.Stage], Sequence[L.Stage]]:
    """The stages before and after one of them."""
    at = next(k for k, stage in enumerate(stages) if stage is loop)
    return stages[:at], stages[at + 1 :]


def is_contraction(nest: L.LoopNest) -> bool:
    """Whether all that a nest loops for is one sum of products, of a type that tensor cores add
    in."""
    loops = [s for s in nest.stages if s.axes]
    if len(loops) != 1 or any(b.role == "scratch" for b in nest.buffers):
        return False
    body = loops[0].body
    last = body[-1]
    if not isinstance(last, L.Reduce) or last.kind != "sum" or last.dtype not in _ACCUMULATORS:
        return False
    product = next((i for i in body if not isinstance(i, L.Store) and i.id == last.value), None)
    is_product = isinstance(product, L.Compute) and product.op == "mul"
    return is_product and len(cone(body, (last.id,))) == len(body)


def row_major(axes: Sequence[Axis]) -> Index:
    """The flat position of a point of ``axes``."""
    total = Index(0)
    for axis in axes:
        total = total * axis.size + axis_index(axis)
    return total


def _before_widening(instrs: Mapping[int, L.Instr], value: int) -> int | None:
    """What a factor was before it was widened."""
    instr = instrs[value]
    if not isinstance(instr, L.Compute) or instr.op != "cast":
        return None
    return instr.args[0]


def _before_casts(instrs: Mapping[int, L.Instr], value: int, dtype: DType) -> int:
    """What a value was before casts between a type and its accumulator, which leave it as it is."""
    instr = instrs[value]
    exact = (dtype, dtype.accumulator)
    while isinstance(instr, L.Compute) and instr.op == "cast" and instr.dtype in exact:
        value = instr.args[0]
        instr = instrs[value]
    return value


def _without_code(nest: L.LoopNest, found: Factors) -> str:
    """Why what surrounds the product cannot be a part of the kernel; "" where it can."""
    inside = {i.id for i in found.needed if not isinstance(i, L.Store)}
    if any(isinstance(i, L.Store) for i in found.before):
        return "something is stored before the product"
    for stage in nest.stages:
        for instr in stage.body:
            is_own = stage is found.loop and (isinstance(instr, L.Store) or instr.id not in inside)
            if not is_own and not _has_code(instr):
                return f"no code for {_name(instr)} besides the product"
    return ""


def _has_code(instr: L.Instr) -> bool:
    match instr:
        case L.Const() | L.IndexValue() | L.Load():
            return True
        case L.Compute():
            return instr.op in PLAIN_OPS and (instr.op != "pow" or instr.dtype.is_float)
        case L.Store():
            return instr.mode == "set"
        case _:
            return False


def _name(instr: L.Instr) -> str:
    return instr.op if isinstance(instr, L.Compute) else type(instr).__name__
