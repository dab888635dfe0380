"""LazyTensor: a tensor of the user's whose value may still wait in the Recorder.

A traceable wrapper subclass, so that Dynamo passes it through a graph break to the next compiled
region. Every other use of it (an eager operator, ``print``, ``item``, ``numpy``, saving) computes
the value, and then works on a plain tensor.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from lazyc.lazy.barriers import Cause
from lazyc.lazy.join import Fragment, Spec
from lazyc.lazy.recorder import Recorder, Value

_DETACH = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


class LazyTensor(torch.Tensor):
    """Stands for ``_value`` while that waits, and for ``_plain`` once it is computed."""

    _value: Value | None
    _recorder: Recorder | None
    _plain: torch.Tensor | None

    @staticmethod
    def __new__(cls, like: torch.Tensor | Spec) -> LazyTensor:
        if isinstance(like, Spec):
            shape, strides, device = like.shape, like.strides, torch.device("cpu")
        else:
            shape, strides, device = like.shape, like.stride(), like.device
        self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, strides=strides, dtype=like.dtype, device=device, requires_grad=False
        )
        self._value = self._recorder = None
        self._plain = None if isinstance(like, Spec) else like
        return self

    @staticmethod
    def waiting(value: Value, recorder: Recorder) -> LazyTensor:
        """A tensor for a value that is not computed yet."""
        self = LazyTensor(value.spec)
        self._value, self._recorder = value, recorder
        value.handles.append(weakref.ref(self))
        return self

    # Called by the Recorder.
    def settle(self, tensor: torch.Tensor) -> None:
        """From now on this is ``tensor``."""
        self._plain, self._value, self._recorder = tensor, None, None

    # --- for Dynamo

    @property
    def _token(self) -> torch.Tensor:
        """A plain tensor of the same description, for guards and tracing."""
        if self._plain is not None:
            return self._plain
        assert self._value is not None
        return _token(self._value.spec)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_token"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: None, size: Any, stride: Any
    ) -> LazyTensor:
        return LazyTensor(inner["_token"])

    # --- what reads a value

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DETACH and args[0]._value is not None:
            return LazyTensor.waiting(args[0]._value, args[0]._recorder)
        name = str(func)
        found: dict[int, LazyTensor] = {}

        def plain(x: LazyTensor) -> torch.Tensor:
            tensor = compute(x, name)
            found[id(tensor)] = x
            return tensor

        result = func(
            *tree_map_only(LazyTensor, plain, args), **tree_map_only(LazyTensor, plain, kwargs)
        )
        if not func._schema.is_mutable:
            return result
        # In place: the caller gets back the tensor that it gave.
        return tree_map_only(torch.Tensor, lambda t: found.get(id(t), t), result)

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return compute(self, "print").__repr__(**kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return compute(self, "saving").__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return compute(self, "deepcopy").__deepcopy__(memo)


def _reading(name: str) -> Callable[..., Any]:
    method = getattr(torch.Tensor, name)

    def call(self: LazyTensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(compute(self, name), name)(*args, **kwargs)

    call.__name__, call.__doc__ = name, method.__doc__
    return call


# Methods that look at memory without an operator that __torch_dispatch__ would see. (Not
# untyped_storage and storage_offset: Dynamo asks for them when it traces.)
for _name in ("numpy", "tolist", "data_ptr", "__array__", "__dlpack__", "share_memory_"):
    setattr(LazyTensor, _name, _reading(_name))


def compute(x: LazyTensor, what: str, cause: Cause = Cause.VALUE_READ) -> torch.Tensor:
    """The plain tensor that ``x`` stands for; runs what it waits for."""
    value, recorder = x._value, x._recorder
    if value is not None and recorder is not None:
        recorder.flush([value], cause, what)
    assert x._plain is not None
    return x._plain


def record(
    recorder: Recorder, fragment: Fragment, args: Sequence[torch.Tensor]
) -> list[LazyTensor]:
    """Has ``fragment(*args)`` run when one of the results is read. Raises NotRecordable."""
    given: list[Value | torch.Tensor] = []
    for x in args:
        if not isinstance(x, LazyTensor):
            given.append(x)
        elif x._value is not None and x._recorder is recorder:
            given.append(x._value)
        else:
            given.append(compute(x, "taken by a region with other options"))
    values = recorder.record(fragment, given)
    results = [LazyTensor.waiting(v, recorder) for v in values]
    recorder.keep_within_caps()
    return results


@lru_cache(maxsize=256)
def _token(spec: Spec) -> torch.Tensor:
    """One for all values of a description: nobody looks at its memory, of which it has none."""
    token = torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device="cpu")
    token.untyped_storage().resize_(0)
    return token


def example(x: Any, node: torch.fx.Node) -> Any:
    """What a compiler may trace with in place of ``x``, which Dynamo saw as ``node``: a fake tensor with
    memory of its own, since tracing tells arguments apart by their memory."""
    if not isinstance(x, LazyTensor):
        return x
    fake = node.meta["example_value"]._plain
    with fake.fake_mode:
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
