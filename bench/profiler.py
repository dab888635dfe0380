"""What ``lazyc.profiler`` costs a call of a compiled program: ``python -m bench profiler``.

The program is ``x + 1`` on 16 floats, called without Dynamo. ``no branch`` is its call without the
question whether anybody watches, ``off`` the call as it is, ``recording`` the call while a recording
is open: a span for the program and one for its kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from bench.measure import interleave
from lazyc import backend
from lazyc.runtime.program import Executable

INNER = 500


class _NoBranch:
    """Calls an Executable like ``Executable.__call__`` where nobody watches, without asking."""

    def __init__(self, executable: Executable) -> None:
        self._only = executable.last_runner

    def __call__(self, args: list[Any]) -> list[Any]:
        if self._only is not None:
            return self._only.run(args)
        raise AssertionError("the program has sizes that change")


def _program(x: torch.Tensor) -> Executable:
    known = set(backend.executables())
    torch.compile(lambda x: x + 1, backend="lazyc")(x)
    (made,) = (e for e in backend.executables() if e not in known)
    return made


def measure(rounds: int) -> dict[str, float]:
    """Least microseconds a call."""
    x = torch.ones(16)

    def calls(call: Callable[[list[Any]], Any], recording: bool) -> Callable[[], None]:
        def run() -> None:
            with backend.SPANS.record() if recording else nullcontext():
                for _ in range(INNER):
                    call([x])

        return run

    with torch.no_grad():
        program = _program(x)
        ways = {
            "no branch": calls(_NoBranch(program), False),
            "off": calls(program, False),
            "recording": calls(program, True),
        }
        timings = interleave(ways, rounds)
    return {name: timing.minimum * 1e6 / INNER for name, timing in timings.items()}
