"""Executable: a Program with its kernels loaded, ready to be called with tensors.

A call fills in addresses, makes one foreign call for each run of native steps, and returns tensors.
What can be known before is worked out once, when the Program is bound to the sizes of its symbols
(``binding.py``); a Program without symbols is bound once. Calls may overlap: from several threads, or
from inside an eager step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from lazyc.ir.program import Program
from lazyc.runtime.binding import LoadedKernel, bind
from lazyc.runtime.eager import EagerLog
from lazyc.runtime.host import Host
from lazyc.runtime.mixed import MixedRunner
from lazyc.runtime.runner import NativeRunner, Runner
from lazyc.runtime.sizes import Sizes

_MOST_RUNNERS = 64  # sizes of one Program kept bound; the ones used longest ago go first


class Executable:
    """Calls a Program. ``kernels`` holds the loaded code of every nest, by its key.

    ``executable(args)`` takes the arguments as a list, which it empties (AOTAutograd's boxed
    convention: nothing else then keeps a dead activation alive), and returns the list of results.
    Raises KernelError when a kernel reports an error, and what an eager step raises.
    """

    def __init__(self, program: Program, kernels: Mapping[str, LoadedKernel], host: Host) -> None:
        self.program = program
        self.eager_log = EagerLog()
        self._kernels = kernels
        self._host = host
        self._runners: OrderedDict[tuple[int, ...], Runner] = OrderedDict()
        self._sources = [(s.input, s.dim) for s in program.symbols]
        self._static = self._bind(()) if not program.symbols else None

    def __call__(self, args: list[Any]) -> list[Any]:
        runner = self._static
        if runner is None:
            runner = self._runner(args)
        return runner.run(args)

    def _runner(self, args: list[Any]) -> Runner:
        """The runner for the sizes of ``args``."""
        key = tuple(args[i] if dim is None else args[i].shape[dim] for i, dim in self._sources)
        runner = self._runners.get(key)
        if runner is None:
            runner = self._runners[key] = self._bind(key)
            if len(self._runners) > _MOST_RUNNERS:
                self._runners.popitem(last=False)
        else:
            self._runners.move_to_end(key)
        return runner

    def _bind(self, key: tuple[int, ...]) -> Runner:
        symbols = (s.symbol for s in self.program.symbols)
        sizes = Sizes(dict(zip(symbols, key, strict=True)))
        plan = bind(self.program, self._kernels, self._host.blas, sizes, use_packs=False)
        if plan.is_native:
            return NativeRunner(self.program, plan, self._host, sizes)
        return MixedRunner(self.program, plan, self._host, sizes, self.eager_log)
