"""What hand-written attention keeps between forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.partitioners import min_cut_rematerialization_partition

from lazyc.frontend.decompositions import decomposition_table
from lazyc.frontend.recompute import keep_rows_of_attention

Tensor = torch.Tensor


def saved(function: Callable[..., Tensor], *args: Tensor) -> tuple[int, list[tuple[int, ...]]]:
    """How many attentions are found, and the shapes of what the backward graph is given, but for arguments
    and tangents."""
    found: list[int] = []
    shapes: list[tuple[int, ...]] = []

    def partition(joint, inputs, **options):  # type: ignore[no-untyped-def]
        found.append(keep_rows_of_attention(joint))
        return min_cut_rematerialization_partition(joint, inputs, **options)

    def forward(gm, example_inputs):  # type: ignore[no-untyped-def]
        return make_boxed_func(gm.forward)

    def backward(gm, example_inputs):  # type: ignore[no-untyped-def]
        for node in gm.graph.find_nodes(op="placeholder"):
            if not node.name.startswith(("primals", "tangents")):
                shapes.append(tuple(node.meta["val"].shape))
        return make_boxed_func(gm.forward)

    def compile(gm, inputs):  # type: ignore[no-untyped-def]
        return aot_module_simplified(
            gm, inputs, fw_compiler=forward, bw_compiler=backward, partition_fn=partition,
            decompositions=decomposition_table(),
        )  # fmt: skip

    torch._dynamo.reset()
    leaves = [x.clone().requires_grad_() for x in args]
    out = torch.compile(function, backend=compile)(*leaves)
    torch.manual_seed(0)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    want = torch.autograd.grad(function(*leaves), leaves, grad, allow_unused=True)
    for mine, eager in zip(got, want, strict=True):
        assert (mine is None) == (eager is None)
        if mine is not None:
            torch.testing.assert_close(mine, eager, rtol=1e-4, atol=1e-5)
    (count,) = found
    return count, shapes


def inputs(length: int = 20, width: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 3, length, width).to(dtype) for _ in range(3)]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2) * 0.3).masked_fill(
        torch.ones(q.size(2), k.size(2)).triu(1) > 0, -1e9
    )
    return F.softmax(scores, -1) @ v


def test_two_numbers_for_each_query() -> None:
    count, shapes = saved(attend, *inputs())
    assert count == 1
    assert shapes.count((2, 3, 20, 1)) == 2
    assert not [s for s in shapes if len(s) > 2 and s[-2:] == (20, 20)]


def two_layers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(attend(q, k, v), k, v)


def test_each_attention_is_found() -> None:
    count, shapes = saved(two_layers, *inputs())
    assert count == 2 and shapes.count((2, 3, 20, 1)) == 4


def few_heads_of_a_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows of the products are queries and heads; the softmax is over (queries, heads, keys)."""
    (b, h, i, d), (k, v) = q.shape, (x[:, 0] for x in (k, v))
    rows = q.transpose(1, 2).reshape(b, i * h, d)
    weights = F.softmax(torch.bmm(rows, k.transpose(1, 2)).view(b, i, h, -1), -1)
    return torch.bmm(weights.view(b, i * h, -1), v)


def test_rows_are_those_of_the_product() -> None:
    count, shapes = saved(few_heads_of_a_query, *inputs())
    assert count == 1 and shapes.count((2, 20, 3, 1)) == 2


def classify(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(q @ k.transpose(-1, -2), -1)


def pooled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(q, -1) @ v.transpose(-1, -2)


def routed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights of a few choices, from a projection with many rows and columns."""
    weights = F.softmax((q @ k.transpose(-1, -2)).unflatten(-1, (5, 4)), -1)
    return weights @ v.reshape(2, 3, 20, 4, 2)


@pytest.mark.parametrize("function", [classify, pooled, routed])
def test_other_softmaxes_are_left_alone(function: Callable[..., Tensor]) -> None:
    assert saved(function, *inputs())[0] == 0


def test_what_is_too_small_or_too_precise() -> None:
    assert saved(attend, *inputs(length=8))[0] == 0
    assert saved(attend, *inputs(dtype=torch.float64))[0] == 0  # with kernels that compute scores


def test_dropout_of_something_else_is_left_alone() -> None:
    torch.manual_seed(0)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout(F.softmax(q, -1), 0.0) @ v.transpose(-1, -2)

    assert saved(function, *inputs())[0] == 0
