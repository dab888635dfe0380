"""Models of int8 products through the kernels of a GPU, run by Triton's interpreter, against eager; and on the CPU's
target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import lazyc
from lazyc.backend import EVENTS, executables
from lazyc.codegen.triton.kernel import generate
from lazyc.ir.types import DType
from lazyc.report import events as E
from tests.gpu import DEVICE, OPTIONS, only_interpreted

pytestmark = pytest.mark.gpu
ON_CPUS = "int8 matrix product: library call, dense with any weight"


class Int8Linear(nn.Module):
    """A linear layer of an int8 weight [out, in] with a scale for each of its rows; rows of the input are quantized
    by their largest value."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (outer, inner), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(outer) / 1000)
        self.bias = nn.Parameter(torch.randn(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(1, keepdim=True) / 127
        quantized = torch.round(x / step).to(torch.int8)
        total = torch._int_mm(quantized, self.weight.t())
        return total.float() * step * self.scale + self.bias


@pytest.fixture
def heard() -> Iterator[list[E.Event]]:
    torch.manual_seed(0)
    torch.compiler.reset()
    events: list[E.Event] = []
    stop = EVENTS.subscribe(events.append)
    yield events
    stop()


def compile(
    function: Callable[..., torch.Tensor], options: dict[str, Any] = OPTIONS
) -> Callable[..., torch.Tensor]:
    options = {**options, "disk_cache": False}
    return torch.compile(function, backend="lazyc", dynamic=False, options=options)


def fallbacks(heard: list[E.Event]) -> list[tuple[str, str]]:
    return [(e.op, e.reason) for e in heard if isinstance(e, E.Fallback)]


def int8(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, device=DEVICE)


@pytest.mark.parametrize(("m", "k", "n"), [(32, 64, 48), (19, 40, 24), (1, 8, 8), (17, 300, 8)])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_products_are_exact(on_cpu: bool, m: int, k: int, n: int, heard: list[E.Event]) -> None:
    x, w, v = (t.cpu() if on_cpu else t for t in (int8(m, k), int8(n, k), int8(k, n)))

    def both(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch._int_mm(x, w.t()), torch._int_mm(x, v) * 3 - 1

    compiled = compile(both, {} if on_cpu else OPTIONS)
    with torch.no_grad():
        # cuBLAS does not take all sizes.
        got, want = compiled(x, w, v), both(x.cpu(), w.cpu(), v.cpu())
    assert all(
        torch.equal(a.cpu(), b) and a.dtype is torch.int32 for a, b in zip(got, want, strict=True)
    )
    left = [("aten._int_mm.default", ON_CPUS)] if on_cpu else []
    assert set(fallbacks(heard)) == set(left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_quantized_perceptron(dtype: torch.dtype, heard: list[E.Event]) -> None:
    """Each product is one kernel with the scales after it; what is quantized is in memory as bytes."""
    others = executables()
    model = (
        nn.Sequential(Int8Linear(48, 64), nn.GELU(), Int8Linear(64, 32)).eval().to(DEVICE, dtype)
    )
    compiled, x = compile(model), torch.randn(20, 48).to(DEVICE, dtype)
    with torch.no_grad():
        got = compiled(x)
        exact = (
            1e-4 if dtype is torch.float32 else 3e-2
        )  # a value may be quantized to its neighbour
        torch.testing.assert_close(got, model(x), rtol=exact, atol=exact)
    assert fallbacks(heard) == []
    (executable,) = {e for e in executables() if e not in others}
    temporaries = [b for b in executable.program.buffers if b.kind == "temp"]
    assert sum(b.dtype is DType.I8 for b in temporaries) == 2
    texts = [generate(nest, "kernel").text for nest in executable.program.nests.values()]
    assert sum("tl.dot" in text and "tl.int32" in text for text in texts) == 2


@only_interpreted("a GPU has a kernel for it")
@pytest.mark.parametrize("options", [OPTIONS, {}])
def test_where_there_is_no_kernel_for_it_a_2_4_weight_is_dense(
    options: dict[str, Any], heard: list[E.Event]
) -> None:
    model = Int8Linear(64, 48).eval()
    lazyc.sparse.prune_24(model.get_buffer("weight"))
    compiled, x = compile(model, options), torch.randn(20, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    said = [(e.is_used, e.reason) for e in heard if isinstance(e, E.SparseProduct)]
    if options:
        assert said == [(False, "no kernel for i8 weights on this target")]
    else:
        assert said == [] and fallbacks(heard) == [("aten._int_mm.default", ON_CPUS)]
