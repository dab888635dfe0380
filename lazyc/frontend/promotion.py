"""torch's type promotion on lazyc types: ``torch.result_type`` for nodes and Python scalars.

Three kinds of operand count in order: tensors with dims, 0-dim tensors, Python numbers. A later kind
changes the result only when its category (bool < integer < float) is higher.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import sympy
import torch

from lazyc.ir.graph import Node
from lazyc.ir.types import DType, dtype_from_torch

Operand: TypeAlias = Node | bool | int | float | sympy.Expr


class NotLowered(Exception):
    """A lowering does not cover these arguments; the message is the reason shown in reports."""


def lazyc_dtype(dtype: torch.dtype | None, default: DType | None = None) -> DType:
    """The DType of a torch dtype, ``default`` for None. Raises NotLowered for one without code."""
    if dtype is None:
        assert default is not None
        return default
    found = dtype_from_torch(dtype)
    if found is None:
        raise NotLowered(str(dtype).removeprefix("torch."))
    return found


def default_float() -> DType:
    """The type of a Python float: torch's default dtype."""
    return lazyc_dtype(torch.get_default_dtype())


def scalar_dtype(value: Operand) -> DType:
    """The type of a Python number or a symbolic size."""
    if isinstance(value, bool):
        return DType.BOOL
    if isinstance(value, int) or (isinstance(value, sympy.Expr) and value.is_integer):
        return DType.I64
    if isinstance(value, float | sympy.Expr):
        return default_float()
    if isinstance(value, complex):
        raise NotLowered("complex scalar")
    raise NotLowered(f"scalar {value} of type {type(value).__name__}")


def promote_dtypes(a: DType | None, b: DType | None) -> DType | None:
    """``torch.promote_types``; None is the type of no operand."""
    if a is None or b is None or a is b:
        return a if b is None else b
    return lazyc_dtype(torch.promote_types(a.torch, b.torch))


def _category(dtype: DType) -> int:
    return 2 if dtype.is_float else 1 if dtype.is_int else 0


def _combine(higher: DType | None, lower: DType | None) -> DType | None:
    if higher is None or lower is None:
        return lower if higher is None else higher
    if _category(lower) > _category(higher):
        return promote_dtypes(higher, lower)
    return higher


def result_dtype(operands: Iterable[Operand]) -> DType:
    """The type in which torch computes an op on these operands (``torch.result_type``)."""
    dims: DType | None = None
    zero: DType | None = None
    number: DType | None = None
    for value in operands:
        if not isinstance(value, Node):
            number = promote_dtypes(number, scalar_dtype(value))
        elif value.shape:
            dims = promote_dtypes(dims, value.dtype)
        else:
            zero = promote_dtypes(zero, value.dtype)
    result = _combine(dims, _combine(zero, number))
    assert result is not None, "no operands"
    return result


def float_result_dtype(operands: Iterable[Operand]) -> DType:
    """As result_dtype, with bool and integers promoted to the default float type."""
    dtype = result_dtype(operands)
    return dtype if dtype.is_float else default_float()
