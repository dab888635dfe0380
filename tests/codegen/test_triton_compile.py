"""Kernels compiled for GPUs that this machine does not have: what the machine code shows."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import sympy
import torch
from triton.backends.nvidia.compiler import get_ptxas

import lazyc
from lazyc.backend import EVENTS
from lazyc.codegen.base import KernelCode, LaunchRef
from lazyc.codegen.cuda import nvrtc
from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton import compile as compile_module
from lazyc.codegen.triton.blocks import Blocks
from lazyc.codegen.triton.compile import Compiled, compile_kernel
from lazyc.codegen.triton.contraction import Contraction
from lazyc.codegen.triton.kernel import generate, kernel_for
from lazyc.codegen.triton.live import words_at_once
from lazyc.codegen.triton.loop_kernel import loop_kernel
from lazyc.errors import ConfigError
from lazyc.ir.graph import Graph, Node
from lazyc.ir.loops import LoopNest
from lazyc.ir.program import KernelStep, Program
from lazyc.ir.types import DType
from lazyc.kernel_check import machine_facts, problems
from lazyc.passes.manager import run_passes
from lazyc.passes.pipeline import pipeline
from lazyc.passes.schedule import schedule
from lazyc.report import events as E
from tests.codegen.attention_graphs import Sizes, attention_nests, causal, score_sum_nest
from tests.codegen.harness import pointwise
from tests.codegen.norms import gradients_of_norms
from tests.codegen.test_reductions import softmax_nest
from tests.codegen.test_triton_contraction import product
from tests.frontend.trace import graph_of
from tests.passes.build import Make, kernels
from tests.passes.test_convolution import conv

ARCHITECTURES = (80, 90, 100)


def compiled(nest: LoopNest, arch: int) -> Compiled:
    target = gpu_target(f"cuda:sm_{arch}")
    found = compile_kernel(generate(nest, "kernel"), target)
    assert found.spilled_bytes == 0, "registers are spilled"
    assert 0 < found.registers <= target.thread_registers
    assert found.shared_bytes <= target.shared_bytes
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows(arch: int) -> None:
    loads = compiled(softmax_nest(8192, 1024, "inner"), arch).loads
    assert loads == {"ld.global.v4.b32"}, "not all loads are of 128 bits"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("count", "norms"), [(6272, 2), (6272, 3), (25088, 3)])
def test_reductions_with_many_results_fit_registers(arch: int, count: int, norms: int) -> None:
    nest, target = gradients_of_norms(256, count, norms), gpu_target(f"sm_{arch}")
    found = compile_kernel(kernel_for(nest, "kernel", target), target)
    assert found.spilled_bytes == 0 < found.registers


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("points", "step", "warps"), [(2, 4096, 8), (1, 4096, 8), (1, 8192, 8), (1, 8192, 16)]
)
def test_registers_of_a_reduction_are_counted(
    arch: int, points: int, step: int, warps: int
) -> None:
    """What is counted is about what spills beyond what a thread may have, and less than what it takes otherwise."""
    nest, target = gradients_of_norms(256, 6272), gpu_target(f"sm_{arch}")
    blocks = Blocks(points, tuple(step if s.axes else 1 for s in nest.stages), warps)
    counted = words_at_once(nest, blocks.iterations) * points * step / (32 * warps)
    found = compile_module._compile(loop_kernel(nest, "kernel", blocks), target, {})
    taken = found.registers + found.spilled_bytes / 4
    assert counted < taken < counted + 80
    assert (found.spilled_bytes > 0) is (counted > target.thread_registers)


def weighted(sin: bool) -> LoopNest:
    """``softmax(f(x)) * y`` over rows of 8192."""
    b = Make()
    x, y = b.input(64, 8192), b.input(64, 8192)
    z = b.emit("sin", x) if sin else b.emit("mul", x, y)
    shown = b.emit("exp", b.sub(z, b.reduce("max", z, 1, keepdim=True)))
    weights = b.div(shown, b.reduce("sum", shown, 1, keepdim=True))
    graph = b.outputs(b.emit("mul", weights, y))
    program = schedule(run_passes(graph, pipeline(True, True), verify=True)[-1].graph)
    (step,) = kernels(program)
    return program.nests[step.nest]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("sin", "registers", "spills"),
    [(False, 255, False), (True, 255, False), (False, 96, True), (True, 96, True)],
)
def test_arrays_of_a_kernel_are_no_spills(
    arch: int, sin: bool, registers: int, spills: bool, tmp_path: Path
) -> None:
    """sin keeps an array in local memory. What is a spill is what the assembler says of the same PTX."""
    nest = weighted(sin)
    blocks = Blocks(1, tuple(8192 if s.axes else 1 for s in nest.stages), 4)
    code, target = loop_kernel(nest, "kernel", blocks), gpu_target(f"sm_{arch}")
    found = compile_module._compile(code, target, {"maxnreg": registers})
    assert (found.array_bytes > 0) is sin and found.local_bytes >= found.array_bytes
    assert (found.spilled_bytes > 0) is spills
    source = tmp_path / "kernel.ptx"
    source.write_text(found.ptx)
    name = re.search(r"\.target (\w+)", found.ptx)
    assert name is not None
    command = [
        get_ptxas(arch).path,
        "-v",
        f"--gpu-name={name[1]}",
        source,
        "-o",
        tmp_path / "cubin",
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (stored,) = re.findall(r"(\d+) bytes spill stores", told)
    assert (int(stored) > 0) is spills, told


@pytest.mark.parametrize("registers", [32, 255])
@pytest.mark.skipif(nvrtc.version() is None, reason="NVRTC is not installed")
def test_arrays_of_a_kernel_in_cuda_are_no_spills(registers: int) -> None:
    text = f"""
extern "C" __global__ __launch_bounds__(256, {65536 // 256 // registers}) void kernel(float* x) {{
    float v[64];
    #pragma unroll
    for (int i = 0; i < 64; ++i) v[i] = x[i * 256 + threadIdx.x];
    float sum = 0.0f;
    for (int i = 0; i < 8; ++i) sum += sinf(v[i] * x[i]);
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 64; ++i) x[i * 256 + threadIdx.x] = v[i] + v[63 - i] * sum;
}}"""
    code = KernelCode(LaunchRef("kernel", 1, 1, (), 8), text, ())
    found = nvrtc._compile(code, gpu_target("sm_90"), ())
    assert found.array_bytes > 0 and (found.spilled_bytes > 0) is (registers == 32)


def test_a_kernel_without_spills_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Compiled] = []
    real = compile_module._compile
    monkeypatch.setattr(
        compile_module, "_compile", lambda *args: made.append(real(*args)) or made[-1]
    )
    nest = pointwise("sin", [torch.float32], torch.float32, 4096)
    found = compile_kernel(generate(nest, "kernel"), gpu_target("sm_90"))
    assert made == [found] and found.local_bytes > found.spilled_bytes == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_use_tensor_cores(arch: int) -> None:
    found = compiled(product(4096, 4096, 4096, DType.BF16, epilogue=True), arch)
    assert gpu_target(f"sm_{arch}").tensor_cores in found.tensor_cores
    assert "cp.async.cg.shared.global" in found.loads, "factors are not loaded ahead"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_products_of_bytes_use_tensor_cores(arch: int) -> None:
    """``wgmma`` where it multiplies bytes; Triton has no ``tcgen05`` for them."""
    nest = product(4096, 4096, 4096, DType.I8, epilogue=True, transposed=True)
    found = compiled(nest, arch)
    assert ("wgmma" if arch == 90 else "mma") in found.tensor_cores
    assert found.copy_bits == {128}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bytes_that_lie_along_columns_are_copied_by_eight(arch: int) -> None:
    """There Triton has a rule for eight elements; half types of the same layout are copied by 128 bits."""
    target = gpu_target(f"sm_{arch}")
    for dtype, least in ((DType.I8, 64), (DType.BF16, 128)):
        code = generate(product(4096, 4096, 4096, dtype), "kernel")
        assert code.products is not None and code.products.load_bits == least
        facts = machine_facts(code, target)
        assert problems(code, facts, target) == ()
        assert min(facts.copy_bits) == (128 if arch == 90 else least)


def convolution(channels: int, outputs: int, kernel: int, stride: int = 1) -> LoopNest:
    """A convolution in bf16 of 8 images of 56 x 56 with bias, residual and relu, channels last."""
    b = Make()

    def image(*shape: int) -> Node:
        _, c, h, w = shape
        return b.input(*shape, dtype=DType.BF16, strides=(c * h * w, 1, w * c, c))

    x = image(8, channels, 56, 56)
    w = b.input(outputs, channels, kernel, kernel, dtype=DType.BF16, parameter=True)
    bias = b.input(outputs, dtype=DType.BF16, parameter=True)
    y = conv(b, x, w, bias, stride=stride, padding=kernel // 2)
    residual = image(*y.shape)
    wide = b.emit("add", b.cast(y, DType.F32), b.cast(residual, DType.F32))
    out = b.cast(b.maximum(wide, 0.0), DType.BF16)
    graph = b.outputs(out, strides=[residual.attrs.strides])
    program = schedule(run_passes(graph, pipeline(True, True), verify=True)[-1].graph)
    (step,) = program.steps
    assert isinstance(step, KernelStep)
    return program.nests[step.nest]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride"),
    [(64, 64, 3, 1), (128, 256, 3, 2), (40, 64, 3, 1), (64, 256, 1, 2)],
)
def test_convolutions_use_tensor_cores(
    arch: int, channels: int, outputs: int, kernel: int, stride: int
) -> None:
    """The factors are loaded by 128 bits, masks of the border and all; also where a tile of the loop goes
    across channels (40)."""
    nest = convolution(channels, outputs, kernel, stride)
    products = generate(nest, "kernel").products
    assert products is not None and products.aligned
    found = compiled(nest, arch)
    assert gpu_target(f"sm_{arch}").tensor_cores in found.tensor_cores
    assert (found.copy_bits or found.load_bits - {32}) == {128}  # 32: the bias
    assert bool(found.copy_bits) == (kernel > 1), "factors are not loaded ahead"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_first_convolution_fits_registers(arch: int) -> None:
    """Of three channels, each of which is loaded by an address of its own."""
    found = compiled(convolution(3, 64, 7, 2), arch)
    assert gpu_target(f"sm_{arch}").tensor_cores in found.tensor_cores


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_launch_passes_what_the_machine_code_takes(arch: int) -> None:
    """Pointers, sizes, the error word and two kinds of memory that Triton may want: 8 bytes each, which is
    what the driver's records pass (runtime/binding.py). The threads are those of the warps."""
    rows = sympy.Symbol("n0", integer=True, positive=True)
    code = generate(product(rows, 512, 256, DType.BF16), "kernel")
    made = compile_kernel(code, gpu_target(f"sm_{arch}"))
    assert isinstance(code.ref, LaunchRef) and code.ref.sizes
    head = made.ptx[made.ptx.index(".entry kernel(") : made.ptx.index("{")]
    params = re.findall(r"\.param \.(\w+)", head)
    assert params == ["u64"] * (len(code.params) + len(code.ref.sizes) + 3)
    assert re.search(rf"\.reqntid {32 * made.warps}\b", head)
    assert made.scratch_bytes == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_attention_fits_registers_and_shared_memory(
    arch: int, width: int, backward: bool, drop: float
) -> None:
    sizes = Sizes(2048, 2048, width, drop=drop)
    nests = attention_nests(sizes, DType.BF16, causal, backward)
    assert len(nests) == (2 if backward else 1)
    for nest in nests:
        found = compiled(nest, arch)
        assert gpu_target(f"sm_{arch}").tensor_cores in found.tensor_cores
        assert "cp.async.cg.shared.global" in found.loads, "factors are not loaded ahead"


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("backward", [False, True])
def test_attention_in_single_precision_fits_registers(width: int, backward: bool) -> None:
    for nest in attention_nests(Sizes(2048, 2048, width), DType.F32, causal, backward):
        for arch in (90, 100):
            assert compiled(nest, arch).tensor_cores == set()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_sums_of_scores_fit_registers_and_shared_memory(arch: int, width: int, drop: float) -> None:
    found = compiled(score_sum_nest(Sizes(1024, 1024, width, drop=drop), DType.BF16, causal), arch)
    assert gpu_target(f"sm_{arch}").tensor_cores in found.tensor_cores
    wide = "ld.global.v4.b32" if width == 256 else "cp.async.cg.shared.global"
    assert wide in found.loads, "factors are not loaded in vectors"


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_sums_of_scores_by_tf32_fit_registers(arch: int, width: int) -> None:
    nest, target = score_sum_nest(Sizes(1024, 1024, width), DType.F32, causal), f"cuda:sm_{arch}"
    target = replace(gpu_target(target), float32="tf32")
    found = compile_kernel(kernel_for(nest, "kernel", target), target)
    assert found.spilled_bytes == 0 and target.tensor_cores in found.tensor_cores


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("arch", [90, 100])
def test_sums_of_scores_in_single_precision_fit_registers(arch: int, width: int) -> None:
    nest = score_sum_nest(Sizes(1024, 1024, width), DType.F32, causal)
    assert compiled(nest, arch).tensor_cores == set()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_that_are_looked_up_are_copied_ahead(arch: int) -> None:
    """``table[index] @ w``: by 128 bits, as those of any other factor."""

    def function(table: torch.Tensor, index: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return table[index] @ w

    half = torch.bfloat16
    table, w = torch.empty(50304, 768, dtype=half), torch.empty(768, 768, dtype=half)
    graph = graph_of(function, table, torch.zeros(4096, dtype=torch.int64), w, mode="fake")
    program = schedule(run_passes(graph, pipeline(True, True), verify=True)[-1].graph)
    (step,) = kernels(program)
    found = compiled(program.nests[step.nest], arch)
    assert found.copy_bits == {128} and gpu_target(f"sm_{arch}").tensor_cores in found.tensor_cores


def by_a_weight(
    arch: int, columns: int, dtype: DType, disabled: tuple[str, ...]
) -> tuple[Graph, Program]:
    """``x @ w``, [1024, 768] @ [768, columns], for a GPU."""
    b = Make()
    x = b.input(1024, 768, dtype=dtype)
    w = b.input(768, columns, dtype=dtype, parameter=True)
    graph = b.outputs(b.emit("matmul", x, w))
    costs = gpu_target(f"sm_{arch}").product_costs
    made = run_passes(graph, pipeline(True, True, costs, disabled), verify=True)[-1].graph
    return made, schedule(made)


@pytest.mark.parametrize(
    ("arch", "columns", "padded_to", "dtype"),
    [
        *((arch, 50257, 50304, DType.BF16) for arch in ARCHITECTURES),
        (90, 4001, 4032, DType.F16),
        (90, 131, 136, DType.BF16),
    ],
    ids=str,
)
def test_an_odd_vocabulary_is_loaded_in_vectors(
    arch: int, columns: int, padded_to: int, dtype: DType
) -> None:
    """With padding all loads from memory are of 128 bits, without it those of the weight are of 16."""
    graph, program = by_a_weight(arch, columns, dtype, ())
    (decision,) = (d for d in graph.decisions if d.by == "padding")
    assert f"n {columns} -> {padded_to}" in decision.what and decision.bytes_copied == 0
    (step,) = kernels(program)
    padded = compiled(program.nests[step.nest], arch)
    assert {x for x in padded.loads if "group" not in x} == {"cp.async.cg.shared.global"}
    assert padded.tensor_cores

    graph, program = by_a_weight(arch, columns, dtype, ("padding",))
    assert all(d.by != "padding" for d in graph.decisions) and not program.packed
    (step,) = kernels(program)
    assert "ld.global.b16" in compiled(program.nests[step.nest], arch).loads


def test_a_backward_pass_over_an_odd_vocabulary_is_loaded_in_vectors() -> None:
    """The gradient of the logits is written padded by its kernel, and both products load vectors."""

    target = gpu_target("sm_90")

    def loads(disabled: tuple[str, ...]) -> list[set[str]]:
        b = Make()
        logits = b.input(8192, 50257, dtype=DType.BF16)
        w, x = (b.input(n, 768, dtype=DType.BF16) for n in (50257, 8192))
        grad = b.emit("exp", b.emit("mul", b.emit("exp", logits), logits))
        graph = b.outputs(b.emit("matmul", grad, w), b.emit("matmul", b.permute(grad, (1, 0)), x))
        made = run_passes(graph, pipeline(True, True, target.product_costs, disabled), verify=True)[
            -1
        ].graph
        program = schedule(made)
        nests = [program.nests[s.nest] for s in kernels(program)]
        products = [n for n in nests if Contraction.find(n) is not None]
        assert len(products) == 2
        found = (compile_kernel(generate(n, "kernel"), target) for n in products)
        return [{x for x in f.loads if "group" not in x} for f in found]

    assert loads(()) == [{"cp.async.cg.shared.global"}] * 2
    assert loads(("padding",)) != [{"cp.async.cg.shared.global"}] * 2


def test_a_computed_factor_goes_to_the_tensor_cores() -> None:
    """It is stored in its own half type, not in the f32 that it is widened to."""
    b = Make()
    x, w = b.input(512, 256, dtype=DType.BF16), b.input(256, 512, dtype=DType.BF16)
    wide = b.cast(x, DType.F32)
    factor = b.cast(b.emit("exp", b.emit("mul", b.emit("exp", wide), wide)), DType.BF16)
    program = schedule(run_passes(b.outputs(b.emit("matmul", factor, w)), pipeline(True, True), True)[-1].graph)  # fmt: skip
    assert [x.dtype for x in program.buffers if x.kind == "temp"] == [DType.BF16]
    first, second = (program.nests[s.nest] for s in kernels(program))
    assert compiled(second, 90).tensor_cores == {"wgmma"} and Contraction.find(first) is None


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("second", [DType.F32, DType.BF16])
@pytest.mark.parametrize("depth", [512, 500])
def test_single_precision_is_not_cut_to_half(arch: int, second: DType, depth: int) -> None:
    """Whether a factor is as it was loaded, was widened, or is masked beyond the depth."""
    found = compiled(product(512, 512, depth, second=second), arch)
    assert found.tensor_cores == set()
    if depth == 512:
        assert found.copy_bits | found.load_bits == {128}


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
