"""What GPU programs keep of weights, with a stand-in for CUDA: made once, anew when a weight changed, right on
other streams and in graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lazyc.config import Config
from lazyc.frontend.fx_import import import_graph
from lazyc.report import events as E
from lazyc.runtime.mixed import MixedRunner
from lazyc.runtime.program import Executable
from tests.frontend.trace import trace
from tests.runtime.stand_in import Launch, StandInGpu, stand_in_compiler
from tests.runtime.weight_changes import CHANGES, in_place

Function = Callable[..., torch.Tensor]


def padded(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


def scaled(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ (w * scale).t())


def rounded(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x.half() @ w.half()).float()


def normed(
    x: torch.Tensor, w: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    y = F.conv2d(x, w, padding=1)
    return torch.relu(F.batch_norm(y, mean, var, None, bias))


def between_eager_calls(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    y = torch.erfinv(torch.tanh(x @ (w * scale).t()))  # erfinv is not lowered
    return y @ (torch.erfinv(torch.tanh(w)) * 2)


@dataclass(frozen=True)
class Case:
    """A function of x and weights; ``shapes`` are theirs."""

    function: Function
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]


CASES = {
    "padded": Case(padded, torch.float16, ((64, 32), (32, 131))),
    "scaled": Case(scaled, torch.float32, ((16, 32), (24, 32), (24, 1))),
    "scaled halves": Case(scaled, torch.float16, ((16, 32), (24, 32), (24, 1))),
    "rounded": Case(rounded, torch.float32, ((16, 32), (32, 24))),
    "reordered, with a norm": Case(
        normed, torch.float32, ((2, 16, 5, 5), (16, 16, 3, 3), (16,), (16,), (16,))
    ),
    "between eager calls": Case(between_eager_calls, torch.float32, ((16, 32), (24, 32), (24, 1))),
}


@dataclass
class Model:
    """A function of weights on a stand-in."""

    case: Case
    gpu: StandInGpu
    program: Executable
    weights: list[torch.Tensor]
    heard: list[E.Event]
    given: list[torch.Tensor] = field(default_factory=list)  # each has its own address

    def input(self) -> torch.Tensor:
        x = torch.randn(self.case.shapes[0]).to(self.case.dtype)
        self.given.append(x)
        return x

    def call(self, x: torch.Tensor | None = None) -> list[Launch]:
        """The launches of a call, whose result is compared with eager's."""
        x = self.input() if x is None else x
        before = len(self.gpu.launches)
        got = self.run(x)
        self.gpu.check()
        self.compare(got, x)
        return self.gpu.launches[before:]

    def run(self, x: torch.Tensor) -> torch.Tensor:
        (got,) = self.program([x, *self.weights])
        return got

    def compare(self, got: torch.Tensor, x: torch.Tensor) -> None:
        with torch.no_grad():
            want = self.case.function(x, *self.weights)
        step = 4 * max(torch.finfo(want.dtype).eps, 1e-5) * float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=1e-3, atol=step)

    @property
    def kept(self) -> list[torch.Tensor]:
        assert self.program.weights is not None and self.program.weights._kept is not None
        return [t for _, t in self.program.weights._kept.packed]

    @property
    def renewals(self) -> int:
        assert self.program.weights is not None
        return self.program.weights.renewals


def made(name: str, cuda_graphs: bool = False, **options: Any) -> Model:
    torch.manual_seed(0)
    case = CASES[name]
    tensors = [torch.rand(shape).add_(0.25).to(case.dtype) for shape in case.shapes]
    weights = [torch.nn.Parameter(t / 8) for t in tensors[1:]]
    events, heard = E.EventStream(), []
    events.subscribe(heard.append)
    gpu = StandInGpu()
    gm = trace(case.function, tensors[0], *(w.detach() for w in weights))
    graph = import_graph(gm, frozenset(range(1, len(tensors))), {}, True)
    compiler = stand_in_compiler(gpu, cuda_graphs, events=events, **options)
    return Model(case, gpu, compiler.compile(graph), [*weights], heard)


of_each = pytest.mark.parametrize("name", CASES)


@of_each
def test_kernels_over_weights_are_launched_once(name: str) -> None:
    model = made(name)
    first, *others = (len(model.call()) for _ in range(3))
    assert others[0] == others[1] < first and model.renewals == 1
    addresses = {t.data_ptr() for t in model.kept}
    assert any(addresses & set(launch.arguments) for launch in model.call())
    (told,) = (e for e in model.heard if isinstance(e, E.WeightsPacked))
    assert told.count == len(model.kept) and not told.changed
    is_mixed = isinstance(model.program.last_runner, MixedRunner)
    assert is_mixed == (name == "between eager calls")


@of_each
def test_unless_asked_for_nothing_is_kept_and_no_edit_is_missed(name: str) -> None:
    model = made(name, keep_gpu_weights=Config().keep_gpu_weights)
    counts = {len(model.call()) for _ in range(2)}
    for weight in model.weights:
        weight.data.mul_(0.5)  # advances no counter
        counts.add(len(model.call()))
    assert len(counts) == 1 and not [e for e in model.heard if isinstance(e, E.WeightsPacked)]


def test_a_padded_weight_is_not_read_where_it_was() -> None:
    """The kernel of the product has the address of what is kept, and the event says what is."""
    model = made("padded")
    model.call()
    (launch,) = model.call()
    assert model.weights[0].data_ptr() not in launch.arguments
    (told,) = (e for e in model.heard if isinstance(e, E.Decided) and e.by == "padding")
    assert (told.bytes_copied, told.bytes_kept) == (0, 32 * 136 * 2)
    assert model.kept[0].shape == (32, 136)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["padded", "scaled", "between eager calls"])
def test_a_changed_weight_is_never_stale(name: str, change: Callable[..., None]) -> None:
    model = made(name)
    first = len(model.call())
    later = len(model.call())
    change(model.weights[0])
    assert [len(model.call()) for _ in range(3)] == [first, later, later]


@of_each
def test_each_weight_counts(name: str) -> None:
    model = made(name)
    model.call()
    for number in range(len(model.weights)):
        before = model.renewals
        in_place(model.weights[number])  # type: ignore[arg-type]
        model.call()
        assert model.renewals == before + 1


def test_another_weight_in_its_place() -> None:
    model = made("scaled")
    model.call()
    model.weights[0] = torch.nn.Parameter(torch.randn(24, 32))
    model.call()
    w, scale = model.weights
    model.weights[:] = [torch.nn.Parameter(w.detach() * 3), scale]
    del w
    model.call()
    assert model.renewals == 3


def test_a_change_while_it_is_made() -> None:
    """What is written to a weight by another thread, after kernels have read it."""
    model = made("scaled")
    assert model.program.weights is not None
    compute = model.program.weights._compute
    assert compute is not None

    def then_changed(args: list[Any]) -> list[Any]:
        results = compute(args)
        in_place(model.weights[0])  # type: ignore[arg-type]
        return results

    model.program.weights._compute = then_changed
    model.run(model.input())
    model.program.weights._compute = compute
    model.call()


def test_inference_tensors_are_read_at_each_call() -> None:
    model = made("scaled")
    with torch.inference_mode():
        model.weights = [torch.randn(24, 32), torch.randn(24, 1)]
        for _ in range(3):
            model.call()
            model.weights[0].add_(1.0)


def test_without_the_option_nothing_is_kept() -> None:
    """The way out where weights are written to behind their version counter."""
    for name in CASES:
        model = made(name, pack_weights=False)
        assert model.program.weights is None and not model.program.program.packed
        assert not any(e.bytes_kept for e in model.heard if isinstance(e, E.Decided))
        model.call()
        for w in model.weights:
            w.data.mul_(1.5)
            model.call()


def test_graphs_of_a_training_step_keep_nothing() -> None:
    """They have no parameters: a weight is an operand like any other."""
    x, w = torch.randn(64, 32).half(), torch.randn(32, 131).half()
    gpu = StandInGpu()
    program = stand_in_compiler(gpu).compile(import_graph(trace(padded, x, w)))
    assert program.weights is None and not program.program.packed


def test_any_number_of_rows() -> None:
    gpu, w = StandInGpu(), torch.nn.Parameter(torch.randn(24, 32))
    scale = torch.nn.Parameter(torch.randn(24, 1))

    def f(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        assert (w.shape, scale.shape) == ((24, 32), (24, 1))  # fixed where sizes are symbols
        return scaled(x, w, scale)

    gm = trace(f, torch.randn(16, 32), w.detach(), scale.detach(), mode="symbolic")
    program = stand_in_compiler(gpu).compile(import_graph(gm, frozenset({1, 2})))
    for rows in (3, 70, 3):
        x = torch.randn(rows, 32)
        sizes = [rows for s in program.program.symbols if s.dim is None]
        (got,) = program([x, w, scale, *sizes])
        gpu.check()
        torch.testing.assert_close(got, scaled(x, w, scale).detach(), rtol=1e-4, atol=1e-4)
    assert program.weights is not None and program.weights.renewals == 1


# --- streams --------------------------------------------------------------------------------------


def test_another_stream_waits_for_what_was_made_on_the_first() -> None:
    """Kernels of the first stream have not run yet when those of the second do."""
    model = made("scaled")
    model.gpu.is_late = True
    xs = [model.input() for _ in range(4)]
    results = []
    for stream, x in zip((1, 2, 3, 1), xs, strict=True):
        model.gpu.handle = stream
        results.append(model.run(x))
    assert not model.gpu.failure and len(model.gpu.launches) == 5
    for stream, numbers in ((3, (2,)), (2, (1,)), (1, (0, 3))):
        model.gpu.finish(stream)
        model.gpu.check()
        for number in numbers:
            model.compare(results[number], xs[number])


def test_another_stream_keeps_the_memory() -> None:
    """What was made on a stream and is read on another must not be handed out before that is done."""
    model = made("scaled")
    model.call()
    model.call()
    assert not model.gpu.used
    model.gpu.handle = 5
    model.call()
    assert {id(t) for t in model.gpu.used} == {id(t) for t in model.kept}


def test_what_is_made_anew_belongs_to_the_stream_that_made_it() -> None:
    model = made("scaled")
    model.call()
    model.gpu.handle = 5
    in_place(model.weights[0])  # type: ignore[arg-type]
    model.call()
    assert not model.gpu.used
    model.gpu.handle = 77
    model.call()
    assert {id(t) for t in model.gpu.used} == {id(t) for t in model.kept}


# --- graphs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("name", ["padded", "scaled", "reordered, with a norm"])
def test_replays_follow_the_weights(name: str, elsewhere: bool) -> None:
    """``elsewhere``: what is made anew gets another address than what it replaces."""
    model = made(name, cuda_graphs=True)
    for _ in range(5):
        model.call()
    assert model.gpu.captures == 1 and len(model.call()) == 0, "not a replay"
    for number in range(3):
        held = model.kept if elsewhere else []
        in_place(model.weights[0])  # type: ignore[arg-type]
        for _ in range(5):
            model.call()
        assert len(model.call()) == 0, "not a replay"
        if held:
            assert model.gpu.captures == 2 + number


def test_weights_that_change_at_each_call_are_not_captured_each_time() -> None:
    model = made("scaled", cuda_graphs=True)
    held = []
    for _ in range(12):
        model.call()
        held.append(model.kept)
        in_place(model.weights[0])  # type: ignore[arg-type]
    assert model.gpu.captures == 0


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", ["padded", "scaled", "reordered, with a norm"])
def test_a_graph_of_the_caller_s_follows_the_weights(name: str, warm: bool) -> None:
    """It has the kernels over weights too, and nothing that is kept for other calls."""
    model = made(name)
    if warm:
        model.call()
    x = model.input()
    model.gpu.is_captured = True
    (got,), replay = model.gpu.capture(lambda: model.program([x, *model.weights]))
    model.gpu.is_captured = False
    for _ in range(3):
        replay()
        model.compare(got, x)
        in_place(model.weights[0])  # type: ignore[arg-type]
        model.call()
        x.copy_(torch.randn(x.shape))
    model.weights[0].data.mul_(0.25)  # no counter sees it
    replay()
    model.compare(got, x)
