"""The torch.compile entry: options, failures that leave the model running, eager's errors."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lazyc
from lazyc import backend
from lazyc.errors import CompilerBugWarning, LazycWarning, UnsupportedVersion
from lazyc.ir.program import GemmStep
from lazyc.passes import canonicalize
from lazyc.report import events as E


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend="lazyc", options=options)


@pytest.fixture(autouse=True)
def counters() -> None:
    lazyc.metrics.reset()


def test_compiles_without_an_import_of_lazyc_by_the_user() -> None:
    x = torch.randn(8, 9)
    torch.testing.assert_close(compiled(lambda x: torch.tanh(x) + 1)(x), torch.tanh(x) + 1)
    counts = lazyc.metrics.snapshot()
    assert counts["graphs_compiled"] == 1
    assert counts["fallbacks"] == []


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(Exception, match="did you mean 'fusion'"):
        compiled(torch.tanh, fusions=True)(torch.randn(3))


def test_bad_option_value_says_what_is_allowed() -> None:
    with pytest.raises(Exception, match="avx512"):
        compiled(torch.tanh, target="sse9")(torch.randn(3))


def test_a_miss_without_a_disk_cache_names_what_differs() -> None:
    events: list[E.Event] = []
    stop = backend.EVENTS.subscribe(events.append)
    try:
        for rows in (5, 6):
            torch._dynamo.reset()
            compiled(torch.tanh, disk_cache=False)(torch.randn(rows, 7))
    finally:
        stop()
    misses = [e for e in events if isinstance(e, E.CacheMiss) and e.compiles]
    assert len(misses) == 2 and all(e.level == "memory" for e in misses)
    assert "input 0: f32[5,7]" in misses[1].reason


def test_strict_raises_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonicalize, "_RULES", {"tanh": [_broken_rule]})
    with pytest.raises(Exception, match=r"pass canonicalize.*planted"):
        compiled(torch.tanh, strict=True, disk_cache=False)(torch.randn(5, 5))


def test_bug_runs_in_eager_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonicalize, "_RULES", {"tanh": [_broken_rule]})
    x = torch.randn(6, 5)
    with pytest.warns(CompilerBugWarning, match="This is a bug in lazyc"):
        result = compiled(torch.tanh, strict=False, disk_cache=False)(x)
    torch.testing.assert_close(result, torch.tanh(x))
    assert lazyc.metrics.snapshot()["compiler_bugs"] == {"pass canonicalize": 1}


def _broken_rule(*_: Any) -> None:
    raise ValueError("planted")


def test_unsupported_torch_runs_in_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UnsupportedVersion("torch", "1.0", "2.13 or 2.14")

    monkeypatch.setattr(backend, "check_versions", refuse)
    x = torch.randn(4)
    with pytest.warns(LazycWarning, match=r"torch 1\.0 is installed"):
        result = compiled(torch.tanh, strict=False)(x)
    torch.testing.assert_close(result, torch.tanh(x))


def test_index_out_of_range_raises_as_in_eager() -> None:
    table = torch.randn(4, 3)
    lookup = compiled(lambda i: torch.nn.functional.embedding(i, table))
    torch.testing.assert_close(lookup(torch.tensor([3, 0])), table[[3, 0]])
    with pytest.raises(IndexError):
        lookup(torch.tensor([3, 4]))


def test_integer_division_by_zero_raises_as_in_eager() -> None:
    divide = compiled(lambda a, b: a // b)
    a = torch.tensor([7, -7, 5])
    assert divide(a, torch.tensor([2, 2, -3])).tolist() == [3, -4, -2]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        divide(a, torch.tensor([1, 0, 1]))


def test_unlowered_op_is_an_eager_step_between_compiled_pieces() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        values, _ = torch.sort(torch.exp(x), dim=-1)
        return values * 2 + 1

    x = torch.randn(5, 7)
    torch.testing.assert_close(compiled(f)(x), f(x))
    counts = lazyc.metrics.snapshot()
    assert [(e["op"], e["count"]) for e in counts["fallbacks"]] == [("aten.sort.default", 1)]
    assert counts["kernels_made"] + counts["kernels_reused"] == 2


def test_complex_tensors_pass_through_eager() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x * 2).abs() + 1

    x = torch.randn(16)
    torch.testing.assert_close(compiled(f)(x), f(x))


def test_other_devices_run_in_eager() -> None:
    x = torch.empty(3, device="meta")
    assert compiled(torch.tanh)(x).device.type == "meta"


def test_dynamic_sizes_compile_once_and_serve_all() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x * 2, -1).sum(0)

    run = torch.compile(f, backend="lazyc", dynamic=True)
    for rows, cols in ((3, 5), (8, 33), (17, 64), (2, 2)):
        x = torch.randn(rows, cols)
        torch.testing.assert_close(run(x), f(x))
    assert lazyc.metrics.snapshot()["graphs_compiled"] == 1


def test_threads_share_one_program() -> None:
    run = compiled(lambda x: torch.softmax(x, -1) @ x.t())
    run(torch.randn(32, 32))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        x = torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))
        try:
            for _ in range(50):
                torch.testing.assert_close(run(x), torch.softmax(x, -1) @ x.t())
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failures


def test_training_step_matches_eager() -> None:
    def step(model: torch.nn.Module, run: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(1)
        x, y = torch.randn(16, 8), torch.randint(0, 4, (16,))
        torch.nn.functional.cross_entropy(run(x), y).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 4)
    )
    expected = step(model, model)
    model.zero_grad()
    actual = step(model, torch.compile(model, backend="lazyc"))
    torch.testing.assert_close(actual, expected)
    assert lazyc.metrics.snapshot()["graphs_compiled"] == 2


def test_updated_weights_are_never_stale() -> None:
    layer = torch.nn.Linear(64, 64)
    run = torch.compile(layer, backend="lazyc")
    x = torch.randn(32, 64)
    with torch.no_grad():
        for change in (
            lambda: None,
            lambda: layer.weight.mul_(2),
            lambda: layer.weight.data.add_(1),
            lambda: layer.load_state_dict(torch.nn.Linear(64, 64).state_dict()),
            lambda: setattr(layer.weight, "data", torch.randn(64, 64)),
        ):
            change()
            torch.testing.assert_close(run(x), layer(x), rtol=1e-4, atol=1e-5)


def test_without_the_option_no_weight_is_packed() -> None:
    layer = torch.nn.Linear(64, 64)
    x = torch.randn(32, 64)
    for packs in (True, False):
        before = set(backend.executables())
        with torch.no_grad():
            run = torch.compile(layer, backend="lazyc", options={"pack_weights": packs})
            torch.testing.assert_close(run(x), layer(x), rtol=1e-4, atol=1e-5)
        (made,) = set(backend.executables()) - before
        marks = [s.pack_b for s in made.program.steps if isinstance(s, GemmStep)]
        assert marks == [packs] and (made.weights is not None or not packs)
        torch._dynamo.reset()


def test_kernels_read_what_an_eager_call_made_of_a_weight() -> None:
    """One of two results, which is kept between calls, and so is what a kernel makes of it."""

    def f(x: torch.Tensor) -> torch.Tensor:
        return x @ (torch.linalg.qr(weight)[0] * 2)

    weight = torch.nn.Parameter(torch.randn(24, 24))
    function = compiled(f, strict=True)
    with torch.no_grad():
        for _ in range(2):
            for _ in range(2):
                x = torch.randn(5, 24)
                torch.testing.assert_close(function(x), f(x), rtol=1e-4, atol=1e-4)
            weight.mul_(torch.randn(24, 24))


def test_debug_output_names_the_fallback(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    with warnings.catch_warnings():
        warnings.simplefilter("error", LazycWarning)
        compiled(lambda x: torch.sort(x)[0], debug=1, debug_file=str(path))(torch.randn(7))
    text = path.read_text()
    assert "compiled in" in text
    assert "aten.sort" in text


ALIASED = {
    "whole and part": lambda x: (lambda y: (y, y[1:], y.t()))(x.exp()),
    "two parts": lambda x: (lambda y: (y[1:], y[:3]))(x.exp()),
    "split": lambda x: x.exp().split(2, dim=1),
    "expanded": lambda x: (lambda y: (y.expand(3, 4, 6), y + 1))(x.exp()),
    "a clone is apart": lambda x: (lambda y: (y, y.clone(), y.clone()))(x.exp()),
    "computed twice": lambda x: (x.exp(), x.exp()),
    "view of a product": lambda x: (lambda y: (y.view(2, 8), y))(x @ x.t()),
    "view of an eager result": lambda x: (lambda y: (y, y[1:]))(x.sort().values),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ALIASED)
def test_results_share_memory_as_in_eager(name: str, dynamic: bool) -> None:
    """Each result in turn is written to; the others change as they do in eager."""
    function, x = ALIASED[name], torch.randn(4, 6)
    for k in range(len(function(x))):
        found, wanted = torch.compile(function, backend="lazyc", dynamic=dynamic)(x), function(x)
        assert [t.stride() for t in found] == [t.stride() for t in wanted]
        for results in (found, wanted):
            results[k][(0,) * results[k].ndim] = 100.0
        torch.testing.assert_close(found, wanted)


def test_saved_views_share_memory_with_results() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x.exp()
        a, b = y.split(3, dim=1)
        return y, a * b, y.t()

    x = torch.randn(4, 6, requires_grad=True)
    found, wanted = compiled(function)(x), function(x)
    torch.testing.assert_close(found, wanted)
    seeds = [torch.randn_like(t) for t in wanted]
    for results in (found, wanted):
        torch.autograd.backward(results, seeds)
        torch.testing.assert_close(x.grad, x.grad.clone())
    expected = torch.autograd.grad(function(x), x, seeds)[0]
    torch.testing.assert_close(x.grad, 2 * expected)


def test_an_llvmlite_that_does_not_import_runs_in_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    x = torch.randn(4)
    with pytest.warns(LazycWarning, match=r"llvmlite .*import fails"):
        found = compiled(torch.sinh, strict=False)(x)
    torch.testing.assert_close(found, torch.sinh(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_values_between_the_passes_over_a_row(dtype: torch.dtype) -> None:
    """They wait in scratch memory in float32, unrounded."""

    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(torch.tanh(x) * 3)
        return y / y.sum(-1, keepdim=True)

    x = torch.randn(12, 100, dtype=dtype)
    found = compiled(function, strict=True, verify=True)(x)
    torch.testing.assert_close(found, function(x.double()).to(dtype))
    counts = lazyc.metrics.snapshot()
    assert (counts["kernels_made"] + counts["kernels_reused"], counts["fallbacks"]) == (1, [])


def test_an_eager_result_of_another_shape_than_traced() -> None:
    """``_embedding_bag`` of half types returns an empty tensor where its trace says otherwise."""
    weight = torch.randn(10, 4, dtype=torch.bfloat16, requires_grad=True)
    index, offsets = torch.tensor([1, 2, 4, 5, 4, 3, 2, 9]), torch.tensor([0, 4])

    def function(weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding_bag(index, weight, offsets) * 2

    found, wanted = compiled(function)(weight), function(weight)
    torch.testing.assert_close(found, wanted)
    seed = torch.ones_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, weight, seed), torch.autograd.grad(wanted, weight, seed)
    )


@pytest.mark.parametrize("layout", ["sliced", "expanded", "transposed", "0-dim", "empty"])
def test_an_argument_of_an_eager_call_is_written_to_later(layout: str) -> None:
    """The call gets a copy of the argument, with the argument's strides."""
    makers = {
        "sliced": lambda: torch.arange(8.0).reshape(2, 4)[:, ::2],
        "expanded": lambda: torch.arange(2.0)[:, None].expand(2, 2)[:, :1],
        "transposed": lambda: torch.arange(6.0).reshape(2, 3).t(),
        "0-dim": lambda: torch.tensor(1.0),
        "empty": lambda: torch.zeros(2, 0),
    }

    def function(x: torch.Tensor) -> torch.Tensor:
        result = torch.sort(x.transpose(-1, 0), dim=0, stable=True)[0] * 2
        x.add_(1)
        return result

    found, expected = makers[layout](), makers[layout]()
    compiled = torch.compile(function, backend="lazyc")
    torch.testing.assert_close(compiled(found), function(expected))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_view_of_an_argument_that_is_written_to(dynamic: bool) -> None:
    """With dynamic sizes AOTAutograd makes it from the argument and the offset of what we return."""

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x.clamp_(-1, 1)
        return torch.chunk(x[:, :-1].transpose(2, 0), 2, 0)[-1], x.sum(0)

    found = torch.randn(2, 2, 9)
    expected = found.clone()
    compiled = torch.compile(function, backend="lazyc", dynamic=dynamic)
    torch.testing.assert_close(compiled(found), function(expected))
    torch.testing.assert_close(found, expected)
    (view, _), (same, _) = compiled(found), function(expected)
    assert (view.storage_offset(), view._base is found) == (same.storage_offset(), True)


def test_a_view_of_one_of_two_arguments_in_one_memory() -> None:
    """It stays a view of the same argument when they lie otherwise in the next call."""

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[1:], y + 1

    compiled = torch.compile(function, backend="lazyc", dynamic=False)
    memory = torch.arange(4.0)
    for y in (memory[1], memory[0], torch.tensor(9.0), memory[3]):
        view, other = compiled(memory, y)
        torch.testing.assert_close((view, other), (memory[1:], y + 1))
        assert view.data_ptr() == memory[1:].data_ptr()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"lazy": True}, {"on_new_shape": "background"}, {"disk_cache": False}]
)
def test_arguments_of_the_first_call_are_not_kept(options: dict[str, Any], train: bool) -> None:
    torch._dynamo.reset()
    model = torch.nn.Linear(24, 40)
    compiled = torch.compile(model, backend="lazyc", options=options)
    x = torch.randn(32, 24)
    with torch.set_grad_enabled(train):
        result = compiled(x).sum()
    torch.testing.assert_close(result.item(), model(x).sum().item())
    if train:
        result.backward()
    gone = weakref.ref(x)
    del x, result
    gc.collect()
    assert gone() is None
