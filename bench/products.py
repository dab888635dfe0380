"""Matrix products in f32 by torch's library and by generated kernels: ``python -m bench products``.

What ``gemm=auto`` chooses rests on this table. Weights are several for each shape, so that they come from
memory as in a model; of products without a weight both factors are as the last ones left them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from bench.measure import Timing, interleave

WAYS = ("eager", "library", "generated")
_SECONDS = 3.0  # for one case
_WEIGHT_BYTES = 256 << 20  # of all weights of a case: more than any cache


@dataclass(frozen=True)
class Shape:
    """[m, k] @ [k, n]; ``is_weight``: the second factor is a parameter, and may be kept packed."""

    m: int
    n: int
    k: int
    is_weight: bool

    @property
    def title(self) -> str:
        kind = "weight" if self.is_weight else "two results"
        return f"[{self.m}, {self.k}] @ [{self.k}, {self.n}], {kind}"

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k


WEIGHTS = ((3072, 768), (768, 3072), (768, 768), (4096, 4096), (50257, 768), (64, 256))
SHAPES = (
    *(Shape(m, n, k, True) for n, k in WEIGHTS for m in (1, 4, 16, 128, 512)),
    *(Shape(m, n, k, False) for m, n, k in ((64, 64, 64), (128, 768, 768), (1024, 384, 384),
      (384, 1536, 1024), (1024, 8192, 384), (2048, 2048, 2048))),
)  # fmt: skip


def measure(
    rounds: int, shapes: tuple[Shape, ...] = SHAPES
) -> Iterator[tuple[Shape, dict[str, Timing]]]:
    """The times of one product of each shape, by each way."""
    for shape in shapes:
        count = max(1, min(24, _WEIGHT_BYTES // (4 * shape.n * shape.k))) if shape.is_weight else 1
        calls = {way: _calls(shape, way, count) for way in WAYS}
        with torch.no_grad():
            times = interleave(calls, rounds, warmup=2, budget=_SECONDS)
        yield shape, {w: Timing(tuple(s / count for s in t.samples)) for w, t in times.items()}


def _calls(shape: Shape, way: str, count: int) -> Callable[[], Any]:
    """``count`` products by one way, in one call."""
    torch.manual_seed(0)
    x = torch.randn(shape.m, shape.k)
    if shape.is_weight:
        layers = nn.ModuleList(nn.Linear(shape.k, shape.n, bias=False) for _ in range(count))

        def products(x: torch.Tensor) -> list[torch.Tensor]:
            return [layer(x) for layer in layers]

        return _compiled(products, way, x)
    return _compiled(torch.mm, way, x, torch.randn(shape.k, shape.n))


def _compiled(function: Callable[..., Any], way: str, *args: torch.Tensor) -> Callable[[], Any]:
    if way != "eager":
        torch._dynamo.reset()
        function = torch.compile(function, backend="lazyc", dynamic=False, options={"gemm": way})
    return lambda: function(*args)


def table(found: Iterator[tuple[Shape, dict[str, Timing]]]) -> Table:
    made = Table(
        "ms, least / median", *WAYS, "GFLOP/s", "generated against library", show_edge=False
    )
    for shape, times in found:
        best = times["generated"].minimum
        made.add_row(
            shape.title,
            *(f"{1e3 * times[w].minimum:.3f} / {1e3 * times[w].median:.3f}" for w in WAYS),
            f"{shape.flops / best / 1e9:.0f}",
            f"{times['library'].minimum / best:.2f}x",
        )
    return made
