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
    """A class whose call is ``function(class, *arguments)``, never traced; it has no instances.

    For a Dynamo backend to return. A function that a backend returns is wrapped in ``torch._dynamo.disable``, three
    frames at each call. Of a class, ``disable`` wraps ``__init__`` and ``__call__``, which this one never runs.
    """
    return type(function.__name__, (), {"__new__": never_traced(function)})


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
