"""A key of what Dynamo captured, so that a later process need not trace it through AOTAutograd again.

AOTAutograd takes a second or more for a transformer and gives the same graph each time. For an
inference graph that neither writes to its inputs nor returns views of them, what it adds around the
compiled function is nothing, so a key of Dynamo's graph alone finds the Program (``Compiler.restore``).

The key covers every node with its arguments, every input with its layout, and the state of the
process that tracing looks at. A graph with anything that is not known to be decided by these
(a custom operator, a Python function of somebody else, a constant, a dynamic size, an active mode)
has no key and goes the long way.
"""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch._functorch import config as functorch_config
from torch._functorch._aot_autograd.schemas import OutputType, ViewAndMutationMeta
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lazyc.ir.sparse import declared

_BUILTIN_MODULES = frozenset(
    {
        "_operator", "math", "torch", "torch._C._fft", "torch._C._linalg", "torch._C._nn",
        "torch._C._special",
    }
)  # fmt: skip
_PYTHON_MODULES = frozenset({"torch.amp.autocast_mode", "torch.functional", "torch.nn.functional"})
_TORCH_FOLDER = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_NAMESPACES = frozenset({"aten", "prims"})
_TENSORS = (torch.Tensor, torch.nn.Parameter)
# Their repr says all about them.
_PLAIN = frozenset(
    {
        int, bool, str, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout,
        torch.memory_format,
    }
)  # fmt: skip


class _NoKey(Exception):
    """The graph holds something that the key would not cover."""


def capture_key(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> str | None:
    """SHA-256 of a Dynamo graph with its inputs and the state it is traced in; None: it has no key."""
    text = describe(gm, example_inputs)
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def describe(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> str | None:
    """What the key is made of: a line for the state, each input and each node."""
    try:
        return "\n".join([_state(), *_inputs(gm, example_inputs), *_nodes(gm.graph)])
    except _NoKey:
        return None


def is_plain(metadata: ViewAndMutationMeta, gm: torch.fx.GraphModule) -> bool:
    """Whether AOTAutograd adds nothing to an inference graph: the compiled function takes what the
    captured one took and returns what it returned.

    ``gm`` is the graph that AOTAutograd made.
    """
    outputs = gm.graph.output_node().args[0]
    return (
        not any(i.mutates_data or i.mutates_metadata for i in metadata.input_info)
        and all(o.output_type is OutputType.non_alias for o in metadata.output_info)
        and not any(o.requires_grad for o in metadata.output_info)
        and metadata.num_intermediate_bases == 0
        and not metadata.tokens
        and not metadata.is_rng_op_functionalized
        and isinstance(outputs, tuple | list)
        and len(outputs) == len(metadata.output_info)
        and all(isinstance(o, torch.fx.Node) for o in outputs)
        and len(gm.graph.find_nodes(op="placeholder")) == len(metadata.input_info)
    )


def _state() -> str:
    if (
        _get_current_dispatch_mode_stack()
        or _get_current_function_mode_stack()
        or peek_interpreter_stack() is not None
    ):
        raise _NoKey
    autocast = [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_cache_enabled())
        for device in torch._C._autocast_supported_devices()
        if torch.is_autocast_enabled(device)
    ]
    config = functorch_config.save_config_portable(ignore_private_configs=False)
    if any(callable(value) for value in config.values()):
        raise _NoKey
    cuda = torch.backends.cuda
    values = (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        autocast,
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        _float32_precision(),
        torch.backends.mkldnn.enabled,
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        torch._C._get_cudnn_enabled(),
        # Sorted: the order of torch's own dump depends on what was set before.
        sorted(config.items()),
    )
    return repr(values)


def _float32_precision() -> tuple[object, ...]:
    """(``torch.get_float32_matmul_precision`` raises where not all backends are set to the same.)"""
    backends = torch.backends
    return (
        backends.fp32_precision,  # type: ignore[attr-defined]
        backends.cuda.matmul.fp32_precision,
        backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    )


def _inputs(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> list[str]:
    if any(True for _ in gm.parameters()) or any(True for _ in gm.buffers()):
        raise _NoKey
    placeholders = gm.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(example_inputs):
        raise _NoKey
    if len({id(x) for x in example_inputs}) != len(example_inputs):
        raise _NoKey
    return [_input(n, x) for n, x in zip(placeholders, example_inputs, strict=True)]


def _input(node: torch.fx.Node, x: Any) -> str:
    fake = node.meta.get("example_value")
    # The example has sizes of today, the fake tensor says which of them may change.
    if type(x) not in _TENSORS or not isinstance(fake, torch.Tensor):
        raise _NoKey
    if x.layout is not torch.strided or x.is_conj() or x.is_neg() or x.is_quantized:
        raise _NoKey
    numbers = (*fake.shape, *fake.stride(), fake.storage_offset())
    if not all(type(number) is int for number in numbers):
        raise _NoKey
    static = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    row = (
        type(x).__name__, x.dtype, x.device, numbers, x.requires_grad, x.is_inference(), static,
        tuple(x.shape) == tuple(fake.shape), declared(x),
    )  # fmt: skip
    return repr(row)


def _nodes(graph: torch.fx.Graph) -> list[str]:
    numbers: dict[torch.fx.Node, int] = {}
    lines = []
    for node in graph.nodes:
        numbers[node] = len(numbers)
        if node.op == "placeholder":
            continue
        if node.op == "call_function":
            target = _function(node.target)
        elif node.op == "call_method":
            target = f".{node.target}"
        elif node.op == "output":
            target = "output"
        else:
            raise _NoKey
        kwargs = [f"{name}={_text(x, numbers)}" for name, x in node.kwargs.items()]
        lines.append(f"{target} {_text(node.args, numbers)} {' '.join(kwargs)}")
    return lines


def _function(target: Any) -> str:
    """The name of a function that is what its name says, in every process with this torch."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = str(target)
        if name.split(".")[0].split("::")[0] in _NAMESPACES:
            return name
        raise _NoKey
    if target is torch._C._log_api_usage_once:  # computes nothing
        return "log_api_usage_once"
    module, name = str(getattr(target, "__module__", "")), getattr(target, "__name__", "")
    builtin = isinstance(target, types.BuiltinFunctionType) and module in _BUILTIN_MODULES
    python = (
        isinstance(target, types.FunctionType)
        and module in _PYTHON_MODULES
        and target.__code__.co_filename.startswith(_TORCH_FOLDER)
    )
    if (builtin or python) and getattr(sys.modules[module], name, None) is target:
        return f"{module}.{name}"
    raise _NoKey


def _text(value: Any, numbers: dict[torch.fx.Node, int]) -> str:
    """Text that is equal for equal arguments only."""
    if isinstance(value, torch.fx.Node):
        return f"%{numbers[value]}"
    kind = type(value)
    if kind is float:
        return value.hex()
    if kind is complex:
        return f"complex({value.real.hex()}, {value.imag.hex()})"
    if kind in _PLAIN:
        return repr(value)
    if isinstance(value, tuple | list):  # of fx too, which has a list type of its own
        return f"{kind.__name__}({', '.join([_text(x, numbers) for x in value])})"
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return f"slice({', '.join([_text(x, numbers) for x in parts])})"
    raise _NoKey
