"""The Program: an ordered list of steps over a table of buffers, ready to be bound and run.

A Program is data: it holds no code, no address and no tensor except constants, so that it can be
written to the disk cache. Kernels are named by the key of their LoopNest. Dims may be symbolic;
``runtime/`` evaluates them when it binds the Program to concrete sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

from lazyc.ir.decisions import Decision
from lazyc.ir.loops import LoopNest
from lazyc.ir.sparse import SparseProduct, Sparsity
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.tiled_product import Tile, TiledKernel, tiled_kernels
from lazyc.ir.types import Dim, DType, Shape, SymbolSource


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of a tensor: ``shape`` and ``strides`` in elements, row 0 at byte ``offset`` of its base.

    * ``input``: argument ``source`` of the call. ``constant``: ``Program.constants[source]``.
    * ``temp``: lives in the arena between its first and last use.
    * ``output``: a fresh tensor for each call, handed to the caller.
    * ``eager``: the tensor that an eager step returned.
    * ``packed``: derived from parameter inputs alone (a weight repacked for the GEMM), kept between
      calls and recomputed when a version guard fails.
    * ``opaque``: a value without memory that lazyc could name (a tuple, a sparse tensor, a scalar).
    """

    id: int
    kind: Literal["input", "constant", "temp", "output", "eager", "packed", "opaque"]
    dtype: DType | None
    shape: Shape
    strides: Shape
    source: int = -1
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class SparseFactor:
    """How a contraction is computed one factor of which is a weight that is declared sparse, in param
    ``weight`` of the nest: by a SparseContraction as long as the weight's values are that sparse, or (not
    ``is_used``) as any other. ``sizes``: m, n, k of the product; ``reason`` says why."""

    sparsity: Sparsity
    weight: int
    sizes: Shape
    is_used: bool
    reason: str


@dataclass(frozen=True, slots=True)
class KernelStep:
    """Runs kernel ``nest`` (key into Program.nests) on buffers, in the order of its params
    (scratch params are left out). ``sizes`` are the values of the nest's symbols. ``sparse``: what may take
    the place of the kernel."""

    nest: str
    buffers: tuple[int, ...]
    sizes: tuple[Dim, ...]
    comment: str = ""  # provenance: ops and user lines, for reports
    sparse: SparseFactor | None = None


@dataclass(frozen=True, slots=True)
class Operand:
    """A matrix (or batch of matrices) inside a buffer, strides in elements.

    Element [b..., i, j] is at ``offset + sum(b*batch_stride) + i*row_stride + j*col_stride``;
    row_stride or col_stride is 1 (what BLAS can read, plain or transposed).
    """

    buffer: int
    offset: Dim
    row_stride: Dim
    col_stride: Dim
    batch_strides: Shape = ()


@dataclass(frozen=True, slots=True)
class SparseChoice:
    """How a product is computed whose b is a weight that is declared sparse: by ``kernel`` as long as
    the weight's values are that sparse, or (None) as a dense product. ``reason`` says why."""

    sparsity: Sparsity
    kernel: SparseProduct | None
    reason: str


@dataclass(frozen=True, slots=True)
class GemmStep:
    """``c = a @ b`` (``+ c`` when ``accumulate``), [*batch, m, k] @ [*batch, k, n], by a BLAS library.

    ``pack_b``: b is made from parameters only; the runtime may keep a packed copy of it between
    calls, guarded by the version of those inputs. ``tile``: that of generated kernels which may take the
    place of the library. ``sparse``: what may take the place of both. ``is_wide``: a and b are of a half
    type and c is not: it has the type that they are added in.
    """

    dtype: DType
    batch: Shape  # any number of batch dims, each with a stride in every operand
    m: Dim
    n: Dim
    k: Dim
    a: Operand
    b: Operand
    c: Operand
    accumulate: bool = False
    pack_b: bool = False
    comment: str = ""
    sparse: SparseChoice | None = None
    tile: Tile | None = None
    is_wide: bool = False

    @property
    def result_dtype(self) -> DType:
        return self.dtype.accumulator if self.is_wide else self.dtype


@dataclass(frozen=True, slots=True)
class BufferRef:
    """In an argument template of an eager step: the tensor of buffer ``id``.

    With ``shape``, a view of it: ``shape``/``strides`` in elements from element ``offset``.
    """

    id: int
    shape: Shape | None = None
    strides: Shape = ()
    offset: Dim = 0


def references(template: Any) -> Iterator[BufferRef]:
    """The buffers in an argument template."""
    if isinstance(template, BufferRef):
        yield template
    elif isinstance(template, tuple | list):
        for part in template:
            yield from references(part)


@dataclass(frozen=True, slots=True)
class EagerStep:
    """Calls operator ``target`` ("aten.sort.default") in eager torch.

    ``args`` and ``kwargs`` are templates: BufferRef for tensors, dims for SymInts, nested tuples for
    lists. ``outputs`` are the buffers (kind "eager" or "opaque") that receive the results.
    ``is_fallback``: lazyc has no lowering (``reason`` says why), against a library call by choice.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[int, ...]
    is_tuple: bool
    is_fallback: bool
    reason: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True)
class SeedStep:
    """Draws a fresh 64-bit seed from torch's generator into an i64[] buffer."""

    output: int


Step: TypeAlias = KernelStep | GemmStep | EagerStep | SeedStep
# What a code generator makes a kernel of.
KernelSource: TypeAlias = LoopNest | SparseProduct | SparseContraction | TiledKernel


@dataclass(frozen=True, slots=True)
class RowStep:
    """How a step of RowTiles goes along the rows.

    A product: ``dim`` of m, n and k runs over the rows of one matrix. A kernel: its first ``axes``
    outer axes run over all rows of all matrices. A kernel that adds matrices up is another one for a block:
    ``sums`` are the step that writes the rows of the first matrix to the result, and the step that adds
    those of a later one to it. Their first outer axis runs over the rows of the result.
    """

    dim: Literal["m", "n", "k", ""] = ""
    axes: int = 0
    sums: tuple[KernelStep, KernelStep] | None = None


@dataclass(frozen=True, slots=True)
class RowTiles:
    """Steps from ``first`` on, one for each of ``steps``, that may run a block of rows at a time.

    The rows are those of ``batch`` matrices of ``rows`` rows each. ``private`` pairs temporaries that
    these steps alone touch with the elements of one of their rows; they lie row after row, a step
    touches at each row that row of them only, and so a block of rows is all that needs memory at one
    time. Blocks are independent, except that a product along k adds those of one matrix up, and steps with
    ``sums`` equal blocks of several matrices, each in an order that depends on sizes alone. ``summed`` is the batch
    as (outer, groups, inner), of which the first and the last dim are added up; empty where no step has sums.
    ``is_attention``: a softmax lies between two products. ``always``: it is asked for that they run by blocks,
    whatever their sizes.
    """

    first: int
    steps: tuple[RowStep, ...]
    batch: Dim
    rows: Dim
    private: tuple[tuple[int, Dim], ...]
    is_attention: bool = False
    summed: Shape = ()
    always: bool = False

    @property
    def span(self) -> range:
        """The positions of its steps in the Program."""
        return range(self.first, self.first + len(self.steps))


@dataclass(frozen=True, slots=True)
class ProgramOutput:
    """One result: buffer ``buffer`` seen as ``shape``/``strides`` at element ``offset``; or, where
    buffer is -1, the plain value ``value`` (None or a Dim)."""

    buffer: int
    shape: Shape = ()
    strides: Shape = ()
    offset: Dim = 0
    value: Dim | None = None


@dataclass
class Program:
    """``inputs`` are the buffer ids of the arguments, in order (-1 for an argument not used).

    ``tiles`` says which steps may run a block of rows at a time; that changes no result.
    """

    inputs: tuple[int, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    outputs: tuple[ProgramOutput, ...]
    nests: dict[str, LoopNest]
    constants: list[torch.Tensor] = field(default_factory=list)
    symbols: tuple[SymbolSource, ...] = ()
    packed: tuple[Step, ...] = ()  # steps that fill "packed" buffers, run when a guard fails
    parameters: tuple[int, ...] = ()  # input indices that the packed steps and pack_b depend on
    tiles: tuple[RowTiles, ...] = ()  # in order, no two with a step in common
    decisions: tuple[Decision, ...] = ()  # how it came to be so, for reports

    def kernel_steps(self) -> Iterator[KernelStep]:
        """All that run a nest: steps, packed ones, and what takes the place of a step in blocks of rows."""
        yield from (s for s in (*self.steps, *self.packed) if isinstance(s, KernelStep))
        for tiles in self.tiles:
            for how in tiles.steps:
                yield from how.sums or ()

    def kernel_sources(self) -> dict[str, KernelSource]:
        """What its kernels are made of, by key: those of products, and the nests."""
        return {**self.product_kernels(), **self.nests}

    def product_kernels(self) -> dict[str, KernelSource]:
        """The kernels that may take the place of the library, or of nests, by key."""
        sparse = (p for _, p in (*self.sparse_products(), *self.sparse_contractions()))
        tiles = {s.tile for s in self.steps if isinstance(s, GemmStep) and s.tile is not None}
        tiled = (kernel for tile in tiles for kernel in tiled_kernels(tile))
        return {p.key: p for p in (*sparse, *tiled)}

    def sparse_products(self) -> list[tuple[int, SparseProduct]]:
        """The kernels that may take the place of matrix products, with the numbers of their steps."""
        return [
            (number, step.sparse.kernel)
            for number, step in enumerate(self.steps)
            if isinstance(step, GemmStep) and step.sparse is not None and step.sparse.kernel
        ]

    def sparse_contractions(self) -> list[tuple[int, SparseContraction]]:
        """The kernels that may take the place of those of nests, with the numbers of their steps."""
        found: list[tuple[int, SparseContraction]] = []
        for number, step in enumerate(self.steps):
            if isinstance(step, KernelStep) and step.sparse is not None and step.sparse.is_used:
                _, n, k = step.sparse.sizes
                assert isinstance(n, int) and isinstance(k, int)
                factor, nest = step.sparse, self.nests[step.nest]
                source = SparseContraction(nest, step.nest, factor.weight, factor.sparsity, (n, k))
                found.append((number, source))
        return found
