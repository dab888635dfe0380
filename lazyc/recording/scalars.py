"""Floats among the arguments of an operator that may differ from call to call.

A step size or a bias correction is another number in every training step. As part of the code it would
be compiled anew each time; it is handed to the fragment as a 0-dim tensor instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def _in_place(form: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return x.copy_(form(x, *args, **kwargs))

    return run


def _addcdiv(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, value: torch.Tensor
) -> torch.Tensor:
    return x + value * (a / b)


def _addcmul(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, value: torch.Tensor
) -> torch.Tensor:
    return x + value * a * b


def _lerp(x: torch.Tensor, end: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.lerp(x, end, weight.to(x.dtype))


def _add(x: torch.Tensor, y: torch.Tensor, *, alpha: torch.Tensor) -> torch.Tensor:
    return x + alpha * y


def _sub(x: torch.Tensor, y: torch.Tensor, *, alpha: torch.Tensor) -> torch.Tensor:
    return x - alpha * y


# What computes the same with 0-dim tensors in place of floats, for operators that take only floats.
_FORMS: dict[Any, Callable[..., torch.Tensor]] = {
    aten.addcdiv.default: _addcdiv,
    aten.addcmul.default: _addcmul,
    aten.lerp.Scalar: _lerp,
    aten.addcdiv_.default: _in_place(_addcdiv),
    aten.addcmul_.default: _in_place(_addcmul),
    aten.lerp_.Scalar: _in_place(_lerp),
}
_WITH_ALPHA: dict[Any, Callable[..., torch.Tensor]] = {
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.add_.Tensor: _in_place(_add),
    aten.sub_.Tensor: _in_place(_sub),
}
# Operators that take a tensor where the caller gave a number.
_TENSOR_WELCOME = frozenset(
    {
        aten.mul.Tensor, aten.mul_.Tensor, aten.div.Tensor, aten.div_.Tensor,
        aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor,
    }
)  # fmt: skip
OPERATORS = frozenset(_FORMS) | _TENSOR_WELCOME


def is_argument(value: float) -> bool:
    """Whether a number may be another one next time. One that is an integer or a power of two is more
    likely part of the formula, and code is better for knowing it."""
    return math.isfinite(value) and not value.is_integer() and abs(math.frexp(value)[0]) != 0.5


def tensor_form(
    func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> Callable[..., Any]:
    """What computes ``func(*args, **kwargs)`` where a tensor may stand in place of a float."""
    if isinstance(kwargs.get("alpha"), torch.Tensor):
        return _WITH_ALPHA[func]
    form = _FORMS.get(func)
    if form is None:
        return func
    last = func._schema.arguments[-1]
    number = kwargs.get(last.name) if last.kwarg_only else args[-1]
    return form if isinstance(number, torch.Tensor) else func
