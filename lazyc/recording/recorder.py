"""The Recorder: remembers what was asked for, and runs it when somebody needs a value.

A *step* is a fragment with its arguments; a *value* is one result of a step. References go from a
value to the step that will compute it and from a step to the values that it takes, never back, so
what nobody can ask for any more is dropped with its last reference, without having run.

Arguments are remembered as they are at the time of recording: a copy-on-write clone of each keeps
what it holds if somebody writes to it later (torch's ``_lazy_clone``, no copy unless that happens).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils._python_dispatch import _disable_current_modes

from lazyc.forks import renew_in_child
from lazyc.ir.graph import Graph
from lazyc.recording.barriers import Place, as_line, user_place
from lazyc.recording.join import Boxed, Fragment, Part, Source, Spec, join, run_in_eager
from lazyc.recording.recompiles import Difference, Recorded, difference
from lazyc.recording.untraced import never_traced_class
from lazyc.report import events as E
from lazyc.report.spans import Spans, torch_profiler

# (graph, the same in eager, how it differs from the one before, if there was one) -> what runs it, and whether
# it was compiled now
CompileWhole: TypeAlias = Callable[[Graph, Boxed, "Difference | None"], tuple[Boxed, bool]]

_MOST_PROGRAMS = 256  # joined programs kept; the ones used longest ago go first
_modes = torch._C._len_torch_dispatch_stack
_has_autocast = torch._C._is_any_autocast_enabled
_address = torch._C._data_address  # type: ignore[attr-defined]
_lazy_clone: Any = torch._C._VariableFunctions._lazy_clone  # type: ignore[attr-defined]


class NotRecordable(Exception):
    """An argument cannot be remembered as it is: its memory belongs to somebody else."""


class Snapshot:
    """A tensor as it is now, whatever is written to it later."""

    __slots__ = ("_copy", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        try:
            self._copy: torch.Tensor | None = _lazy_clone(tensor)
        except RuntimeError as error:  # memory of numpy, or shared with another process
            raise NotRecordable("memory that torch does not own") from error

    def take(self) -> None:
        """Has the tensor kept as it is now, again."""
        self._copy = _lazy_clone(self.tensor)

    def settle(self) -> torch.Tensor:
        """The tensor, or, where it was written to, its copy from before. The clone is given up: while
        there is one, asking the tensor for its address copies it."""
        copy, now = self._copy, self.tensor
        if copy is not None:
            # By its layout too: ``t_``, ``resize_`` and ``data`` change that of the tensor itself.
            if (
                _address(copy) != _address(now)
                or copy.shape != now.shape
                or copy.stride() != now.stride()
                or copy.dtype != now.dtype
            ):
                self.tensor = copy
            self._copy = None
        return self.tensor


class Value:
    """A result that is not computed yet, or (``tensor``) was while recorded steps still wait for it.

    ``handles`` refer to the tensors of the user that stand for it.
    """

    __slots__ = ("__weakref__", "handles", "result", "spec", "step", "tensor")

    def __init__(self, spec: Spec, step: Step, result: int) -> None:
        self.spec = spec
        self.step: Step | None = step
        self.result = result
        self.tensor: Snapshot | None = None
        self.handles: list[weakref.ref[Any]] = []

    def is_asked_for(self) -> bool:
        """Whether a tensor of the user's stands for it."""
        for handle in self.handles:  # noqa: SIM110 - the generator of any() would be a call more
            if handle() is not None:
                return True
        return False


@never_traced_class
class Step:
    """A fragment to run with ``args``."""

    __slots__ = ("__weakref__", "args", "fragment", "number", "place", "results")

    def __init__(
        self,
        number: int,
        fragment: Fragment,
        args: list[Value | Snapshot | float],
        place: Place | None,
    ) -> None:
        self.number = number
        self.fragment = fragment
        self.args = args
        self.place = place
        self.results: list[weakref.ref[Value]] = []


_Waiting: TypeAlias = tuple["weakref.ref[Step]", Fragment, "Place | None"]


class Pending(NamedTuple):
    """Operators that wait, and bytes of their results."""

    operators: int
    nbytes: int


@never_traced_class
class Recorder:
    """Records fragments and runs them together. ``max_operators`` and ``max_bytes`` (of results) cap
    what may wait. All methods may be called from any thread."""

    def __init__(
        self,
        compile_whole: CompileWhole,
        events: E.EventStream,
        spans: Spans,
        max_operators: int,
        max_bytes: int,
    ) -> None:
        self._compile = compile_whole
        self.events = events
        self.spans = spans
        self._max_operators = max_operators
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        renew_in_child(self)
        # By number. A step that ran is in no weak reference any more, whose callback would take time.
        self._waiting: dict[int, _Waiting] = {}
        self._programs: OrderedDict[Any, Boxed] = OrderedDict()
        # By the line of the flush, and the name of the first fragment.
        self._made_for: OrderedDict[tuple[Place | None, str], _MadeFor] = OrderedDict()
        self._count = 0
        # Of all flushes, for metrics: an event for each would take longer than the rest of a short one.
        self.flushes: Counter[str] = Counter()  # by cause
        self.flushed = 0  # operators
        self._operators = 0
        self._bytes = 0
        self._peak_operators = 0
        self._peak_bytes = 0

    def record(
        self,
        fragment: Fragment,
        args: Sequence[Value | torch.Tensor | float],
        place: Place | None = None,
    ) -> list[Value]:
        """The results of a fragment, to be computed later. A float is taken as a 0-dim f64 tensor;
        ``place`` is named in reports where that never happens.

        Raises NotRecordable.
        """
        if self.spans.recordings or torch_profiler._is_profiler_enabled:  # Spans.on, in place
            with self.spans.span("record", fragment.name, line=as_line(place)):
                return self._record(fragment, args, place)
        return self._record(fragment, args, place)

    def _record(
        self,
        fragment: Fragment,
        args: Sequence[Value | torch.Tensor | float],
        place: Place | None,
    ) -> list[Value]:
        with self._lock:
            # Loops: in CPython before 3.12, a comprehension is a call.
            taken: list[Any] = list(args)
            for k, arg in enumerate(taken):
                if type(arg) is not Value and type(arg) is not float:
                    taken[k] = Snapshot(arg)
            self._count = number = self._count + 1
            step = Step(number, fragment, taken, place)
            values: list[Value] = []
            for spec in fragment.results:
                value = Value(spec, step, len(values))
                values.append(value)
                step.results.append(weakref.ref(value))
            self._waiting[number] = (
                weakref.ref(step, partial(self._never_ran, number)),
                fragment,
                place,
            )
            self._operators += fragment.operators
            self._bytes += fragment.nbytes
            return values

    def keep_within_caps(self) -> None:
        """Runs what waits if it is more than may wait."""
        if self._operators > self._max_operators:
            self.flush_all("size_cap", f"more than {self._max_operators} operators wait")
        elif self._bytes > self._max_bytes:
            limit = f"results of more than {self._max_bytes >> 20} MiB wait"
            self.flush_all("memory_cap", limit)

    def _never_ran(self, number: int, dead: weakref.ref[Step]) -> None:
        """A step no longer waits: nobody can ask for its results any more."""
        with self._lock:
            if number not in self._waiting:
                return
            _, fragment, place = self._waiting[number]
            self._note_peak()
            self._leave(number, fragment)
        self.events.emit(E.NeverComputed(as_line(place), fragment.operators))

    def _leave(self, number: int, fragment: Fragment) -> None:
        if self._waiting.pop(number, None) is None:
            return  # whoever reads a value while that is computed (a finalizer, a signal's handler) computes it, too
        self._operators -= fragment.operators
        self._bytes -= fragment.nbytes

    # Without the lock, which a flush holds while it compiles: a report does not wait for that.

    @property
    def peak(self) -> Pending:
        """The most that waited at any time since ``restart_peak``."""
        return Pending(
            max(self._peak_operators, self._operators), max(self._peak_bytes, self._bytes)
        )

    def restart_peak(self) -> None:
        self._peak_operators, self._peak_bytes = self._operators, self._bytes

    def _note_peak(self) -> None:
        """To be called before what waits becomes less: in fewer places than where it becomes more."""
        if self._operators > self._peak_operators:
            self._peak_operators = self._operators
        if self._bytes > self._peak_bytes:
            self._peak_bytes = self._bytes

    def _live_steps(self) -> list[Step]:
        return [step for ref, _, _ in list(self._waiting.values()) if (step := ref()) is not None]

    def flush_all(self, cause: E.Cause, what: str = "") -> None:
        """Runs all that waits and that somebody can still ask for."""
        with self._lock, torch._C.DisableTorchFunction():
            if self._waiting:
                self._flush(None, cause, what)

    def flush(self, values: Iterable[Value], cause: E.Cause, what: str = "") -> None:
        """Computes ``values`` and what they need, in one program. What else waits goes on waiting."""
        with self._lock, torch._C.DisableTorchFunction():
            wanted = {v for v in values if v.step is not None}
            if wanted:
                self._flush(wanted, cause, what)

    def _flush(self, wanted: Collection[Value] | None, cause: E.Cause, what: str) -> None:
        """Computes ``wanted``, None for all that somebody can ask for."""
        work = _chosen(self._live_steps(), wanted)
        if not work.steps:
            return
        if _modes():
            with _disable_current_modes():  # one that records would record what is done here
                self._flush_and_tell(work, cause, what)
        else:
            self._flush_and_tell(work, cause, what)

    def _flush_and_tell(self, work: _Work, cause: E.Cause, what: str) -> None:
        # Spans.on, in place.
        spans_on = self.spans.recordings or torch_profiler._is_profiler_enabled
        if not spans_on and not self.events.reporting:
            self._compute(work, cause)
            return
        start = time.perf_counter()
        line = as_line(user_place())
        with self.spans.span("flush", cause) as span:
            new = self._compute(work, cause)
            done = E.Flushed(
                cause, what, line, len(work.steps), work.operators, len(work.kept),
                new is not None, time.perf_counter() - start,
            )  # fmt: skip
            span.note(
                what=what, line=line, regions=done.regions, operators=done.operators,
                results=done.results, compiled=done.compiled,
            )  # fmt: skip
            self.events.emit(done)

    def _compute(self, work: _Work, cause: E.Cause) -> _New | None:
        start = time.perf_counter()
        tensors, new = self._run(work)
        for value, tensor in zip(work.kept, tensors, strict=True):
            value.step = None
            for ref in value.handles:
                handle = ref()
                if handle is not None:
                    handle.settle(tensor)
            if value in work.later:
                value.tensor = Snapshot(tensor)
        self._note_peak()
        for step in work.steps:
            self._leave(step.number, step.fragment)
        self.flushes[cause] += 1
        self.flushed += work.operators
        if new is not None:
            self._explain(work.steps, new, time.perf_counter() - start)
        return new

    def _run(self, work: _Work) -> tuple[Sequence[torch.Tensor], _New | None]:
        """The results, and what is to be told of the program if it was compiled for them."""
        # In functions of their own, so that what they need is given up before the program runs: what it leaves of
        # the processor's caches may be little, and objects that are freed are read.
        tensors, sources, shared = self._arguments(work)
        own: list[Snapshot] = []
        try:
            program, new = self._program(work.steps, sources, work.results)
            del sources
            # Whatever modes the reader is in, results are those of what was recorded.
            if _has_autocast() or torch.is_grad_enabled() or torch.is_inference_mode_enabled():
                with torch._C._DisableAutocast(), torch.inference_mode(False), torch.no_grad():
                    return program(tensors), new
            return program(tensors), new
        except BaseException:
            own = _snapshots(work.steps)  # goes on waiting
            raise
        finally:
            for snapshot in (*shared, *own):
                snapshot.take()

    def _arguments(
        self, work: _Work
    ) -> tuple[list[torch.Tensor], list[tuple[Source, ...]], list[Snapshot]]:
        """What a program for ``work`` takes, where the arguments of each step come from, and what others keep of the
        same tensors: to be taken again."""
        positions: dict[Step, int] = {}
        tensors: list[torch.Tensor] = []
        known: dict[int, int] = {}
        sources: list[tuple[Source, ...]] = []
        for step in work.steps:
            positions[step] = len(positions)
            found: list[Source] = []
            for arg in step.args:
                if type(arg) is Value:
                    if arg.step is not None:
                        found.append((positions[arg.step], arg.result))
                        continue
                    assert arg.tensor is not None
                    arg = arg.tensor
                if type(arg) is Snapshot:
                    tensor = arg.settle()
                    number = known.get(id(tensor))
                    if number is None:
                        number = known[id(tensor)] = len(tensors)
                        tensors.append(tensor)
                    found.append(number)
                else:  # a float; one for each place, since they may differ next time
                    found.append(len(tensors))
                    tensors.append(torch.tensor(arg, dtype=torch.float64))
            sources.append(tuple(found))
        if not work.others:
            return tensors, sources, []
        # Clones of the same tensors that others keep, or asking for an address would copy these.
        shared = [s for s in _snapshots(work.others) if id(s.tensor) in known]
        for snapshot in shared:
            snapshot.settle()
        return tensors, sources, shared

    def _differs(self, steps: Sequence[Step], line: Place | None) -> Difference | None:
        """How ``steps`` differ from those of the program that was made for the same line before, if there is one
        that begins alike."""
        before = self._made_for.get((line, steps[0].fragment.name))
        return None if before is None else difference(before.recorded, _recorded(steps))

    def _explain(self, steps: Sequence[Step], new: _New, seconds: float) -> None:
        """Tells why a program was made where there was another before."""
        key = new.line, steps[0].fragment.name
        before = self._made_for.pop(key, None)
        count = 0
        if before is not None and new.differs is not None:
            count = before.count + 1
            at = as_line(new.differs.place or new.line)
            event = E.Recompiled(at, new.differs.changed, new.differs.fix, count, seconds)
            self.events.emit(event)
        self._made_for[key] = _MadeFor(_recorded(steps), count)
        if len(self._made_for) > _MOST_PROGRAMS:
            self._made_for.popitem(last=False)

    def _program(
        self,
        steps: Sequence[Step],
        sources: Sequence[tuple[Source, ...]],
        results: Sequence[tuple[int, int]],
    ) -> tuple[Boxed, _New | None]:
        """What runs ``steps``, and what is to be told of it if it was compiled now."""
        key = tuple([s.fragment.number for s in steps]), tuple(sources), tuple(results)
        program = self._programs.get(key)
        if program is not None:
            self._programs.move_to_end(key)
            return program, None

        pairs = zip(steps, sources, strict=True)
        parts = tuple(Part(step.fragment, found) for step, found in pairs)

        def in_eager(args: list[Any]) -> Sequence[Any]:
            return run_in_eager(parts, results, args)

        line = user_place()
        differs = self._differs(steps, line)
        program, is_compiled = self._compile(join(parts, results), in_eager, differs)
        self._programs[key] = program
        if len(self._programs) > _MOST_PROGRAMS:
            self._programs.popitem(last=False)
        return program, _New(line, differs) if is_compiled else None


class _Work(NamedTuple):
    """``steps`` to run while ``others`` go on waiting, in the order of recording.

    ``kept``: the values to keep, by step and result in ``results``; those of ``later`` are taken by ``others``.
    """

    steps: Sequence[Step]
    others: Sequence[Step]
    kept: Sequence[Value]
    results: Sequence[tuple[int, int]]
    later: Collection[Value]
    operators: int


class _New(NamedTuple):
    """A program that was made for the user's ``line``, and how it differs from the one before."""

    line: Place | None
    differs: Difference | None


class _MadeFor:
    """What the last program made for a line runs, and how many were made there after the first."""

    __slots__ = ("count", "recorded")

    def __init__(self, recorded: Recorded, count: int) -> None:
        self.recorded = recorded
        self.count = count


def _recorded(steps: Sequence[Step]) -> Recorded:
    return [(s.fragment, s.place) for s in steps]


def _snapshots(steps: Iterable[Step]) -> list[Snapshot]:
    """What the steps take that is computed, once each."""
    taken = (a.tensor if type(a) is Value else a for s in steps for a in s.args)
    return list({id(s): s for s in taken if type(s) is Snapshot}.values())


def _chosen(waiting: Sequence[Step], wanted: Collection[Value] | None) -> _Work:
    """What of ``waiting``, in the order of recording, computes ``wanted``; None: what somebody can ask for."""
    steps: list[Step] = []
    others: list[Step] = []
    needed: set[int] = set()
    # Results of each of ``steps``, and whether they are to be kept.
    alive: list[list[tuple[Value, bool]]] = []
    for step in reversed(waiting):
        values: list[tuple[Value, bool]] = []
        is_wanted = step.number in needed
        for ref in step.results:
            value = ref()
            if value is not None:
                is_asked_for = value.is_asked_for()
                is_named = is_asked_for if wanted is None else value in wanted
                is_wanted = is_wanted or is_named
                values.append((value, is_asked_for or is_named))
        if not is_wanted:
            others.append(step)
            continue
        steps.append(step)
        alive.append(values)
        for arg in step.args:
            if type(arg) is Value and arg.step is not None:
                needed.add(arg.step.number)
    steps.reverse()
    alive.reverse()
    later: Collection[Value] = ()
    if others:
        others.reverse()
        later = {a for s in others for a in s.args if type(a) is Value}
    kept: list[Value] = []
    results: list[tuple[int, int]] = []
    operators = 0
    for k, step in enumerate(steps):
        operators += step.fragment.operators
        for value, is_kept in alive[k]:
            if is_kept or value in later:
                kept.append(value)
                results.append((k, value.result))
    return _Work(steps, others, kept, results, later, operators)
