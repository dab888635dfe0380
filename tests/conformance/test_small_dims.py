"""Operators over dims of size 1, which have no loop, and 0, with a reader in the same program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tests.gpu import DEVICE

pytestmark = pytest.mark.gpu

OPERATORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    **{
        name: lambda x, name=name: getattr(torch, name)(x, dim=-1)
        for name in (
            "sum", "mean", "prod", "amax", "amin", "argmax", "argmin", "any", "all", "logsumexp",
            "cumsum", "cumprod", "logcumsumexp", "softmax", "log_softmax",
        )
    },
    "cummax": lambda x: torch.cummax(x, -1).values + torch.cummax(x, -1).indices,
    "cummin": lambda x: torch.cummin(x, -1).values + torch.cummin(x, -1).indices,
    "var": lambda x: torch.var(x, -1, correction=0),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "flip and roll": lambda x: x.flip(-1) + x.roll(1, -1),
    "cat and pad": lambda x: F.pad(torch.cat([x, x], -1), (1, 0)),
    "index_select": lambda x: torch.index_select(x, -1, x.argmin(-1).flatten()[:1]),
    "gather": lambda x: torch.gather(x, -1, x.argmax(-1, keepdim=True)),
    "scatter": lambda x: torch.scatter(x, -1, x.argmax(-1, keepdim=True), 2.0),
    "index_add": lambda x: x.index_add(-1, x.argmin(-1).flatten()[:1], x[..., :1]),
    "product": lambda x: x.unsqueeze(-1) @ x.unsqueeze(-2),
    "sort": lambda x: torch.sort(x, -1).values,
    "pool": lambda x: F.max_pool1d(x[None], 1)[0] if x.dim() > 1 else x,
    "window": lambda x: x.unfold(-1, 1, 1),
}  # fmt: skip


def is_allowed(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Some operators refuse to reduce no elements."""
    try:
        run(x)
    except (RuntimeError, IndexError):
        return False
    return True


@pytest.mark.filterwarnings("ignore:var")
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 4), (4, 1), (0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("made", ["argument", "reduced", "sliced"])
def test_as_in_eager(shape: tuple[int, ...], part: int, made: str) -> None:
    chosen = list(OPERATORS.items())[part::2]
    operators = {
        name: run for name, run in chosen if is_allowed(run, torch.randn(shape, device=DEVICE))
    }

    def function(x: torch.Tensor) -> list[torch.Tensor]:
        if made == "reduced":
            x = x[None].amax(0)
        elif made == "sliced":
            x = torch.cat([x, x])[: x.shape[0]] * 2
        total = x.sum() * 2
        return [run(x) + 1 + total for run in operators.values()]

    x = torch.randn(shape, device=DEVICE)
    found, expected = torch.compile(function, backend="lazyc")(x), function(x)
    for name, a, b in zip(operators, found, expected, strict=True):
        torch.testing.assert_close(
            a, b, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "slice": lambda x: x[0:0],
    "transpose": lambda x: x.transpose(0, -1),
    "view": lambda x: x.view(-1) if x.numel() else x.view(x.shape),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "detach": lambda x: x.detach(),
    "expand": lambda x: x.expand(3, *x.shape),
    "select of slice": lambda x: x[1:1].unsqueeze(-1).select(-1, 0),
}


@pytest.mark.parametrize("shape", [(2,), (0,), (2, 0), (0, 3), (2, 0, 3), (1, 1)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_views_of_arguments(shape: tuple[int, ...], dynamic: bool) -> None:
    def function(x: torch.Tensor) -> list[torch.Tensor]:
        return [run(x) for run in VIEWS.values()]

    x = torch.randn(shape, device=DEVICE)
    compiled = torch.compile(function, backend="lazyc", dynamic=dynamic)
    for name, result, expected in zip(VIEWS, compiled(x), function(x), strict=True):
        torch.testing.assert_close(result, expected, msg=name)
        assert (result.shape, result.stride()) == (expected.shape, expected.stride()), name
        assert result._base is x or name == "detach", name
    one = torch.compile(lambda x: x[0:0], backend="lazyc", dynamic=dynamic)
    assert one(x).shape == x[0:0].shape


def test_counted_index_into_itself() -> None:
    """An arange that is read through memory (as the source of a gather) and written into by a scatter."""

    def function(n: int) -> torch.Tensor:
        places = torch.arange(n, device=DEVICE)
        chosen = torch.index_select(places, 0, torch.remainder(places, n))
        return torch.index_fill(chosen, 0, torch.remainder(chosen, n), 2) + places.sort().values

    for n in (1, 2, 5):
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="lazyc", dynamic=False)
        assert compiled(n).tolist() == function(n).tolist()
