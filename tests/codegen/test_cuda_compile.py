"""Kernels in CUDA C++ compiled for GPUs that this machine does not have: what the machine code shows."""

from __future__ import annotations

import pytest

from lazyc.codegen.cuda import nvrtc
from lazyc.codegen.cuda.nvrtc import CompiledCuda, compile_cuda
from lazyc.codegen.cuda.sparse_24 import TILES, Tiles, generate
from lazyc.codegen.gpu_target import gpu_target
from lazyc.errors import MissingPackage
from lazyc.ir.loops import LoopNest
from lazyc.ir.sparse_contraction import SparseContraction
from lazyc.ir.types import DType
from tests.codegen.test_triton_contraction import product

ARCHITECTURES = (80, 90, 100)
BF16, F16 = DType.BF16, DType.F16

needs_nvrtc = pytest.mark.skipif(
    nvrtc.version() is None, reason='NVRTC is not installed: pip install "lazyc[cuda]"'
)


def compiled(nest: LoopNest, weight: int, arch: int, tiles: Tiles | None = None) -> CompiledCuda:
    target = gpu_target(f"cuda:sm_{arch}")
    code = generate(SparseContraction(nest, "", weight), "kernel", target, tiles)
    found = compile_cuda(code, target)
    assert found.local_bytes == 0, "registers are spilled"
    assert 0 < found.registers <= target.thread_registers
    assert found.registers * 32 * code.ref.warps <= target.registers, "no block fits"
    assert code.shared_bytes <= target.shared_bytes
    kind = "bf16" if nest.buffers[weight].dtype is BF16 else "f16"
    assert f"mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{kind}" in found.ptx
    return found


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_a_sparse_weight_of_a_linear_layer(arch: int, dtype: DType) -> None:
    nest = product(4096, 4096, 4096, dtype, epilogue=True, transposed=True)
    found = compiled(nest, 1, arch)
    # The other factor and the weight are copied ahead by 128 bits; factors go by ldmatrix.
    assert "cp.async.cg.shared.global" in found.ptx and "cp.async.ca" not in found.ptx
    assert "ldmatrix.sync.aligned.m8n8.x4.shared.b16" in found.ptx


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_sparse_left_factor(arch: int) -> None:
    found = compiled(product(4096, 4096, 4096, BF16, epilogue=True), 0, arch)
    assert "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16" in found.ptx


@needs_nvrtc
@pytest.mark.parametrize("tiles", TILES, ids=str)
def test_all_tiles(tiles: tuple[int, int, int, int]) -> None:
    """With ragged sizes, where a thread loads and rounds elements itself."""
    compiled(product(1000, 1001, 1004, F16, True, transposed=True), 1, 80, Tiles(*tiles, 3))


@needs_nvrtc
def test_the_machine_code_multiplies_sparsely() -> None:
    """HMMA.SP is the instruction of the machine, by NVIDIA's disassembler, which comes with Triton."""
    found = compiled(product(256, 256, 256, F16, transposed=True), 1, 90)
    assert "HMMA.SP" in disassembled(found.cubin)


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
