"""Calls of a Program as replays of a CUDA graph: one launch for all of its kernels.

The first calls run as they are, and show which arguments come at the same address each time (weights)
and which do not. Then a call is captured. The graph reads the former where they are, and the latter from
memory of its own, to which each call copies them. Its results are copied out, so that a later call does not
change what a caller holds; those that are arguments, as a forward pass returns to its backward pass, are the
arguments of the call. An argument that turns up at another address after all is copied from then on,
for which the graph is captured again. Where weights are kept at another address than before, as many calls as
at first run as they are before one is captured: these weights may change all the time.

While the caller captures a graph of his own, calls run as they are, to become a part of it.

Capturing is torch's (``torch.cuda.graph``): the memory that a graph uses stays reserved for it.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lazyc.errors import LazycWarning
from lazyc.ir.program import Program, SeedStep
from lazyc.runtime.device import Device
from lazyc.runtime.plan import Plan
from lazyc.runtime.runner import Runner

_WARM_UP = 3  # calls before one is captured


def can_replay(program: Program, plan: Plan) -> bool:
    """Whether calls of a Program may be replayed: it has one size, launches all but draws of seeds, writes to
    no argument, and does not return what is kept of weights."""
    kept = {b.id for b in program.buffers if b.kind == "packed"}
    return (
        plan.stream_slot >= 0
        and not program.symbols
        and not plan.mutated
        and all(isinstance(step, SeedStep) for s in plan.segments for step in s.python)
        and not any(output.buffer in kept for output in program.outputs)
    )


def _copies(results: Sequence[Any]) -> list[Any]:
    """Copies of results, which share memory where these do."""
    found: list[Any] = []
    memory: dict[int, torch.Tensor] = {}
    uses = Counter(t.untyped_storage()._cdata for t in results if isinstance(t, torch.Tensor))
    for result in results:
        if not isinstance(result, torch.Tensor):
            found.append(result)
            continue
        storage = result.untyped_storage()
        if uses[storage._cdata] == 1:
            found.append(result.clone())
            continue
        if storage._cdata not in memory:
            flat = result.new_empty(0).set_(storage)
            memory[storage._cdata] = flat.clone()
        place = result.shape, result.stride(), result.storage_offset()
        found.append(torch.as_strided(memory[storage._cdata], *place))
    return found


class Replayer:
    """Calls a Runner, by a CUDA graph once it is warm. Safe to call from several threads."""

    def __init__(self, runner: Runner, device: Device) -> None:
        program = runner.program
        self._run = runner.run
        self._device = device
        # Not those of weights that are only read in the form in which they are kept.
        self._inputs = runner.plan.inputs
        self._check_inputs = runner.check_inputs
        position = {number: k for k, number in enumerate(program.inputs) if number >= 0}
        # Results that are arguments, or views of them: their places, and how they are made.
        self._returned = {
            place: (output.buffer, position[output.buffer], runner.results[place])
            for place, output in enumerate(program.outputs)
            if output.buffer in position
        }
        self._lock = threading.Lock()
        self._calls = 0
        self._stream = 0
        self._pointers: dict[int, int] = {}
        self._packs: list[int] = []
        self._copied: set[int] = set()  # positions of the arguments that the graph has memory for
        self._memory: dict[int, torch.Tensor] = {}
        self._results: list[Any] = []
        self._replay: Callable[[], None] | None = None
        self._failed = False

    @property
    def is_captured(self) -> bool:
        """Whether there is a graph to replay."""
        return self._replay is not None

    def __call__(self, args: list[Any], packs: Sequence[int] = (), packed: Any = ()) -> list[Any]:
        with self._lock, self._device.current():
            if not self._is_ready(args, packs):
                return self._run(args, packs, packed)
            if self._replay is None and not self._capture(args, packs, packed):
                return self._run(args, packs, packed)
            for position, memory in self._memory.items():
                memory.copy_(args[position])
            if self._returned:
                self._check_inputs(args)  # in the layout that a run returns them in
            returned = {k: make({b: args[p]}) for k, (b, p, make) in self._returned.items()}
            args.clear()
            assert self._replay is not None
            self._replay()
            results = _copies(self._results)
            for place, result in returned.items():
                results[place] = result
            return results

    def _is_ready(self, args: list[Any], packs: Sequence[int]) -> bool:
        """Looks at where arguments are; whether this call may be a replay."""
        if self._failed or self._device.is_capturing():
            return False
        pointers = {k: args[k].data_ptr() for k in self._inputs}
        stream = self._device.stream()
        if self._calls == 0:
            self._pointers, self._stream = pointers, stream
        moved = {k for k, p in pointers.items() if p != self._pointers[k]} - self._copied
        self._calls += 1
        if list(packs) != self._packs:
            self._packs, self._calls = list(packs), 1
            self._forget()
        if moved:
            self._copied |= moved
            self._forget()
        # Its own memory is in use on the stream of the first call.
        return self._calls > _WARM_UP and stream == self._stream

    def _forget(self) -> None:
        self._replay = None
        self._results = []
        self._memory = {}

    def _capture(self, args: list[Any], packs: Sequence[int], packed: Any) -> bool:
        self._memory = {
            k: torch.empty_strided(
                args[k].shape, args[k].stride(), dtype=args[k].dtype, device=args[k].device
            ).copy_(args[k])
            for k in sorted(self._copied)
        }
        given = [self._memory.get(k, a) for k, a in enumerate(args)]
        try:
            self._results, self._replay = self._device.capture(
                lambda: self._run(given, packs, packed)
            )
            for place in self._returned:
                self._results[place] = None
        except RuntimeError as error:
            self._failed = True
            self._forget()
            warnings.warn(
                f"a program is not replayed from a CUDA graph: {error}", LazycWarning, stacklevel=2
            )
            return False
        return True
