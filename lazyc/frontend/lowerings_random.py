"""Lowerings of tensors of uniform, normal and integer random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lazyc.frontend.draws import (
    check_random,
    device_name,
    float_type,
    normal_draw,
    uniform_on_grid,
)
from lazyc.frontend.lowering import Builder, NotLowered, lowers
from lazyc.frontend.promotion import lazyc_dtype
from lazyc.ir.graph import Node
from lazyc.ir.types import Dim, DType, Shape

_MAX_RANGE = 1 << 31  # 32 random bits times the range must fit an i64


# --- tensors of a given size ----------------------------------------------------------------------


@lowers("aten.rand.default")
def rand(
    b: Builder,
    size: Sequence[Dim],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    check_random(layout)
    return uniform_on_grid(b, tuple(size), float_type(dtype), device_name(device))


@lowers("aten.rand_like.default")
def rand_like(
    b: Builder,
    x: Node,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Node:
    check_random(layout)
    return uniform_on_grid(
        b, x.shape, float_type(dtype, x.dtype), device_name(device, x.tensor.device)
    )


@lowers("aten.randn.default")
def randn(
    b: Builder,
    size: Sequence[Dim],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    check_random(layout)
    found = float_type(dtype)
    return b.cast(normal_draw(b, tuple(size), found, device_name(device)), found)


@lowers("aten.randn_like.default")
def randn_like(
    b: Builder,
    x: Node,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Node:
    check_random(layout)
    found = float_type(dtype, x.dtype)
    return b.cast(normal_draw(b, x.shape, found, device_name(device, x.tensor.device)), found)


# --- integers -------------------------------------------------------------------------------------


def _integers(b: Builder, low: Dim, high: Dim, shape: Shape, dtype: DType, device: str) -> Node:
    """Integers of [low, high): 32 random bits scaled by the range (Lemire, 2019, unrejected)."""
    span = high - low
    if isinstance(span, int) and not 0 < span <= _MAX_RANGE:
        raise NotLowered(f"random integers over a range of {span}")
    bits = b.random("bits", shape, DType.I64, device)
    scaled = b.pointwise("shr", b.mul(bits, span), 32)
    return b.cast(b.add(scaled, low), dtype)


@lowers("aten.randint.low")
def randint_low(
    b: Builder,
    low: Dim,
    high: Dim,
    size: Sequence[Dim],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    check_random(layout)
    return _integers(b, low, high, tuple(size), lazyc_dtype(dtype, DType.I64), device_name(device))


@lowers("aten.randint.default")
def randint(
    b: Builder,
    high: Dim,
    size: Sequence[Dim],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Node:
    return randint_low(b, 0, high, size, dtype=dtype, layout=layout, device=device)


@lowers("aten.randint_like.low_dtype")
def randint_like_low(
    b: Builder,
    x: Node,
    low: Dim,
    high: Dim,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Node:
    check_random(layout)
    found = lazyc_dtype(dtype, x.dtype)
    return _integers(b, low, high, x.shape, found, device_name(device, x.tensor.device))


@lowers("aten.randint_like.default")
def randint_like(
    b: Builder,
    x: Node,
    high: Dim,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Node:
    return randint_like_low(b, x, 0, high, dtype=dtype, layout=layout, device=device)


@lowers("aten.random.from")
def random_from(
    b: Builder, x: Node, low: int, high: int | None, *, generator: object = None
) -> Node:
    check_random(None, generator)
    if high is None or x.dtype is DType.BOOL:
        raise NotLowered(f"random integers from {low} to {high} in {x.dtype}")
    return _integers(b, low, high, x.shape, x.dtype, x.tensor.device)


@lowers("aten.random.to")
def random_to(b: Builder, x: Node, high: int, *, generator: object = None) -> Node:
    return random_from(b, x, 0, high, generator=generator)
