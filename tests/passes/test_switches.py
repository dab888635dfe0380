"""Passes that may be left out: each is known by name, and results are right without it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lazyc
from lazyc.backend import EVENTS
from lazyc.codegen.gpu_target import gpu_target
from lazyc.config import OPTIONAL_PASSES, Config
from lazyc.errors import ConfigError
from lazyc.passes.pipeline import pipeline
from lazyc.report import events as E

# ``attention`` has an option of its own, with more than two values.
NEEDED = {"canonicalize", "products_as_loops", "copy_matrix_operands", "attention"}


def test_every_pass_is_optional_or_needed() -> None:
    """``layout`` is a part of the schedule, and ``row_tiles`` a pass over the Program."""
    names = {
        p.name
        for has_products in (False, True)
        for p in pipeline(True, has_products, gpu_target("sm_90").product_costs)
    }
    assert names == {*OPTIONAL_PASSES, *NEEDED} - {"layout", "row_tiles"}
    for name in OPTIONAL_PASSES:
        costs = gpu_target("sm_90").product_costs
        left = {
            p.name for p in pipeline(True, True, costs, Config(disable_passes=name).disabled_passes)
        }
        calls_a_library = {"score_sums", "half_products", "copy_matrix_operands"}
        assert name not in left and left >= names - {name} - calls_a_library


def test_a_list_of_names() -> None:
    config = Config.from_env({"LAZYC_DISABLE_PASSES": " padding, layout,"})
    assert config.disabled_passes == {"padding", "layout"}
    assert Config().disabled_passes == frozenset()
    assert config.code_key() != Config().code_key()


@pytest.mark.parametrize("value", ["paddin", "padding,fusion", "padding layout"])
def test_an_unknown_name_is_refused_with_those_known(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config().with_options({"disable_passes": value})
    assert repr(value) in str(error.value)
    assert all(name in str(error.value) for name in OPTIONAL_PASSES)


class Net(torch.nn.Module):
    """Something for every pass: convolutions, a norm, attention by hand, a large sum, an odd weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 24, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(24)
        self.qkv = torch.nn.Linear(24, 72)
        self.out = torch.nn.Parameter(torch.randn(24, 131))
        self.norm.running_mean.uniform_()  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 3, c // 3).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-2, -1) / 3).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        y = mixed @ self.out
        return y, y.square().sum()


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def decisions(call: Callable[[], Any]) -> tuple[Any, set[str]]:
    """What a call returns, and the passes that decided something in it."""
    heard: list[E.Event] = []
    stop = EVENTS.subscribe(heard.append)
    try:
        result = call()
    finally:
        stop()
    return result, {e.by for e in heard if isinstance(e, E.Decided)}


TARGETS = ["", "triton-interpret"]
CASES = [*itertools.product(TARGETS, ["", *OPTIONAL_PASSES]), ("", ",".join(OPTIONAL_PASSES))]


@pytest.mark.parametrize(("target", "disabled"), CASES, ids=str)
@torch.no_grad()
def test_results_without_a_pass(net: Net, target: str, disabled: str) -> None:
    x = torch.randn(2, 3, 16, 16) if not target else torch.randn(2, 3, 5, 5)
    options = {"target": target, "disable_passes": disabled}
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="lazyc", options=options)
    lazyc.metrics.reset()
    got, by = decisions(lambda: compiled(x))
    assert not lazyc.metrics.snapshot()["fallbacks"]
    want = copy.deepcopy(net).double()(x.double())
    for value, exact in zip(got, want, strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)
    expected = {"fold_norm", "lower_convolutions", "split_batches"}
    expected |= {"padding"} if target else set()
    assert (by & {*OPTIONAL_PASSES}) - {"layout"} == expected - set(disabled.split(","))
