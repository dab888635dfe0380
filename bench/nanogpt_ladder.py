"""The ladder of nanoGPT's training step: ``python -m bench nanogpt-ladder``.

The model is nanoGPT (A. Karpathy, https://github.com/karpathy/nanoGPT): attention written by hand, and a
vocabulary of 50257. Each rung changes one thing: attention through
``scaled_dot_product_attention`` with plain products, by the memory-efficient kernel (M. N. Rabe and C.
Staats, "Self-attention does not need O(n^2) memory", 2021), by flash attention (T. Dao,
"FlashAttention-2", 2023), then a vocabulary that is a multiple of 64 besides. In eager, torch's kernels
are chosen by ``torch.nn.attention.sdpa_kernel`` and the vocabulary is padded by hand; lazyc gets the same
model on every rung and is told by options what it may do. On a CPU ``flash`` is torch's own kernel for both.

The second rung is the first one's model where lazyc may find attention in it.

A second table has the memory that attention alone takes, forward and backward, by sequence length.
Every figure is taken in a process of its own. Both run in float32 on a CPU and bfloat16 on a GPU, if not told
otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench import process

if TYPE_CHECKING:
    import torch
    from rich.table import Table

VOCABULARY, PADDED = 50257, 50304
LENGTHS = (512, 1024, 2048, 4096)
SECONDS = 8.0  # of timing a rung
Kernel = Literal["by hand", "MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION"]


@dataclass(frozen=True)
class Rung:
    """``kernel``: eager's attention, "by hand" or of ``torch.nn.attention.SDPBackend``. ``options`` are
    lazyc's."""

    name: str
    kernel: Kernel
    vocabulary: int
    options: Mapping[str, str]

    @property
    def is_by_hand(self) -> bool:
        return self.kernel == "by hand"


_MATH: Mapping[str, str] = {"attention": "math", "disable_passes": "padding"}
_BLOCKS: Mapping[str, str] = {"attention": "memory-efficient", "disable_passes": "padding"}
_FLASH: Mapping[str, str] = {"attention": "flash", "disable_passes": "padding"}
RUNGS = (
    Rung("attention by hand", "by hand", VOCABULARY, _MATH),
    Rung("by hand, found by lazyc", "by hand", VOCABULARY, _FLASH),
    Rung("math", "MATH", VOCABULARY, _MATH),
    Rung("memory-efficient", "EFFICIENT_ATTENTION", VOCABULARY, _BLOCKS),
    Rung("flash", "FLASH_ATTENTION", VOCABULARY, _FLASH),
    Rung("flash, padded vocabulary", "FLASH_ATTENTION", PADDED, {"attention": "flash"}),
)


@dataclass(frozen=True)
class Found:
    """What a process measured: seconds of a step (the least), bytes added at its peak; ``missing`` says why
    there are none."""

    seconds: float | None = None
    peak_bytes: int | None = None
    missing: str = ""


def measure(rung: Rung, backend: str, length: int, layers: int, dtype: str) -> Found:
    """A training step on a rung in a new process; of attention alone where ``layers`` is 0. ``dtype``: a name of
    torch's, "" for that of the device."""
    args = [str(RUNGS.index(rung)), backend, str(length), str(layers), f"--dtype={dtype}"]
    return Found(**process.run_child("bench.nanogpt_ladder", args))


def measure_all(
    length: int,
    layers: int,
    lengths: Sequence[int],
    dtype: str,
    tell: Callable[[str], None],
) -> tuple[dict[tuple[str, str], Found], dict[tuple[str, str, int], Found]]:
    """Steps of the model by rung and backend, none for no ``layers``; steps of attention by rung, backend and
    length. ``tell`` is told what is measured."""
    steps, attention = {}, {}
    for rung in RUNGS:
        for backend in ("eager", "lazyc"):
            if layers:
                tell(f"{rung.name}, {backend}: training step")
                steps[rung.name, backend] = measure(rung, backend, length, layers, dtype)
            if rung.vocabulary != VOCABULARY:
                continue  # attention alone has none
            for n in lengths:
                tell(f"{rung.name}, {backend}: attention to {n} positions")
                attention[rung.name, backend, n] = measure(rung, backend, n, 0, dtype)
    return steps, attention


def step_table(found: dict[tuple[str, str], Found], title: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for name in ("rung", "eager ms", "eager MiB", "lazyc ms", "lazyc MiB"):
        table.add_column(name, justify="left" if name == "rung" else "right")
    for rung in RUNGS:
        cells = [_cells(found[rung.name, backend]) for backend in ("eager", "lazyc")]
        table.add_row(rung.name, *cells[0], *cells[1])
    return table


def memory_table(found: dict[tuple[str, str, int], Found], lengths: Sequence[int]) -> Table:
    from rich.table import Table

    table = Table(title="attention alone, 12 heads of 64: MiB at the peak by sequence length (ms)")
    table.add_column("rung")
    table.add_column("backend")
    for n in lengths:
        table.add_column(str(n), justify="right")
    for rung in RUNGS:
        for backend in ("eager", "lazyc"):
            row = [found[key] for n in lengths if (key := (rung.name, backend, n)) in found]
            if row and not row[0].missing:
                cells = ("{1} ({0})".format(*_cells(x)) for x in row)
                table.add_row(rung.name, backend, *cells)
    return table


def _cells(x: Found) -> tuple[str, str]:
    if x.missing:
        return x.missing, ""
    assert x.seconds is not None
    return f"{1e3 * x.seconds:.1f}", "?" if x.peak_bytes is None else f"{x.peak_bytes / 2**20:.0f}"


# --- the child process ----------------------------------------------------------------------------


def attend_by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention [batch, heads, positions, width] as nanoGPT writes it."""
    import torch

    n = q.shape[-2]
    hidden = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.shape[-1]))
    scores = scores.masked_fill(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same through torch's operator."""
    import torch

    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def build_model(
    attention: Callable[..., torch.Tensor], vocabulary: int, length: int, layers: int
) -> torch.nn.Module:
    """nanoGPT with 12 heads of 64 and random weights; from tokens and targets to the loss."""
    import torch
    from torch import nn

    width, heads = 768, 12

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.heads, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, n, _ = x.shape
            parts = self.heads(self.first(x)).split(width, dim=2)
            q, k, v = (p.view(batch, n, heads, -1).transpose(1, 2) for p in parts)
            y = attention(q, k, v).transpose(1, 2).reshape(batch, n, width)
            x = x + self.join(y)
            return x + self.narrow(nn.functional.gelu(self.widen(self.second(x))))

    class NanoGPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = (
                nn.Embedding(vocabulary, width),
                nn.Embedding(length, width),
            )
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
            self.tokens.weight = self.head.weight

        def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    torch.manual_seed(0)
    return NanoGPT()


# What torch says where ``sdpa_kernel`` allows nothing that the device has: when it runs, when it traces.
_NO_KERNEL = ("No available kernel", "No viable backend")


def _allowed(rung: Rung, backend: str) -> AbstractContextManager[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if rung.is_by_hand or backend == "lazyc":
        return nullcontext()
    return sdpa_kernel(getattr(SDPBackend, rung.kernel))


def _run(rung: Rung, backend: str, length: int, layers: int, dtype_name: str) -> Found:
    import torch

    from bench.measure import time_and_peak

    on_gpu = torch.cuda.is_available()
    device, usual = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    dtype = getattr(torch, dtype_name) if dtype_name else usual
    attention = attend_by_hand if rung.is_by_hand else attend

    def compiled(function: Any) -> Any:
        if backend == "eager":
            return function
        return torch.compile(function, backend="lazyc", options=dict(rung.options))

    if layers:
        # lazyc pads the vocabulary by itself.
        vocabulary = rung.vocabulary if backend == "eager" else VOCABULARY
        model = build_model(attention, vocabulary, length, layers).to(device, dtype)
        tokens = torch.randint(0, VOCABULARY, (2, 1, length), device=device)
        leaves, function = list(model.parameters()), compiled(model)

        def loss() -> torch.Tensor:
            return function(tokens[0], tokens[1])
    else:
        leaves = [
            torch.randn(1, 12, length, 64, device=device, dtype=dtype, requires_grad=True)
            for _ in range(3)
        ]
        weight, function = torch.randn_like(leaves[0]), compiled(attention)

        def loss() -> torch.Tensor:
            return (function(*leaves) * weight).sum()

    def step() -> None:
        for x in leaves:
            x.grad = None
        loss().backward()
        if on_gpu:
            torch.cuda.synchronize()

    try:
        with _allowed(rung, backend):
            time, peak = time_and_peak(step, SECONDS, on_gpu)
    except RuntimeError as error:
        if not any(text in str(error) for text in _NO_KERNEL):
            raise
        return Found(missing=f"not on {device}")
    return Found(time, peak)


def main() -> None:
    """The child: one measurement in this process, printed as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rung", type=int)
    parser.add_argument("backend")
    parser.add_argument("length", type=int)
    parser.add_argument("layers", type=int)
    parser.add_argument("--dtype", default="")
    args = parser.parse_args()
    process.exit_if_threads_are_bad()
    found = _run(RUNGS[args.rung], args.backend, args.length, args.layers, args.dtype)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
