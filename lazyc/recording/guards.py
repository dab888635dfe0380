"""Guards that Dynamo need not evaluate at each call of a region under the option ``lazy``.

Dynamo guards a tensor subclass and the tensors that it is made of. A LazyTensor's inner tensor has the layout that the
LazyTensor has, which is guarded too, and no such region reads it: it waits for LazyTensors, or takes their values. Where
sizes change, the guards of sizes stay. Dynamo also guards the hooks for tensors that autograd saves, of which a region
without gradients has none. These guards take longer than all others of such a call, since they ask Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._guards import Guard, TracingContext

from lazyc.recording.tensor import LazyTensor

_OF_METADATA = "TENSOR_SUBCLASS_METADATA_MATCH"
_OF_HOOKS = "AUTOGRAD_SAVED_TENSORS_HOOKS"
_default_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # type: ignore[attr-defined]


def drop_inner_guards(nodes: Sequence[torch.fx.Node], inputs: Sequence[Any]) -> None:
    """Drops the guards of what LazyTensors among a graph's ``inputs`` are made of; ``nodes``: the graph's placeholders.

    To be called while Dynamo compiles the graph. A version of torch that keeps its guards in another way keeps them all.
    """
    sources = [
        n.meta["grapharg"].source
        for n, x in zip(nodes, inputs, strict=True)
        if isinstance(x, LazyTensor) and "grapharg" in n.meta
    ]
    if not sources:
        return
    try:
        from torch._dynamo.source import AttrSource, SubclassAttrListSource, is_from_source
    except ImportError:
        return
    inner = [made for s in sources for made in (AttrSource(s, "_token"), SubclassAttrListSource(s))]
    _drop(
        lambda guard: (
            any(is_from_source(guard.originating_source, source) for source in inner)
            or (guard.originating_source in sources and guard.create_fn_name() == _OF_METADATA)
        )
    )


def drop_hook_guards() -> None:
    """Drops the guard of autograd's hooks for saved tensors (``torch.autograd.graph.saved_tensors_hooks``), if none are
    set: Dynamo traces those that are. Of a graph without gradients, while Dynamo compiles it."""
    if not _default_hooks(True):
        _drop(lambda guard: guard.create_fn_name() == _OF_HOOKS)


def _drop(is_needless: Callable[[Guard], bool]) -> None:
    context = TracingContext.try_get()
    if context is None:
        return
    guards = context.guards_context.dynamo_guards
    if not (hasattr(guards, "inner") and hasattr(guards, "source_to_guards")):
        return
    for guard in list(filter(is_needless, guards)):
        guards.inner.discard(guard)
        guards.source_to_guards[guard.originating_source].remove(guard)
