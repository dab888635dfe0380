"""Operators as fragments: what a dispatched call computes, made once for all calls alike.

Two calls are alike when their operator, the layouts of their tensors and all other arguments are the
same. The first of them is traced, decomposed and lowered to a Graph; later ones cost a lookup.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from lazyc.config import AttentionKernel
from lazyc.frontend.autograd import run_in_eager
from lazyc.frontend.cut import depends_on_data
from lazyc.frontend.decompositions import decomposition_table
from lazyc.frontend.fx_import import Unsupported, import_graph
from lazyc.frontend.storage import read_storage_from_bases
from lazyc.ir.graph import Graph
from lazyc.recording.barriers import barrier
from lazyc.recording.join import Fragment
from lazyc.recording.kinds import Kind, kind_of
from lazyc.recording.scalars import tensor_form

_LAZYC = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of an argument of the fragment, by position, in the arguments of an operator."""

    position: int


@dataclass(frozen=True, slots=True)
class Call:
    """What calls alike do. ``fragment`` takes the memory of each tensor argument and returns the new
    contents of those that are ``written`` (positions among the tensor arguments), then the new
    tensors. ``returns``: for each result of the operator, ("new", number of the new tensor) or
    ("given", position of a tensor argument) or None; ``is_tuple`` where it returns several. ``made``
    are the kinds of the new tensors.

    ``fragment`` is None for calls that cannot wait, ``reason`` says why.
    """

    fragment: Fragment | None
    reason: str = ""
    written: tuple[int, ...] = ()
    returns: tuple[tuple[str, int] | None, ...] = ()
    is_tuple: bool = False
    made: tuple[Kind, ...] = ()
    is_one_tensor: bool = field(init=False)  # that it returns, new, and it writes to nothing

    def __post_init__(self) -> None:
        one = not self.written and not self.is_tuple and self.returns == (("new", 0),)
        object.__setattr__(self, "is_one_tensor", one)


def make_call(
    func: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    kinds: Sequence[Kind],
    attention: AttentionKernel = "auto",
) -> Call:
    """The Call for ``func(*args, **kwargs)``, with Slots for what the fragment takes: tensors, and
    floats that may change, of these kinds in order. ``attention`` as in ``import_graph``."""
    written = tuple(_written(func, args, kwargs))
    results: list[Any] = []

    def run(*memories: torch.Tensor) -> list[torch.Tensor]:
        own = [m.clone() if k in written else m for k, m in enumerate(memories)]
        tensors = [kind.of(m) for kind, m in zip(kinds, own, strict=True)]
        given, options = _filled(args, tensors), _filled(kwargs, tensors)
        made = _traced(tensor_form(func, given, options), given, options)
        several = isinstance(made, list | tuple)
        new: list[torch.Tensor] = []
        returns: list[tuple[str, int] | None] = []
        for result in made if several else [made]:
            position = next((k for k in written if tensors[k] is result), None)
            if not isinstance(result, torch.Tensor):
                returns.append(None)
            elif position is not None:
                returns.append(("given", position))
            else:
                returns.append(("new", len(new)))
                new.append(result)
        results[:] = [tuple(returns), several]
        return [*(own[k] for k in written), *new]

    try:
        graph, gm = _lower(
            dispatch_functionalize(run, FunctionalTensorMode()) if written else run,
            kinds,
            attention,
        )
    except Unsupported as error:
        return Call(None, str(error))
    reason = barrier(graph)
    if reason:
        return Call(None, reason)
    taken = tuple(kind.spec for kind in kinds)
    options = _options(args, kwargs)
    fragment = Fragment.of(graph, run_in_eager(gm), 1, str(func), taken, options)
    if any(fragment.results[j] != kinds[k].base for j, k in enumerate(written)):
        return Call(None, "it writes to a tensor that is not dense")
    returns, several = results
    made = tuple(map(kind_of, fragment.results[len(written) :]))
    return Call(fragment, "", written, returns, several, made)


def _traced(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``func`` under the tracer. Raises Unsupported where torch cannot trace it."""
    try:
        return func(*args, **kwargs)
    except Exception as error:
        if _is_ours(error):
            raise
        raise Unsupported(f"it cannot be traced: {error}") from error


def _is_ours(error: Exception) -> bool:
    """Whether an exception was raised by code of lazyc's below the call of an operator: a decomposition."""
    innermost = list(traceback.walk_tb(error.__traceback__))[-1][0].f_code
    return innermost is not _traced.__code__ and Path(innermost.co_filename).is_relative_to(_LAZYC)


def _lower(
    run: Callable[..., Any], kinds: Sequence[Kind], attention: AttentionKernel
) -> tuple[Graph, torch.fx.GraphModule]:
    with FakeTensorMode() as mode:
        examples = [
            torch.empty_strided(k.base.shape, k.base.strides, dtype=k.base.dtype) for k in kinds
        ]
    with mode:
        gm = make_fx(run, decomposition_table=decomposition_table())(*examples)
    gm = read_storage_from_bases(gm)
    if depends_on_data(gm):
        raise Unsupported("its size depends on data")
    return import_graph(gm, attention=attention), gm


def _written(
    func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> Iterator[int]:
    """Positions of the tensors that ``func`` writes to."""
    schema = func._schema.arguments
    named = {a.name: a for a in schema}
    pairs = [*zip(schema, args, strict=False), *((named[k], v) for k, v in kwargs.items())]
    for argument, value in pairs:
        if argument.alias_info is not None and argument.alias_info.is_write:
            for x in value if isinstance(value, list | tuple) else [value]:
                if isinstance(x, Slot):
                    yield x.position


def _options(args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """The arguments that are no tensors, as text."""
    named = [f"{k}={v}" for k, v in kwargs.items() if not isinstance(v, Slot)]
    return ", ".join([*(str(a) for a in args if not isinstance(a, Slot | list)), *named])


def _filled(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """``value`` with a tensor in each Slot."""
    if isinstance(value, Slot):
        return tensors[value.position]
    if isinstance(value, list | tuple):
        return [_filled(v, tensors) for v in value]
    if isinstance(value, dict):
        return {k: _filled(v, tensors) for k, v in value.items()}
    return value
