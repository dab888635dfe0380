"""Kernels compiled for GPUs that this machine does not have: what the machine code shows."""

from __future__ import annotations

import pytest
import torch

import lazyc
from lazyc.backend import EVENTS
from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton.compile import Compiled, compile_kernel
from lazyc.codegen.triton.kernel import generate
from lazyc.errors import ConfigError
from lazyc.ir.loops import LoopNest
from lazyc.ir.types import DType
from lazyc.report import events as E
from tests.codegen.attention_graphs import Sizes, attention_nests, causal
from tests.codegen.test_reductions import softmax_nest
from tests.codegen.test_triton_contraction import product

ARCHITECTURES = (80, 90, 100)


def compiled(nest: LoopNest, arch: int) -> Compiled:
    target = gpu_target(f"cuda:sm_{arch}")
    found = compile_kernel(generate(nest, "kernel"), target)
    assert found.local_bytes == 0, "registers are spilled"
    assert 0 < found.registers <= target.thread_registers
    assert found.shared_bytes <= target.shared_bytes
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows(arch: int) -> None:
    loads = compiled(softmax_nest(8192, 1024, "inner"), arch).loads
    assert loads == {"ld.global.v4.b32"}, "not all loads are of 128 bits"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_use_tensor_cores(arch: int) -> None:
    found = compiled(product(4096, 4096, 4096, DType.BF16, epilogue=True), arch)
    assert gpu_target(f"sm_{arch}").tensor_cores in found.tensor_cores
    assert "cp.async.cg.shared.global" in found.loads, "factors are not loaded ahead"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("backward", [False, True])
def test_attention_fits_registers_and_shared_memory(arch: int, width: int, backward: bool) -> None:
    nests = attention_nests(Sizes(2048, 2048, width), DType.BF16, causal, backward)
    assert len(nests) == (2 if backward else 1)
    for nest in nests:
        found = compiled(nest, arch)
        assert gpu_target(f"sm_{arch}").tensor_cores in found.tensor_cores
        assert "cp.async.cg.shared.global" in found.loads, "factors are not loaded ahead"


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("backward", [False, True])
def test_attention_in_single_precision_fits_registers(width: int, backward: bool) -> None:
    for nest in attention_nests(Sizes(2048, 2048, width), DType.F32, causal, backward):
        assert compiled(nest, 90).tensor_cores == set()


def test_single_precision_is_not_cut_to_half() -> None:
    found = compiled(product(512, 512, 512), 90)
    assert found.tensor_cores == set()


@pytest.mark.parametrize("name", ["cuda:sm_75", "cuda", "sm_", "cuda:90"])
def test_unknown_targets_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match="lazyc knows cuda:sm_80"):
        gpu_target(name)


def test_a_model_is_compiled_for_a_gpu_that_is_not_there() -> None:
    """Its kernels are made and kept; it runs in eager, which is counted."""
    lazyc.metrics.reset()
    made: list[E.Event] = []
    unsubscribe = EVENTS.subscribe(made.append)
    try:
        compiled = torch.compile(
            lambda x, w: torch.softmax(x @ w, -1),
            backend="lazyc",
            options={"target": "cuda:sm_90", "disk_cache": False},
        )
        x, w = torch.randn(32, 64), torch.randn(64, 48)
        torch.testing.assert_close(compiled(x, w), torch.softmax(x @ w, -1))
    finally:
        unsubscribe()
    assert sum(isinstance(event, E.KernelCompiled) for event in made) == 2
    (fallback,) = lazyc.metrics.snapshot()["fallbacks"]
    assert fallback["op"] == "graph" and "sm_90" in fallback["reason"]
