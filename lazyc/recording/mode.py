"""Recording without Dynamo: what eager code dispatches waits until a value is needed.

    with lazyc.lazy():
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        lazyc.mark_step()

Below autograd, so that a backward pass is recorded like any other code. An operator is recorded when
it has a Graph that may wait (``barriers``); else what it takes is computed and it runs at once.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from lazyc.config import AttentionKernel
from lazyc.recording import scalars
from lazyc.recording.barriers import as_line, user_place
from lazyc.recording.calls import Call, Slot, make_call
from lazyc.recording.join import Spec
from lazyc.recording.kinds import Kind, kind_of, view_kinds
from lazyc.recording.recorder import NotRecordable, Recorder, Value
from lazyc.recording.tensor import LazyTensor, Memory, compute, lazy_tensor, run_on_values
from lazyc.recording.untraced import never_traced_class
from lazyc.report import events as E

aten = torch.ops.aten


class _Class(Enum):
    """How an operator is treated."""

    RECORDED = "recorded"
    VIEW = "view"
    WRITE = "write"
    CONSTANT = "constant"  # as LAYOUT_ONLY, and always the same
    LAYOUT_ONLY = "layout_only"  # makes a tensor from the layout of another
    DRAW = "draw"  # fills a tensor with random numbers, whatever is in it
    AT_ONCE = "at_once"


# Results depend on the layout of the first argument only; run on a tensor without memory.
_LAYOUT_ONLY = (
    "empty_like", "rand_like", "randn_like", "randint_like", "new_empty", "new_empty_strided",
)  # fmt: skip
# Constants in the layout of the first argument: part of the program where that waits, else made at
# once, so that a state made in the first step is no other program than the state of later steps.
_CONSTANTS = (
    "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full",
)  # fmt: skip
_DRAWS = (
    "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_",
)  # fmt: skip
# Write to arguments without saying so, or look at data.
_AT_ONCE = ("native_batch_norm", "_local_scalar_dense", "equal", "is_nonzero", "set_", "resize_")
# Random only with a ``dropout_p`` of more than zero; these then draw at once like the others.
_MAY_DROP_OUT = ("_scaled_dot_product_flash_attention_for_cpu",)


# By id: an OpOverload lives as long as the process, and computes its hash in Python.
_classes: dict[int, _Class] = {}
_LIFTED = frozenset(map(id, scalars.OPERATORS))


def _classify(func: torch._ops.OpOverload) -> _Class:
    name = func._schema.name.removeprefix("aten::")
    schema = func._schema
    if not schema.name.startswith("aten::") or name in _AT_ONCE:
        return _Class.AT_ONCE
    if name in _LAYOUT_ONLY:
        return _Class.LAYOUT_ONLY
    if name in _CONSTANTS:
        return _Class.CONSTANT
    if schema.is_mutable:
        tensor = any(a.name == "p" and a.type.kind() == "TensorType" for a in schema.arguments)
        if name in _DRAWS and not tensor:
            return _Class.DRAW
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        return _Class.AT_ONCE if seeded or torch.Tag.inplace_view in func.tags else _Class.WRITE
    if torch.Tag.nondeterministic_seeded in func.tags and name not in _MAY_DROP_OUT:
        return _Class.AT_ONCE
    if func.is_view or name == "_unsafe_view":
        return _Class.VIEW
    return _Class.RECORDED


def _why_at_once(func: torch._ops.OpOverload) -> str:
    """Why the class of ``func`` is AT_ONCE."""
    if not func._schema.name.startswith("aten::"):
        return "it is no operator of torch's own"
    if torch.Tag.nondeterministic_seeded in func.tags:
        return "it draws random numbers"
    if torch.Tag.inplace_view in func.tags or func._schema.is_mutable:
        return "it changes the layout of its argument"
    return "it looks at values, or writes to arguments without saying so"


# Told of an exception that is a bug of lazyc's.
Failed: TypeAlias = Callable[[Exception], None]

_OWN_FRAMES = 3  # user_place, LazyMode._record, LazyMode.__torch_dispatch__
# By how attention is to be computed: options of one thread are not those of another.
_CALLS: defaultdict[AttentionKernel, dict[tuple[Any, ...], Call]] = defaultdict(dict)
_MOST_CALLS = 50_000


@never_traced_class
class LazyMode(TorchDispatchMode):
    """Records what is dispatched within it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # no wrapper around each call: never_traced_class says the same

    def __init__(
        self,
        recorder: Recorder,
        writes: PendingWrites,
        failed: Failed,
        attention: AttentionKernel = "auto",
    ) -> None:
        super().__init__()
        self._recorder = recorder
        self._attention: AttentionKernel = attention
        self._calls = _CALLS[attention]
        self._writes = writes
        self._failed = failed
        self._told: set[int] = set()  # operators that run at once by their class, by id

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        kind = _classes.get(id(func))
        if kind is None:
            kind = _classes[id(func)] = _classify(func)
        if kind is _Class.RECORDED or kind is _Class.WRITE:
            return self._record(func, args, kwargs)
        first = args[0] if args else None
        if kind is _Class.CONSTANT and _waits(first):
            return self._record(func, args, kwargs)
        if type(first) is LazyTensor:
            if kind is _Class.VIEW:
                return _view(first, func, args[1:], kwargs)
            if kind is _Class.LAYOUT_ONLY:
                return func(first._kind.token, *args[1:], **kwargs)
            if kind is _Class.DRAW and not first._kind.views and first._memory.tensor is None:
                spec = first._kind.spec
                tensor = torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype)
                first._memory.replace(func(tensor, *args[1:], **kwargs))
                return first
        if kind is _Class.AT_ONCE and id(func) not in self._told:
            self._tell(func, args)
        return self._run_now(func, args, kwargs)

    def _tell(self, func: Any, args: tuple[Any, ...]) -> None:
        """Reports an operator that what waits is computed for."""
        if any(_waits(x) for x in tree_leaves(args)):
            self._told.add(id(func))
            line = as_line(user_place())
            self._recorder.events.emit(E.NotLazy(line, f"{func}: {_why_at_once(func)}"))

    def _run_now(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self._writes.flush_for((args, kwargs), str(func))
        return run_on_values(func, args, kwargs, str(func))

    def _record(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        arguments = _Arguments(func, args, kwargs)
        given = arguments.given
        if arguments.is_foreign:
            return self._run_now(func, args, kwargs)
        if not arguments.has_dims and not any(map(_waits, given)):
            return self._run_now(func, args, kwargs)  # known scalars: no gain from waiting
        call = self._calls.get(arguments.key)
        if call is None:
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            call = self._calls[arguments.key] = self._make(func, arguments, args, kwargs)
        if call.fragment is None or (call.written and _overlap(call.written, given)):
            return self._run_now(func, args, kwargs)
        recorder = self._recorder
        taken: list[Value | torch.Tensor | float] = []
        for x in given:
            if type(x) is LazyTensor and x._memory.recorder is recorder:  # most are: a call less
                value = x._memory.value or self._content(x)
            elif type(x) is float:
                value = x
            else:
                value = self._content(x)
            if value is None:
                return self._run_now(func, args, kwargs)
            taken.append(value)
        try:
            values = recorder.record(call.fragment, taken, user_place(_OWN_FRAMES))
        except NotRecordable:
            return self._run_now(func, args, kwargs)
        if call.is_one_tensor:  # most do; as below, in less time
            result = lazy_tensor(Memory(recorder, value=values[0]), call.made[0])
            recorder.keep_within_caps()
            return result
        for k, value in zip(call.written, values, strict=False):
            self._memory_to_write(given[k]).wait_for(value)
        new = values[len(call.written) :]
        made = [
            lazy_tensor(Memory(recorder, value=v), kind)
            for v, kind in zip(new, call.made, strict=True)
        ]
        recorder.keep_within_caps()
        if not call.is_tuple:
            return _result(call.returns[0], made, given)
        return tuple(_result(r, made, given) for r in call.returns)

    def _make(self, func: Any, arguments: _Arguments, args: Any, kwargs: dict[str, Any]) -> Call:
        templates = arguments.templates(args, kwargs)
        try:
            with self._recorder.spans.span("compile", str(func)), _disable_current_modes():
                call = make_call(func, *templates, arguments.kinds, self._attention)
        except Exception as error:  # noqa: BLE001 - any failure of ours must leave the model running
            self._failed(error)
            call = Call(None, f"lazyc failed: {error}")
        if call.fragment is None:
            line = as_line(user_place())
            self._recorder.events.emit(E.NotLazy(line, f"{func}: {call.reason}"))
        return call

    def _content(self, x: torch.Tensor) -> Value | torch.Tensor | None:
        """What the memory of an argument holds now, as the Recorder takes it; None where that must be
        written first."""
        if type(x) is LazyTensor:
            memory = x._memory
            if memory.value is not None:
                if memory.recorder is self._recorder:
                    return memory.value
                return memory.compute("taken by code recorded with other options", "region_end")
            assert memory.tensor is not None
            x = memory.tensor
        return self._writes.content(x)

    def _memory_to_write(self, x: Any) -> Memory:
        if type(x) is LazyTensor:
            if x._memory.value is not None:
                return x._memory
            x = x._memory.tensor
        return self._writes.memory(x)


class PendingWrites:
    """Plain tensors that recorded code has written to: the new contents wait."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._memories: dict[int, Written] = {}  # by storage

    def memory(self, x: torch.Tensor) -> Memory:
        """What waits to be written to ``x``, or will."""
        key = x.untyped_storage()._cdata
        found = self._memories.get(key)
        if found is None:
            found = self._memories[key] = Written(self._recorder, x, self._memories)
        return found

    def content(self, x: torch.Tensor) -> Value | torch.Tensor | None:
        """What ``x`` holds; None where another view of its memory was written to."""
        if not self._memories:
            return x
        found = self._memories.get(x.untyped_storage()._cdata)
        if found is None or found.value is None:
            return x
        return found.value if found.is_all_of(x) else None

    def flush_for(self, args: Any, what: str) -> None:
        """Writes what waits for memory of ``args``, because ``what`` is about to read it."""
        if not self._memories:
            return
        found: dict[int, Written] = {}
        for x in tree_leaves(args):
            if isinstance(x, LazyTensor):
                x = x._memory.tensor
            if isinstance(x, torch.Tensor) and x.layout is torch.strided:
                key = x.untyped_storage()._cdata
                if key in self._memories:
                    found[key] = self._memories[key]
        if found:
            self._flush(found.values(), "value_read", what)

    def flush(self, cause: E.Cause, what: str) -> None:
        """Writes all that waits."""
        if self._memories:
            self._flush(self._memories.values(), cause, what)

    def _flush(self, memories: Iterable[Memory], cause: E.Cause, what: str) -> None:
        values = [m.value for m in memories if m.value is not None]
        self._recorder.flush(values, cause, what)


@never_traced_class
class ReadingMode(TorchFunctionMode):
    """Has what waits written before Python looks at memory in a way that dispatches no operator."""

    def __init__(self, writes: PendingWrites) -> None:
        super().__init__()
        self._writes = writes

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _LOOKS:
            self._writes.flush_for(args, func.__name__)
            if func == _SET_DATA:  # torch would take the memory that a LazyTensor does not have
                args = tuple(compute(x, "data") if type(x) is LazyTensor else x for x in args)
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            # An operator made of others that looks at memory by itself (``tensor_split``). Not a Python
            # function, which may have drawn or written before.
            if isinstance(func, FunctionType) or not _NO_MEMORY.search(str(error)):
                raise

        def plain(x: LazyTensor) -> torch.Tensor:  # gradients flow through those that need them
            return x if x.requires_grad else compute(x, func.__name__)

        return func(
            *tree_map_only(LazyTensor, plain, args), **tree_map_only(LazyTensor, plain, kwargs)
        )


# What torch says of a LazyTensor.
_NO_MEMORY = re.compile("data is not allocated yet|Cannot access data pointer")
_DATA: Any = torch.Tensor.data
_SET_DATA = _DATA.__set__
_LOOKS = frozenset(
    getattr(torch.Tensor, name)
    for name in (
        "numpy", "tolist", "data_ptr", "__array__", "__dlpack__", "untyped_storage", "storage",
        "share_memory_", "__reduce_ex__", "__deepcopy__", "__repr__",
    )
) | {_SET_DATA}  # fmt: skip


class Written(Memory):
    """The memory of a plain tensor, with what is to be written to it."""

    __slots__ = ("_others", "target")

    def __init__(
        self, recorder: Recorder, target: torch.Tensor, others: dict[int, Written]
    ) -> None:
        super().__init__(recorder)
        self.target = target
        self._others = others

    def is_all_of(self, x: torch.Tensor) -> bool:
        t = self.target
        return x is t or (
            x.shape == t.shape
            and x.stride() == t.stride()
            and x.storage_offset() == t.storage_offset()
            and x.dtype == t.dtype
        )

    def settle(self, tensor: torch.Tensor) -> None:
        del self._others[self.target.untyped_storage()._cdata]
        super().settle(self.target)
        with torch.no_grad():
            self.target.detach().copy_(tensor)


class _Arguments:
    """The arguments of a call. ``key``: what calls alike have in common. ``given``: what the fragment
    takes, tensors and floats, of these ``kinds``."""

    __slots__ = ("_lift", "given", "has_dims", "is_foreign", "key", "kinds")

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.given: list[Any] = []
        self.kinds: list[Kind] = []
        self.has_dims = False  # a tensor of one dim or more
        self.is_foreign = False  # a tensor that only its own kind of code can read
        self._lift = id(func) in _LIFTED and _is_single_or_double(args[0])
        key: list[Any] = [id(func)]
        self._add(args, key)
        for name, value in kwargs.items():
            key.append(name)
            self._add((value,), key)
        self.key = tuple(key)

    def _add(self, values: Sequence[Any], key: list[Any]) -> None:
        for value in values:
            is_lazy = type(value) is LazyTensor  # asked first: torch's isinstance takes longer
            if is_lazy or isinstance(value, torch.Tensor):
                kind = value._kind if is_lazy else _kind_of_plain(value)
                if kind is None:
                    self.is_foreign = True
                    continue
                self.has_dims |= kind.has_dims
                key.append(kind)
                self.given.append(value)
                self.kinds.append(kind)
            elif isinstance(value, list | tuple):
                key.append(len(value))
                self._add(value, key)
            elif self._lift and type(value) is float and scalars.is_argument(value):
                key.append(_FLOAT)
                self.given.append(value)
                self.kinds.append(_FLOAT)
            else:
                key.append(type(value))
                key.append(value)

    def templates(self, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The arguments with Slots for what is given."""
        numbers = itertools.count()
        return self._template(args, numbers), {
            k: self._template(v, numbers) for k, v in kwargs.items()
        }

    def _template(self, value: Any, numbers: Iterator[int]) -> Any:
        # A method: a function that calls itself from a closure is a cycle, and would keep the
        # arguments, so that they seem to be wanted.
        if isinstance(value, list | tuple):
            return [self._template(v, numbers) for v in value]
        lifted = self._lift and type(value) is float and scalars.is_argument(value)
        if lifted or isinstance(value, torch.Tensor):
            return Slot(next(numbers))
        return value


_FLOAT = kind_of(Spec((), (), torch.float64))


def _is_single_or_double(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in (torch.float32, torch.float64)


def _result(which: tuple[str, int] | None, made: list[Any], given: list[Any]) -> Any:
    if which is None:
        return None
    return (made if which[0] == "new" else given)[which[1]]


def _kind_of_plain(x: torch.Tensor) -> Kind | None:
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if not x.is_cpu or x.layout is not torch.strided or x.is_neg() or x.dtype not in _DTYPES:
        return None
    layout = x.shape, x.stride(), x.dtype
    found = _PLAIN.get(layout)
    if found is None:
        if len(_PLAIN) >= _MOST_CALLS:
            _PLAIN.clear()
        found = _PLAIN[layout] = kind_of(Spec(tuple(x.shape), x.stride(), x.dtype))
    return found


_PLAIN: dict[Any, Kind] = {}  # by layout: a Spec takes longer to make and to hash


_DTYPES = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8,
        torch.int8, torch.int16, torch.int32, torch.int64,
    }
)  # fmt: skip


def _overlap(written: tuple[int, ...], given: Sequence[Any]) -> bool:
    """Whether what is written to shares memory with another argument in any way but being the same
    tensor: eager refuses that, or has its own order of reads and writes."""
    seen: dict[Any, Any] = {}
    for k in written:
        place = _place(given[k])
        if place[0] in seen:
            return True
        seen[place[0]] = place
    places = [_place(x) for x in given if not isinstance(x, float)]
    return any(place[0] in seen and seen[place[0]] != place for place in places)


def _place(x: torch.Tensor) -> tuple[Any, ...]:
    """What memory a tensor is in, and where."""
    if type(x) is LazyTensor:
        if x._memory.tensor is None:
            return x._memory, x._kind
        x = compute(x, "")
    return x.untyped_storage()._cdata, x.shape, x.stride(), x.storage_offset()


def _waits(x: Any) -> bool:
    return type(x) is LazyTensor and x._memory.value is not None


def _view(x: LazyTensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    made = view_kinds(x._kind, func, args, kwargs)
    if isinstance(made, list):
        return [lazy_tensor(x._memory, kind) for kind in made]
    return lazy_tensor(x._memory, made)


class _Current(threading.local):
    recorder: Recorder | None = None


_current = _Current()


@contextmanager
def recording(
    recorder: Recorder, failed: Failed, attention: AttentionKernel = "auto"
) -> Iterator[None]:
    """Within it, what this thread runs is recorded. At its end, what recorded code has written to plain
    tensors is there; the rest goes on waiting. ``failed`` is told of bugs of lazyc's; it may raise.
    ``attention`` as in ``import_graph``."""
    if _current.recorder is not None:  # inside another one, which records
        yield
        return
    _current.recorder = recorder
    writes = PendingWrites(recorder)
    try:
        with ReadingMode(writes), LazyMode(recorder, writes, failed, attention):
            yield
    finally:
        _current.recorder = None
        writes.flush("region_end", "the end of lazyc.lazy()")
