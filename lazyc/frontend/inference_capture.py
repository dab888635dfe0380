"""Captures an inference graph of Dynamo's as ATen operators, without AOTAutograd.

AOTAutograd runs a graph once to learn what it writes to and which results are views of what, and traces
it again with every tensor wrapped, so that writes become values. A graph that writes to nothing and
returns new tensors needs neither: running it once on fake tensors, and noting each operator that they
meet, gives the same graph in a third of the time. Whether a graph is such a one shows meanwhile; any
other is left to AOTAutograd.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.utils import preserve_rng_state
from torch._functorch import config as functorch_config
from torch._guards import TracingContext
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, autograd_would_have_decomposed
from torch.utils._pytree import tree_leaves

from lazyc.frontend.decompositions import decomposition_table

# These write to arguments in training, which their schemas do not say.
_WRITE_SILENTLY = frozenset({
    "aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm",
})  # fmt: skip
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class _NotPlain(Exception):
    """The graph writes to a tensor, has sizes that depend on data, or has results that are not new tensors."""


def capture_inference(gm: GraphModule, example_inputs: Sequence[Any]) -> GraphModule | None:
    """The ATen graph of ``gm``, with its arguments and results; None where that takes AOTAutograd.

    For graphs that have a capture key (``capture_key``): tensors of static shapes, operators of torch's own.
    """
    if TracingContext.try_get() is None or not _is_inference(gm, example_inputs):
        return None
    try:
        return _trace(gm, example_inputs)
    except Exception:  # noqa: BLE001 - AOTAutograd traces it, or says what is wrong with it
        return None


def lasting_inputs(gm: GraphModule) -> frozenset[int]:
    """The arguments of Dynamo's graph that are parameters or buffers of modules."""
    return frozenset(
        index
        for index, node in enumerate(gm.graph.find_nodes(op="placeholder"))
        if node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    )


def _is_inference(gm: GraphModule, example_inputs: Sequence[Any]) -> bool:
    if torch.is_grad_enabled() and any(x.requires_grad for x in example_inputs):
        return False
    if functorch_config.functionalize_rng_ops:
        return False  # seeds become arguments
    return not any(_names_a_write(node) for node in gm.graph.nodes)


def _names_a_write(node: Node) -> bool:
    """Whether a call is one in place by its name: found before anything is traced."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.target is operator.setitem or node.kwargs.get("inplace") is True


def _trace(gm: GraphModule, example_inputs: Sequence[Any]) -> GraphModule:
    # Not those of the tracing context: AOTAutograd, if it traces after all, needs its arguments there made in its own
    # way, with symbols for floats.
    fakes = FakeTensorMode()
    arguments = [fakes.from_tensor(x, static_shapes=True) for x in example_inputs]
    mode = _Capture()
    with fakes, enable_python_dispatcher(), preserve_rng_state(), _autocast_put_back(), mode:
        results = _run(gm, arguments, mode)
    return mode.finish(results, arguments)


def _run(gm: GraphModule, arguments: Sequence[torch.Tensor], mode: _Capture) -> Any:
    """The results of ``gm``, within ``mode``."""
    values: dict[Node, Any] = {}
    given = iter(arguments)

    def value(x: Any) -> Any:
        return values[x] if isinstance(x, Node) else x

    for node in gm.graph.nodes:
        if node.op == "placeholder":
            values[node] = mode.argument(next(given))
            continue
        mode.stack_trace = node.meta.get("stack_trace")
        args, kwargs = map_aggregate(node.args, value), map_aggregate(node.kwargs, value)
        if node.op == "call_function":
            values[node] = node.target(*args, **kwargs)
        elif node.op == "call_method":
            values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            results = args[0]
    return results


@contextmanager
def _autocast_put_back() -> Iterator[None]:
    """Leaves autocast as it was, also where a graph that enters it is given up in the middle, and keeps fake
    tensors out of its cache of what it has cast."""
    cache = torch.is_autocast_cache_enabled()
    devices = torch._C._autocast_supported_devices()
    before = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    nesting = torch.autocast_increment_nesting()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        while torch.autocast_decrement_nesting() >= nesting:
            pass
        if nesting == 1:  # as at the end of the outermost one
            torch.clear_autocast_cache()
        for device, enabled, dtype in before:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(cache)


class _Capture(TorchDispatchMode):
    """Notes each operator that fake tensors meet, as a node with its result.

    ``stack_trace``: that of the user's line which is being run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stack_trace: str | None = None
        self._graph = Graph()
        self._decompositions = decomposition_table()
        self._nodes: dict[int, Node] = {}  # by id of the tensor
        self._kept: list[torch.Tensor] = []  # so that no id is used again

    def argument(self, value: torch.Tensor) -> torch.Tensor:
        # Named as by AOTAutograd: the names are in the keys of compiled code.
        node = self._graph.placeholder(f"arg{len(self._kept)}_1")
        self._note(node, value)
        return value

    def finish(self, results: Any, arguments: Sequence[torch.Tensor]) -> GraphModule:
        """The graph. Raises _NotPlain unless ``results`` are tensors, none of them a view of an argument."""
        storages = {StorageWeakRef(x.untyped_storage()) for x in arguments}
        for value in results:
            if not isinstance(value, torch.Tensor) or value.requires_grad:
                raise _NotPlain("a result is no tensor, or has a gradient")
            if StorageWeakRef(value.untyped_storage()) in storages:
                raise _NotPlain("a result is a view of an argument")
        self._graph.output(tuple(self._node_of(x) for x in results))
        self._graph.eliminate_dead_code()
        return GraphModule(torch.nn.Module(), self._graph)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _only_asks(func):
            return func(*args, **kwargs)
        decomposition = self._decompositions.get(func)
        if decomposition is not None:
            with self:
                made = decomposition(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if _is_composite(func) and autograd_would_have_decomposed(
            func, tree_leaves((args, kwargs))
        ):
            with self:
                return func.decompose(*args, **kwargs)
        _check(func, args)
        node = self._graph.create_node(
            "call_function",
            func,
            map_aggregate(args, self._node_of),
            map_aggregate(kwargs, self._node_of),
        )
        value = func(*args, **kwargs)
        self._note(node, value)
        return value

    def _node_of(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        node = self._nodes.get(id(value))
        if node is None:
            raise _NotPlain("a tensor is neither an argument nor a result of an operator")
        return node

    def _note(self, node: Node, value: Any) -> None:
        node.meta = {"val": value, "stack_trace": self.stack_trace}
        if isinstance(value, torch.Tensor):
            if type(value) is not FakeTensor or value._has_symbolic_sizes_strides:
                raise _NotPlain("a size depends on data")
            self._nodes[id(value)] = node
            self._kept.append(value)
        elif isinstance(value, tuple | list):
            for index, part in enumerate(value):
                if part is not None:
                    self._note(self._graph.call_function(operator.getitem, (node, index)), part)
        else:
            raise _NotPlain("an operator gives a number")


@cache
def _only_asks(func: Any) -> bool:
    """Whether a call asks about a tensor, and makes none."""
    return func in FunctionalTensor.metadata_fns or func is torch.ops.prim.device.default


@cache
def _is_composite(func: Any) -> bool:
    """Whether torch has the operator as a function of other ones, for any device."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE))


def _check(func: Any, args: tuple[Any, ...]) -> None:
    """Raises _NotPlain for an operator that does not just make new tensors or views."""
    if _writes(func):
        raise _NotPlain(f"{func} writes to an argument")
    if _looks_at_data(func) and not (func is torch.ops.aten.index.Tensor and _has_positions(args)):
        raise _NotPlain(f"the result of {func} depends on data")


@cache
def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable) or func._schema.name in _WRITE_SILENTLY


@cache
def _looks_at_data(func: Any) -> bool:
    """Whether the sizes of a result, or a number made of it, may depend on data."""
    tags = func.tags
    return torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags


def _has_positions(args: tuple[Any, ...]) -> bool:
    """Whether ``aten.index`` is given positions, rather than masks of a size that depends on them."""
    return all(x is None or x.dtype not in (torch.bool, torch.uint8) for x in args[1])
