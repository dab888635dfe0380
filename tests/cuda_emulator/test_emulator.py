"""The emulator itself: what threads of a warp and a block do together, and what it refuses."""

from __future__ import annotations

from importlib import resources

import pytest
import torch

from lazyc.codegen.base import KernelCode, LaunchRef
from lazyc.ir.types import DType
from tests.cuda_emulator.emulate import Emulated, EmulatorError, needs_compiler

pytestmark = needs_compiler


def kernel(body: str) -> Emulated:
    """A kernel of two warps on floats ``x`` and ``y``."""
    primitives = resources.files("lazyc.codegen.cuda").joinpath("primitives.cuh").read_text("utf-8")
    head = 'extern "C" __global__ void kernel(const float* x, float* y, int* error)'
    lines = "const int thread = threadIdx.x; float* shared = (float*)dynamic_shared();"
    text = f"{primitives}\n{head} {{ {lines} {body} }}"
    ref = LaunchRef("kernel", 1, 1, (), 2)
    return Emulated(KernelCode(ref, text, (DType.F32, DType.F32), is_cuda=True, shared_bytes=512))


def test_warps_and_barriers() -> None:
    """Sums of warps by shuffles, then of both through shared memory, in any order of threads."""
    run = kernel(
        """
        float sum = x[thread];
        for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
        if (thread % 32 == 7) shared[thread / 32] = sum;
        __syncthreads();
        y[thread] = shared[0] + shared[1] + __shfl_sync(~0u, thread, 3);
        """
    )
    x = torch.arange(64, dtype=torch.float32)
    for is_reversed in (False, True):
        y = torch.zeros(64)
        run(1, (x, y), is_reversed=is_reversed)
        assert torch.equal(y, torch.tensor([3.0, 35.0]).repeat_interleave(32) + 2016)


REFUSED = {
    "wait for others that never come": "if (thread < 63) __syncthreads();",
    "threads diverge": "if (thread % 2) __shfl_sync(~0u, 0, 0); else { U32 r[4]; ldmatrix(r, shared); }",
    "not aligned": "cp_async(shared, x + 1, true); cp_async_commit(); cp_async_wait<0>();",
    "was not given": "cp_async(shared, x + 64, true); cp_async_commit(); cp_async_wait<0>();",
    "outside of shared memory": "cp_async(shared + 128, x, true);",
    "copies are under way": "cp_async(shared, x, true); cp_async_commit();",
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_refuses(message: str) -> None:
    run = kernel(REFUSED[message])
    with pytest.raises(EmulatorError, match=message):
        run(1, (torch.zeros(64), torch.zeros(64)))
