"""Sizes that change: which of them lazyc compiles for exactly, in a symbol, or rounded up.

Dynamo decides which sizes change (``torch._dynamo.mark_dynamic``, ``torch.compile(dynamic=True)``, or a
second size that it has seen); the policy decides what becomes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import sympy
import torch

Shapes: TypeAlias = Literal["static", "symbolic", "bucket"]
_MARK = "_lazyc_dims"  # attribute of a marked tensor: dim -> SizePolicy


@dataclass(frozen=True, slots=True)
class SizePolicy:
    """``buckets``: the sizes that ``bucket`` rounds up to, ascending; empty for ``next_size``."""

    shapes: str
    buckets: tuple[int, ...] = ()

    def room(self, size: int) -> int | None:
        """What ``size`` is rounded up to; None where no bucket is large enough."""
        if not self.buckets:
            return next_size(size)
        return next((b for b in self.buckets if b >= size), None)


def next_size(size: int) -> int:
    """The least power of two, or 3/4 of one, that is not less than ``size``: 1, 2, 3, 4, 6, 8, 12, ...

    At most a third of the room is padding, beside the smallest sizes.
    """
    if size <= 2:
        return max(size, 1)
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def mark_dim(tensor: torch.Tensor, dim: int, shapes: Shapes, buckets: Sequence[int] = ()) -> None:
    """Says before a compiled function is called with ``tensor`` what lazyc does with its size in ``dim``,
    over the option ``shapes``: "static" compiles for each size, "symbolic" once for all, "bucket" for
    sizes rounded up to one of ``buckets`` (powers of two and 3/4 of them, if not given).

    As with ``torch._dynamo.mark_dynamic``, it is the first call of a function that counts. Raises
    ValueError for a bad argument.
    """
    if shapes not in get_args(Shapes):
        raise ValueError(f"shapes={shapes!r}: must be one of {', '.join(get_args(Shapes))}")
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(f"dim={dim}: the tensor has {tensor.dim()} dims")
    if buckets and (shapes != "bucket" or any(type(b) is not int or b < 1 for b in buckets)):
        raise ValueError(f"buckets={list(buckets)}: positive integers, for shapes='bucket' only")
    dim %= tensor.dim()
    if shapes == "static":
        torch._dynamo.mark_static(tensor, dim)
    else:
        torch._dynamo.mark_dynamic(tensor, dim)
    marks = dict(getattr(tensor, _MARK, {}))
    marks[dim] = SizePolicy(shapes, tuple(sorted(set(buckets))))
    setattr(tensor, _MARK, marks)


def size_policies(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any], default: SizePolicy
) -> dict[sympy.Symbol, SizePolicy]:
    """The policy of each symbol in the sizes of a graph of Dynamo's."""
    marked: dict[sympy.Symbol, SizePolicy] = {}
    found: dict[sympy.Symbol, SizePolicy] = {}
    for x, (size, dim) in _sizes(gm, example_inputs):
        symbol = size.node.expr
        if not isinstance(symbol, sympy.Symbol):
            continue
        found[symbol] = default
        policy = getattr(x, _MARK, {}).get(dim)
        if policy is not None:
            marked[symbol] = policy
    return found | marked


def specialize(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    policies: Mapping[sympy.Symbol, SizePolicy],
) -> None:
    """Makes the graph one for these sizes alone where their policy is static. Dynamo compiles again for
    other sizes."""
    for _, (size, _) in _sizes(gm, example_inputs):
        policy = policies.get(size.node.expr)
        if policy is not None and policy.shapes == "static":
            int(size)  # a guard: this value only


def _sizes(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any]
) -> Iterator[tuple[Any, tuple[torch.SymInt, int]]]:
    """Every symbolic size of an argument, with the argument and the dim (-1: the argument itself)."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    for x, node in zip(example_inputs, placeholders, strict=True):
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt):
            yield x, (value, -1)
        elif isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    yield x, (size, dim)
