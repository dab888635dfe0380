"""Guards that Dynamo need not evaluate at each call of a region under the option ``lazy``.

Dynamo guards a tensor subclass and the tensors that it is made of. A LazyTensor's inner tensor has the layout that the
LazyTensor has, which is guarded too, and no such region reads it: it waits for LazyTensors, or takes their values. These
guards take longer than all others of such a call, since they ask Python. Where sizes change, those of sizes stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._guards import TracingContext

from lazyc.recording.tensor import LazyTensor

_OF_METADATA = "TENSOR_SUBCLASS_METADATA_MATCH"


def drop_inner_guards(nodes: Sequence[torch.fx.Node], inputs: Sequence[Any]) -> None:
    """Drops the guards of what LazyTensors among a graph's ``inputs`` are made of; ``nodes``: the graph's placeholders.

    To be called while Dynamo compiles the graph. A version of torch that keeps its guards in another way keeps them all.
    """
    sources = [
        n.meta["grapharg"].source
        for n, x in zip(nodes, inputs, strict=True)
        if isinstance(x, LazyTensor) and "grapharg" in n.meta
    ]
    context = TracingContext.try_get()
    if context is None or not sources:
        return
    guards = context.guards_context.dynamo_guards
    known = hasattr(guards, "inner") and hasattr(guards, "source_to_guards")
    try:
        from torch._dynamo.source import AttrSource, SubclassAttrListSource, is_from_source
    except ImportError:
        return
    if not known:
        return
    inner = [made for s in sources for made in (AttrSource(s, "_token"), SubclassAttrListSource(s))]
    dropped = [
        guard
        for guard in guards
        if any(is_from_source(guard.originating_source, source) for source in inner)
        or (guard.originating_source in sources and guard.create_fn_name() == _OF_METADATA)
    ]
    for guard in dropped:
        guards.inner.discard(guard)
        guards.source_to_guards[guard.originating_source].remove(guard)
