"""Makes calls that look at a tensor's storage read it from the tensor that the storage was made for.

``as_strided`` and its kin count ``storage_offset`` from the start of the storage, which a view does not
cover. A Graph has values, not storages: a view may come to stand in memory of its own. So before a
graph is imported, each such call on a view is made on the view's base, with the offset written out.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lazyc.frontend.fx_types import Unsupported

_SCATTER = torch.ops.aten.as_strided_scatter.default


def read_storage_from_bases(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """``gm``, or a rewritten copy of it.

    Raises Unsupported for a base of another dtype, whose offsets count other elements, where sizes
    that may change decide what is read, and for as_strided_scatter into a part of an argument.
    """
    views = (
        n for n in gm.graph.nodes if reads_storage(n.target) and _base(n.args[0]) is not n.args[0]
    )
    if next(views, None) is None:
        return gm
    graph = torch.fx.Graph()
    result = graph.graph_copy(gm.graph, {})
    output = graph.output(result)
    output.meta = dict(gm.graph.output_node().meta)
    for node in list(graph.nodes):
        if reads_storage(node.target):
            _rewrite(graph, node)
    graph.eliminate_dead_code()
    return torch.fx.GraphModule(gm, graph)


def reads_storage(target: Any) -> bool:
    """Whether an operator takes an offset into the storage of its first argument."""
    return isinstance(target, torch._ops.OpOverload) and any(
        a.name == "storage_offset" for a in target._schema.arguments
    )


def _rewrite(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    view = node.args[0]
    assert isinstance(view, torch.fx.Node)
    base = _base(view)
    if base is view:
        return
    if base.meta["val"].dtype is not view.meta["val"].dtype:
        raise Unsupported(f"{node.target} of a view of another dtype")
    if node.target is _SCATTER and base.op == "placeholder":
        raise Unsupported(f"{node.target} into the storage of an argument that it sees a part of")
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if given.get("storage_offset") is None and base.op == "placeholder":
        given[names[0]] = _elements_from(graph, node, base, view)
    else:
        given[names[0]] = base
        if given.get("storage_offset") is None:
            given["storage_offset"] = _constant(view.meta["val"].storage_offset())
    node.args, node.kwargs = tuple(given.get(n) for n in names), {}
    if node.target is _SCATTER:
        _show_as(graph, node, view)


def _base(node: torch.fx.Node) -> torch.fx.Node:
    """The argument or call that made the storage of ``node``."""
    while node.op == "call_function":
        storage = StorageWeakRef(node.meta["val"].untyped_storage())
        source: Any = node
        while source.target is operator.getitem:
            source = source.args[0]
        parent = next((p for p in source.all_input_nodes if _has(p, storage)), None)
        if parent is None:
            break
        node = parent
    return node


def _has(node: torch.fx.Node, storage: StorageWeakRef) -> bool:
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or val.layout is not torch.strided:
        return False
    return StorageWeakRef(val.untyped_storage()) == storage


def _elements_from(
    graph: torch.fx.Graph, node: torch.fx.Node, base: torch.fx.Node, view: torch.fx.Node
) -> torch.fx.Node:
    """The elements in memory from the first of ``view`` to the last that ``node`` shows. Where in its
    storage the argument ``base`` starts is not known before the call."""
    shown, first = node.meta["val"], base.meta["val"].storage_offset()
    start = _constant(view.meta["val"].storage_offset() - first)
    extent = sum((d - 1) * s for d, s in zip(shown.shape, shown.stride(), strict=True)) + 1
    stop = _constant(start + extent if 0 not in shown.shape else start)
    with graph.inserting_before(node):
        memory = graph.call_function(torch.ops.aten.as_strided.default, (base, [stop], [1]))
        memory.meta["val"] = base.meta["val"].as_strided([stop], [1])
        left = graph.call_function(torch.ops.aten.slice.Tensor, (memory, 0, start))
        left.meta["val"] = memory.meta["val"][start:]
    return left


def _constant(value: int | torch.SymInt) -> int:
    if not isinstance(value, int):
        raise Unsupported("a view of symbolic sizes, whose storage is read")
    return value


def _show_as(graph: torch.fx.Graph, node: torch.fx.Node, view: torch.fx.Node) -> None:
    """The result of a scatter into the storage of ``view`` is its copy, seen as the view is."""
    val, base = view.meta["val"], node.args[0].meta["val"]  # type: ignore[union-attr]
    shape, strides = [_constant(n) for n in val.shape], [_constant(n) for n in val.stride()]
    geometry = (shape, strides, _constant(val.storage_offset()))
    with graph.inserting_after(node):
        shown = graph.call_function(torch.ops.aten.as_strided.default, (node, *geometry))
    shown.meta = dict(node.meta)
    node.replace_all_uses_with(shown, lambda user: user is not shown)
    node.meta = dict(node.meta)
    node.meta["val"] = torch.empty_like(base)
    shown.meta["val"] = node.meta["val"].as_strided(*geometry)
