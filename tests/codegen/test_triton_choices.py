"""Tiles and blocks that a kernel may have: what they are, how they are ranked, and that each is right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
import torch

from lazyc.codegen.base import CodegenError, LaunchRef
from lazyc.codegen.gpu_target import gpu_target
from lazyc.codegen.triton import choices as C
from lazyc.codegen.triton.attention import Attention
from lazyc.codegen.triton.blocks import Blocks
from lazyc.codegen.triton.contraction import Contraction
from lazyc.codegen.triton.cost_model import Work, seconds
from lazyc.codegen.triton.cuda import CudaGenerator
from lazyc.codegen.triton.kernel import alternatives, generate, kernel_for
from lazyc.codegen.triton.live import words_at_once
from lazyc.codegen.triton.score_sums import ScoreSums
from lazyc.codegen.triton.tiles import EXACT_ROWS, Tiles
from lazyc.ir.loops import LoopNest
from lazyc.ir.nest_interp import run_nest
from lazyc.ir.types import DType
from tests.codegen.attention_graphs import Sizes, attention_nests, causal, score_sum_nest
from tests.codegen.harness import gpu, launched, pointwise
from tests.codegen.norms import gradients_of_norms
from tests.codegen.test_reductions import reduce_nest, softmax_nest
from tests.codegen.test_triton_compile import convolution
from tests.codegen.test_triton_contraction import product

F32, BF16 = DType.F32, DType.BF16
TARGETS = [gpu_target(f"sm_{arch}") for arch in (80, 90, 100)]
ROWS = sympy.Symbol("n0", integer=True, positive=True)
NESTS: dict[str, LoopNest] = {
    "product of f32": product(70, 130, 45, F32),
    "product of bf16": product(150, 70, 90, BF16, epilogue=True),
    "product of f32 and bf16": product(40, 70, 50, F32, second=BF16),
    "product of any rows": product(ROWS, 40, 50, BF16),
    "attention": attention_nests(Sizes(140, 140), BF16, causal)[0],
    "gradient of keys": attention_nests(Sizes(70, 70), BF16, causal, backward=True)[1],
    "sum of scores": score_sum_nest(Sizes(70, 140, heads=3), BF16, causal),
    "softmax": softmax_nest(6, 700, "inner"),
    "long rows": reduce_nest("sum", F32, 3, 9000, True, "inner"),
    "columns": reduce_nest("argmax", F32, 70, 90, False, "outer"),
    "pointwise": pointwise("add", [torch.float32] * 2, torch.float32, 3000),
}


@pytest.mark.parametrize("name", NESTS)
def test_every_choice_computes_the_same(name: str, triton_target: str) -> None:
    nest = NESTS[name]
    known = dict.fromkeys(nest.symbols, 33)
    torch.manual_seed(0)
    given = []
    for param in nest.buffers:
        count = param.numel if isinstance(param.numel, int) else int(param.numel.subs(known))
        data = torch.randn(count) / 2 if param.role == "in" else torch.full((count,), 7.0)
        given.append(data.to(param.dtype.torch))
    wanted = [x.clone() for x in given]
    assert run_nest(nest, wanted, known) == 0
    near = 2e-2 if BF16 in {p.dtype for p in nest.buffers} else 1e-4
    on_gpu = triton_target == "cuda"
    target = gpu()[1] if on_gpu else TARGETS[1]
    codes = [generate(nest, "k"), *alternatives(nest, "k", target)]
    assert len({code.choice for code in codes}) == len(codes) >= 3
    for code in codes:
        memory = [x.clone() for x in given]
        kernel = launched(nest, code, "cuda" if on_gpu else "triton")
        assert kernel(*memory, sizes=tuple(known.values())) == 0
        for got, want in zip(memory, wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=near, atol=near, msg=code.choice)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_the_default_is_that_of_the_rules(target: object) -> None:
    """The model is rough: it does not overrule what is checked by machine code."""
    nests = [product(*s, d) for s in ((64, 4096, 4096), (4096,) * 3) for d in (F32, BF16)]
    nests += [convolution(64, 64, 3), softmax_nest(8192, 1024, "inner")]
    nests += [n for w in (64, 128) for n in attention_nests(Sizes(2048, 2048, w), BF16, causal)]
    for nest in nests:
        assert isinstance(target, type(TARGETS[0]))
        code = kernel_for(nest, "k", target)
        assert (code.text, code.choice) == ((first := generate(nest, "k")).text, first.choice)
        assert isinstance(code.ref, LaunchRef)
        assert code.ref.alternatives == len(alternatives(nest, "k", target)) > 0
        assert [c.ref.symbol for c in alternatives(nest, "k", target)][:2] == ["k_1", "k_2"]


def test_a_clear_word_of_the_model_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    nest, target = product(4096, 4096, 4096, BF16), gpu_target("sm_90")
    rule = C.rule_of(C.form_of(nest))
    assert C.choices(C.form_of(nest), target)[0] == rule
    monkeypatch.setattr(C, "_CLEARLY", 1.1)
    first, second, *others = C.choices(C.form_of(nest), target)
    assert first != rule == second and rule not in others and first not in others


@pytest.mark.parametrize("name", ["product of bf16", "attention"])
def test_what_does_not_fit_is_no_choice(name: str) -> None:
    form = C.form_of(NESTS[name])
    rule = C.rule_of(form)
    _, work = C._ways(form, rule, TARGETS[1])
    small = replace(TARGETS[1], shared_bytes=work(rule).shared_bytes - 1)
    assert rule == C.choices(form, TARGETS[1])[0] and seconds(work(rule), small) is None
    found = C.choices(form, small)
    assert found and rule not in found
    assert all(seconds(work(choice), small) is not None for choice in found)
    for none in (replace(small, shared_bytes=1 << 8), replace(small, thread_registers=40)):
        with pytest.raises(CodegenError, match=r"no tile of a .* fits sm_90: .* shared memory"):
            C.choices(form, none)


def test_blocks_may_spill() -> None:
    form = C.form_of(NESTS["pointwise"])
    assert C.choices(form, replace(TARGETS[1], thread_registers=1)) == (C.rule_of(form),)


def test_single_precision_keeps_to_tiles_that_are_exact() -> None:
    """For sm_100 Triton would multiply larger ones of widened factors by TF32 (EXACT_ROWS)."""
    nest = product(512, 512, 512, F32, second=BF16)
    for target in TARGETS:
        found = C.choices(C.form_of(nest), target)
        assert len(found) > 2 and all(isinstance(t, Tiles) and t.rows < EXACT_ROWS for t in found)
    for nest in attention_nests(Sizes(2048, 2048, 64), F32, causal):
        found = C.choices(C.form_of(nest), TARGETS[2])
        assert len(found) > 2 and all(isinstance(t, Tiles) and t.rows < EXACT_ROWS for t in found)


def test_forms() -> None:
    assert isinstance(C.form_of(NESTS["attention"]), Attention)
    assert isinstance(C.form_of(NESTS["sum of scores"]), ScoreSums)
    assert isinstance(C.form_of(NESTS["product of bf16"]), Contraction)
    found = C.choices(C.form_of(NESTS["softmax"]), TARGETS[0])
    assert all(isinstance(b, Blocks) for b in found)


WORK = Work(
    programs=132,
    warps=8,
    flops=1e6,
    flops_per_second=TARGETS[1].product_costs.half_flops,
    nbytes=1e4,
    load_bytes=16,
    waits=1,
    shared_bytes=100 << 10,
    registers=128,
    memory_bytes=1e5,
)


def time_of(**changes: float) -> float:
    found = seconds(replace(WORK, **changes), TARGETS[1])  # type: ignore[arg-type]  # ints are floats
    assert found is not None
    return found


def test_the_model_counts_waves_and_what_a_wave_is_bound_by() -> None:
    base = time_of(flops=1e9)
    assert time_of(flops=1e9, programs=133) > 1.5 * base  # one more wave
    assert time_of(flops=2e9) > 1.9 * base
    # So many loads take longer than what they bring takes from the cache.
    assert time_of(nbytes=1e8, load_bytes=1) > 1.2 * time_of(nbytes=1e8)
    assert time_of(waits=100) > 10 * time_of()
    # Two blocks hide each other's waits, if they fit.
    assert time_of(programs=264, waits=100) < 1.1 * time_of(waits=100)
    assert time_of(programs=264, waits=100, shared_bytes=200 << 10) > 1.9 * time_of(waits=100)
    assert time_of(memory_bytes=1e9) >= 1e9 / TARGETS[1].product_costs.bytes_per_second


@pytest.mark.parametrize("changes", [{"shared_bytes": 228 << 10}, {"registers": 256}], ids=str)
def test_what_does_not_fit_has_no_time(changes: dict[str, int]) -> None:
    assert seconds(replace(WORK, **changes), TARGETS[1]) is None


@pytest.mark.parametrize(
    ("nest", "iterations", "words"),
    [
        (softmax_nest(8, 700, "inner"), 1024, 1),  # exp(x - max), which the last stage reads again
        (softmax_nest(8, 700, "inner"), 256, 1),  # a running result
        (reduce_nest("sum", F32, 3, 700, True, "inner"), 1024, 0),
        (reduce_nest("sum", F32, 3, 700, True, "inner"), 256, 1),
        (reduce_nest("sum", F32, 3, 9000, True, "inner"), 128, 2),  # and what rounding took from it
        (reduce_nest("sum", DType.F64, 3, 700, True, "inner"), 256, 2),
        (reduce_nest("argmax", F32, 3, 700, True, "inner"), 256, 4),
    ],
)
def test_words_that_a_block_holds_at_once(nest: LoopNest, iterations: int, words: int) -> None:
    assert words_at_once(nest, [iterations if s.axes else 1 for s in nest.stages]) == words


def test_blocks_that_would_spill_are_no_choice() -> None:
    """Of seven sums by 32 elements of a thread and two values to store."""
    nest, target = gradients_of_norms(256, 6272), gpu_target("sm_100")
    _, work = C._ways(nest, C.rule_of(nest), target)
    most = target.thread_registers
    wide = Blocks(2, tuple(4096 if s.axes else 1 for s in nest.stages), 8)
    assert work(wide).registers > most and seconds(work(wide), target) is None
    found = C.choices(nest, target)
    assert found[0] == C.rule_of(nest) and wide not in found
    assert all(work(choice).registers <= most for choice in found)


def test_code_that_spills_is_no_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = CudaGenerator(gpu_target("sm_90"))
    codes = generator.alternatives(pointwise("add", [torch.float32] * 2, torch.float32, 4096), "k")
    assert generator.compile_alternative(codes[0]) is not None
    from lazyc.codegen.triton import cuda

    made = cuda.compile_kernel(codes[0], gpu_target("sm_90"))
    for changes in ({"local_bytes": 8}, {"scratch_bytes": 8}, {"shared_bytes": 1 << 20}):
        worse = replace(made, **changes)
        monkeypatch.setattr(cuda, "compile_kernel", lambda code, target, worse=worse: worse)
        assert generator.compile_alternative(codes[0]) is None
