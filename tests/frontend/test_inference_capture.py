"""The plain capture of inference graphs: the same Graph as AOTAutograd's, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lazyc.frontend.capture_key import capture_key
from lazyc.frontend.inference_capture import capture_inference
from tests.frontend.captures import captures
from tests.models.families import FAMILIES, Family

X, W = torch.randn(4, 6, 8), torch.randn(8, 8)
MASK = torch.rand(4, 6, 8) > 0.5


def block(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = F.layer_norm(F.linear(x, w), (8,))
    q, k, v = (F.gelu(y).view(4, 6, 2, 4).transpose(1, 2) for _ in range(3))
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return z.transpose(1, 2).reshape(4, 6, 8), y, y.view(-1), y


SAME: dict[str, Callable[..., Any]] = {
    "block": block,
    "composite": lambda x, w: torch.einsum("bij,jk->bik", x, w).unflatten(-1, (2, 4)).movedim(0, 1),
    "several results": lambda x, w: torch.cat([*x.chunk(2, -1), x.max(-1, True).values], -1).sort(),
    "made of nothing": lambda x, w: x + torch.arange(8) * torch.full((), 0.5) + torch.ones(6, 8),
    "positions": lambda x, w: x[:, torch.arange(3)][..., None],
    "dropout": lambda x, w: F.dropout(x, 0.5),
    "norm in training": lambda x, w: F.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_graph_is_that_of_autograd(name: str, mode: Callable[[], Any]) -> None:
    with mode():
        (found,) = captures(SAME[name], X.clone(), W.clone())
    assert found.plain == found.autograd
    assert "return %" in found.autograd


OTHER: dict[str, Callable[..., Any]] = {
    "write to an argument": lambda x, m: x.mul_(2).sum(),
    "write to a value": lambda x, m: x.exp().add_(1),
    "write by a keyword": lambda x, m: F.relu(x + 1, inplace=True),
    "write through a view": lambda x, m: torch.zeros(4, 6, 8).index_put((m,), x[0, 0, 0]).fill_(2),
    "write of statistics": lambda x, m: F.batch_norm(x, x.mean((0, 2)), x.var((0, 2)), training=True),
    "a view of an argument": lambda x, m: x.transpose(0, 1),
    "a constant": lambda x, m: x + torch.tensor([1.5]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_what_is_more_than_a_computation_is_left_to_autograd(name: str) -> None:
    (found,) = captures(OTHER[name], X.clone(), MASK)
    assert found.plain is None


def test_sizes_that_depend_on_data_are_left_to_autograd() -> None:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        (found,) = captures(lambda x, m: x[m] * 2, X.clone(), MASK)
    assert found.plain is None


def test_gradients_are_left_to_autograd() -> None:
    weight = W.clone().requires_grad_()
    (found,) = captures(block, X, weight)
    assert found.plain is None
    with torch.no_grad():
        (found,) = captures(block, X, weight)
    assert found.plain is not None


def test_seeds_of_autograd_are_left_to_it() -> None:
    found: list[Any] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append(capture_inference(gm, example_inputs))
        return gm.forward

    torch._dynamo.reset()
    with torch._functorch.config.patch(functionalize_rng_ops=True):
        torch.compile(lambda x: F.dropout(x, 0.5), backend=backend)(X)
    assert found == [None]


def test_autocast() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = captures(block, X, W)
    assert found.plain == found.autograd is not None
    assert "bf16" in found.autograd


def test_autocast_of_weights_that_learn() -> None:
    """Autocast keeps what it casts of these; a capture must not find that of another one."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (x @ w).float() @ w

    weight = W.clone().requires_grad_()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            (found,) = captures(fn, X, weight)
            assert found.plain == found.autograd
        assert torch.is_autocast_cache_enabled()


def test_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    captures(lambda x, w: F.dropout(x, 0.5) + torch.randn(8) + torch.randperm(8), X, W)
    state = torch.get_rng_state()
    torch.set_rng_state(before)
    F.dropout(X, 0.5) + torch.randn(8) + torch.randperm(8)  # the call that captures runs it too
    assert torch.equal(state, torch.get_rng_state())


def test_autocast_within_a_graph() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = x @ w
        return y.float() @ w

    (found,) = captures(fn, X, W)
    assert found.plain == found.autograd
    assert "bf16" in found.autograd


def test_autocast_is_left_where_a_capture_is_given_up() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.float16):
            return F.cosine_similarity(x @ w, x)  # given up: torch has it with a copy_

    seen: list[tuple[bool, torch.dtype]] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        before = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        assert capture_key(gm, example_inputs) is not None
        assert capture_inference(gm, example_inputs) is None
        assert (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")) == before
        assert torch.autocast_increment_nesting() == 1
        assert torch.autocast_decrement_nesting() == 0
        seen.append(before)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(fn, backend=backend)(X, W)
    assert seen == [(False, torch.bfloat16)]


# Models that write to slices of tensors that they have made, or (Swin) view memory by strides.
LEFT = {"t5", "swin", "whisper"}


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_models(family: Family) -> None:
    with torch.no_grad():
        (found,) = captures(family.build().eval(), **family.inputs())
    assert (found.plain is None) == (family.name in LEFT)
    assert found.plain in (None, found.autograd)
