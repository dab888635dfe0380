"""Which tiles or blocks make a kernel fastest: timed on the GPU in the first call of a program, and kept.

That call runs step by step. Before a kernel whose alternatives were never timed, they are compiled and run on
the kernel's own inputs, which are in memory by then, indices in range and all. What a kernel writes to goes to
memory that is thrown away, so that the call computes what it does otherwise, by the kernels that the rules
chose. Later calls have the winners.

What won is kept under the kernel's symbol, which names its text, its target and the versions, and under the
GPU's name and driver: equal kernels are timed once, and another process loads the winner's code from the disk
cache.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from lazyc.codegen.base import DeviceKernel, Kernel, KernelCode, LaunchRef, TunableGenerator
from lazyc.errors import CacheCorrupt, CodeNotLoaded, LazycWarning
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelStep
from lazyc.report.events import EventStream, KernelTuned
from lazyc.runtime.cache import DiskCache
from lazyc.runtime.device import Device
from lazyc.runtime.driver import LITERAL, TableWriter
from lazyc.runtime.key import choice_key
from lazyc.runtime.plan import ARENA_SLOT, Segment
from lazyc.runtime.runner import Runner
from lazyc.runtime.serialize import LAUNCHED_KERNEL
from lazyc.runtime.sizes import Sizes
from lazyc.runtime.watched import step_tables

_ROUNDS = 5
_SAMPLE_SECONDS = 2e-4  # that one reading of the clock should cover
_MOST_REPEATS = 20
_HOPELESS = 1.5  # times as slow as the fastest so far: not timed again
_GAIN = 0.03  # that a winner must have, else the rules' choice stays: readings differ by as much
_STREAM_SLOT = 3  # of an env that holds nothing else

_clock = time.perf_counter


@dataclass(slots=True)
class Budget:
    """Seconds that are left to time the kernels of one program, and the symbols of those that had their turn."""

    left: float
    tried: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Trial:
    """A kernel by one choice. ``ref`` and ``code``: of an alternative. ``best``: seconds of a launch."""

    choice: str
    kernel: DeviceKernel
    ref: LaunchRef | None = None
    code: bytes = b""
    best: float = math.inf


@dataclass(frozen=True, slots=True)
class _Launch:
    """A kernel in a program at concrete sizes. For each param of the nest that is no scratch: where it is, and
    how many bytes. ``driver`` runs a table; ``stream`` is torch's current one."""

    nest: LoopNest
    known: Sizes
    comment: str
    memory: tuple[tuple[int, int], ...]
    driver: Callable[[int, int], int]
    stream: int


class Tuner:
    """Times the kernels of one compiler, one after another, and knows the winners."""

    def __init__(
        self,
        generator: TunableGenerator,
        device: Device,
        disk: DiskCache,
        events: EventStream,
        seconds: float,
    ) -> None:
        self.device = device
        self.seconds = seconds  # for one program
        self.turn = threading.Lock()  # two kernels at a time would slow each other down
        self._generator = generator
        self._disk = disk
        self._events = events
        self._winners: dict[str, DeviceKernel] = {}  # by the symbol of the rules' choice
        self._absent: set[str] = set()  # what the disk cache did not have
        self._longest = 0.0  # seconds that compiling a kernel took

    def winner(self, kernel: Kernel) -> Kernel | None:
        """The fastest kernel in place of this one; None where that is not known."""
        if not isinstance(kernel, DeviceKernel) or not kernel.alternatives:
            return kernel
        found = self._winners.get(kernel.symbol)
        if found is None and kernel.symbol not in self._absent:
            found = self._load(kernel)
            if found is None:
                self._absent.add(kernel.symbol)
            else:
                self._winners[kernel.symbol] = found
        return found

    def unknown(self, kernels: Mapping[str, Kernel], budget: Budget) -> list[DeviceKernel]:
        """Kernels that wait for their turn, by symbol."""
        found = {
            k.symbol: k
            for k in kernels.values()
            if isinstance(k, DeviceKernel) and self.winner(k) is None
        }
        return [k for symbol, k in found.items() if symbol not in budget.tried]

    def has_work(self, kernels: Mapping[str, Kernel], budget: Budget) -> bool:
        """Whether kernels wait for their turn, and there is time."""
        return budget.left > 0 and bool(self.unknown(kernels, budget))

    # --- the disk cache ---------------------------------------------------------------------------

    def _key(self, kernel: DeviceKernel) -> str:
        return choice_key(kernel.symbol, self._generator.key, self.device.hardware)

    def _load(self, kernel: DeviceKernel) -> DeviceKernel | None:
        entry = self._disk.load("choices", self._key(kernel))
        if entry is None:
            return None
        if not entry.parts:  # the rules' choice won
            return kernel
        try:
            ref = LAUNCHED_KERNEL.decode(entry.header["ref"])
            return self._loaded(ref, entry.parts["object"])
        except (CacheCorrupt, CodeNotLoaded, KeyError):
            return None

    def _loaded(self, ref: LaunchRef, code: bytes) -> DeviceKernel:
        found = self._generator.load({ref: code})[ref.symbol]
        assert isinstance(found, DeviceKernel)
        return found

    def _keep(self, kernel: DeviceKernel, won: _Trial) -> None:
        self._winners[kernel.symbol] = won.kernel
        header, parts = {"choice": won.choice}, {}
        if won.ref is not None:
            header |= {"ref": LAUNCHED_KERNEL.encode(won.ref)}
            parts = {"object": won.code}
        self._disk.store("choices", self._key(kernel), header, parts)

    # --- timing -----------------------------------------------------------------------------------

    def tune(self, kernel: DeviceKernel, launch: _Launch, seconds: float) -> None:
        """Finds the winner in so many seconds, if it can."""
        start = _clock()
        default = _Trial(self._generator.generate(launch.nest, kernel.symbol).choice, kernel)
        trials, dropped = self._compiled(kernel, launch.nest, start + seconds)
        timed = [default, *trials]
        with suppress(torch.OutOfMemoryError):  # the call itself may fit all the same
            dropped += [t.choice for t in self._time(timed, launch, start + seconds)]
        measured = [t for t in timed if t.best < math.inf]
        won = min(measured, key=lambda t: t.best) if default in measured else default
        if won.best > (1 - _GAIN) * default.best:
            won = default
        late = 1 + kernel.alternatives - len(measured) - len(dropped)
        # Where nothing could be compared a later process may have time or room.
        if default in measured and (len(measured) > 1 or not late):
            self._keep(kernel, won)
        self._events.emit(
            KernelTuned(
                launch.comment,
                tuple((t.choice, t.best) for t in measured),
                tuple(dropped),
                late,
                won.choice,
                _clock() - start,
            )
        )

    def _compiled(
        self, kernel: DeviceKernel, nest: LoopNest, deadline: float
    ) -> tuple[list[_Trial], list[str]]:
        """The alternatives that there is time for, and those that failed or spill."""
        trials: list[_Trial] = []
        dropped: list[str] = []
        for count, code in enumerate(self._generator.alternatives(nest, kernel.symbol)):
            start = _clock()
            if start + (self._longest if count else 0) >= deadline:
                break
            try:
                trial = self._alternative(code)
            except Exception:  # noqa: BLE001 - the compiler's own errors are many, and cost a candidate
                trial = None
            self._longest = max(self._longest, _clock() - start)
            if trial is None:
                dropped.append(code.choice)
            else:
                trials.append(trial)
        return trials, dropped

    def _alternative(self, code: KernelCode) -> _Trial | None:
        made, ref = self._generator.compile_alternative(code), code.ref
        assert isinstance(ref, LaunchRef)
        return None if made is None else _Trial(code.choice, self._loaded(ref, made), ref, made)

    def _time(self, trials: Sequence[_Trial], launch: _Launch, deadline: float) -> list[_Trial]:
        """Fills in the best times; returns those that do not run. All take turns, so that a clock that changes
        meanwhile is fair to them."""
        memory = _Memory(trials, launch, self.device)
        failed: list[_Trial] = []
        alive: list[_Trial] = []
        repeats = 1
        for trial in trials:  # its first launch loads its code
            if len(alive) > 1 and _clock() >= deadline:
                break
            once = self._reading(trial, launch, memory, 1)
            (failed if once is None else alive).append(trial)
            if not alive:
                return failed  # nothing to compare with
        if not memory.is_changed:
            first = self._reading(trials[0], launch, memory, 1) or _SAMPLE_SECONDS
            repeats = max(1, min(_MOST_REPEATS, int(_SAMPLE_SECONDS / first)))
        for number in range(_ROUNDS):
            if number and _clock() >= deadline:
                break
            for trial in alive:
                spent = self._reading(trial, launch, memory, repeats)
                trial.best = min(trial.best, math.inf if spent is None else spent)
            most = _HOPELESS * min(t.best for t in alive)
            alive = [t for t in alive if t.best <= most]
        return failed

    def _reading(
        self, trial: _Trial, launch: _Launch, memory: _Memory, repeats: int
    ) -> float | None:
        """Seconds of a launch; None where it is refused."""
        table = TableWriter()
        try:
            for _ in range(repeats):
                table.launch(
                    trial.kernel.launcher,
                    trial.kernel.function,
                    launch.known(trial.kernel.programs),
                    trial.kernel.threads,
                    trial.kernel.shared_bytes,
                    _STREAM_SLOT,
                    [(LITERAL, word) for word in memory.words(trial)],
                )
        except ValueError:  # more programs than a grid has
            return None
        table.end()
        words, env = table.array(), (ctypes.c_int64 * (_STREAM_SLOT + 1 + table.longest))()
        address = ctypes.addressof(env)
        env[2], env[_STREAM_SLOT] = address + 8 * (_STREAM_SLOT + 1), launch.stream
        memory.refresh()
        status = 0

        def run() -> None:
            nonlocal status
            status = launch.driver(ctypes.addressof(words), address)

        spent = self.device.seconds(run)
        return None if status else spent / repeats


class _Memory:
    """What kernels are given while they are timed: their inputs as they are, and room of their own for what they
    write. What they change is a copy, made anew for each reading: it may hold what becomes an index."""

    def __init__(self, trials: Sequence[_Trial], launch: _Launch, device: Device) -> None:
        self._launch = launch
        self._changed: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._kept: list[torch.Tensor] = []
        self._addresses: list[int] = []
        given = iter(launch.memory)
        known = launch.known
        for param in launch.nest.buffers:
            if param.role == "scratch":
                size = known(param.numel) * param.dtype.itemsize
                rows = max(t.kernel.points * known(t.kernel.programs) for t in trials)
                self._own(torch.empty(size * rows, dtype=torch.uint8, device=device.name))
                continue
            address, nbytes = next(given)
            if param.role == "in":
                self._addresses.append(address)
            elif param.role == "inout":
                before = device.copy_of(address, nbytes)
                self._own(before.clone())
                self._changed.append((self._kept[-1], before))
            else:
                self._own(torch.empty(nbytes, dtype=torch.uint8, device=device.name))

    def _own(self, memory: torch.Tensor) -> None:
        self._kept.append(memory)
        self._addresses.append(memory.data_ptr())

    @property
    def is_changed(self) -> bool:
        return bool(self._changed)

    def refresh(self) -> None:
        for memory, before in self._changed:
            memory.copy_(before)

    def words(self, trial: _Trial) -> list[int]:
        """The arguments of a launch, as in ``binding``."""
        return [*self._addresses, *self._launch.known.all(trial.kernel.sizes), 0, 0, 0]


class TunedCall:
    """Runs a Runner's calls (in place of its ``run``) until one has timed its kernels; then ``rebind`` makes the
    Runner of the winners, which later calls go to. No call is slowed down while the caller captures it, or
    while another thread times kernels. ``kernels``: those to time, by the keys of steps."""

    def __init__(
        self,
        runner: Runner,
        kernels: Mapping[str, Kernel],
        tuner: Tuner,
        budget: Budget,
        rebind: Callable[[], Runner],
    ) -> None:
        self._runner = runner
        self._run = runner.run
        self._kernels = kernels
        self._tuner = tuner
        self._budget = budget
        self._rebind = rebind

    def __call__(self, args: list[Any], packs: Sequence[int] = (), packed: Any = ()) -> list[Any]:
        tuner, runner = self._tuner, self._runner
        if runner.run is not self:  # a thread that had found this Runner before
            return runner.run(args, packs, packed)
        if tuner.device.is_capturing() or not tuner.turn.acquire(blocking=False):
            return self._run(args, packs, packed)
        try:
            results = runner.run_with(self._driver)(args, packs, packed)
            runner.run = self._rebind().run
        finally:
            tuner.turn.release()
        return results

    def _driver(self, segment: Segment) -> Callable[[int, int], int]:
        """What runs a segment, with kernels timed before their steps."""
        driver = self._runner.driver(segment)
        tables = step_tables(segment, self._runner.plan)

        def run(table: int, env: int) -> int:
            bits = 0
            for native, words in tables:
                if isinstance(native.step, KernelStep):
                    self._tune(native.step, env)
                bits |= driver(ctypes.addressof(words), env)
            return bits

        return run

    def _tune(self, step: KernelStep, env: int) -> None:
        tuner, budget, runner = self._tuner, self._budget, self._runner
        waiting = tuner.unknown(self._kernels, budget)
        kernel = self._kernels.get(step.nest)
        if budget.left <= 0 or not isinstance(kernel, DeviceKernel) or kernel not in waiting:
            return
        nest = runner.program.nests[step.nest]
        known = Sizes(dict(zip(nest.symbols, runner.sizes.all(step.sizes), strict=True)))
        budget.tried.add(kernel.symbol)
        memory = tuple(self._place(buffer, env) for buffer in step.buffers)
        stream, driver = tuner.device.stream(), runner.host.driver.run
        launch = _Launch(nest, known, step.comment, memory, driver, stream)
        start = _clock()
        try:
            tuner.tune(kernel, launch, budget.left / len(waiting))
        except Exception as error:  # noqa: BLE001 - the call does not need what failed here
            text = f"a kernel of {step.comment or 'a program'} could not be timed: {error}"
            warnings.warn(text, LazycWarning, stacklevel=2)
        budget.left -= _clock() - start

    def _place(self, buffer: int, env: int) -> tuple[int, int]:
        """Address and bytes of a buffer in this call."""
        plan = self._runner.plan
        slot = ARENA_SLOT if buffer in plan.offsets else plan.slots[buffer]
        base = ctypes.c_int64.from_address(env + 8 * slot).value
        return base + plan.offsets.get(buffer, 0), self._runner.layout(buffer).nbytes
