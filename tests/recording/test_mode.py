"""``with lazyc.lazy()``: eager code recorded as it is dispatched."""

from __future__ import annotations

import copy
import gc
import io
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lazyc
from lazyc.backend import EVENTS
from lazyc.errors import CompilerBug, CompilerBugWarning, ConfigError, NewShape
from lazyc.recording import calls
from lazyc.recording.recorder import Step, Value
from lazyc.recording.tensor import LazyTensor, Memory
from lazyc.report import events as E
from lazyc.variants import _workers


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    lazyc.mark_step()
    lazyc.metrics.reset()
    torch.manual_seed(0)
    yield
    lazyc.mark_step()


def flushes() -> dict[str, int]:
    return lazyc.metrics.snapshot()["flushes"]


def both(function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Results of ``function``, recorded and in eager, on copies of the arguments; then the copies."""
    results = []
    for recorded in (True, False):
        given = copy.deepcopy(args)
        torch.manual_seed(1)
        if recorded:
            with lazyc.lazy():
                made = function(*given)
        else:
            made = function(*given)
        results.append((made, given))
    return results[0], results[1]


def check(function: Callable[..., Any], *args: Any, **tolerance: float) -> None:
    found, expected = both(function, *args)
    torch.testing.assert_close(found, expected, **tolerance)


def test_a_chain_is_one_kernel() -> None:
    x, y = torch.randn(8, 8), torch.randn(8, 8)
    with lazyc.lazy():
        z = F.gelu(x * y + x) * torch.sigmoid(y) - 0.5 * torch.tanh(x)
        assert isinstance(z, LazyTensor)
        assert flushes() == {}
    torch.testing.assert_close(z + 0, F.gelu(x * y + x) * torch.sigmoid(y) - 0.5 * torch.tanh(x))
    counts = lazyc.metrics.snapshot()
    assert (counts["kernel_calls"], counts["flushes"]) == (1, {"value_read": 1})
    assert counts["fallbacks"] == []


def test_the_same_step_is_compiled_once() -> None:
    for k in range(4):
        x = torch.full((4,), float(k))
        with lazyc.lazy():
            y = (x.exp() + 1).sum()
            lazyc.mark_step()
        assert y.item() == pytest.approx((x.exp() + 1).sum().item())
    assert lazyc.metrics.snapshot()["graphs_compiled"] == 1
    assert flushes() == {"mark_step": 4}


def test_what_nobody_reads_is_not_computed() -> None:
    with lazyc.lazy():
        x = torch.randn(4) * 2
        del x
    lazyc.mark_step()
    assert flushes() == {}
    assert lazyc.metrics.snapshot()["operators_never_computed"] == 1


WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "whole": lambda x: x.add_(1).mul_(x),
    "part": lambda x: x[0].add_(1),
    "part of a part": lambda x: x[1:][0].mul_(3),
    "transposed": lambda x: x.t().sub_(torch.arange(3.0)[:, None]),
    "flat": lambda x: x.view(-1)[2:5].fill_(7),
    "strided": lambda x: x[:, ::2].copy_(torch.ones(2, 1)),
    "by index": lambda x: x.__setitem__((torch.tensor([0, 1]), torch.tensor([1, 2])), 5.0),
    "by mask": lambda x: x.masked_fill_(x > 0, -1),
    "diagonal": lambda x: x.diagonal().zero_(),
    "unbound": lambda x: x.unbind(1)[2].neg_(),
    "another type": lambda x: x.add_(torch.ones(2, 3, dtype=torch.float64)),
    "clamp and relu": lambda x: F.relu(x.clamp_(-1, 1), inplace=True),
    "several": lambda x: torch._foreach_add_([x[0], x[1]], 1.0),
    "overlap": lambda x: x[:, 1:].add_(x[:, :-1].clone()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("computed", [True, False])
def test_writes_are_seen_by_every_view_and_by_no_earlier_result(
    write: Callable[[torch.Tensor], Any], computed: bool
) -> None:
    def function(x: torch.Tensor) -> list[torch.Tensor]:
        y = x * 2 if computed else x
        row, column, before = y[0], y.t()[1], y + 0
        write(y)
        after = y * 1
        return [y, row, column, before, after, y.sum()]

    check(function, torch.randn(2, 3))
    assert lazyc.metrics.snapshot()["fallbacks"] == []


def test_views_share_memory_after_they_are_computed() -> None:
    with lazyc.lazy():
        x = torch.randn(4, 4) * 2
        row = x[1]
    row.zero_()
    assert x[1].abs().sum() == 0
    assert x.data_ptr() + 16 == row.data_ptr()


LAYOUTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "squeeze_": lambda x: x.squeeze_(),
    "squeeze_ a dim": lambda x: x.squeeze_(1),
    "unsqueeze_": lambda x: x.unsqueeze_(0),
    "t_": lambda x: x[:, 0].t_(),
    "transpose_": lambda x: x.transpose_(0, 2),
    "as_strided_": lambda x: x.as_strided_((2, 2), (1, 2), 1),
    "of a view": lambda x: x[1:].squeeze_(),
    "resize_": lambda x: x.resize_(2, 2),
    "set_": lambda x: x.set_(torch.ones(5)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("within", [True, False])
def test_a_layout_changes_in_place(change: Callable[[torch.Tensor], Any], within: bool) -> None:
    def values(x: torch.Tensor) -> list[torch.Tensor]:
        y = x * 2
        same, row = y.detach(), y[0]
        if within:
            made = change(y)
            return [y, made, same, row, made.add_(1), y * 2, same * 2]
        return [y, same, row]

    found, expected = both(values, torch.randn(3, 1, 2))
    if not within:
        for results in (found[0], expected[0]):
            results += [change(results[0]), results[0] * 3]
    for a, b in zip(found[0], expected[0], strict=True):
        assert (a.shape, a.stride()) == (b.shape, b.stride())
    torch.testing.assert_close(found, expected)


def test_what_changes_its_layout_goes_on_waiting() -> None:
    with lazyc.lazy():
        x = torch.randn(3, 1) * 2
        x.squeeze_(1).unsqueeze_(0).transpose_(0, 1).t_()
        assert flushes() == {}
    assert x.shape == (1, 3)


def test_operators_with_a_number_wait_whatever_it_is() -> None:
    """Also one that is not an argument of the fragment."""

    def function(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        made = []
        for number in (1.0, 2.0, 0.3):
            made += [torch.addcdiv(x, x, y, value=number), torch.addcmul(x, x, y, value=number)]
            made += [torch.lerp(x, y, number), torch.add(x, y, alpha=number)]
            made += [made[0].addcdiv_(x, y, value=number), made[2].lerp_(x, number) * 1]
        made += [torch.addcdiv(x, x, y.sum()), torch.addcmul(x, y.sum(), y.sum(), value=0.3)]
        return made

    check(function, torch.randn(3), torch.randn(3))
    assert lazyc.metrics.snapshot()["regions_not_lazy"] == []


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("which", ["parameter", "waiting"])
def test_data_is_replaced(which: str, within: bool) -> None:
    def replace(x: torch.Tensor, new: torch.Tensor) -> list[torch.Tensor]:
        x.data = new
        new.add_(1)
        return [x, x * 2, new]

    def values(p: torch.Tensor, value: torch.Tensor) -> list[torch.Tensor]:
        x, new = (p, value * 3) if which == "parameter" else (value * 2, torch.ones(2, 2))
        before = x.detach()
        with torch.no_grad():
            x.mul_(2)
        return [x, new, before, *(replace(x, new) if within else [])]

    found, expected = both(values, torch.nn.Parameter(torch.randn(3)), torch.randn(3))
    if not within and which == "waiting":
        for results in (found[0], expected[0]):
            results += replace(*results[:2])
    torch.testing.assert_close(found, expected)


def test_a_step_that_replaces_data_is_compiled_once() -> None:
    with lazyc.lazy():
        for k in range(4):
            x = torch.ones(4) * 2
            x.data = torch.full((4,), float(k))
            y = x.exp().sum()
            lazyc.mark_step()
            assert y.item() == pytest.approx(4 * math.exp(k))
    assert lazyc.metrics.snapshot()["graphs_compiled"] == 1


LOOKS: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": lambda x: x.numpy().copy(),
    "np.asarray": lambda x: np.array(np.asarray(x)),
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x.sum().item(),
    "print": str,
    "bool": lambda x: bool((x > 0).all()),
    "deepcopy": copy.deepcopy,
    "a view": lambda x: x[1:].tolist(),
    "an alias": lambda x: x.detach().numpy().copy(),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_plain_tensors_written_to_show_it(look: Callable[[torch.Tensor], Any]) -> None:
    """Also to code that looks at memory without an operator."""
    found, expected = torch.ones(4), torch.ones(4)
    with lazyc.lazy():
        found.add_(torch.arange(4.0) * 2)
        seen = look(found)
    expected.add_(torch.arange(4.0) * 2)
    assert str(seen) == str(look(expected))
    torch.testing.assert_close(found, expected)


def test_saving_writes_first() -> None:
    x, file = torch.ones(3), io.BytesIO()
    with lazyc.lazy():
        x.mul_(torch.arange(3.0))
        torch.save({"x": x}, file)
    file.seek(0)
    assert torch.load(file)["x"].tolist() == [0, 1, 2]


def test_an_error_in_the_block_leaves_nothing_unwritten() -> None:
    x = torch.ones(3)

    def run() -> None:
        with lazyc.lazy():
            x.mul_(torch.arange(3.0))
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        run()
    assert x.tolist() == [0, 1, 2]


def test_eager_errors_are_raised() -> None:
    with lazyc.lazy():
        x = torch.randn(3, 4) * 2
        line = torch.ones(4) * 2
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            x @ x
        with pytest.raises(RuntimeError, match="single memory location"):
            line[1:].add_(line[:-1])
        with pytest.raises(RuntimeError, match="single memory location"):
            torch.zeros(1).expand(3).add_(x[0, :3])


def test_a_bug_of_ours_does_not_stop_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("broken")

    monkeypatch.setattr("lazyc.recording.mode.make_call", fail)
    x = torch.randn(3, 7, 5)
    with lazyc.lazy(strict=False):
        with pytest.warns(CompilerBugWarning, match="broken"):
            y = x.erfc()
        assert type(y) is torch.Tensor
    torch.testing.assert_close(y, x.erfc())
    with lazyc.lazy(strict=True), pytest.raises(CompilerBug, match="broken"):
        x.asinh()


def test_foreign_tensors_run_at_once() -> None:
    def function(x: torch.Tensor) -> list[torch.Tensor]:
        z = torch.complex(x * 2, x)
        sparse = (x * 1).to_sparse()
        return [z.abs(), torch.view_as_real(z), sparse.to_dense() + x, (x > 0).nonzero()]

    check(function, torch.randn(3, 4))


def test_an_operator_that_looks_at_memory_by_itself_gets_it() -> None:
    def function(x: torch.Tensor, sizes: torch.Tensor) -> list[torch.Tensor]:
        x.requires_grad_()
        whole = x * 2
        parts = [
            *torch.tensor_split(whole, sizes + 1),
            *whole.detach().tensor_split(tensor_indices_or_sections=sizes * 2),
        ]
        return [*parts, *torch.autograd.grad(parts[1].exp().sum(), x)]

    check(function, torch.randn(8), torch.tensor([1, 3]))


def test_what_cannot_wait_is_reported() -> None:
    seen: list[E.NotLazy] = []
    stop = EVENTS.subscribe(lambda event: isinstance(event, E.NotLazy) and seen.append(event))
    with lazyc.lazy():
        x = torch.randn(3, 11) * 2
        for _ in range(2):
            x[x > 0]
    stop()
    (event,) = seen
    assert event.line.startswith("test_mode.py:")
    assert event.reason.startswith("aten.index.Tensor: it cannot be traced: aten.nonzero")


def test_an_operator_that_never_waits_is_reported_where_it_computes_something() -> None:
    seen: list[E.NotLazy] = []
    stop = EVENTS.subscribe(lambda event: isinstance(event, E.NotLazy) and seen.append(event))
    with lazyc.lazy():
        x = torch.randn(3, 11)  # takes nothing
        for _ in range(2):
            F.rrelu(x * 2, training=True)
    stop()
    (event,) = seen
    assert event.line.startswith("test_mode.py:")
    assert event.reason == "aten.rrelu_with_noise.default: it draws random numbers"


def test_a_decomposition_that_fails_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not taken for an operator that torch cannot trace."""

    def broken(*args: object) -> None:
        raise AttributeError("broken")

    broken.__code__ = broken.__code__.replace(
        co_filename=str(Path(lazyc.__file__).parent / "decompositions.py")
    )
    table = {torch.ops.aten.sinc.default: broken}
    monkeypatch.setattr(calls, "decomposition_table", lambda: table)
    x = torch.randn(5, 7, 13)
    with pytest.raises(CompilerBug, match="broken"), lazyc.lazy(strict=True):
        torch.sinc(x * 2)
    with lazyc.lazy(strict=False), pytest.warns(CompilerBugWarning, match="broken"):
        y = torch.sinc(x * 3)
    torch.testing.assert_close(+y, torch.sinc(x * 3))


def test_random_numbers_are_those_of_eager() -> None:
    def function(x: torch.Tensor) -> list[torch.Tensor]:
        y = F.dropout(x * 2, 0.5) + torch.randn(4, 8)
        noise = torch.rand_like(y)
        (z := y * 1).uniform_()
        return [y, noise, z, torch.nn.functional.rrelu(y, training=True), torch.randperm(5)]

    check(function, torch.randn(4, 8))


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(20, 16)
        self.block = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.norm = torch.nn.BatchNorm1d(16)
        self.head = torch.nn.Linear(16, 20)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.block(self.embed(tokens))
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_eager(name: str) -> None:
    def train(model: torch.nn.Module, tokens: torch.Tensor) -> list[float]:
        optimizer = OPTIMIZERS[name](model.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        losses = []
        for _ in range(5):
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            lazyc.mark_step()
            losses.append(loss.item())
        return losses

    # In float64: the gradient of a key's bias is rounding errors, which Adam makes steps of.
    found, expected = both(train, Net().double(), torch.randint(0, 20, (2, 6)))
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    for a, b in zip(found[1][0].parameters(), expected[1][0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_training_step_is_one_program() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(3, 8)
    with lazyc.lazy():
        for _ in range(5):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            lazyc.mark_step()
    counts = lazyc.metrics.snapshot()
    assert (counts["graphs_compiled"], counts["flushes"]) == (1, {"mark_step": 5})
    assert counts["fallbacks"] == []


class Gpt(torch.nn.Module):
    """A small GPT; tokens: (batch, length) -> logits: (batch, length, 32)."""

    def __init__(self, width: int = 32, heads: int = 2, layers: int = 1) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(32, width)
        self.place = torch.nn.Parameter(torch.randn(16, width) / 10)
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = torch.nn.ModuleList(copy.deepcopy(layer) for _ in range(layers))
        self.head = torch.nn.Linear(width, 32)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        mask = torch.full((length, length), -math.inf).triu(1)
        x = self.embed(tokens) + self.place[:length]
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def test_fifty_steps_of_training() -> None:
    """Losses as in eager, one program, and nothing that is kept from step to step."""

    def train(model: torch.nn.Module, batches: torch.Tensor) -> tuple[list[float], list[int]]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses: list[float] = []
        objects = []
        for tokens in batches:
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            lazyc.mark_step()
            losses.append(loss.item())
            del logits, loss
            if len(losses) in (10, 50):
                gc.collect()
                objects.append(sum(type(x) in (Step, Value, Memory) for x in gc.get_objects()))
        return losses, objects

    torch.manual_seed(0)
    batches = (torch.randint(0, 32, (50, 4, 1)) + torch.arange(13)) % 32
    ((found, objects), _), ((expected, _), _) = both(train, Gpt(), batches)
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]
    counts = lazyc.metrics.snapshot()
    assert counts["flushes"] == {"mark_step": 50} and counts["graphs_compiled"] == 1
    assert counts["fallbacks"] == []
    assert objects[0] == objects[1]


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"shapes": "bucket"}, {"buckets": "8"}, {"lazy": True}])
def test_options_of_compiled_functions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no option"), lazyc.lazy(**options):
        pass


def test_what_serves_a_new_shape() -> None:
    def sums(n: int, policy: str) -> list[float]:
        x = torch.arange(2.0 * n).view(n, 2)
        with lazyc.lazy(on_new_shape=policy):
            return (x.mul(2) + 1).sum(1).tolist()

    def kernels() -> int:
        return lazyc.metrics.snapshot()["graphs_compiled"]

    for policy in ("eager", "error", "background"):
        lazyc.metrics.reset()
        assert sums(2, policy) == [4.0, 12.0] and kernels() == 1
        if policy == "error":
            with pytest.raises(NewShape, match=r"tensor 0: size of dim 0, 2 -> 3"):
                sums(3, policy)
        elif policy == "eager":
            assert sums(3, policy) == [4.0, 12.0, 20.0]
            (fallback,) = lazyc.metrics.snapshot()["fallbacks"]
            assert "a new shape: aten.mul.Tensor: tensor 0: size of dim 0, 2 -> 3" in str(fallback)
        else:
            held = threading.Event()
            _workers.get().submit(held.wait)
            assert sums(3, policy) == [4.0, 12.0, 20.0] and kernels() == 1
            held.set()
            _workers.get().submit(int).result()  # done after what was submitted before
            assert sums(3, policy) == [4.0, 12.0, 20.0] and kernels() == 2
            continue
        assert kernels() == 1
        assert sums(2, policy) == [4.0, 12.0], "what was compiled still serves"


def test_blocks_nest_and_threads_do_not_share() -> None:
    seen: list[type] = []

    def other() -> None:
        seen.append(type(torch.ones(2) * 2))

    with lazyc.lazy():
        with lazyc.lazy():
            x = torch.ones(2) * 2
        y = x + 1
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert type(y) is LazyTensor
    assert seen == [torch.Tensor]
    assert y.tolist() == [3, 3]


def test_a_lazy_tensor_is_read_by_another_thread() -> None:
    with lazyc.lazy():
        x = torch.ones(2) * 2
    seen: list[list[float]] = []
    thread = threading.Thread(target=lambda: seen.append(x.tolist()))
    thread.start()
    thread.join()
    assert seen == [[2, 2]]


def test_compiled_code_takes_what_waits() -> None:
    compiled = torch.compile(lambda x: x.relu() + 1, backend="lazyc", options={"lazy": True})
    with lazyc.lazy():
        x = torch.randn(4) * 2
        row = x[1:]
    torch.testing.assert_close(compiled(x) + 0, (x + 0).relu() + 1)
    torch.testing.assert_close(compiled(row) + 0, (row + 0).relu() + 1)


def test_recording_keeps_no_argument() -> None:
    """What only a temporary name held is no result, also the first time that an operator is met."""
    gc.disable()
    try:
        with lazyc.lazy(lazy_max_operators=4001):
            x = torch.ones(3, 2) + 1
            y = (x.cosh() * 2.25).addcmul(x, x, value=0.3).sinh()
            kept = [weakref.ref(v) for v in (x._memory, y._memory)]  # type: ignore[attr-defined]
            z = torch.cat([x, y])
            del x, y
            assert [ref() for ref in kept] == [None, None]
            lazyc.mark_step()
    finally:
        gc.enable()
    assert z.shape == (6, 2)


def test_a_read_writes_what_it_reads_and_nothing_else() -> None:
    a, b, c = torch.ones(3), torch.ones(3), torch.ones(3)
    with lazyc.lazy():
        a.add_(1)
        b.mul_(3)
        c.add_(b)
        flushed: list[E.Event] = []
        stop = EVENTS.subscribe(flushed.append)
        try:
            assert a.tolist() == [2.0] * 3
            (first,) = (e for e in flushed if isinstance(e, E.Flushed))
            assert first.operators == 1
            assert torch.sort(c).values.tolist() == [4.0] * 3  # needs what waits for b, too
        finally:
            stop()
        b.sub_(1)
    assert (a.tolist(), b.tolist(), c.tolist()) == ([2.0] * 3, [2.0] * 3, [4.0] * 3)
