"""Kernels in CUDA C++ compiled for GPUs that this machine does not have: what the machine code shows."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import lazyc
from lazyc.backend import EVENTS
from lazyc.codegen.base import LaunchRef
from lazyc.codegen.cuda import nvrtc
from lazyc.codegen.cuda.nvrtc import CompiledCuda, compile_cuda
from lazyc.codegen.cuda.sparse_24 import TILES, Tiles, generate
from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton.cubin import DeviceCode
from lazyc.codegen.triton.cuda import CudaGenerator
from lazyc.codegen.triton.libcuda import CudaDevice
from lazyc.errors import MissingPackage, MissingPackageWarning
from lazyc.ir.loops import LoopNest
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.types import DType
from lazyc.kernel_check import machine_facts, problems
from lazyc.report import events as E
from tests.codegen.test_libcuda import StandInLibrary
from tests.codegen.test_triton_contraction import product
from tests.models.test_triton_int8 import Int8Linear

ARCHITECTURES = (80, 90, 100)
BF16, F16, I8 = DType.BF16, DType.F16, DType.I8
INSTRUCTIONS = {
    F16: "m16n8k32.row.col.f32.f16.f16.f32",
    BF16: "m16n8k32.row.col.f32.bf16.bf16.f32",
    I8: "m16n8k64.row.col.s32.s8.s8.s32",
}

needs_nvrtc = pytest.mark.skipif(
    nvrtc.version() is None, reason='NVRTC is not installed: pip install "lazyc[cuda]"'
)


def compiled(nest: LoopNest, weight: int, arch: int, tiles: Tiles | None = None) -> CompiledCuda:
    target = gpu_target(f"cuda:sm_{arch}")
    code = generate(SparseContraction(nest, "", weight), "kernel", target, tiles)
    found = compile_cuda(code, target)
    assert found.spilled_bytes == 0, "registers are spilled"
    assert 0 < found.registers <= target.thread_registers
    assert found.registers * 32 * code.ref.warps <= target.registers, "no block fits"
    assert code.shared_bytes <= target.shared_bytes
    facts = machine_facts(code, target)
    assert problems(code, facts, target) == () and facts.tensor_cores == ("mma.sp",)
    instruction = INSTRUCTIONS[nest.buffers[weight].dtype]
    assert f"mma.sp::ordered_metadata.sync.aligned.{instruction}" in found.ptx
    return found


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", INSTRUCTIONS)
def test_a_sparse_weight_of_a_linear_layer(arch: int, dtype: DType) -> None:
    nest = product(4096, 4096, 4096, dtype, epilogue=True, transposed=True)
    found = compiled(nest, 1, arch)
    # The other factor and the weight are copied ahead by 128 bits; factors go by ldmatrix.
    assert "cp.async.cg.shared.global" in found.ptx and "cp.async.ca" not in found.ptx
    assert "ldmatrix.sync.aligned.m8n8.x4.shared.b16" in found.ptx


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [BF16, I8])
def test_a_sparse_left_factor(arch: int, dtype: DType) -> None:
    found = compiled(product(4096, 4096, 4096, dtype, epilogue=True), 0, arch)
    assert "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16" in found.ptx


@needs_nvrtc
@pytest.mark.parametrize("dtype", [F16, I8])
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_all_tiles(tiles: tuple[int, int, int, int], dtype: DType) -> None:
    """With ragged sizes, where a thread loads and rounds elements itself."""
    nest = product(1000, 1001, 1004, dtype, epilogue=True, transposed=True)
    compiled(nest, 1, 80, Tiles(*tiles, 3))


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "instruction"), [(F16, "HMMA.SP"), (I8, "IMMA.SP")])
def test_the_machine_code_multiplies_sparsely(dtype: DType, instruction: str, arch: int) -> None:
    """The instruction of the machine, by NVIDIA's disassembler, which comes with Triton."""
    found = compiled(product(256, 256, 256, dtype, transposed=True), 1, arch)
    assert instruction in disassembled(found.cubin)


def disassembled(cubin: bytes) -> str:
    import subprocess
    import tempfile
    from pathlib import Path

    import triton

    program = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    if not program.exists():
        pytest.skip("there is no nvdisasm beside Triton")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [str(program), "--print-code", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_without_nvrtc_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: None)
    target = gpu_target("sm_80")
    nest = product(64, 64, 64, F16, transposed=True)
    code = generate(SparseContraction(nest, "", 1), "kernel", target)
    with pytest.raises(MissingPackage, match=r'pip install "lazyc\[cuda\]"'):
        compile_cuda(code, target)


# --- whole models


@pytest.fixture
def heard() -> Iterator[list[E.Event]]:
    events: list[E.Event] = []
    stop = EVENTS.subscribe(events.append)
    yield events
    stop()


def run_sparse_linear(target: str) -> None:
    """Compiles a linear layer with a 2:4 weight, and runs it where that is possible."""
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU()).half().eval()
    lazyc.sparse.prune_24(model)
    options = {"target": target, "disk_cache": False}
    compiled = torch.compile(model, backend="lazyc", dynamic=False, options=options)
    x = torch.randn(32, 64).half()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=2e-3, atol=2e-3)


def choices(heard: list[E.Event]) -> list[E.SparseProduct]:
    return [e for e in heard if isinstance(e, E.SparseProduct)]


@needs_nvrtc
def test_a_model_gets_a_sparse_kernel_beside_the_dense_one(heard: list[E.Event]) -> None:
    run_sparse_linear("cuda:sm_90")
    (choice,) = choices(heard)
    assert choice.is_used and choice.sizes == ("32", "48", "64")
    assert sum(isinstance(e, E.KernelCompiled) for e in heard) == 2


@needs_nvrtc
def test_so_does_a_model_of_bytes(heard: list[E.Event]) -> None:
    torch.compiler.reset()
    model = Int8Linear(128, 48).eval()
    lazyc.sparse.prune_24(model.get_buffer("weight"))
    options = {"target": "cuda:sm_90", "disk_cache": False}
    compiled = torch.compile(model, backend="lazyc", dynamic=False, options=options)
    x = torch.randn(32, 128)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    (choice,) = choices(heard)
    assert choice.is_used and choice.sizes == ("32", "48", "128")


@needs_nvrtc
def test_kernels_are_loaded_beside_those_of_triton() -> None:
    """Launches have the block and the shared memory of the kernel in CUDA C++."""
    nest = product(32, 256, 128, DType.F16, transposed=True)
    source = SparseContraction(nest, "", 1)
    library = StandInLibrary()
    generator = CudaGenerator(gpu_target("sm_80"), CudaDevice(library, 0))
    assert ("2:4", DType.F16) in generator.sparse_products
    code = generator.generate(source, "lazyc_sparse")
    assert isinstance(code.ref, LaunchRef) and code.is_cuda
    data = generator.compile(code)
    kernel = generator.load({code.ref: data})["lazyc_sparse"]
    assert (kernel.threads, kernel.shared_bytes) == (32 * code.ref.warps, code.shared_bytes)
    assert kernel.programs == code.ref.programs and kernel.points == 1
    given = dict(library.calls)
    assert given["cuModuleGetFunction"][2].value == b"lazyc_sparse"
    cubin, image = (
        DeviceCode.load(data).cubin,
        ctypes.cast(given["cuModuleLoadData"][1], ctypes.c_void_p),
    )
    assert image.value is not None and ctypes.string_at(image.value, len(cubin)) == cubin


def test_triton_s_interpreter_has_none(heard: list[E.Event]) -> None:
    run_sparse_linear("triton-interpret")
    (choice,) = choices(heard)
    assert not choice.is_used and choice.reason == "no kernel for f16 weights on this target"


def test_without_nvrtc_products_are_dense_and_say_so(
    heard: list[E.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: None)
    with pytest.warns(MissingPackageWarning, match=r'pip install "lazyc\[cuda\]"'):
        run_sparse_linear("cuda:sm_80")
    (choice,) = choices(heard)
    assert not choice.is_used and choice.reason == "NVRTC is not installed"
    assert sum(isinstance(e, E.KernelCompiled) for e in heard) == 1
