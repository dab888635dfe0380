"""The Loop IR: what one kernel computes, as loops over scalar SSA code.

A ``LoopNest`` runs its ``stages`` in order for every point of its outer ``axes``. Outer points are
independent: they may run in any order and on any thread. A ``Stage`` is a loop over its own axes
(possibly none: then its body runs once for each outer point) around a straight-line body. A value
defined by ``Reduce`` is a scalar of the outer point, readable in later stages; so is a value defined
in a stage without axes. Any other value lives in its stage only. Softmax over rows is one nest:
outer axis = rows; stage 1 reduces max, stage 2 reduces sum(exp(x - max)), stage 3 stores.

A ``Dot`` is a loop of its own inside of a body: values whose index has one of its axes vary along
them, and only a dot over them can read these. ``max_j sum_e q[i, e] * k[j, e]`` is one stage over j.

Arithmetic is explicit about types: half types exist only in memory, a ``load`` is followed by a
``cast`` to f32. A bool is i1 as a value and one byte (0 or 1) in memory.

``vectorize`` says which axis the code generators make the vector (CPU) or thread (GPU) axis:
"outer" the last outer axis, "inner" the last axis of every stage, "none" neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import sympy

from lazyc.ir.attrs import Scalar, ScatterMode
from lazyc.ir.index import Axis, Index
from lazyc.ir.types import Dim, DType

ReduceKind: TypeAlias = Literal["sum", "prod", "max", "min", "argmax", "argmin"]
ScanKind: TypeAlias = Literal["sum", "prod", "max", "min"]


@dataclass(frozen=True, slots=True)
class BufferParam:
    """A kernel argument: memory of ``numel`` elements of ``dtype``.

    ``in`` is only read, ``out`` only written, ``inout`` both, in any order (each element at one outer
    point only). ``scratch`` is private to one outer point, and is
    allocated by the kernel; its numel is a small int. Distinct params never overlap.
    """

    dtype: DType
    role: Literal["in", "out", "inout", "scratch"]
    numel: Dim


@dataclass(frozen=True, slots=True)
class Const:
    """A constant of ``dtype`` (floats may be nan or inf; a bool for b1)."""

    id: int
    dtype: DType
    value: Scalar


@dataclass(frozen=True, slots=True)
class IndexValue:
    """An index expression as an i64 value."""

    id: int
    index: Index
    dtype: DType = DType.I64


@dataclass(frozen=True, slots=True)
class Load:
    """``buffers[buffer][index]``; where ``mask`` (a b1 value id) is false nothing is read and the
    value is ``other``. Indices are in elements and in range (wherever the mask is true)."""

    id: int
    dtype: DType
    buffer: int
    index: Index
    mask: int | None = None
    other: Scalar = 0


@dataclass(frozen=True, slots=True)
class Compute:
    """A pointwise op of the op table (``add``, ``where``, ``cast`` to ``dtype``, ``bitcast``).

    All args have the op's compute type, never f16 or bf16 (except under cast and bitcast). Integer
    division by zero sets ERROR_ZERO_DIVISION and yields 0; INT_MIN / -1 wraps.
    """

    id: int
    dtype: DType
    op: str
    args: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CheckIndex:
    """``value`` if 0 <= value < size, else 0 and ERROR_INDEX is set. i64."""

    id: int
    value: int
    size: Dim
    mask: int | None = None  # where false: 0, and no error
    dtype: DType = DType.I64


@dataclass(frozen=True, slots=True)
class Random:
    """A draw from Philox-4x32-10 at ``counter`` (see attrs.RandomAttrs), ``seed`` an i64 value."""

    id: int
    dtype: DType
    kind: Literal["uniform", "normal", "bits"]
    seed: int
    counter: Index


@dataclass(frozen=True, slots=True)
class Reduce:
    """Reduces ``value`` over the stage's axes. In max and min nan wins, as in torch.

    argmax/argmin yield ``position`` (i64 value id) of the first extreme element in loop order (the
    first nan if there is one). The identity of an empty reduction: 0, 1, -inf/lowest, inf/highest.
    """

    id: int
    dtype: DType
    kind: ReduceKind
    value: int
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """Inclusive running reduction of ``value`` along the stage's axes in loop order."""

    id: int
    dtype: DType
    kind: ScanKind
    value: int


@dataclass(frozen=True, slots=True)
class Dot:
    """The sum of ``left * right`` (f32 or f64 values) over ``axes``, which are the dot's own loops: no
    axis of the nest or the stage. Dots of one body may share axes; each runs over all of its own."""

    id: int
    dtype: DType
    axes: tuple[Axis, ...]
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Store:
    """``buffers[buffer][index] = value`` (or ``op=`` per ``mode``), only where ``mask`` is true.

    Two iterations of one stage may store to the same element only in a scatter (the index has a
    ValueRef): then they do so in loop order, and the outer axes keep threads apart.
    """

    buffer: int
    index: Index
    value: int
    mode: ScatterMode = "set"
    mask: int | None = None


def reduction_identity(kind: ReduceKind, dtype: DType) -> float | int | bool:
    """What an empty reduction yields."""
    if kind in ("sum", "prod"):
        return 0 if kind == "sum" else 1
    largest = kind in ("max", "argmax")
    if dtype is DType.BOOL:
        return not largest
    if dtype.is_float:
        return -math.inf if largest else math.inf
    bits = dtype.itemsize * 8
    low, high = (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed else (0, (1 << bits) - 1)
    )
    return low if largest else high


Instr: TypeAlias = (
    Const | IndexValue | Load | Compute | CheckIndex | Random | Reduce | Scan | Dot | Store
)

# Bits of the error word that kernels OR into; the runtime turns them into eager's error.
ERROR_INDEX = 1
ERROR_ZERO_DIVISION = 2


@dataclass(frozen=True, slots=True)
class Stage:
    """A loop over ``axes`` (row-major; none: once for each outer point) around ``body``."""

    axes: tuple[Axis, ...]
    body: tuple[Instr, ...]


@dataclass(frozen=True)
class LoopNest:
    """One kernel. Buffers are numbered by first use and symbols are n0, n1, ... in order of
    appearance, so that structurally equal kernels have equal text (``printer.print_nest``) and
    compile once. ``symbols`` are the kernel's i64 size arguments."""

    axes: tuple[Axis, ...]
    stages: tuple[Stage, ...]
    buffers: tuple[BufferParam, ...]
    symbols: tuple[sympy.Symbol, ...] = ()
    vectorize: Literal["outer", "inner", "none"] = "outer"
    comment: str = field(default="", compare=False)  # provenance, not part of the text
