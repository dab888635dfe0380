"""Random numbers: moments, ranges, repeatability under a seed, independence of calls."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lazyc.frontend.lowering import Builder, NotLowered, lowering_table
from lazyc.ir.graph import Graph
from lazyc.ir.interp import evaluate_nodes
from tests.frontend.lowering_harness import check, lower, run

N = 20000
LIKE = torch.empty(N)
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def draw(name: str, *args: Any, seed: int = 0, **kwargs: Any) -> torch.Tensor:
    torch.manual_seed(seed)
    out = run(name, *args, **kwargs)[0]
    assert out is not None
    return out


def moments(x: torch.Tensor) -> tuple[float, float]:
    x = x.double()
    return x.mean().item(), x.var().item()


def near(found: float, expected: float, spread: float) -> bool:
    """Within 5 standard errors of a sample mean."""
    return abs(found - expected) < 5 * spread / math.sqrt(N)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rand(dtype: torch.dtype) -> None:
    for x in (
        draw("aten.rand.default", (N,), dtype=dtype),
        draw("aten.rand_like.default", LIKE, dtype=dtype),
        draw("aten.rand_like.default", LIKE.to(dtype)),
        draw("aten.uniform.default", LIKE.to(dtype)),
    ):
        assert x.dtype is dtype and x.min() >= 0 and x.max() < 1
        mean, variance = moments(x)
        assert near(mean, 0.5, 0.3) or dtype is torch.bfloat16
        assert abs(mean - 0.5) < 0.02 and abs(variance - 1 / 12) < 0.01


@pytest.mark.parametrize("dtype", FLOATS)
def test_randn(dtype: torch.dtype) -> None:
    for x in (
        draw("aten.randn.default", (N,), dtype=dtype),
        draw("aten.randn_like.default", LIKE.to(dtype)),
        draw("aten.normal_functional.default", LIKE.to(dtype)),
    ):
        mean, variance = moments(x)
        assert x.dtype is dtype and near(mean, 0, 1) and abs(variance - 1) < 0.05
        fourth = (x.double() ** 4).mean().item()
        assert abs(fourth - 3) < 0.3


def test_defaults() -> None:
    assert draw("aten.rand.default", (2, 3)).dtype is torch.float32
    assert draw("aten.randint.default", 5, (2, 3)).dtype is torch.int64
    assert draw("aten.rand.default", ()).shape == ()
    assert draw("aten.randn.default", (0, 3)).shape == (0, 3)
    torch.set_default_dtype(torch.float64)
    try:
        assert draw("aten.randn.default", (2,)).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("low", "high"), [(0, 2), (-3, 4), (0, 1), (5, 1 << 30)])
def test_randint(low: int, high: int) -> None:
    for x in (
        draw("aten.randint.low", low, high, (N,)),
        draw("aten.randint.low", low, high, (N,), dtype=torch.float64),
        draw("aten.randint_like.low_dtype", LIKE.long(), low, high),
        draw("aten.random.from", LIKE.long(), low, high),
    ):
        assert low <= x.min() and x.max() < high
        span = high - low
        assert near(moments(x)[0], low + (span - 1) / 2, span / 3) or span == 1
    if high == 4:
        counts = torch.bincount(draw("aten.randint.low", low, high, (N,)) - low)
        assert len(counts) == 7 and (counts - N / 7).abs().max() < 5 * math.sqrt(N / 7)


def test_randint_of_one_bound() -> None:
    for x in (
        draw("aten.randint.default", 3, (N,), dtype=torch.uint8),
        draw("aten.randint_like.default", LIKE.int(), 3),
        draw("aten.random.to", LIKE.int(), 3),
    ):
        assert set(x.unique().tolist()) == {0, 1, 2}


def test_bernoulli() -> None:
    for p in (0.0, 0.3, 1.0):
        x = draw("aten.bernoulli.p", LIKE, p)
        assert x.dtype is torch.float32 and set(x.unique().tolist()) <= {0.0, 1.0}
        assert near(moments(x)[0], p, 0.5) and (0 < p < 1 or moments(x)[0] == p)
    chances = torch.tensor([0.0, 0.25, 1.0, 0.75]).repeat(N // 4)
    for x in (
        draw("aten.bernoulli.default", chances),
        draw("aten.bernoulli.Tensor", LIKE.to(torch.bool), chances),
        draw("aten.bernoulli.default", chances.bfloat16()),
    ):
        rates = x.double().reshape(-1, 4).mean(0)
        assert rates[0] == 0 and rates[2] == 1
        assert abs(rates[1] - 0.25) < 0.04 and abs(rates[3] - 0.75) < 0.04


@pytest.mark.parametrize("dtype", FLOATS)
def test_dropout(dtype: torch.dtype) -> None:
    x = torch.full((N,), 3.0, dtype=dtype)
    torch.manual_seed(0)
    out, mask = run("aten.native_dropout.default", x, 0.25, True)
    assert out is not None and mask is not None and mask.dtype is torch.bool
    assert near(moments(mask)[0], 0.75, 0.5)
    torch.testing.assert_close(out[mask], torch.full_like(out[mask], 4.0))
    assert not out[~mask].any()
    check("aten.native_dropout_backward.default", x, mask, 1 / 0.75)
    check("aten.native_dropout.default", x, 0.25, False)
    check("aten.native_dropout.default", x, 0.0, True)
    check("aten.native_dropout.default", x, 1.0, True)


def test_distributions() -> None:
    mean, variance = moments(draw("aten.normal_functional.default", LIKE, 3.0, 2.0))
    assert near(mean, 3, 2) and abs(variance - 4) < 0.2
    centers, spreads = (
        torch.tensor([-1.0, 5.0]).repeat(N // 2),
        torch.tensor([1.0, 0.0]).repeat(N // 2),
    )
    for x in (
        draw("aten.normal.Tensor_Tensor", centers, spreads),
        draw("aten.normal.Tensor_float", centers, 1.0),
        draw("aten.normal.float_Tensor", -1.0, spreads),
        draw("aten.normal.float_float", -1.0, 1.0, (N,)),
    ):
        assert near(moments(x[::2])[0], -1, 1.5)
    assert (draw("aten.normal.Tensor_Tensor", centers, spreads)[1::2] == 5).all()
    x = draw("aten.uniform.default", LIKE, -2.0, 6.0)
    assert x.min() >= -2 and x.max() < 6 and near(moments(x)[0], 2, 2.4)
    x = draw("aten.exponential.default", LIKE, 0.5)
    assert x.min() > 0 and near(moments(x)[0], 2, 2)
    x = draw("aten.geometric.default", LIKE, 0.25)
    assert x.min() == 1 and near(moments(x)[0], 4, 3.5)
    x = draw("aten.cauchy.default", LIKE, 1.0, 2.0)
    assert abs(x.median().item() - 1) < 0.15 and abs((x > 3).double().mean().item() - 0.25) < 0.02
    x = draw("aten.log_normal.default", LIKE, 0.5, 0.25)
    assert near(moments(x.log())[0], 0.5, 0.25)


def test_rrelu() -> None:
    x = torch.linspace(-1, 1, N)
    torch.manual_seed(0)
    out, noise = run("aten.rrelu_with_noise_functional.default", x, torch.zeros(N), 0.1, 0.3, True)
    assert out is not None and noise is not None
    torch.testing.assert_close(out, torch.where(x <= 0, x * noise, x))
    assert (noise[x > 0] == 1).all()
    inside = noise[x <= 0]
    assert inside.min() >= 0.1 and inside.max() < 0.3 and abs(inside.mean().item() - 0.2) < 0.01
    check("aten.rrelu_with_noise_functional.default", x, torch.zeros(N), 0.1, 0.3, False)


def test_a_seed_repeats_the_numbers() -> None:
    first = draw("aten.randn.default", (100,), seed=1)
    torch.testing.assert_close(draw("aten.randn.default", (100,), seed=1), first, rtol=0, atol=0)
    assert (draw("aten.randn.default", (100,), seed=2) != first).sum() > 95
    again = run("aten.randn.default", (100,))[0]  # the next run of the same program
    assert again is not None and (again != first).sum() > 95


def test_calls_in_one_graph_are_independent() -> None:
    graph = Graph()
    b = Builder(graph)
    rand = lowering_table()["aten.rand.default"]
    one, two = rand(b, (N,)), rand(b, (N,))
    torch.manual_seed(0)
    values = evaluate_nodes(graph, [], {})
    x, y = values[one].double(), values[two].double()
    assert one is not two and (x == y).sum() < 10
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1].item()) < 5 / math.sqrt(N)


def test_bad_parameters_in_tensors_are_flagged() -> None:
    for bad in (-0.5, 1.5, math.nan):
        with pytest.raises(IndexError):
            run("aten.bernoulli.default", torch.tensor([0.5, bad]))
    for bad in (-0.5, math.nan):
        with pytest.raises(IndexError):
            run("aten.normal.float_Tensor", 0.0, torch.tensor([0.5, bad]))


def test_what_stays_in_eager() -> None:
    for name, args, kwargs in (
        ("aten.randint.low", (0, 1 << 40, (3,)), {}),
        ("aten.randint.low", (3, 3, (3,)), {}),
        ("aten.bernoulli.p", (LIKE, 1.5), {}),
        ("aten.bernoulli.p", (LIKE, 0.5), {"generator": torch.Generator()}),
        ("aten.normal_functional.default", (LIKE, 0.0, -1.0), {}),
        ("aten.uniform.default", (LIKE, 1.0, 0.0), {}),
        ("aten.random.from", (LIKE, 0, None), {}),
        ("aten.rand.default", ((3,),), {"dtype": torch.complex64}),
        ("aten.randn.default", ((3,),), {"dtype": torch.int32}),
    ):
        with pytest.raises(NotLowered):
            lower(name, *args, **kwargs)
