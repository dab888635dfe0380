"""Eager calls inside a Program: argument templates, results, and how often and how long they ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from lazyc.ir.ops import resolve_target
from lazyc.ir.program import BufferRef, EagerStep
from lazyc.runtime.sizes import Sizes

# Operators of these namespaces are torch's own: none keeps a reference to an argument.
_TORCH_NAMESPACES = frozenset({"aten", "prim", "prims", "mkldnn", "mkl", "quantized"})


@dataclass(slots=True)
class EagerStats:
    """Calls of one operator in one Program."""

    target: str
    reason: str
    is_fallback: bool
    calls: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class EagerLog:
    """The eager calls of one Program; times are taken only while ``timed`` is set."""

    timed: bool = False
    stats: dict[tuple[str, str], EagerStats] = field(default_factory=dict)

    def entry(self, step: EagerStep) -> EagerStats:
        key = (step.target, step.reason)
        if key not in self.stats:
            self.stats[key] = EagerStats(step.target, step.reason, step.is_fallback)
        return self.stats[key]


def is_foreign(target: str) -> bool:
    """Whether an operator is not torch's own, so that it may keep the tensors that it is given."""
    return target.split(".")[0] not in _TORCH_NAMESPACES


def referenced(template: Any) -> Iterator[int]:
    """The buffers that an argument template names."""
    if isinstance(template, BufferRef):
        yield template.id
    elif isinstance(template, tuple | list):
        for part in template:
            yield from referenced(part)


def step_buffers(step: EagerStep) -> set[int]:
    """The buffers that an eager step reads (or writes, as ``out=``)."""
    return {*referenced(step.args), *referenced(tuple(v for _, v in step.kwargs))}


Fill = Callable[[Sequence[Any]], Any]


def _compile_template(
    template: Any, sizes: Sizes, reference: Callable[[BufferRef], Fill]
) -> tuple[Any, Fill | None]:
    """(constant, None) for a template without buffers, else (None, function of all values)."""
    if isinstance(template, BufferRef):
        return None, reference(template)
    if isinstance(template, sympy.Expr):
        return sizes(template), None
    if not isinstance(template, tuple | list):
        return template, None
    parts = [_compile_template(part, sizes, reference) for part in template]
    if all(fill is None for _, fill in parts):
        return [constant for constant, _ in parts], None
    return None, lambda values: [c if fill is None else fill(values) for c, fill in parts]


class EagerCall:
    """An eager step bound to concrete sizes; ``call(values)`` returns the operator's results, one
    for each output buffer. ``values`` holds the tensor (or other value) of each buffer id;
    ``reference`` finds the value of a BufferRef in it."""

    __slots__ = ("_args", "_kwargs", "_log", "_stats", "_target", "step")

    def __init__(
        self,
        step: EagerStep,
        sizes: Sizes,
        log: EagerLog,
        reference: Callable[[BufferRef], Fill],
    ) -> None:
        self.step = step
        self._target = resolve_target(step.target)
        self._args = [_compile_template(a, sizes, reference) for a in step.args]
        self._kwargs = [(k, *_compile_template(v, sizes, reference)) for k, v in step.kwargs]
        self._log = log
        self._stats = log.entry(step)

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        args = [c if fill is None else fill(values) for c, fill in self._args]
        kwargs = {k: c if fill is None else fill(values) for k, c, fill in self._kwargs}
        self._stats.calls += 1
        if not self._log.timed:
            result = self._target(*args, **kwargs)
        else:
            start = time.perf_counter()
            result = self._target(*args, **kwargs)
            self._stats.seconds += time.perf_counter() - start
        return result if self.step.is_tuple else (result,)


def in_layout(
    tensor: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]
) -> torch.Tensor:
    """``tensor``, or a copy of it if its strides are not ``strides``.

    Raises RuntimeError when dtype or shape differ from what the Program was compiled for.
    """
    if tensor.dtype != dtype or tensor.shape != torch.Size(shape):
        raise RuntimeError(
            f"a tensor is {tensor.dtype}{list(tensor.shape)}, "
            f"the Program was compiled for {dtype}{list(shape)}"
        )
    if has_strides(tensor, shape, strides):
        return tensor
    empty = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=tensor.device)
    place, values = empty, tensor
    for dim, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if stride == 0 and size > 1:  # expanded when it was traced: all elements along it are equal
            place, values = place.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    place.copy_(values)
    return empty


def has_strides(tensor: torch.Tensor, shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the strides are these, in every dim where they mean anything."""
    actual = tensor.stride()
    if actual == tuple(strides) or 0 in shape:
        return True
    return all(d == 1 or a == s for d, a, s in zip(shape, actual, strides, strict=True))
