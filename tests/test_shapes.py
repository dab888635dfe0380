"""What becomes of sizes that change: the options shapes, buckets and on_new_shape, and mark_dim."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.exc import BackendCompilerFailed

import lazyc
from lazyc.backend import EVENTS
from lazyc.errors import CompilerBugWarning, ConfigError
from lazyc.frontend.shapes import SizePolicy, next_size
from lazyc.report import events as E
from lazyc.variants import InBackground, _workers

LENGTHS = [2 + (17 * k) % 61 for k in range(50)]  # 50 lengths, none twice in a row


class Block(torch.nn.Module):
    """A transformer block with causal attention written out; x: (batch, length, width)."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.proj = torch.nn.Linear(width, width)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, d = x.shape
        qkv = self.qkv(self.norms[0](x)).view(b, s, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / (d // self.heads) ** 0.5
        place = torch.arange(s)
        scores = scores.masked_fill(place[:, None] < place, float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, d)
        x = x + self.proj(y)
        return x + self.mlp(self.norms[1](x))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    torch._dynamo.reset()
    lazyc.metrics.reset()
    return Block().eval()


@pytest.fixture
def events() -> Iterator[list[E.Event]]:
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    yield heard
    stop()


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="lazyc", options=options)


def graphs() -> int:
    return lazyc.metrics.snapshot()["graphs_compiled"]


def run(block: Block, function: Any, lengths: list[int]) -> None:
    with torch.no_grad():
        for length in lengths:
            x = torch.randn(2, length, 16)
            torch.testing.assert_close(function(x), block(x), rtol=1e-4, atol=1e-5)


def run_alone(function: Any, length: int) -> None:
    with torch.no_grad():
        function(torch.randn(2, length, 16))


# --- 50 lengths -----------------------------------------------------------------------------------


def test_static_sizes_are_compiled_up_to_dynamos_limit(block: Block) -> None:
    function = compiled(block, shapes="static")
    run(block, function, LENGTHS)
    limit = torch._dynamo.config.recompile_limit
    assert graphs() == limit

    def operators(length: int) -> set[str]:
        with torch.profiler.profile() as profile:
            run_alone(function, length)
        return {e.key for e in profile.key_averages() if e.key.startswith("aten::")}

    softmax = "aten::_softmax"
    assert softmax not in operators(LENGTHS[0]), "what was compiled still serves"
    assert softmax not in operators(LENGTHS[limit - 1])
    assert softmax in operators(LENGTHS[limit])


def test_symbolic_sizes_are_compiled_once(block: Block) -> None:
    run(block, compiled(block), LENGTHS)
    assert graphs() <= 2  # the first length, and all others
    assert lazyc.metrics.snapshot()["fallbacks"] == []


@pytest.mark.parametrize("marked", [False, True])
def test_buckets_are_compiled_once_each(block: Block, marked: bool) -> None:
    function = compiled(block, shapes="bucket")
    if marked:
        x = torch.randn(2, LENGTHS[0], 16)
        torch._dynamo.mark_dynamic(x, 1)
        with torch.no_grad():
            function(x)
    run(block, function, LENGTHS)
    found = lazyc.metrics.snapshot()
    used = {next_size(n) for n in (LENGTHS if marked else LENGTHS[1:])}
    assert found["buckets"] == len(used)
    assert found["graphs_compiled"] == len(used) + (not marked)
    assert found["fallbacks"] == []
    served = LENGTHS if not marked else [LENGTHS[0], *LENGTHS]
    served = [n for n in served if marked or n != LENGTHS[0]]
    waste = 100 * (1 - sum(served) / sum(map(next_size, served)))
    assert found["padding_waste_percent"] == pytest.approx(waste)
    assert f"{waste:.1f} %" in lazyc.metrics.report()


def test_a_list_of_buckets(block: Block) -> None:
    function = compiled(block, shapes="bucket", buckets=[32, 8])
    run(block, function, [9, *range(2, 30), 40, 41, 42])
    found = lazyc.metrics.snapshot()
    assert found["buckets"] == 2
    assert found["graphs_compiled"] == 4  # 9 by itself, 8, 32, and any size for those above


def test_training_with_buckets(block: Block) -> None:
    function = compiled(block, shapes="bucket")
    for length in LENGTHS[:6]:
        x = torch.randn(2, length, 16)
        found, expected = [], []
        for model, kept in ((function, found), (block, expected)):
            block.zero_grad()
            F.mse_loss(model(x), x.flip(0)).backward()
            kept += [p.grad for p in block.parameters()]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert lazyc.metrics.snapshot()["buckets"] > 2
    assert lazyc.metrics.snapshot()["fallbacks"] == []


def test_written_arguments_and_eager_calls_are_not_padded() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y.mul_(x.softmax(0))
        values, order = x.exp().sort(0)
        return values.sum(), order, y[1:], x.exp().sum()

    torch._dynamo.reset()
    call = compiled(function, shapes="bucket")
    for length in (3, 5, 6, 7, 9):
        x, y = torch.randn(2, length)
        z = y.clone()
        torch.testing.assert_close(call(x, y), function(x, z))
        torch.testing.assert_close(y, z)


# --- mark_dim -------------------------------------------------------------------------------------


def test_mark_dim_chooses_for_one_dim() -> None:
    torch._dynamo.reset()
    lazyc.metrics.reset()
    function = compiled(lambda x: x.softmax(0) + x.softmax(1))
    x = torch.randn(5, 20)
    lazyc.mark_dim(x, 0, "symbolic")
    lazyc.mark_dim(x, -1, "bucket", [32, 64])
    function(x)
    for shape in ((6, 21), (7, 32), (8, 33), (9, 64), (10, 65)):
        x = torch.randn(shape)
        torch.testing.assert_close(function(x), x.softmax(0) + x.softmax(1))
    found = lazyc.metrics.snapshot()
    assert found["buckets"] == 2 and found["graphs_compiled"] == 3


def test_mark_dim_static() -> None:
    torch._dynamo.reset()
    lazyc.metrics.reset()
    function = compiled(lambda x: x.exp().sum(0))
    for length in (4, 5, 6):
        x = torch.randn(length)
        lazyc.mark_dim(x, 0, "static")
        torch.testing.assert_close(function(x), x.exp().sum(0))
    assert graphs() == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, "padded"), "must be one of static, symbolic, bucket"),
        ((2, "bucket"), "the tensor has 2 dims"),
        ((0, "symbolic", [4]), "for shapes='bucket' only"),
        ((0, "bucket", [0]), "positive integers"),
    ],
)
def test_mark_dim_names_what_is_wrong(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lazyc.mark_dim(torch.ones(2, 2), *arguments)


@pytest.mark.parametrize("options", [{"shapes": "dynamic"}, {"buckets": "64,x"}, {"buckets": [0]}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, BackendCompilerFailed), match="must be"):
        compiled(lambda x: x + 1, **options)(torch.ones(2))


def test_sizes_are_rounded_up() -> None:
    assert [next_size(n) for n in (0, 1, 2, 3, 4, 5, 7, 9, 13, 90, 97)] == [
        1, 1, 2, 3, 4, 6, 8, 12, 16, 96, 128,
    ]  # fmt: skip
    policy = SizePolicy("bucket", (10, 20))
    assert [policy.room(n) for n in (1, 10, 11, 21)] == [10, 10, 20, None]


# --- on_new_shape ---------------------------------------------------------------------------------


def work(x: torch.Tensor) -> torch.Tensor:
    for k in range(30):
        x = F.layer_norm(x.softmax(-1) * (k + 2), x.shape[-1:]).cumsum(-1)
    return x


def first_call(function: Any, x: torch.Tensor) -> float:
    """Seconds that lazyc adds: what Dynamo takes is not ours."""
    before = sum(lazyc.metrics.snapshot()["compile_seconds"].values())
    torch.testing.assert_close(function(x), work(x), rtol=1e-3, atol=1e-4)
    return sum(lazyc.metrics.snapshot()["compile_seconds"].values()) - before


@pytest.fixture
def served(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """``work`` compiled for 8 columns, with an empty cache."""
    torch._dynamo.reset()
    lazyc.metrics.reset()
    function = torch.compile(
        work,
        backend="lazyc",
        dynamic=False,
        options={"on_new_shape": request.param, "cache_dir": str(tmp_path)},
    )
    function(torch.randn(4, 8))
    return function


@pytest.mark.parametrize("served", ["compile"], indirect=True)
def test_compile(served: Any) -> None:
    assert first_call(served, torch.randn(4, 9)) > 0
    assert graphs() == 2


@pytest.mark.parametrize("served", ["eager"], indirect=True)
def test_eager(served: Any) -> None:
    assert first_call(served, torch.randn(4, 9)) == 0
    (fallback,) = lazyc.metrics.snapshot()["fallbacks"]
    assert fallback["reason"] == "a new shape: x: size of dim 1, 8 -> 9"
    assert graphs() == 1
    first_call(served, torch.randn(4, 8))
    assert graphs() == 1, "the shape that was compiled is still served by its code"


@pytest.mark.parametrize("served", ["background"], indirect=True)
def test_background(served: Any, events: list[E.Event]) -> None:
    x = torch.randn(4, 9)

    def runs_in_eager() -> bool:
        with torch.profiler.profile() as profile:
            torch.testing.assert_close(served(x), expected, rtol=1e-3, atol=1e-4)
        return any(e.key == "aten::_softmax" for e in profile.key_averages())

    expected = work(x)
    held = threading.Event()
    _workers.get().submit(held.wait)
    assert first_call(served, x) == 0, "nothing is compiled in the call"
    assert runs_in_eager() and graphs() == 1
    held.set()
    _workers.get().submit(int).result()  # done after what was submitted before
    assert graphs() == 2 and not runs_in_eager()
    assert lazyc.metrics.snapshot()["fallbacks"] == []


@pytest.mark.parametrize("served", ["error"], indirect=True)
def test_error(served: Any) -> None:
    with pytest.raises(Exception, match=r"a new shape.*x: size of dim 1, 8 -> 9.*mark_dim"):
        served(torch.randn(4, 9))
    first_call(served, torch.randn(4, 8))


def test_new_buckets(events: list[E.Event]) -> None:
    for policy in ("eager", "error"):
        torch._dynamo.reset()
        lazyc.metrics.reset()
        function = compiled(lambda x: x.exp().sum(0), shapes="bucket", on_new_shape=policy)
        x = torch.randn(5)
        torch._dynamo.mark_dynamic(x, 0)
        function(x)
        function(torch.randn(6))
        assert graphs() == 1
        if policy == "error":
            with pytest.raises(Exception, match=r"a new shape: s.* = 7 -> 8"):
                function(torch.randn(7))
            continue
        x = torch.randn(7)
        torch.testing.assert_close(function(x), x.exp().sum(0))
        assert graphs() == 1 and len(lazyc.metrics.snapshot()["fallbacks"]) == 1


def test_background_failures_are_reported() -> None:
    def fails() -> Any:
        raise RuntimeError("on purpose")

    serve = InBackground(fails, lambda args: ["meanwhile"])
    _workers.get().submit(int).result()  # done after what was submitted before
    with pytest.raises(RuntimeError, match="on purpose"):
        serve([])
    assert serve([]) == ["meanwhile"]


def test_padding_is_not_counted_while_eager_serves() -> None:
    torch._dynamo.reset()
    lazyc.metrics.reset()
    function = compiled(lambda x: x.exp().sum(0) * 3, shapes="bucket", on_new_shape="background")
    x = torch.randn(8)
    torch._dynamo.mark_dynamic(x, 0)
    function(x)  # the first shape is compiled at once
    held = threading.Event()
    _workers.get().submit(held.wait)
    function(torch.randn(9))
    assert lazyc.metrics.snapshot()["padding_waste_percent"] == 0
    held.set()
    _workers.get().submit(int).result()
    function(torch.randn(9))
    assert lazyc.metrics.snapshot()["padding_waste_percent"] == pytest.approx(100 * 3 / 20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_compiles_what_its_parent_had_not() -> None:
    held = threading.Event()
    _workers.get().submit(held.wait)
    serve = InBackground(lambda: lambda args: ["made"], lambda args: ["meanwhile"])
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        found = serve([])  # it begins anew here
        _workers.get().submit(int).result()
        os.write(writes, f"{found[0]} {serve([])[0]}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reads, 100) == b"meanwhile made"
    held.set()
    _workers.get().submit(int).result()
    assert serve([]) == ["made"]


def test_a_bug_in_padding_leaves_the_model_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: Any, rooms: Any) -> Any:
        raise AssertionError("on purpose")

    monkeypatch.setattr("lazyc.passes.pad_to_bucket.pad_to_bucket", fails)
    torch._dynamo.reset()
    x = torch.randn(5)
    torch._dynamo.mark_dynamic(x, 0)
    function = compiled(lambda x: x.exp().sum(0), shapes="bucket", strict=False)
    with pytest.warns(CompilerBugWarning, match="pass pad_to_bucket"):
        torch.testing.assert_close(function(x), x.exp().sum(0))
