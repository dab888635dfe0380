"""Matrix products of operands that BLAS cannot read where they are."""

from __future__ import annotations

import itertools

import pytest
import torch

import lazyc
from lazyc.ir import program as P
from lazyc.passes.matrix_operands import copy_matrix_operands
from lazyc.passes.schedule import schedule
from tests.passes.build import Make, kernels


def every_second(*shape: int) -> torch.Tensor:
    """A tensor whose last stride is 2."""
    return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]


def batch_innermost(*shape: int) -> torch.Tensor:
    """A tensor whose first dim is the contiguous one."""
    return torch.randn(*shape[1:], shape[0]).movedim(-1, 0)


def overlapping(*shape: int) -> torch.Tensor:
    """A tensor whose rows overlap."""
    *batch, rows, cols = shape
    flat = torch.randn(*batch, rows + cols)
    return flat.as_strided(shape, (*flat.stride()[:-1], 1, 1))


LAYOUTS = [every_second, batch_innermost, overlapping]
SHAPES = {"matrix": (4, 4), "batch": (3, 4, 4), "one row": (2, 1, 4), "empty": (2, 0, 3)}


def products(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (
        x @ x.mT,
        x @ y.mT + y @ x.mT,
        x.relu() @ y.mT,
        x[..., 1:] @ y[..., 1:].mT,
        x + 1,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_inputs(shape, layout, dynamic: bool) -> None:
    torch._dynamo.reset()
    lazyc.metrics.reset()
    x, y = layout(*shape), layout(*shape)
    found = torch.compile(products, backend="lazyc", dynamic=dynamic)(x, y)
    torch.testing.assert_close(found, products(x, y))
    assert lazyc.metrics.snapshot()["fallbacks"] == []


@pytest.mark.parametrize("dims", [(1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_the_caller_wants_another_layout_than_the_product(dims: tuple[int, ...]) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.exp()
        return y, y @ y

    order = [dims.index(d) for d in range(3)]
    x = torch.randn(3, 4, 4).permute(dims).contiguous().permute(order)
    found, expected = torch.compile(function, backend="lazyc")(x), function(x)
    torch.testing.assert_close(found, expected)
    assert found[0].stride() == expected[0].stride()


@pytest.mark.parametrize("dims", list(itertools.permutations(range(3))))
def test_a_product_is_permuted(dims: tuple[int, ...]) -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            (x @ y).permute(dims),
            (x @ y.relu()).permute(dims) + 1,
            (x.exp() @ y).permute(dims).contiguous(),
        )

    x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    found, expected = torch.compile(function, backend="lazyc")(x, y), function(x, y)
    torch.testing.assert_close(found, expected)
    assert [t.stride() for t in found] == [t.stride() for t in expected]


def test_one_copy_serves_every_product() -> None:
    b = Make()
    x, y = b.input(4, 4, strides=(8, 2)), b.input(4, 4)
    graph = b.outputs(b.emit("matmul", y, x), b.emit("matmul", x, x))
    program = schedule(copy_matrix_operands(graph))
    assert len(kernels(program)) == 1


def test_a_parameter_is_copied_once() -> None:
    b = Make()
    x, w = b.input(4, 4), b.input(4, 4, strides=(8, 2), parameter=True)
    program = schedule(copy_matrix_operands(b.outputs(b.emit("matmul", x, w))))
    assert [type(step) for step in program.steps] == [P.GemmStep]
    assert len(program.packed) == 1
