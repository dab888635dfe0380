"""Whole models through the kernels of a GPU, run by Triton's interpreter on tensors of the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import lazyc
from lazyc.backend import EVENTS, executables
from lazyc.codegen.base import DeviceKernel, LaunchedKernel
from lazyc.codegen.triton.contraction import Contraction
from lazyc.ir.program import EagerStep, GemmStep, KernelStep
from lazyc.report import events as E
from tests.gpu import DEVICE, OPTIONS, on_device, only_interpreted

pytestmark = pytest.mark.gpu


class Block(torch.nn.Module):
    """A transformer block; x: (batch, length, width)."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.proj = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, 2 * width)
        self.down = torch.nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = [t.unflatten(-1, (self.heads, -1)) for t in self.qkv(self.norms[0](x)).chunk(3, -1)]
        q, k, v = (t.transpose(1, 2) for t in split)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Classifier(torch.nn.Module):
    """Words to a class: embedding, mean over the words, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 24)
        self.hidden = torch.nn.Linear(24, 32)
        self.out = torch.nn.Linear(32, 5)

    def forward(self, words: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.hidden(self.embedding(words).mean(1)))
        return F.cross_entropy(self.out(x), label)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def check(module: torch.nn.Module, args: tuple, train: bool, eager: tuple[str, ...] = ()) -> None:
    """Results, and gradients of the parameters, are eager's to single precision; nothing but ``eager``
    is left to eager, and no matrix product to a library."""
    module, args = on_device(module), tuple(map(on_device, args))
    lazyc.metrics.reset()
    before = set(map(id, executables()))
    compiled = torch.compile(module, backend="lazyc", options=OPTIONS)

    def results(run: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        module.zero_grad()
        with torch.set_grad_enabled(train):
            out = run(*args)
        if not train:
            return [out]
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in module.parameters())]  # type: ignore[union-attr]

    for got, want in zip(results(compiled), results(module), strict=True):
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * scale)
    made = [e for e in executables() if id(e) not in before]
    assert made
    for executable in made:
        program = executable.program
        assert not [s for s in program.steps if isinstance(s, GemmStep)]
        left = {s.target for s in program.steps if isinstance(s, EagerStep)}
        assert left <= set(eager), left
        kernels = [s for s in program.steps if isinstance(s, KernelStep)]
        assert kernels
        kind = LaunchedKernel if DEVICE == "cpu" else DeviceKernel
        assert all(isinstance(executable._kernels[s.nest], kind) for s in kernels)


@pytest.fixture
def nothing_left_to_eager() -> Iterator[None]:
    """Graphs were compiled, and nothing ran in eager instead."""
    lazyc.metrics.reset()
    yield
    now = lazyc.metrics.snapshot()
    assert now["graphs_compiled"] and now["kernel_calls"] and not now["fallbacks"]


def test_transformer_block() -> None:
    check(Block(), (torch.randn(2, 16, 32),), train=False)


def test_transformer_block_is_trained() -> None:
    check(Block(), (torch.randn(1, 16, 32),), train=True)


def test_classifier_is_trained() -> None:
    check(Classifier(), (torch.randint(0, 50, (16, 6)), torch.randint(0, 5, (16,))), train=True)


def test_convolutions() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3, padding=1, groups=16), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    ).eval()  # fmt: skip
    check(model, (torch.randn(1, 3, 12, 12),), train=False)


class Residual(torch.nn.Module):
    """The basic block of a ResNet (He et al. 2015) that halves the image, after a stem with a pool."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        wide = 2 * channels
        self.stem = torch.nn.Conv2d(3, channels, 5, stride=2, padding=2, bias=False)
        self.first = torch.nn.Conv2d(channels, wide, 3, stride=2, padding=1, bias=False)
        self.second = torch.nn.Conv2d(wide, wide, 3, padding=2, dilation=2, bias=False)
        self.short = torch.nn.Conv2d(channels, wide, 1, stride=2)
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(c) for c in (channels, wide, wide))
        for norm in self.norms:
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(torch.relu(self.norms[0](self.stem(x))), 2)
        y = torch.relu(self.norms[1](self.first(x)))
        return torch.relu(self.norms[2](self.second(y)) + self.short(x)).mean((2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_residual_block(dtype: torch.dtype, nothing_left_to_eager: None) -> None:
    """Convolutions are kernels with what follows them, as exact as eager's."""
    model, x = on_device(Residual().eval()), torch.randn(2, 3, 30, 30, device=DEVICE)
    exact = copy.deepcopy(model).double()(x.double())
    before = set(map(id, executables()))
    model, x = model.to(dtype), x.to(dtype)
    with torch.no_grad():
        got = torch.compile(model, backend="lazyc", options=OPTIONS)(x)
        eager = model(x)
    least = 1e-6 if dtype is torch.float32 else 0.0
    error, allowed = (got.double() - exact).abs().max(), (eager.double() - exact).abs().max()
    assert got.dtype is dtype and error <= 3 * allowed + least
    (made,) = (e for e in executables() if id(e) not in before)
    nests = [made.program.nests[s.nest] for s in made.program.steps if isinstance(s, KernelStep)]
    assert len(nests) == len(made.program.steps), "something is left to eager"
    assert sum(Contraction.find(n) is not None for n in nests) == 4


def test_a_residual_block_is_trained() -> None:
    """Gradients too: of images, with stride, dilation and 1 x 1 kernels, and of weights."""
    check(Residual(8).train(), (torch.randn(2, 3, 22, 22),), train=True)


def test_a_transposed_convolution_is_trained() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv1d(3, 8, 3), torch.nn.ReLU(),
        torch.nn.ConvTranspose1d(8, 16, 5, stride=2, padding=1, output_padding=1),
    )  # fmt: skip
    check(model, (torch.randn(2, 3, 14),), train=True)


def test_a_batch_that_changes(nothing_left_to_eager: None) -> None:
    model = on_device(torch.nn.Conv2d(8, 16, 3, padding=1).eval())
    compiled = torch.compile(model, backend="lazyc", options=OPTIONS)
    with torch.no_grad():
        for batch in (2, 3, 5):
            x = torch.randn(batch, 8, 7, 6, device=DEVICE)
            torch._dynamo.mark_dynamic(x, 0)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


def test_half_precision(nothing_left_to_eager: None) -> None:
    model = Block().to(DEVICE, torch.bfloat16)
    x = torch.randn(1, 16, 32).to(DEVICE, torch.bfloat16)
    compiled = torch.compile(model, backend="lazyc", options=OPTIONS)
    exact = on_device(Block())
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        got, eager, want = compiled(x), model(x), exact.double()(x.double())
    assert got.dtype is torch.bfloat16
    assert (got.double() - want).abs().max() <= 3 * (eager.double() - want).abs().max()


class Head(torch.nn.Module):
    """Logits of an odd vocabulary, by a weight as GPT-2's Conv1D has it: (width, vocabulary)."""

    def __init__(self, vocabulary: int = 131) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, vocabulary))
        self.bias = torch.nn.Parameter(torch.randn(vocabulary))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.weight + self.bias)


@only_interpreted("whether it pays is for each GPU to say")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_odd_vocabulary_is_padded_once(dtype: torch.dtype, nothing_left_to_eager: None) -> None:
    """Padded or not, the results are the same bits; an updated weight is padded again."""
    model, x = Head().to(DEVICE, dtype), torch.randn(32, 64).to(DEVICE, dtype)
    decided: list[E.Event] = []
    stop = EVENTS.subscribe(decided.append)
    try:
        padded, plain = (
            torch.compile(model, backend="lazyc", options={**OPTIONS, "disable_passes": passes})
            for passes in ("", "padding")
        )
        with torch.no_grad():
            first = padded(x)
            (made,) = (e for e in decided if isinstance(e, E.Decided) and e.by == "padding")
            size = 132 if dtype is torch.float32 else 136
            assert f"n 131 -> {size}" in made.what and made.line.startswith(
                "test_triton_interpret.py:"
            )
            assert (made.bytes_copied, made.bytes_kept) == (0, 64 * size * dtype.itemsize)
            assert torch.equal(first, plain(x))
            model.weight.mul_(-1)
            torch.testing.assert_close(padded(x), model(x), rtol=2e-2, atol=2e-2)
            assert torch.equal(padded(x), plain(x))
    finally:
        stop()
    assert sum(isinstance(e, E.Decided) and e.by == "padding" for e in decided) == 1


def test_sizes_that_change(nothing_left_to_eager: None) -> None:
    model = on_device(
        torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.Linear(40, 24))
    )
    compiled = torch.compile(model, backend="lazyc", options=OPTIONS, dynamic=True)
    with torch.no_grad():
        for rows in (16, 33, 5):
            x = torch.randn(rows, 24, device=DEVICE)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_rows_that_are_looked_up_are_a_factor(
    dtype: torch.dtype, batch: tuple[int, ...], nothing_left_to_eager: None
) -> None:
    """One kernel reads rows of the table as it multiplies them, negative indices and what is around included."""
    table, weight = (torch.randn(*s).to(DEVICE, dtype) for s in ((50, 64), (64, 48)))
    index = torch.randint(-50, 50, (*batch, 40), device=DEVICE)

    def function(table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.relu((table[index] * 2) @ weight + 1)

    before = set(map(id, executables()))
    with torch.no_grad():
        got = torch.compile(function, backend="lazyc", options=OPTIONS)(table, index, weight)
        near = 1e-5 if dtype is torch.float32 else 3e-2
        torch.testing.assert_close(got, function(table, index, weight), rtol=near, atol=near)
    (made,) = (e.program for e in executables() if id(e) not in before)
    (step,) = made.steps
    assert isinstance(step, KernelStep) and Contraction.find(made.nests[step.nest]) is not None


@only_interpreted("CUDA reports it at its next synchronisation, and is of no use after")
def test_an_index_out_of_range_is_eager_s_error(nothing_left_to_eager: None) -> None:
    compiled = torch.compile(Classifier(), backend="lazyc", options=OPTIONS)
    with pytest.raises(IndexError), torch.no_grad():
        compiled(torch.full((2, 3), 50), torch.zeros(2, dtype=torch.int64))


def test_what_overlaps_is_kept_for_the_backward_pass(nothing_left_to_eager: None) -> None:
    """AOTAutograd's trace has sliding windows as a view, with strides that overlap."""

    def windows(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return x * F.pad(v, (3, 0)).unfold(0, 4, 1)

    args = [on_device(torch.randn(6, 4)), on_device(torch.randn(6))]
    found = []
    for function in (torch.compile(windows, backend="lazyc", options=OPTIONS), windows):
        leaves = [x.clone().requires_grad_() for x in args]
        found.append(torch.autograd.grad(function(*leaves).square().sum(), leaves))
    for mine, eager in zip(*found, strict=True):
        torch.testing.assert_close(mine, eager)


@only_interpreted("of files alone")
def test_code_is_shown_as_python(tmp_path: Any) -> None:
    compiled = torch.compile(
        lambda x: torch.softmax(x, -1), backend="lazyc", options={**OPTIONS, "trace": str(tmp_path)}
    )
    compiled(torch.randn(4, 8))
    (file,) = tmp_path.rglob("kernel-*.py")
    assert "tl.load" in file.read_text()
