"""Executable: a Program with its kernels loaded, ready to be called with tensors.

A call fills in addresses, makes one foreign call for each run of native steps, and returns tensors.
What can be known before is worked out once, when the Program is bound to the sizes of its symbols
(``binding.py``); a Program without symbols is bound once. Calls may overlap: from several threads,
or from inside an eager step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lazyc.codegen.base import Kernel
from lazyc.forks import join_before_fork, renew_in_child
from lazyc.ir.program import GemmStep, KernelStep, Program
from lazyc.report.events import AttentionChosen, RowTilesChosen
from lazyc.report.spans import torch_profiler
from lazyc.runtime.binding import bind
from lazyc.runtime.blocks import TileChoice
from lazyc.runtime.compressed import with_compressed
from lazyc.runtime.cuda_graph import Replayer, can_replay
from lazyc.runtime.eager import EagerLog
from lazyc.runtime.host import Host
from lazyc.runtime.mixed import MixedRunner
from lazyc.runtime.runner import NativeRunner, Runner
from lazyc.runtime.sizes import Sizes
from lazyc.runtime.threads import leave_bound_cores
from lazyc.runtime.tuning import Budget, TunedCall, Tuner
from lazyc.runtime.weights import NOTHING_KEPT, Kept, WeightCache, packed_program

_MOST_RUNNERS = 64  # sizes of one Program kept bound; the ones used longest ago go first
_MOST_PACKED = 2  # sizes of one Program that have packed matrices of their own

# Values of the symbols; whether packed matrices are used; the steps that read compressed weights.
Key = tuple[tuple[int, ...], bool, frozenset[int]]


class Executable:
    """Calls a Program. ``kernels`` holds the loaded code of every nest, by its key.

    ``executable(args)`` takes the arguments as a list, which it empties (AOTAutograd's boxed
    convention: nothing else then keeps a dead activation alive), and returns the list of results.
    Raises KernelError when a kernel reports an error, and what an eager step raises.

    ``pack_weights``: products marked ``pack_b`` keep a packed copy of their weight between calls.
    ``name``: of its calls among spans. ``tuner``: knows faster kernels, or finds them in a first call.
    """

    def __init__(
        self,
        program: Program,
        kernels: Mapping[str, Kernel],
        host: Host,
        pack_weights: bool = True,
        name: str = "program",
        tuner: Tuner | None = None,
    ) -> None:
        self.program = program
        self.name = name
        self.eager_log = EagerLog()
        self._kernels = kernels
        self._host = host
        self._spans = host.spans
        self._runners: OrderedDict[Key, Runner] = OrderedDict()
        self._tuner = tuner
        self._budget = Budget(0.0 if tuner is None else tuner.seconds)
        self._lock = threading.RLock()
        renew_in_child(self)
        self._sources = [(s.input, s.dim) for s in program.symbols]
        self.weights = self._weight_cache(pack_weights)
        self._packing: threading.Thread | None = None
        self._only = (
            None if program.symbols or self.weights else self._bind(((), False, frozenset()))
        )

    def _weight_cache(self, pack_weights: bool) -> WeightCache | None:
        program = self.program
        marked = [s for s in program.steps if isinstance(s, GemmStep) and s.pack_b]
        packs = pack_weights and any(self._host.blas.can_pack or s.tile for s in marked)
        sparse = program.sparse_products() or program.sparse_contractions()
        if not program.packed and not packs and not sparse:
            return None
        steps = packed_program(program)
        compute = None
        if steps is not None:
            name = f"{self.name}, weights"
            host = replace(self._host, cuda_graphs=False)  # it runs too seldom
            compute = Executable(steps, self._kernels, host, pack_weights=False, name=name)
            compute.eager_log = self.eager_log
        weights = WeightCache(program, self._kernels, self._host, compute)
        weights.packs_matrices &= pack_weights
        return weights

    def prepare(self, args: Sequence[Any]) -> None:
        """Packs weights on another thread while the caller goes on; ``args`` are to be those of the first call.
        It waits for this."""
        weights = self.weights
        if weights is None or self._sources or not weights.can_pack_ahead(args):
            return

        def pack() -> None:
            leave_bound_cores(self._host.library)
            with suppress(Exception), torch.no_grad():  # the first call meets the exception
                runner = self._runner(((), weights.packs_matrices, frozenset()))
                weights.pack_ahead(runner.plan, args)

        thread = threading.Thread(target=pack, name="lazyc-pack")
        with suppress(RuntimeError):  # there are too many threads, or Python is about to end
            thread.start()
            self._packing = thread
            join_before_fork(thread)

    def __call__(self, args: list[Any]) -> list[Any]:
        packing = self._packing
        if packing is not None:
            packing.join()
            self._packing = None
        if self._spans.recordings or torch_profiler._is_profiler_enabled:  # Spans.on, in place
            with self._spans.span("program", self.name):
                runner, packs, kept = self._prepare(args)
                return runner.run_watched(args, packs, kept.packed)
        if self._only is not None:
            return self._only.run(args)
        # ``kept`` lives as long as the call: another thread may find the weights changed meanwhile.
        runner, packs, kept = self._prepare(args)
        return runner.run(args, packs, kept.packed)

    def _prepare(self, args: list[Any]) -> tuple[Runner, Sequence[int], Kept]:
        """What runs the Program with these arguments, and what it needs besides them: addresses in
        what is kept of weights, and that."""
        if self._only is not None:
            return self._only, (), NOTHING_KEPT
        key = tuple(args[i] if dim is None else args[i].shape[dim] for i, dim in self._sources)
        weights = self.weights
        if weights is None:
            return self._runner((key, False, frozenset())), (), NOTHING_KEPT
        kept = weights.current(args)
        runner = self._runner((key, weights.packs_matrices, kept.sparse))
        return runner, weights.pointers(kept, runner.plan, args), kept

    def _runner(self, key: Key) -> Runner:
        """The runner for these values of the symbols."""
        runner = self._runners.get(key)
        if runner is None:
            return self._bind(key)
        with suppress(KeyError):  # another thread dropped it just now
            self._runners.move_to_end(key)
        return runner

    @property
    def last_runner(self) -> Runner | None:
        """The runner of the last call; None before the first."""
        if self._only is not None:
            return self._only
        return next(reversed(self._runners.values()), None)

    def _fastest(self) -> Mapping[str, Kernel]:
        """The kernels, by what is known of how fast they are."""
        tuner = self._tuner
        if tuner is None:
            return self._kernels
        return {key: tuner.winner(kernel) or kernel for key, kernel in self._kernels.items()}

    def _timed(self, program: Program, kernels: Mapping[str, Kernel]) -> Mapping[str, Kernel]:
        """The kernels that its steps run, as far as there is a nest to make alternatives of: not in a Program
        that was loaded."""
        used = {s.nest for s in program.steps if isinstance(s, KernelStep)}
        return {key: kernels[key] for key in used if program.nests[key].stages}

    def _rebind(self, key: Key) -> Runner:
        """The runner for these values of the symbols, with the kernels that are known to be fastest by now."""
        with self._lock:
            self._runners.pop(key, None)
            runner = self._bind(key, tune=False)
            if self._only is not None:
                self._only = runner
            return runner

    def _bind(self, key: Key, tune: bool = True) -> Runner:
        values, use_packs, sparse = key
        with self._lock:
            if key in self._runners:
                return self._runners[key]
            packed = sum(bool(r.plan.packs) for r in self._runners.values())
            symbols = (s.symbol for s in self.program.symbols)
            sizes = Sizes(dict(zip(symbols, values, strict=True)))
            program = with_compressed(self.program, sparse)
            kernels = self._fastest()
            plan = bind(
                program,
                kernels,
                self._host.blas,
                sizes,
                use_packs=use_packs and packed < _MOST_PACKED,
                threads=self._host.threads.get(),
                cache=self._host.cache_bytes,
                sparse=frozenset(n for n in sparse if isinstance(program.steps[n], GemmStep)),
            )
            for choice in plan.choices:
                self._host.events.emit(_told(choice))
            if plan.is_native:
                runner: Runner = NativeRunner(program, plan, self._host, sizes)
            else:
                runner = MixedRunner(program, plan, kernels, self._host, sizes, self.eager_log)
            device = self._host.device
            tuner = self._tuner
            timed = {} if tuner is None else self._timed(program, kernels)
            if tune and tuner is not None and tuner.has_work(timed, self._budget):
                rebind = partial(self._rebind, key)
                runner.run = TunedCall(runner, timed, tuner, self._budget, rebind)
            elif self._host.cuda_graphs and device is not None and can_replay(program, plan):
                runner.run = Replayer(runner, device)
            if len(self._runners) >= _MOST_RUNNERS:
                self._runners.popitem(last=False)
            self._runners[key] = runner
            return runner


def _told(choice: TileChoice) -> AttentionChosen | RowTilesChosen:
    if not choice.is_attention:
        return RowTilesChosen(choice.blocks is not None, choice.reason, choice.comment)
    kernel = "math" if choice.blocks is None else "memory-efficient"
    return AttentionChosen(kernel, choice.reason, choice.comment.partition(" ")[2])
