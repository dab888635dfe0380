"""Masks that both directions of a graph make from a seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lazyc.frontend.autograd import AotBackend, Boxed, Part, run_in_eager
from lazyc.frontend.dropout import dropout_mask, dropout_seed
from lazyc.frontend.recompute import IN_TILES
from lazyc.ir.graph import Graph
from lazyc.ir.interp import run_graph
from tests.frontend.lowering_harness import check

Tensor = torch.Tensor
LENGTH = 20


@pytest.mark.parametrize("options", [{}, {"target": "triton-interpret"}])
@pytest.mark.parametrize("seed", [0, 12345, -(1 << 62) + 7])
def test_eager_makes_the_mask_that_kernels_make(seed: int, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(dropout_mask, backend="lazyc", options=options, fullgraph=True)
    given, like = torch.tensor(seed), torch.empty(3, 5, 70).transpose(0, 1)
    for p in (0.1, 0.5, 0.9):
        mask = compiled(given, like, p)
        assert mask.dtype is torch.bool and mask.shape == like.shape
        assert torch.equal(mask, dropout_mask(given, like, p))
        assert abs(mask.double().mean().item() - (1 - p)) < 0.05


def test_extremes() -> None:
    for p in (0.0, 1.0):
        (mask,) = check("lazyc.dropout_mask.default", torch.tensor(3), torch.empty(4, 9), p)
        assert mask is not None and bool(mask.all()) == (p == 0) and bool(mask.any()) == (p == 0)


def test_seeds_are_drawn_from_torchs_generator() -> None:
    device = torch.device("cpu")
    torch.manual_seed(0)
    first = [dropout_seed(device, k) for k in range(3)]
    torch.manual_seed(0)
    again = [dropout_seed(device, k) for k in range(3)]
    assert first == again and len({int(s) for s in first}) == 3


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout(F.softmax(q @ k.transpose(-1, -2), -1), 0.4) @ v


def twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two that differ in nothing but what is dropped."""
    return torch.cat([attend(q, k, v), attend(q, k, v)], 1)


class Directions:
    """A backend that runs each direction in eager, or as a Graph. ``saved``: shapes and types of what the
    backward graph is given."""

    def __init__(self, forward_in_eager: bool, backward_in_eager: bool) -> None:
        self.eager = {"forward": forward_in_eager, "backward": backward_in_eager}
        self.saved: list[tuple[tuple[int, ...], torch.dtype]] = []
        self.backend = AotBackend(self._compile, has_products=True, recompute=IN_TILES)

    def _compile(self, graph: Graph, gm: torch.fx.GraphModule, part: Part) -> Boxed:
        if part.kind == "backward":
            for node in gm.graph.find_nodes(op="placeholder"):
                value = node.meta["val"]
                if isinstance(value, Tensor) and not node.name.startswith(("primals", "tangents")):
                    self.saved.append((tuple(value.shape), value.dtype))
        if self.eager[part.kind]:
            return run_in_eager(gm)
        return lambda args: run_graph(graph, args)


@pytest.mark.parametrize("function", [attend, twice])
@pytest.mark.parametrize("eager", list(itertools.product([True, False], repeat=2)))
def test_directions_agree(function: Callable[..., Tensor], eager: tuple[bool, bool]) -> None:
    """With a unit matrix as values the result is the weights, and with one as the result's gradient that of
    the values is the weights turned."""
    torch._dynamo.reset()
    directions = Directions(*eager)
    torch.manual_seed(1)
    q, k = (torch.randn(2, 1, LENGTH, 8) for _ in range(2))
    unit = torch.eye(LENGTH).expand(2, 1, -1, -1).clone().requires_grad_()
    out = torch.compile(function, backend=directions.backend)(q.requires_grad_(), k, unit)
    parts = out.detach().split(1, 1)
    for number, weights in enumerate(parts):
        direction = torch.zeros_like(out)
        direction[:, number] = torch.eye(LENGTH)
        _, of_values = torch.autograd.grad(out, [q, unit], direction, retain_graph=True)
        torch.testing.assert_close(of_values, weights.transpose(-1, -2))
        kept = (weights != 0).double().mean().item()
        assert abs(kept - 0.6) < 0.1
    assert len(parts) == 1 or not torch.equal(parts[0] != 0, parts[1] != 0)
    assert directions.saved.count(((), torch.int64)) == len(parts)
    assert not [shape for shape, dtype in directions.saved if dtype is torch.bool]


def test_sizes_that_change() -> None:
    """Positions are counted by the sizes of the call, in either direction."""
    torch._dynamo.reset()
    directions = Directions(True, False)
    compiled = torch.compile(attend, backend=directions.backend)
    for heads in (3, 5):
        q, k = (torch.randn(2, heads, LENGTH, 8) for _ in range(2))
        unit = torch.eye(LENGTH).expand(2, heads, -1, -1).clone().requires_grad_()
        for x in (q, k, unit):
            torch._dynamo.mark_dynamic(x, 1)
        out = compiled(q, k, unit)
        direction = torch.eye(LENGTH).expand_as(out)
        (of_values,) = torch.autograd.grad(out, unit, direction)
        torch.testing.assert_close(of_values, out.detach().transpose(-1, -2))
    assert not [shape for shape, dtype in directions.saved if dtype is torch.bool]
    assert directions.saved.count(((), torch.int64)) == 1


# --- CUDA's operators -------------------------------------------------------------------------------

ATEN = torch.ops.aten


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ATEN._scaled_dot_product_flash_attention(q, k, v, 0.4, True)[0]


def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.zeros(LENGTH, LENGTH)
    bias[3] = -torch.inf
    wide = bias.expand(2, 4, -1, -1)
    return ATEN._scaled_dot_product_efficient_attention(q, k, v, wide, True, 0.4, scale=0.3)[0]


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ATEN._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.4, True)[0]


def uniform(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ATEN._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.4, True, False, scale=0.0
    )[0]


@pytest.mark.parametrize("function", [flash, efficient, cudnn, uniform])
def test_directions_of_cudas_operators_agree(function: Callable[..., Tensor]) -> None:
    """Whatever runs in eager, results, gradients and what lies where in memory are the same."""
    found = []
    for eager in itertools.product([True, False], repeat=2):
        torch._dynamo.reset()
        directions = Directions(*eager)
        torch.manual_seed(1)
        shared = 2 if function is flash else 1
        shapes = [(2, LENGTH, heads, 8) for heads in (4, 4 // shared, 4 // shared)]
        leaves = [torch.randn(s).transpose(1, 2).requires_grad_() for s in shapes]
        torch.manual_seed(2)
        out = torch.compile(function, backend=directions.backend)(*leaves)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
        assert directions.saved.count(((), torch.int64)) == 1
        assert not [s for s, _ in directions.saved if s[-2:] == (LENGTH, LENGTH) and len(s) > 2]
    # Seeds are drawn in another way where the forward pass runs in eager.
    for first, second in (found[:2], found[2:]):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            assert a.stride() == b.stride()
    assert [x.stride() for x in found[0]] == [x.stride() for x in found[2]]
