"""Types of values: element types, dims, and the type of a tensor value.

A dim is an ``int`` or a sympy expression over positive integer symbols (shared with Dynamo's
ShapeEnv). A ``TensorType`` is logical: it has no strides. Layout belongs to buffers (see
``ir/program.py``) and to the boundary of a Graph (``Input`` attrs and ``Output``), so that views
never need stride rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, overload

import sympy
import torch

Dim: TypeAlias = int | sympy.Expr
Shape: TypeAlias = tuple[Dim, ...]


class DType(Enum):
    """Element types that lazyc generates code for; the value is the name used in printed IR."""

    BOOL = "b1"
    U8 = "u8"
    I8 = "i8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"

    @property
    def torch(self) -> torch.dtype:
        return _TO_TORCH[self]

    @property
    def itemsize(self) -> int:
        """Size of one element in memory, in bytes (a bool takes one byte)."""
        return _TO_TORCH[self].itemsize

    @property
    def is_float(self) -> bool:
        return self in (DType.F16, DType.BF16, DType.F32, DType.F64)

    @property
    def is_int(self) -> bool:
        """True for integers of any width; False for bool."""
        return not self.is_float and self is not DType.BOOL

    @property
    def is_signed(self) -> bool:
        return self not in (DType.BOOL, DType.U8)

    @property
    def compute(self) -> DType:
        """The type that arithmetic on this type is done in: half types compute in f32."""
        return DType.F32 if self in (DType.F16, DType.BF16) else self

    @property
    def accumulator(self) -> DType:
        """The type that matrix products of this type are added in: f32 for half types, i32 for int8."""
        return DType.I32 if self is DType.I8 else self.compute

    @property
    def is_widened(self) -> bool:
        """Whether matrix products of this type are added in a wider one. Tensor cores multiply it as it is."""
        return self.accumulator is not self

    def __repr__(self) -> str:
        return self.value

    def __str__(self) -> str:
        return self.value


_TO_TORCH: dict[DType, torch.dtype] = {
    DType.BOOL: torch.bool,
    DType.U8: torch.uint8,
    DType.I8: torch.int8,
    DType.I16: torch.int16,
    DType.I32: torch.int32,
    DType.I64: torch.int64,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F32: torch.float32,
    DType.F64: torch.float64,
}
_FROM_TORCH = {v: k for k, v in _TO_TORCH.items()}


def dtype_from_torch(dtype: torch.dtype) -> DType | None:
    """The lazyc type of a torch dtype; None for one that lazyc has no code for (complex, ...)."""
    return _FROM_TORCH.get(dtype)


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dense tensor value of ``shape`` and ``dtype`` on ``device`` ("cpu", "cuda:0")."""

    dtype: DType
    shape: Shape
    device: str = "cpu"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        return numel(self.shape)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape, self.device)

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(shape), self.device)

    def __str__(self) -> str:
        dims = ", ".join(str(d) for d in self.shape)
        return f"{self.dtype.value}[{dims}]" + ("" if self.device == "cpu" else f"@{self.device}")


@dataclass(frozen=True, slots=True)
class OpaqueType:
    """A value that only eager calls touch: a dtype or layout without code, a tuple, a scalar.

    ``what`` says which, for the printer: "complex64[3, 4]", "tuple2", "sparse", "SymInt".
    """

    what: str

    def __str__(self) -> str:
        return f"opaque<{self.what}>"


ValueType: TypeAlias = TensorType | OpaqueType


@dataclass(frozen=True, slots=True)
class SymbolSource:
    """Where a symbol's value comes from: the integer argument ``input``, or its size ``dim``."""

    symbol: sympy.Symbol
    input: int
    dim: int | None = None


def numel(shape: Iterable[Dim]) -> Dim:
    """Number of elements of a shape (1 for a 0-dim tensor)."""
    return math.prod(shape, start=1)


@overload
def storage_extent(shape: Sequence[int], strides: Sequence[int]) -> int: ...
@overload
def storage_extent(shape: Sequence[Dim], strides: Sequence[Dim]) -> Dim: ...
def storage_extent(shape: Sequence[Dim], strides: Sequence[Dim]) -> Dim:
    """Elements of memory from the first to the last element of a strided tensor, 0 if it is empty."""
    if 0 in shape:
        return 0
    total: Dim = 1
    for size, stride in zip(shape, strides, strict=True):
        total = total + (size - 1) * stride
    return total


def contiguous_strides(shape: Shape) -> tuple[Dim, ...]:
    """Row-major strides in elements; a dim of size 0 counts as 1, as torch does."""
    strides: list[Dim] = []
    step: Dim = 1
    for dim in reversed(shape):
        strides.append(step)
        step = step * (dim if not isinstance(dim, int) else max(dim, 1))
    return tuple(reversed(strides))


def as_dim(value: object) -> Dim:
    """A torch size (int or SymInt) as a Dim: an int where it is one, else its sympy expression."""
    if isinstance(value, torch.SymInt):
        expr = value.node.expr
        return int(expr) if expr.is_Integer else expr
    if isinstance(value, sympy.Expr):
        return int(value) if value.is_Integer else value
    assert isinstance(value, int), value
    return int(value)


def free_symbols(dims: Iterable[Dim]) -> set[sympy.Symbol]:
    """The symbols that occur in some dims."""
    found: set[sympy.Symbol] = set()
    for dim in dims:
        if isinstance(dim, sympy.Expr):
            found |= dim.free_symbols  # type: ignore[arg-type]
    return found


def is_nonneg(expr: Dim) -> bool:
    """True when ``expr >= 0`` is certain; symbols are taken as integers >= 1."""
    if isinstance(expr, int):
        return expr >= 0
    total: Any = sympy.expand(expr)  # Any: sympy has no stubs
    if total.is_Integer:
        return int(total) >= 0
    if total.is_nonnegative:
        return True
    # Substitute s -> t + 1 with t >= 0: a polynomial with nonnegative coefficients is >= 0.
    if not total.is_polynomial(*total.free_symbols):
        return False
    shifted = sympy.Poly(
        total.subs({s: s + 1 for s in total.free_symbols}, simultaneous=True), *total.free_symbols
    )
    return all(c >= 0 for c in shifted.coeffs())


def divide_exact(a: Dim, b: Dim) -> Dim | None:
    """``a / b`` when b certainly divides a, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if quotient.is_Integer:
        return int(quotient)
    if quotient.is_number:
        return None  # a fraction
    if not quotient.is_polynomial(*quotient.free_symbols):
        return None
    poly = sympy.Poly(quotient, *quotient.free_symbols)
    return quotient if all(c.is_Integer for c in poly.coeffs()) else None
