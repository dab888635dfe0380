"""One call of a bound Program with eager steps: foreign calls and Python steps by turns."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import torch

from lazyc.codegen.base import Kernel, LaunchedKernel
from lazyc.ir.program import (
    BufferRef,
    EagerStep,
    GemmStep,
    KernelStep,
    Program,
    SeedStep,
    Step,
)
from lazyc.ir.types import storage_extent
from lazyc.runtime.binding import written
from lazyc.runtime.device import ALIGNMENT
from lazyc.runtime.eager import EagerCall, EagerLog, Fill, in_layout, step_buffers
from lazyc.runtime.host import Host
from lazyc.runtime.library import concrete_product
from lazyc.runtime.memory import Arena
from lazyc.runtime.plan import Layout, Plan, Segment
from lazyc.runtime.runner import (
    Env,
    KernelError,
    Runner,
    aligned,
    bump_versions,
    failure,
    picker,
    strided,
)
from lazyc.runtime.sizes import Sizes
from lazyc.runtime.watched import in_span


@dataclass(slots=True)
class _State:
    """What one call has in hand: the value of each buffer id, then the arena views of products."""

    values: list[Any]
    env: Env
    arena: Arena | None


_PythonStep = Callable[[_State], None]


@dataclass(frozen=True, slots=True)
class _Turn:
    """A Segment made ready: allocate, Python steps, one foreign call, forget dead values."""

    fresh: list[tuple[int, int, Callable[[], torch.Tensor]]]  # (buffer, slot, allocator)
    python: list[_PythonStep]
    driver: Callable[[int, int], int]
    table: int
    dead: list[int]


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor over the arena that Python steps use as ``values[index]``."""

    index: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class MixedRunner(Runner):
    """Runs a plan with Python steps."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        kernels: Mapping[str, Kernel],
        host: Host,
        sizes: Sizes,
        log: EagerLog,
    ) -> None:
        super().__init__(program, plan, host, sizes)
        self._kernels = kernels
        self._log = log
        self._views: list[_View] = []
        self._template: list[Any] = [None] * len(program.buffers)
        for buffer, tensor in self.constants.items():
            self._template[buffer] = tensor
        self._turns = [self._turn(i) for i in range(len(plan.segments))]
        # Views exist even where every temporary is empty.
        self._arena_bytes = max(plan.arena_bytes, 1 if self._views else 0)
        self._select = picker(plan.inputs, len(program.inputs))
        self._pack_env = struct.Struct(f"{4 + len(plan.inputs)}q").pack_into
        self._set_stream = self.stream_setter()
        self.run = self._on_device(partial(self._run, self._turns))

    # --- a call

    @cached_property
    def run_watched(self) -> Callable[..., list[Any]]:
        turns = list(map(self._watched, self._turns, self.plan.segments))
        return self._on_device(partial(self._run, turns))

    def run_with(
        self, driver_of: Callable[[Segment], Callable[[int, int], int]]
    ) -> Callable[..., list[Any]]:
        pairs = zip(self._turns, self.plan.segments, strict=True)
        turns = [replace(turn, driver=driver_of(segment)) for turn, segment in pairs]
        return self._on_device(partial(self._run, turns))

    def _run(
        self,
        turns: Sequence[_Turn],
        args: list[Any],
        packs: Sequence[int] = (),
        packed: Any = (),
    ) -> list[Any]:
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._run(turns, args, packs, packed)
        if torch._C._is_any_autocast_enabled():  # the graph has the casts that it asks for
            with torch._C._DisableAutocast():
                return self._run(turns, args, packs, packed)
        host, plan = self.host, self.plan
        env = self.take_env()
        arena = host.arenas.take(self._arena_bytes) if self._arena_bytes else None
        state = _State(self._template.copy(), env, arena)
        try:
            self.check_inputs(args)
            self._fill(state, args, packs, packed)
            mutated = [args[i] for i in plan.mutated]
            args.clear()
            for turn in turns:
                self._take_turn(turn, state)
            if mutated:
                bump_versions(mutated)
            return [make(state.values) for make in self.results]
        finally:
            state.values.clear()
            self.idle.append(env)
            if arena is not None:
                host.arenas.give(arena)

    def _fill(self, state: _State, args: list[Any], packs: Sequence[int], packed: Any) -> None:
        """Puts the arguments, what is kept packed, and the arena's views in their places."""
        plan, env, values = self.plan, state.env, state.values
        address = 0 if state.arena is None else state.arena.address
        self._pack_env(
            env.words, 0, self.host.threads.get(), self.host.driver.openmp_address,
            env.address + 8 * plan.scratch, address, *[t.data_ptr() for t in self._select(args)],
        )  # fmt: skip
        if self._set_stream is not None:
            self._set_stream(env)
        for slot, pointer in enumerate(packs, plan.first_pack_slot):
            env.words[slot] = pointer
        for position, buffer in enumerate(self.program.inputs):
            if buffer >= 0:
                values[buffer] = args[position]
        for buffer, value in packed:
            values[buffer] = value
        if self._views:
            assert state.arena is not None
            for view, tensor in zip(self._views, self._views_of(state.arena), strict=True):
                values[view.index] = tensor

    def _views_of(self, arena: Arena) -> list[torch.Tensor]:
        found = arena.views.get(self)
        if found is None:
            found = [arena.view(v.offset, v.dtype, v.shape, v.strides) for v in self._views]
            arena.views[self] = found
        return found

    def _take_turn(self, turn: _Turn, state: _State) -> None:
        values, words = state.values, state.env.words
        for buffer, slot, make in turn.fresh:
            tensor = values[buffer] = make()
            words[slot] = tensor.data_ptr()
        for step in turn.python:
            step(state)
        if turn.table:
            bits = turn.driver(turn.table, state.env.address)
            if bits:
                raise failure(bits, bool(self.plan.mutated))
        for buffer in turn.dead:
            values[buffer] = None

    # --- made once

    def _turn(self, number: int) -> _Turn:
        plan = self.plan
        segment = plan.segments[number]
        python = [self._python(step, plan.segments[number:]) for step in segment.python]
        fresh = [(b, plan.slots[b], self.allocator(b)) for b in segment.fresh]
        table = plan.address(segment)
        return _Turn(fresh, python, self.driver(segment), table, segment.dead)

    def _watched(self, turn: _Turn, segment: Segment) -> _Turn:
        """A Turn of the same segment with a span for each step."""
        python = [
            in_span(step, run, self.plan, self.sizes, self.host.spans)
            for step, run in zip(segment.python, turn.python, strict=True)
        ]
        return replace(turn, python=python, driver=self.watched_driver(segment))

    def _python(self, step: Step, rest: Sequence[Segment]) -> _PythonStep:
        """A step that Python runs; ``rest`` are the segments from its own on."""
        if isinstance(step, EagerStep):
            return self._eager(step, rest)
        if isinstance(step, GemmStep):
            return self._product(step)
        return self._launch(step) if isinstance(step, KernelStep) else self._seed(step)

    def _eager(self, step: EagerStep, rest: Sequence[Segment]) -> _PythonStep:
        call = EagerCall(step, self.sizes, self._log, self._reference)
        outputs = [(b, self.plan.layouts[b], self.plan.slots.get(b, -1)) for b in step.outputs]
        # What a result must not share memory with: arguments that later steps write to, and, where
        # they write to the results themselves, all arguments.
        later, arguments = written(self.program, rest), step_buffers(step)
        apart = sorted(arguments & later if later.isdisjoint(step.outputs) else arguments)
        copied = apart if any(layout is None for _, layout, _ in outputs) else ()

        on_device = self.host.device is not None

        def run(state: _State) -> None:
            values = state.values
            given = _with_copies(values, copied) if copied else values
            for (buffer, layout, slot), result in zip(outputs, call(given), strict=True):
                if layout is not None:
                    result = _own(
                        result, layout, state.arena, [values[b] for b in apart], slot >= 0
                    )
                    # One that is kept is read by native steps of another Program.
                    if on_device and result.data_ptr() % ALIGNMENT:
                        result = aligned(result)
                    if slot >= 0:
                        state.env.words[slot] = result.data_ptr()
                values[buffer] = result

        def run_for_effect(state: _State) -> None:
            call(state.values)

        return run if outputs else run_for_effect

    def _seed(self, step: SeedStep) -> _PythonStep:
        """Draws a seed in [0, 2**63) from torch's default generator."""
        target = self._reference(BufferRef(step.output))

        def run(state: _State) -> None:
            target(state.values).random_()

        return run

    def _launch(self, step: KernelStep) -> _PythonStep:
        """A kernel that is launched on a grid."""
        kernel, nest = self._kernels[step.nest], self.program.nests[step.nest]
        assert isinstance(kernel, LaunchedKernel)
        known = Sizes(dict(zip(nest.symbols, self.sizes.all(step.sizes), strict=True)))
        programs, sizes = known(kernel.programs), known.all(kernel.sizes)
        buffers = iter(step.buffers)
        memory = [
            _scratch(p.dtype.torch, known(p.numel) * kernel.points * programs)
            if p.role == "scratch"
            else self._reference(BufferRef(next(buffers)))
            for p in nest.buffers
        ]
        mutated = bool(self.plan.mutated)

        def run(state: _State) -> None:
            if programs:
                error = torch.zeros(1, dtype=torch.int32)
                kernel.launch(programs, [place(state.values) for place in memory], sizes, error)
                if bits := int(error):
                    raise KernelError(bits, mutated)

        return run

    def _product(self, step: GemmStep) -> _PythonStep:
        """A product that BLAS has no routine for, through ATen."""
        p = concrete_product(step, self.sizes)
        operands = [
            self._view(
                x.buffer, dtype.torch, (*p.batch, rows, cols),
                (*x.batch_strides, x.row_stride, x.col_stride), x.offset,
            )
            for x, dtype, rows, cols in (
                (p.a, step.dtype, p.m, p.k),
                (p.b, step.dtype, p.k, p.n),
                (p.c, step.result_dtype, p.m, p.n),
            )
        ]  # fmt: skip
        plain, adding = (torch.bmm, torch.baddbmm) if p.batch else (torch.mm, torch.addmm)
        positions = list(itertools.product(*map(range, p.batch[:-1])))

        def run(state: _State) -> None:
            whole = [operand(state.values) for operand in operands]
            for at in positions:
                a, b, c = (x[at] for x in whole) if at else whole
                a, b = a.to(c.dtype), b.to(c.dtype)
                if step.accumulate:
                    adding(c, a, b, out=c)
                else:
                    plain(a, b, out=c)

        return run

    def _reference(self, ref: BufferRef) -> Fill:
        """Finds the value that an eager call's argument names."""
        layout = self.plan.layouts[ref.id]
        if layout is None or (ref.shape is None and ref.id not in self.plan.offsets):
            return itemgetter(ref.id)
        if ref.shape is None:
            return self._view(ref.id, layout.dtype, layout.shape, layout.strides, 0)
        shape, strides = self.sizes.all(ref.shape), self.sizes.all(ref.strides)
        return self._view(ref.id, layout.dtype, shape, strides, self.sizes(ref.offset))

    def _view(
        self,
        buffer: int,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        offset: int,
    ) -> Fill:
        """Finds a view of a buffer among the values. Over the arena it is made once an arena."""
        start = self.plan.offsets.get(buffer)
        if start is None:
            return lambda values: strided(values[buffer], shape, strides, offset)
        index = len(self._template)
        self._template.append(None)
        self._views.append(_View(index, start + offset * dtype.itemsize, dtype, shape, strides))
        return itemgetter(index)


def _scratch(dtype: torch.dtype, count: int) -> Fill:
    """Memory that only one launch uses."""
    return lambda values: torch.empty(count, dtype=dtype)


def _with_copies(values: list[Any], buffers: Sequence[int]) -> list[Any]:
    """The values for a call whose result may be made of its arguments' memory, nobody can tell."""
    given = values.copy()
    for buffer in buffers:
        if isinstance(given[buffer], torch.Tensor):
            given[buffer] = _copy_of_memory(given[buffer])
    return given


def _copy_of_memory(x: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, whatever they are: the call may be given views of it."""
    if x.layout is not torch.strided or 0 in x.shape:
        return x.clone()
    memory = x.as_strided((storage_extent(x.shape, x.stride()),), (1,))
    return memory.clone().as_strided(x.shape, x.stride())


def _is_alias(result: torch.Tensor, value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    return value.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()


def _own(
    result: torch.Tensor,
    layout: Layout,
    arena: Arena | None,
    apart: Sequence[Any],
    is_addressed: bool,
) -> torch.Tensor:
    """An eager result in the layout that the Program expects, sharing no memory with the arena or
    with the values ``apart``.

    Some operators return another shape than they say when they are traced (``_embedding_bag`` for
    half types). Such a result is passed on as it is, unless native code reads it (``is_addressed``).
    """
    if result.is_neg():
        result = result.resolve_neg()
    shares = arena is not None and arena.contains(result.data_ptr())
    if shares or any(_is_alias(result, value) for value in apart):
        result = result.clone()
    if not is_addressed and result.shape != layout.shape:
        return result
    return in_layout(result, layout.dtype, layout.shape, layout.strides)
