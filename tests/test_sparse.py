"""``lazyc.sparse``: pruning, and compiled models whose weights are 2:4, or stop being so."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

import lazyc
from lazyc.backend import EVENTS
from lazyc.codegen.llvm.sparse_24 import expanded_at_once
from lazyc.codegen.target import host_target
from lazyc.errors import LazycError, SparsityError
from lazyc.ir.sparse import declared
from lazyc.ir.types import DType
from lazyc.passes import sparse_products
from lazyc.report import events as E
from tests.ir.test_sparse import random_24

_USABLE = expanded_at_once(host_target())
fast = pytest.mark.skipif(("2:4", DType.F32) not in _USABLE, reason="no instruction to expand")

SETTLED = 9  # calls after a change until weights are compressed again


@pytest.fixture
def heard() -> Iterator[list[E.Event]]:
    events: list[E.Event] = []
    stop = EVENTS.subscribe(events.append)
    yield events
    stop()


def of(events: list[E.Event], kind: type[E.Event]) -> list:
    return [e for e in events if isinstance(e, kind)]


# --- pruning --------------------------------------------------------------------------------------


def test_the_two_largest_of_four_stay() -> None:
    layer = nn.Linear(8, 2)
    with torch.no_grad():
        layer.weight.copy_(
            torch.tensor([[1.0, -4, 3, 2, 0, 0, 5, 0], [2, -2, 2, 2, torch.nan, 1, -torch.inf, 9]])
        )
    bias, weight = layer.bias.clone(), layer.weight
    assert not lazyc.sparse.is_24(layer.weight)
    assert lazyc.sparse.prune_24(layer) == [""]
    expected = [[0, -4, 3, 0, 0, 0, 5, 0], [2, -2, 0, 0, torch.nan, 0, -torch.inf, 0]]
    torch.testing.assert_close(layer.weight, torch.tensor(expected), equal_nan=True, rtol=0, atol=0)
    assert lazyc.sparse.is_24(layer.weight) and torch.equal(layer.bias, bias)
    assert layer.weight is weight and weight.requires_grad and declared(weight) == "2:4"
    before = layer.weight.detach().clone()
    lazyc.sparse.prune_24(layer)
    assert torch.equal(layer.weight.nan_to_num(), before.nan_to_num())


def mlp(inner: int = 24, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, inner), nn.GELU(), nn.Linear(inner, 7)).to(dtype).eval()


def test_a_weight_of_bytes() -> None:
    """-128 has the largest absolute value, though int8 has none for it."""
    weight = torch.tensor([[-128, 127, 1, 0, 5, -6, 7, -7]], dtype=torch.int8)
    assert not lazyc.sparse.is_24(weight)
    assert lazyc.sparse.prune_24(weight) == [""]
    assert weight.tolist() == [[-128, 127, 0, 0, 0, 0, 7, -7]]
    assert lazyc.sparse.is_24(weight) and declared(weight) == "2:4"
    layer = nn.Linear(8, 1, bias=False)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    assert lazyc.sparse.prune_24(layer) == [""] and declared(layer.weight) == "2:4"


def test_layers_by_name() -> None:
    model = mlp()
    assert lazyc.sparse.prune_24(model, ["2"]) == ["2"]
    assert not lazyc.sparse.is_24(model.get_parameter("0.weight")) and lazyc.sparse.is_24(
        model.get_parameter("2.weight")
    )
    assert lazyc.sparse.prune_24(model) == ["0", "2"]
    assert lazyc.sparse.is_24(model.get_parameter("0.weight"))


def test_errors_say_what_to_do_and_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    before = [p.clone() for p in model.parameters()]
    for arguments, text in (
        ({"names": ["0", "3"]}, "'3' is no nn.Linear .* near it: "),
        ({"names": ["1"]}, "'1' is no nn.Linear"),
        ({"names": "0"}, r"pass \['0'\]"),
        ({"method": "random"}, "unknown pruning method 'random'; known: 'magnitude'"),
        ({}, "layer '2' has in_features=6, no multiple of 4; leave it out with names"),
    ):
        with pytest.raises(SparsityError, match=text):
            lazyc.sparse.prune_24(model, **arguments)  # type: ignore[arg-type]
    assert all(map(torch.equal, model.parameters(), before))
    assert issubclass(SparsityError, LazycError) and issubclass(SparsityError, ValueError)
    with pytest.raises(SparsityError, match="has none"):
        lazyc.sparse.prune_24(nn.ReLU(), ["0"])
    with pytest.raises(SparsityError, match="remove_parametrizations"):
        lazyc.sparse.prune_24(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    with pytest.raises(SparsityError, match="run the module once"):
        lazyc.sparse.prune_24(nn.LazyLinear(4))
    for weight, text in (
        (torch.zeros(8, 8, dtype=torch.int32), "is torch.int32; prune it as floats or int8"),
        (torch.zeros(8, 6), "no multiple of 4"),
        (torch.zeros(8), r"out_features, in_features\], not \[8\]"),
    ):
        with pytest.raises(SparsityError, match=text):
            lazyc.sparse.prune_24(weight)
    with pytest.raises(SparsityError, match="leave them out for a weight"):
        lazyc.sparse.prune_24(torch.zeros(8, 8), ["0"])
    with pytest.raises(SparsityError, match="two dims"):
        lazyc.sparse.is_24(torch.zeros(8))
    assert not lazyc.sparse.is_24(torch.zeros(4, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_weights_of_torchs_own_class(dtype: torch.dtype) -> None:
    weight = random_24(64, 128, dtype)
    packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, torch says
        # Its from_dense refuses tensors of the CPU.
        sparse = SparseSemiStructuredTensorCUTLASS(
            weight.shape,
            packed,
            meta,
            None,
            None,
            None,  # type: ignore[call-arg]
        )
    assert lazyc.sparse.is_24(sparse)
    with pytest.raises(SparsityError, match=r"pass its to_dense\(\)"):
        lazyc.sparse.prune_24(sparse)
    layer = nn.Linear(128, 64, bias=False)
    layer.weight = nn.Parameter(sparse, requires_grad=False)
    lazyc.sparse.prune_24(layer)
    assert type(layer.weight) is nn.Parameter and torch.equal(layer.weight, weight)
    assert declared(layer.weight) == "2:4"


def test_blocks() -> None:
    weight = torch.ones(32, 64)
    weight[16:, 32:48] = 2.0
    weight[:16, :16] = -0.5
    weight[0, 63] = torch.nan
    assert lazyc.sparse.to_block_sparse(weight, sparsity=0.7) == [""]
    kept = (weight != 0).reshape(2, 16, 4, 16).sum((1, 3))
    # The largest: that with the nan, that of twos, and the first of the equal ones.
    assert kept.tolist() == [[0, 256, 0, 256], [0, 0, 256, 0]] and declared(weight) == "block 16"
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    assert lazyc.sparse.to_block_sparse(model, (32, 32), 0.5, ["0"]) == ["0"]
    weight = model.get_parameter("0.weight")
    assert int((weight.reshape(3, 32, 2, 32) != 0).any(3).any(1).sum()) == 3
    assert declared(model.get_parameter("2.weight")) is None


def test_errors_of_blocks() -> None:
    model = mlp()
    for arguments, text in (
        ({"block": (8, 8)}, r"blocks are \(16, 16\) or \(32, 32\), not \(8, 8\)"),
        ({"sparsity": 1.5}, "sparsity=1.5 is no share"),
        ({}, r"layer '0' is \[24, 20\], no whole blocks of \[16, 16\]; leave it out"),
        ({"names": ["x"]}, "'x' is no nn.Linear"),
    ):
        with pytest.raises(SparsityError, match=text):
            lazyc.sparse.to_block_sparse(model, **arguments)  # type: ignore[arg-type]
    with pytest.raises(SparsityError, match="whole blocks"):
        lazyc.sparse.to_block_sparse(torch.zeros(16))
    with pytest.raises(SparsityError, match="leave them out"):
        lazyc.sparse.to_block_sparse(torch.zeros(16, 16), names=["0"])


# --- compiled -------------------------------------------------------------------------------------


def check(compiled: Callable[..., torch.Tensor], model: nn.Module, x: torch.Tensor) -> None:
    """The result against that of f64: within twice eager's error, or four rounding steps."""
    state = {k: v.double() for k, v in model.state_dict().items()}
    with torch.no_grad():
        found, eager = compiled(x), model(x)
        exact = torch.func.functional_call(model, state, (x.double(),))
    step = torch.finfo(x.dtype).eps * exact.abs().max()
    error, allowed = ((y.double() - exact).abs().max() for y in (found, eager))
    assert found.dtype == x.dtype and error <= torch.maximum(2 * allowed, 4 * step)


def compile(model: nn.Module) -> Callable[..., torch.Tensor]:
    return torch.compile(model, backend="lazyc", dynamic=False)


@fast
@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_a_model(rows: int, heard: list[E.Event], monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights as small as these are no slower without compression.
    monkeypatch.setattr(sparse_products, "MOST_ROWS", {DType.F32: [(math.inf, 16)]})
    model = mlp()
    lazyc.sparse.prune_24(model)
    compiled = compile(model)
    lazyc.metrics.reset()
    for _ in range(3):
        check(compiled, model, torch.randn(rows, 20))
    first, second = of(heard, E.SparseProduct)
    assert first.is_used and first.sizes == (str(rows), "24", "20") and second.is_used
    packed = of(heard, E.WeightsPacked)
    assert [(e.count, e.changed) for e in packed] == [(2, False)]
    found = lazyc.metrics.snapshot()
    assert (found["kernel_calls"], found["fallbacks"]) == (2, [])  # the bias and GELU, the bias


@fast
def test_rows_in_several_dims_and_a_stride() -> None:
    model = mlp()
    lazyc.sparse.prune_24(model)
    compiled = compile(model)
    check(compiled, model, torch.randn(2, 3, 20))
    check(compiled, model, torch.randn(20, 4).t())
    check(compiled, model, torch.randn(4, 64)[:, 3:23])


@pytest.mark.skipif(("2:4", DType.BF16) not in _USABLE, reason="no instruction to expand")
def test_bf16(heard: list[E.Event]) -> None:
    model = mlp(dtype=torch.bfloat16)
    lazyc.sparse.prune_24(model)
    compiled = compile(model)
    check(compiled, model, torch.randn(2, 20, dtype=torch.bfloat16))
    assert [e.is_used for e in of(heard, E.SparseProduct)] == [True, True]


def test_products_that_stay_dense(heard: list[E.Event]) -> None:
    model = mlp(dtype=torch.float64)
    lazyc.sparse.prune_24(model)
    check(compile(model), model, torch.randn(2, 20, dtype=torch.float64))
    assert [e.is_used for e in of(heard, E.SparseProduct)] == [False, False]
    assert not of(heard, E.WeightNotSparse)


def add(w: nn.Parameter) -> None:
    with torch.no_grad():
        w.add_(1.0)


def data(w: nn.Parameter) -> None:
    w.data.copy_(torch.randn_like(w))


def new_data(w: nn.Parameter) -> None:
    w.data = torch.randn_like(w)


def state(w: nn.Parameter) -> None:
    module = nn.Module()
    module.w = w
    module.load_state_dict({"w": torch.randn_like(w)})


def sgd(w: nn.Parameter) -> None:
    w.grad = torch.ones_like(w)
    torch.optim.SGD([w], lr=0.5).step()


def one_element(w: nn.Parameter) -> None:
    with torch.no_grad():
        w[3, (w[3, :4] == 0).nonzero()[0, 0]] = 5.0


@fast
@pytest.mark.parametrize("edit", [add, data, new_data, state, sgd, one_element])
def test_weights_that_stop_being_24(
    edit: Callable[[nn.Parameter], None], heard: list[E.Event]
) -> None:
    model = mlp()
    lazyc.sparse.prune_24(model)
    compiled = compile(model)
    check(compiled, model, torch.randn(1, 20))
    edit(model.get_parameter("0.weight"))
    heard.clear()
    for _ in range(SETTLED):
        check(compiled, model, torch.randn(1, 20))
    (said,) = of(heard, E.WeightNotSparse)
    assert said.shape == (24, 20) and said.sparsity == "2:4"
    assert not of(heard, E.CompileStarted)
    lazyc.sparse.prune_24(model)
    heard.clear()
    for _ in range(SETTLED):
        assert not of(heard, E.WeightsPacked)
        check(compiled, model, torch.randn(1, 20))
    check(compiled, model, torch.randn(1, 20))
    assert not of(heard, E.WeightNotSparse)
    assert [e.count for e in of(heard, E.WeightsPacked)] == [2]


@fast
@pytest.mark.parametrize("edit", [lambda w: w.mul_(2.0), lambda w: w.data.mul_(2.0)])
def test_weights_that_change_and_stay_24(edit: Callable[[torch.Tensor], object]) -> None:
    model = mlp()
    lazyc.sparse.prune_24(model)
    compiled = compile(model)
    check(compiled, model, torch.randn(1, 20))
    with torch.no_grad():
        edit(model.get_parameter("0.weight"))
    for _ in range(SETTLED):
        check(compiled, model, torch.randn(1, 20))


@fast
def test_weights_that_change_all_the_time_are_not_compressed(heard: list[E.Event]) -> None:
    model = nn.Linear(64, 64)
    lazyc.sparse.prune_24(model)
    compiled = compile(model)
    for _ in range(8):
        for _ in range(3):
            check(compiled, model, torch.randn(1, 64))
        with torch.no_grad():
            model.weight.mul_(1.5)
    assert len(of(heard, E.WeightsPacked)) == 1


def test_marks_make_another_program(heard: list[E.Event]) -> None:
    """Of equal models the one that is not pruned has no sparse kernels, and the other way round."""
    plain, pruned = nn.Linear(20, 8), nn.Linear(20, 8)
    lazyc.sparse.prune_24(pruned)
    for model, count in ((plain, 0), (pruned, 1), (plain, 0), (pruned, 1)):
        torch._dynamo.reset()
        heard.clear()
        check(compile(model), model, torch.randn(1, 20))
        assert len(of(heard, E.SparseProduct)) == count


def test_training_is_dense() -> None:
    model = mlp()
    lazyc.sparse.prune_24(model)
    compiled, x = compile(model), torch.randn(3, 20)
    compiled(x).sum().backward()
    grads = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for found, p in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad)


@fast
def test_calls_from_several_threads_and_on_two_threads() -> None:
    model = mlp(inner=512)
    lazyc.sparse.prune_24(model)
    compiled = compile(model)
    torch.set_num_threads(2)
    try:
        check(compiled, model, torch.randn(1, 20))
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(20):
                    x = torch.randn(1, 20)
                    with torch.no_grad():
                        torch.testing.assert_close(compiled(x), model(x))
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not errors
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("size", [16, 32])
def test_block_sparse_models(size: int, heard: list[E.Event]) -> None:
    model = nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 96)).eval()
    lazyc.sparse.to_block_sparse(model, (size, size), 0.75)
    compiled = compile(model)
    for _ in range(2):
        check(compiled, model, torch.randn(9, 128))
    assert [e.is_used for e in of(heard, E.SparseProduct)] == [True, True]
    assert [e.count for e in of(heard, E.WeightsPacked)] == [2]
    add(model.get_parameter("0.weight"))
    heard.clear()
    for _ in range(SETTLED):
        check(compiled, model, torch.randn(9, 128))
    assert [e.sparsity for e in of(heard, E.WeightNotSparse)] == [f"block {size}"]
    lazyc.sparse.to_block_sparse(model, (size, size), 0.9)
    for _ in range(SETTLED):
        check(compiled, model, torch.randn(9, 128))
    assert not of(heard, E.CompileStarted)


SCRIPT = """
import torch, lazyc
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.GELU(), torch.nn.Linear(32, 16))
lazyc.sparse.prune_24(model, ["0"])
lazyc.sparse.to_block_sparse(model, names=["2"], sparsity=1.0)
compiled = torch.compile(model, backend="lazyc")
with torch.no_grad():
    torch.testing.assert_close(compiled(torch.ones(2, 64)), model(torch.ones(2, 64)))
found = lazyc.metrics.snapshot()
print(found["kernels_made"], found["weights_packed"], found["cache_rejected"])
"""


def test_a_later_process_finds_the_kernels(tmp_path: Path) -> None:
    counts = []
    for _ in range(2):
        environ = {**os.environ, "LAZYC_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": "."}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True,
            cwd=Path(__file__).parents[1], check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        counts.append([int(n) for n in done.stdout.split()])
    assert counts[0][0] > 0 and counts[1] == [0, counts[0][1], 0]
