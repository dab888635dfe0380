"""LazyTensor: a tensor of the user's whose value may still wait in the Recorder.

A traceable wrapper subclass, so that Dynamo passes it through a graph break to the next compiled
region. Where nothing records it (see ``mode``), every other use of it (an eager operator, ``print``,
``item``, ``numpy``, saving) computes the value, and then works on a plain tensor.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch._guards import CompileContext
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map_only

from lazyc.recording.barriers import Place
from lazyc.recording.join import Fragment, Spec
from lazyc.recording.kinds import Kind, kind_of, view_kinds
from lazyc.recording.recorder import Recorder, Value
from lazyc.recording.untraced import never_traced_class
from lazyc.report import events as E

_raise_for_address = torch._C._set_throw_on_mutable_data_ptr  # type: ignore[attr-defined]
_DATA: Any = torch.Tensor.data
_CPU = torch.device("cpu")
_make_wrapper: Any = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
# Of the code that takes tensor subclasses apart when a compiled function is called. Guards are C++: what they ask
# for has the frame of whoever calls the function for its caller.
_AOT_AUTOGRAD = os.path.join(os.path.dirname(torch.__file__), "_functorch", "")
_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


class Memory:
    """What LazyTensors are views of: ``value`` while that waits, ``tensor`` once it is computed."""

    __slots__ = ("__weakref__", "recorder", "tensor", "value")

    def __init__(
        self,
        recorder: Recorder | None = None,
        tensor: torch.Tensor | None = None,
        value: Value | None = None,
    ) -> None:
        self.recorder = recorder
        self.tensor = tensor
        self.value = value
        if value is not None:
            value.handles.append(weakref.ref(self))

    def wait_for(self, value: Value) -> None:
        """From now on this holds ``value``."""
        self._leave()
        self.value = value
        value.handles.append(weakref.ref(self))

    def replace(self, tensor: torch.Tensor) -> None:
        """From now on this holds ``tensor``, whatever it waited for."""
        self._leave()
        self.tensor = tensor

    def _leave(self) -> None:
        if self.value is not None:
            self.value.handles = [ref for ref in self.value.handles if ref() is not self]
            self.value = None

    def settle(self, tensor: torch.Tensor) -> None:
        """From now on this holds ``tensor``. (The Recorder calls it.)"""
        self.tensor, self.value = tensor, None

    def compute(self, what: str, cause: E.Cause) -> torch.Tensor:
        """The tensor; runs what it waits for."""
        if self.value is not None and self.recorder is not None:
            self.recorder.flush([self.value], cause, what)
        assert self.tensor is not None
        return self.tensor


class LazyTensor(torch.Tensor):
    """The view ``_kind`` of ``_memory``. Made by ``lazy_tensor``."""

    _memory: Memory
    _kind: Kind
    _plain: torch.Tensor | None = None

    # --- for Dynamo

    @property
    def _token(self) -> torch.Tensor:
        """A plain tensor of the same description, for guards and tracing; for a function that another compiler
        made, which asks in the same way, the value."""
        is_computed = self._memory.tensor is not None
        if is_computed or sys._getframe(1).f_code.co_filename.startswith(_AOT_AUTOGRAD):
            return compute(self, "taken by a function of another compiler")
        token = self._kind.made_token  # in place: guards ask at each call
        return self._kind.token if token is None else token

    # Guards ask for this twice at each call of a region, as a method of the tensor and as a function of the class. A
    # function in C, which takes any argument or none, is one that they need no frame for.
    __tensor_flatten__ = staticmethod(partial({"inner": (["_token"], None)}.get, "inner"))

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], context: None, size: Any, stride: Any
    ) -> LazyTensor:
        token = inner["_token"]
        spec = Spec(tuple(token.shape), token.stride(), token.dtype)
        return lazy_tensor(Memory(tensor=token), Kind(spec, (), spec, 0), token.device)

    def _stable_hash_for_caching(self) -> str:
        """For caches of other compilers."""
        return f"{self._kind.spec} at {self._kind.offset}"

    # --- what reads a value

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _SAME:
            return lazy_tensor(args[0]._memory, args[0]._kind, args[0].device)
        return run_on_values(func, args, kwargs or {}, str(func))

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return _DATA.__get__(self)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        _become(self, value if isinstance(value, LazyTensor) else _computed(value.detach()))

    def untyped_storage(self) -> torch.UntypedStorage:
        if CompileContext.try_get() is not None:  # Dynamo asks what tensors share memory
            return super().untyped_storage()
        return compute(self, "untyped_storage").untyped_storage()

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


# Methods that look at memory without an operator that __torch_dispatch__ would see.
for _name in ("numpy", "tolist", "data_ptr", "storage", "__array__", "__dlpack__", "share_memory_"):
    setattr(LazyTensor, _name, _reading(_name))
never_traced_class(LazyTensor)


def lazy_tensor(memory: Memory, kind: Kind, device: torch.device = _CPU) -> LazyTensor:
    """The view ``kind`` of ``memory``."""
    # A function, since a call of the class goes through those of its metaclass.
    spec = kind.spec
    made = _make_wrapper(
        LazyTensor, spec.shape, spec.strides, kind.offset, dtype=spec.dtype, device=device
    )
    _raise_for_address(made)  # in C++ code that asks for it; else it would get null
    made._memory = memory
    made._kind = kind
    return made


def compute(x: LazyTensor, what: str, cause: E.Cause = "value_read") -> torch.Tensor:
    """The plain tensor that ``x`` stands for; runs what it waits for."""
    if x._plain is None or x._memory.tensor is None:
        x._plain = x._kind.of(x._memory.compute(what, cause))
    return x._plain


def run_on_values(func: Any, args: Any, kwargs: dict[str, Any], what: str) -> Any:
    """``func`` on the plain tensors that LazyTensors among its arguments stand for."""
    mutable = func._schema.is_mutable
    if mutable and torch.Tag.inplace_view in func.tags and type(args[0]) is LazyTensor:
        return _change_layout(args[0], func, args[1:], kwargs, what)
    found: dict[int, LazyTensor] = {}

    result = func(
        *[_plain(x, what, found) for x in args],
        **{k: _plain(x, what, found) for k, x in kwargs.items()},
    )
    if not mutable:
        return result
    # In place: the caller gets back the tensor that it gave.
    return tree_map_only(torch.Tensor, lambda t: found.get(id(t), t), result)


def _plain(x: Any, what: str, found: dict[int, LazyTensor]) -> Any:
    """An argument of an operator (tensors, lists of them, plain data: a tree_map takes longer) without
    LazyTensors; these are ``found`` by the ids of their values."""
    if type(x) is LazyTensor:
        tensor = compute(x, what)
        found[id(tensor)] = x
        return tensor
    return [_plain(v, what, found) for v in x] if isinstance(x, list | tuple) else x


def _change_layout(
    x: LazyTensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], what: str
) -> LazyTensor:
    """``x``, after an operator that changes its layout in place: it is another view of its memory then, or
    (``resize_``, ``set_``) has another memory. Other tensors of that memory stay what they are."""
    view = _out_of_place(func)
    if view is not None:
        kind = view_kinds(x._kind, view, args, kwargs)
        assert isinstance(kind, Kind)
        other = lazy_tensor(x._memory, kind, x.device)
    else:
        tensor = compute(x, what).detach()
        run_on_values(func, (tensor, *args), kwargs, what)
        other = _computed(tensor)
    return _become(x, other)


def _computed(tensor: torch.Tensor) -> LazyTensor:
    """A LazyTensor that is ``tensor``."""
    spec = Spec(tuple(tensor.shape), tensor.stride(), tensor.dtype)
    kind = _kind_at(spec, int(tensor.storage_offset()))
    return lazy_tensor(Memory(tensor=tensor), kind, tensor.device)


@lru_cache(maxsize=4096)
def _kind_at(spec: Spec, offset: int) -> Kind:
    """One for all tensors alike: calls are told apart by it."""
    return Kind(spec, (), spec, offset) if offset else kind_of(spec)


def _become(x: LazyTensor, other: LazyTensor) -> LazyTensor:
    """``x``, which is from now on the same view of the same memory as ``other``."""
    x._memory, x._kind, x._plain = other._memory, other._kind, None
    with torch._C.DisableTorchFunction(), no_dispatch():
        _DATA.__set__(x, other)  # shape and strides as torch sees them
    return x


@lru_cache(maxsize=64)
def _out_of_place(func: Any) -> Any:
    """The operator that returns the view which ``func`` makes of its argument; None where there is none."""
    name = func._schema.name.removeprefix("aten::").removesuffix("_")
    packet = getattr(torch.ops.aten, name, None)
    for overload in packet.overloads() if packet is not None else ():
        view = getattr(packet, overload)
        if view.is_view and _takes(view) == _takes(func):
            return view
    return None


def _takes(func: Any) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in func._schema.arguments]


def record(
    recorder: Recorder, fragment: Fragment, args: Sequence[torch.Tensor], place: Place | None
) -> list[LazyTensor]:
    """Has ``fragment(*args)`` run when one of the results is read; ``place`` is the user's line.
    Raises NotRecordable."""
    given: list[Value | torch.Tensor] = []
    for x in args:
        if type(x) is not LazyTensor:
            given.append(x)
            continue
        value = x._memory.value
        if value is not None and x._memory.recorder is recorder and not x._kind.views:
            given.append(value)
        else:
            given.append(compute(x, "taken by a region with other options"))
    values = recorder.record(fragment, given, place)
    results: list[LazyTensor] = []
    for value, kind in zip(values, _kinds(fragment), strict=True):
        results.append(lazy_tensor(Memory(recorder, value=value), kind))
    recorder.keep_within_caps()
    return results


@lru_cache(maxsize=1024)
def _kinds(fragment: Fragment) -> tuple[Kind, ...]:
    return tuple(map(kind_of, fragment.results))


def example(x: Any, node: torch.fx.Node) -> Any:
    """What a compiler may trace with in place of ``x``, which Dynamo saw as ``node``: a fake tensor with
    memory of its own, since tracing tells arguments apart by their memory."""
    if not isinstance(x, LazyTensor):
        return x
    fake: Any = node.meta["example_value"]
    if isinstance(fake, LazyTensor):  # not where Dynamo makes it by the views of its base
        fake = cast("Any", fake)._memory.tensor
    with fake.fake_mode:
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
