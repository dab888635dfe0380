"""Keeps Dynamo out of lazyc's own code.

After a graph break the rest of a compiled function runs with Dynamo watching every frame: those of an operator on
a LazyTensor, and all that computing it takes, up to the compiler. Dynamo would trace each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
)

_SKIP = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
_Function = TypeVar("_Function")
_Class = TypeVar("_Class", bound=type)


def never_traced(function: _Function) -> _Function:
    """``function``, whose frames Dynamo leaves alone, with all that they call. As ``torch._dynamo.disable``, without a
    wrapper around each call."""
    assert isinstance(function, FunctionType)
    set_code_exec_strategy(function.__code__, _SKIP)
    return function


def as_class(function: Callable[..., Any]) -> Callable[..., Any]:
    """A class that, called, returns what ``function(class, *arguments)`` does, which is never traced: no instance.

    For a Dynamo backend to return. Dynamo calls what that is through ``torch._dynamo.disable``, three frames more, where
    it is no class; of a class it wraps two methods, which this one never calls.
    """
    return type("Region", (), {"__new__": never_traced(function)})


def never_traced_class(cls: _Class) -> _Class:
    """``cls``, with ``never_traced`` methods and properties."""
    for member in vars(cls).values():
        for function in _functions(member):
            never_traced(function)
    return cls


def _functions(member: object) -> list[FunctionType]:
    if isinstance(member, classmethod | staticmethod):
        member = member.__func__
    found = [member.fget, member.fset] if isinstance(member, property) else [member]
    return [f for f in found if isinstance(f, FunctionType)]
