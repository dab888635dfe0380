"""Products of f32 by the tensor cores' TF32: only where torch is set to it, in machine code and in numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lazyc
from lazyc.backend import Session, executables
from lazyc.codegen.base import KernelCode
from lazyc.codegen.gpu_target import Float32Products, GpuTarget, gpu_target
from lazyc.codegen.triton.block_sparse import block_sparse_kernel
from lazyc.codegen.triton.compile import compile_kernel
from lazyc.codegen.triton.cuda import CudaGenerator
from lazyc.codegen.triton.interpret import InterpretedGenerator
from lazyc.codegen.triton.kernel import generate
from lazyc.config import Config
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.types import DType
from lazyc.report.events import EventStream
from lazyc.report.spans import Spans
from tests.codegen.attention_graphs import Sizes, attention_nests, causal
from tests.codegen.test_triton_contraction import product
from tests.gpu import DEVICE, OPTIONS, on_device

pytestmark = pytest.mark.gpu

TF32 = re.compile(r"mma\.sync\S*\.tf32|wgmma\S*\.tf32|tcgen05\.mma\S*kind::tf32")
PRECISIONS: tuple[Float32Products, ...] = ("ieee", "tf32")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")


def uses_tf32(code: KernelCode, target: GpuTarget) -> bool:
    """Whether the machine code multiplies by TF32; it must fit the registers and the shared memory."""
    found = compile_kernel(code, target)
    assert found.spilled_bytes == 0 and found.shared_bytes <= target.shared_bytes
    if not TF32.search(found.ptx):
        assert not found.tensor_cores
        return False
    assert found.tensor_cores
    return True


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("float32", PRECISIONS)
def test_products(float32: Float32Products, arch: int) -> None:
    target = gpu_target(f"sm_{arch}", float32)
    generator = CudaGenerator(target)
    for nest in (
        product(4096, 4096, 4096, epilogue=True, transposed=True),
        product(100, 50257, 768, epilogue=True),
    ):
        assert uses_tf32(generator.generate(nest, "kernel"), target) is (float32 == "tf32")


@pytest.mark.parametrize("float32", PRECISIONS)
def test_attention(float32: Float32Products) -> None:
    target = gpu_target("sm_80", float32)
    for backward in (False, True):
        for nest in attention_nests(Sizes(2048, 2048, 64), DType.F32, causal, backward):
            code = generate(nest, "kernel", float32=float32)
            assert uses_tf32(code, target) is (float32 == "tf32")


@pytest.mark.parametrize("float32", PRECISIONS)
def test_block_sparse_weights(float32: Float32Products) -> None:
    target = gpu_target("sm_80", float32)
    nest = product(4096, 4096, 4096, transposed=True)
    source = SparseContraction(nest, "", 1, "block 32")
    assert uses_tf32(block_sparse_kernel(source, "kernel", float32), target) is (float32 == "tf32")
    code = CudaGenerator(target).generate(source, "kernel")
    assert f'input_precision="{float32}"' in code.text


def test_half_types_are_as_they_were() -> None:
    nest = product(256, 256, 256, DType.BF16)
    texts = {generate(nest, "kernel", float32=x).text for x in PRECISIONS}
    assert len(texts) == 1 and "input_precision" not in texts.pop()


def test_code_has_the_precision_in_its_key() -> None:
    for make in (lambda x: CudaGenerator(gpu_target("sm_80", x)), InterpretedGenerator):
        exact, reduced = (make(x) for x in PRECISIONS)
        assert exact.key != reduced.key
        assert exact.product_costs.single_flops < reduced.product_costs.single_flops
    assert gpu_target("sm_80") == gpu_target("sm_80", "ieee")


def test_a_cpu_s_compiler_does_not_change() -> None:
    session = Session(EventStream(), Spans())
    config = Config(disk_cache=False)
    first = session.compiler(config)
    torch.set_float32_matmul_precision("high")
    assert session.compiler(config) is first
    on_gpu = config.with_options({"target": "cuda:sm_80"})
    reduced = session.compiler(on_gpu)
    torch.set_float32_matmul_precision("highest")
    assert session.compiler(on_gpu) is not reduced


# --- whole models --------------------------------------------------------------------------------


class Model:
    """A function compiled for the device of the tests, its error, and how many programs it took."""

    def __init__(self, module: nn.Module, *args: torch.Tensor) -> None:
        options = {**OPTIONS, "strict": True, "disk_cache": False}
        module, args = on_device(module), tuple(map(on_device, args))
        self.compiled = torch.compile(module, backend="lazyc", options=options)  # type: ignore[call-overload]
        self.args = args
        self.before = {id(x) for x in executables()}
        with torch.no_grad():
            wide = [x.double() for x in args]
            state = {k: v.double() for k, v in module.state_dict().items()}
            self.exact = torch.func.functional_call(module, state, tuple(wide))

    def error(self) -> float:
        lazyc.metrics.reset()
        with torch.no_grad():
            got = self.compiled(*self.args)
        assert got.dtype is torch.float32 and not lazyc.metrics.snapshot()["fallbacks"]
        return float((got - self.exact).norm() / self.exact.norm())

    @property
    def programs(self) -> int:
        return sum(id(x) not in self.before for x in executables())


class Attention(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def models() -> list[Model]:
    torch.manual_seed(0)
    perceptron = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    sparse = nn.Linear(96, 64)
    lazyc.sparse.to_block_sparse(sparse, (16, 16), 0.75)
    qkv = [torch.randn(2, 2, 37, 16) for _ in range(3)]
    return [
        Model(perceptron, torch.randn(40, 64)),
        Model(sparse, torch.randn(40, 96)),
        Model(Attention(), *qkv),
    ]


EXACT, REDUCED = 1e-6, 1e-4  # a relative error below, and above


@pytest.mark.parametrize("number", range(3))
def test_a_change_of_torch_s_setting_compiles_anew(number: int) -> None:
    model = models()[number]
    assert model.error() < EXACT and model.programs == 1
    for word in ("high", "medium"):
        torch.set_float32_matmul_precision(word)
        assert REDUCED < model.error() < 1e-2 and model.programs == 2
    torch.set_float32_matmul_precision("highest")
    assert model.error() < EXACT and model.programs == 2


@pytest.mark.parametrize("way", ["allow_tf32", "fp32_precision", "of all backends"])
def test_ways_to_set_it(way: str) -> None:
    """Those that torch has besides; after some it raises where it is asked in the old way."""
    model = models()[0]
    matmul = torch.backends.cuda.matmul
    if way == "allow_tf32":
        matmul.allow_tf32 = True
    elif way == "fp32_precision":
        matmul.fp32_precision = "tf32"
    else:
        matmul.fp32_precision = "none"
        torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    assert REDUCED < model.error() < 1e-2
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    matmul.fp32_precision = "ieee"
    assert model.error() < EXACT


def test_gradients() -> None:
    x = torch.randn(40, 64, requires_grad=True, device=DEVICE)
    w = torch.randn(96, 64, requires_grad=True, device=DEVICE)
    grad = torch.randn(40, 96, device=DEVICE)
    exact = grad.double() @ w.detach().double()
    options = {**OPTIONS, "strict": True, "disk_cache": False}
    compiled = torch.compile(F.linear, backend="lazyc", options=options)  # type: ignore[call-overload]
    for word, least, most in (("highest", 0.0, EXACT), ("high", REDUCED, 1e-2)):
        torch.set_float32_matmul_precision(word)
        (found,) = torch.autograd.grad(compiled(x, w), x, grad)
        assert least <= float((found - exact).norm() / exact.norm()) < most
