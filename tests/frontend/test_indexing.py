"""Reads and writes through index tensors against eager, with bad, negative and missing indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lazyc.frontend.lowering import NotLowered
from lazyc.ir import attrs as A
from tests.frontend.lowering_harness import check, lower, run

NAN = float("nan")


def ints(*values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def loose(dtype: torch.dtype) -> dict[str, float]:
    """Tolerances where eager rounds each addition to bf16 and the lowering only the sum."""
    return {"rtol": 2e-2, "atol": 5e-2} if dtype is torch.bfloat16 else {}


X = floats(4, 5, 6)

# --- embedding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_embedding(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    indices = torch.arange(max(1, torch.Size(shape).numel()))[: torch.Size(shape).numel()] % 4
    for kind in (torch.int64, torch.int32):
        check("aten.embedding.default", floats(4, 5, dtype=dtype), indices.reshape(shape).to(kind))


@pytest.mark.parametrize("bad", [-1, 4])
def test_embedding_flags_a_bad_index(bad: int) -> None:
    with pytest.raises(IndexError):
        run("aten.embedding.default", floats(4, 5), ints(0, bad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_frequency", [False, True])
@pytest.mark.parametrize("padding", [-1, 2])
def test_embedding_backward(dtype: torch.dtype, by_frequency: bool, padding: int) -> None:
    indices = ints([0, 2, 2], [3, 0, 0])
    check(
        "aten.embedding_dense_backward.default",
        floats(2, 3, 5, dtype=dtype), indices, 6, padding, by_frequency,
        **loose(dtype),
    )  # fmt: skip


def test_embedding_backward_sums_halves_in_f32() -> None:
    grad = torch.full((512, 1), 1.0, dtype=torch.bfloat16)
    (total,) = run(
        "aten.embedding_dense_backward.default", grad, torch.zeros(512).long(), 1, -1, False
    )
    assert total is not None and total.item() == 512  # eager stops at 256


def test_embedding_backward_of_padding_hides_nan() -> None:
    (grad,) = run(
        "aten.embedding_dense_backward.default",
        torch.tensor([[NAN], [1.0]]), ints(1, 0), 2, 1, False,
    )  # fmt: skip
    torch.testing.assert_close(grad, torch.tensor([[1.0], [0.0]]))


# --- gather, take, index_select -------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_gather(axis: int) -> None:
    index = torch.arange(24).reshape(2, 4, 3) % 4
    check("aten.gather.default", X, axis, index)
    check("aten.gather.default", X.transpose(0, 1), axis, index.to(torch.int32))


def test_gather_of_odd_ranks() -> None:
    scalar = torch.tensor(3.0)
    check("aten.gather.default", scalar, 0, torch.tensor(0))
    check("aten.gather.default", scalar, 0, ints(0, 0))
    check("aten.gather.default", torch.tensor([3.0]), 0, torch.tensor(0))
    check("aten.gather.default", X, 1, torch.empty(0, dtype=torch.int64))
    check("aten.gather.default", X[:0], 1, torch.empty(0, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize("axis", [0, 2, -2])
def test_index_select(axis: int) -> None:
    check("aten.index_select.default", X, axis, ints(3, 0, 0))
    check("aten.index_select.default", X, axis, torch.tensor(1))
    check("aten.index_select.default", X, axis, ints(dtype=torch.int32))
    check("aten.index_select.default", torch.tensor(3.0), 0, torch.tensor(0))


def test_take_wraps() -> None:
    check("aten.take.default", X, ints([-1, 0], [119, -120]))
    check("aten.take.default", X.permute(2, 0, 1), ints(7))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.gather.default", (X, 1, ints([[-1]]))),
        ("aten.gather.default", (X, 1, ints([[5]]))),
        ("aten.index_select.default", (X, 1, ints(-1))),
        ("aten.take.default", (X, ints(120))),
        ("aten.take.default", (X, ints(-121))),
        ("aten.index.Tensor", (X, [ints(4)])),
        ("aten.index.Tensor", (X, [ints(-5)])),
        ("aten.index_put.default", (X, [ints(-5)], torch.ones(5, 6))),
        ("aten.index_add.default", (X, 0, ints(-1), torch.ones(1, 5, 6))),
        ("aten.index_copy.default", (X, 0, ints(4), torch.ones(1, 5, 6))),
        ("aten.index_fill.int_Scalar", (X, 0, ints(-5), 1.0)),
        ("aten.scatter.value", (X, 0, ints([[-1]]), 1.0)),
        ("aten.scatter_add.default", (X, 0, ints([[4]]), torch.ones(1, 1, 1))),
    ],
)
def test_a_bad_index_is_flagged(name: str, args: tuple[Any, ...]) -> None:
    graph, _, _ = lower(name, *args)
    assert any(
        n.attrs.checked for n in graph.nodes if isinstance(n.attrs, A.GatherAttrs | A.ScatterAttrs)
    )
    with pytest.raises(IndexError):
        run(name, *args)


# --- advanced indexing ----------------------------------------------------------------------------

I2 = ints([0, -1], [3, 1])
J2 = ints(2, -5)
ADVANCED: list[tuple[str, list[torch.Tensor | None]]] = [
    ("one, first", [I2]),
    ("one, second", [None, I2]),
    ("one, last", [None, None, J2]),
    ("0-dim", [torch.tensor(-1)]),
    ("adjacent, broadcast", [I2, J2]),
    ("adjacent, not first", [None, I2, J2]),
    ("apart: their dims come first", [I2, None, J2]),
    ("apart, broadcast 0-dim", [torch.tensor(1), None, I2]),
    ("all", [I2, J2, torch.tensor(0)]),
    ("i32", [I2.to(torch.int32), None, J2]),
    ("empty", [None, ints()]),
]
IDS = [name for name, _ in ADVANCED]
ALL_INDICES = [indices for _, indices in ADVANCED]


@pytest.mark.parametrize("indices", ALL_INDICES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_index(indices: list[torch.Tensor | None], dtype: torch.dtype) -> None:
    check("aten.index.Tensor", X.to(dtype), indices)
    check("aten._unsafe_index.Tensor", X.to(dtype), indices)


@pytest.mark.parametrize("indices", ALL_INDICES, ids=IDS)
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_index_put(indices: list[torch.Tensor | None], accumulate: bool, full: bool) -> None:
    shape = torch.ops.aten.index.Tensor(X, indices).shape
    values = floats(*shape) if full else torch.tensor(2.5)
    if full and not accumulate and len(indices) == 1 and indices[0] is I2:
        values = values[:1].expand(shape)
    check("aten.index_put.default", X, indices, values, accumulate)
    check("aten._unsafe_index_put.default", X, indices, values, accumulate)


def test_index_on_channels_last() -> None:
    x = floats(2, 3, 4, 5).to(memory_format=torch.channels_last)
    check("aten.index.Tensor", x, [None, None, ints([3], [0]), ints(1, 4)])


def test_index_put_accumulates_duplicates() -> None:
    out = check(
        "aten.index_put.default", torch.zeros(3), [ints(1, 1, -2)], torch.tensor([1.0, 2, 4]), True
    )
    torch.testing.assert_close(out[0], torch.tensor([0.0, 7.0, 0.0]))


@pytest.mark.parametrize("accumulate", [False, True])
def test_index_put_of_one_value_by_mask(accumulate: bool) -> None:
    check("aten.index_put.default", X, [X > 0], torch.tensor(NAN), accumulate)
    check("aten.index_put.default", X, [X[..., 0] > 0], torch.tensor([1.5]), accumulate)
    check("aten.index_put.default", X, [None, X[0] > 0], torch.tensor(1.5), accumulate)
    check("aten.index_put.default", X, [None, None, X[0, 0] > 0], torch.tensor(1.5), accumulate)


def test_masks_stay_in_eager() -> None:
    with pytest.raises(NotLowered, match="depends on data"):
        lower("aten.index.Tensor", X, [X > 0])
    with pytest.raises(NotLowered, match="depends on data"):
        lower("aten.index_put.default", X, [X > 0], floats(3))
    with pytest.raises(NotLowered):
        lower("aten.index_put.default", X, [ints(0)], torch.tensor(1))


def test_masked_index() -> None:
    index = ints(-7, 2, 99)
    mask = torch.tensor([False, True, False])
    (found,) = run("aten._unsafe_masked_index.default", X, mask, [None, None, index], NAN)
    assert found is not None
    torch.testing.assert_close(found[..., 1], X[..., 2])
    assert found[..., 0].isnan().all() and found[..., 2].isnan().all()
    (out,) = run(
        "aten._unsafe_masked_index_put_accumulate.default",
        torch.zeros(3), mask, [index], torch.tensor([1.0, 2.0, 4.0]),
    )  # fmt: skip
    torch.testing.assert_close(out, torch.tensor([0.0, 0.0, 2.0]))


def test_masked_scatter() -> None:
    check("aten.masked_scatter.default", X, X > 0, floats(120))
    check("aten.masked_scatter.default", X, X[0, 0] > 0, floats(6, 30))
    with pytest.raises(IndexError):
        run("aten.masked_scatter.default", X, X == X, floats(3))
    grad = check("aten.masked_scatter_backward.default", X, X > 0, [130])[0]
    assert grad is not None and not grad[120:].any()


# --- writes along a dim ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_index_add_copy_fill_put(dtype: torch.dtype) -> None:
    x, source = (X * 8).to(dtype), (floats(4, 3, 6) * 8).to(dtype)
    check("aten.index_add.default", x, 1, ints(4, 0, 4), source, **loose(dtype))
    check("aten.index_add.default", x, -2, ints(4, 0, 1), source, alpha=2.5, **loose(dtype))
    check("aten.index_copy.default", x, 1, ints(4, 0, 2), source)
    check("aten.index_fill.int_Scalar", x, 1, ints(-1, 0), 2.7)
    check("aten.index_fill.int_Tensor", x, 1, ints(-1, 0), torch.tensor(3))
    check("aten.put.default", x, ints([-1, 7]), source[0, 0, :2].reshape(1, 2), False)
    check("aten.put.default", x, ints([7, 7]), source[0, 0, :2], True, **loose(dtype))


@pytest.mark.parametrize("name", ["index_add", "index_copy", "index_reduce"])
@pytest.mark.parametrize("shape", [(2, 6, 5), (2,), (2, 30)])
def test_a_source_of_another_shape_is_left_to_eager(name: str, shape: tuple[int, ...]) -> None:
    more = ("amax",) if name == "index_reduce" else ()
    with pytest.raises(NotLowered, match="source"):
        lower(f"aten.{name}.default", X, 0, ints(1, 0), torch.ones(shape), *more)


def test_writes_into_0_dim() -> None:
    x, one = torch.tensor(1.0), torch.tensor(5.0)
    check("aten.index_add.default", x, 0, torch.tensor(0), one)
    check("aten.index_copy.default", x, 0, torch.tensor(0), one)
    check("aten.index_copy.default", torch.ones(3), 0, torch.tensor(1), one)
    check("aten.scatter.value", x, 0, ints(0, 0), 2.0)
    check("aten.scatter_reduce.two", x, 0, torch.tensor(0), one, "prod")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter(axis: int) -> None:
    index = torch.stack([torch.randperm(4)[:3] for _ in range(6)]).reshape(3, 2, 3)
    index = index.movedim(2, axis).contiguous()
    source = floats(4, 4, 4)
    check("aten.scatter.src", X[:4, :4, :4], axis, index, source)
    check("aten.scatter.value", X, axis, index, 7.5)
    check("aten.scatter.value", X.long(), axis, index, 7.5)
    check("aten.scatter_add.default", X[:4, :4, :4], axis, index, source)
    check("aten.scatter.value", X, axis, torch.empty(0, dtype=torch.int64), 1.0)
    for reduce in ("add", "multiply"):
        check("aten.scatter.reduce", X[:4, :4, :4], axis, index, source, reduce=reduce)
        check("aten.scatter.value_reduce", X, axis, index, 7.5, reduce=reduce)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("reduce", ["sum", "prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("include_self", [True, False])
def test_scatter_reduce(dtype: torch.dtype, reduce: str, include_self: bool) -> None:
    x, source = (floats(3, 6) * 3).to(dtype), (floats(4, 6) * 4).to(dtype)
    index = ints([0, 0, 1, 2, 0, 1], [0, 2, 1, 2, 0, 0], [0, 0, 1, 2, 0, 1])
    keep: dict[str, Any] = {"include_self": include_self, **loose(dtype)}
    check("aten.scatter_reduce.two", x, 0, index, source, reduce, **keep)
    if reduce != "sum":
        check("aten.index_reduce.default", x, 0, ints(2, 0, 2, 2), source, reduce, **keep)


def test_scatter_reduce_passes_nan_on() -> None:
    source = torch.tensor([NAN, 1.0, 2.0])
    for reduce in ("amax", "amin", "sum", "prod", "mean"):
        check("aten.scatter_reduce.two", torch.zeros(2), 0, ints(0, 0, 1), source, reduce)


# --- nll ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_nll_loss(dtype: torch.dtype, reduction: int, weighted: bool, ignored: int) -> None:
    for name, shape in (("nll_loss", (4, 3)), ("nll_loss", (3,)), ("nll_loss2d", (2, 3, 2, 2))):
        x = floats(*shape, dtype=dtype)
        target = (torch.arange(x.numel() // 3) % 3).reshape(x.select(int(x.dim() > 1), 0).shape)
        weight = torch.tensor([0.5, 2.0, 0.25], dtype=dtype) if weighted else None
        args = (target, weight, reduction, ignored)
        loss, total = check(f"aten.{name}_forward.default", x, *args, **loose(dtype))
        assert loss is not None and total is not None
        check(f"aten.{name}_backward.default", torch.ones_like(loss) * 3, x, *args, total)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_nll_loss_corners(reduction: int) -> None:
    name = "aten.nll_loss_forward.default"
    x = torch.tensor([[NAN, 1.0], [2.0, 3.0]])
    check(name, x, ints(-100, 1), None, reduction, -100)  # an ignored row's nan does not count
    check(name, x, ints(0, 1), torch.tensor([0.0, 1.0]), reduction, -100)  # 0 * nan does
    check(name, x, ints(-100, -100), None, reduction, -100)  # mean: 0/0
    check(name, x[:0], ints(), None, reduction, -100)
    check(name, x, ints(0, 1, dtype=torch.uint8), None, reduction, -100)
    back = "aten.nll_loss_backward.default"
    grad = torch.ones(2) if reduction == 0 else torch.tensor(1.0)
    check(back, grad, x, ints(0, -100), None, reduction, -100, torch.tensor(0.0))
    for bad in (2, -1):
        with pytest.raises(IndexError):
            run(name, x, ints(0, bad), None, reduction, -100)
