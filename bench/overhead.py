"""Microseconds that a call of a compiled one-op graph costs: ``python -m bench overhead``.

The graph is ``x + 1`` on 16 floats, so that nearly all of the time is Dynamo's guards and the way
into and out of the backend's code. ``dynamo`` (``backend="eager"``) runs the same guards and then
torch's own op: what a backend takes above that is its own.
"""

from __future__ import annotations

import argparse
import json
import types
from collections.abc import Callable

import torch

from bench.backends import compiler
from bench.measure import interleave
from bench.process import exit_if_threads_are_bad

INNER = 500


def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def _own_code(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A copy with a code object of its own: Dynamo keeps what it compiled by code object, and would
    otherwise search through the entries of all backends."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(function.__code__.replace(), function.__globals__)


def measure(backends: list[str], rounds: int) -> dict[str, float]:
    """Least microseconds a call of each backend."""
    x = torch.ones(16)
    compiled = {name: compiler(name)(_own_code(_add_one)) for name in backends}
    calls = {name: (lambda f=f: f(x)) for name, f in compiled.items()}
    with torch.no_grad():
        timings = interleave(calls, rounds, inner=INNER)
    return {name: timing.minimum * 1e6 for name, timing in timings.items()}


def main() -> None:
    """The child: all backends in this process, printed as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", required=True, help="comma-separated")
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    exit_if_threads_are_bad()
    print(json.dumps(measure(args.backends.split(","), args.rounds)))


if __name__ == "__main__":
    main()
