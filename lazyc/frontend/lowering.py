"""The lowering registry: ATen overload name -> function that writes it as Graph IR.

A lowering is ``(b: Builder, *args, **kwargs) -> Node | None | tuple[Node | None, ...]``. Its arguments
are those of the ATen schema, positional ones by position and keyword-only ones by name: a Node for
each tensor, a tuple for each list, an int or sympy expression for each SymInt, torch dtypes, devices,
memory formats and so on as they are. It raises NotLowered, with the reason, for arguments that it
does not cover: that call then runs in eager.

The families live in ``lowerings_*.py``; ``lowering_table`` imports them all.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from lazyc.frontend.builder import Builder
from lazyc.frontend.promotion import NotLowered

__all__ = ["Builder", "Lowering", "NotLowered", "lowering_table", "lowers"]

Lowering = Callable[..., Any]

_TABLE: dict[str, Lowering] = {}
_FAMILY_PREFIX = "lowerings_"


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Registers a lowering for overloads such as "aten.add.Tensor"."""

    def register(fn: Lowering) -> Lowering:
        for name in names:
            assert name not in _TABLE, f"{name} has two lowerings"
            _TABLE[name] = fn
        return fn

    return register


@cache
def lowering_table() -> dict[str, Lowering]:
    """Every lowering, by overload name."""
    package = importlib.import_module("lazyc.frontend")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith(_FAMILY_PREFIX):
            importlib.import_module(f"lazyc.frontend.{module.name}")
    return _TABLE
