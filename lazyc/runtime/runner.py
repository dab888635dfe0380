"""One call of a bound Program that consists of native steps only: a single foreign call."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import torch

from lazyc.errors import LazycError
from lazyc.ir.program import KernelStep, Program, ProgramOutput
from lazyc.runtime.device import ALIGNMENT
from lazyc.runtime.driver import ERROR_LAUNCH
from lazyc.runtime.eager import has_strides, in_layout
from lazyc.runtime.host import Host
from lazyc.runtime.plan import Layout, Plan, Segment
from lazyc.runtime.sizes import Sizes
from lazyc.runtime.watched import step_by_step

_data_ptr = torch.Tensor.data_ptr
_MISALIGNED = ALIGNMENT - 1
_stride = torch.Tensor.stride

Result = Callable[[Any], Any]  # from the values of buffers, by their numbers, to one result


class KernelError(LazycError):
    """Kernels set bits of the error word (``ERROR_*`` of ``ir.loops``): an index out of range, a
    division by zero. The caller runs the graph in eager, which raises the error that torch words.
    ``mutated`` tells whether arguments may have been written to already."""

    def __init__(self, bits: int, mutated: bool) -> None:
        self.bits = bits
        self.mutated = mutated
        super().__init__(f"a kernel reported error bits {bits:#x}")


class LaunchFailed(LazycError):
    """CUDA did not take a kernel; ``status`` is what ``cuLaunchKernel`` returned (``CUresult`` in the CUDA
    Driver API reference manual). What ran before may have failed, too."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"CUDA refused to launch a kernel: error {status}")


def failure(bits: int, mutated: bool) -> LazycError:
    """The exception for what the driver returned, if not 0."""
    if bits & ERROR_LAUNCH:
        return LaunchFailed(bits & ~ERROR_LAUNCH)
    return KernelError(bits, mutated)


def picker(positions: Sequence[int], count: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that takes the items at ``positions`` out of a list of ``count``."""
    if list(positions) == list(range(count)):
        return lambda items: items
    if len(positions) >= 2:
        return itemgetter(*positions)
    return lambda items: [items[p] for p in positions]


class Env:
    """The driver's ``env`` of one call: an array of words. Idle ones are kept by their runner."""

    __slots__ = ("address", "words")

    def __init__(self, size: int) -> None:
        self.words = (ctypes.c_int64 * size)()
        self.address = ctypes.addressof(self.words)


def bump_versions(tensors: Sequence[torch.Tensor]) -> None:
    """Tells autograd that native code wrote to these tensors, as an in-place operator would."""
    counted = [t for t in tensors if not t.is_inference()]
    if counted:
        torch.autograd.graph.increment_version(counted)


def strided(
    tensor: torch.Tensor, shape: Sequence[int], strides: Sequence[int], offset: int
) -> torch.Tensor:
    """A view of ``tensor``'s memory, ``offset`` elements after its first."""
    return torch.as_strided(tensor, shape, strides, tensor.storage_offset() + offset)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, at the start of fresh memory."""
    fresh = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    return fresh.copy_(tensor)


class Runner:
    """A Program bound to concrete sizes (``plan``).

    ``run(args, packs, packed)`` empties ``args`` and returns the results. ``packs`` are the
    addresses of packed buffers and packed matrices, in the order of their slots; ``packed`` pairs
    the id of each packed buffer with its tensor. ``run_watched`` is the same with a span for each
    step.
    """

    run: Callable[..., list[Any]]
    run_watched: Callable[..., list[Any]]

    def __init__(self, program: Program, plan: Plan, host: Host, sizes: Sizes) -> None:
        self.program = program
        self.plan = plan
        self.host = host
        self.sizes = sizes
        self.idle: list[Env] = []
        self.constants = {
            b.id: program.constants[b.source] for b in program.buffers if b.kind == "constant"
        }
        self.results = [self._result(o) for o in program.outputs]
        self.check_inputs = self._input_check()

    def take_env(self) -> Env:
        """An env that no other call uses, with the addresses of the constants filled in."""
        try:
            return self.idle.pop()
        except IndexError:
            return self._new_env()

    def _new_env(self) -> Env:
        env = Env(self.plan.env_words)
        for buffer, tensor in self.constants.items():
            if buffer in self.plan.slots:
                env.words[self.plan.slots[buffer]] = tensor.data_ptr()
        return env

    def stream_setter(self) -> Callable[[Env], None] | None:
        """What puts torch's current stream into an env; None where nothing is launched."""
        device, slot = self.host.device, self.plan.stream_slot
        if device is None or slot < 0:
            return None

        def set_stream(env: Env) -> None:
            env.words[slot] = device.stream()

        return set_stream

    def _on_device(self, run: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        """``run`` with the Program's device as torch's current one."""
        device = self.host.device
        if device is None:
            return run

        def run_there(args: list[Any], packs: Sequence[int] = (), packed: Any = ()) -> list[Any]:
            with device.current():
                return run(args, packs, packed)

        return run_there

    def run_with(
        self, driver_of: Callable[[Segment], Callable[[int, int], int]]
    ) -> Callable[..., list[Any]]:
        """``run`` with something else to run the tables of segments."""
        raise NotImplementedError

    def layout(self, buffer: int) -> Layout:
        """The layout of a buffer that native code touches."""
        layout = self.plan.layouts[buffer]
        assert layout is not None, buffer
        return layout

    def driver(self, segment: Segment) -> Callable[[int, int], int]:
        """What runs the table of a segment."""
        return self.host.driver.run_short if segment.short else self.host.driver.run

    def watched_driver(self, segment: Segment) -> Callable[[int, int], int]:
        """What runs a segment with a span for each step."""
        return step_by_step(segment, self.plan, self.sizes, self.host.spans, self.driver(segment))

    def allocator(self, buffer: int) -> Callable[[], torch.Tensor]:
        layout = self.layout(buffer)
        return self.host.outputs.allocator(layout.shape, layout.strides, layout.dtype)

    def _input_check(self) -> Callable[[list[Any]], None]:
        """Puts arguments in the layout that kernels were made for, native or interpreted.

        Dynamo and AOTAutograd guarantee it; reading beyond a tensor is too high a price for an
        error there. Parameters are left out: they are many, and guarded one by one.
        """
        program = self.program
        steps = [s for s in program.steps if isinstance(s, KernelStep)]
        read = {b for s in steps for b in s.buffers} | {program.inputs[p] for p in self.plan.inputs}
        positions = [
            p for p, b in enumerate(program.inputs) if b in read and p not in program.parameters
        ]
        layouts = [self.layout(program.inputs[p]) for p in positions]
        expected = [layout.strides for layout in layouts]
        select = picker(positions, len(program.inputs))

        def check(args: list[Any]) -> None:
            if [*map(_stride, select(args))] != expected:
                for position, layout in zip(positions, layouts, strict=True):
                    args[position] = self._laid_out(args[position], position, layout)

        return check if self.host.device is None else partial(self._check_aligned, check)

    def _check_aligned(self, check: Callable[[list[Any]], None], args: list[Any]) -> None:
        """Copies arguments that do not start at a multiple of what a kernel of a GPU counts on."""
        check(args)
        for position in self.plan.inputs:
            tensor = args[position]
            if tensor.data_ptr() & _MISALIGNED:
                if position in self.plan.mutated:
                    raise RuntimeError(
                        f"argument {position} is written to, and its address is no multiple of"
                        f" {ALIGNMENT} bytes"
                    )
                args[position] = aligned(tensor)

    def _laid_out(self, tensor: torch.Tensor, position: int, layout: Layout) -> torch.Tensor:
        """Argument ``position`` with the strides of ``layout``."""
        is_same = has_strides(tensor, layout.shape, layout.strides)
        if tensor.shape != layout.shape or (position in self.plan.mutated and not is_same):
            raise RuntimeError(
                f"argument {position} is {list(tensor.shape)} with strides "
                f"{list(tensor.stride())}, the Program was compiled for "
                f"{list(layout.shape)} with strides {list(layout.strides)}"
            )
        return in_layout(tensor, layout.dtype, layout.shape, layout.strides)

    def _result(self, output: ProgramOutput) -> Result:
        """How one result is made from the values of all buffers."""
        number = output.buffer
        if number < 0:
            value = None if output.value is None else self.sizes(output.value)
            return lambda values: value
        buffer, layout = self.program.buffers[number], self.plan.layouts[number]
        if layout is None:
            return lambda values: values[number]
        shape, strides = self.sizes.all(output.shape), self.sizes.all(output.strides)
        offset = self.sizes(output.offset)
        if buffer.kind in ("constant", "packed"):  # kept by the Program: the caller gets a copy
            return lambda values: strided(values[number], shape, strides, offset).clone()
        if offset == 0 and (shape, strides) == (layout.shape, layout.strides):
            return lambda values: values[number]
        uses = sum(o.buffer == number for o in self.program.outputs)
        if buffer.kind == "input" or uses > 1:
            return lambda values: strided(values[number], shape, strides, offset)
        # The only result on this memory: no view of anything, with a version counter of its own.
        return lambda values: strided(values[number], shape, strides, offset).data


class NativeRunner(Runner):
    """Runs a plan without Python steps."""

    def __init__(self, program: Program, plan: Plan, host: Host, sizes: Sizes) -> None:
        super().__init__(program, plan, host, sizes)
        self.run = self.run_with(self.driver)

    @cached_property
    def run_watched(self) -> Callable[..., list[Any]]:
        return self.run_with(self.watched_driver)

    def run_with(
        self, driver_of: Callable[[Segment], Callable[[int, int], int]]
    ) -> Callable[..., list[Any]]:
        return self._on_device(self._make_run(driver_of(self.plan.segments[0])))

    def _make_run(self, driver: Callable[[int, int], int]) -> Callable[..., list[Any]]:
        plan, host = self.plan, self.host
        table = plan.address(plan.segments[0])
        select, idle = picker(plan.inputs, len(self.program.inputs)), self.idle
        allocate = [self.allocator(b) for b in plan.fresh]
        threads, openmp, scratch = host.threads, host.driver.openmp_address, 8 * plan.scratch
        arena_bytes, arenas = plan.arena_bytes, host.arenas
        pack_env = struct.Struct(f"{plan.leading_words}q").pack_into
        check, finish, mutated = self.check_inputs, self._finisher(), plan.mutated
        set_stream = self.stream_setter()

        def run(args: list[Any], packs: Sequence[int] = (), packed: Any = ()) -> list[Any]:
            check(args)
            fresh = [make() for make in allocate]
            if table:
                env = self.take_env()
                arena = arenas.take(arena_bytes) if arena_bytes else None
                pack_env(
                    env.words, 0, threads.get(), openmp, env.address + scratch,
                    0 if arena is None else arena.address,
                    *map(_data_ptr, select(args)), *map(_data_ptr, fresh), *packs,
                )  # fmt: skip
                if set_stream is not None:
                    set_stream(env)
                bits = driver(table, env.address)
                idle.append(env)
                if arena is not None:
                    arenas.give(arena)
                if bits:
                    raise failure(bits, bool(mutated))
                if mutated:
                    bump_versions([args[i] for i in mutated])
            results = finish(args, fresh, packed)
            args.clear()
            return results

        return run

    def _finisher(self) -> Callable[[list[Any], list[torch.Tensor], Any], list[Any]]:
        """Makes the results from the arguments and the fresh tensors."""
        plan, outputs = self.plan, self.program.outputs
        if [o.buffer for o in outputs] == plan.fresh and all(map(self._is_whole, outputs)):
            return lambda args, fresh, packed: fresh
        count = len(self.program.buffers)
        wanted = {o.buffer for o in outputs}
        inputs = [(b, p) for p, b in enumerate(self.program.inputs) if b in wanted]
        constants = [(b, t) for b, t in self.constants.items() if b in wanted]

        def finish(args: list[Any], fresh: list[torch.Tensor], packed: Any) -> list[Any]:
            values: list[Any] = [None] * count
            for buffer, position in inputs:
                values[buffer] = args[position]
            for buffer, tensor in (*constants, *packed, *zip(plan.fresh, fresh, strict=True)):
                values[buffer] = tensor
            return [make(values) for make in self.results]

        return finish

    def _is_whole(self, output: ProgramOutput) -> bool:
        """Whether a result is its buffer's tensor as it is."""
        layout = self.plan.layouts[output.buffer]
        return (
            layout is not None
            and self.sizes(output.offset) == 0
            and self.sizes.all(output.shape) == layout.shape
            and self.sizes.all(output.strides) == layout.strides
        )
