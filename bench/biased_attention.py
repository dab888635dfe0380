"""Attention with a bias that is learned: ``python -m bench biased-attention``.

The bias is added to the scores of every query and key, as T5's of relative positions is (C. Raffel et al.,
"Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020), and one for all
entries of the batch. Its gradient is as large as itself; that of the scores, which is added up to it, is larger by
the size of the batch. Figures are of forward and backward together, each taken in a process of its own, in float32
on a CPU and bfloat16 on a GPU, if not told otherwise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bench import process

if TYPE_CHECKING:
    import torch
    from rich.table import Table

BATCH, HEADS, WIDTH = 8, 4, 64
LENGTHS = (1024, 2048)
SECONDS = 10.0  # of timing
BIASES = ("heads", "all")  # a bias for each head, and one for all


@dataclass(frozen=True)
class Found:
    """Seconds of a step (the least) and bytes added at its peak."""

    seconds: float
    peak_bytes: int | None


def measure(backend: str, bias: str, length: int, dtype: str) -> Found:
    """A step in a new process. ``bias`` is of ``BIASES``; ``dtype`` a name of torch's, or "" for the device's."""
    args = [backend, bias, str(length), f"--dtype={dtype}"]
    return Found(**process.run_child("bench.biased_attention", args))


def measure_all(
    lengths: Sequence[int], dtype: str, tell: Callable[[str], None]
) -> dict[tuple[str, str, int], Found]:
    """By bias, backend and length. ``tell`` is told what is measured."""
    found = {}
    for bias in BIASES:
        for backend in ("eager", "lazyc"):
            for n in lengths:
                tell(f"bias of {bias}, {backend}, {n} positions")
                found[bias, backend, n] = measure(backend, bias, n, dtype)
    return found


def table(found: dict[tuple[str, str, int], Found], lengths: Sequence[int]) -> Table:
    from rich.table import Table

    title = f"attention with a learned bias, batch {BATCH}, {HEADS} heads of {WIDTH}: MiB at the peak (ms)"
    made = Table(title=title)
    made.add_column("bias")
    made.add_column("backend")
    for n in lengths:
        made.add_column(str(n), justify="right")
    for bias in BIASES:
        for backend in ("eager", "lazyc"):
            made.add_row(bias, backend, *(_cell(found[bias, backend, n]) for n in lengths))
    return made


def _cell(x: Found) -> str:
    peak = "?" if x.peak_bytes is None else f"{x.peak_bytes / 2**20:.0f}"
    return f"{peak} ({1e3 * x.seconds:.1f})"


# --- the child process ----------------------------------------------------------------------------


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention [batch, heads, positions, width] with a bias, as it is written by hand."""
    scores = (q @ k.transpose(-2, -1)) * k.shape[-1] ** -0.5 + bias
    return scores.softmax(-1) @ v


def _run(backend: str, bias: str, length: int, dtype_name: str) -> Found:
    import torch

    from bench.measure import time_and_peak

    on_gpu = torch.cuda.is_available()
    device, usual = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    dtype = getattr(torch, dtype_name) if dtype_name else usual
    heads = HEADS if bias == "heads" else 1
    shapes = [(BATCH, HEADS, length, WIDTH)] * 3 + [(1, heads, length, length)]
    leaves = [torch.randn(s, device=device, dtype=dtype, requires_grad=True) for s in shapes]
    weight = torch.randn_like(leaves[0])
    function = attend if backend == "eager" else torch.compile(attend, backend=backend)

    def step() -> None:
        for x in leaves:
            x.grad = None
        function(*leaves).backward(weight)
        if on_gpu:
            torch.cuda.synchronize()

    return Found(*time_and_peak(step, SECONDS, on_gpu))


def main() -> None:
    """The child: one measurement in this process, printed as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend")
    parser.add_argument("bias", choices=BIASES)
    parser.add_argument("length", type=int)
    parser.add_argument("--dtype", default="")
    args = parser.parse_args()
    process.exit_if_threads_are_bad()
    print(json.dumps(asdict(_run(args.backend, args.bias, args.length, args.dtype))))


if __name__ == "__main__":
    main()
