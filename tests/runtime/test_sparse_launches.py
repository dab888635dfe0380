"""Kernels of sparse weights on a GPU, with a stand-in for CUDA: what is launched, with which arguments, and when.

Block-sparse kernels run in Triton's interpreter, those of 2:4 weights in the emulator of CUDA C++.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import lazyc
from lazyc.frontend.fx_import import import_graph
from lazyc.ir.block_sparse import compress_blocks
from lazyc.ir.program import KernelStep
from lazyc.ir.sparse import SparseProduct, Sparsity
from lazyc.ir.sparse_mma import MmaFormat, compress_for_mma
from lazyc.ir.types import DType, dtype_from_torch
from lazyc.report import events as E
from lazyc.runtime.mixed import MixedRunner
from lazyc.runtime.program import Executable
from lazyc.runtime.runner import NativeRunner
from lazyc.runtime.weights import _SETTLED
from tests.cuda_emulator.emulate import needs_compiler
from tests.frontend.trace import trace
from tests.runtime.stand_in import (
    SHARED,
    WARPS,
    Launch,
    StandInGenerator,
    StandInGpu,
    stand_in_compiler,
)

ROWS, INNER, OUTER, LAST = 24, 64, 96, 32


def mlp(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    assert (w.shape, v.shape) == ((OUTER, INNER), (LAST, OUTER))  # fixed where sizes are symbols
    return torch.relu(x @ w.t() + bias) @ v.t()


def mlp_of_bytes(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Of int8, with int32 results."""
    assert (w.shape, v.shape) == ((OUTER, INNER), (LAST, OUTER))
    hidden = torch.relu((torch._int_mm(x, w.t()) + bias).float() / 512)
    return torch._int_mm(hidden.round().clamp(max=127).to(torch.int8), v.t())


def mlp_with_eager(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    hidden = torch.relu(x @ w.t() + bias)
    return torch.erfinv(torch.tanh(hidden @ v.t()))  # erfinv is not lowered


@dataclass
class Model:
    """A two-layer perceptron whose weights are sparse, on a stand-in."""

    gpu: StandInGpu
    program: Executable
    weights: list[torch.Tensor]
    function: Callable[..., torch.Tensor]
    heard: list[E.Event]
    given: list[torch.Tensor] = field(
        default_factory=list
    )  # alive, so that each has its own address

    def call(self, rows: int = ROWS) -> list[Launch]:
        """The launches of a call, whose result is compared with that in double precision."""
        w = self.weights[0]
        x = _random((rows, INNER), w.dtype)
        self.given.append(x)
        before = len(self.gpu.launches)
        sizes = [rows for s in self.program.program.symbols if s.dim is None]
        (got,) = self.program([x, *self.weights, *sizes])
        self.gpu.check()
        eager = self.function(x, *self.weights)
        assert got.dtype == eager.dtype and got.shape == eager.shape
        if not got.dtype.is_floating_point:
            assert torch.equal(got, eager)
            return self.gpu.launches[before:]
        exact = self.function(*(t.double() for t in (x, *self.weights)))
        step = torch.finfo(w.dtype).eps * exact.abs().max()
        error, allowed = ((t.double() - exact).abs().max() for t in (got, eager))
        assert error <= torch.maximum(2 * allowed, 2 * step)
        return self.gpu.launches[before:]

    @property
    def compressed(self) -> dict[int, torch.Tensor]:
        assert self.program.weights is not None and self.program.weights._kept is not None
        return dict(self.program.weights._kept.compressed or {})

    def is_sparse(self, launches: list[Launch]) -> list[bool]:
        """Which launches of a call read a compressed weight, and no weight."""
        found = []
        addresses = {w.data_ptr() for w in (self.weights[0], self.weights[2])}
        compressed = {t.data_ptr() for t in self.compressed.values()}
        for launch in launches:
            given = set(launch.arguments)
            reads = not given.isdisjoint(compressed)
            assert reads is given.isdisjoint(addresses)
            found.append(reads)
        return found


def _dtype(dtype: torch.dtype) -> DType:
    found = dtype_from_torch(dtype)
    assert found is not None
    return found


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return (
        torch.randn(shape).to(dtype)
        if dtype.is_floating_point
        else torch.randint(-128, 128, shape, dtype=dtype)
    )


def prune(sparsity: Sparsity, weight: torch.Tensor) -> None:
    if sparsity == "2:4":
        lazyc.sparse.prune_24(weight)
    else:
        size = int(sparsity.split()[1])
        lazyc.sparse.to_block_sparse(weight, (size, size), 0.75)


def made(
    sparsity: Sparsity,
    dtype: torch.dtype,
    mode: str = "fake",
    cuda_graphs: bool = False,
    function: Callable[..., torch.Tensor] | None = None,
    folder: Path | None = None,
) -> Model:
    """``folder``: of a disk cache."""
    torch.manual_seed(0)
    if function is None:
        function = mlp if dtype.is_floating_point else mlp_of_bytes
    shapes = [(OUTER, INNER), (OUTER,), (LAST, OUTER)]
    weights = [_random(s, dtype) for s in shapes]
    if dtype.is_floating_point:
        weights = [w / 8 for w in weights]
    for w in (weights[0], weights[2]):
        prune(sparsity, w)
    events, heard = E.EventStream(), []
    events.subscribe(heard.append)
    gpu = StandInGpu()
    x = _random((ROWS, INNER), dtype)
    graph = import_graph(
        trace(function, x, *weights, mode=mode),
        frozenset({1, 2, 3}),
        {1: sparsity, 3: sparsity},
        True,
    )
    options: dict[str, Any] = {}
    if folder is not None:
        generator = StandInGenerator(gpu, sparse=True, keeps_code=True)
        options = {"generator": generator, "disk_cache": True, "cache_dir": str(folder)}
    compiler = stand_in_compiler(gpu, cuda_graphs, sparse=True, events=events, **options)
    return Model(gpu, compiler.compile(graph), weights, function, heard)


CASES: list = [
    pytest.param("2:4", torch.float16, marks=needs_compiler),
    pytest.param("2:4", torch.bfloat16, marks=needs_compiler),
    pytest.param("2:4", torch.int8, marks=needs_compiler),
    ("block 16", torch.float32),
    ("block 32", torch.float16),
]
of_each = pytest.mark.parametrize(("sparsity", "dtype"), CASES)


@of_each
def test_sparse_kernels_are_launched_with_compressed_weights(
    sparsity: Sparsity, dtype: torch.dtype
) -> None:
    model = made(sparsity, dtype)
    launches = model.call()
    assert isinstance(model.program.last_runner, NativeRunner)
    assert len(launches) == 2 and model.is_sparse(launches) == [True, True]
    first, second = launches
    assert all(launch.stream == 77 for launch in launches)
    if sparsity == "2:4":
        forms = [MmaFormat(_dtype(dtype), *w.shape) for w in (model.weights[0], model.weights[2])]
        wanted = [compress_for_mma(f, w) for f, w in zip(forms, model.weights[::2], strict=True)]
        sources = dict(model.program.program.sparse_contractions())
        assert all(s.sparsity == "2:4" for s in sources.values())
        # The block and the shared memory are those of the kernel in CUDA C++: 64 rows by 32 columns, 4 stages.
        assert [launch.block for launch in launches] == [(64, 1, 1)] * 2
        assert first.grid == (2, 1, 1) and second.grid == (1, 1, 1)
        assert first.shared_bytes > SHARED
    else:
        size = int(sparsity.split()[1])
        wanted = []
        for w in model.weights[::2]:
            n, k = w.shape
            p = SparseProduct(sparsity, _dtype(dtype), 1, n, k, k, n, size)
            wanted.append(compress_blocks(p, w))
        assert [launch.block for launch in launches] == [(32 * WARPS, 1, 1)] * 2
        assert first.grid == (OUTER // size, 1, 1) and second.grid == (LAST // size, 1, 1)
    for found, form in zip(model.compressed.values(), wanted, strict=True):
        assert form is not None and torch.equal(found, form)
    assert [e.count for e in model.heard if isinstance(e, E.WeightsPacked)] == [2]
    kept = model.compressed
    assert model.is_sparse(model.call()) == [True, True]
    assert all(model.compressed[k] is t for k, t in kept.items()), "compressed again"


@of_each
def test_a_program_from_the_disk_cache(
    sparsity: Sparsity, dtype: torch.dtype, tmp_path: Path
) -> None:
    made(sparsity, dtype, folder=tmp_path).call()
    model = made(sparsity, dtype, folder=tmp_path)
    assert not [e for e in model.heard if isinstance(e, E.KernelCompiled)]
    launches = model.call()
    assert len(launches) == 2 and model.is_sparse(launches) == [True, True]


@of_each
def test_weights_that_change_are_dense_until_they_have_settled(
    sparsity: Sparsity, dtype: torch.dtype
) -> None:
    model = made(sparsity, dtype)
    model.call()
    stale = [weakref.ref(t) for t in model.compressed.values()]
    with torch.no_grad():
        model.weights[0].neg_()
    for _ in range(_SETTLED):
        assert model.is_sparse(model.call()) == [False, False]
    assert not any(ref() for ref in stale), "memory of weights that are gone is kept"
    assert model.is_sparse(model.call()) == [True, True]
    model.weights[0] = model.weights[0].clone()  # another tensor in its place
    for _ in range(_SETTLED):
        assert model.is_sparse(model.call()) == [False, False]
    assert model.is_sparse(model.call()) == [True, True]
    assert sum(isinstance(e, E.CompileStarted) for e in model.heard) == 1


@of_each
def test_weights_that_are_not_sparse_are_dense(sparsity: Sparsity, dtype: torch.dtype) -> None:
    model = made(sparsity, dtype)
    with torch.no_grad():
        model.weights[0].add_(1)
    model.call()
    assert model.is_sparse(model.call()) == [False, True]
    (said,) = (e for e in model.heard if isinstance(e, E.WeightNotSparse))
    assert said.sparsity == sparsity and said.shape == (OUTER, INNER)
    prune(sparsity, model.weights[0])
    for _ in range(_SETTLED):
        model.call()
    assert model.is_sparse(model.call()) == [True, True]


@pytest.mark.parametrize(("sparsity", "dtype"), [CASES[0], CASES[2], CASES[3]])
def test_any_number_of_rows(sparsity: Sparsity, dtype: torch.dtype) -> None:
    model = made(sparsity, dtype, mode="symbolic")
    for rows in (3, 70):
        assert model.is_sparse(model.call(rows)) == [True, True]
    assert [e.count for e in model.heard if isinstance(e, E.WeightsPacked)] == [2]


@pytest.mark.parametrize(("sparsity", "dtype"), [CASES[0], CASES[3]])
def test_between_eager_steps(sparsity: Sparsity, dtype: torch.dtype) -> None:
    model = made(sparsity, dtype, function=mlp_with_eager)
    launches = model.call()
    assert isinstance(model.program.last_runner, MixedRunner)
    assert model.is_sparse(launches[:2]) == [True, True]


def test_another_stream_keeps_the_memory() -> None:
    """What was made on a stream and is read on another must not be handed out before that is done."""
    model = made("block 16", torch.float32)
    model.call()
    assert not model.gpu.used
    model.gpu.handle = 5
    launches = model.call()
    assert {launch.stream for launch in launches} == {5} and model.is_sparse(launches) == [
        True,
        True,
    ]
    assert {id(t) for t in model.gpu.used} == {id(t) for t in model.compressed.values()}


def test_a_capture_of_the_caller_s_is_dense() -> None:
    """A graph of the caller's reads weights where they are, as they may change between its replays."""
    model = made("block 16", torch.float32)
    model.gpu.is_captured = True
    launches = model.call()
    weights = {w.data_ptr() for w in (model.weights[0], model.weights[2])}
    assert all(weights & set(launch.arguments) for launch in launches)
    model.gpu.is_captured = False
    assert model.is_sparse(model.call()) == [True, True]


def test_replayed_graphs_follow_the_weights() -> None:
    model = made("block 16", torch.float32, cuda_graphs=True)
    for _ in range(5):
        model.call()
    assert model.gpu.captures == 1
    assert len(model.call()) == 0, "not a replay"
    for _ in range(2):
        with torch.no_grad():
            model.weights[0].mul_(2.0)
        for _ in range(_SETTLED + 6):
            model.call()
    # Of dense kernels once, of sparse ones anew for each compressed weight that lies elsewhere than the one before.
    assert 2 <= model.gpu.captures <= 4


def test_steps_are_those_of_the_program() -> None:
    """A Program that is bound to compressed weights is another one: the Program itself stays as it is."""
    model = made("block 16", torch.float32)
    program = model.program.program
    before = program.steps, len(program.buffers), set(program.nests)
    model.call()
    assert before == (program.steps, len(program.buffers), set(program.nests))
    runner = model.program.last_runner
    assert runner is not None
    steps = [s for s in runner.program.steps if isinstance(s, KernelStep)]
    keys = {source.key for _, source in program.sparse_contractions()}
    assert {s.nest for s in steps} == keys
    for step in steps:
        assert sum(runner.program.buffers[b].kind == "packed" for b in step.buffers) == 1
