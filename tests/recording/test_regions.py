"""Functions that graph breaks cut, with the option lazy: one program, eager's values, and why it ran."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import logging
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lazyc
from lazyc.backend import EVENTS
from lazyc.recording.tensor import LazyTensor
from lazyc.report import events as E

graph_break = torch._dynamo.graph_break


def lazily(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(fn, backend="lazyc", options={"lazy": True, **options})


@pytest.fixture
def events() -> Iterator[list[E.Event]]:
    """Every event of the test, from an empty Recorder on."""
    gc.collect()
    lazyc.mark_step()
    seen: list[E.Event] = []
    stop = EVENTS.subscribe(seen.append)
    yield seen
    stop()


def flushes(events: list[E.Event]) -> list[tuple[str, str, int]]:
    return [(e.cause, e.what, e.regions) for e in events if isinstance(e, E.Flushed)]


def cut(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a = x * y + 1
    graph_break()
    b = torch.relu(a) @ y
    graph_break()
    c = b.softmax(-1)
    graph_break()
    return c.sum(-1) * 2


def uncut(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (torch.relu(x * y + 1) @ y).softmax(-1).sum(-1) * 2


def inputs(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, n), torch.randn(n, n)


def kernels() -> int:
    """Kernels that one run of each graph compiled since the reset calls."""
    return lazyc.metrics.snapshot()["kernel_calls"]


@torch.no_grad()
def test_a_cut_function_is_one_program_with_the_kernels_of_the_uncut_one(
    events: list[E.Event],
) -> None:
    x, y = inputs()
    lazyc.metrics.reset()
    wanted = torch.compile(uncut, backend="lazyc")(x, y)
    whole = kernels()
    lazyc.metrics.reset()
    result = lazily(cut)(x, y)
    assert isinstance(result, LazyTensor) and kernels() == 0
    torch.testing.assert_close(result + 0, wanted)
    assert kernels() == whole > 0
    assert flushes(events) == [("value_read", "aten.add.Tensor", 4)]
    assert lazyc.metrics.snapshot()["graphs_compiled"] == 1


class CutBlock(torch.nn.Module):
    """A transformer block, cut in three places or in none; x: (batch, length, 16)."""

    def __init__(self, cuts: bool) -> None:
        super().__init__()
        self.cuts = cuts
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(16) for _ in range(2))
        self.qkv, self.proj = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        self.up, self.down = torch.nn.Linear(16, 64), torch.nn.Linear(64, 16)

    def cut(self) -> None:
        if self.cuts:
            graph_break()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        scores = (q @ k.mT / 4).softmax(-1)
        self.cut()
        x = x + self.proj(scores @ v)
        self.cut()
        y = F.gelu(self.up(self.norms[1](x)))
        self.cut()
        return x + self.down(y)


@torch.no_grad()
def test_a_cut_block_has_the_kernels_of_the_uncut_one(events: list[E.Event]) -> None:
    counts, results = [], []
    x = torch.randn(2, 5, 16)
    for cuts, lazy in ((False, False), (True, True), (True, False)):
        torch.manual_seed(0)
        block = CutBlock(cuts)
        lazyc.metrics.reset()
        compiled = torch.compile(block, backend="lazyc", options={"lazy": lazy})
        results.append(compiled(x) + 0)
        counts.append(kernels())
    assert counts[0] == counts[1] < counts[2]
    assert [regions for *_, regions in flushes(events)] == [4]
    torch.testing.assert_close(results[1], results[0])


LOG = logging.getLogger("lazyc.tests")


def by_print() -> None:
    print("in the middle")


def by_logging() -> None:
    LOG.warning("in the middle")


def by_an_unsupported_builtin() -> None:
    open(os.devnull).close()


def by_a_side_effect() -> None:
    time.sleep(0)


@torch.no_grad()
@pytest.mark.parametrize(
    "cut_by", [by_print, by_logging, by_an_unsupported_builtin, by_a_side_effect]
)
def test_whatever_cuts_a_function(cut_by: Callable[[], None], events: list[E.Event]) -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a = x * y + 1
        cut_by()
        return a.relu().sum(-1)

    x, y = inputs()
    lazyc.metrics.reset()
    result = lazily(fn)(x, y)
    assert isinstance(result, LazyTensor)
    torch.testing.assert_close(result.clone(), (x * y + 1).relu().sum(-1))
    assert [regions for _, _, regions in flushes(events)] == [2]
    assert kernels() == 1


@torch.no_grad()
def test_a_compiled_function_calls_mark_step(events: list[E.Event]) -> None:
    """Dynamo does not trace it, or what waits would go on waiting."""

    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        lazyc.mark_step()
        return y + 1

    x, _ = inputs()
    result = lazily(fn)(x)
    assert flushes(events) == [("mark_step", "", 1)]
    torch.testing.assert_close(result + 0, x.exp() + 1)


@torch.no_grad()
def test_dynamo_traces_nothing_of_lazycs_own() -> None:
    """A value is read while Dynamo watches the frames of a compiled function."""

    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        if bool(y.ne(0).any()):
            graph_break()
        y += y.tolist()[0][0]
        graph_break()
        return y * 2

    x, _ = inputs()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(lazily(fn)(x) + 0, (x.exp() + x.exp()[0, 0]) * 2)
    assert torch._dynamo.utils.counters["frames"]["total"] == 5, "fn, and what follows each break"


@torch.no_grad()
def test_a_compiled_function_records(events: list[E.Event]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        with lazyc.lazy():
            y = x.exp()
            return (y + 1) * 2

    x, _ = inputs()
    result = torch.compile(fn, backend="lazyc")(x)
    torch.testing.assert_close(result + 0, (x.exp() + 1) * 2)
    assert [operators for *_, operators in flushes(events)] == [3]


@torch.no_grad()
def test_sizes_rounded_up_do_not_wait(events: list[E.Event]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        graph_break()
        return y.sum(0)

    compiled = lazily(fn, shapes="bucket")
    lazyc.metrics.reset()
    for n in (5, 6, 7, 8, 9):
        x = torch.randn(n)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), x.exp().sum(0))
    assert lazyc.metrics.snapshot()["buckets"] == 6, "6, 8 and 12 in each region"
    assert reasons(events) == {"its sizes are rounded up to buckets"}


@torch.no_grad()
def test_the_environment_may_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYC_LAZY", "1")
    assert isinstance(torch.compile(uncut, backend="lazyc")(*inputs()), LazyTensor)


@torch.no_grad()
def test_another_device_reads_a_value(events: list[E.Event]) -> None:
    result = lazily(cut)(*inputs())
    moved = result.to("meta")
    assert (moved.device.type, moved.shape) == ("meta", (6,))
    assert [cause for cause, _, _ in flushes(events)] == ["value_read"]


@torch.no_grad()
def test_the_second_call_compiles_nothing(events: list[E.Event]) -> None:
    fn = lazily(cut)
    for _ in range(3):
        x, y = inputs()
        torch.testing.assert_close(fn(x, y).clone(), uncut(x, y))
    compiled = [e.compiled for e in events if isinstance(e, E.Flushed)]
    assert compiled == [True, False, False]


def test_the_line_is_that_of_the_user(events: list[E.Event]) -> None:
    with torch.no_grad():
        result = lazily(cut)(*inputs())
    result.sum().item()
    (flush,) = [e for e in events if isinstance(e, E.Flushed)]
    assert flush.line.startswith("test_regions.py:")


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.qkv = torch.nn.Linear(16, 48)
        self.out = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        graph_break()
        y = F.scaled_dot_product_attention(q, k, v)
        graph_break()
        return x + F.gelu(self.out(y))


@torch.no_grad()
def test_a_module_and_weights_that_change() -> None:
    block = Block()
    fn, x = lazily(block), torch.randn(2, 5, 16)
    for _ in range(3):
        torch.testing.assert_close(fn(x).clone(), block(x))
        block.out.weight.add_(0.5)


# --- what reads a value ---------------------------------------------------------------------------

READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "print": lambda t: f"{t}",
    "repr": repr,
    "item": lambda t: t[0].item(),
    "bool": lambda t: bool(t[0] > 0),
    "numpy": lambda t: t.numpy().tolist(),
    "asarray": lambda t: np.asarray(t).tolist(),
    "dlpack": lambda t: np.from_dlpack(t).tolist(),
    "from_dlpack": lambda t: torch.from_dlpack(t).tolist(),
    "storage": lambda t: t.storage().tolist(),
    "untyped_storage": lambda t: bytes(t.untyped_storage()),
    "data_ptr": lambda t: ctypes.c_float.from_address(t.data_ptr()).value,
    "tolist": lambda t: t.tolist(),
    "iteration": lambda t: [float(v) for v in t],
    "operator": lambda t: (t + 1).tolist(),
    "deepcopy": lambda t: copy.deepcopy(t).tolist(),
    "pickle": lambda t: pickle.loads(pickle.dumps(t)).tolist(),
    "cat": lambda t: torch.cat([t, t]).tolist(),
    "allclose": lambda t: torch.allclose(t, t),
    "double": lambda t: t.to(torch.float64).tolist(),
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("read", READS)
@torch.no_grad()
def test_every_read_gets_the_value(read: str, events: list[E.Event]) -> None:
    x, y = inputs()
    waiting, wanted = lazily(cut)(x, y), torch.compile(uncut, backend="lazyc")(x, y)
    assert READS[read](waiting) == READS[read](wanted)
    assert [cause for cause, _, _ in flushes(events)] == ["value_read"]


@torch.no_grad()
def test_saving(events: list[E.Event]) -> None:
    x, y = inputs()
    file = io.BytesIO()
    torch.save({"result": lazily(cut)(x, y)}, file)
    file.seek(0)
    loaded = torch.load(file)["result"]
    torch.testing.assert_close(loaded, uncut(x, y))
    assert type(loaded) is torch.Tensor
    assert flushes(events) == [("value_read", "saving", 4)]


def two(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a = x.exp()
    graph_break()
    return a * 2, x.sin()


@torch.no_grad()
def test_a_read_runs_only_what_it_needs(events: list[E.Event]) -> None:
    x = torch.randn(8)
    first, second = lazily(lambda x: x.exp() * 2), lazily(lambda x: x.sin())
    a, b = first(x), second(x)
    torch.testing.assert_close(b.clone(), x.sin())
    assert flushes(events) == [("value_read", "aten.clone.default", 1)]
    torch.testing.assert_close(a.clone(), x.exp() * 2)


@torch.no_grad()
def test_nobody_reads_nothing_runs(events: list[E.Event]) -> None:
    x = torch.randn(8)
    result = lazily(lambda x: x.exp() * 2)(x)
    kept = weakref.ref(x)
    del result, x
    assert not flushes(events)
    assert [e.operators for e in events if isinstance(e, E.NeverComputed)] == [2]
    assert kept() is None, "what is dropped keeps no argument alive"


@torch.no_grad()
def test_mark_step_runs_what_can_still_be_asked_for(events: list[E.Event]) -> None:
    fn = lazily(lambda x: x.exp() * 2)
    x = torch.randn(8)
    dropped, kept = fn(x), fn(x + 1)
    del dropped
    lazyc.mark_step()
    assert flushes(events) == [("mark_step", "", 1)]
    torch.testing.assert_close(kept.clone(), (x + 1).exp() * 2)
    assert len(flushes(events)) == 1


@pytest.mark.parametrize(
    ("options", "cause"),
    [({"lazy_max_operators": 5}, "size_cap"), ({"lazy_max_mb": 1}, "memory_cap")],
)
@torch.no_grad()
def test_what_may_wait_is_capped(
    options: dict[str, int], cause: str, events: list[E.Event]
) -> None:
    fn = lazily(lambda x: x.exp() * 2, **options)
    x = torch.randn(300, 300)
    results = [fn(x) for _ in range(4)]
    assert [c for c, _, _ in flushes(events)] == [cause]
    for result in results:
        torch.testing.assert_close(result.clone(), x.exp() * 2)


# --- writes while something waits -----------------------------------------------------------------


@torch._dynamo.disable
def write(x: torch.Tensor) -> None:
    x.add_(1)


@torch.no_grad()
def test_an_argument_is_taken_as_it_was() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        a = x * 2
        write(x)
        return a + x

    x = torch.randn(8)
    mine = x.clone()
    torch.testing.assert_close(lazily(fn)(mine).clone(), fn(x))
    torch.testing.assert_close(mine, x)


@torch.no_grad()
def test_a_write_after_the_call_is_not_seen() -> None:
    x, wanted = torch.randn(8), None
    fn = lazily(lambda x: x.exp())
    wanted, waiting = x.exp(), fn(x)
    x.zero_()
    torch.testing.assert_close(waiting.clone(), wanted)
    assert not x.any()


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.t_(),
        lambda x: x.resize_(2, 2),
        lambda x: x.set_(x.untyped_storage(), 0, (4, 4), (0, 1)),
        lambda x: setattr(x, "data", x.data.t()),
        lambda x: setattr(x, "data", x.data.view(torch.int32)),
        lambda x: setattr(x, "data", torch.zeros(4, 4)),
    ],
    ids=["t_", "resize_", "set_", "transposed", "integers", "other"],
)
@pytest.mark.parametrize("front", ["region", "mode"])
@torch.no_grad()
def test_a_layout_changed_after_the_call_is_not_seen(
    change: Callable[[torch.Tensor], Any], front: str
) -> None:
    x = torch.arange(16.0).reshape(4, 4)
    expected = x * 2 + 1
    if front == "region":
        result = lazily(lambda x: x * 2 + 1)(x)
    else:
        with lazyc.lazy():
            result = x * 2 + 1
    assert isinstance(result, LazyTensor) and result._memory.tensor is None, "it does not wait"
    change(x)
    assert torch.equal(result + 0, expected)


def test_writes_to_results_leave_what_was_recorded_alone() -> None:
    x = torch.randn(8)
    first, second = lazily(lambda x: x.exp()), lazily(lambda x: x + 1)
    y = first(x)
    z = second(y)
    assert y.mul_(3) is y
    torch.testing.assert_close(y.clone(), x.exp() * 3)
    torch.testing.assert_close(z.clone(), x.exp() + 1)
    y = first(x)
    z = second(y)
    y[2:].zero_()  # through a view
    torch.testing.assert_close(z.clone(), x.exp() + 1)
    torch.testing.assert_close(y.clone(), torch.cat([x.exp()[:2], torch.zeros(6)]))


@torch.no_grad()
def test_a_result_read_early_is_shared_by_what_waits(events: list[E.Event]) -> None:
    x = torch.randn(8)
    first, second = lazily(lambda x: x.exp()), lazily(lambda x: x + 1)
    y = first(x)
    z = second(y)
    y.sum()
    z.sum()
    torch.testing.assert_close(z.clone(), x.exp() + 1)
    assert [regions for _, _, regions in flushes(events)] == [1, 1]


@torch.no_grad()
def test_a_write_between_two_readers_of_one_result() -> None:
    x = torch.randn(8)
    y = lazily(lambda x: x.exp())(x)
    first, second = lazily(lambda x: x + 1)(y), lazily(lambda x: x * 2)(y)
    y.sum()
    torch.testing.assert_close(first.clone(), x.exp() + 1)
    y.add_(100)
    torch.testing.assert_close(second.clone(), x.exp() * 2)


@torch.no_grad()
def test_an_argument_is_not_copied() -> None:
    x = torch.randn(1000)
    address = x.data_ptr()
    first, second = lazily(lambda x: x.exp() + 1)(x), lazily(lambda x: x * 2)(x)
    first.sum()
    assert torch._C._data_address(x) == address
    second.sum()
    assert x.data_ptr() == address


@torch.no_grad()
def test_results_that_share_memory() -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (x * 2).chunk(2)
        graph_break()
        return a + b, b

    def halves(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x * 2).chunk(2)

    x = torch.randn(8, 3)
    total, part = lazily(fn)(x)
    torch.testing.assert_close(total.clone(), x[:4] * 2 + x[4:] * 2)
    torch.testing.assert_close(part.clone(), x[4:] * 2)
    a, b = lazily(halves)(x)
    a.sum()
    assert a.data_ptr() + 4 * 12 == b.data_ptr()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_the_mode_of_the_reader_does_not_matter(mode: Callable[[], Any]) -> None:
    x = torch.randn(8)
    with torch.no_grad():
        waiting = lazily(lambda x: torch.sort(x.exp())[0])(x)
    with mode():
        waiting.sum()
    assert not waiting.requires_grad
    w = torch.randn(8, requires_grad=True)
    (waiting * w).sum().backward()
    torch.testing.assert_close(w.grad, x.exp().sort()[0])


def test_autocast_of_the_reader_does_not_matter() -> None:
    x, w = torch.randn(2, 3, 9), torch.randn(3, 4, 2)
    with torch.no_grad():
        waiting = lazily(F.conv_transpose1d)(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        result = waiting.clone()
    assert result.dtype is torch.float32
    torch.testing.assert_close(result, F.conv_transpose1d(x, w))


@torch.no_grad()
def test_memory_of_numpy_is_not_waited_for(events: list[E.Event]) -> None:
    array = np.ones(8, np.float32)
    x = torch.from_numpy(array)
    result = lazily(lambda x: x * 3)(x)
    array[:] = 5
    assert torch.equal(result, torch.full((8,), 3.0))
    assert not flushes(events)


# --- regions that run at once ---------------------------------------------------------------------


def reasons(events: list[E.Event]) -> set[str]:
    return {e.reason for e in events if isinstance(e, E.NotLazy)}


def test_gradients(events: list[E.Event]) -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        a = x.exp()
        graph_break()
        return (a * w).sum()

    w, x = torch.randn(8, requires_grad=True), torch.randn(8)
    fn_lazy = lazily(fn)
    (found,) = torch.autograd.grad(fn_lazy(x), w)
    torch.testing.assert_close(found, x.exp())
    assert reasons(events) == {"it needs gradients"}
    assert flushes(events) == [("region_end", "a region that runs at once: it needs gradients", 1)]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.add_(1) * 2,
        lambda x: x.view(-1),
        lambda x: (x.exp(), x.exp().view(-1)),
        lambda x: F.dropout(x, 0.5),
        lambda x: (x + 1, 5),
        lambda x: (y := x + 1, y[2:]),
    ],
    ids=["write", "view", "two", "dropout", "number", "shared"],
)
@torch.no_grad()
def test_other_barriers_are_as_without_laziness(fn: Callable[..., Any]) -> None:
    def whole(x: torch.Tensor) -> Any:
        a = x * 2
        graph_break()
        return fn(a)

    x = torch.randn(8)
    torch.manual_seed(3)
    wanted = torch.compile(whole, backend="lazyc")(x)
    torch.manual_seed(3)
    found = lazily(whole)(x)
    torch.utils._pytree.tree_map(
        lambda a, b: torch.testing.assert_close(torch.as_tensor(a) + 0, torch.as_tensor(b) + 0),
        found,
        wanted,
    )


@torch.no_grad()
def test_sizes_that_change(events: list[E.Event]) -> None:
    """Regions wait for some sizes; beyond, one program for any size runs at once."""
    fn = lazily(cut)
    for n in range(3, 16):
        x, y = inputs(n)
        torch.testing.assert_close(fn(x, y).clone(), uncut(x, y))
    regions = [e.regions for e in events if isinstance(e, E.Flushed)]
    whole = regions[0]
    assert whole > 1 and 8 <= regions.count(whole) < 13
    assert "it has sizes that change, and waits for 8 of them only" in reasons(events)
    changed = [e.changed for e in events if isinstance(e, E.Recompiled)]
    assert any("tensor 0: size of dim" in text for text in changed)


def test_inference_mode() -> None:
    fn = lazily(cut)
    with torch.inference_mode():
        x, y = inputs()
        waiting, wanted = fn(x, y), uncut(x, y)
        y.zero_()
        torch.testing.assert_close(waiting.clone(), wanted)
        assert waiting.is_inference()


@torch.no_grad()
def test_errors_are_those_of_eager_when_the_value_is_read() -> None:
    def fn(index: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(index, table)
        graph_break()
        return rows.sum(-1)

    table, fn_lazy = torch.randn(5, 4), lazily(fn)
    good = torch.tensor([1, 4])
    torch.testing.assert_close(fn_lazy(good, table).clone(), fn(good, table))
    bad = fn_lazy(torch.tensor([1, 5]), table)
    for _ in range(2):
        with pytest.raises(IndexError, match="index out of range"):
            bad.sum()


@torch.no_grad()
def test_results_without_elements_have_strides_as_in_eager() -> None:
    """A stride of 0 among them. Dynamo compares what a LazyTensor says of itself with the value that it has."""

    def fn(x: torch.Tensor) -> torch.Tensor:
        y = torch.roll(x, 1, 0)
        lazyc.mark_step()
        return y + 1

    x = torch.empty(1, 0).expand(2, 0)
    rolled = torch.compile(lambda x: torch.roll(x, 1, 0), backend="lazyc")(x)
    assert rolled.stride() == torch.roll(x, 1, 0).stride() == (0, 1)
    assert lazily(fn)(x).shape == (2, 0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "aot_eager_decomp_partition", "lazyc"])
@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_other_compiled_functions_take_what_waits(backend: str, dynamic: bool) -> None:
    lazyc.metrics.reset()
    first = lazily(lambda x: x.exp())
    other = torch.compile(lambda x: x.cos() + 1, backend=backend, dynamic=dynamic)
    for n in (8, 8, 9):
        x = torch.randn(n, 3)
        waiting = first(x)
        assert isinstance(waiting, LazyTensor) and waiting._memory.tensor is None
        torch.testing.assert_close(other(waiting) + 0, x.exp().cos() + 1)
    assert not lazyc.metrics.snapshot()["fallbacks"]


def test_other_compiled_functions_with_gradients_take_what_waits() -> None:
    first = lazily(lambda x: x.exp())
    other = torch.compile(lambda x, w: (x.cos() * w).sum(), backend="aot_eager")
    for _ in range(2):
        x, w = torch.randn(8), torch.randn(8, requires_grad=True)
        with torch.no_grad():
            waiting = first(x)
        other(waiting, w).backward()
        torch.testing.assert_close(w.grad, x.exp().cos())


# --- threads and processes ------------------------------------------------------------------------


@torch.no_grad()
def test_another_thread_reads() -> None:
    x = torch.randn(100)
    waiting, found = [lazily(lambda x: x.exp())(x) for _ in range(8)], []

    def read(k: int) -> None:
        found.append(waiting[k % 8].clone())

    threads = [threading.Thread(target=read, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    for value in found:
        torch.testing.assert_close(value, x.exp())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@torch.no_grad()
def test_a_fork_runs_what_waits_first(events: list[E.Event]) -> None:
    x = torch.randn(8)
    waiting, wanted = lazily(lambda x: x * 2)(x), x * 2
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(waiting, wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert flushes(events) == [("fork", "", 1)]


@torch.no_grad()
def test_a_bug_in_specializing_leaves_the_model_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: Any, values: Any) -> Any:
        raise AssertionError("on purpose")

    monkeypatch.setattr("lazyc.recording.regions.specialize", fails)
    torch._dynamo.reset()
    options = {"lazy": True, "strict": False}
    fn = torch.compile(lambda x: x.exp() + 1, backend="lazyc", options=options, dynamic=True)
    x = torch.randn(5)
    with pytest.warns(UserWarning, match="on purpose"):
        torch.testing.assert_close(fn(x) + 0, x.exp() + 1)
    torch.testing.assert_close(fn(x) + 0, x.exp() + 1)


def test_a_region_inside_of_torch_is_named_by_the_line_of_each_call():
    """Its own lines are torch's; the two calls are told apart."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    lazy = torch.compile(model, backend="lazyc", options={"lazy": True})
    seen: list[E.Event] = []
    unsubscribe = EVENTS.subscribe(seen.append)
    try:
        with torch.no_grad():
            x = torch.randn(2, 4)
            first = lazy(x)
            second = lazy(x)
        del first, second
        gc.collect()
    finally:
        unsubscribe()
    lines = [event.line for event in seen if isinstance(event, E.NeverComputed)]
    assert len(lines) == len(set(lines)) == 2, lines


def test_a_waiting_tensor_that_needs_a_gradient() -> None:
    """It is a leaf like any other: what takes it runs at once, with gradients."""
    lazyc.metrics.reset()
    produce = torch.compile(lambda x: x + 1, backend="lazyc", options={"lazy": True})
    with torch.no_grad():
        leaf = produce(torch.arange(4.0))
    leaf.requires_grad_()
    square = torch.compile(lambda a: (a * a).sum(), backend="lazyc", options={"lazy": True})
    for _ in range(2):
        leaf.grad = None
        result = square(leaf)
        assert result.requires_grad
        result.backward()
        torch.testing.assert_close(leaf.grad, torch.tensor([2.0, 4.0, 6.0, 8.0]))
    with torch.no_grad():
        waits = produce(torch.arange(4.0))
        assert square(waits).item() == 30
    counts = lazyc.metrics.snapshot()
    assert counts["fallbacks"] == [] and counts["kernel_calls"] >= 2


def test_a_value_is_read_while_it_is_computed() -> None:
    """By the finalizer of a cycle that the collector finds during the flush."""
    lazyc.metrics.reset()
    seen: list[float] = []

    class Log:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor, self.me = tensor, self

        def __del__(self) -> None:
            seen.append(self.tensor.sum().item())

    produce = torch.compile(lambda x: x + 1, backend="lazyc", options={"lazy": True})
    consume = torch.compile(
        lambda x: (x.cos() * x).softmax(-1).cumsum(0), backend="lazyc", options={"lazy": True}
    )
    x = torch.randn(38, 91)
    expected = ((x + 1).cos() * (x + 1)).softmax(-1).cumsum(0).sum().item()
    before = gc.get_threshold()
    try:
        with torch.no_grad():
            y = consume(produce(x))
            gc.collect()
            gc.disable()
            log = Log(y)
            del log
            gc.set_threshold(50)
            gc.enable()
            assert y.sum().item() == pytest.approx(expected, rel=1e-4)
            gc.collect()
    finally:
        gc.set_threshold(*before)
        gc.enable()
    assert seen == pytest.approx([expected], rel=1e-4)
    assert lazyc.metrics.snapshot()["fallbacks"] == []
    recorder = y._memory.recorder
    recorder.restart_peak()
    assert recorder.peak == (0, 0), "what waits is counted once"
