"""From what FX nodes carry (fake tensors, SymInts, stack traces) to lazyc's types and positions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import sympy
import torch

from lazyc.ir.types import (
    OpaqueType,
    Shape,
    TensorType,
    ValueType,
    as_dim,
    dtype_from_torch,
)


class Unsupported(Exception):
    """A graph that lazyc cannot represent; the message says why. The caller runs it in eager."""


def dims(sizes: Iterable[Any]) -> Shape:
    """Sizes or strides of a fake tensor."""
    return tuple(d if type(d) is int else as_dim(d) for d in sizes)


def sym_value(value: Any) -> Any:
    """A Python number or its symbolic counterpart as a number, or as a sympy expression."""
    if isinstance(value, torch.SymInt):
        return as_dim(value)
    if isinstance(value, torch.SymFloat | torch.SymBool):
        expr = value.node.expr
        if isinstance(expr, sympy.Float | sympy.Integer):
            return float(expr)
        if expr in (sympy.true, sympy.false):
            return bool(expr)
        if isinstance(value, torch.SymBool):
            raise Unsupported(f"symbolic bool {expr}")
        return expr
    return value


def opaque_reason(val: torch.Tensor) -> str | None:
    """Why lazyc has no code for a tensor like this; None when it has."""
    if val.layout is not torch.strided:
        return str(val.layout).removeprefix("torch.")
    if dtype_from_torch(val.dtype) is None:
        return str(val.dtype).removeprefix("torch.")
    if val.is_neg():
        return "negative view"
    if val.device.type not in ("cpu", "cuda"):
        return f"device {val.device.type}"
    return None


def value_type(val: Any) -> ValueType:
    """The type of a value from ``node.meta["val"]``."""
    if isinstance(val, torch.Tensor):
        reason = opaque_reason(val)
        if reason is None:
            dtype = dtype_from_torch(val.dtype)
            assert dtype is not None
            return TensorType(dtype, dims(val.shape), str(val.device))
        return OpaqueType(f"{reason}[{', '.join(map(str, val.shape))}]")
    return OpaqueType(type(val).__name__)


def value_strides(val: Any) -> Shape | None:
    """The strides of a value that has a TensorType, else None."""
    if isinstance(val, torch.Tensor) and opaque_reason(val) is None:
        return dims(val.stride())
    return None


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH_FOLDER = os.path.dirname(torch.__file__) + os.sep


@lru_cache(maxsize=1024)
def user_frame(stack_trace: str | None) -> tuple[str, int] | None:
    """File and line of the innermost frame outside torch; None when there is none."""
    frames = _FRAME.findall(stack_trace or "")
    for file, line in reversed(frames):
        if not file.startswith(_TORCH_FOLDER):
            return file, int(line)
    return None


def user_line(stack_trace: str | None) -> str:
    """The same as "model.py:12"; "" when there is none."""
    frame = user_frame(stack_trace)
    return "" if frame is None else f"{os.path.basename(frame[0])}:{frame[1]}"
